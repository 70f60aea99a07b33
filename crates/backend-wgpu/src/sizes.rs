//! How much does everything take, and what can a device bind? Worked out before anything is taken.

use std::collections::BTreeMap;

use device::{Capacity, LoadError, MemoryUse, Rows, Tape};
use ops::Op;

use crate::attention;
use crate::carried::{self, CARRIED_WORDS};
use crate::copies::Copier;
use crate::experts::{self, ExpertsRoom, RoomKey};
use crate::lowering::{MatrixPiece, PassSegment, Plan};
use crate::memory::Heaps;
use crate::packing::{Form, Sections, UNIT};

/// Positions of a page: one block of the scheduler.
pub(crate) const BLOCK_TOKENS: u32 = 32;

/// Words of a token in a step, see `kernels/prelude.wgsli`.
pub(crate) const TOKEN_WORDS: usize = 4;
/// The one that says where its row's block table begins.
pub(crate) const TOKEN_BLOCKS: usize = 2;

/// Words of a row where texts are pooled, see `kernels/pool_rows.wgsl`.
pub(crate) const POOL_WORDS: usize = 5;

/// Parts of a row of logits, and what is said of the largest of each.
pub(crate) const CHOSEN_PARTS: u32 = 8;
pub(crate) const CHOSEN_ELEMENTS: u32 = 2 * CHOSEN_PARTS;

/// Rows of a part of a matrix at most: a workgroup has eight or more, and there are 65,535 of them.
const PIECE_ROWS_MAX: usize = 4 * 65_504;
/// Workgroups side by side that every device has; some kernels have one a token.
const GROUPS_MAX: u32 = 65_535;
/// Parts begin at a whole tile.
const PIECE_ROWS_UNIT: usize = 32;

/// Where an activation is among all of them, in elements, and how far its rows are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) first: u32,
    pub(crate) stride: u32,
    pub(crate) width: u32,
    pub(crate) rows: Rows,
}

impl Place {
    /// Of rows behind the `elements` that are taken.
    pub(crate) fn take(elements: &mut u64, rows: u64, width: u32) -> Self {
        let stride = width.next_multiple_of(UNIT as u32);
        let first = *elements as u32;
        *elements += rows * u64::from(stride);
        Self { first, stride, width, rows: Rows::Tokens }
    }
}

/// Of all adapters.
fn ranks(tape: &Tape) -> impl Iterator<Item = u32> {
    let adapters = tape.ops.iter().flat_map(|op| match op {
        Op::AddLowRank { adapters, .. } => adapters.as_slice(),
        _ => &[],
    });
    adapters.flatten().map(|part| tape.weight(part.down).rows)
}

/// The places of all activations.
pub(crate) struct Places {
    pub(crate) activations: Vec<Place>,
    /// What mixtures of experts keep between their passes.
    pub(crate) rooms: BTreeMap<RoomKey, ExpertsRoom>,
    /// Between the two matrices of an adapter: `[tokens, rank]`.
    pub(crate) low_rank: Option<Place>,
    /// What is kept of a text that is read in several steps: a row a slot.
    pub(crate) kept: Option<Place>,
    /// What attention leaves of blocks that several workgroups share, as one row.
    pub(crate) partials: Option<Place>,
    /// The largest of each row's logits, by parts of its columns: see
    /// `kernels/sample_rows.largest.wgsl`.
    pub(crate) chosen: Option<Place>,
    /// Elements of all of them.
    pub(crate) elements: u64,
}

