//! Does the device say what the references say, and the same bits however a step is made up?
//!
//! Whole tapes of one or two layers, over ragged shapes and all weight formats, against
//! `backend-reference`. On a machine without a CUDA device each test says so and passes.

#![allow(clippy::unwrap_used, reason = "tests")]

use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use device::{
    Backend, Capacity, LoadError, Program, RowInput, SlotReset, StepInputs, StepOutputs, Tape,
    TokenInput, WeightSource, WeightView,
};
use graph::{
    AttentionBlock, AttentionInputs, Decoder, FeedForwardBlock, GatedBlock, HeadBlock, HeadOutput,
    LayerBlock, Matrix,
};
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::quant_format::QuantFormat;
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use ops::sample_rows::{SampleParams, Scratch, Slot};

fn cuda() -> Option<CudaBackend> {
    match CudaBackend::open(0) {
        Ok(backend) => Some(backend),
        Err(error) => {
            eprintln!("skipped: no CUDA device ({error})");
            None
        }
    }
}

const VOCABULARY: u32 = 333;

#[derive(Clone, Copy)]
struct Model {
    format: QuantFormat,
    /// Of up, value and the second layer, where they differ.
    other: QuantFormat,
    width: u32,
    inner: u32,
    heads: u32,
    heads_kv: u32,
    head_dim: u32,
    pairing: Pairing,
    window: Window,
    soft_cap: Option<f32>,
    activation: Activation,
    has_biases: bool,
}

const PLAIN: Model = Model {
    format: QuantFormat::Q4_0,
    other: QuantFormat::Q4_0,
    width: 256,
    inner: 512,
    heads: 4,
    heads_kv: 2,
    head_dim: 64,
    pairing: Pairing::Adjacent,
    window: Window::Full,
    soft_cap: None,
    activation: Activation::Silu,
    has_biases: false,
};

fn models() -> Vec<(String, Model)> {
    let mut models: Vec<(String, Model)> = QuantFormat::ALL
        .iter()
        .map(|&format| (format.name().to_owned(), Model { format, other: format, ..PLAIN }))
        .collect();
    let small = |width, inner, heads, heads_kv, head_dim| Model {
        format: QuantFormat::F32,
        other: QuantFormat::F32,
        width,
        inner,
        heads,
        heads_kv,
        head_dim,
        ..PLAIN
    };
    let mut add = |name: &str, model| models.push((name.to_owned(), model));
    add("ragged", small(97, 53, 3, 1, 22));
    add("tiny heads", Model { pairing: Pairing::HalfSplit, ..small(64, 96, 4, 2, 16) });
    add("heads of 80", Model { activation: Activation::GeluTanh, ..small(160, 224, 2, 2, 80) });
    add("heads of 128", small(256, 96, 8, 2, 128));
    add("heads of 256", small(96, 160, 4, 1, 256));
    add("16 share a key", small(64, 64, 16, 1, 32));
    add("window", Model { window: Window::Sliding(70), ..small(64, 96, 2, 1, 32) });
    add("soft cap", Model { soft_cap: Some(3.0), has_biases: true, ..small(64, 96, 2, 2, 32) });
    let mixed = Model { other: QuantFormat::Q6K, format: QuantFormat::Q4K, ..PLAIN };
    add("mixed", mixed);
    add("mixed floats", Model { format: QuantFormat::Q4_0, other: QuantFormat::Bf16, ..PLAIN });
    models
}

fn tape(model: &Model) -> Tape {
    let named = |name: &str| name.to_owned();
    let layer = |index: u32| LayerBlock {
        attention: AttentionBlock {
            norm: format!("{index}.norm"),
            inputs: AttentionInputs::Matrices {
                weights: ["query", "key", "value.other"]
                    .map(|name| Matrix::whole(format!("{index}.{name}"))),
                biases: ["q", "k", "v"]
                    .map(|name| model.has_biases.then(|| format!("{index}.bias {name}"))),
            },
            output: Matrix::whole(format!("{index}.output")),
            output_bias: model.has_biases.then(|| format!("{index}.bias o")),
            head_norms: None,
            rotary: Some(Rotary {
                pairing: model.pairing,
                dims: model.head_dim / 2 * 2,
                base: 10_000.0,
                scaling: RotaryScaling::None,
            }),
            sinks: None,
            norm_after: None,
            shape: AttentionShape {
                heads: model.heads,
                heads_kv: model.heads_kv,
                head_dim: model.head_dim,
                scale: 1.0 / (model.head_dim as f32).sqrt(),
                window: model.window,
                soft_cap: model.soft_cap,
            },
        },
        feed_forward: FeedForwardBlock {
            norm: format!("{index}.norm 2"),
            experts: None,
            gated: Some(GatedBlock {
                gate: Matrix::whole(format!("{index}.gate")),
                up: Matrix::whole(format!("{index}.up.other")),
                down: Matrix::whole(format!("{index}.down")),
                activation: model.activation,
                inner: model.inner,
            }),
            norm_after: None,
        },
    };
    graph::lower(&Decoder {
        width: model.width,
        vocabulary: VOCABULARY,
        epsilon: 1e-5,
        embedding: named("embedding"),
        embedding_scale: 1.0,
        layers: vec![layer(0), layer(1)],
        head: HeadBlock {
            norm: named("head norm"),
            output: HeadOutput::Logits { matrix: named("embedding"), soft_cap: None },
        },
        heads_kv: model.heads_kv,
        head_dim: model.head_dim,
        heads: model.heads,
    })
    .unwrap()
}

