//! What does the next step compute?

use std::cmp::Reverse;

use messages::{StepIndex, StepPlan};

use crate::queue::OVERDUE;
use crate::{Pace, RowInFlight, STEPS_IN_FLIGHT_MAX, Scheduler, budget};

impl Scheduler {
    /// Fills `plan` with the next step; its memory is kept. `false` if there is nothing to do now:
    /// then either the scheduler is idle or a step in flight must settle first.
    ///
    /// # Panics
    /// When [`STEPS_IN_FLIGHT_MAX`] steps are in flight already (`depth_bounded`).
    pub fn plan(&mut self, pace: Pace, plan: &mut StepPlan) -> bool {
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
        self.rank();
        self.secure_blocks();
        self.make_room();
        let used = self.plan_single_rows(plan);
        let left = self.limits.step_tokens_max - used;
        let paced = match used > 0 {
            true => left.min(pace.prompt_tokens_max),
            // Prompts that are read in one piece cannot be read in smaller ones.
            false if self.reads_whole => left,
            false => left.min(pace.alone_tokens_max.max(1)),
        };
        self.plan_prompts(plan, paced);

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
        plan.states.reserve(if self.carries { 2 * rows } else { 0 });
    }

    pub(crate) fn rows_of(&mut self, step: StepIndex) -> &mut Vec<RowInFlight> {
        &mut self.in_flight[step.0 as usize % STEPS_IN_FLIGHT_MAX]
    }

    /// One row for each sequence that lacks one token and has room for it; if not all fit, they
    /// take turns. Returns the tokens used.
    fn plan_single_rows(&mut self, plan: &mut StepPlan) -> u32 {
        let prompt_waits = self.running.iter().any(|sequence| sequence.remaining() > 1)
            || self.next_that_fits().is_some();
        let rows_max = budget::single_rows_max(&self.limits, prompt_waits);
        let ready = (0..self.running.len()).filter(|&index| self.is_ready(index)).count();
        if ready > rows_max as usize {
            return self.plan_turns(plan, rows_max);
        }
        // What every stream's own token leaves, guesses may have.
        let mut spare = (rows_max - ready as u32).min(self.limits.proposed_tokens_max);
        let mut used = 0;
        for index in 0..self.running.len() {
            if self.is_ready(index) {
                let proposed = self.fitting_proposals(index, spare);
                self.push_stream(plan, index, proposed);
                spare -= proposed;
                used += 1 + proposed;
            }
        }
        used
    }

    /// Gives `rows_max` rows to more streams than that: to the most urgent, of those to tenants
    /// that had the least, and of one tenant to who had none for the longest time.
    fn plan_turns(&mut self, plan: &mut StepPlan, rows_max: u32) -> u32 {
        let step = plan.step;
        for _ in 0..rows_max {
            let waiting = (0..self.running.len()).filter(|&index| {
                self.is_ready(index) && self.running[index].last_step != Some(step)
            });
            let next = waiting.min_by_key(|&index| {
                let sequence = &self.running[index];
                let (urgency, waited) = (budget::urgency(sequence), Reverse(sequence.plans_waited));
                let first = if urgency == OVERDUE { waited } else { Reverse(0) };
                let had = self.tenants.computed(sequence.account);
                (Reverse(urgency), first, had, waited, sequence.arrival)
            });
            self.push_stream(plan, next.expect("invariant: more are ready"), 0);
        }
        rows_max
    }

    fn push_stream(&mut self, plan: &mut StepPlan, index: usize, proposed: u32) {
        self.push_row(plan, index, 1, proposed);
        self.tenants.charge(self.running[index].account, 1 + proposed);
    }

    /// Whether the sequence lacks one token and has a block for it.
    fn is_ready(&self, index: usize) -> bool {
        let sequence = &self.running[index];
        let covered = self.pool.covered(&sequence.table);
        sequence.remaining() == 1 && u64::from(sequence.computed) < covered
    }

    /// Adds the next `length` positions of a running sequence to the plan, and its first
    /// `proposed` guesses.
    pub(crate) fn push_row(
        &mut self,
        plan: &mut StepPlan,
        index: usize,
        length: u32,
        proposed: u32,
    ) {
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
        let state = if proposed == 0 { self.save_state(plan, index, end) } else { None };
        self.rows_of(step).push(RowInFlight { arrival, samples, proposed, end, state });
    }
}
