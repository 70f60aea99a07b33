//! What do the counters of a running server say? Its metrics page as samples, and rates, shares and
//! percentiles between two looks.

use std::collections::BTreeMap;

use super::figures::{FIRST_TOKEN, NEXT_TOKEN};

/// One look at `/metrics`: the sums over all labels, and the buckets of the two histograms.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters {
    sums: BTreeMap<String, f64>,
    /// By the value of the label `model` or `model_name`.
    of_models: BTreeMap<(String, String), f64>,
    /// By name: the upper bounds in seconds, ascending, and how many were not above.
    buckets: BTreeMap<&'static str, Vec<(f64, f64)>>,
}

impl Counters {
    /// Lines that are no samples are left out: a later version may say more.
    pub(super) fn parse(text: &str) -> Self {
        let mut counters = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, labels, value)) = sample(line) {
                counters.take(name, labels, value);
            }
        }
        for buckets in counters.buckets.values_mut() {
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
        counters
    }

    fn take(&mut self, name: &str, labels: &str, value: f64) {
        *self.sums.entry(name.to_owned()).or_insert(0.0) += value;
        let model = label(labels, "model").or_else(|| label(labels, "model_name"));
        if let Some(model) = model {
            *self.of_models.entry((name.to_owned(), model)).or_insert(0.0) += value;
        }
        for histogram in [FIRST_TOKEN, NEXT_TOKEN] {
            let is_bucket = name.strip_suffix("_bucket") == Some(histogram);
            let bound = label(labels, "le").filter(|_| is_bucket);
            if let Some(bound) = bound.and_then(|bound| bound.replace('+', "").parse().ok()) {
                self.add_to_bucket(histogram, bound, value);
            }
        }
    }

    /// A histogram may be told apart by further labels: their sum is what is looked at.
    fn add_to_bucket(&mut self, histogram: &'static str, bound: f64, count: f64) {
        let buckets = self.buckets.entry(histogram).or_default();
        match buckets.iter_mut().find(|bucket| bucket.0 == bound) {
            Some(bucket) => bucket.1 += count,
            None => buckets.push((bound, count)),
        }
    }

    /// 0 for what is not told.
    pub(super) fn value(&self, name: &str) -> f64 {
        self.sums.get(name).copied().unwrap_or(0.0)
    }

    pub(super) fn of_model(&self, name: &str, model: &str) -> Option<f64> {
        self.of_models.get(&(name.to_owned(), model.to_owned())).copied()
    }
}

/// Name, labels and value of a line.
fn sample(line: &str) -> Option<(&str, &str, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    match series.split_once('{') {
        Some((name, labels)) => Some((name, labels.strip_suffix('}')?, value)),
        None => Some((series, "", value)),
    }
}

/// The value of one label, its escapes undone.
fn label(labels: &str, wanted: &str) -> Option<String> {
    let mut rest = labels;
    while let Some((name, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut letters = after.char_indices();
        let end = loop {
            match letters.next()? {
                (at, '"') => break at,
                (_, '\\') => match letters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, letter) => value.push(letter),
            }
        };
        if name.trim_start_matches(',') == wanted {
            return Some(value);
        }
        rest = &after[end + 1..];
    }
    None
}

/// What happened between two looks.
pub(super) struct Span<'a> {
    pub(super) before: &'a Counters,
    pub(super) after: &'a Counters,
    pub(super) seconds: f64,
}

/// Between two looks that nearly coincide, one token more would be a rate of thousands.
const SPAN_SECONDS_MIN: f64 = 0.05;

