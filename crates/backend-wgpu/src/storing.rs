//! How do weights come onto the device? Packed by all processors, one piece at a time, and sent.

use std::collections::BTreeMap;
use std::ops::Range;

use device::{LoadError, Tape, WeightSource, WeightView};

use crate::gpu::Gpu;
use crate::lowering::{MatrixIndex, MatrixKey, MatrixPiece, MatrixPlan, Plan};
use crate::memory::{Heaps, Piece};
use crate::packing::{BeyondHalf, Packer, RowWords, Stored, TILE_ROWS, arrange};
use crate::sizes::vectors_bytes;

/// Bytes on their way before the device is waited for.
const IN_FLIGHT_BYTES: u64 = 64 << 20;

/// Where weights are.
pub(crate) struct StoredWeights {
    pub(crate) matrices: BTreeMap<(MatrixIndex, usize), Piece>,
    pub(crate) vectors: Piece,
}

impl StoredWeights {
    pub(crate) fn load(
        gpu: &Gpu,
        heaps: &Heaps,
        tape: &Tape,
        plan: &Plan,
        source: &dyn WeightSource,
    ) -> Result<Self, LoadError> {
        let mut sending = Sending { gpu, bytes: 0 };
        let mut matrices = BTreeMap::new();
        for (index, matrix) in plan.matrices.iter().enumerate() {
            lend(tape, matrix, source, &mut |tensors| {
                for (number, piece) in matrix.pieces.iter().enumerate() {
                    let words = pack(matrix, piece, tensors).map_err(|BeyondHalf| {
                        let name = &tape.weight(matrix.key.tensors()[0]).name;
                        LoadError(format!("tensor {name} has numbers that f16 cannot hold"))
                    })?;
                    let place = heaps.carve("weights", 4 * words.len() as u64)?;
                    sending.send(&place, &words)?;
                    matrices.insert((MatrixIndex(index), number), place);
                }
                Ok(())
            })?;
        }
        let vectors = heaps.carve("vectors", vectors_bytes(plan))?;
        sending.send(&vectors, &pack_vectors(tape, plan, source)?)?;
        sending.finish()?;
        Ok(Self { matrices, vectors })
    }
}

/// Sends words, and waits when many are on their way.
struct Sending<'a> {
    gpu: &'a Gpu,
    bytes: u64,
}

impl Sending<'_> {
    fn send(&mut self, to: &Piece, words: &[u32]) -> Result<(), LoadError> {
        self.gpu.queue.write_buffer(&to.buffer, to.offset, bytemuck::cast_slice(words));
        self.bytes += 4 * words.len() as u64;
        if self.bytes > IN_FLIGHT_BYTES { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), LoadError> {
        self.bytes = 0;
        let submission = self.gpu.queue.submit([]);
        self.gpu.wait(Some(submission)).map_err(|error| LoadError(error.to_string()))
    }
}

/// What takes the tensors of a matrix, each with its rows.
type Take<'a> = dyn FnMut(&[(usize, Stored<'_>)]) -> Result<(), LoadError> + 'a;

/// Lends a matrix's tensors to `take`, once. A source lends one at a time, so all but the last are
/// copied.
fn lend(
    tape: &Tape,
    matrix: &MatrixPlan,
    source: &dyn WeightSource,
    take: &mut Take<'_>,
) -> Result<(), LoadError> {
    let ids = matrix.key.tensors();
    let (&last, others) = ids.split_last().expect("invariant: a matrix has a tensor");
    let mut copies = Vec::new();
    for &id in others {
        tape.lend(id, source, &mut |WeightView { format, rows, cols, bytes }| {
            copies.push((rows, format, cols, bytes.to_vec()));
        })?;
    }
    let mut taken = Ok(());
    tape.lend(last, source, &mut |WeightView { format, rows, cols, bytes }| {
        let copied = copies.iter().map(|(rows, format, cols, bytes)| {
            (*rows, Stored { format: *format, cols: *cols, bytes })
        });
        let tensors: Vec<_> = copied.chain([(rows, Stored { format, cols, bytes })]).collect();
        taken = take(&tensors);
    })?;
    taken
}

/// Which tensor a matrix's row is of, and which of its rows it is.
fn row_of<'a, 'b>(
    key: &MatrixKey,
    tensors: &'b [(usize, Stored<'a>)],
    row: usize,
) -> (&'b Stored<'a>, usize) {
    match key {
        MatrixKey::Alternating(_) => (&tensors[row % 2].1, row / 2),
        MatrixKey::Stacked(_) => {
            let mut row = row;
            for (rows, stored) in tensors {
                if row < *rows {
                    return (stored, row);
                }
                row -= rows;
            }
            unreachable!("invariant: a matrix has the rows of its tensors")
        }
    }
}

