//! How do a model's weights come into the layout of the kernels, and where are they kept? Packed
//! from the model file at load or behind the first steps, or taken back from where they were kept.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use device::{HeapPool, LoadError, PackedBytes, PackedKey, Tape, WeightSource};
use ops::WeightId;

use crate::device::{packed_piece_bytes, unstack, uses};
use crate::memory::{Arena, ArenaPiece, FloatTable};
use crate::memory_plan::Plan;
use crate::moving::{From, Move, Moving};
use crate::packed::{PackError, PackedMatrix, Spares};
use crate::packed_cache::{self, KeyBuilder};
use crate::packing::packs_directly;
use crate::pinning::Pins;
use crate::{Isa, Team};

/// Weights as this backend keeps them; each is a matrix or a vector, as its ops use it.
pub(crate) struct Stored {
    /// Before the memory it writes, so that it ends first.
    moving: Option<Moving>,
    /// Before the memory it pins, so that it is undone first.
    _pins: Pins,
    pub(crate) matrices: BTreeMap<WeightId, PackedMatrix>,
    /// Matrices that were stored one below the other: of each expert.
    stacks: BTreeMap<WeightId, Vec<PackedMatrix>>,
    vectors: BTreeMap<WeightId, Range<usize>>,
    floats: FloatTable,
    pub(crate) bytes: u64,
}

/// What weights are packed from, and by whom.
pub(crate) struct Packing<'a> {
    pub(crate) tape: &'a Tape,
    pub(crate) source: &'a dyn WeightSource,
    pub(crate) team: &'a Team,
    pub(crate) isa: Isa,
}

#[derive(Default)]
struct Matrices {
    all: BTreeMap<WeightId, PackedMatrix>,
    pins: Pins,
    moving: Option<Moving>,
}

