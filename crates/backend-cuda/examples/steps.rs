//! How long do steps of real shapes take on this GPU? Random weights, no file, no engine.
//!
//! `cargo run --release -p backend-cuda --example steps -- 30b-a3b decode prefill profile`; or 1b,
//! 8b (if none is named) or 70b. `long` decodes at long contexts, `int8` keeps keys and values so.
//! Each figure is the median of several steps, from handing the inputs over to having the tokens.

#![allow(clippy::print_stdout, reason = "prints a table")]

use std::time::Instant;

use backend_cuda::{CudaBackend, Profiled};
use device::{
    Capacity, LoadError, RowInput, SlotReset, StepInputs, StepOutputs, TokenInput, WeightSource,
    WeightView,
};
use graph::{
    AttentionBlock, AttentionInputs, Decoder, ExpertsBlock, FeedForwardBlock, GatedBlock,
    HeadBlock, HeadOutput, LayerBlock, Matrix, MixerBlock, NormedHeads,
};
use ops::experts::{Routing, Scoring};
use ops::gated_linear::Activation;
use ops::kv_format::KvFormat;
use ops::paged_attention::{AttentionShape, Window};
use ops::quant_format::QuantFormat;
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use ops::sample_rows::SampleParams;

/// Layers, width, heads, KV heads, head size, feed-forward width, vocabulary.
type Shape = (u32, u32, u32, u32, u32, u32, u32);

/// The mixture of experts whose feed-forward width is an expert's: 8 of 128, and norms of heads.
const EXPERTS: &str = "30b-a3b";

const SHAPES: [(&str, Shape); 4] = [
    (EXPERTS, (48, 2048, 32, 4, 128, 768, 151_936)),
    ("1b", (16, 2048, 32, 8, 64, 8192, 128_256)),
    ("8b", (32, 4096, 32, 8, 128, 14_336, 128_256)),
    ("70b", (80, 8192, 64, 8, 128, 28_672, 128_256)),
];

/// Random Q4_0 blocks, the same for every tensor: one buffer as large as the largest.
struct Blocks {
    bytes: Vec<u8>,
    ones: Vec<u8>,
    /// A router's.
    floats: Vec<u8>,
    shapes: std::collections::BTreeMap<String, (usize, usize)>,
}

impl Blocks {
    fn new(tape: &device::Tape) -> Self {
        let size = |spec: &device::WeightSpec| (spec.rows as usize, spec.cols as usize);
        let largest =
            tape.weights.iter().map(|spec| size(spec).0 * size(spec).1).max().unwrap_or(0);
        let mut state = 1u64;
        let mut bytes = vec![0; largest / 32 * 18];
        for block in bytes.chunks_exact_mut(18) {
            for part in block.chunks_mut(8) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let mixed = (state ^ (state >> 29)).to_le_bytes();
                part.copy_from_slice(&mixed[..part.len()]);
            }
            // 0.004 or -0.004.
            let sign = block[1] & 0x80;
            block[0] = 0x19;
            block[1] = 0x1c | sign;
        }
        let widest = tape.weights.iter().map(|spec| spec.cols as usize).max().unwrap_or(0);
        let routers = tape.weights.iter().filter(|spec| spec.name == ROUTER);
        let float = |_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.05
        };
        let count = routers.map(|spec| size(spec).0 * size(spec).1).max().unwrap_or(0);
        Self {
            bytes,
            floats: (0..count).map(float).flat_map(f32::to_le_bytes).collect(),
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
            _ if name == ROUTER => (QuantFormat::F32, &self.floats[..4 * rows * cols]),
            _ => (QuantFormat::Q4_0, &self.bytes[..rows * cols / 32 * 18]),
        };
        Ok(WeightView { format, rows, cols, bytes })
    }
}

const ROUTER: &str = "router";

fn matrix(layer: u32, name: &str) -> Matrix {
    Matrix::whole(format!("{layer} {name}"))
}

fn experts(layer: u32, inner: u32) -> ExpertsBlock {
    let scoring = Scoring::SoftmaxNormed;
    ExpertsBlock {
        router: ROUTER.to_owned(),
        router_bias: None,
        choice_bias: None,
        weight_scales: None,
        apart: None,
        gate: matrix(layer, "gate").name,
        up: matrix(layer, "up").name,
        down: matrix(layer, "down").name,
        biases: None,
        routing: Routing {
            experts: 128,
            used: 8,
            scoring,
            groups: 1,
            groups_used: 1,
            scale: 1.0,
            sharpness: 1.0,
        },
        activation: Activation::Silu,
        inner,
    }
}

