//! Which sequences repeat their own text, and how often does that guess right?
//!
//! A lookup is compared with every token that is said, whether its guess was checked by a step or
//! not. So it is known what guessing would have brought before it costs anything, and a sequence
//! whose lookup stopped being right starts guessing again as soon as it would be right.

use std::collections::BTreeMap;

use messages::{ProposalCounts, SequenceId, TokenId};

use crate::proposer::GUESSES_MAX;
use crate::{PromptLookup, Proposer, Trust};

/// Prompt lookup for all sequences.
#[derive(Debug, Default)]
pub struct Lookups {
    readers: BTreeMap<SequenceId, Reader>,
}

#[derive(Debug)]
struct Reader {
    lookup: PromptLookup,
    /// By how much of the text before the place is the same; see [`kind_of`].
    trusts: [Trust; 3],
}

/// Before anything is seen. Low after a slip or a run of two tokens, which stories are full of:
/// that guesses would have been right is learned for free. After four it is mostly a copy.
const CHANCES: [f64; 3] = [0.2, 0.25, 0.6];

/// The trust that holds for a match of so many tokens: a slip, a short or a long one.
fn kind_of(matched: u32) -> usize {
    match matched {
        0 => 0,
        1..4 => 1,
        _ => 2,
    }
}

impl Proposer for Lookups {
    fn begin(&mut self, id: SequenceId, prompt: &[TokenId]) {
        let reader = Reader { lookup: PromptLookup::new(prompt), trusts: CHANCES.map(Trust::new) };
        self.readers.insert(id, reader);
    }

    fn observe(&mut self, id: SequenceId, token: TokenId) {
        let Some(Reader { lookup, trusts }) = self.readers.get_mut(&id) else { return };
        if let Some(matched) = lookup.matched() {
            trusts[kind_of(matched)].note(lookup.guesses(1) == [token]);
        }
        lookup.push(token);
    }

    fn checked(&mut self, _id: SequenceId, _counts: ProposalCounts) {
        // `observe` has seen each guess already.
    }

    fn end(&mut self, id: SequenceId) {
        self.readers.remove(&id);
    }

    fn chances(&self, id: SequenceId, chances: &mut Vec<f64>) {
        let Some(Reader { lookup, trusts }) = self.readers.get(&id) else { return };
        let Some(matched) = lookup.matched() else { return };
        let count = lookup.guesses(GUESSES_MAX).len() as u32;
        chances.extend((matched..matched + count).map(|matched| trusts[kind_of(matched)].chance()));
    }

    fn seconds(&self, _count: usize) -> f64 {
        // A few accesses of memory, next to a step's reading of all weights.
        0.0
    }

    fn guess(&mut self, id: SequenceId, count: usize, guesses: &mut Vec<TokenId>) {
        if let Some(reader) = self.readers.get(&id) {
            guesses.extend_from_slice(reader.lookup.guesses(count));
        }
    }
}
