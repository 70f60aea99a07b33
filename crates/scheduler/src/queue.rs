//! Who waits for a slot, and who is next?
//!
//! The most urgent first: by priority, which grows with the plans that go by (`Limits::
//! aging_plans`). Among equally urgent ones those come first that ran before and were preempted,
//! then those of the tenant that had the least, then those that came first. Who has aged beyond
//! the highest priority goes before all that have not; among those, tenants take turns and each
//! sends its oldest, so that nobody is overtaken for ever. Whoever is next and does not fit yet is
//! waited for: small requests do not keep a large one out.

use std::cmp::Reverse;
use std::collections::VecDeque;

use messages::{Limits, Priority, SequenceId};

use crate::sequence::Sequence;
use crate::tenants::Tenants;

/// Urgency beyond every priority.
pub(crate) const OVERDUE: u64 = Priority::High as u64 + 1;
/// How often the least urgent request grows more urgent until it comes before all others.
pub const AGING_LEVELS: u32 = OVERDUE as u32;

/// Waiting sequences in order of arrival; a preempted one comes back to its old place.
#[derive(Clone, Debug)]
pub(crate) struct WaitingQueue {
    sequences: VecDeque<Sequence>,
    /// Requests accepted beyond it are refused.
    waiting_max: usize,
    /// Preempted sequences come on top.
    capacity: usize,
    aging_plans: u64,
}

impl WaitingQueue {
    pub(crate) fn new(limits: &Limits) -> Self {
        let waiting_max = limits.waiting_max as usize;
        let capacity = waiting_max + limits.sequences_max as usize;
        let aging_plans = u64::from(limits.aging_plans);
        assert!(aging_plans > 0, "requests age by at least a plan");
        Self { sequences: VecDeque::with_capacity(capacity), waiting_max, capacity, aging_plans }
    }

    /// Requests grow more urgent with every so many plans from now on.
    pub(crate) fn set_aging(&mut self, plans: u32) {
        self.aging_plans = u64::from(plans.max(1));
    }

    /// Whether a new request must be refused.
    pub(crate) fn is_full(&self) -> bool {
        self.sequences.len() >= self.waiting_max
    }

    pub(crate) fn insert(&mut self, sequence: Sequence) {
        assert!(self.sequences.len() < self.capacity, "queues_bounded: the waiting queue is full");
        let place = self.sequences.partition_point(|other| other.arrival < sequence.arrival);
        self.sequences.insert(place, sequence);
    }

    /// Place of the sequence that is next.
    pub(crate) fn next(&self, tenants: &Tenants, plan: u64) -> Option<usize> {
        let places = 0..self.sequences.len();
        places.min_by_key(|&place| self.order(&self.sequences[place], tenants, plan))
    }

    /// What sorts waiting sequences: the least is next.
    fn order(
        &self,
        sequence: &Sequence,
        tenants: &Tenants,
        plan: u64,
    ) -> (Reverse<u64>, bool, u64, u64) {
        let urgency = self.urgency(sequence, plan);
        if urgency == OVERDUE {
            let last_turn = tenants.last_turn(sequence.account);
            return (Reverse(urgency), false, last_turn, sequence.arrival);
        }
        let had = tenants.spoken_for(sequence.account);
        (Reverse(urgency), sequence.preemptions == 0, had, sequence.arrival)
    }

    pub(crate) fn urgency(&self, sequence: &Sequence, plan: u64) -> u64 {
        let aged = (plan - sequence.waiting_since) / self.aging_plans;
        (sequence.priority as u64 + aged).min(OVERDUE)
    }

    /// Sequences that would be admitted before `id`, as things stand; `None`: it does not wait.
    pub(crate) fn ahead_of(&self, id: SequenceId, tenants: &Tenants, plan: u64) -> Option<usize> {
        let own = self.iter().find(|sequence| sequence.id == id)?;
        let order = self.order(own, tenants, plan);
        Some(self.iter().filter(|other| self.order(other, tenants, plan) < order).count())
    }

    pub(crate) fn get(&self, place: usize) -> &Sequence {
        &self.sequences[place]
    }

    pub(crate) fn get_mut(&mut self, id: SequenceId) -> Option<&mut Sequence> {
        self.sequences.iter_mut().find(|sequence| sequence.id == id)
    }

    pub(crate) fn take(&mut self, place: usize) -> Sequence {
        self.sequences.remove(place).expect("invariant: the caller found it there")
    }

    /// The sequence, if it was here.
    pub(crate) fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        let place = self.sequences.iter().position(|sequence| sequence.id == id)?;
        self.sequences.remove(place)
    }

    pub(crate) fn contains(&self, id: SequenceId) -> bool {
        self.sequences.iter().any(|sequence| sequence.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> + Clone {
        self.sequences.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.sequences.len()
    }
}
