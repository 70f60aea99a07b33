//! How near are logits to another implementation's?

use std::fmt;

/// Differences of two tables of logits, or of streams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nearness {
    /// The largest difference of any value, relative to the largest value.
    pub apart: f32,
    /// The mean Kullback-Leibler divergence of the distributions from the true ones.
    pub nats: f64,
    /// How far apart the true logits are, relative to the largest, of two of the five likeliest
    /// tokens that changed places; the most of all positions, 0 where none did.
    pub swapped: f32,
}

impl Nearness {
    /// Of rows of `width` values.
    ///
    /// # Panics
    /// If there are not as many of both.
    pub fn of(got: &[f32], truth: &[f32], width: usize) -> Self {
        let scale = largest(truth);
        let mut near = Self { apart: difference(got, truth), ..Self::default() };
        let rows = got.chunks_exact(width).zip(truth.chunks_exact(width));
        let count = rows.len();
        for (got, truth) in rows {
            near.nats += divergence(got, truth) / count as f64;
            for (mine, theirs) in likeliest(got).into_iter().zip(likeliest(truth)) {
                near.swapped = near.swapped.max((truth[mine] - truth[theirs]).abs() / scale);
            }
        }
        near
    }
}

impl fmt::Display for Nearness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { apart, nats, swapped } = self;
        write!(formatter, "apart {apart:.1e}, KL {nats:.1e}, swapped {swapped:.1e}")
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |scale, value| scale.max(value.abs()))
}

/// The largest difference, relative to the largest value of `truth`; not a number where one is not.
///
/// # Panics
/// If there are not as many of both.
pub fn difference(got: &[f32], truth: &[f32]) -> f32 {
    assert_eq!(got.len(), truth.len(), "as many values");
    let apart = got.iter().zip(truth).map(|(got, want)| (got - want).abs());
    // Not `f32::max` alone, which passes over what is no number.
    let most = apart
        .fold(0f32, |most, x| if most.is_nan() || x.is_nan() { f32::NAN } else { most.max(x) });
    most / largest(truth)
}

/// The ids of the five largest, the largest first.
fn likeliest(row: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..row.len()).collect();
    ids.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
    ids.truncate(5);
    ids
}

/// In nats, of one position.
fn divergence(got: &[f32], truth: &[f32]) -> f64 {
    let distribution = |row: &[f32]| -> Vec<f64> {
        let max = row.iter().fold(f32::MIN, |max, value| max.max(*value));
        let weights: Vec<f64> = row.iter().map(|value| f64::from(value - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.iter().map(|weight| weight / total).collect()
    };
    let pairs = distribution(truth).into_iter().zip(distribution(got));
    pairs.map(|(p, q)| if p > 0.0 { p * (p / q).ln() } else { 0.0 }).sum()
}

#[cfg(test)]
mod tests {
    use super::{Nearness, difference};

    #[test]
    fn what_differs_is_seen() {
        let truth = [4.0, 3.0, 2.0, 1.0, 0.0, -8.0];
        assert_eq!(difference(&truth, &truth), 0.0);
        let near = Nearness::of(&truth, &truth, 3);
        assert_eq!((near.apart, near.nats, near.swapped), (0.0, 0.0, 0.0));
        let near = Nearness::of(&[3.0, 4.0, 2.0, 1.0, 0.0, -8.0], &truth, 3);
        assert_eq!((near.apart, near.swapped), (0.125, 0.125));
        // Of the first of two rows: (e^4 - e^3) / (e^4 + e^3 + e^2).
        assert!((near.nats - 0.4205 / 2.0).abs() < 1e-3, "{}", near.nats);
        assert!(difference(&[f32::NAN, 3.0, 2.0, 1.0, 0.0, -8.0], &truth).is_nan());
    }
}