fn decoder(
    &(layers, width, heads, heads_kv, head_dim, inner, vocabulary): &Shape,
    has_experts: bool,
) -> Decoder {
    let layer = |index: u32| LayerBlock {
        mixer: MixerBlock::Attention(AttentionBlock {
            norm: Some("norm".to_owned()),
            inputs: AttentionInputs::Matrices {
                weights: ["query", "key", "value"].map(|name| matrix(index, name)),
                biases: [const { None }; 3],
            },
            output: matrix(index, "output"),
            output_bias: None,
            head_norms: has_experts
                .then(|| NormedHeads::Each(["norm q", "norm k"].map(str::to_owned))),
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
            experts: has_experts.then(|| experts(index, inner)),
            gated: (!has_experts).then(|| GatedBlock {
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
        layers: (0..layers).map(layer).collect(),
        per_layer: None,
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
    step_tokens_max: 8192,
    slots: 256,
    proposed_tokens_max: 0,
    block_count: 8192,
    block_tokens: 32,
    states: 0,
};

struct Bench {
    program: Profiled,
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
        let ran = self.program.program().run(&self.inputs, &mut self.outputs);
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
            let items = self.program.expert_items().unwrap_or_else(|error| panic!("{error}"));
            let items = items.map(|items| format!(", {items} lists of experts' tokens"));
            println!(
                "decode, {batch} at {context}: {:.3} ms, {:.1} tok/s{}",
                1e3 * seconds,
                f64::from(batch) / seconds,
                items.unwrap_or_default()
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

    /// Of steps of rows of `length` tokens.
    fn profile(&mut self, batch: u32, context: u32, length: u32) {
        self.fill(batch, 0, 1, true);
        self.run();
        self.fill(batch, context, length, false);
        self.run();
        let tokens = batch * length;
        let times = self.program.seconds(tokens, 20).unwrap_or_else(|error| panic!("{error}"));
        let total: f64 = times.iter().map(|(_, seconds)| seconds).sum();
        println!(
            "passes, {batch} rows of {length} at {context}, each repeated alone: {:.3} ms",
            1e3 * total
        );
        for (name, seconds) in times {
            println!("    {name}: {:.3} ms", 1e3 * seconds);
        }
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let asked = |word: &str| words.iter().any(|one| one == word);
    let named = SHAPES.iter().find(|(name, _)| asked(name));
    let &(name, ref shape) = named.unwrap_or(&SHAPES[2]);
    let kv_format = if asked("int8") { KvFormat::Int8 } else { KvFormat::F16 };
    let backend = CudaBackend::open(0).and_then(|backend| backend.with_kv_format(kv_format));
    let backend = backend.unwrap_or_else(|error| panic!("{error}"));
    let tape =
        graph::lower(&decoder(shape, name == EXPERTS)).unwrap_or_else(|error| panic!("{error}"));
    let blocks = Blocks::new(&tape);
    let start = Instant::now();
    let program =
        backend.load_profiled(tape, &blocks, CAPACITY).unwrap_or_else(|error| panic!("{error}"));
    println!(
        "{name} on {}, keys and values in {}: loaded in {:.1} s",
        backend.device_name(),
        kv_format.name(),
        start.elapsed().as_secs_f64()
    );
    drop(blocks);
    let (inputs, outputs) = (StepInputs::default(), StepOutputs::default());
    let mut bench = Bench { program, inputs, outputs };
    if asked("decode") {
        bench.decode(&[1, 2, 4, 8, 16, 32, 64, 128, 256], 512);
        bench.decode(&[1], 8192);
    }
    if asked("long") {
        bench.decode(&[1, 8, 32], 8192);
        bench.decode(&[1, 4], 65_536);
    }
    if asked("prefill") {
        bench.prefill(512, 512);
        bench.prefill(2048, 2048);
        bench.prefill(8192, 2048);
        bench.prefill(8192, 8192);
    }
    if asked("profile") {
        for (batch, context) in [(1, 512), (8, 512), (32, 512), (64, 512), (1, 8192)] {
            bench.profile(batch, context, 1);
        }
        bench.profile(1, 0, 2048);
        bench.profile(1, 6144, 2048);
    }
}
