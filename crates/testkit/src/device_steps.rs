//! Which steps must a device get right? Prompts cut in several ways, decodes among them, guesses.

use device::{Capacity, Program, RowInput, SlotReset, StepInputs, StepOutputs, TokenInput};
use ops::sample_rows::SampleParams;

use crate::device_cases::VOCABULARY;

/// What the steps need.
pub const CAPACITY: Capacity = Capacity {
    step_tokens_max: 300,
    slots: 80,
    proposed_tokens_max: 8,
    block_count: 96,
    block_tokens: 32,
    states: 0,
};

/// Rows of a step: (slot, start, length, sampled and with how many guesses). Its blocks are
/// scattered over the pool by its slot; its token at a position is always the same.
pub fn step(rows: &[(u32, u32, u32, Option<u32>)], resets: &[u32]) -> StepInputs {
    let mut inputs = StepInputs { keep_logits: true, ..StepInputs::default() };
    for &slot in resets {
        let params = SampleParams::default();
        inputs.resets.push(SlotReset {
            slot,
            params,
            prompt: vec![],
            generated: vec![],
            adapter: None,
        });
    }
    for &(slot, start, length, sampled) in rows {
        let blocks_count = (start + length).div_ceil(32);
        inputs.rows.push(RowInput {
            slot,
            start,
            length,
            blocks_start: inputs.blocks.len() as u32,
            blocks_count,
            sample_index: sampled.map(|_| 0),
            proposed: sampled.unwrap_or(0),
        });
        let block =
            |index: u32| if slot < 4 { (slot + 4 * index + 5) % 40 } else { 40 + slot % 56 };
        inputs.blocks.extend((0..blocks_count).map(block));
        let token = |position: u32| (slot * 31 + position * 7 + position * position) % VOCABULARY;
        inputs.tokens.extend((start..start + length).map(|p| TokenInput::Known(token(p))));
    }
    inputs
}

/// Prompts cut in several ways, decodes among them, and a step of many rows.
pub fn schedule() -> Vec<StepInputs> {
    vec![
        step(&[(0, 0, 150, Some(0)), (1, 0, 3, Some(0)), (2, 0, 70, None)], &[0, 1, 2]),
        step(&[(0, 150, 1, Some(0)), (2, 70, 33, Some(3)), (1, 3, 2, Some(1))], &[]),
        step(&[(1, 5, 1, Some(0))], &[]),
        step(&[(2, 103, 130, Some(0))], &[]),
        step(
            &(4..44).map(|slot| (slot, 0, 1, Some(0))).collect::<Vec<_>>(),
            &(4..44).collect::<Vec<_>>(),
        ),
        step(&(4..20).map(|slot| (slot, 1, 1, Some(0))).collect::<Vec<_>>(), &[]),
        step(&[(0, 151, 9, Some(2)), (2, 233, 1, Some(0))], &[]),
    ]
}

/// The logits of each step.
///
/// # Panics
/// When the device fails.
pub fn run(program: &mut dyn Program, steps: &[StepInputs]) -> Vec<Vec<f32>> {
    let mut outputs = StepOutputs::default();
    steps
        .iter()
        .map(|inputs| {
            program.run(inputs, &mut outputs).expect("the device runs the step");
            outputs.logits.clone()
        })
        .collect()
}

/// Largest difference, relative to the largest logit.
///
/// # Panics
/// When there are not as many of both.
pub fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |most, value| most.max(value.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    worst.fold(0.0, |most, d| if d.is_nan() { f32::NAN } else { f32::max(most, d) }) / largest
}
