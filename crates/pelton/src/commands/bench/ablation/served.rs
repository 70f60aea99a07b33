//! How long did people wait, for the first token and for each further one?

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use engine::{End, Engine, Prompt, Service};
use messages::{SamplingParams, SharingMode};
use tokio::runtime::Runtime;

use crate::commands::bench::measuring::request;
use crate::speaking;

/// Somebody who asks one question after the other.
pub(super) struct Asking<'a> {
    engine: &'a Engine,
    runtime: Runtime,
    pub(super) tally: Tally,
}

/// What one of them noticed.
#[derive(Default)]
pub(super) struct Tally {
    first_token_ms: Vec<f64>,
    /// Between a piece of an answer and the next.
    gap_ms: Vec<f64>,
    tokens: u64,
}

impl<'a> Asking<'a> {
    pub(super) fn new(engine: &'a Engine) -> Result<Self> {
        Ok(Self { engine, runtime: speaking::runtime()?, tally: Tally::default() })
    }

    /// The text of the answer.
    pub(super) fn ask(&mut self, prompt: &str, params: SamplingParams) -> Result<String> {
        let asked = Instant::now();
        let request = request(Prompt::Text(prompt.to_owned()), params, SharingMode::On);
        let mut generation = self.runtime.block_on(self.engine.generate(request))?;
        let mut answer = String::new();
        let mut spoke: Option<Instant> = None;
        while let Some(delta) = generation.next_blocking() {
            if !delta.tokens.is_empty() {
                let now = Instant::now();
                let since = now - spoke.unwrap_or(asked);
                let list = match spoke {
                    None => &mut self.tally.first_token_ms,
                    Some(_) => &mut self.tally.gap_ms,
                };
                list.push(since.as_secs_f64() * 1e3);
                spoke = Some(now);
                self.tally.tokens += delta.tokens.len() as u64;
            }
            answer.push_str(&delta.text);
            match delta.end {
                None => {}
                Some(End::Refused(refusal)) => bail!("{refusal}"),
                Some(End::Failed(fault)) => bail!("the device failed: {fault}"),
                Some(End::Late(deadline)) => bail!("{}", deadline.text()),
                Some(End::Finished { .. }) => break,
            }
        }
        Ok(answer)
    }

    /// Asks for the tokens of a text, which are waited for as a first token is.
    pub(super) fn count(&mut self, text: &str) -> Result<()> {
        let asked = Instant::now();
        let encoded = self.engine.encode("default", Prompt::Text(text.to_owned()));
        ensure!(!self.runtime.block_on(encoded)?.ids.is_empty(), "a text without tokens");
        self.tally.first_token_ms.push(asked.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }
}

/// What all of them noticed together.
pub(super) struct Served {
    pub(super) tallies: Vec<Tally>,
    pub(super) seconds: f64,
}

impl Served {
    pub(super) fn tokens(&self) -> u64 {
        self.tallies.iter().map(|tally| tally.tokens).sum()
    }

    pub(super) fn answers(&self) -> usize {
        self.tallies.iter().map(|tally| tally.first_token_ms.len()).sum()
    }

    pub(super) fn tokens_per_second(&self) -> f64 {
        self.tokens() as f64 / self.seconds
    }

    pub(super) fn first_token_ms_mean(&self) -> f64 {
        let sum: f64 = self.tallies.iter().flat_map(|tally| &tally.first_token_ms).sum();
        sum / self.answers().max(1) as f64
    }

    pub(super) fn first_token_ms_p99(&self) -> f64 {
        percentile_99(self.tallies.iter().flat_map(|tally| &tally.first_token_ms))
    }

    pub(super) fn gap_ms_p99(&self) -> f64 {
        percentile_99(self.tallies.iter().flat_map(|tally| &tally.gap_ms))
    }
}

/// The smallest of the values that 99 % of them do not exceed; 0 of none.
fn percentile_99<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let mut values: Vec<f64> = values.copied().collect();
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * 99).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_99th_percentile_is_a_value_that_was_seen() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert!((percentile_99(values.iter()) - 198.0).abs() < 1e-9);
        assert!((percentile_99([3.0].iter()) - 3.0).abs() < 1e-9);
        assert!(percentile_99([].iter()).abs() < 1e-9);
    }
}
