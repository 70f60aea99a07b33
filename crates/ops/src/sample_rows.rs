//! Sampling: logits of one row and the state of its slot to the next token.
//!
//! Order: penalties, bias, bans and what a constraint forbids; then temperature; then `top_k`,
//! `top_p` (<https://arxiv.org/abs/1904.09751>), `min_p` (<https://arxiv.org/abs/2407.01082>); then
//! one draw. Repetition penalty as in CTRL (<https://arxiv.org/abs/1909.05858>), over prompt and
//! answer; presence and frequency as OpenAI defines them, over the answer. Ties go to the lower id.
//! The draw is a function of the seed and of how many tokens were generated, of nothing else, so
//! an answer does not depend on what runs beside it.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use crate::constraint::{Matcher, SharedGrammar, mask};

/// What a request asks of its samples; ranges were checked at admission.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleParams {
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub bias: Vec<(u32, f32)>,
    /// Tokens that may not be sampled before `banned_until` tokens are generated.
    pub banned: Vec<u32>,
    pub banned_until: u32,
    pub seed: u64,
    /// How many of the likeliest tokens to report; `None` reports nothing.
    pub logprobs: Option<u32>,
    /// What the answer must be.
    pub grammar: Option<SharedGrammar>,
}

impl Default for SampleParams {
    /// Greedy, nothing reported.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            bias: Vec::new(),
            banned: Vec::new(),
            banned_until: 0,
            seed: 0,
            logprobs: None,
            grammar: None,
        }
    }
}

impl SampleParams {
    fn is_greedy(&self) -> bool {
        self.temperature < TEMPERATURE_MIN || self.top_k == 1
    }

    fn has_penalties(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }
}

/// What the device remembers of one running sequence.
pub struct Slot {
    pub params: SampleParams,
    /// The token sampled last: the input of the next step.
    pub last: u32,
    /// Times generated, of every token in prompt or answer; empty when no penalty needs it.
    seen: BTreeMap<u32, u32>,
    matcher: Option<Box<dyn Matcher>>,
}

impl Slot {
    pub fn new(params: SampleParams, prompt: &[u32], generated: &[u32]) -> Self {
        let matcher = params.grammar.as_ref().map(|grammar| grammar.0.matcher());
        let mut slot = Self { params, last: 0, seen: BTreeMap::new(), matcher };
        if slot.params.has_penalties() {
            slot.seen.extend(prompt.iter().map(|&token| (token, 0)));
        }
        for &token in generated {
            slot.observe(token);
        }
        slot
    }

    /// Whether the `index`th generated token and all behind it are the likeliest as the model has
    /// them: nothing changes logits, and nothing else is reported of them.
    pub fn takes_largest(&self, index: u32) -> bool {
        let params = &self.params;
        params.is_greedy()
            && !params.has_penalties()
            && params.bias.is_empty()
            && (params.banned.is_empty() || index >= params.banned_until)
            && params.logprobs.is_none()
            && self.matcher.is_none()
    }

    /// Takes a sampled token into account.
    pub fn observe(&mut self, token: u32) {
        self.last = token;
        if self.params.has_penalties() {
            *self.seen.entry(token).or_insert(0) += 1;
        }
        if let Some(matcher) = &mut self.matcher {
            matcher.advance(token);
        }
    }
}

/// A chosen token and, where asked for, log-probabilities of the unchanged distribution.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    pub logprob: Option<Logprob>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Logprob {
    pub chosen: f32,
    /// Likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Why no token was sampled; ends the sequence and no other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The logits hold a NaN or no finite value: the model or the device is broken.
    #[error("the model gave logits that are not numbers")]
    NotFinite,
    /// The matcher says what.
    #[error("the constraint of this answer cannot be followed any further: {0}")]
    Constraint(String),
}

/// Memory reused from row to row.
#[derive(Default)]
pub struct Scratch {
    candidates: Vec<(u32, f32)>,
}

impl Scratch {
    /// With room for rows of so many tokens: no row takes memory.
    pub fn for_vocabulary(tokens: usize) -> Self {
        Self { candidates: Vec::with_capacity(tokens) }
    }
}

/// Below it every draw is the likeliest token: a logit lower by 0.001 weighs e^-100, and dividing
/// by much less overflows.
const TEMPERATURE_MIN: f32 = 1e-5;

/// Chooses the `index`th generated token (from 0); `logits: [vocabulary]` are changed on the way.
///
/// # Errors
/// [`SampleError`] when no token can be chosen honestly.
pub fn reference(
    slot: &mut Slot,
    index: u32,
    logits: &mut [f32],
    scratch: &mut Scratch,
) -> Result<Sampled, SampleError> {
    let reported = slot.params.logprobs.map(|count| Report::of(logits, count, scratch));
    adjust(slot, index, logits);
    if let Some(matcher) = &mut slot.matcher {
        mask(logits, matcher.allowed().map_err(SampleError::Constraint)?);
    }
    let params = &slot.params;
    let best = argmax(logits)?;
    let token = if params.is_greedy() {
        best
    } else {
        draw(params, index, logits, logits[best as usize], scratch)
    };
    let logprob = reported.map(|report| report.logprob(token));
    Ok(Sampled { token, logprob })
}

