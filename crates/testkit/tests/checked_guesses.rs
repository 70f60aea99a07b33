//! Does a row with guesses give the tokens that decoding one by one gives?
//!
//! Bit for bit, log-probabilities included, on every backend: greedy, drawn, and with penalties
//! that make each token depend on all before it.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cpu::CpuBackend;
use backend_reference::ReferenceBackend;
use device::{
    Backend, Capacity, Program, RowInput, SlotReset, StepInputs, StepOutputs, TokenInput,
};
use models::LoadSettings;
use ops::sample_rows::{SampleParams, Sampled};
use testkit::StoredTensors;

const CAPACITY: Capacity = Capacity {
    step_tokens_max: 40,
    slots: 2,
    proposed_tokens_max: 8,
    block_count: 4,
    block_tokens: 16,
    states: 0,
};
const ANSWER: usize = 24;
const PROMPT: [u32; 5] = [7, 3, 11, 7, 3];

fn load(backend: &dyn Backend) -> Box<dyn Program> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/tiny_llama/plain_q4_k.gguf");
    let file = weights::open(path).unwrap();
    let spec = models::read_spec(&file, &LoadSettings::default()).unwrap();
    let tape = models::lower(&spec).unwrap();
    backend.load(tape, &StoredTensors(&file), CAPACITY).unwrap()
}

/// Generates an answer in slot 0; `guess(told)` is checked after the tokens told so far.
fn generate(
    program: &mut dyn Program,
    params: &SampleParams,
    mut guess: impl FnMut(usize) -> Vec<u32>,
) -> Vec<Sampled> {
    let mut text = PROMPT.to_vec();
    let mut told: Vec<Sampled> = Vec::new();
    let mut outputs = StepOutputs::default();
    let mut computed = 0;
    while told.len() < ANSWER {
        let mut inputs = StepInputs::default();
        if told.is_empty() {
            let (params, prompt, generated) = (params.clone(), PROMPT.to_vec(), Vec::new());
            inputs.resets.push(SlotReset { slot: 0, params, prompt, generated, adapter: None });
        }
        let guesses = guess(told.len());
        let row = text[computed..].iter().chain(&guesses).map(|&token| TokenInput::Known(token));
        inputs.tokens.extend(row);
        inputs.blocks.extend((0..CAPACITY.block_count).rev());
        inputs.rows.push(RowInput {
            slot: 0,
            start: computed as u32,
            length: inputs.tokens.len() as u32,
            blocks_start: 0,
            blocks_count: CAPACITY.block_count,
            sample_index: Some(told.len() as u32),
            proposed: guesses.len() as u32,
        });
        // A neighbour whose rows of logits lie behind.
        inputs.blocks.extend(0..1);
        let (params, prompt, generated) = (SampleParams::default(), vec![1], Vec::new());
        inputs.resets.push(SlotReset { slot: 1, params, prompt, generated, adapter: None });
        inputs.tokens.push(TokenInput::Known(1));
        inputs.rows.push(RowInput {
            slot: 1,
            start: 0,
            length: 1,
            blocks_start: CAPACITY.block_count,
            blocks_count: 1,
            sample_index: Some(0),
            proposed: 0,
        });
        program.run(&inputs, &mut outputs).unwrap();
        let neighbours = outputs.samples.pop().unwrap();
        assert_eq!(neighbours.slot, 1);
        assert!(outputs.samples.iter().all(|sample| sample.slot == 0));
        computed = text.len() + outputs.samples.len() - 1;
        for sample in outputs.samples.drain(..) {
            let sampled = sample.sampled.unwrap();
            text.push(sampled.token);
            told.push(sampled);
        }
    }
    told.truncate(ANSWER);
    told
}

fn params() -> Vec<SampleParams> {
    let greedy = SampleParams { logprobs: Some(2), ..SampleParams::default() };
    let drawn = SampleParams { temperature: 1.3, top_p: 0.95, seed: 5, ..greedy.clone() };
    let penalized = SampleParams {
        repetition_penalty: 1.2,
        frequency_penalty: 0.7,
        presence_penalty: 0.3,
        banned: vec![3],
        banned_until: 9,
        ..drawn.clone()
    };
    vec![greedy, drawn, penalized]
}

#[test]
fn guesses_change_nothing() {
    let backends: [Box<dyn Backend>; 2] =
        [Box::new(ReferenceBackend), Box::new(CpuBackend::open(Some(2), None).unwrap())];
    for backend in &backends {
        let mut program = load(backend.as_ref());
        for params in params() {
            let alone = generate(program.as_mut(), &params, |_| Vec::new());
            let tokens: Vec<u32> = alone.iter().map(|sampled| sampled.token).collect();
            for wrong in [1, 2, 3, 5, 100] {
                // Every `wrong`th token of the answer is guessed wrongly.
                let mut steps = 0;
                let guessed = generate(program.as_mut(), &params, |told| {
                    steps += 1;
                    let next = (told..ANSWER).take(steps % 9);
                    next.map(|place| tokens[place] ^ u32::from(place % wrong == 0)).collect()
                });
                assert_eq!(guessed, alone, "{} {params:?} {wrong}", backend.name());
                assert_eq!(steps < ANSWER, wrong > 1, "right guesses save steps");
            }
        }
    }
}