impl Packing<'_> {
    pub(crate) fn pack(&self, plan: &Plan, pool: &HeapPool) -> Result<Stored, LoadError> {
        let (matrix_ids, vector_ids) = uses(self.tape);
        let Matrices { all: mut matrices, pins, moving } =
            self.matrices(&matrix_ids, plan.matrices, pool)?;
        let stacks = unstack(self.tape, &mut matrices)?;
        let mut floats = FloatTable::carve(pool, "weights", plan.vectors)?;
        let mut vectors = BTreeMap::new();
        for id in vector_ids {
            self.tape.lend(id, self.source, &mut |view| {
                let decode = |values: &mut [f32]| view.format.decode_row(view.bytes, values);
                vectors.insert(id, floats.add(view.rows * view.cols, decode));
            })?;
        }
        let bytes = plan.memory.weights_bytes;
        Ok(Stored { moving, _pins: pins, matrices, stacks, vectors, floats, bytes })
    }

    /// Packs matrices into one arena of `total` bytes, or takes them back from where they are kept.
    fn matrices(
        &self,
        ids: &[WeightId],
        total: usize,
        pool: &HeapPool,
    ) -> Result<Matrices, LoadError> {
        let key = self.key(ids)?;
        let mut arena = Arena::carve(pool, "weights", total)?;
        let store = self.source.packed_store();
        let Some(kept) = store.and_then(|store| store.find(&key)) else {
            return self.packed(ids, &arena, &key);
        };
        if let Some(bytes) = kept.in_place() {
            return match packed_cache::check(kept.as_ref(), bytes.len(), self.team) {
                true => self.in_place(ids, &arena, &kept),
                false => self.packed(ids, &arena, &key),
            };
        }
        if packed_cache::take_back(&mut arena, kept.as_ref(), self.team) {
            return self.adopted(ids, &arena);
        }
        // Packing counts on zeros, which a pool gives whatever was there before.
        drop(arena);
        self.packed(ids, &Arena::carve(pool, "weights", total)?, &key)
    }

    /// Packed from the model file, and kept where that is wanted.
    fn packed(
        &self,
        ids: &[WeightId],
        arena: &Arena,
        key: &PackedKey,
    ) -> Result<Matrices, LoadError> {
        let (mut matrices, mut moves) = (Matrices::default(), Vec::new());
        let spares = Arc::new(Spares::default());
        for &id in ids {
            let to = self.piece(id, arena)?;
            if let Some((matrix, from)) = self.stored(id, &spares)? {
                matrices.all.insert(id, matrix);
                moves.push(Move { id, from, to });
                continue;
            }
            let mut piece = Some(to);
            let mut packed = None;
            self.tape.lend(id, self.source, &mut |view| {
                let piece = piece.take().expect("invariant: a source lends once");
                packed = Some(PackedMatrix::pack(&view.into(), piece, self.team));
            })?;
            let packed = packed.expect("invariant: a source lends what it has");
            self.add(&mut matrices, id, packed)?;
        }
        if !moves.is_empty() {
            matrices.moving = Moving::start(moves);
        }
        if let Some(store) = self.source.packed_store() {
            store.keep(key, &packed_cache::pieces(matrices.all.values()));
        }
        Ok(matrices)
    }

    /// A matrix that steps pack as they come to it, until it is in the arena.
    fn stored(
        &self,
        id: WeightId,
        spares: &Arc<Spares>,
    ) -> Result<Option<(PackedMatrix, From)>, LoadError> {
        let spec = self.tape.weight(id);
        let shape = self.tape.shape(id, self.source)?;
        // Formats that take long to pack are packed once.
        let is_quick = spec.part.is_none() && packs_directly(shape.format);
        let Some(stored) = is_quick.then(|| self.source.lasting(&spec.name)).flatten() else {
            return Ok(None);
        };
        let matrix = PackedMatrix::stored(&shape, Arc::clone(&stored), Arc::clone(spares));
        let matrix = matrix.map_err(|error| LoadError(format!("{}: {error}", spec.name)))?;
        Ok(Some((matrix, From::Stored(stored, shape))))
    }

    /// The arena holds them already.
    fn adopted(&self, ids: &[WeightId], arena: &Arena) -> Result<Matrices, LoadError> {
        let mut matrices = Matrices::default();
        for &id in ids {
            let view = self.tape.shape(id, self.source)?;
            let matrix = PackedMatrix::adopt(&view, self.piece(id, arena)?);
            self.add(&mut matrices, id, matrix)?;
        }
        Ok(matrices)
    }

    /// Used where they are kept, until they are in the arena.
    fn in_place(
        &self,
        ids: &[WeightId],
        arena: &Arena,
        kept: &Arc<dyn PackedBytes>,
    ) -> Result<Matrices, LoadError> {
        let (mut matrices, mut moves, mut offset) = (Matrices::default(), Vec::new(), 0);
        for &id in ids {
            let view = self.tape.shape(id, self.source)?;
            let to = self.piece(id, arena)?;
            let matrix = PackedMatrix::adopt_in_place(&view, Arc::clone(kept), offset);
            self.add(&mut matrices, id, matrix)?;
            let bytes = to.len();
            moves.push(Move { id, from: From::Kept(Arc::clone(kept), offset), to });
            offset += Arena::piece_bytes(bytes);
        }
        matrices.moving = Moving::start(moves);
        Ok(matrices)
    }

    fn piece(&self, id: WeightId, arena: &Arena) -> Result<ArenaPiece, LoadError> {
        let view = self.tape.shape(id, self.source)?;
        let bytes = PackedMatrix::packed_bytes(view.format, view.rows, view.cols);
        Ok(arena.take(bytes.unwrap_or(0)).expect("invariant: the arena was sized for all"))
    }

    fn add(
        &self,
        matrices: &mut Matrices,
        id: WeightId,
        matrix: Result<PackedMatrix, PackError>,
    ) -> Result<(), LoadError> {
        let name = &self.tape.weight(id).name;
        let matrix = matrix.map_err(|error| LoadError(format!("{name}: {error}")))?;
        matrices.pins.pin(self.source.pinning(), name, matrix.packed());
        matrices.all.insert(id, matrix);
        Ok(())
    }

    fn key(&self, ids: &[WeightId]) -> Result<PackedKey, LoadError> {
        let mut key = KeyBuilder::new();
        for &id in ids {
            let view = self.tape.shape(id, self.source)?;
            let bytes = packed_piece_bytes(self.tape, id, &view)?;
            key.add(&self.tape.weight(id).name, view.format, view.rows, view.cols, bytes);
        }
        Ok(key.finish(self.isa))
    }
}

impl Stored {
    /// Takes over the weights that have come into the heap since the last step.
    pub(crate) fn settle(&mut self) {
        let Some(moving) = &mut self.moving else { return };
        moving.begin_step();
        while !moving.is_over() {
            let Some((id, piece)) = moving.take() else {
                if !moving.is_urgent() {
                    break;
                }
                // The members are idle meanwhile, so the rest comes at all the machine's speed.
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let matrices = match (self.matrices.get_mut(&id), self.stacks.get_mut(&id)) {
                (Some(matrix), _) => std::slice::from_mut(matrix),
                (None, Some(stack)) => stack.as_mut_slice(),
                (None, None) => unreachable!("invariant: it is one of the tape's"),
            };
            let mut start = 0;
            for matrix in matrices {
                let bytes = matrix.bytes();
                matrix.move_to(piece.part(start, bytes));
                start += bytes;
            }
        }
        if moving.is_over() {
            self.moving = None;
        }
    }

    pub(crate) fn matrix(&self, id: WeightId) -> &PackedMatrix {
        self.matrices.get(&id).expect("invariant: every matrix of the tape was packed")
    }

    pub(crate) fn stack(&self, id: WeightId) -> &[PackedMatrix] {
        self.stacks.get(&id).expect("invariant: every stack of the tape was taken apart")
    }

    pub(crate) fn vector(&self, id: WeightId) -> &[f32] {
        let range = self.vectors.get(&id).expect("invariant: every vector of the tape is here");
        self.floats.get(range.clone())
    }
}
