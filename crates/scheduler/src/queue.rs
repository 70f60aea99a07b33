//! Who waits for a slot, and in which order?

use std::collections::VecDeque;

use messages::{Limits, SequenceId};

use crate::sequence::Sequence;

/// Waiting sequences in order of arrival. A preempted one comes back to its old place, which is
/// before all that never ran: nobody overtakes.
#[derive(Clone, Debug)]
pub(crate) struct WaitingQueue {
    sequences: VecDeque<Sequence>,
    /// Requests accepted beyond it are refused.
    waiting_max: usize,
    /// Preempted sequences come on top.
    capacity: usize,
}

impl WaitingQueue {
    pub(crate) fn new(limits: &Limits) -> Self {
        let waiting_max = limits.waiting_max as usize;
        let capacity = waiting_max + limits.sequences_max as usize;
        Self { sequences: VecDeque::with_capacity(capacity), waiting_max, capacity }
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

    pub(crate) fn front(&self) -> Option<&Sequence> {
        self.sequences.front()
    }

    pub(crate) fn pop_front(&mut self) -> Option<Sequence> {
        self.sequences.pop_front()
    }

    /// Whether the sequence was here.
    pub(crate) fn remove(&mut self, id: SequenceId) -> bool {
        let place = self.sequences.iter().position(|sequence| sequence.id == id);
        place.and_then(|place| self.sequences.remove(place)).is_some()
    }

    pub(crate) fn contains(&self, id: SequenceId) -> bool {
        self.sequences.iter().any(|sequence| sequence.id == id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.sequences.iter()
    }

    pub(crate) fn len(&self) -> usize {
        self.sequences.len()
    }
}
