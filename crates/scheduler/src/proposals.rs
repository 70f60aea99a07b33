//! Which guesses at a sequence's next tokens does its next row check?
//!
//! Whoever guesses (see the crate `speculation`) offers tokens before a plan. The row of a sequence
//! then holds its one known token and as many guesses as fit; the device samples after each until
//! one differs from the guess. How many count is known when the step settles, so until then the
//! sequence gets no further row. What the cache holds of wrong guesses is written over: `computed`
//! falls back to the last position that is an answer's.
//!
//! Guesses take only what is left over: budget after every stream's own token, and blocks as long
//! as one stays free for each running sequence, so that no guess preempts anybody.

use messages::{SequenceId, Stream, TokenId};

use crate::Scheduler;

impl Scheduler {
    /// The running sequences whose prompts are read, in the order in which they get rows.
    pub fn streams(&self) -> impl Iterator<Item = Stream> + '_ {
        let streams = self.running.iter().filter(|sequence| sequence.is_stream());
        streams.map(|sequence| Stream { id: sequence.id, is_open: sequence.takes_proposals() })
    }

    /// Offers guesses at the next tokens of a sequence for its next row, instead of those offered
    /// before. A sequence that is not open to them is left alone; guesses beyond what may be
    /// generated are cut.
    pub fn propose(&mut self, id: SequenceId, tokens: &[TokenId]) {
        let found = self.running.iter_mut().find(|sequence| sequence.id == id);
        let Some(sequence) = found.filter(|sequence| sequence.takes_proposals()) else { return };
        // The sample after the last guess is a token of the answer, too.
        let room = sequence.generated_max - sequence.generated() - 1;
        let count = tokens.len().min(room.min(self.limits.proposed_tokens_max) as usize);
        sequence.proposal.clear();
        sequence.proposal.extend_from_slice(&tokens[..count]);
    }

    /// Guesses that the next row of a ready sequence checks, `most` at most.
    pub(crate) fn fitting_proposals(&mut self, index: usize, most: u32) -> u32 {
        let spare = self.pool.available_count().saturating_sub(self.running.len());
        let sequence = &mut self.running[index];
        let wanted = most.min(sequence.proposal.len() as u32);
        if wanted == 0 {
            return 0;
        }
        let end = sequence.computed + 1;
        let missing =
            self.pool.blocks_for(end + wanted).saturating_sub(sequence.table.blocks().len());
        if missing <= spare {
            let grown = self.pool.grow(&mut sequence.table, end + wanted);
            assert!(grown, "invariant: no more than the free blocks are missing");
        }
        wanted.min((self.pool.covered(&sequence.table) - u64::from(end)) as u32)
    }
}
