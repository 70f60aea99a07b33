//! How long is an answer of which only a bound is known? By what those with such a bound took.

use super::Average;

/// Answers that may have up to so many tokens, by the power of two.
#[derive(Clone, Debug, Default)]
pub(crate) struct AnswerLengths {
    classes: [Average; 32],
    all: Average,
}

impl AnswerLengths {
    /// One that might have had `tokens_max` ended after `tokens`.
    pub(crate) fn add(&mut self, tokens_max: u32, tokens: u32) {
        let share = f64::from(tokens) / f64::from(tokens_max.max(1));
        self.classes[class(tokens_max)].add(share);
        self.all.add(f64::from(tokens));
    }

    /// How many more tokens are to be expected of one that has said `tokens`.
    pub(crate) fn to_come(&self, tokens_max: u32, tokens: u32) -> f64 {
        let left = f64::from(tokens_max.saturating_sub(tokens));
        let bound = f64::from(tokens_max);
        let expected = match self.classes[class(tokens_max)].mean() {
            Some(share) => share * bound,
            None => self.all.mean().map_or(bound, |mean| mean.min(bound)),
        };
        // Who has said more than was expected may end with any token.
        (expected - f64::from(tokens)).max(1.0).min(left)
    }
}

fn class(tokens_max: u32) -> usize {
    tokens_max.checked_ilog2().unwrap_or(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_take_of_their_bounds_is_expected_of_the_next() {
        let mut lengths = AnswerLengths::default();
        assert_eq!(lengths.to_come(64, 0), 64.0, "nothing is known");
        (0..50).for_each(|_| lengths.add(8000, 200));
        assert_eq!(lengths.to_come(64, 0), 64.0);
        assert_eq!(lengths.to_come(500, 0), 200.0, "like all others");
        assert_eq!(lengths.to_come(8000, 0), 200.0);
        assert_eq!(lengths.to_come(8000, 150), 50.0);
        assert_eq!(lengths.to_come(8000, 900), 1.0);
        assert_eq!(lengths.to_come(8000, 8000), 0.0);
        (0..50).for_each(|_| lengths.add(64, 32));
        assert_eq!(lengths.to_come(64, 8), 24.0);
    }
}
