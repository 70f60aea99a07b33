//! How does a plan become a device's step? The only translator on the way down; `settle` is the one
//! on the way back.

use std::collections::{BTreeMap, VecDeque};

use device::{Completion, RowInput, SlotReset, StepInputs, TokenInput};
use messages::{
    SampledToken, SequenceId, StepIndex, StepPlan, StepResult, TokenLogprob, TokenSource,
};
use ops::sample_rows::SampleParams;
use scheduler::Scheduler;

/// Remembers which sequence each sampled row of the steps in flight belongs to.
#[derive(Default)]
pub(crate) struct Executor {
    in_flight: VecDeque<StepRows>,
    free: Vec<Vec<SequenceId>>,
}

struct StepRows {
    step: StepIndex,
    sampled: Vec<SequenceId>,
}

impl Executor {
    /// Writes a step's inputs from its plan.
    pub(crate) fn fill(
        &mut self,
        plan: &StepPlan,
        scheduler: &Scheduler,
        params: &BTreeMap<SequenceId, SampleParams>,
        inputs: &mut StepInputs,
    ) {
        inputs.clear(plan.step.0);
        for admitted in scheduler.admitted() {
            let params = params.get(&admitted.sequence);
            inputs.resets.push(SlotReset {
                slot: admitted.slot.0,
                params: params.cloned().unwrap_or_default(),
                prompt: admitted.prompt.to_vec(),
                generated: admitted.generated.to_vec(),
            });
        }
        for (index, row) in plan.rows.iter().enumerate() {
            let table = plan.block_table(index);
            inputs.rows.push(RowInput {
                slot: row.slot.0,
                start: row.start,
                length: row.length,
                blocks_start: inputs.blocks.len() as u32,
                blocks_count: table.len() as u32,
                sample_index: row.sample_index,
            });
            inputs.blocks.extend(table.iter().map(|block| block.0));
        }
        inputs.tokens.extend(plan.tokens.iter().map(|source| match *source {
            TokenSource::Known(token) => TokenInput::Known(token),
            TokenSource::Slot(slot) => TokenInput::Slot(slot.0),
        }));
        let mut sampled = self.free.pop().unwrap_or_default();
        sampled.clear();
        let samples = plan.rows.iter().filter(|row| row.sample_index.is_some());
        sampled.extend(samples.map(|row| row.sequence));
        self.in_flight.push_back(StepRows { step: plan.step, sampled });
    }

    /// Names the sequences of a finished step's samples. A failed step gives every sampled row a
    /// token that nobody will see: its sequences were given up before it settles.
    pub(crate) fn read(&mut self, completion: &mut Completion, result: &mut StepResult) {
        let rows = self.in_flight.pop_front().expect("invariant: steps complete in order");
        assert_eq!(rows.step.0, completion.inputs.step, "steps complete in order");
        result.step = rows.step;
        result.samples.clear();
        if completion.result.is_ok() {
            let samples = &mut completion.outputs.samples;
            assert_eq!(samples.len(), rows.sampled.len(), "one sample for each sampled row");
            result.samples.extend(rows.sampled.iter().zip(samples.drain(..)).map(
                |(&sequence, sample)| SampledToken {
                    sequence,
                    token: sample.token,
                    logprob:
                        sample.logprob.map(|logprob| TokenLogprob {
                            logprob: logprob.chosen,
                            top: logprob.top,
                        }),
                },
            ));
        } else {
            let given_up =
                |&sequence: &SequenceId| SampledToken { sequence, token: 0, logprob: None };
            result.samples.extend(rows.sampled.iter().map(given_up));
        }
        self.free.push(rows.sampled);
    }
}
