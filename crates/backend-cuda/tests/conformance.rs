//! Does the device say what the references say, and the same bits however a step is made up?
//!
//! Whole tapes of one or two layers, over ragged shapes and all weight formats, against
//! `backend-reference`. On a machine without a CUDA device each test says so and passes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use backend_cuda::CudaBackend;
use backend_reference::ReferenceBackend;
use device::{
    Backend, Capacity, LoadError, Program, RowInput, SlotReset, StepInputs, StepOutputs, Tape,
    TokenInput, WeightSource, WeightView,
};
use graph::{
    AttentionBlock, AttentionInputs, Decoder, ExpertsBlock, FeedForwardBlock, GatedBlock,
    HeadBlock, HeadOutput, LayerBlock, Matrix, MixerBlock,
};
use ops::constraint::{Grammar, Matcher, SharedGrammar};
use ops::experts::{Routing, Scoring};
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::quant_format::{MlxAffine, MlxFloat, QuantFormat};
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use ops::sample_rows::{SampleError, SampleParams, Scratch, Slot};

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
    extras: &'static [Extra],
}

/// What only some families have.
#[derive(Clone, Copy, PartialEq)]
enum Extra {
    Biases,
    HeadNorms,
    Sinks,
    NormsAfter,
    CappedLogits,
    /// The second layer sees 40 positions, turns slower and in half of its heads' dims.
    LayersDiffer,
    /// The second layer knows no positions.
    NoPositions,
    /// Experts instead of the one feed-forward; or beside it.
    Experts(Scoring),
    Shared,
    /// Experts are chosen from two of four groups, with a bias of the choice.
    Groups,
}

impl Model {
    fn has(&self, extra: Extra) -> bool {
        self.extras.contains(&extra)
    }

    fn scoring(&self) -> Option<Scoring> {
        self.extras.iter().find_map(|extra| match extra {
            Extra::Experts(scoring) => Some(*scoring),
            _ => None,
        })
    }
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
    extras: &[],
};

/// All of GGUF, and of MLX each number of bits, group and kind of scale.
fn formats() -> Vec<QuantFormat> {
    let mut formats = QuantFormat::ALL.to_vec();
    let affine = [
        (1, 32, MlxFloat::F16),
        (2, 64, MlxFloat::F32),
        (3, 128, MlxFloat::Bf16),
        (4, 64, MlxFloat::Bf16),
        (5, 128, MlxFloat::F16),
        (6, 64, MlxFloat::F16),
        (8, 64, MlxFloat::Bf16),
    ];
    let affine =
        affine.into_iter().filter_map(|(bits, group, float)| MlxAffine::new(bits, group, float));
    formats.extend(affine.map(QuantFormat::MlxAffine));
    formats.extend([QuantFormat::Mxfp4, QuantFormat::Mxfp8, QuantFormat::Nvfp4]);
    formats
}

fn models() -> Vec<(String, Model)> {
    let mut models: Vec<(String, Model)> = formats()
        .into_iter()
        .map(|format| (format.name().to_owned(), Model { format, other: format, ..PLAIN }))
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
    add(
        "soft cap",
        Model { soft_cap: Some(3.0), extras: &[Extra::Biases], ..small(64, 96, 2, 2, 32) },
    );
    let extra = |extras, head_dim| Model { extras, ..small(64, 96, 4, 2, head_dim) };
    add("head norms", extra(&[Extra::HeadNorms], 48));
    add("sinks", extra(&[Extra::Sinks, Extra::Biases], 32));
    add("norms behind blocks", extra(&[Extra::NormsAfter, Extra::CappedLogits], 64));
    let window = Window::Sliding(90);
    add("layers that differ", Model { window, ..extra(&[Extra::LayersDiffer], 32) });
    add("windows of some layers", extra(&[Extra::LayersDiffer, Extra::Sinks], 32));
    add("layers without positions", extra(&[Extra::NoPositions, Extra::HeadNorms], 32));
    models.extend(mixtures());
    let mut add = |name: &str, model| models.push((name.to_owned(), model));
    let mixed = Model { other: QuantFormat::Q6K, format: QuantFormat::Q4K, ..PLAIN };
    add("mixed", mixed);
    add("mixed floats", Model { format: QuantFormat::Q4_0, other: QuantFormat::Bf16, ..PLAIN });
    models
}

