//! What did a finished step bring, and who leaves because of it?

use messages::{FinishReason, SampledToken, StepIndex, StepResult, TokenEvent};

use crate::Scheduler;
use crate::sequence::{Sequence, Status};

impl Scheduler {
    /// Takes in the samples of the oldest step in flight and appends one event for each that
    /// counts. Samples of sequences that have ended meanwhile are dropped.
    ///
    /// # Panics
    /// When `result` is not of the oldest step in flight, or its samples are not those asked for.
    pub fn settle(&mut self, result: &StepResult, events: &mut Vec<TokenEvent>) {
        let step = StepIndex(self.settled_count);
        assert!(self.steps_in_flight() > 0, "no step is in flight");
        assert_eq!(result.step, step, "steps settle in order");
        let mut rows = std::mem::take(self.rows_of(step));
        let mut samples = result.samples.iter();
        for row in rows.drain(..) {
            let index = self.position(row.arrival);
            self.running[index].rows_in_flight -= 1;
            self.publish(index, row.end);
            if row.samples {
                let sample = samples.next().expect("invariant: a sample for each row that asked");
                events.extend(self.take_sample(index, sample));
            }
        }
        assert!(samples.next().is_none(), "more samples than rows that asked for one");
        // Hands the emptied memory back.
        *self.rows_of(step) = rows;
        self.settled_count += 1;
        self.pool.settle(step);
        self.sweep();
    }

    fn take_sample(&mut self, index: usize, sample: &SampledToken) -> Option<TokenEvent> {
        let sequence = &mut self.running[index];
        assert_eq!(sequence.id, sample.sequence, "samples come in row order");
        sequence.samples_in_flight -= 1;
        if sequence.status == Status::Ended {
            return None;
        }
        let finish = finish_of(sequence, sample.token);
        assert!(sequence.generated() < sequence.generated_max, "a token beyond the last one");
        sequence.tokens.push(sample.token);
        if finish.is_some() {
            self.finished_total += 1;
            self.end(index);
        }
        let cached_tokens = self.running[index].cached_tokens;
        let SampledToken { sequence, token, logprob } = sample.clone();
        Some(TokenEvent { sequence, token, logprob, finish, cached_tokens })
    }

    /// Lets sequences go that no step in flight uses any more.
    fn sweep(&mut self) {
        for index in (0..self.running.len()).rev() {
            if self.running[index].rows_in_flight > 0 {
                continue;
            }
            match self.running[index].status {
                Status::Live => {}
                Status::Preempting => self.requeue(index),
                Status::Ended => drop(self.retire(index)),
            }
        }
    }
}

/// Whether `token`, sampled next, ends the sequence.
fn finish_of(sequence: &Sequence, token: u32) -> Option<FinishReason> {
    let generated = sequence.generated();
    // The device bans stop tokens before `min_tokens`; one that comes anyway is an ordinary token.
    if generated >= sequence.min_tokens && sequence.stop_tokens.contains(&token) {
        return Some(FinishReason::Stop);
    }
    (generated + 1 == sequence.generated_max).then_some(FinishReason::Length)
}
