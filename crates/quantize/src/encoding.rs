//! How is one tensor made into fewer bits? Its rows shared by threads, each decoded, encoded, and
//! decoded again to see what was lost.

use std::ops::Range;

use ops::quant_format::{MlxAffine, QuantFormat};

use crate::affine::AffineRows;
use crate::blocks::encode_row;

/// Rows of one format.
pub(crate) struct Stored<'a> {
    pub(crate) format: QuantFormat,
    pub(crate) cols: usize,
    pub(crate) bytes: &'a [u8],
}

/// What encoding changed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sums of squares, of the weights and of their errors.
    pub(crate) squares: f64,
    pub(crate) error_squares: f64,
}

impl Loss {
    /// Error over size, as roots of mean squares; 0 if nothing was lost.
    pub fn relative(self) -> f64 {
        if self.squares > 0.0 { (self.error_squares / self.squares).sqrt() } else { 0.0 }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.squares += other.squares;
        self.error_squares += other.error_squares;
    }

    /// `false` if one of the numbers is none.
    fn count(&mut self, before: &[f32], after: &[f32]) -> bool {
        for (before, after) in before.iter().zip(after) {
            let error = f64::from(*before) - f64::from(*after);
            self.squares += f64::from(*before) * f64::from(*before);
            self.error_squares += error * error;
        }
        self.squares.is_finite() && self.error_squares.is_finite()
    }
}

/// A weight that is not a number, or too large for the format it should become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotFinite;

impl Stored<'_> {
    fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols).unwrap_or(0).max(1)
    }

    pub(crate) fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes()
    }

    pub(crate) fn row(&self, row: usize, values: &mut [f32]) {
        let bytes = self.row_bytes();
        self.format.decode_row(&self.bytes[row * bytes..][..bytes], values);
    }

    /// All rows in `format`, end to end.
    pub(crate) fn encode(
        &self,
        format: QuantFormat,
        threads: usize,
    ) -> Result<(Vec<u8>, Loss), NotFinite> {
        let row_bytes = format.row_bytes(self.cols).unwrap_or(0);
        let parts = in_parallel(self.rows(), threads, &|rows| {
            let mut encoded = vec![0u8; rows.len() * row_bytes];
            let mut loss = Loss::default();
            let (mut before, mut after) = (vec![0f32; self.cols], vec![0f32; self.cols]);
            for (row, bytes) in rows.zip(encoded.chunks_exact_mut(row_bytes)) {
                self.row(row, &mut before);
                if !before.iter().all(|value| value.is_finite()) {
                    return Err(NotFinite);
                }
                encode_row(format, &before, bytes);
                format.decode_row(bytes, &mut after);
                if !loss.count(&before, &after) {
                    return Err(NotFinite);
                }
            }
            Ok((encoded, loss))
        });
        let (mut all, mut loss) = (Vec::with_capacity(self.rows() * row_bytes), Loss::default());
        for part in parts {
            let (encoded, own) = part?;
            all.extend_from_slice(&encoded);
            loss.add(own);
        }
        Ok((all, loss))
    }

    /// All rows in MLX's affine form.
    pub(crate) fn encode_affine(
        &self,
        affine: MlxAffine,
        threads: usize,
    ) -> Result<(AffineRows, Loss), NotFinite> {
        let parts = in_parallel(self.rows(), threads, &|rows| {
            let (mut all, mut loss) = (AffineRows::default(), Loss::default());
            let (mut before, mut after) = (vec![0f32; self.cols], vec![0f32; self.cols]);
            for row in rows {
                self.row(row, &mut before);
                if !before.iter().all(|value| value.is_finite()) {
                    return Err(NotFinite);
                }
                let mut one = AffineRows::default();
                one.add(affine, &before);
                one.decode(affine, &mut after);
                if !loss.count(&before, &after) {
                    return Err(NotFinite);
                }
                all.append(one);
            }
            Ok((all, loss))
        });
        let (mut all, mut loss) = (AffineRows::default(), Loss::default());
        for part in parts {
            let (rows, own) = part?;
            all.append(rows);
            loss.add(own);
        }
        Ok((all, loss))
    }
}

/// Shares `rows` among threads; the parts in order.
fn in_parallel<T: Send>(
    rows: usize,
    threads: usize,
    work: &(dyn Fn(Range<usize>) -> T + Sync),
) -> Vec<T> {
    let share = rows.div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let starts = (0..rows).step_by(share);
        let start = |first: usize| scope.spawn(move || work(first..rows.min(first + share)));
        let running: Vec<_> = starts.map(start).collect();
        let finished = running.into_iter().map(|one| match one.join() {
            Ok(part) => part,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        finished.collect()
    })
}