/// Mixtures of experts, in every form that a stack of them can have.
fn mixtures() -> Vec<(String, Model)> {
    const PLAINLY: &[Extra] = &[Extra::Experts(Scoring::SoftmaxNormed), Extra::HeadNorms];
    let named = |format: QuantFormat| format!("experts in {}", format.name());
    let of = |format| Model { format, other: format, extras: PLAINLY, ..PLAIN };
    let mut models: Vec<(String, Model)> =
        formats().into_iter().map(|format| (named(format), of(format))).collect();
    let small = |extras, inner| Model {
        format: QuantFormat::F32,
        other: QuantFormat::F32,
        width: 96,
        inner,
        heads: 2,
        heads_kv: 1,
        head_dim: 32,
        extras,
        ..PLAIN
    };
    let mut add = |name: &str, model| models.push((name.to_owned(), model));
    add("experts, ragged", small(&[Extra::Experts(Scoring::Softmax)], 37));
    let clamped = &[Extra::Experts(Scoring::SoftmaxOfChosen), Extra::Biases];
    let activation = Activation::ClampedSilu;
    add("experts, biased and clamped", Model { activation, ..small(clamped, 40) });
    let grouped = &[Extra::Experts(Scoring::SigmoidNormed), Extra::Groups, Extra::Shared];
    add("experts in groups, and one of all", small(grouped, 64));
    let aside = &[Extra::Experts(Scoring::Sigmoid), Extra::NormsAfter];
    add("experts that are normed after", small(aside, 64));
    // Widths that are cut into one, two, four and eight sums.
    let wide = |width, inner| Model { width, inner, extras: PLAINLY, ..PLAIN };
    add("experts of two sums", wide(1024, 1024));
    add("experts of four sums and one", wide(2048, 256));
    add("experts of one sum and eight", wide(256, 4096));
    let mixed = Model { other: QuantFormat::Q6K, format: QuantFormat::Q4K, ..of(QuantFormat::F32) };
    add("mixed experts", mixed);
    models
}

fn tape(model: &Model) -> Tape {
    let named = |name: &str| name.to_owned();
    let has = |extra| model.has(extra);
    let layer = |index: u32| LayerBlock {
        mixer: MixerBlock::Attention(AttentionBlock {
            norm: format!("{index}.norm"),
            inputs: AttentionInputs::Matrices {
                weights: ["query", "key", "value.other"]
                    .map(|name| Matrix::whole(format!("{index}.{name}"))),
                biases: ["q", "k", "v"]
                    .map(|name| has(Extra::Biases).then(|| format!("{index}.bias {name}"))),
            },
            output: Matrix::whole(format!("{index}.output")),
            output_bias: has(Extra::Biases).then(|| format!("{index}.bias o")),
            head_norms: has(Extra::HeadNorms)
                .then(|| ["query", "key"].map(|name| format!("{index}.head norm {name}"))),
            rotary: rotary(model, index),
            sinks: has(Extra::Sinks).then(|| format!("{index}.sinks")),
            norm_after: has(Extra::NormsAfter).then(|| format!("{index}.norm after")),
            shape: AttentionShape {
                heads: model.heads,
                heads_kv: model.heads_kv,
                head_dim: model.head_dim,
                scale: 1.0 / (model.head_dim as f32).sqrt(),
                window: match (index, has(Extra::LayersDiffer)) {
                    (1, true) => Window::Sliding(40),
                    _ => model.window,
                },
                soft_cap: model.soft_cap,
            },
        }),
        feed_forward: FeedForwardBlock {
            norm: format!("{index}.norm 2"),
            experts: model.scoring().map(|scoring| experts(model, scoring, index)),
            gated: (model.scoring().is_none() || has(Extra::Shared)).then(|| GatedBlock {
                gate: Matrix::whole(format!("{index}.gate")),
                up: Matrix::whole(format!("{index}.up.other")),
                down: Matrix::whole(format!("{index}.down")),
                activation: model.activation,
                inner: model.inner,
                share: None,
            }),
            norm_after: has(Extra::NormsAfter).then(|| format!("{index}.norm after 2")),
        },
        per_layer: None,
        scale: None,
    };
    graph::lower(&Decoder {
        width: model.width,
        vocabulary: VOCABULARY,
        epsilon: 1e-5,
        embedding: named("embedding"),
        embedding_scale: 1.0,
        layers: vec![layer(0), layer(1)],
        per_layer: None,
        head: HeadBlock {
            norm: named("head norm"),
            output: HeadOutput::Logits {
                matrix: named("embedding"),
                soft_cap: has(Extra::CappedLogits).then_some(2.0),
            },
        },
        heads_kv: model.heads_kv,
        head_dim: model.head_dim,
        heads: model.heads,
    })
    .unwrap()
}

fn experts(model: &Model, scoring: Scoring, layer: u32) -> ExpertsBlock {
    let (groups, groups_used) = if model.has(Extra::Groups) { (4, 2) } else { (1, 1) };
    let of = |name: &str| format!("{layer}.experts {name}");
    ExpertsBlock {
        router: of("router"),
        router_bias: model.has(Extra::Biases).then(|| of("router bias")),
        choice_bias: model.has(Extra::Groups).then(|| of("choice bias")),
        gate: of("gate"),
        up: of("up.other"),
        down: of("down.other"),
        biases: model.has(Extra::Biases).then(|| ["gate bias", "up bias", "down bias"].map(of)),
        routing: Routing { experts: 12, used: 3, scoring, groups, groups_used, scale: 1.5 },
        activation: model.activation,
        inner: model.inner,
    }
}

