//! What is an answer, and whom does a known one serve?

use std::sync::Arc;

use messages::{FinishReason, TokenId, TokenLogprob};

use crate::Identity;

/// One token as a reader is told it.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerToken {
    pub id: TokenId,
    pub logprob: Option<TokenLogprob>,
}

/// When does an answer end besides by its tokens? Looked for by the reader, in its own text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopRule {
    pub texts: Vec<String>,
    /// Stop texts count only after this many tokens.
    pub min_tokens: u32,
}

/// What one request wants to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub identity: Identity,
    /// The tokens it is told at most: `max_tokens`, or as many as the context and memory hold.
    pub tokens_max: u32,
    pub stop: StopRule,
}

/// Tokens that were told, and how they ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// At least one.
    pub tokens: Arc<[AnswerToken]>,
    pub end: AnswerEnd,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The last token is a stop token: there is no more for anybody.
    Stop,
    /// It was cut off after as many tokens as were asked for.
    Length,
    /// Its reader found one of these stop texts after the last token.
    StopText(StopRule),
}

impl Answer {
    /// How many of the tokens answer a request, if they do, and how it ends after the last:
    /// `None` when its reader will find a stop text there.
    pub fn serves(
        &self,
        tokens_max: u32,
        stop: &StopRule,
    ) -> Option<(usize, Option<FinishReason>)> {
        let known = self.tokens.len();
        let asked = tokens_max as usize;
        if self.end == AnswerEnd::Stop && asked >= known {
            return Some((known, Some(FinishReason::Stop)));
        }
        // Any beginning of an answer is the whole one of a request for so many tokens: of a token
        // that is followed by another it is known that it does not stop the answer.
        if asked <= known {
            return Some((asked, Some(FinishReason::Length)));
        }
        let is_cut_alike = matches!(&self.end, AnswerEnd::StopText(rule) if rule == stop);
        is_cut_alike.then_some((known, None))
    }

    /// Whether this answer is to be remembered rather than `other`, of the same identity.
    pub(crate) fn outlasts(&self, other: &Self) -> bool {
        self.end == AnswerEnd::Stop || self.tokens.len() >= other.tokens.len()
    }

    /// Bytes of the tokens.
    pub(crate) fn bytes(&self) -> usize {
        let extra = |token: &AnswerToken| token.logprob.as_ref().map_or(0, |l| 8 * l.top.len());
        size_of_val(&*self.tokens) + self.tokens.iter().map(extra).sum::<usize>()
    }
}

/// How a reader of at most `tokens_max` tokens ends with the `count`th (from 1) of a sequence that
/// ends with it as `finish` says.
pub(crate) fn finish_for(
    count: usize,
    tokens_max: u32,
    finish: Option<FinishReason>,
) -> Option<FinishReason> {
    if finish == Some(FinishReason::Stop) {
        return finish;
    }
    (count == tokens_max as usize).then_some(FinishReason::Length)
}
