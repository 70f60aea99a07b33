//! How does a plan become a device's step? The only translator on the way down; `settle` is the one
//! on the way back.

use std::collections::{BTreeMap, VecDeque};

use device::{Completion, RowInput, SampleOutput, SlotReset, StateCopy, StepInputs, TokenInput};
use messages::{
    Fault, PlanRow, Refusal, RefusalKind, SampledToken, SequenceId, StateMove, StepIndex, StepPlan,
    StepResult, TokenLogprob, TokenSource,
};
use ops::sample_rows::{Logprob, SampleError, SampleParams, Sampled};
use scheduler::Scheduler;

/// Remembers which sequence each row of the steps in flight belongs to.
pub(crate) struct Executor {
    in_flight: VecDeque<StepRows>,
    free: Vec<Vec<PlanRow>>,
}

/// What a sequence's slot is set to.
#[derive(Clone, Default)]
pub(crate) struct SlotSettings {
    pub(crate) params: SampleParams,
    /// The number of its adapter.
    pub(crate) adapter: Option<u32>,
}

/// Why a sequence does not go on.
pub(crate) enum Broken {
    /// Only now is it known that what it asks for cannot be done.
    Refusal(Refusal),
    Fault(Fault),
}

struct StepRows {
    step: StepIndex,
    rows: Vec<PlanRow>,
}

impl Executor {
    /// With room for `depth` steps of `rows` rows, so that none takes memory.
    pub(crate) fn new(depth: usize, rows: usize) -> Self {
        Self {
            in_flight: VecDeque::with_capacity(depth),
            free: (0..depth).map(|_| Vec::with_capacity(rows)).collect(),
        }
    }

    /// Writes a step's inputs from its plan.
    pub(crate) fn fill(
        &mut self,
        plan: &StepPlan,
        scheduler: &Scheduler,
        settings: &BTreeMap<SequenceId, SlotSettings>,
        inputs: &mut StepInputs,
    ) {
        inputs.clear(plan.step.0);
        for admitted in scheduler.admitted() {
            let settings = settings.get(&admitted.sequence);
            let SlotSettings { params, adapter } = settings.cloned().unwrap_or_default();
            inputs.resets.push(SlotReset {
                slot: admitted.slot.0,
                params,
                prompt: admitted.prompt.to_vec(),
                generated: admitted.generated.to_vec(),
                adapter,
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
                proposed: row.proposed,
            });
            inputs.blocks.extend(table.iter().map(|block| block.0));
        }
        inputs.tokens.extend(plan.tokens.iter().map(|source| match *source {
            TokenSource::Known(token) => TokenInput::Known(token),
            TokenSource::Slot(slot) => TokenInput::Slot(slot.0),
        }));
        inputs.states.extend(plan.states.iter().map(|copy| match *copy {
            StateMove::Load { from, to } => StateCopy::Load { place: from.0, slot: to.0 },
            StateMove::Save { from, to } => StateCopy::Save { slot: from.0, place: to.0 },
        }));
        let mut rows = self.free.pop().unwrap_or_default();
        rows.clear();
        rows.extend_from_slice(&plan.rows);
        self.in_flight.push_back(StepRows { step: plan.step, rows });
    }

    /// The oldest step that has not been read.
    pub(crate) fn oldest(&self) -> Option<StepIndex> {
        self.in_flight.front().map(|rows| rows.step)
    }

    /// Names the sequences of a finished step's samples, and in `broken` those that it ends: all of
    /// a failed step, since what it wrote to their caches is unknown, and those of a good one that
    /// the device could not choose a token for, or did not compute, as a step before had failed.
    /// Each gets a token that nobody will see, because its sequence is given up before the step
    /// settles.
    pub(crate) fn read(
        &mut self,
        completion: &mut Completion,
        result: &mut StepResult,
        vectors: &mut Vec<(SequenceId, Box<[f32]>)>,
        broken: &mut Vec<(SequenceId, Broken)>,
    ) {
        let StepRows { step, rows } =
            self.in_flight.pop_front().expect("invariant: steps complete in order");
        assert_eq!(step.0, completion.inputs.step, "steps complete in order");
        result.step = step;
        result.samples.clear();
        broken.clear();
        vectors.clear();
        let sampled = rows.iter().filter(|row| row.sample_index.is_some());
        let (inputs, outputs) = (&completion.inputs, &mut completion.outputs);
        match &completion.result {
            Ok(()) => {
                read_left_out(&rows, &inputs.rows, broken);
                read_vectors(&rows, &outputs.vectors, vectors, broken);
                let mut samples = outputs.samples.drain(..).peekable();
                for row in sampled {
                    let of_row = |sample: &SampleOutput| sample.slot == row.slot.0;
                    let own = std::iter::from_fn(|| samples.next_if(of_row));
                    read_row(row.sequence, own, result, broken);
                }
                assert!(samples.next().is_none(), "samples come in row order");
            }
            Err(fault) => {
                result.samples.extend(sampled.map(|row| given_up(row.sequence)));
                broken.extend(
                    rows.iter().map(|row| (row.sequence, Broken::Fault(Fault(fault.0.clone())))),
                );
            }
        }
        self.free.push(rows);
    }
}