fn adjust(slot: &Slot, index: u32, logits: &mut [f32]) {
    let params = &slot.params;
    for (&token, &count) in &slot.seen {
        let logit = &mut logits[token as usize];
        let penalty = params.repetition_penalty;
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        if count > 0 {
            *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
        }
    }
    for &(token, bias) in &params.bias {
        logits[token as usize] += bias;
    }
    if index < params.banned_until {
        for &token in &params.banned {
            logits[token as usize] = f32::NEG_INFINITY;
        }
    }
}

fn argmax(logits: &[f32]) -> Result<u32, SampleError> {
    // Maximum per lane first: the compiler turns this into vector code.
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut nan = [false; LANES];
    let (blocks, rest) = logits.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
            nan[lane] |= block[lane].is_nan();
        }
    }
    let best = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if nan.contains(&true) || rest.iter().any(|v| v.is_nan()) || !best.is_finite() {
        return Err(SampleError::NotFinite);
    }
    let index = logits.iter().position(|&v| v == best).ok_or(SampleError::NotFinite)?;
    Ok(index as u32)
}

fn draw(
    params: &SampleParams,
    index: u32,
    logits: &[f32],
    best: f32,
    scratch: &mut Scratch,
) -> u32 {
    let candidates = &mut scratch.candidates;
    candidates.clear();
    let inverse = 1.0 / params.temperature;
    let weight = |logit: f32| ((logit - best) * inverse).exp();
    candidates.extend((0u32..).zip(logits).map(|(id, &logit)| (id, weight(logit))));
    keep_top_k(candidates, params.top_k as usize);
    keep_top_p(candidates, params.top_p);
    if params.min_p > 0.0 {
        // The likeliest token has weight 1.
        candidates.retain(|&(_, weight)| weight >= params.min_p);
    }
    let total: f64 = candidates.iter().map(|&(_, weight)| f64::from(weight)).sum();
    let target = uniform(params.seed, index) * total;
    let mut sum = 0.0;
    for &(id, weight) in candidates.iter() {
        sum += f64::from(weight);
        if sum > target {
            return id;
        }
    }
    // Rounding left the target beyond the last weight: the last token with any weight.
    candidates.iter().rev().find(|&&(_, weight)| weight > 0.0).map_or(0, |&(id, _)| id)
}

