//! Does the device say what the references say, and the same bits however a step is made up?
//!
//! Whole tapes of one or two layers, over ragged shapes and all weight formats, against
//! `backend-reference`. On a machine without a CUDA device each test says so and passes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use device::{Backend, Capacity, SlotReset, StepInputs, StepOutputs, TokenInput};
use ops::constraint::{Grammar, Matcher, SharedGrammar};
use ops::kv_format::KvFormat;
use ops::quant_format::QuantFormat;
use ops::sample_rows::{SampleError, SampleParams, Scratch, Slot};
use testkit::device_cases::{Model, PLAIN, VOCABULARY, mixtures, models, tape};
use testkit::device_conformance::far_from;
use testkit::device_steps::{CAPACITY, run, step};
use testkit::device_tensors::Tensors;

fn cuda() -> Option<CudaBackend> {
    match CudaBackend::open(0) {
        Ok(backend) => Some(backend),
        Err(error) => {
            eprintln!("skipped: no CUDA device ({error})");
            None
        }
    }
}

/// Inputs of products, keys and values have 11 bits: an error of 2^-12 each, which two layers of
/// random weights carry through some ten roundings. Scales of K-quants add as much again.
const BOUND: f32 = 6e-3;

/// Nor is a value kept in one form and read in another; needs no device.
#[test]
fn there_are_kernels_for_every_format_and_shape() {
    for (name, model) in models() {
        let tape = tape(&model);
        let checked = CudaBackend::check(&tape, &Tensors::of(&model, &tape));
        assert_eq!(checked.map_err(|error| error.to_string()), Ok(()), "{name}");
    }
}