impl Places {
    pub(crate) fn new(tape: &Tape, capacity: &Capacity, bounds: &Bounds) -> Self {
        let mut elements = 0u64;
        let tokens = capacity.step_tokens_max;
        let place = |spec: &device::ActivationSpec| {
            let rows = match spec.rows {
                Rows::Tokens => tokens,
                Rows::Sampled => capacity.sampled_tokens_max(),
            };
            Place { rows: spec.rows, ..Place::take(&mut elements, rows.into(), spec.width) }
        };
        let activations = tape.activations.iter().map(place).collect();
        let rooms = experts::rooms(tape, capacity, &mut elements);
        let rank = ranks(tape).max();
        let low_rank = rank.map(|rank| Place::take(&mut elements, tokens.into(), rank));
        let pooled = tape.pooled().map(|(width, _)| width);
        let kept = pooled.map(|width| Place::take(&mut elements, capacity.slots.into(), width));
        let shared = attention::partial_elements(tape, capacity) as u32;
        let is_shared = bounds.attends_by_units && shared > 0;
        let partials = is_shared.then(|| Place::take(&mut elements, 1, shared));
        let is_sampled = tape.ops.iter().any(|op| matches!(op, Op::SampleRows { .. }));
        let chosen = is_sampled.then(|| {
            let rows = u64::from(capacity.sampled_tokens_max());
            let taken = Place::take(&mut elements, rows, CHOSEN_ELEMENTS);
            let (stride, width) = (CHOSEN_ELEMENTS, CHOSEN_ELEMENTS);
            Place { stride, width, rows: Rows::Sampled, ..taken }
        });
        Self { activations, rooms, low_rank, kept, partials, chosen, elements }
    }

    pub(crate) fn bytes(&self) -> u64 {
        4 * self.elements
    }

    /// All of them in f16.
    pub(crate) fn rounded_bytes(&self) -> u64 {
        2 * self.elements
    }
}

/// What a device can bind at once, and do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) binding_bytes: u64,
    pub(crate) has_units: bool,
    pub(crate) has_fragments: bool,
    pub(crate) attends_by_units: bool,
}

impl Bounds {
    /// # Errors
    /// [`LoadError`] for shapes that no kernel has, and for what can be in one binding only.
    pub(crate) fn check(
        &self,
        tape: &Tape,
        capacity: &Capacity,
        places: &Places,
    ) -> Result<(), LoadError> {
        if capacity.block_tokens != BLOCK_TOKENS {
            let blocks = capacity.block_tokens;
            let text = format!("blocks of {blocks} positions, the wgpu device has {BLOCK_TOKENS}");
            return Err(LoadError(text));
        }
        if tape.head_dim > 1024 {
            let text = format!("heads of {} elements: the wgpu device has 1024", tape.head_dim);
            return Err(LoadError(text));
        }
        if capacity.step_tokens_max > GROUPS_MAX {
            let text = format!("limits.step_tokens_max: the wgpu device has at most {GROUPS_MAX}");
            return Err(LoadError(text));
        }
        let most = self.binding_bytes;
        if places.bytes() > most {
            return Err(LoadError(format!(
                "a step's activations are {} bytes and this device binds {most}: let steps have \
                 fewer tokens (limits.step_tokens_max)",
                places.bytes()
            )));
        }
        let pages = layer_bytes(tape, capacity);
        if pages > most {
            return Err(LoadError(format!(
                "keys and values of a layer are {pages} bytes and this device binds {most}: let \
                 contexts be shorter, or fewer"
            )));
        }
        Ok(())
    }

    /// # Errors
    /// [`LoadError`]: the small tensors are too many.
    pub(crate) fn check_vectors(&self, plan: &Plan) -> Result<(), LoadError> {
        let (bytes, most) = (vectors_bytes(plan), self.binding_bytes);
        if bytes <= most {
            return Ok(());
        }
        Err(LoadError(format!(
            "norms, biases and adapters are {bytes} bytes and this device binds {most}: load \
             fewer adapters"
        )))
    }

    /// The parts of a matrix that can be bound, as large as possible.
    pub(crate) fn pieces(
        &self,
        form: Form,
        rows: usize,
        units: usize,
        name: &str,
    ) -> Result<Vec<MatrixPiece>, LoadError> {
        let row_bytes = 4 * form.row_words(units) as u64;
        let fit = (self.binding_bytes / row_bytes.max(1)) as usize;
        let fit = fit.min(PIECE_ROWS_MAX) / PIECE_ROWS_UNIT * PIECE_ROWS_UNIT;
        if fit == 0 {
            let most = self.binding_bytes;
            let text =
                format!("{name}: 32 of its rows are more than the {most} bytes of a binding");
            return Err(LoadError(text));
        }
        let piece = |first: usize| {
            let rows = fit.min(rows - first);
            MatrixPiece { first, rows, sections: Sections::new(form, rows, units) }
        };
        Ok((0..rows).step_by(fit).map(piece).collect())
    }
}