fn likelier(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

fn keep_top_k(candidates: &mut Vec<(u32, f32)>, top_k: usize) {
    if top_k == 0 || top_k >= candidates.len() {
        return;
    }
    candidates.select_nth_unstable_by(top_k - 1, likelier);
    candidates.truncate(top_k);
    // One order whatever the selection did: the draw walks this list.
    candidates.sort_unstable_by(likelier);
}

fn keep_top_p(candidates: &mut Vec<(u32, f32)>, top_p: f32) {
    if top_p >= 1.0 || candidates.len() < 2 {
        return;
    }
    let total: f64 = candidates.iter().map(|&(_, weight)| f64::from(weight)).sum();
    // Tokens each below (1 - p) / n of the mass together hold less than 1 - p: none can be needed.
    let floor = (1.0 - f64::from(top_p)) * total / candidates.len() as f64;
    candidates.retain(|&(_, weight)| f64::from(weight) >= floor);
    candidates.sort_unstable_by(likelier);
    let mut sum = 0.0;
    let enough = candidates.iter().position(|&(_, weight)| {
        sum += f64::from(weight);
        sum >= f64::from(top_p) * total
    });
    if let Some(last) = enough {
        candidates.truncate(last + 1);
    }
}

/// Uniform in `[0, 1)`: SplitMix64 (Steele et al. 2014) of the seed, stepped to the draw's number.
pub fn uniform(seed: u64, index: u32) -> f64 {
    let step = u64::from(index) + 1;
    let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    // 53 bits: what an f64 holds.
    (z >> 11) as f64 / (1u64 << 53) as f64
}

/// Log-probabilities taken before the logits are changed.
struct Report {
    normalizer: f64,
    top: Vec<(u32, f32)>,
    logits: Vec<f32>,
}

impl Report {
    fn of(logits: &[f32], count: u32, scratch: &mut Scratch) -> Self {
        let normalizer = log_sum_exp(logits);
        let candidates = &mut scratch.candidates;
        candidates.clear();
        candidates.extend((0u32..).zip(logits.iter().copied()));
        let count = (count as usize).min(candidates.len());
        if count > 0 && count < candidates.len() {
            candidates.select_nth_unstable_by(count - 1, likelier);
        }
        candidates.truncate(count);
        candidates.sort_unstable_by(likelier);
        let log = |&(id, logit): &(u32, f32)| (id, (f64::from(logit) - normalizer) as f32);
        let top = candidates.iter().map(log).collect();
        Self { normalizer, top, logits: logits.to_vec() }
    }

    fn logprob(self, token: u32) -> Logprob {
        let logit = f64::from(self.logits[token as usize]);
        Logprob { chosen: (logit - self.normalizer) as f32, top: self.top }
    }
}

/// `ln(sum(exp(logits)))`, in f64.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&v| f64::from((v - max).exp())).sum();
    f64::from(max) + sum.ln()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::{SampleError, SampleParams, Scratch, Slot, reference};

    fn sample(params: SampleParams, seen: &[u32], index: u32, logits: &[f32]) -> u32 {
        let mut slot = Slot::new(params, &[], seen);
        let mut logits = logits.to_vec();
        reference(&mut slot, index, &mut logits, &mut Scratch::default()).unwrap().token
    }

    /// Counts of 20,000 draws of a distribution over four tokens.
    fn frequencies(params: &SampleParams, logits: &[f32]) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        for index in 0..20_000 {
            counts[sample(params.clone(), &[], index, logits) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        assert_eq!(sample(SampleParams::default(), &[], 0, &[0.0, 3.0, 3.0, -1.0]), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].iter().map(|p| p.ln()).collect();
        let plain = SampleParams { temperature: 1.0, seed: 7, ..Default::default() };
        for (got, want) in frequencies(&plain, &logits).iter().zip([0.5, 0.25, 0.15, 0.1]) {
            // Three standard deviations at 20,000 draws: 3 * sqrt(0.25 / 20000).
            assert!((got - want).abs() < 0.011, "{got} for {want}");
        }
        let cut = SampleParams { top_p: 0.7, ..plain.clone() };
        let counts = frequencies(&cut, &logits);
        assert!((counts[0] - 2.0 / 3.0).abs() < 0.011 && counts[2] == 0.0, "{counts:?}");
        let top_two = SampleParams { top_k: 2, ..plain.clone() };
        assert_eq!(frequencies(&top_two, &logits)[2..], [0.0, 0.0]);
        let relative = SampleParams { min_p: 0.29, ..plain.clone() };
        let counts = frequencies(&relative, &logits);
        assert!(counts[2] > 0.1 && counts[3] == 0.0, "{counts:?}");
        let hot = SampleParams { temperature: 2.0, ..plain };
        assert!(frequencies(&hot, &logits)[0] < 0.45);
    }

    #[test]
    fn penalties_bias_and_bans_change_the_choice() {
        let logits = [1.0, 0.9, 0.5, -1.0];
        let base = SampleParams::default();
        let presence = SampleParams { presence_penalty: 0.2, ..base.clone() };
        assert_eq!(sample(presence.clone(), &[0], 1, &logits), 1);
        assert_eq!(sample(presence, &[], 1, &logits), 0);
        let frequency = SampleParams { frequency_penalty: 0.04, ..base.clone() };
        assert_eq!(sample(frequency.clone(), &[0, 0], 2, &logits), 0);
        assert_eq!(sample(frequency, &[0, 0, 0], 3, &logits), 1);
        let repetition = SampleParams { repetition_penalty: 1.5, ..base.clone() };
        let mut slot = Slot::new(repetition, &[0], &[]);
        let mut row = logits.to_vec();
        let sampled = reference(&mut slot, 0, &mut row, &mut Scratch::default()).unwrap();
        assert_eq!(sampled.token, 1, "the prompt counts for repetition");
        let bias = SampleParams { bias: vec![(3, 100.0)], ..base.clone() };
        assert_eq!(sample(bias, &[], 0, &logits), 3);
        let ban = SampleParams { banned: vec![0], banned_until: 2, ..base };
        assert_eq!(sample(ban.clone(), &[], 1, &logits), 1);
        assert_eq!(sample(ban, &[], 2, &logits), 0);
    }

    #[test]
    fn logprobs_are_of_the_unchanged_distribution() {
        let logits: Vec<f32> = [0.5f32, 0.25, 0.25].iter().map(|p| p.ln() + 3.0).collect();
        let bias = vec![(0, -100.0)];
        let params = SampleParams { logprobs: Some(2), bias, ..Default::default() };
        let mut slot = Slot::new(params, &[], &[]);
        let sampled =
            reference(&mut slot, 0, &mut logits.clone(), &mut Scratch::default()).unwrap();
        let logprob = sampled.logprob.unwrap();
        assert_eq!(sampled.token, 1);
        assert!((logprob.chosen - 0.25f32.ln()).abs() < 1e-6);
        assert_eq!(logprob.top.iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
        assert!((logprob.top[0].1 - 0.5f32.ln()).abs() < 1e-6);
    }

    #[test]
    fn the_coldest_draw_is_greedy() {
        for temperature in [f32::MIN_POSITIVE, 1e-39, 1e-6, 1e-4] {
            let cold = SampleParams { temperature, seed: 3, ..Default::default() };
            assert_eq!(sample(cold, &[], 0, &[0.5, 0.0, 3.0, 2.9]), 2, "{temperature}");
        }
    }

    #[test]
    fn a_broken_row_is_an_error() {
        let mut slot = Slot::new(SampleParams::default(), &[], &[]);
        for mut logits in [vec![0.0, f32::NAN], vec![f32::NEG_INFINITY; 40]] {
            let sampled = reference(&mut slot, 0, &mut logits, &mut Scratch::default());
            assert_eq!(sampled, Err(SampleError::NotFinite));
        }
    }
}