/// Packs a part of a matrix on as many threads as there are processors.
fn pack(
    matrix: &MatrixPlan,
    piece: &MatrixPiece,
    tensors: &[(usize, Stored<'_>)],
) -> Result<Vec<u32>, BeyondHalf> {
    let (form, units) = (matrix.form, matrix.units());
    let mut words = vec![0u32; piece.sections.end];
    let (codes, rest) = words.split_at_mut(piece.sections.high);
    let (high, scales) = rest.split_at_mut(piece.sections.scales - piece.sections.high);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = piece.rows.div_ceil(threads).next_multiple_of(TILE_ROWS);
    let widths = [units * form.code_words(), units * form.high_words(), form.scale_words(units)];
    let mut sections = [codes, high, scales].map(Some);
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for first in (0..piece.rows).step_by(share) {
            let rows = first..piece.rows.min(first + share);
            let mut own = sections.each_mut().map(|_| Default::default());
            for ((section, width), own) in sections.iter_mut().zip(widths).zip(&mut own) {
                let rest = section.take().unwrap_or_default();
                let (taken, left) =
                    rest.split_at_mut(rows.len().next_multiple_of(TILE_ROWS) * width);
                (*own, *section) = (taken, Some(left));
            }
            let work = move || pack_rows(matrix, piece.first, tensors, rows, widths, own);
            workers.push(scope.spawn(work));
        }
        let finish = |worker: std::thread::ScopedJoinHandle<'_, _>| {
            worker.join().expect("invariant: packing never panics")
        };
        workers.into_iter().try_for_each(finish)
    })?;
    Ok(words)
}

fn pack_rows(
    matrix: &MatrixPlan,
    piece_first: usize,
    tensors: &[(usize, Stored<'_>)],
    rows: Range<usize>,
    widths: [usize; 3],
    [codes, high, scales]: [&mut [u32]; 3],
) -> Result<(), BeyondHalf> {
    let mut packer = Packer::new(matrix.form, matrix.cols);
    let each = [matrix.form.code_words(), matrix.form.high_words(), matrix.form.scale_each()];
    let mut row_words = widths.map(|width| vec![0u32; width]);
    let mut sections = [codes, high, scales];
    for (index, row) in rows.enumerate() {
        let (stored, source) = row_of(&matrix.key, tensors, piece_first + row);
        let [codes, high, scales] = row_words.each_mut().map(Vec::as_mut_slice);
        packer.pack(stored, source, RowWords { codes, high, scales })?;
        for ((section, words), each) in sections.iter_mut().zip(&row_words).zip(each) {
            put_row(section, index, words, each);
        }
    }
    if matrix.form.is_arranged() {
        arrange(matrix.form, sections[0]);
    }
    Ok(())
}

/// Words of a row to where it lies among its tile's: `each` at a time.
fn put_row(section: &mut [u32], row: usize, words: &[u32], each: usize) {
    if each == 0 {
        return;
    }
    let tile = &mut section[row / TILE_ROWS * TILE_ROWS * words.len()..];
    let places = tile.chunks_exact_mut(each).skip(row % TILE_ROWS).step_by(TILE_ROWS);
    words.chunks_exact(each).zip(places).for_each(|(words, place)| place.copy_from_slice(words));
}

fn pack_vectors(
    tape: &Tape,
    plan: &Plan,
    source: &dyn WeightSource,
) -> Result<Vec<u32>, LoadError> {
    // As long as what is bound: never nothing.
    let mut words = vec![0u32; (plan.vector_elements as usize).max(64)];
    for (&id, vector) in &plan.vectors {
        tape.lend(id, source, &mut |view| {
            let mut values = vec![0.0; view.rows * view.cols];
            let row_bytes = view.bytes.len() / view.rows;
            let rows = view.bytes.chunks_exact(row_bytes).zip(values.chunks_exact_mut(view.cols));
            rows.for_each(|(bytes, row)| view.format.decode_row(bytes, row));
            let place = &mut words[vector.0 as usize..][..values.len()];
            place.iter_mut().zip(values).for_each(|(word, value)| *word = value.to_bits());
        })?;
    }
    Ok(words)
}
