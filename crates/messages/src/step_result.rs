//! What came back from the device, and what a stream is told of it?

use crate::{CachedPrompt, SequenceId, StepIndex, TokenId};

/// Log-probabilities (natural logarithm, of the distribution before temperature and cuts).
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Of the token that was chosen.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first.
    pub top: Vec<(TokenId, f32)>,
}

/// One sampled row of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    pub sequence: SequenceId,
    pub token: TokenId,
    pub logprob: Option<TokenLogprob>,
}

/// The values of one finished step, in row order: one entry for each row that sampled, and in a
/// row with proposals one more for each that was right.
#[derive(Clone, Debug, PartialEq)]
pub struct StepResult {
    pub step: StepIndex,
    pub samples: Vec<SampledToken>,
}

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end-of-generation token, a stop token or a stop string.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// The caller went away.
    Cancelled,
}

/// One token for one stream. A stop token is reported too: the outlet leaves its text out.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    pub sequence: SequenceId,
    pub token: TokenId,
    pub logprob: Option<TokenLogprob>,
    pub finish: Option<FinishReason>,
    pub cached: CachedPrompt,
    pub proposals: ProposalCounts,
}

/// What became of the guesses that one token, or a whole answer, was checked against.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProposalCounts {
    /// Guesses that were right, and so became tokens of the answer.
    pub accepted: u32,
    /// Guesses computed in vain.
    pub rejected: u32,
}

impl std::ops::AddAssign for ProposalCounts {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.rejected += other.rejected;
    }
}
