//! When are two requests the same? When everything that their tokens depend on is.
//!
//! An identity is a canonical text of all of it and the text's SHA-256. Requests are looked up by
//! the hash and compared by the text, so not even a collision could give a wrong answer.

use std::sync::Arc;

use messages::{CacheNamespace, Constraint, SamplingParams, Thoughts, TokenId};
use sha2::{Digest, Sha256};

/// SHA-256 of what a model computes with.
pub type Fingerprint = [u8; 32];

/// What the tokens of an answer depend on, besides the weather.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    pub model: &'a Fingerprint,
    pub namespace: &'a CacheNamespace,
    pub prompt: &'a [TokenId],
    pub params: &'a SamplingParams,
    /// All tokens that end the sequence: the request's and, unless ignored, the model's.
    pub stop_tokens: &'a [TokenId],
}

/// The canonical text of a [`Work`]: two are equal where, and only where, the works are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub(crate) digest: [u8; 32],
    pub(crate) text: Arc<[u8]>,
}

/// The first byte of every text; to be raised when the fields or their meaning change.
const VERSION: u8 = 3;

impl Identity {
    pub fn of(work: &Work<'_>) -> Self {
        let mut text = Text(Vec::with_capacity(256 + 4 * work.prompt.len()));
        text.0.push(VERSION);
        text.0.extend_from_slice(work.model);
        let CacheNamespace { tenant, salt, adapter } = work.namespace;
        for name in [tenant, salt, adapter] {
            text.bytes(name.as_bytes());
        }
        text.ids(work.prompt);
        // In any order and however often named, the same tokens end the sequence.
        let mut stop_tokens = work.stop_tokens.to_vec();
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        text.ids(&stop_tokens);
        text.params(work.params, stop_tokens.is_empty());
        Self::from_text(text.0.into())
    }

    pub(crate) fn from_text(text: Arc<[u8]>) -> Self {
        Self { digest: Sha256::digest(&text).into(), text }
    }

    /// Whether the text, from a file, is one of this model's.
    pub(crate) fn is_of(text: &[u8], model: &Fingerprint) -> bool {
        text.first() == Some(&VERSION) && text.get(1..33) == Some(model.as_slice())
    }
}

/// Fields of fixed width, or led by their length: no two lists of fields give the same bytes.
struct Text(Vec<u8>);

impl Text {
    fn params(&mut self, params: &SamplingParams, never_stops: bool) {
        // Every field by name, so that a new one must be placed here.
        let SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            seed,
            logprobs,
            max_tokens: _, // cuts the answer off: see `Asked`
            min_tokens,
            ignore_eos: _,     // in the stop tokens
            stop_token_ids: _, // in the stop tokens
            speculation: _,    // the same tokens, sooner
            constraint,
            thoughts,
        } = params;
        self.float(*temperature);
        // Without a draw there is nothing that these could change.
        if *temperature != 0.0 {
            self.number(*top_k);
            self.float(*top_p);
            self.float(*min_p);
            self.optional(*seed);
        }
        self.float(*repetition_penalty);
        self.float(*presence_penalty);
        self.float(*frequency_penalty);
        // In the order given: the biases of a token named twice are added in it.
        self.number(logit_bias.len() as u32);
        for &(token, bias) in logit_bias {
            self.number(token);
            self.float(bias);
        }
        self.optional(logprobs.map(u64::from));
        // Until then the stop tokens are banned; without any, it changes nothing.
        self.number(if never_stops { 0 } else { *min_tokens });
        self.constraint(constraint.as_ref());
        self.0.push(u8::from(thoughts.is_some()));
        if let Some(Thoughts { begin, end, close, tokens_max, is_always }) = thoughts {
            for text in [begin, end, close] {
                self.bytes(text.as_bytes());
            }
            self.optional(tokens_max.map(u64::from));
            self.0.push(u8::from(*is_always));
        }
    }

    fn constraint(&mut self, constraint: Option<&Constraint>) {
        let (kind, text) = match constraint {
            None => (0, None),
            Some(Constraint::JsonObject) => (1, None),
            Some(Constraint::JsonSchema(text)) => (2, Some(text)),
            Some(Constraint::Regex(text)) => (3, Some(text)),
            Some(Constraint::Grammar(text)) => (4, Some(text)),
            Some(Constraint::Choice(texts)) => {
                self.number(5);
                self.number(texts.len() as u32);
                texts.iter().for_each(|text| self.bytes(text.as_bytes()));
                return;
            }
            Some(Constraint::Calls { rules, markers, schemas }) => {
                self.number(6);
                self.bytes(rules.as_bytes());
                for list in [markers, schemas] {
                    self.number(list.len() as u32);
                    list.iter().for_each(|text| self.bytes(text.as_bytes()));
                }
                return;
            }
        };
        self.number(kind);
        if let Some(text) = text {
            self.bytes(text.as_bytes());
        }
    }

    fn number(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn float(&mut self, value: f32) {
        // Turns -0 into 0.
        self.number((value + 0.0).to_bits());
    }

    fn optional(&mut self, value: Option<u64>) {
        self.0.push(u8::from(value.is_some()));
        self.0.extend_from_slice(&value.unwrap_or(0).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u32);
        self.0.extend_from_slice(bytes);
    }

    fn ids(&mut self, ids: &[TokenId]) {
        self.number(ids.len() as u32);
        for &id in ids {
            self.number(id);
        }
    }
}
