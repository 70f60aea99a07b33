//! What did each step compute, and how long did it take, as the limiter wants to know it?
//!
//! No clock: moments are arguments.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use messages::StepPlan;

use crate::limiter::StepMeasure;

#[derive(Default)]
pub(crate) struct StepWatch {
    in_flight: VecDeque<Planned>,
    /// When the step before ended, if another was waiting behind it.
    ended: Option<Instant>,
}

struct Planned {
    measure: StepMeasure,
    /// Rows that give the first token of an answer.
    firsts: u32,
}

impl StepWatch {
    /// A step was planned; `left_unread`: there is more of the prompts than it reads.
    pub(crate) fn planned(&mut self, plan: &StepPlan, left_unread: bool) {
        let mut measure = StepMeasure { left_unread, ..StepMeasure::default() };
        let mut firsts = 0;
        for row in &plan.rows {
            match row.sample_index {
                Some(index) if index > 0 && row.length == 1 + row.proposed => {
                    measure.streams += 1;
                    measure.rows += row.length;
                }
                index => {
                    firsts += u32::from(index.is_some());
                    measure.prompt_tokens += row.length;
                }
            }
        }
        self.in_flight.push_back(Planned { measure, firsts });
    }

    /// The oldest step in flight has ended at `now`, having computed for `duration`, and gave so
    /// many samples. Tells what it was, and the tokens that its streams got.
    pub(crate) fn finished(
        &mut self,
        duration: Duration,
        now: Instant,
        samples: usize,
    ) -> (StepMeasure, u32) {
        let step = self.in_flight.pop_front().expect("invariant: steps complete in order");
        // Several models compute in turns: what a step takes is longer than it computes.
        let elapsed = self.ended.map_or(duration, |ended| now.saturating_duration_since(ended));
        self.ended = (!self.in_flight.is_empty()).then_some(now);
        let (seconds, elapsed_seconds) = (duration.as_secs_f64(), elapsed.as_secs_f64());
        let tokens = (samples as u32).saturating_sub(step.firsts);
        (StepMeasure { seconds, elapsed_seconds, ..step.measure }, tokens)
    }
}