/// Words of one block of one layer.
pub(crate) fn page_words(tape: &Tape) -> u64 {
    let pairs = u64::from(tape.head_dim.div_ceil(2));
    2 * u64::from(tape.heads_kv) * u64::from(BLOCK_TOKENS) * pairs
}

pub(crate) fn layer_bytes(tape: &Tape, capacity: &Capacity) -> u64 {
    4 * page_words(tape) * u64::from(capacity.block_count)
}

/// Words of the largest step.
pub(crate) fn step_words(tape: &Tape, capacity: &Capacity) -> usize {
    let tokens = capacity.step_tokens_max as usize;
    let pairs: usize = tape.rotaries.iter().map(|rotary| rotary.dims as usize / 2).sum();
    // Two lists of tokens and one of rows, see `StepWords`.
    // And tiles, two words a token at most.
    let tiles = 2 * attention::tile_sizes(tape).len();
    tokens * (TOKEN_WORDS + 2 + 2 * pairs + tiles)
        + capacity.slots as usize * (POOL_WORDS + CARRIED_WORDS)
        + capacity.sampled_tokens_max() as usize
        + block_entries(capacity)
}

/// Entries of all block tables of a step: every row may name every block, up to 4 MB of names.
fn block_entries(capacity: &Capacity) -> usize {
    let all = capacity.slots as usize * capacity.block_count as usize;
    all.min((4 * capacity.block_count as usize).max(1 << 20))
}

/// Bytes of the weights' heaps: each piece of a matrix, and the small tensors.
pub(crate) fn weights_bytes(plan: &Plan) -> u64 {
    let pieces = plan.matrices.iter().flat_map(|matrix| &matrix.pieces);
    let bytes = |piece: &MatrixPiece| Heaps::room(4 * piece.sections.end as u64);
    pieces.map(bytes).sum::<u64>() + Heaps::room(vectors_bytes(plan))
}

pub(crate) fn vectors_bytes(plan: &Plan) -> u64 {
    4 * u64::from(plan.vector_elements)
}

/// And what else sequences carry.
pub(crate) fn kv_bytes(tape: &Tape, plan: &Plan, capacity: &Capacity) -> u64 {
    u64::from(tape.layers) * Heaps::room(layer_bytes(tape, capacity))
        + carried::rooms_bytes(&plan.carried)
}

/// Bytes of logits, vectors or tokens' rows on their way to the process.
pub(crate) fn given_bytes(plan: &Plan, capacity: &Capacity) -> u64 {
    let rows = |place: &Place| match place.rows {
        Rows::Tokens => capacity.step_tokens_max,
        Rows::Sampled => capacity.sampled_tokens_max(),
    };
    let elements = |place: &Place| u64::from(place.stride) * u64::from(rows(place));
    let of_segment = |segment: &PassSegment| segment.given.iter().map(elements).sum::<u64>();
    4 * plan.segments.iter().map(of_segment).max().unwrap_or(0)
}

pub(crate) fn memory_use(tape: &Tape, plan: &Plan, capacity: &Capacity) -> MemoryUse {
    let step = 4 * step_words(tape, capacity) as u64;
    MemoryUse {
        weights_bytes: weights_bytes(plan),
        kv_bytes: kv_bytes(tape, plan, capacity),
        activations_bytes: activations_bytes(plan)
            // The step's words on the device, and twice on their way.
            + Heaps::room(step)
            + 2 * step
            + given_bytes(plan, capacity)
            + Copier::staging_bytes(tape),
        // A matrix is packed here before it goes over.
        staging_bytes: largest_piece(plan),
        host_bytes: 0,
    }
}

/// Bytes of the activations' heaps.
pub(crate) fn activations_bytes(plan: &Plan) -> u64 {
    let rounded = if plan.bounds.has_units { plan.places.rounded_bytes() } else { 0 };
    Heaps::room(plan.places.bytes()) + if rounded > 0 { Heaps::room(rounded) } else { 0 }
}

fn largest_piece(plan: &Plan) -> u64 {
    let pieces = plan.matrices.iter().flat_map(|matrix| &matrix.pieces);
    pieces.map(|piece| 4 * piece.sections.end as u64).max().unwrap_or(0)
}
