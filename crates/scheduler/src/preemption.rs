//! Who gives blocks back when the KV pool runs out?
//!
//! The youngest running sequence: its blocks are released and it waits again, at its old place in
//! the order of arrival, with all its known tokens as the prompt. Its answer does not change: what
//! it generated stays, and its samples go on being numbered where they stopped. A sequence with a
//! row in flight is only marked; it leaves when that row is settled. Its full blocks stay in the
//! prefix tree until they are given away, so it may find most of them again.
//!
//! Why this ends: only the youngest gives way, so the oldest sequence never does; it fits the pool
//! alone (checked when it was added), so it completes, and then another is the oldest.

use crate::Scheduler;
use crate::sequence::Status;

impl Scheduler {
    /// Gives every stream the block its next token needs, oldest first. A stream that still has
    /// none afterwards sits out this step: blocks are on their way back.
    pub(crate) fn secure_blocks(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            let sequence = &mut self.running[index];
            let satisfied = sequence.remaining() == 0
                || self.pool.grow(&mut sequence.table, sequence.computed + 1);
            if satisfied || self.blocks_are_coming() {
                index += 1;
                continue;
            }
            // The victim is this sequence or a younger one, so none before `index` moves.
            self.preempt_youngest();
        }
    }

    /// Whether settling the steps in flight frees a block. One is all a stream can ask for.
    fn blocks_are_coming(&self) -> bool {
        let leaving =
            |sequence: &crate::Sequence| sequence.is_leaving() && !sequence.table.is_empty();
        self.pool.pending_count() > 0 || self.running.iter().any(leaving)
    }

    fn preempt_youngest(&mut self) {
        let victim = self
            .running
            .iter()
            .rposition(|sequence| !sequence.is_leaving())
            .expect("invariant: the sequence that asked for a block is not leaving");
        let elder = self.running[..victim].iter().any(|sequence| !sequence.is_leaving());
        assert!(elder, "the oldest sequence never gives way: alone, it fits the pool");
        self.preemptions_total += 1;
        self.running[victim].status = Status::Preempting;
        if self.running[victim].rows_in_flight == 0 {
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
        sequence.was_preempted = true;
        // The caller's copies were for its first start.
        (sequence.restorable, sequence.restored) = (0..0, 0..0);
        sequence.proposal.clear();
        sequence.status = Status::Live;
        self.waiting.insert(sequence);
    }
}