fn rotary(model: &Model, layer: u32) -> Option<Rotary> {
    let plain = Rotary {
        pairing: model.pairing,
        dims: model.head_dim / 2 * 2,
        base: 10_000.0,
        scaling: RotaryScaling::None,
    };
    match layer {
        1 if model.has(Extra::NoPositions) => None,
        1 if model.has(Extra::LayersDiffer) => Some(Rotary {
            dims: model.head_dim / 4 * 2,
            scaling: RotaryScaling::Linear { factor: 4.0 },
            ..plain
        }),
        _ => Some(plain),
    }
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
            let is_vector = rows == 1 || spec.name.ends_with("bias");
            let format = match (is_vector, spec.name.ends_with("other")) {
                (true, _) => QuantFormat::F32,
                (false, true) => model.other,
                (false, false) => model.format,
            };
            let bytes = if is_vector {
                let near = if spec.name.contains("norm") { 1.0 } else { 0.0 };
                let value = |_| (near + 0.2 * random.signed()).to_le_bytes();
                (0..rows * cols).flat_map(value).collect()
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
            QuantFormat::MlxAffine(mlx) => return self.mlx_blocks(mlx, elements),
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 | QuantFormat::Nvfp4 => {
                return self.float_blocks(format, elements);
            }
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

/// The formats of MLX.
impl Random {
    /// Scales that make weights of about 0.1, and biases that make their mean 0.
    fn mlx_blocks(&mut self, mlx: MlxAffine, elements: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let middle = 2f32.powi(i32::from(mlx.bits()) - 1);
        for _ in 0..elements / mlx.group() {
            let scale = 0.12 / middle * (0.6 + 0.4 * self.signed());
            for value in [scale, -scale * middle * (0.9 + 0.1 * self.signed())] {
                match mlx.float() {
                    MlxFloat::F32 => bytes.extend(value.to_le_bytes()),
                    MlxFloat::F16 => bytes.extend(half(value).to_le_bytes()),
                    MlxFloat::Bf16 => bytes.extend(((value.to_bits() >> 16) as u16).to_le_bytes()),
                }
            }
            bytes.extend((0..mlx.group() * usize::from(mlx.bits()) / 8).map(|_| self.next() as u8));
        }
        bytes
    }

    fn float_blocks(&mut self, format: QuantFormat, elements: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..elements / format.block_elements() {
            let scale = match format {
                // 2^-7 to 2^-5, of codes up to 6; 2^-13 to 2^-11, of codes up to 448.
                QuantFormat::Mxfp4 => 120 + self.next() % 3,
                QuantFormat::Mxfp8 => 114 + self.next() % 3,
                // E4M3: 1.0 to 1.9 times 2^-6.
                _ => 8 + self.next() % 8,
            };
            bytes.push(scale as u8);
            // E4M3's codes of no number are left out.
            let code = |byte: u64| if byte & 0x7f == 0x7f { 0x70 } else { byte as u8 };
            bytes.extend((1..format.block_bytes()).map(|_| code(self.next() & 0xff)));
        }
        bytes
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
    states: 0,
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

/// Rows, of 71, that may be another choice's: two experts can be so near to each other that the
/// rounding of f16 lets one be chosen for the other, and later rows attend to that one. A wrong
/// expert would show in a quarter of all rows.
const OTHER_CHOICES_MAX: usize = 8;

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
        let mut other_choices = 0;
        for (index, (got, expected)) in got.iter().zip(&expected).enumerate() {
            let vocabulary = VOCABULARY as usize;
            let pairs = got.chunks_exact(vocabulary).zip(expected.chunks_exact(vocabulary));
            let differ: Vec<f32> = pairs.map(|(got, expected)| difference(got, expected)).collect();
            let worst = differ.iter().copied().fold(0.0, f32::max);
            eprintln!("{name}, step {index}: {worst:.2e}");
            let is_far = |differ: &&f32| differ.is_nan() || **differ > BOUND;
            let far = differ.iter().filter(is_far).count();
            if model.scoring().is_some() {
                other_choices += far;
            } else if far > 0 {
                failed.push(format!("{name}, step {index}: {worst:e}"));
            }
        }
        if other_choices > OTHER_CHOICES_MAX {
            failed.push(format!("{name}: {other_choices} rows"));
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
    for (name, model) in mixtures().into_iter().chain([("dense".to_owned(), PLAIN)]) {
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
