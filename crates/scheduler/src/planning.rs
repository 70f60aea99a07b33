//! What does the next step compute?

use messages::{StepIndex, StepPlan};

use crate::sequence::Status;
use crate::{RowInFlight, STEPS_IN_FLIGHT_MAX, Scheduler, budget};

impl Scheduler {
    /// Fills `plan` with the next step; its memory is kept. `false` if there is nothing to do now:
    /// then either the scheduler is idle or a step in flight must settle first.
    ///
    /// # Panics
    /// When [`STEPS_IN_FLIGHT_MAX`] steps are in flight already (`depth_bounded`).
    pub fn plan(&mut self, plan: &mut StepPlan) -> bool {
        assert!(
            self.steps_in_flight() < STEPS_IN_FLIGHT_MAX,
            "depth_bounded: {STEPS_IN_FLIGHT_MAX} steps are in flight, settle one first"
        );
        let step = StepIndex(self.planned_count);
        plan.clear(step);
        self.reserve(plan);
        self.admitted.clear();
        self.pool.forget_evictions();
        assert!(self.rows_of(step).is_empty(), "the step before in this place is settled");

        self.skip_cached();
        self.secure_blocks();
        let budget = self.limits.step_tokens_max - self.plan_single_rows(plan);
        let budget = self.plan_chunks(plan, budget);
        self.admit(plan, budget);

        if plan.is_empty() {
            return false;
        }
        assert!(plan.tokens.len() <= self.limits.step_tokens_max as usize, "the step is too long");
        self.planned_count += 1;
        for sequence in &mut self.running {
            if sequence.last_step != Some(step) && sequence.remaining() > 0 {
                sequence.plans_waited += 1;
            }
        }
        true
    }

    /// Makes the plan as large as it can ever get, so that only its first use allocates.
    fn reserve(&self, plan: &mut StepPlan) {
        let rows = self.limits.sequences_max as usize;
        plan.rows.reserve(rows);
        plan.tokens.reserve(self.limits.step_tokens_max as usize);
        plan.block_starts.reserve(rows + 1);
        plan.blocks.reserve(self.limits.block_count as usize);
    }

    pub(crate) fn rows_of(&mut self, step: StepIndex) -> &mut Vec<RowInFlight> {
        &mut self.in_flight[step.0 as usize % STEPS_IN_FLIGHT_MAX]
    }

    /// One row for each sequence that lacks one token and has room for it; if not all fit, they
    /// take turns. Returns the tokens used.
    fn plan_single_rows(&mut self, plan: &mut StepPlan) -> u32 {
        let prompt_waits =
            self.running.iter().any(|sequence| sequence.remaining() > 1) || self.front_fits();
        let rows_max = budget::single_rows_max(&self.limits, prompt_waits);
        let count = self.running.len();
        let ready = (0..count).filter(|&index| self.is_ready(index)).count();
        let takes_turns = ready > rows_max as usize;
        let first = if takes_turns {
            self.running.partition_point(|sequence| sequence.arrival <= self.round_cursor)
        } else {
            0
        };
        // What every stream's own token leaves, guesses may have.
        let mut spare = rows_max.saturating_sub(ready as u32).min(self.limits.proposed_tokens_max);
        let mut used = 0;
        for index in (first..count).chain(0..first) {
            if used == rows_max {
                break;
            }
            if self.is_ready(index) {
                let proposed = self.fitting_proposals(index, spare);
                self.push_row(plan, index, 1, proposed);
                spare -= proposed;
                used += 1 + proposed;
                if takes_turns {
                    self.round_cursor = self.running[index].arrival;
                }
            }
        }
        used
    }

    /// Whether the sequence lacks one token and has a block for it.
    fn is_ready(&self, index: usize) -> bool {
        let sequence = &self.running[index];
        let covered = self.pool.covered(&sequence.table);
        sequence.remaining() == 1 && u64::from(sequence.computed) < covered
    }

    /// Reads on in the prompts of running sequences. Returns the budget left.
    fn plan_chunks(&mut self, plan: &mut StepPlan, mut budget: u32) -> u32 {
        for index in 0..self.running.len() {
            let remaining = self.running[index].remaining();
            if remaining > 1 && budget > 0 {
                let length = remaining.min(budget);
                self.push_row(plan, index, length, 0);
                budget -= length;
            }
        }
        budget
    }

    /// Gives slots and blocks to waiting sequences, in order, while budget is left: a sequence
    /// that could not start at once would only hold blocks.
    fn admit(&mut self, plan: &mut StepPlan, mut budget: u32) {
        while budget > 0 && self.front_fits() {
            let mut sequence = self.waiting.pop_front().expect("invariant: the front fits");
            assert!(sequence.table.is_empty() && sequence.computed == 0, "it waits with nothing");
            let slot = self.free_slots.pop().expect("invariant: the front fits");
            sequence.slot = Some(slot);
            self.take_prefix(&mut sequence);
            let positions = sequence.known() + 1;
            let grown = self.pool.grow(&mut sequence.table, positions);
            assert!(grown, "invariant: the front fits");
            sequence.plans_waited = 0;
            self.admitted.push(sequence.arrival);
            let in_order = self.running.last().is_none_or(|last| last.arrival < sequence.arrival);
            assert!(in_order, "{:?} was overtaken", sequence.id);
            self.running.push(sequence);
            let index = self.running.len() - 1;
            let length = self.running[index].remaining().min(budget);
            self.push_row(plan, index, length, 0);
            budget -= length;
        }
    }

    /// Whether the first waiting sequence could be admitted now: a slot, blocks for all its known
    /// tokens and one more, and a block for each running sequence, since each may ask for one
    /// within `block_tokens` steps and would then preempt the newcomer. While a preempted sequence
    /// is on its way back to the queue nobody is admitted, for it comes first.
    fn front_fits(&self) -> bool {
        let Some(front) = self.waiting.front().filter(|_| !self.free_slots.is_empty()) else {
            return false;
        };
        if self.running.iter().any(|sequence| sequence.status == Status::Preempting) {
            return false;
        }
        if self.running.len() >= self.running_max as usize {
            return false;
        }
        let spare = self.running.iter().filter(|sequence| !sequence.table.is_empty()).count();
        let needed = self.pool.blocks_for(front.known() + 1) - self.owned_prefix(front) + spare;
        needed <= self.pool.available_count()
    }

    /// Adds the next `length` positions of a running sequence to the plan, and its first
    /// `proposed` guesses.
    fn push_row(&mut self, plan: &mut StepPlan, index: usize, length: u32, proposed: u32) {
        let step = plan.step;
        let sequence = &mut self.running[index];
        let writable = sequence.table.sealed() as u32 * self.limits.block_tokens;
        assert!(sequence.computed >= writable, "kv_single_writer: a shared block is written");
        let row = sequence.next_row(step, length, proposed);
        let end = row.start + row.length;
        plan.tokens.extend((row.start..end).map(|position| sequence.source(position)));
        let blocks = self.pool.blocks_for(end);
        plan.blocks.extend_from_slice(&sequence.table.blocks()[..blocks]);
        plan.block_starts.push(plan.blocks.len() as u32);
        plan.rows.push(row);
        let (arrival, samples) = (sequence.arrival, row.sample_index.is_some());
        self.rows_of(step).push(RowInFlight { arrival, samples, proposed, end });
    }
}