#[test]
fn every_format_and_shape_is_near_the_reference() {
    let Some(backend) = cuda() else { return };
    let failed = far_from(&ReferenceBackend, &backend, models(), BOUND);
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn a_row_has_the_same_bits_however_steps_are_cut() {
    let Some(backend) = cuda() else { return };
    let mut failed = Vec::new();
    let head_128 = models().into_iter().find(|(name, _)| name == "heads of 128").unwrap().1;
    let of = |format| Model { format, other: format, ..PLAIN };
    let mixtures = mixtures().into_iter().map(|(_, model)| model);
    let plain =
        [PLAIN, of(QuantFormat::Q4K), of(QuantFormat::Q6K), of(QuantFormat::Q8_0), head_128];
    // Products of so many rows take other kernels.
    let many_rows = Model { inner: 8224, ..PLAIN };
    for model in plain.into_iter().chain(mixtures).chain([many_rows]) {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        // One sequence of 240 tokens, sampled at its last: at once, in parts, and token by token,
        // alone and beside others.
        let beside: Vec<_> = (4..44).map(|slot| (slot, 0, 1, Some(0))).collect();
        let all: Vec<u32> = (0..44).collect();
        let last_alone = (0, 239, 1, Some(0));
        let mut with_others = vec![last_alone];
        with_others.extend(&beside);
        let parts = |cuts: &[u32]| -> Vec<StepInputs> {
            cuts.windows(2)
                .map(|cut| step(&[(0, cut[0], cut[1] - cut[0], Some(0))], &[0]))
                .collect()
        };
        let single: Vec<u32> = (0..=240).collect();
        let mut beside_others = parts(&[0, 130, 239]);
        beside_others.push(step(&with_others, &all));
        let ways = [
            parts(&[0, 240]),
            parts(&[0, 100, 239, 240]),
            parts(&[0, 7, 20, 50, 114, 200, 240]),
            parts(&single),
            beside_others,
        ];
        let mut answers = Vec::new();
        for way in ways {
            let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
            let logits = run(program.as_mut(), &way).pop().unwrap();
            let row = if logits.len() > VOCABULARY as usize
                && way.len() > 1
                && way.last().unwrap().rows.len() > 1
            {
                &logits[..VOCABULARY as usize]
            } else {
                &logits[logits.len() - VOCABULARY as usize..]
            };
            answers.push(row.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        }
        for (way, answer) in answers.iter().enumerate() {
            if *answer != answers[0] {
                let count = answer.iter().zip(&answers[0]).filter(|(a, b)| a != b).count();
                failed.push(format!("{} way {way}: {count} logits differ", model.format));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

/// A code is off by up to half a 127th of its vector's largest element, 4e-3 of it: two layers of
/// random weights carry that through (measured: 4.4e-2 at most).
const BOUND_8_BITS: f32 = 6e-2;

#[test]
fn keys_and_values_in_8_bits_are_near_the_reference() {
    let Some(backend) = cuda() else { return };
    let backend = backend.with_kv_format(KvFormat::Int8).unwrap();
    let is_of_formats = |name: &str| {
        name.starts_with("MLX") || QuantFormat::ALL.iter().any(|format| format.name() == name)
    };
    // Experts would be others by such differences.
    let shapes = models()
        .into_iter()
        .filter(|(name, model)| !is_of_formats(name) && model.scoring().is_none());
    let failed = far_from(&ReferenceBackend, &backend, shapes, BOUND_8_BITS);
    assert_eq!(failed, Vec::<String>::new());
    let refused = cuda().unwrap().with_kv_format(KvFormat::Int16).err().unwrap().to_string();
    assert!(refused.contains("kv_dtype is int16"), "{refused}");
}

#[test]
fn rows_of_8_bits_have_the_same_bits_however_steps_are_cut() {
    let Some(backend) = cuda() else { return };
    let backend = backend.with_kv_format(KvFormat::Int8).unwrap();
    // In stages and without, with a kernel for prompts and without.
    let names = ["Q4_0", "heads of 80", "heads of 128", "heads of 256", "window", "sinks"];
    for (name, model) in models().into_iter().filter(|(name, _)| names.contains(&&**name)) {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        let mut answers = Vec::new();
        for cuts in [&[0, 240][..], &[0, 100, 239, 240], &[0, 7, 20, 50, 114, 200, 240]] {
            let mut program = backend.load(tape.clone(), &tensors, CAPACITY).unwrap();
            let steps: Vec<StepInputs> = cuts
                .windows(2)
                .map(|cut| step(&[(0, cut[0], cut[1] - cut[0], Some(0))], &[0]))
                .collect();
            let logits = run(program.as_mut(), &steps).pop().unwrap();
            answers.push(logits.iter().map(|value| value.to_bits()).collect::<Vec<_>>());
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{name}");
    }
}

/// A prompt as rows of one token each, in one step: each attends to what the others write in it.
#[test]
fn rows_of_one_sequence_may_share_a_step() {
    let Some(backend) = cuda() else { return };
    let capacity = Capacity { slots: 200, ..CAPACITY };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape, &tensors, capacity).unwrap();
    for length in [64u32, 128, 200] {
        let blocks: Vec<u32> = (0..length.div_ceil(32)).collect();
        let rows: Vec<_> = (0..length).map(|position| (position, position, 1, Some(0))).collect();
        let mut inputs = step(&rows, &(0..length).collect::<Vec<_>>());
        inputs.blocks.clear();
        for row in &mut inputs.rows {
            row.blocks_start = inputs.blocks.len() as u32;
            inputs.blocks.extend(&blocks[..row.blocks_count as usize]);
        }
        // The same tokens as the prompt of slot 0, whose keys and values others' take the place of.
        inputs.tokens = part_of_prompt(0, length).tokens;
        let other = |salt: u32| {
            let mut inputs = part_of_prompt(0, length);
            let token = |at: u32| TokenInput::Known((at * salt + 11) % VOCABULARY);
            inputs.tokens = (0..length).map(token).collect();
            inputs
        };
        let last = |logits: Vec<f32>| -> Vec<u32> {
            let start = logits.len() - VOCABULARY as usize;
            logits[start..].iter().map(|value| value.to_bits()).collect()
        };
        let whole = run(program.as_mut(), &[part_of_prompt(0, length)]).pop().unwrap();
        let whole = last(whole);
        for repeat in 0..20 {
            run(program.as_mut(), &[other(3 + repeat)]);
            let logits = run(program.as_mut(), std::slice::from_ref(&inputs)).pop().unwrap();
            assert_eq!(last(logits), whole, "{length} rows, time {repeat}");
        }
    }
}

/// One sequence from `start` on, in blocks in their order; sampled at its end.
fn part_of_prompt(start: u32, length: u32) -> StepInputs {
    let mut inputs = step(&[(0, start, length, Some(0))], if start == 0 { &[0] } else { &[] });
    inputs.blocks = (0..(start + length).div_ceil(32)).collect();
    inputs
}

/// A prompt long enough for the products of many tokens, whole and in parts.
#[test]
fn long_prompts_have_the_same_bits_however_they_are_cut() {
    let Some(backend) = cuda() else { return };
    let capacity = Capacity { step_tokens_max: 700, ..CAPACITY };
    let mut failed = Vec::new();
    let mut models = mixtures();
    models.push(("dense".to_owned(), PLAIN));
    for format in
        [QuantFormat::Q4_0, QuantFormat::Q4K, QuantFormat::Q6K, QuantFormat::Q8_0, QuantFormat::F16]
    {
        let of = Model { format, other: format, ..PLAIN };
        // As many rows as products of the most tokens at once are chosen for: sums that are
        // gated and stored, and those that are added.
        models.push((format!("long {}", format.name()), Model { inner: 8448, heads: 56, ..of }));
        models.push((format!("wide {}", format.name()), Model { width: 4096, inner: 256, ..of }));
    }
    for (name, model) in models {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        let mut program = backend.load(tape, &tensors, capacity).unwrap();
        let mut answer = |cuts: &[u32]| {
            let parts: Vec<StepInputs> =
                cuts.windows(2).map(|cut| part_of_prompt(cut[0], cut[1] - cut[0])).collect();
            let logits = run(program.as_mut(), &parts).pop().unwrap();
            logits.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let whole = answer(&[0, 700]);
        for cuts in [&[0, 600, 700][..], &[0, 64, 400, 699, 700], &[0, 513, 521, 700]] {
            if answer(cuts) != whole {
                failed.push(format!("{name}, cut at {cuts:?}"));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

fn params() -> Vec<SampleParams> {
    let base = SampleParams { temperature: 0.9, seed: 5, ..SampleParams::default() };
    vec![
        SampleParams::default(),
        base.clone(),
        SampleParams { temperature: 1.7, seed: 99, ..base.clone() },
        SampleParams { top_k: 7, ..base.clone() },
        SampleParams { top_p: 0.8, ..base.clone() },
        SampleParams { top_k: 40, top_p: 0.6, min_p: 0.05, ..base.clone() },
        SampleParams { min_p: 0.2, ..base.clone() },
        SampleParams {
            repetition_penalty: 1.3,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            ..base.clone()
        },
        SampleParams {
            bias: vec![(3, 4.0), (9, -50.0)],
            banned: vec![1, 2, 3],
            banned_until: 4,
            ..base.clone()
        },
        SampleParams { logprobs: Some(5), ..base.clone() },
        SampleParams {
            logprobs: Some(20),
            repetition_penalty: 1.2,
            temperature: 0.0,
            ..base.clone()
        },
        SampleParams { top_k: 1, logprobs: Some(0), ..base.clone() },
        SampleParams { grammar: Some(sevenths()), ..base.clone() },
        SampleParams { grammar: Some(sevenths()), logprobs: Some(3), top_p: 0.9, ..base },
    ]
}

/// Allows every seventh token, from the remainder of the sum of all before on.
struct Sevenths(u32, Vec<u32>);

impl Grammar for Sevenths {
    fn matcher(&self) -> Box<dyn Matcher> {
        Box::new(Sevenths(self.0, Vec::new()))
    }
}

impl Matcher for Sevenths {
    fn allowed(&mut self) -> Result<&[u32], String> {
        if self.0 > 1_000_000 {
            return Err("the sum is too large".to_owned());
        }
        // Tokens beyond the words may not come: the last of the vocabulary has none.
        self.1 = vec![0; VOCABULARY as usize / 32];
        for token in (self.0 % 7..VOCABULARY / 32 * 32).step_by(7) {
            self.1[token as usize / 32] |= 1 << (token % 32);
        }
        Ok(&self.1)
    }

    fn advance(&mut self, token: u32) {
        self.0 += token;
    }
}

fn sevenths() -> SharedGrammar {
    SharedGrammar(Arc::new(Sevenths(0, Vec::new())))
}

/// Under a grammar as free: guesses are checked until one is wrong, with what the grammar allows
/// behind each; what it cannot say ends the row.
#[test]
fn guesses_are_checked_under_a_grammar() {
    let Some(backend) = cuda() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let mut ask = |proposals: &[u32], sum: u32| {
        let mut outputs = StepOutputs::default();
        let count = proposals.len() as u32;
        // Beside a free row, that goes on as ever.
        let mut inputs = step(&[(0, 0, 1 + count, Some(count)), (1, 0, 1, Some(0))], &[0, 1]);
        inputs.keep_logits = false;
        let grammar = SharedGrammar(Arc::new(Sevenths(sum, Vec::new())));
        inputs.resets[0].params.grammar = Some(grammar);
        let tokens = std::iter::once(17).chain(proposals.iter().copied()).chain([3]);
        inputs.tokens = tokens.map(TokenInput::Known).collect();
        program.run(&inputs, &mut outputs).unwrap();
        let (free, held): (Vec<_>, Vec<_>) = outputs.samples.iter().partition(|s| s.slot == 1);
        assert_eq!(free.len(), 1);
        held.iter().map(|sample| sample.sampled.clone().map(|s| s.token)).collect::<Vec<_>>()
    };
    let mut truth: Vec<u32> = Vec::new();
    for _ in 0..4 {
        // All that is known is guessed, and one more is said.
        let said: Vec<u32> = ask(&truth, 0).into_iter().map(Result::unwrap).collect();
        assert_eq!(said[..truth.len()], truth);
        assert_eq!(said.len(), truth.len() + 1);
        truth = said;
    }
    let mut sum = 0;
    for token in &truth {
        assert_eq!(token % 7, sum % 7, "the grammar allows {truth:?}");
        sum += token;
    }
    let wrong = (truth[1] + 7) % 320;
    let said = ask(&[truth[0], wrong, truth[2]], 0);
    assert_eq!(said, [Ok(truth[0]), Ok(truth[1])]);
    assert!(matches!(ask(&[], 2_000_000)[..], [Err(SampleError::Constraint(_))]));
}

/// What is sampled on the device is what the reference samples from the device's own logits.
#[test]
fn samples_are_those_of_the_reference() {
    let Some(backend) = cuda() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let params = params();
    let count = params.len() as u32;
    let mut slots: Vec<Slot> =
        params.iter().map(|p| Slot::new(p.clone(), &[5, 9, 9, 200], &[7, 5])).collect();
    let (mut outputs, mut plain) = (StepOutputs::default(), StepOutputs::default());
    let mut drawn = 0;
    for position in 0..30u32 {
        let rows: Vec<_> = (0..count).map(|slot| (4 + slot, position, 1, Some(0))).collect();
        let mut inputs = step(&rows, &[]);
        for (index, row) in inputs.rows.iter_mut().enumerate() {
            row.sample_index = Some(2 + position);
            if position > 0 {
                inputs.tokens[index] = TokenInput::Slot(row.slot);
            }
        }
        if position == 0 {
            for (slot, params) in (0..).zip(&params) {
                inputs.resets.push(SlotReset {
                    slot: 4 + slot,
                    params: params.clone(),
                    prompt: vec![5, 9, 9, 200],
                    generated: vec![7, 5],
                    adapter: None,
                });
            }
        }
        program.run(&inputs, &mut outputs).unwrap();
        for (index, slot) in slots.iter_mut().enumerate() {
            let mut logits =
                outputs.logits[index * VOCABULARY as usize..][..VOCABULARY as usize].to_vec();
            let want = ops::sample_rows::reference(
                slot,
                2 + position,
                &mut logits,
                &mut Scratch::default(),
            )
            .unwrap();
            let got = outputs.samples[index].sampled.clone().unwrap();
            assert_eq!(got.token, want.token, "params {index} at {position}");
            assert_eq!(got.logprob.is_some(), want.logprob.is_some(), "params {index}");
            if let (Some(got), Some(want)) = (got.logprob, want.logprob) {
                assert!((got.chosen - want.chosen).abs() < 1e-4, "{got:?} for {want:?}");
                let ids = |top: &[(u32, f32)]| top.iter().map(|entry| entry.0).collect::<Vec<_>>();
                assert_eq!(ids(&got.top), ids(&want.top), "params {index} at {position}");
            }
            slot.observe(want.token);
            drawn += 1;
        }
    }
    assert_eq!(drawn, 30 * count);
    // A recorded step samples as one that was launched op by op does.
    let mut inputs = step(&[(0, 0, 5, Some(0))], &[0]);
    program.run(&inputs, &mut outputs).unwrap();
    inputs.keep_logits = false;
    program.run(&inputs, &mut plain).unwrap();
    assert_eq!(outputs.samples, plain.samples);
}

#[test]
fn guesses_are_checked_until_one_is_wrong() {
    let Some(backend) = cuda() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let mut outputs = StepOutputs::default();
    let mut ask = |proposals: &[u32], start: u32, first: u32| {
        let mut inputs =
            step(&[(0, start, 1 + proposals.len() as u32, Some(proposals.len() as u32))], &[0]);
        inputs.keep_logits = false;
        inputs.tokens = std::iter::once(first)
            .chain(proposals.iter().copied())
            .map(TokenInput::Known)
            .collect();
        program.run(&inputs, &mut outputs).unwrap();
        outputs
            .samples
            .iter()
            .map(|sample| sample.sampled.clone().unwrap().token)
            .collect::<Vec<_>>()
    };
    let mut truth = vec![17];
    for position in 0..4 {
        let next = ask(&[], position, truth[position as usize]);
        truth.push(next[0]);
    }
    assert_eq!(ask(&truth[1..4], 0, 17), truth[1..5]);
    let wrong = (truth[2] + 1) % VOCABULARY;
    assert_eq!(ask(&[truth[1], wrong, truth[3]], 0, 17), truth[1..3]);
}

#[test]
fn blocks_go_out_and_come_back() {
    let Some(backend) = cuda() else { return };
    let tape = tape(&PLAIN);
    let tensors = Tensors::of(&PLAIN, &tape);
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let form = program.block_form();
    let prompt = || step(&[(0, 0, 40, Some(0))], &[0]);
    let decode = || step(&[(0, 40, 1, Some(0))], &[]);
    let first = run(program.as_mut(), &[prompt(), decode()]);
    run(program.as_mut(), &[prompt()]);
    let mut kept = Vec::new();
    for &block in &decode().blocks {
        let mut bytes = vec![0; form.bytes];
        program.read_block(block, &mut bytes);
        program.write_block(block, &vec![0; form.bytes]);
        kept.push((block, bytes));
    }
    kept.iter().for_each(|(block, bytes)| program.write_block(*block, bytes));
    assert_eq!(run(program.as_mut(), &[decode()])[0], first[1]);
}

#[test]
fn what_is_no_number_stays_in_its_sequence() {
    let Some(backend) = cuda() else { return };
    let tape = tape(&PLAIN);
    let mut tensors = Tensors::of(&PLAIN, &tape);
    // Token 300's embedding is broken: its block's scale is no number.
    let embedding = tensors.0.iter_mut().find(|tensor| tensor.0 == "embedding").unwrap();
    let row_bytes = embedding.4.len() / VOCABULARY as usize;
    embedding.4[300 * row_bytes..][..2].copy_from_slice(&0x7e00u16.to_le_bytes());
    let mut program = backend.load(tape, &tensors, CAPACITY).unwrap();
    let mut outputs = StepOutputs::default();
    let mut inputs = step(&[(0, 0, 20, Some(0)), (1, 0, 20, Some(0))], &[0, 1]);
    inputs.tokens.iter_mut().for_each(|token| *token = TokenInput::Known(3));
    inputs.tokens[25] = TokenInput::Known(300);
    program.run(&inputs, &mut outputs).unwrap();
    let rows: Vec<&[f32]> = outputs.logits.chunks_exact(VOCABULARY as usize).collect();
    // The head is the embedding: its broken row breaks one logit of everybody, and no other.
    let broken = |row: &[f32]| row.iter().filter(|value| value.is_nan()).count();
    assert_eq!((broken(rows[0]), broken(rows[1])), (1, VOCABULARY as usize));
    assert!(outputs.samples.iter().all(|sample| sample.sampled.is_err()));
}

#[test]
fn a_device_that_is_not_there_is_named() {
    match CudaBackend::open(4_000) {
        Ok(_) => panic!("4,001 devices"),
        Err(error) => {
            let text = error.to_string();
            assert!(text.contains("CUDA device") || text.contains("driver"), "{text}");
        }
    }
}
