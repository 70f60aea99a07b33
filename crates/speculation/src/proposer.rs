//! Who guesses? Anything that has read the sequences and says how sure it is.

use messages::{ProposalCounts, SequenceId, TokenId};

/// Most guesses checked in one row. A right guess is followed by a right one in at best 95 of 100
/// cases, so the 16th is right in half of them: later ones would be a waste.
pub const GUESSES_MAX: usize = 16;

/// A source of guesses at what sequences say next.
pub trait Proposer: Send {
    /// A sequence starts with this prompt.
    fn begin(&mut self, id: SequenceId, prompt: &[TokenId]);

    /// The sequence's next token, now certain.
    fn observe(&mut self, id: SequenceId, token: TokenId);

    /// What became of the guesses of this proposer that a step checked.
    fn checked(&mut self, id: SequenceId, counts: ProposalCounts);

    fn end(&mut self, id: SequenceId);

    /// Appends, for each guess that could be made now, how likely it is right if those before it
    /// are; at most [`GUESSES_MAX`].
    fn chances(&self, id: SequenceId, chances: &mut Vec<f64>);

    /// Seconds that it takes to get ready for the first guess, once: to read a prompt, for example.
    fn entry_seconds(&self, _id: SequenceId) -> f64 {
        0.0
    }

    /// Seconds that making `count` guesses takes.
    fn seconds(&self, count: usize) -> f64;

    /// Appends `count` guesses, or fewer.
    fn guess(&mut self, id: SequenceId, count: usize, guesses: &mut Vec<TokenId>);
}