/// The sequences of planned rows that the device left out.
fn read_left_out(
    planned: &[PlanRow],
    computed: &[RowInput],
    broken: &mut Vec<(SequenceId, Broken)>,
) {
    let mut computed = computed.iter().peekable();
    for row in planned {
        if computed.next_if(|own| own.slot == row.slot.0).is_none() {
            let text = "a step before this one failed";
            broken.push((row.sequence, Broken::Fault(Fault(text.to_owned()))));
        }
    }
}

fn has(broken: &[(SequenceId, Broken)], sequence: SequenceId) -> bool {
    broken.iter().any(|(id, _)| *id == sequence)
}

/// The vectors of the texts that ended, of a model that gives any.
fn read_vectors(
    rows: &[PlanRow],
    values: &[f32],
    vectors: &mut Vec<(SequenceId, Box<[f32]>)>,
    broken: &mut Vec<(SequenceId, Broken)>,
) {
    if values.is_empty() {
        return;
    }
    let ends = |row: &&PlanRow| row.sample_index.is_some() && !has(broken, row.sequence);
    let ended: Vec<&PlanRow> = rows.iter().filter(ends).collect();
    let width = values.len() / ended.len().max(1);
    for (row, vector) in ended.iter().zip(values.chunks_exact(width)) {
        if vector.iter().all(|value| value.is_finite()) {
            vectors.push((row.sequence, vector.into()));
        } else {
            let text = "the model gave a vector of values that are not numbers";
            broken.push((row.sequence, Broken::Fault(Fault(text.to_owned()))));
        }
    }
}

/// The samples of one row, or a token for the sequence that one of them breaks.
fn read_row(
    sequence: SequenceId,
    samples: impl Iterator<Item = SampleOutput>,
    result: &mut StepResult,
    broken: &mut Vec<(SequenceId, Broken)>,
) {
    let first = result.samples.len();
    for sample in samples {
        match sample.sampled {
            Ok(sampled) => result.samples.push(sampled_token(sequence, sampled)),
            Err(error) if !has(broken, sequence) => {
                broken.push((sequence, Broken::of(&error)));
            }
            Err(_) => {}
        }
    }
    if has(broken, sequence) {
        result.samples.truncate(first);
        result.samples.push(given_up(sequence));
    }
}

fn sampled_token(sequence: SequenceId, sampled: Sampled) -> SampledToken {
    let logprob = |logprob: Logprob| TokenLogprob { logprob: logprob.chosen, top: logprob.top };
    SampledToken { sequence, token: sampled.token, logprob: sampled.logprob.map(logprob) }
}

impl Broken {
    fn of(error: &SampleError) -> Self {
        let text = error.to_string();
        match error {
            SampleError::NotFinite => Self::Fault(Fault(text)),
            SampleError::Constraint(_) => Self::Refusal(Refusal::new(RefusalKind::Invalid, text)),
        }
    }
}

fn given_up(sequence: SequenceId) -> SampledToken {
    SampledToken { sequence, token: 0, logprob: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(errors: Vec<SampleError>) -> Vec<(SequenceId, Broken)> {
        let mut result = StepResult { step: StepIndex(0), samples: Vec::new() };
        let mut broken = Vec::new();
        let output = |error| SampleOutput { slot: 3, sampled: Err(error) };
        read_row(SequenceId(7), errors.into_iter().map(output), &mut result, &mut broken);
        assert_eq!(result.samples.len(), 1, "the scheduler hears of a token all the same");
        broken
    }

    #[test]
    fn a_constraint_that_takes_too_much_is_the_callers_fault() {
        let constraint = || SampleError::Constraint("too many states".to_owned());
        let broken = read(vec![constraint(), SampleError::NotFinite]);
        let [(SequenceId(7), Broken::Refusal(refusal))] = &broken[..] else { panic!("a refusal") };
        assert_eq!(refusal.kind, RefusalKind::Invalid);
        assert!(refusal.message.ends_with("too many states"), "{refusal}");
        let broken = read(vec![SampleError::NotFinite, constraint()]);
        assert!(matches!(broken[..], [(_, Broken::Fault(_))]), "the first counts");
    }
}
