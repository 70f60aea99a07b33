//! What do several runs say together? Their median, and how far they lie apart.

/// Rates of the same work, at least one, ascending.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn new(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Self(rates)
    }

    pub(super) fn add(&mut self, more: &Samples) {
        self.0.extend(&more.0);
        self.0.sort_by(f64::total_cmp);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn rates(&self) -> &[f64] {
        &self.0
    }

    /// The middle one, or the mean of the two in the middle.
    pub(super) fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        if self.0.len() % 2 == 1 {
            return self.0[middle];
        }
        (self.0[middle - 1] + self.0[middle]) / 2.0
    }

    pub(super) fn spread(&self) -> String {
        format!("{:.1} to {:.1}", self.0[0], self.0[self.0.len() - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_numbers_of_runs() {
        let mut samples = Samples::new(vec![3.0, 1.0, 2.0]);
        assert_eq!((samples.median(), samples.spread()), (2.0, "1.0 to 3.0".to_owned()));
        samples.add(&Samples::new(vec![10.0]));
        assert_eq!((samples.median(), samples.spread()), (2.5, "1.0 to 10.0".to_owned()));
    }
}
