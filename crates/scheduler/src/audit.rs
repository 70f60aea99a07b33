//! Does the scheduler's state make sense?

use crate::sequence::{Sequence, Status};
use crate::{RowInFlight, STEPS_IN_FLIGHT_MAX, Scheduler, wait_plans_max};

impl Scheduler {
    /// Checks every invariant of the state; slow, for tests, simulations and debug builds.
    ///
    /// # Panics
    /// When one is broken.
    pub fn audit(&self) {
        let waiting = self.waiting.iter();
        self.pool.audit(self.running.iter().chain(waiting).map(|sequence| &sequence.table));
        let taken = self.in_flight.iter().flatten().filter(|row| row.state.is_some()).count();
        self.pool.audit_states(taken);
        assert!(self.steps_in_flight() <= STEPS_IN_FLIGHT_MAX, "depth_bounded");
        self.audit_slots();
        assert!(self.running.is_sorted_by_key(|sequence| sequence.arrival), "order of arrival");
        assert!(self.waiting.iter().is_sorted_by_key(|sequence| sequence.arrival), "the queue");
        let sequences = self.running.iter().chain(self.waiting.iter());
        self.tenants.audit(sequences.map(|sequence| sequence.account));
        for sequence in self.waiting.iter() {
            assert!(sequence.table.is_empty(), "{:?} waits with blocks", sequence.id);
            assert!(sequence.slot.is_none(), "{:?} waits in a slot", sequence.id);
            assert_eq!(sequence.rows_in_flight, 0, "{:?} waits and runs", sequence.id);
            assert_eq!(sequence.status, Status::Live, "{:?} waits for nothing", sequence.id);
        }
        for sequence in &self.running {
            self.audit_running(sequence);
        }
    }

    fn audit_slots(&self) {
        let slots = self.limits.sequences_max as usize;
        let mut seen = vec![false; slots];
        let used = self.running.iter().map(Sequence::slot);
        for slot in used.chain(self.free_slots.iter().copied()) {
            assert!(!seen[slot.0 as usize], "{slot:?} is used twice");
            seen[slot.0 as usize] = true;
        }
        assert_eq!(self.running.len() + self.free_slots.len(), slots, "a slot is lost");
    }

    fn audit_running(&self, sequence: &Sequence) {
        let id = sequence.id;
        let own = |row: &&RowInFlight| row.arrival == sequence.arrival;
        let rows = self.in_flight.iter().flatten().filter(own).count();
        let samples = self.in_flight.iter().flatten().filter(own).filter(|row| row.samples).count();
        assert_eq!(sequence.rows_in_flight as usize, rows, "rows of {id:?}");
        assert_eq!(sequence.samples_in_flight as usize, samples, "samples of {id:?}");
        let proposed: u32 =
            self.in_flight.iter().flatten().filter(own).map(|row| row.proposed).sum();
        assert_eq!(sequence.proposed_in_flight, proposed, "guesses of {id:?}");
        let goes_on = proposed > 0 && (samples != 1 || sequence.remaining() > 0);
        assert!(!goes_on, "{id:?} goes on while its guesses are checked");
        assert!(sequence.generated() <= sequence.generated_max, "{id:?} says too much");
        assert!(sequence.known() <= self.limits.context_tokens_max, "{id:?} is too long");
        match sequence.status {
            Status::Live | Status::Preempting => {
                let covered = self.pool.covered(&sequence.table);
                assert!(u64::from(sequence.computed) <= covered, "{id:?} lacks blocks");
            }
            Status::Ended => assert!(sequence.table.is_empty(), "{id:?} ended with blocks"),
        }
        if sequence.status != Status::Live {
            assert!(rows > 0, "{id:?} should have left");
        }
        let waited = sequence.plans_waited;
        let max = wait_plans_max(&self.limits);
        assert!(waited <= max, "no_starvation: {id:?} waited {waited} plans, the most is {max}");
    }
}
