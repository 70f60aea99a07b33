//! Where does what each slot carries stand? At a position, with some guesses behind it that may
//! turn out right.
//!
//! A sequence that carries a state (see [`crate::StateShape`]) can go on only from the position at
//! which the state stands: it cannot be read at another, as keys and values can. Guesses do not
//! enter it. What is needed to take them in is kept aside, and the slot's next row tells by its
//! start how many of them were right.
//!
//! Invariant `state_at_start`: a row is computed only if its slot's state, with the guesses that
//! were right, stands where the row starts; else the step fails.

use crate::{BlockCopy, Capacity, Fault, StateCopy, StepInputs};

/// The positions of all states of a program.
#[derive(Clone, Debug, Default)]
pub struct StateLog {
    slots: Vec<Stand>,
    /// Of the places besides slots.
    places: Vec<u32>,
    /// Of each row of the step: guesses kept of its slot that were right.
    right: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stand {
    position: u32,
    guesses: u32,
}

impl StateLog {
    pub fn new(capacity: &Capacity) -> Self {
        Self {
            slots: vec![Stand::default(); capacity.slots as usize],
            places: vec![0; capacity.states as usize],
            right: Vec::with_capacity(capacity.slots as usize),
        }
    }

    /// Takes in all of a step before it runs.
    ///
    /// # Errors
    /// [`Fault`] where a row does not start where its slot's state stands.
    pub fn take(&mut self, inputs: &StepInputs) -> Result<(), Fault> {
        self.right.clear();
        for reset in &inputs.resets {
            self.slots[reset.slot as usize] = Stand::default();
        }
        for copy in &inputs.copies {
            if let BlockCopy::StateIn { slot, position, .. } = *copy {
                self.slots[slot as usize] = Stand { position, guesses: 0 };
            }
        }
        for copy in &inputs.states {
            if let StateCopy::Load { place, slot } = *copy {
                let position = self.places[place as usize];
                self.slots[slot as usize] = Stand { position, guesses: 0 };
            }
        }
        let mut wrong = None;
        for row in &inputs.rows {
            let stand = &mut self.slots[row.slot as usize];
            let right = row.start.checked_sub(stand.position);
            let right = right.filter(|&right| right <= stand.guesses);
            if right.is_none() {
                let Stand { position, guesses } = *stand;
                wrong.get_or_insert(format!(
                    "state_at_start: slot {} stands at {position} with {guesses} guesses, its row \
                     starts at {}",
                    row.slot, row.start
                ));
            }
            self.right.push(right.unwrap_or(0));
            let position = row.start + row.length - row.proposed;
            *stand = Stand { position, guesses: row.proposed };
        }
        for copy in &inputs.states {
            if let StateCopy::Save { slot, place } = *copy {
                self.places[place as usize] = self.slots[slot as usize].position;
            }
        }
        wrong.map_or(Ok(()), |text| Err(Fault(text)))
    }

    /// How many of the guesses kept of a row's slot were right.
    pub fn right(&self, row: usize) -> u32 {
        self.right[row]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::StateLog;
    use crate::{Capacity, RowInput, SlotReset, StateCopy, StepInputs};
    use ops::sample_rows::SampleParams;

    const CAPACITY: Capacity = Capacity {
        step_tokens_max: 8,
        slots: 2,
        proposed_tokens_max: 4,
        block_count: 4,
        block_tokens: 4,
        states: 1,
    };

    fn step(slot: u32, start: u32, length: u32, proposed: u32) -> StepInputs {
        let (blocks_start, blocks_count, sample_index) = (0, 4, Some(0));
        let row =
            RowInput { slot, start, length, blocks_start, blocks_count, sample_index, proposed };
        StepInputs { rows: vec![row], ..StepInputs::default() }
    }

    fn reset(slot: u32) -> SlotReset {
        let (params, prompt, generated) = (SampleParams::default(), Vec::new(), Vec::new());
        SlotReset { slot, params, prompt, generated, adapter: None }
    }

    #[test]
    fn state_at_start() {
        let mut log = StateLog::new(&CAPACITY);
        log.take(&step(0, 0, 3, 0)).unwrap();
        log.take(&step(0, 3, 5, 4)).unwrap();
        // Two of four guesses were right.
        log.take(&step(0, 6, 1, 0)).unwrap();
        assert_eq!(log.right(0), 2);
        assert!(log.take(&step(0, 5, 1, 0)).is_err(), "the state stands behind it");
        let mut log = StateLog::new(&CAPACITY);
        log.take(&step(0, 0, 3, 2)).unwrap();
        let error = log.take(&step(0, 4, 1, 0)).map_err(|fault| fault.0);
        assert!(
            error.is_err_and(|text| text.contains("state_at_start")),
            "guesses that never were"
        );
    }

    #[test]
    fn states_go_from_slot_to_place_and_back() {
        let mut log = StateLog::new(&CAPACITY);
        let mut saving = step(0, 0, 4, 0);
        saving.states.push(StateCopy::Save { slot: 0, place: 0 });
        log.take(&saving).unwrap();
        let mut loading = step(1, 4, 2, 0);
        loading.resets.push(reset(1));
        loading.states.push(StateCopy::Load { place: 0, slot: 1 });
        log.take(&loading).unwrap();
        // A sequence that starts afresh carries nothing.
        let mut fresh = step(1, 6, 1, 0);
        fresh.resets.push(reset(1));
        assert!(log.take(&fresh).is_err());
    }
}
