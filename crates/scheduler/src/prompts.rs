//! Which prompts are read in a step, and how much of each?
//!
//! Admission comes first: a waiting request gets a slot as soon as there is one for it, and one
//! token of the step at least, so that a short prompt never waits for a long one to be read. The
//! tokens then go to the most urgent prompts; among them tenants share alike; and of one tenant a
//! prompt with much less left goes first, for that makes the mean wait short, and of those that
//! have about as much left the oldest, for that makes the longest wait short. A quarter goes to the
//! oldest of the most urgent, so that a long prompt moves beside any number of short ones.

use std::cmp::Reverse;

use messages::StepPlan;

use crate::queue::OVERDUE;
use crate::sequence::{Sequence, Status};
use crate::{Scheduler, budget};

impl Scheduler {
    /// Admits who fits and reads on in prompts, with `tokens` of the step.
    pub(crate) fn plan_prompts(&mut self, plan: &mut StepPlan, tokens: u32) {
        self.claim_prompts();
        self.admit(tokens);
        self.load_states(plan);
        self.grants.clear();
        self.grants.resize(self.running.len(), 0);
        if self.reads_whole {
            return self.plan_whole(plan);
        }
        let mut left = tokens;
        for place in 0..self.admitted.len() {
            let index = self.position(self.admitted[place]);
            left -= self.grant(index, 1);
        }
        let reserved = left / 4;
        let beside = self.share_out(left - reserved);
        left = beside + reserved;
        if let Some(index) = self.oldest_prompt() {
            left -= self.grant(index, reserved.min(left));
        }
        self.share_out(left);
        for index in 0..self.running.len() {
            let length = self.grants[index];
            if length > 0 {
                self.push_row(plan, index, length, 0);
            }
        }
    }

    /// Reads what was just admitted, all of it.
    fn plan_whole(&mut self, plan: &mut StepPlan) {
        for place in 0..self.admitted.len() {
            let index = self.position(self.admitted[place]);
            let length = self.unread(index);
            self.grant(index, length);
            self.push_row(plan, index, length, 0);
        }
    }

    /// What prompts will take counts when the next of a tenant is admitted.
    fn claim_prompts(&mut self) {
        self.tenants.forget_claims();
        for sequence in self.running.iter().filter(|sequence| sequence.remaining() > 1) {
            self.tenants.claim(sequence.account, sequence.remaining());
        }
    }

    /// Gives slots and blocks to waiting sequences, the next one first, as long as each can have a
    /// token of the step and those that are being read one as well: a sequence that could not start
    /// at once would only hold blocks.
    fn admit(&mut self, tokens: u32) {
        let reads = self.running.iter().any(|sequence| sequence.remaining() > 1);
        let mut left = tokens;
        while (self.admitted.len() + usize::from(reads)) < tokens as usize
            && let Some(place) = self.next_that_fits()
        {
            let length = self.waiting.get(place).known();
            if self.reads_whole && length > left {
                break;
            }
            left = left.saturating_sub(length);
            let mut sequence = self.waiting.take(place);
            assert!(sequence.table.is_empty() && sequence.computed == 0, "it waits with nothing");
            let slot = self.free_slots.pop().expect("invariant: it fits");
            sequence.slot = Some(slot);
            self.take_prefix(&mut sequence);
            self.set_borders(&mut sequence);
            let positions = sequence.known() + 1;
            let grown = self.pool.grow(&mut sequence.table, positions);
            assert!(grown, "invariant: it fits");
            sequence.plans_waited = 0;
            let spoken_for = self.tenants.spoken_for(sequence.account);
            sequence.start_tag.get_or_insert(spoken_for);
            self.tenants.claim(sequence.account, sequence.remaining());
            self.tenants.take_turn(sequence.account);
            self.admitted.push(sequence.arrival);
            let index = self.running.partition_point(|other| other.arrival < sequence.arrival);
            self.running.insert(index, sequence);
        }
    }

