//! How many tokens did each step compute?

/// The bounds of the counts: vLLM's, whose dashboards draw them.
pub const STEP_TOKEN_BOUNDS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// Steps by the tokens they computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepSizes {
    /// Not above each bound and above the one before; the last is above all.
    pub counts: [u64; STEP_TOKEN_BOUNDS.len() + 1],
}

impl StepSizes {
    pub(crate) fn count(&mut self, tokens: usize) {
        let bound = STEP_TOKEN_BOUNDS.partition_point(|&bound| bound < tokens as f64);
        self.counts[bound] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (own, count) in self.counts.iter_mut().zip(other.counts) {
            *own += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_counts_what_is_as_large() {
        let mut sizes = StepSizes::default();
        for tokens in [1, 2, 8, 9, 16384, 16385] {
            sizes.count(tokens);
        }
        assert_eq!(sizes.counts, [1, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
    }
}