/// Random tensors in the formats of a model.
struct Tensors(Vec<(String, QuantFormat, usize, usize, Vec<u8>)>);

impl WeightSource for Tensors {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        let found = self.0.iter().find(|(known, ..)| known == name).unwrap();
        let &(_, format, rows, cols, ref bytes) = found;
        Ok(WeightView { format, rows, cols, bytes })
    }
}

impl Tensors {
    fn of(model: &Model, tape: &Tape) -> Self {
        let mut random = Random(11);
        let tensor = |spec: &device::WeightSpec| {
            let (rows, cols) = (spec.rows as usize, spec.cols as usize);
            let is_vector = rows == 1;
            let format = match (is_vector, spec.name.ends_with("other")) {
                (true, _) => QuantFormat::F32,
                (false, true) => model.other,
                (false, false) => model.format,
            };
            let bytes = if is_vector {
                let near = if spec.name.contains("norm") { 1.0 } else { 0.0 };
                (0..cols).flat_map(|_| (near + 0.2 * random.signed()).to_le_bytes()).collect()
            } else {
                random.blocks(format, rows * cols)
            };
            (spec.name.clone(), format, rows, cols, bytes)
        };
        Self(tape.weights.iter().map(tensor).collect())
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Random codes under scales that make weights of about 0.05 to 0.1.
    fn blocks(&mut self, format: QuantFormat, elements: usize) -> Vec<u8> {
        // Where the f16 scales stand in a block, and how large they may be.
        let scales: &[(usize, f32)] = match format {
            QuantFormat::F32 => {
                return (0..elements).flat_map(|_| (0.15 * self.signed()).to_le_bytes()).collect();
            }
            QuantFormat::F16 => {
                return (0..elements)
                    .flat_map(|_| half(0.15 * self.signed()).to_le_bytes())
                    .collect();
            }
            QuantFormat::Bf16 => {
                let upper = |value: f32| (value.to_bits() >> 16) as u16;
                return (0..elements)
                    .flat_map(|_| upper(0.15 * self.signed()).to_le_bytes())
                    .collect();
            }
            QuantFormat::Q4_0 => &[(0, 0.02)],
            QuantFormat::Q4_1 => &[(0, 0.02), (2, -0.15)],
            QuantFormat::Q5_0 => &[(0, 0.01)],
            QuantFormat::Q5_1 => &[(0, 0.01), (2, -0.15)],
            QuantFormat::Q8_0 | QuantFormat::Iq4Nl => &[(0, 0.001)],
            QuantFormat::Q2K => &[(80, 0.003), (82, 0.0045)],
            QuantFormat::Q3K => &[(108, 0.002)],
            QuantFormat::Q4K => &[(0, 0.0002), (2, 0.0015)],
            QuantFormat::Q5K => &[(0, 0.0001), (2, 0.0015)],
            QuantFormat::Q6K | QuantFormat::Iq4Xs => {
                &[(if format == QuantFormat::Q6K { 208 } else { 0 }, 0.00006)]
            }
            QuantFormat::Iq2Xxs | QuantFormat::Iq2Xs | QuantFormat::Iq2S => &[(0, 0.0005)],
            QuantFormat::Iq1S => &[(0, 0.007)],
            QuantFormat::Iq3Xxs => &[(0, 0.0002)],
            QuantFormat::Iq3S => &[(0, 0.0003)],
            QuantFormat::Tq1_0 => &[(52, 0.1)],
            QuantFormat::Tq2_0 => &[(64, 0.05)],
            QuantFormat::Iq1M | QuantFormat::GgufMxfp4 | QuantFormat::GgufNvfp4 => &[],
            QuantFormat::MlxAffine(_)
            | QuantFormat::Mxfp4
            | QuantFormat::Mxfp8
            | QuantFormat::Nvfp4 => unreachable!("the formats of GGUF are tried here"),
        };
        let mut bytes = Vec::new();
        for _ in 0..elements / format.block_elements() {
            let start = bytes.len();
            bytes.extend((0..format.block_bytes()).map(|_| self.next() as u8));
            for &(at, scale) in scales {
                let scale = scale * (0.6 + 0.4 * self.signed());
                bytes[start + at..start + at + 2].copy_from_slice(&half(scale).to_le_bytes());
            }
            self.other_scales(format, &mut bytes[start..]);
        }
        bytes
    }

    /// Scales that are not an f16 of their own, for weights of the same size.
    fn other_scales(&mut self, format: QuantFormat, block: &mut [u8]) {
        match format {
            // Half of 2^-6 times 12 at most.
            QuantFormat::GgufMxfp4 => block[0] = 120 + (self.next() % 2) as u8,
            // Subnormal E4M3, and the first normal ones.
            QuantFormat::GgufNvfp4 => block[..4].iter_mut().for_each(|byte| *byte &= 0x0f),
            // Four nibbles of four words are an f16 of 2^-8 to 2^-7.
            QuantFormat::Iq1M => {
                block[53] = block[53] & 0x0f | 0xc0;
                block[55] = block[55] & 0x0f | 0x10;
            }
            _ => {}
        }
    }
}

/// An f32 as the bits of an f16, cut off; below the smallest normal one zero.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xff) as i32 - 127 + 15;
    let sign = (bits >> 16) as u16 & 0x8000;
    if exponent <= 0 {
        return sign | 1 << 9;
    }
    sign | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16
}

