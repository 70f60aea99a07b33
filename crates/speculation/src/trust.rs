//! How often are guesses of a kind right? Of the last ones, counted with a fading memory.

/// A share of right guesses.
#[derive(Clone, Copy, Debug)]
pub struct Trust {
    right: f64,
    seen: f64,
}

/// What a new guess keeps of the old ones: 20 guesses are remembered.
const FADE: f64 = 0.95;

impl Trust {
    /// Starts as if a few guesses had been seen, a share of `chance` of them right.
    pub fn new(chance: f64) -> Self {
        const AS_IF_SEEN: f64 = 3.0;
        Self { right: AS_IF_SEEN * chance, seen: AS_IF_SEEN }
    }

    pub fn note(&mut self, was_right: bool) {
        self.right = FADE * self.right + f64::from(u8::from(was_right));
        self.seen = FADE * self.seen + 1.0;
    }

    /// Comes a little closer to `chance`: what was seen long ago may no longer hold.
    pub fn drift(&mut self, chance: f64) {
        const STEP: f64 = 0.02;
        self.right += STEP * (chance * self.seen - self.right);
    }

    /// How likely the next guess is right.
    pub fn chance(&self) -> f64 {
        self.right / self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::Trust;

    #[test]
    fn trust_follows_what_happens() {
        let mut trust = Trust::new(0.3);
        assert!((trust.chance() - 0.3).abs() < 1e-9);
        (0..40).for_each(|_| trust.note(true));
        assert!(trust.chance() > 0.95);
        (0..40).for_each(|_| trust.note(false));
        assert!(trust.chance() < 0.15);
        (0..10).for_each(|_| trust.note(true));
        assert!(trust.chance() > 0.4, "and comes back");
        let before = trust.chance();
        trust.drift(0.9);
        assert!(before < trust.chance() && trust.chance() < before + 0.02);
    }
}
