//! How long do steps of real shapes take on this GPU? Random weights, no file, no engine.
//!
//! `cargo run --release -p backend-wgpu --example wgpu_steps -- 135m`; or 1b, or 8b. With
//! `f32-attention`, matrix units do not attend; with `decode` or `prefill`, only that; `long` adds
//! long contexts; `q8_0` is the format of weights instead of Q4_0, and with `by-memory` they go to
//! matrix units by way of workgroup memory.
//! Each figure is the median of several steps, from handing the inputs over to having the tokens.

#![allow(clippy::print_stdout, reason = "prints a table")]

use std::time::Instant;

use backend_wgpu::{Api, WgpuBackend};
use device::{
    Backend, Capacity, LoadError, Program, RowInput, SlotReset, StepInputs, StepOutputs,
    TokenInput, WeightSource, WeightView,
};
use graph::{
    AttentionBlock, AttentionInputs, Decoder, FeedForwardBlock, GatedBlock, HeadBlock, HeadOutput,
    LayerBlock, Matrix, MixerBlock,
};
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::quant_format::QuantFormat;
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use ops::sample_rows::SampleParams;

/// Layers, width, heads, KV heads, head size, feed-forward width, vocabulary.
type Shape = (u32, u32, u32, u32, u32, u32, u32);

const SHAPES: [(&str, Shape); 3] = [
    ("135m", (30, 576, 9, 3, 64, 1536, 49_152)),
    ("1b", (16, 2048, 32, 8, 64, 8192, 128_256)),
    ("8b", (32, 4096, 32, 8, 128, 14_336, 128_256)),
];

/// Random blocks, the same for every tensor: one buffer as large as the largest.
struct Blocks {
    format: QuantFormat,
    block_bytes: usize,
    bytes: Vec<u8>,
    ones: Vec<u8>,
    shapes: std::collections::BTreeMap<String, (usize, usize)>,
}

impl Blocks {
    fn new(tape: &device::Tape, format: QuantFormat) -> Self {
        let size = |spec: &device::WeightSpec| (spec.rows as usize, spec.cols as usize);
        let largest =
            tape.weights.iter().map(|spec| size(spec).0 * size(spec).1).max().unwrap_or(0);
        let mut state = 1u64;
        let block_bytes = if format == QuantFormat::Q8_0 { 34 } else { 18 };
        let mut bytes = vec![0; largest / 32 * block_bytes];
        for block in bytes.chunks_exact_mut(block_bytes) {
            for part in block.chunks_mut(8) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let mixed = (state ^ (state >> 29)).to_le_bytes();
                part.copy_from_slice(&mixed[..part.len()]);
            }
            // 0.004 or -0.004, a sixteenth of that where codes are 16 times as large.
            let sign = block[1] & 0x80;
            block[0] = 0x19;
            block[1] = if block_bytes == 34 { 0x0c } else { 0x1c } | sign;
        }
        let widest = tape.weights.iter().map(|spec| spec.cols as usize).max().unwrap_or(0);
        Self {
            format,
            block_bytes,
            bytes,
            ones: (0..widest).flat_map(|_| 1f32.to_le_bytes()).collect(),
            shapes: tape.weights.iter().map(|spec| (spec.name.clone(), size(spec))).collect(),
        }
    }
}

impl WeightSource for Blocks {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        let &(rows, cols) =
            self.shapes.get(name).ok_or_else(|| LoadError(format!("no tensor {name}")))?;
        let (format, bytes) = match rows {
            1 => (QuantFormat::F32, &self.ones[..4 * cols]),
            _ => (self.format, &self.bytes[..rows * cols / 32 * self.block_bytes]),
        };
        Ok(WeightView { format, rows, cols, bytes })
    }
}

fn matrix(layer: u32, name: &str) -> Matrix {
    Matrix::whole(format!("{layer} {name}"))
}

fn decoder(&(layers, width, heads, heads_kv, head_dim, inner, vocabulary): &Shape) -> Decoder {
    let layer = |index: u32| LayerBlock {
        mixer: MixerBlock::Attention(AttentionBlock {
            norm: Some("norm".to_owned()),
            inputs: AttentionInputs::Matrices {
                weights: ["query", "key", "value"].map(|name| matrix(index, name)),
                biases: [const { None }; 3],
            },
            output: matrix(index, "output"),
            output_bias: None,
            head_norms: None,
            rotary: Some(Rotary {
                pairing: Pairing::Adjacent,
                dims: head_dim,
                base: 500_000.0,
                scaling: RotaryScaling::None,
            }),
            growth: None,
            sinks: None,
            norm_after: None,
            shape: AttentionShape {
                heads,
                heads_kv,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                window: Window::Full,
                soft_cap: None,
            },
        }),
        feed_forward: FeedForwardBlock {
            norm: Some("norm".to_owned()),
            experts: None,
            gated: Some(GatedBlock {
                gate: matrix(index, "gate"),
                up: matrix(index, "up"),
                down: matrix(index, "down"),
                activation: Activation::Silu,
                inner,
                share: None,
            }),
            norm_after: None,
        },
        per_layer: None,
        scale: None,
    };
    Decoder {
        width,
        vocabulary,
        epsilon: 1e-5,
        embedding: "embedding".to_owned(),
        embedding_scale: 1.0,
        per_layer: None,
        layers: (0..layers).map(layer).collect(),
        head: HeadBlock {
            norm: "norm".to_owned(),
            output: HeadOutput::Logits { matrix: "head".to_owned(), soft_cap: None },
        },
        heads_kv,
        head_dim,
        heads,
    }
}