const CAPACITY: Capacity = Capacity {
    step_tokens_max: 300,
    slots: 80,
    proposed_tokens_max: 8,
    block_count: 96,
    block_tokens: 32,
};

/// Rows of a step: (slot, start, length, sampled and with how many guesses). Its blocks are
/// scattered over the pool by its slot; its token at a position is always the same.
fn step(rows: &[(u32, u32, u32, Option<u32>)], resets: &[u32]) -> StepInputs {
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
fn schedule() -> Vec<StepInputs> {
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

fn run(program: &mut dyn Program, steps: &[StepInputs]) -> Vec<Vec<f32>> {
    let mut outputs = StepOutputs::default();
    steps
        .iter()
        .map(|inputs| {
            program.run(inputs, &mut outputs).unwrap();
            outputs.logits.clone()
        })
        .collect()
}

/// Largest difference, relative to the largest logit.
fn difference(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0f32, |most, value| most.max(value.abs()));
    let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs());
    worst.fold(0.0, |most, d| if d.is_nan() { f32::NAN } else { f32::max(most, d) }) / largest
}

/// Inputs of products, keys and values have 11 bits: an error of 2^-12 each, which two layers of
/// random weights carry through some ten roundings. Scales of K-quants add as much again.
const BOUND: f32 = 6e-3;

#[test]
fn every_format_and_shape_is_near_the_reference() {
    let Some(backend) = cuda() else { return };
    let mut failed = Vec::new();
    for (name, model) in models() {
        let tape = tape(&model);
        let tensors = Tensors::of(&model, &tape);
        let mut reference = ReferenceBackend.load(tape.clone(), &tensors, CAPACITY).unwrap();
        let mut program = match backend.load(tape, &tensors, CAPACITY) {
            Ok(program) => program,
            Err(error) => {
                failed.push(format!("{name}: {error}"));
                continue;
            }
        };
        let expected = run(reference.as_mut(), &schedule());
        let got = run(program.as_mut(), &schedule());
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let differ = difference(got, expected);
            eprintln!("{name}, step {index}: {differ:.2e}");
            if differ.is_nan() || differ > BOUND {
                failed.push(format!("{name}, step {index}: {differ:e}"));
            }
        }
    }
    assert_eq!(failed, Vec::<String>::new());
}

#[test]
fn a_row_has_the_same_bits_however_steps_are_cut() {
    let Some(backend) = cuda() else { return };
    let mut failed = Vec::new();
    let head_128 = models().into_iter().find(|(name, _)| name == "heads of 128").unwrap().1;
    let of = |format| Model { format, other: format, ..PLAIN };
    for model in
        [PLAIN, of(QuantFormat::Q4K), of(QuantFormat::Q6K), of(QuantFormat::Q8_0), head_128]
    {
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
        SampleParams { top_k: 1, logprobs: Some(0), ..base },
    ]
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
