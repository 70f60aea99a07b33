//! How should the next token be chosen, and when does a sequence end?

use std::sync::Arc;

use crate::{Constraint, Refusal, TokenId};

/// Sampling and stopping as one request asks for them, in the field's usual names.
///
/// Order of effects: bias and penalties, then temperature, then `top_k`, `top_p`, `min_p`.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 chooses the most likely token; `[0, 2]`.
    pub temperature: f32,
    /// 0 turns it off.
    pub top_k: u32,
    /// `(0, 1]`; 1 turns it off.
    pub top_p: f32,
    /// `[0, 1]`, relative to the most likely token; 0 turns it off.
    pub min_p: f32,
    /// `[0.125, 10]`; 1 turns it off. Divides positive and multiplies negative logits of tokens
    /// that the prompt or the answer has.
    pub repetition_penalty: f32,
    /// `[-2, 2]`, subtracted once for each generated token value.
    pub presence_penalty: f32,
    /// `[-2, 2]`, subtracted for each time a token was generated.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; `[-100, 100]`.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Same seed, same request, same answer. `None`: a fresh one is drawn at admission.
    pub seed: Option<u64>,
    /// `Some(n)`: report the chosen token's log-probability and the `n` likeliest; at most 20.
    pub logprobs: Option<u32>,
    /// Tokens to generate at most. `None`: until the context is full.
    pub max_tokens: Option<u32>,
    /// No end-of-generation token before this many tokens.
    pub min_tokens: u32,
    /// Do not end at the model's own end-of-generation tokens.
    pub ignore_eos: bool,
    /// Further tokens that end the sequence.
    pub stop_token_ids: Vec<TokenId>,
    /// Whether guesses at the next tokens are checked; the answer is the same. `None`: as the
    /// server is set up.
    pub speculation: Option<bool>,
    /// `None`: the answer may be any text.
    pub constraint: Option<Constraint>,
    /// How the model may think before the constraint holds; `None`: not at all, or as it likes.
    pub thoughts: Option<Thoughts>,
}

/// Thoughts before an answer, between markers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thoughts {
    pub begin: Arc<str>,
    pub end: Arc<str>,
    /// What ends them when they have had `tokens_max`.
    pub close: Arc<str>,
    /// `None`: as many as they take.
    pub tokens_max: Option<u32>,
    /// Whether every answer begins with them, or with their end.
    pub is_always: bool,
}

/// OpenAI's bound on `top_logprobs`.
const LOGPROBS_MAX: u32 = 20;
/// Biases are kept per slot on the device; OpenAI's clients send at most a few hundred.
const LOGIT_BIAS_MAX: usize = 1024;
const STOP_TOKENS_MAX: usize = 128;

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            logprobs: None,
            max_tokens: None,
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            speculation: None,
            constraint: None,
            thoughts: None,
        }
    }
}

impl SamplingParams {
    /// Greedy decoding without limits: the repeatable base of tests and benchmarks.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Whether the same request always gives the same answer.
    pub fn is_repeatable(&self) -> bool {
        self.temperature == 0.0 || self.seed.is_some()
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// A [`Refusal`] naming the first field out of range, its value and the range.
    pub fn validate(&self, vocabulary_size: u32) -> Result<(), Refusal> {
        in_range("temperature", self.temperature, 0.0, 2.0)?;
        in_range("top_p", self.top_p, 0.0, 1.0)?;
        if self.top_p == 0.0 {
            return Err(Refusal::invalid("top_p", "top_p must be above 0"));
        }
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        // Beyond 10, or below an eighth, seen tokens are as good as banned or forced, and logits
        // would leave the range of f32.
        in_range("repetition_penalty", self.repetition_penalty, 0.125, 10.0)?;
        self.validate_tokens(vocabulary_size)?;
        if let Some(count) = self.logprobs.filter(|&count| count > LOGPROBS_MAX) {
            let text = format!("top_logprobs is {count}, the most is {LOGPROBS_MAX}");
            return Err(Refusal::invalid("top_logprobs", text));
        }
        if self.max_tokens == Some(0) {
            return Err(Refusal::invalid("max_tokens", "max_tokens must be at least 1"));
        }
        if self.max_tokens.is_some_and(|max| self.min_tokens > max) {
            return Err(Refusal::invalid("min_tokens", "min_tokens is larger than max_tokens"));
        }
        self.validate_constraint()
    }

    /// A constrained answer ends where its constraint says, so nothing else may keep it going.
    fn validate_constraint(&self) -> Result<(), Refusal> {
        let Some(constraint) = &self.constraint else { return Ok(()) };
        let refuse = |field: &str| {
            let kind = constraint.kind();
            let text = format!("{field} cannot hold for an answer constrained by a {kind}");
            Err(Refusal::invalid(field, text))
        };
        if self.ignore_eos {
            return refuse("ignore_eos");
        }
        if self.min_tokens > 0 {
            return refuse("min_tokens");
        }
        Ok(())
    }

    fn validate_tokens(&self, vocabulary_size: u32) -> Result<(), Refusal> {
        at_most("logit_bias", self.logit_bias.len(), LOGIT_BIAS_MAX)?;
        at_most("stop_token_ids", self.stop_token_ids.len(), STOP_TOKENS_MAX)?;
        for &(token, bias) in &self.logit_bias {
            in_range("logit_bias", bias, -100.0, 100.0)?;
            known("logit_bias", token, vocabulary_size)?;
        }
        for &token in &self.stop_token_ids {
            known("stop_token_ids", token, vocabulary_size)?;
        }
        Ok(())
    }
}

fn in_range(field: &str, value: f32, low: f32, high: f32) -> Result<(), Refusal> {
    // Written so that NaN fails.
    if value >= low && value <= high {
        return Ok(());
    }
    let text = format!("{field} is {value}, it must be between {low} and {high}");
    Err(Refusal::invalid(field, text))
}

fn at_most(field: &str, count: usize, max: usize) -> Result<(), Refusal> {
    if count <= max {
        return Ok(());
    }
    Err(Refusal::invalid(field, format!("{field} has {count} entries, the most is {max}")))
}

fn known(field: &str, token: TokenId, vocabulary_size: u32) -> Result<(), Refusal> {
    if token < vocabulary_size {
        return Ok(());
    }
    let text = format!("{field} names token {token}, the vocabulary has {vocabulary_size}");
    Err(Refusal::invalid(field, text))
}
