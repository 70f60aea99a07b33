//! What did a finished step bring, and who leaves because of it?

use messages::{FinishReason, ProposalCounts, SampledToken, StepIndex, StepResult, TokenEvent};

use crate::sequence::{Sequence, Status};
use crate::{RowInFlight, Scheduler};

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
        let mut samples = result.samples.as_slice();
        for row in rows.drain(..) {
            let index = self.position(row.arrival);
            self.running[index].rows_in_flight -= 1;
            self.publish(index, row.end);
            if let Some(state) = row.state {
                // Of a sequence that has ended nothing is kept.
                self.pool.attach_state(&self.running[index].table, row.end, state);
            }
            if row.samples {
                let id = self.running[index].id;
                let count = samples.iter().take_while(|sample| sample.sequence == id).count();
                let (own, others) = samples.split_at(count);
                samples = others;
                self.take_samples(index, row, own, events);
            }
        }
        assert!(samples.is_empty(), "samples come in row order, and only for rows that ask");
        // Hands the emptied memory back.
        *self.rows_of(step) = rows;
        self.settled_count += 1;
        self.pool.settle(step);
        self.sweep();
    }

    /// Takes in what one row sampled: one token, and one more for each guess that was right.
    fn take_samples(
        &mut self,
        index: usize,
        row: RowInFlight,
        samples: &[SampledToken],
        events: &mut Vec<TokenEvent>,
    ) {
        let sequence = &mut self.running[index];
        let id = sequence.id;
        sequence.samples_in_flight -= 1;
        sequence.proposed_in_flight -= row.proposed;
        let right =
            samples.len().checked_sub(1).expect("invariant: a sample for each row that asks");
        assert!(right <= row.proposed as usize, "{id:?} has more samples than guesses and one");
        if sequence.status == Status::Ended {
            return;
        }
        for (sample, guess) in samples[..right].iter().zip(&sequence.proposal) {
            assert_eq!(sample.token, *guess, "speculation_exact: {id:?} kept a wrong guess");
        }
        sequence.proposal.clear();
        let mut counts = ProposalCounts { accepted: 0, rejected: row.proposed };
        for (place, sample) in samples.iter().enumerate() {
            let accepted = u32::from(place < right);
            counts += ProposalCounts { accepted, rejected: 0 };
            counts.rejected -= accepted;
            let finish = self.take_sample(index, row, sample);
            let is_last = finish.is_some() || place == right;
            let rejected = if is_last { counts.rejected } else { 0 };
            let cached = self.running[index].cached;
            let SampledToken { sequence, token, logprob } = sample.clone();
            let proposals = ProposalCounts { accepted, rejected };
            let event = TokenEvent { sequence, token, logprob, finish, cached, proposals };
            events.push(event);
            if finish.is_some() {
                break;
            }
        }
        self.proposals_total += counts;
    }

    fn take_sample(
        &mut self,
        index: usize,
        row: RowInFlight,
        sample: &SampledToken,
    ) -> Option<FinishReason> {
        let sequence = &mut self.running[index];
        let finish = finish_of(sequence, sample.token);
        assert!(sequence.generated() < sequence.generated_max, "a token beyond the last one");
        sequence.tokens.push(sample.token);
        if row.proposed > 0 {
            // The cache has every token before this one; what follows was a guess.
            sequence.computed = sequence.known() - 1;
            let computed = sequence.computed;
            self.publish(index, computed);
        }
        if finish.is_some() {
            self.finished_total += 1;
            self.end(index);
        }
        finish
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
                Status::Ended => self.remove(index),
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