    /// Place in the queue of the sequence that is next, if it could be admitted now: a slot, blocks
    /// for all its known tokens and one more, and a block for each running sequence, since each may
    /// ask for one within `block_tokens` steps and would then preempt somebody. While a preempted
    /// sequence is on its way back to the queue nobody is admitted.
    pub(crate) fn next_that_fits(&self) -> Option<usize> {
        if !self.has_place()
            || self.running.iter().any(|sequence| sequence.status == Status::Preempting)
        {
            return None;
        }
        let place = self.waiting.next(&self.tenants, self.planned_count)?;
        let needed = self.blocks_needed(self.waiting.get(place));
        (needed <= self.pool.available_count()).then_some(place)
    }

    /// Whether one more sequence may run.
    pub(crate) fn has_place(&self) -> bool {
        !self.free_slots.is_empty() && self.running.len() < self.running_max as usize
    }

    /// Blocks that must be available for a waiting sequence to be admitted.
    pub(crate) fn blocks_needed(&self, waiting: &Sequence) -> usize {
        let spare = self.running.iter().filter(|sequence| !sequence.table.is_empty()).count();
        self.pool.blocks_for(waiting.known() + 1) - self.owned_prefix(waiting) + spare
    }

    /// Gives `tokens` to prompts, the most urgent first. Returns what is left.
    fn share_out(&mut self, tokens: u32) -> u32 {
        let mut left = tokens;
        while left > 0
            && let Some(index) = self.next_prompt()
        {
            let most =
                if self.prompts_of_others(index) { left.min(tokens.div_ceil(4)) } else { left };
            left -= self.grant(index, most);
        }
        left
    }

    /// Positions of a running prompt that are neither computed nor granted, up to where its state
    /// is kept. A sequence that lacks
    /// one token is a stream, unless it was just admitted.
    fn unread(&self, index: usize) -> u32 {
        let sequence = &self.running[index];
        let remaining = sequence.remaining();
        let is_prompt = remaining > 1 || self.admitted.contains(&sequence.arrival);
        let border = sequence.next_border().map(|border| border - sequence.computed);
        let most = border.map_or(remaining, |border| remaining.min(border));
        if is_prompt { most - self.grants[index] } else { 0 }
    }

    fn next_prompt(&self) -> Option<usize> {
        let prompts = (0..self.running.len()).filter(|&index| self.unread(index) > 0);
        prompts.min_by_key(|&index| {
            let sequence = &self.running[index];
            let urgency = budget::urgency(sequence);
            let waited = if urgency == OVERDUE { sequence.plans_waited } else { 0 };
            let had = self.tenants.computed(sequence.account);
            let size = reading_class(self.unread(index));
            (Reverse(urgency), Reverse(waited), had, size, sequence.arrival)
        })
    }

    /// Whether another tenant has a prompt as urgent as this one.
    fn prompts_of_others(&self, index: usize) -> bool {
        let own = &self.running[index];
        (0..self.running.len()).any(|other| {
            let sequence = &self.running[other];
            sequence.account != own.account
                && self.unread(other) > 0
                && budget::urgency(sequence) == budget::urgency(own)
        })
    }

    /// The oldest of the most urgent prompts.
    fn oldest_prompt(&self) -> Option<usize> {
        let prompts = (0..self.running.len()).filter(|&index| self.unread(index) > 0);
        prompts.min_by_key(|&index| {
            let sequence = &self.running[index];
            (Reverse(budget::urgency(sequence)), sequence.arrival)
        })
    }

    /// Grants a prompt up to `most` of its positions. Returns how many.
    fn grant(&mut self, index: usize, most: u32) -> u32 {
        let tokens = self.unread(index).min(most);
        self.grants[index] += tokens;
        self.tenants.charge(self.running[index].account, tokens);
        tokens
    }
}

/// Prompts of one class are read in the order in which they came, those of a lower one first: each
/// class has up to four times the tokens of the one below.
pub fn reading_class(unread_tokens: u32) -> u32 {
    unread_tokens.checked_ilog2().map_or(0, |log| log / 2)
}
