//! What have those here still to do, and who would come before a newcomer?
//!
//! For whoever forecasts how long one more request would wait.

use std::sync::Arc;

use messages::{CacheNamespace, Priority, TokenId};

use crate::Scheduler;
use crate::sequence::Sequence;

/// What one sequence has still to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Tokens of its prompt that are to be computed.
    pub unread_tokens: u32,
    /// Tokens of its answer so far, and how many it may have.
    pub answer_tokens: u32,
    pub answer_tokens_max: u32,
}

impl Scheduler {
    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    /// Whether a prompt that is being read has more tokens than are planned.
    pub fn has_unread(&self) -> bool {
        self.running.iter().any(|sequence| sequence.remaining() > 1)
    }

    /// Of each sequence that holds a slot.
    pub fn work_running(&self) -> impl Iterator<Item = Work> + Clone {
        self.running.iter().map(|sequence| {
            let ends = Work { answer_tokens: sequence.generated_max, ..Work::of(sequence, 0) };
            let reads = sequence.remaining() > 1;
            let unread_tokens = if reads { sequence.remaining() } else { 0 };
            if sequence.is_leaving() { ends } else { Work::of(sequence, unread_tokens) }
        })
    }

    /// Of each waiting sequence that would have a slot before one of that priority and tenant which
    /// came now, in the order of their arrival.
    pub fn work_ahead_of(
        &self,
        priority: Priority,
        tenant: &Arc<str>,
    ) -> impl Iterator<Item = Work> + Clone {
        let had = self.tenants.spoken_for_newcomer(tenant);
        let order = (std::cmp::Reverse(priority as u64), had);
        let ahead = self.waiting.iter().filter(move |sequence| {
            let urgency = self.waiting.urgency(sequence, self.planned_count);
            let ran_before = sequence.preemptions > 0;
            let had = if ran_before { 0 } else { self.tenants.spoken_for(sequence.account) };
            (std::cmp::Reverse(urgency), had) <= order
        });
        ahead.map(Work::of_waiting)
    }

    /// Of each waiting sequence.
    pub fn work_waiting(&self) -> impl Iterator<Item = Work> + Clone {
        self.waiting.iter().map(Work::of_waiting)
    }

    /// Tokens of a prompt that would have to be computed, if it were admitted now.
    pub fn unread_of(&self, prompt: &[TokenId], namespace: Option<&CacheNamespace>) -> u32 {
        let Some((_, before_last)) = prompt.split_last() else { return 0 };
        let blocks = namespace.map_or(0, |namespace| self.cached_blocks(namespace, before_last));
        prompt.len() as u32 - blocks as u32 * self.limits.block_tokens
    }
}

impl Work {
    fn of_waiting(sequence: &Sequence) -> Self {
        Self::of(sequence, sequence.known() - sequence.cached_before)
    }

    fn of(sequence: &Sequence, unread_tokens: u32) -> Self {
        let answer_tokens = sequence.generated();
        Self { unread_tokens, answer_tokens, answer_tokens_max: sequence.generated_max }
    }
}
