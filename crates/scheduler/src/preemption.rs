//! Who gives way when blocks or slots run out?
//!
//! Running sequences are ranked: by priority, raised once for each time that they gave way before;
//! then by how much their tenant had when they started; then by age. When a stream needs a block
//! and there is none, the last in rank gives way, be it the stream itself. And a waiting request of
//! a higher priority than the last in rank takes its place when nothing else makes room.
//!
//! Who gives way releases its blocks and waits again, with all its known tokens as the prompt. Its
//! answer does not change: what it generated stays, and its samples go on being numbered where they
//! stopped. A sequence with a row in flight is only marked; it leaves when that row is settled. Its
//! full blocks stay in the prefix tree until they are given away, so it may find most of them
//! again; and before it starts again, whoever kept the evicted ones may offer them
//! ([`Scheduler::returning`]).
//!
//! Why this ends: a rank is fixed but for the few times that it rises. Of those here the first in
//! rank never gives way to another's block; it fits the pool alone (checked when it was added), so
//! it completes, and then another is the first.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use messages::{CacheNamespace, Priority, SequenceId, TokenId};

use crate::Scheduler;
use crate::sequence::{Sequence, Status};

/// A preempted sequence that the next plan may start again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returning<'a> {
    pub sequence: SequenceId,
    pub namespace: &'a Arc<CacheNamespace>,
    /// Prompt and answer so far.
    pub tokens: &'a [TokenId],
}

impl Scheduler {
    /// Sorts the running sequences by rank, the first in rank first.
    pub(crate) fn rank(&mut self) {
        self.ranks.clear();
        let running = self.running.iter();
        self.ranks.extend(running.map(|sequence| (rank(sequence), sequence.arrival)));
        self.ranks.sort_unstable();
    }

    /// Gives every stream the block its next token needs, the first in rank first. A stream that
    /// still has none afterwards sits out this step: blocks are on their way back.
    pub(crate) fn secure_blocks(&mut self) {
        for place in 0..self.ranks.len() {
            let (_, arrival) = self.ranks[place];
            // Those that gave way with nothing in flight are gone.
            while let Some(index) = self.place(arrival) {
                let sequence = &mut self.running[index];
                let satisfied = sequence.remaining() == 0
                    || self.pool.grow(&mut sequence.table, sequence.computed + 1);
                if satisfied || self.blocks_are_coming() {
                    break;
                }
                self.preempt_last(index);
            }
        }
    }

    /// Whether settling the steps in flight frees a block. One is all a stream can ask for.
    fn blocks_are_coming(&self) -> bool {
        let leaving = |sequence: &Sequence| sequence.is_leaving() && !sequence.table.is_empty();
        self.pool.pending_count() > 0 || self.running.iter().any(leaving)
    }

    /// Preempts the last in rank, in favor of the sequence at `asking` or of that itself.
    fn preempt_last(&mut self, asking: usize) {
        let stays = |sequence: &&Sequence| !sequence.is_leaving();
        let others = self.running.iter().filter(stays).count();
        assert!(others > 1, "the last sequence never gives way: alone, it fits the pool");
        let asking = self.running[asking].arrival;
        let victim = self.last_in_rank(|_| true).unwrap_or(asking);
        let mut staying = self.running.iter().filter(stays);
        let first =
            staying.all(|sequence| self.rank_of(victim) <= (rank(sequence), sequence.arrival));
        assert!(!first, "the first in rank never gives way");
        self.preempt(victim);
    }

    fn rank_of(&self, arrival: u64) -> ((Reverse<u32>, u64), u64) {
        (rank(&self.running[self.position(arrival)]), arrival)
    }

    /// Arrival of the last in rank that stays and for which `may` holds.
    fn last_in_rank(&self, may: impl Fn(&Sequence) -> bool) -> Option<u64> {
        let ranked = self.ranks.iter().rev().map(|&(_, arrival)| arrival);
        ranked.into_iter().find(|&arrival| {
            let sequence = self.place(arrival).map(|index| &self.running[index]);
            sequence.is_some_and(|sequence| !sequence.is_leaving() && may(sequence))
        })
    }

    /// Lets a waiting request take the place of one of lower priority, if that helps: one at a
    /// plan, and only when nobody leaves anyway.
    pub(crate) fn make_room(&mut self) {
        let leaves = |sequence: &Sequence| sequence.is_leaving();
        let too_many = self.running.len() > self.running_max as usize;
        if too_many || self.running.iter().any(leaves) || self.pool.pending_count() > 0 {
            return;
        }
        let Some(place) = self.waiting.next(&self.tenants, self.planned_count) else { return };
        let next = self.waiting.get(place);
        let priority = next.priority;
        let is_lower = |sequence: &Sequence| standing(sequence) < priority as u32;
        let lower = self.running.iter().filter(|sequence| is_lower(sequence));
        let theirs: usize = lower.map(|sequence| sequence.table.blocks().len() + 1).sum();
        if theirs == 0 {
            return;
        }
        let needed = self.blocks_needed(next);
        let available = self.pool.available_count();
        let fits = self.has_place() && needed <= available;
        if fits || needed > available + theirs {
            return;
        }
        if let Some(victim) = self.last_in_rank(is_lower) {
            self.preempt(victim);
        }
    }

    fn preempt(&mut self, arrival: u64) {
        let victim = self.position(arrival);
        self.preemptions_total += 1;
        let sequence = &mut self.running[victim];
        sequence.status = Status::Preempting;
        sequence.preemptions += 1;
        if sequence.rows_in_flight == 0 {
            self.requeue(victim);
        }
    }

    /// Sends a preempted sequence that no step in flight uses back to the waiting queue.
    pub(crate) fn requeue(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        assert_eq!(sequence.status, Status::Preempting, "only a preempted sequence waits again");
        self.pool.release(&mut sequence.table, sequence.last_step);
        let mut sequence = self.retire(index);
        assert_eq!(sequence.samples_in_flight, 0, "all its tokens are known");
        sequence.computed = 0;
        sequence.waiting_since = self.planned_count;
        // The caller's copies were for its start before.
        (sequence.restorable, sequence.restored) = (0..0, 0..0);
        sequence.proposal.clear();
        sequence.status = Status::Live;
        self.waiting.insert(sequence);
    }

    /// The preempted sequence that the next plan starts again, unless things change until then.
    /// Whoever keeps evicted blocks may have some of its.
    pub fn returning(&self) -> Option<Returning<'_>> {
        let next = self.waiting.get(self.next_that_fits()?);
        let namespace = next.cache_namespace.as_ref().filter(|_| next.preemptions > 0)?;
        Some(Returning { sequence: next.id, namespace, tokens: &next.tokens })
    }

    /// Offers to copy in blocks of a waiting sequence, counted from its first token, when it is
    /// admitted; see [`crate::SequenceRequest::restorable`].
    pub fn offer_blocks(&mut self, id: SequenceId, restorable: Range<u32>) {
        if let Some(sequence) = self.waiting.get_mut(id) {
            sequence.restorable = restorable;
        }
    }
}

/// What sorts running sequences: the greatest gives way first.
fn rank(sequence: &Sequence) -> (Reverse<u32>, u64) {
    (Reverse(standing(sequence)), sequence.start_tag.unwrap_or(u64::MAX))
}

/// Its priority; each time that it gave way raises it once, up to the highest.
fn standing(sequence: &Sequence) -> u32 {
    (sequence.priority as u32 + sequence.preemptions).min(Priority::High as u32)
}
