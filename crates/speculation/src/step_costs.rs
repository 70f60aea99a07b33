//! How long does a step of so many tokens take? As measured, on this machine, with this model.
//!
//! Only steps count that sample after each of their tokens: streams and guesses, no prompts. While
//! the weights are read from memory a few more tokens cost little; once the arithmetic takes
//! longer than the reading, each token costs its share. Where that turns is not computed but seen.

/// Seconds of a step by its number of tokens.
#[derive(Clone, Debug)]
pub struct StepCosts {
    /// `[TOKENS_MAX + 1]`
    measured: Vec<Measured>,
    steps: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    seconds: f64,
    /// The step that was last of this size, counted from 1; 0: none was.
    at: u64,
}

const TOKENS_MAX: usize = 128;
/// What a further token is taken to cost of a step's first one until it is measured: 0.24 to 0.39
/// were seen on two cores, up to 8 tokens.
const NEXT_TOKEN: f64 = 0.25;
/// What a new step counts in the average of its size.
const WEIGHT: f64 = 0.125;
/// A size that was not seen for so many steps is no longer known: contexts grow, other programs
/// come and go, and one slow step must not ban a size for ever.
const KNOWN_STEPS: u64 = 512;

impl Default for StepCosts {
    fn default() -> Self {
        Self { measured: vec![Measured::default(); TOKENS_MAX + 1], steps: 0 }
    }
}

impl StepCosts {
    /// A step that sampled after each of its `tokens` tokens took so long.
    pub fn note(&mut self, tokens: usize, seconds: f64) {
        let Some(measured) = self.measured.get_mut(tokens) else { return };
        self.steps += 1;
        let is_new = measured.at == 0 || measured.at + KNOWN_STEPS < self.steps;
        measured.seconds =
            if is_new { seconds } else { measured.seconds + WEIGHT * (seconds - measured.seconds) };
        measured.at = self.steps;
    }

    /// Seconds that a step of `tokens` tokens is expected to take; between sizes that are known it
    /// is interpolated. Without any measure, in units of a step's first token.
    pub fn seconds(&self, tokens: usize) -> f64 {
        let tokens = tokens.min(TOKENS_MAX);
        let below = (0..=tokens).rev().find_map(|size| Some((size, self.known(size)?)));
        let above = (tokens + 1..=TOKENS_MAX).find_map(|size| Some((size, self.known(size)?)));
        match (below, above) {
            (Some((size, seconds)), _) if size == tokens => seconds,
            (Some((low, least)), Some((high, most))) => {
                least + (most - least) * (tokens - low) as f64 / (high - low) as f64
            }
            (Some((known, seconds)), None) | (None, Some((known, seconds))) => {
                seconds * relative(tokens) / relative(known)
            }
            (None, None) => relative(tokens),
        }
    }

    fn known(&self, tokens: usize) -> Option<f64> {
        let measured = self.measured[tokens];
        (measured.at > 0 && measured.at + KNOWN_STEPS >= self.steps).then_some(measured.seconds)
    }
}

fn relative(tokens: usize) -> f64 {
    1.0 + NEXT_TOKEN * tokens.saturating_sub(1) as f64
}

#[cfg(test)]
mod tests {
    use super::{KNOWN_STEPS, StepCosts};

    fn near(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-9, "{got} for {want}");
    }

    #[test]
    fn sizes_in_between_are_interpolated() {
        let mut costs = StepCosts::default();
        near(costs.seconds(1), 1.0);
        costs.note(1, 0.010);
        near(costs.seconds(1), 0.010);
        near(costs.seconds(3), 0.015);
        costs.note(9, 0.018);
        near(costs.seconds(5), 0.014);
        near(costs.seconds(8), 0.017);
    }

    #[test]
    fn a_measure_is_an_average_and_fades() {
        let mut costs = StepCosts::default();
        costs.note(8, 0.8);
        costs.note(8, 0.0);
        near(costs.seconds(8), 0.7);
        (0..=KNOWN_STEPS).for_each(|_| costs.note(1, 0.1));
        near(costs.seconds(8), 0.1 * 2.75);
    }
}
