//! How often was something so long, or so many?

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of values between fixed bounds.
pub(crate) struct Histogram {
    /// Ascending.
    bounds: &'static [f64],
    /// `[bounds + 1]`: the last is for what is above all.
    counts: Vec<AtomicU64>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0.0_f64.to_bits()) }
    }

    /// Of what somebody else has counted.
    pub(crate) fn of(bounds: &'static [f64], counts: &[u64], sum: f64) -> Self {
        let counts = counts.iter().map(|&count| AtomicU64::new(count)).collect();
        Self { bounds, counts, sum: AtomicU64::new(sum.to_bits()) }
    }

    /// Counts `times` values.
    pub(crate) fn observe(&self, value: f64, times: u32) {
        let index = self.bounds.partition_point(|&bound| bound < value);
        self.counts[index].fetch_add(u64::from(times), Ordering::Relaxed);
        self.add(value * f64::from(times));
    }

    fn add(&self, value: f64) {
        let more = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure never gives `None`.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// Adds all that another of the same bounds has counted.
    pub(crate) fn merge(&self, other: &Self) {
        for (own, count) in self.counts.iter().zip(&other.counts) {
            own.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        self.add(other.sum());
    }

    /// Each bound with the count of what is not above it; the last has none.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let mut total = 0;
        self.counts.iter().enumerate().map(move |(index, count)| {
            total += count.load(Ordering::Relaxed);
            (self.bounds.get(index).copied(), total)
        })
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets().last().map_or(0, |(_, total)| total)
    }

    /// The value below which this share lies, as if values were spread evenly between two bounds;
    /// `None` where there are none. What is above all bounds counts as the last of them.
    pub(crate) fn quantile(&self, share: f64) -> Option<f64> {
        let rank = share * self.count() as f64;
        let (mut low, mut before) = (0.0, 0);
        for (bound, total) in self.buckets() {
            if total > before && total as f64 >= rank {
                let part = (rank - before as f64) / (total - before) as f64;
                return Some(bound.map_or(low, |bound| low + part.max(0.0) * (bound - low)));
            }
            (low, before) = (bound.unwrap_or(low), total);
        }
        None
    }

    pub(crate) fn sum(&self) -> f64 {
        f64::from_bits(self.sum.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_bounds_of_their_bucket() {
        let histogram = Histogram::new(&[1.0, 2.0, 4.0]);
        assert_eq!(histogram.quantile(0.5), None);
        histogram.observe(1.5, 4);
        histogram.observe(3.0, 4);
        for (share, value) in [(0.0, 1.0), (0.25, 1.5), (0.5, 2.0), (0.75, 3.0), (1.0, 4.0)] {
            assert_eq!(histogram.quantile(share), Some(value), "{share}");
        }
        histogram.observe(100.0, 8);
        assert_eq!(histogram.quantile(0.9), Some(4.0), "the last bound there is");
    }
}