impl Span<'_> {
    /// `None` where the server has begun to count anew.
    pub(super) fn growth(&self, name: &str) -> Option<f64> {
        let grown = self.after.value(name) - self.before.value(name);
        (grown >= 0.0).then_some(grown)
    }

    pub(super) fn rate(&self, name: &str) -> Option<f64> {
        let is_span = self.seconds >= SPAN_SECONDS_MIN;
        self.growth(name).filter(|_| is_span).map(|grown| grown / self.seconds)
    }

    pub(super) fn rate_of_model(&self, name: &str, model: &str) -> Option<f64> {
        let grown = self.after.of_model(name, model)? - self.before.of_model(name, model)?;
        (grown >= 0.0 && self.seconds >= SPAN_SECONDS_MIN).then(|| grown / self.seconds)
    }

    /// `part` of `whole`; `None` while there is nothing to share.
    pub(super) fn share(&self, part: &str, whole: &str) -> Option<f64> {
        let (part, whole) = (self.growth(part)?, self.growth(whole)?);
        (whole > 0.0).then(|| part / whole)
    }

    /// Below which value a share of the durations lies, to the width of the histogram's buckets;
    /// within one they are taken to be spread evenly. `None` where there was none.
    pub(super) fn percentile(&self, name: &str, share: f64) -> Option<f64> {
        let (after, before) = (self.after.buckets.get(name)?, self.before.buckets.get(name));
        let none = Vec::new();
        let earlier = |index: usize| before.unwrap_or(&none).get(index).map_or(0.0, |at| at.1);
        let counts: Vec<(f64, f64)> = (after.iter().enumerate())
            .map(|(index, &(bound, count))| (bound, count - earlier(index)))
            .collect();
        let total = counts.last().filter(|last| last.1 > 0.0)?.1;
        let wanted = share * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in counts {
            if count >= wanted && count > below {
                // Above the last bound nothing is known but that.
                let width = if bound.is_finite() { bound - low } else { 0.0 };
                return Some(low + width * (wanted - below) / (count - below));
            }
            if bound.is_finite() {
                low = bound;
            }
            below = count;
        }
        Some(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(counts: [u32; 3], tokens: u32) -> Counters {
        let [one, two, all] = counts;
        Counters::parse(&format!(
            "# HELP x y\nt {tokens}\n{FIRST_TOKEN}_bucket{{le=\"1\"}} {one}\n\
             {FIRST_TOKEN}_bucket{{le=\"+Inf\"}} {all}\n{FIRST_TOKEN}_bucket{{le=\"2\"}} {two}\n\
             {FIRST_TOKEN}_bucket{{model=\"x\",le=\"2\"}} 0\n\
             v{{model_name=\"a\\\"b,le=\\\\\",x=\"y\"}} {tokens}\nnot a sample\nalso{{broken 1\n"
        ))
    }

    #[test]
    fn rates_and_percentiles_are_of_the_time_between_two_looks() {
        let (before, after) = (look([5, 5, 5], 10), look([7, 9, 9], 30));
        let span = Span { before: &before, after: &after, seconds: 2.0 };
        assert_eq!(span.rate("t"), Some(10.0));
        assert_eq!(span.rate_of_model("v", "a\"b,le=\\"), Some(10.0));
        assert_eq!(span.rate_of_model("v", "other"), None);
        assert_eq!(span.percentile(FIRST_TOKEN, 0.5), Some(1.0));
        assert_eq!(span.percentile(FIRST_TOKEN, 0.75), Some(1.5));
        assert_eq!(span.percentile(NEXT_TOKEN, 0.5), None);
        assert_eq!(span.share("t", "none"), None);
    }

    #[test]
    fn two_looks_at_once_give_no_rate() {
        let (before, after) = (look([0, 0, 0], 10), look([0, 0, 0], 11));
        let span = Span { before: &before, after: &after, seconds: 0.001 };
        assert_eq!((span.rate("t"), span.rate_of_model("v", "a\"b,le=\\")), (None, None));
    }

    #[test]
    fn a_server_that_began_anew_gives_no_rate() {
        let (before, after) = (look([7, 9, 9], 30), look([0, 0, 0], 0));
        let span = Span { before: &before, after: &after, seconds: 2.0 };
        assert_eq!(span.rate("t"), None);
        assert_eq!(span.percentile(FIRST_TOKEN, 0.5), None);
    }

    #[test]
    fn durations_above_all_bounds_are_told_as_the_last() {
        let (before, after) = (Counters::default(), look([0, 0, 4], 0));
        let span = Span { before: &before, after: &after, seconds: 1.0 };
        assert_eq!(span.percentile(FIRST_TOKEN, 0.99), Some(2.0));
    }
}
