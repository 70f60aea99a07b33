//! What do two arms say about a system? Their ratio in each round, and whether all rounds agree.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::commands::bench::samples::Samples;

/// What is measured of a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Throughput,
    FirstToken,
    Gap,
    Memory,
    Start,
}

impl Metric {
    pub(super) const ALL: [Self; 5] =
        [Self::Throughput, Self::FirstToken, Self::Gap, Self::Memory, Self::Start];

    /// As the turn prints it.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Throughput => "tokens_per_second",
            Self::FirstToken => "first_token_ms",
            Self::Gap => "gap_ms_p99",
            Self::Memory => "peak_memory_bytes",
            Self::Start => "start_seconds",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Throughput => "tok/s",
            Self::FirstToken => "first token",
            Self::Gap => "p99 gap",
            Self::Memory => "memory",
            Self::Start => "start",
        }
    }

    pub(super) fn show(self, value: f64) -> String {
        match self {
            Self::Throughput => format!("{value:.1}"),
            Self::FirstToken | Self::Gap => format!("{value:.1} ms"),
            Self::Memory => format!("{:.0} MB", value / 1e6),
            Self::Start => format!("{value:.3} s"),
        }
    }

    fn index(self) -> usize {
        self as usize
    }
}

/// One turn.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Figures([f64; 5]);

impl Figures {
    pub(super) fn read(value: &Value) -> Result<Self> {
        let mut figures = [0.0; 5];
        for metric in Metric::ALL {
            let field = metric.field();
            let number = value.get(field).and_then(Value::as_f64);
            figures[metric.index()] = number.with_context(|| format!("there is no {field}"))?;
        }
        Ok(Self(figures))
    }

    pub(super) fn get(&self, metric: Metric) -> f64 {
        self.0[metric.index()]
    }
}

/// What having a system is worth in one metric: above 1 it is better with it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Worth {
    pub(super) ratio: f64,
    pub(super) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Better,
    Same,
    Worse,
}

/// Less than this is noise, even where all rounds agree.
const NOTICED: f64 = 1.02;

impl Worth {
    /// `with` and `without` have a turn of each round.
    pub(super) fn of(metric: Metric, with: &[Figures], without: &[Figures]) -> Self {
        let ratios = with.iter().zip(without).map(|(with, without)| {
            let (with, without) = (with.get(metric), without.get(metric));
            match metric {
                Metric::Throughput => with / without.max(f64::MIN_POSITIVE),
                _ => without / with.max(f64::MIN_POSITIVE),
            }
        });
        let samples = Samples::new(ratios.collect());
        let ratio = samples.median();
        let all = |is_so: fn(&f64) -> bool| samples.rates().iter().all(is_so);
        let verdict = if ratio >= NOTICED && all(|ratio| *ratio > 1.0) {
            Verdict::Better
        } else if ratio <= 1.0 / NOTICED && all(|ratio| *ratio < 1.0) {
            Verdict::Worse
        } else {
            Verdict::Same
        };
        Self { ratio, verdict }
    }
}

/// Two turns may agree by chance.
const ROUNDS_NEEDED: usize = 3;

/// Whether a system pays, in words.
pub(super) fn conclusion(worths: &[(Metric, Worth)], rounds: usize) -> String {
    if rounds < ROUNDS_NEEDED {
        return format!("fewer than {ROUNDS_NEEDED} rounds do not say whether it pays");
    }
    let of = |verdict: Verdict| {
        let found = worths.iter().filter(|(_, worth)| worth.verdict == verdict);
        found.map(|(metric, _)| metric.title()).collect::<Vec<_>>().join(", ")
    };
    let (better, worse) = (of(Verdict::Better), of(Verdict::Worse));
    match (better.is_empty(), worse.is_empty()) {
        (true, true) => "does not pay here".to_owned(),
        (true, false) => format!("does not pay here: costs {worse}"),
        (false, true) => format!("pays in {better}"),
        (false, false) => format!("pays in {better}; costs {worse}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn figures(throughput: f64, first_token: f64) -> Figures {
        Figures([throughput, first_token, 1.0, 1.0, 1.0])
    }

    #[test]
    fn a_system_pays_where_all_rounds_agree_and_it_is_noticed() {
        let with = [figures(120.0, 50.0), figures(110.0, 50.0), figures(130.0, 60.0)];
        let without = [figures(100.0, 60.0), figures(100.0, 49.0), figures(100.0, 90.0)];
        let throughput = Worth::of(Metric::Throughput, &with, &without);
        assert_eq!(throughput, Worth { ratio: 1.2, verdict: Verdict::Better });
        // The second round says otherwise.
        let first_token = Worth::of(Metric::FirstToken, &with, &without);
        assert_eq!(first_token.verdict, Verdict::Same);
        let back = Worth::of(Metric::Throughput, &without, &with);
        assert_eq!(back.verdict, Verdict::Worse);
        let worths = [(Metric::Throughput, throughput), (Metric::FirstToken, first_token)];
        assert_eq!(conclusion(&worths, 3), "pays in tok/s");
        assert_eq!(conclusion(&[(Metric::Gap, back)], 3), "does not pay here: costs p99 gap");
        assert_eq!(conclusion(&[], 3), "does not pay here");
        assert!(conclusion(&worths, 2).contains("fewer than 3 rounds"));
    }

    #[test]
    fn a_turn_without_a_figure_is_no_turn() {
        let error = Figures::read(&serde_json::json!({"tokens_per_second": 1})).unwrap_err();
        assert!(error.to_string().contains("first_token_ms"), "{error}");
    }
}