const CAPACITY: Capacity = Capacity {
    step_tokens_max: 2048,
    slots: 64,
    proposed_tokens_max: 0,
    block_count: 2048,
    block_tokens: 32,
    states: 0,
};

struct Bench {
    program: Box<dyn Program>,
    inputs: StepInputs,
    outputs: StepOutputs,
}

impl Bench {
    /// Rows of `length` tokens at `start`, one a slot, each with blocks of its own.
    fn fill(&mut self, rows: u32, start: u32, length: u32, first: bool) {
        let inputs = &mut self.inputs;
        inputs.clear(0);
        for slot in 0..rows {
            if first {
                let params = SampleParams::default();
                inputs.resets.push(SlotReset {
                    slot,
                    params,
                    prompt: vec![],
                    generated: vec![],
                    adapter: None,
                });
            }
            let blocks_count = (start + length).div_ceil(32);
            inputs.rows.push(RowInput {
                slot,
                start,
                length,
                blocks_start: inputs.blocks.len() as u32,
                blocks_count,
                sample_index: Some(0),
                proposed: 0,
            });
            let own = CAPACITY.block_count / rows;
            inputs.blocks.extend((0..blocks_count).map(|block| slot * own + block % own));
            let token = |at: u32| TokenInput::Known((at * 7919 + slot * 31) % 32_000);
            let slot = |_| TokenInput::Slot(slot);
            if length == 1 && !first {
                inputs.tokens.extend((0..1).map(slot));
            } else {
                inputs.tokens.extend((0..length).map(token));
            }
        }
    }

    fn run(&mut self) -> f64 {
        let start = Instant::now();
        let ran = self.program.run(&self.inputs, &mut self.outputs);
        ran.unwrap_or_else(|fault| panic!("{fault}"));
        start.elapsed().as_secs_f64()
    }

    fn median(&mut self, repeats: usize) -> f64 {
        let mut times: Vec<f64> = (0..repeats).map(|_| self.run()).collect();
        times.sort_by(f64::total_cmp);
        times[repeats / 2]
    }

    fn decode(&mut self, batches: &[u32], context: u32) {
        for &batch in batches {
            self.fill(batch, 0, 1, true);
            self.run();
            self.fill(batch, context, 1, false);
            self.median(5);
            let seconds = self.median(40);
            println!(
                "decode, {batch} at {context}: {:.3} ms, {:.1} tok/s",
                1e3 * seconds,
                f64::from(batch) / seconds
            );
        }
    }

    fn prefill(&mut self, tokens: u32, chunk: u32) {
        let pass = |bench: &mut Self| {
            let mut total = 0.0;
            for start in (0..tokens).step_by(chunk as usize) {
                bench.fill(1, start, chunk.min(tokens - start), start == 0);
                total += bench.run();
            }
            total
        };
        pass(self);
        let mut times: Vec<f64> = (0..3).map(|_| pass(self)).collect();
        times.sort_by(f64::total_cmp);
        println!(
            "prefill {tokens} by {chunk}: {:.2} ms, {:.0} tok/s",
            1e3 * times[1],
            f64::from(tokens) / times[1]
        );
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let asked = |word: &str| words.iter().any(|one| one == word);
    let named = SHAPES.iter().find(|(name, _)| asked(name));
    let (name, shape) = named.unwrap_or(&SHAPES[0]);
    let mut backend = WgpuBackend::open(Api::Any, 0).unwrap_or_else(|error| panic!("{error}"));
    if asked("by-memory") {
        backend = backend.without_fragments();
    }
    if asked("f32-attention") {
        backend = backend.without_units_in_attention();
    }
    let tape = graph::lower(&decoder(shape)).unwrap_or_else(|error| panic!("{error}"));
    let format = if asked("q8_0") { QuantFormat::Q8_0 } else { QuantFormat::Q4_0 };
    let blocks = Blocks::new(&tape, format);
    let start = Instant::now();
    let program = backend.load(tape, &blocks, CAPACITY).unwrap_or_else(|error| panic!("{error}"));
    let facts = backend.facts();
    let seconds = start.elapsed().as_secs_f64();
    println!("{name} on {} by {}: loaded in {seconds:.1} s", facts.name, facts.api);
    drop(blocks);
    println!("weights: {:.3} GB", program.memory().weights_bytes as f64 / 1e9);
    let (inputs, outputs) = (StepInputs::default(), StepOutputs::default());
    let mut bench = Bench { program, inputs, outputs };
    let attends = if backend.attends_by_units() { "by matrix units" } else { "in f32" };
    println!("attends {attends}");
    if !asked("prefill") {
        bench.decode(&[1, 8, 64], 512);
    }
    if asked("long") {
        bench.decode(&[1], 2000);
        bench.decode(&[4], 4000);
        bench.decode(&[1], 16_000);
    }
    if !asked("decode") {
        bench.prefill(512, 512);
        bench.prefill(2048, 2048);
    }
}
