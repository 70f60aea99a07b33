//! What does a backend say at every position of a text? Logits, without engine or scheduler.

use anyhow::Result;
use device::{
    Backend, Capacity, Program, RowInput, SlotReset, StepInputs, StepOutputs, Tape, TokenInput,
};
use models::LoadSettings;
use ops::Op;
use ops::sample_rows::SampleParams;
use weights::WeightFile;

use crate::StoredTensors;

const BLOCK_TOKENS: u32 = 32;

/// A model on a backend, for texts of a bounded length.
pub struct Evaluation {
    program: Box<dyn Program>,
    pub vocabulary: usize,
    step_tokens: u32,
    context: u32,
    /// Whether positions can be read only in turn, by one slot.
    carries: bool,
}

/// Loads a model so that texts of `context` tokens can be evaluated, `step_tokens` at a time.
///
/// # Errors
/// Whatever refuses the model.
pub fn load(
    file: &WeightFile,
    backend: &dyn Backend,
    context: u32,
    step_tokens: u32,
) -> Result<Evaluation> {
    let spec = models::read_spec(file, &LoadSettings::default())?;
    load_tape(models::lower(&spec)?, file, backend, context, step_tokens)
}

/// The same for the stream behind the first `layers` layers: its values come as logits would, and
/// ids of texts must be below the width.
///
/// # Errors
/// As [`load`].
pub fn load_stream(
    file: &WeightFile,
    backend: &dyn Backend,
    layers: u32,
    context: u32,
    step_tokens: u32,
) -> Result<Evaluation> {
    let mut spec = models::read_spec(file, &LoadSettings::default())?;
    spec.dims.layers = layers;
    spec.layers.truncate(layers as usize);
    let mut tape = models::lower(&spec)?;
    let is_head = |op: &Op| matches!(op, Op::SelectRows { .. });
    let head = tape.ops.iter().position(is_head).expect("invariant: a tape ends in a head");
    let Op::SelectRows { output, .. } = tape.ops[head] else { unreachable!("just found") };
    tape.ops.truncate(head + 1);
    tape.ops.push(Op::SampleRows { logits: output });
    tape.vocabulary = spec.dims.width;
    load_tape(tape, file, backend, context, step_tokens)
}

/// The same for any tape, with a file's weights.
///
/// # Errors
/// Whatever refuses it.
pub fn load_tape(
    tape: Tape,
    file: &WeightFile,
    backend: &dyn Backend,
    context: u32,
    step_tokens: u32,
) -> Result<Evaluation> {
    let (vocabulary, carries) = (tape.vocabulary as usize, !tape.state.is_empty());
    let block_count = context.div_ceil(BLOCK_TOKENS);
    let capacity = Capacity {
        step_tokens_max: step_tokens,
        slots: step_tokens,
        proposed_tokens_max: if carries { step_tokens } else { 0 },
        block_count,
        block_tokens: BLOCK_TOKENS,
        states: 0,
    };
    let program = backend.load(tape, &StoredTensors(file), capacity)?;
    Ok(Evaluation { program, vocabulary, step_tokens, context, carries })
}

impl Evaluation {
    /// Calls `read(position, logits)` for every position of `ids`, in order.
    ///
    /// A step holds many one-token rows of the same sequence, each sampled, so that a step gives
    /// logits at all its positions and still attends as one chunk of a prompt does. Of a model that
    /// carries a state a step is one row whose tokens but the first are guesses, which are sampled
    /// after, too; the next step tells that they were right.
    ///
    /// # Errors
    /// The device's fault.
    pub fn each(&mut self, ids: &[u32], mut read: impl FnMut(usize, &[f32])) -> Result<()> {
        assert!(ids.len() <= self.context as usize, "the text is longer than the context");
        let blocks: Vec<u32> = (0..self.context.div_ceil(BLOCK_TOKENS)).collect();
        let mut outputs = StepOutputs::default();
        for (step, chunk) in ids.chunks(self.step_tokens as usize).enumerate() {
            let start = step * self.step_tokens as usize;
            let mut inputs = StepInputs { keep_logits: true, ..StepInputs::default() };
            inputs.tokens.extend(chunk.iter().map(|&token| TokenInput::Known(token)));
            if self.carries {
                self.one_row(start as u32, chunk.len() as u32, &blocks, &mut inputs);
            }
            let slots = if self.carries { 0 } else { chunk.len() as u32 };
            for slot in 0..slots {
                let params = SampleParams::default();
                let (prompt, generated) = (Vec::new(), Vec::new());
                inputs.resets.push(SlotReset { slot, params, prompt, generated, adapter: None });
                inputs.rows.push(RowInput {
                    slot,
                    start: start as u32 + slot,
                    length: 1,
                    blocks_start: inputs.blocks.len() as u32,
                    blocks_count: blocks.len() as u32,
                    sample_index: Some(0),
                    proposed: 0,
                });
                inputs.blocks.extend_from_slice(&blocks);
            }
            self.program.run(&inputs, &mut outputs)?;
            for (row, logits) in outputs.logits.chunks_exact(self.vocabulary).enumerate() {
                read(start + row, logits);
            }
        }
        Ok(())
    }

    fn one_row(&self, start: u32, length: u32, blocks: &[u32], inputs: &mut StepInputs) {
        if start == 0 {
            let (params, prompt, generated) = (SampleParams::default(), Vec::new(), Vec::new());
            inputs.resets.push(SlotReset { slot: 0, params, prompt, generated, adapter: None });
        }
        inputs.rows.push(RowInput {
            slot: 0,
            start,
            length,
            blocks_start: 0,
            blocks_count: blocks.len() as u32,
            sample_index: Some(0),
            proposed: length - 1,
        });
        inputs.blocks.extend_from_slice(blocks);
    }
}
