//! How fast is attention here? Decode and prefill in every cache format, on the shapes of a 135M
//! and of an 8B decoder: ms, GB/s of keys and values read once, GFLOP/s of what queries see; and
//! what turning and storing a prompt's queries, keys and values takes.
//!
//! `cargo run --release -p backend-cpu --example attention [threads] [instruction set] [format]`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints its figures")]

use backend_cpu::kernels::paged_attention::{
    AttentionPlan, AttentionRows, AttentionScratch, AttentionShape, PagedAttention, paged_attention,
};
use backend_cpu::kernels::rotary::{RotaryAppend, RotaryStyle, RotaryTable, rotary_append};
use backend_cpu::kv_cache::{CacheShape, CacheView};
use backend_cpu::{Isa, LargeBuffer, Rows, Team};
use ops::kv_format::KvFormat;
use std::time::Instant;

const BLOCK_TOKENS: usize = 32;

/// A model's attention and a layer's cache of `batch` sequences, each of `context` tokens.
struct Case {
    name: &'static str,
    layers: usize,
    shape: AttentionShape,
    format: KvFormat,
    batch: usize,
    context: usize,
    /// Queries a sequence, the last ones.
    asked: usize,
}

impl Case {
    fn cache_shape(&self) -> CacheShape {
        let AttentionShape { kv_heads, head_dim, .. } = self.shape;
        CacheShape { block_tokens: BLOCK_TOKENS, kv_heads, head_dim, format: self.format }
    }

    fn run(&self, team: &Team, isa: Isa) {
        let cache_shape = self.cache_shape();
        let blocks = self.context.div_ceil(BLOCK_TOKENS);
        let layer_bytes = self.batch * blocks * cache_shape.block_bytes();
        let room = LargeBuffer::zeroed(self.layers * layer_bytes).unwrap();
        let cache = |layer: usize| {
            // SAFETY: each layer has its part of the room.
            unsafe {
                let start = room.pointer().add(layer * layer_bytes);
                CacheView::from_raw(start, self.batch * blocks, cache_shape)
            }
        };
        (0..self.layers).for_each(|layer| self.fill(team, isa, cache(layer)));
        let (tokens, width) = (self.batch * self.asked, self.shape.heads * self.shape.head_dim);
        let mut queries: Vec<f32> = (0..tokens * width).map(element).collect();
        let mut out = vec![0.0; tokens * width];
        let sequences: Vec<u32> = (0..tokens).map(|token| (token / self.asked) as u32).collect();
        let position = |token: usize| (self.context - self.asked + token % self.asked) as u32;
        let positions: Vec<u32> = (0..tokens).map(position).collect();
        let tables: Vec<u32> = (0..(self.batch * blocks) as u32).collect();
        let table_starts: Vec<u32> = (0..=self.batch).map(|i| (i * blocks) as u32).collect();
        let rows = AttentionRows {
            sequences: &sequences,
            positions: &positions,
            tables: &tables,
            table_starts: &table_starts,
        };
        let scratch = AttentionScratch::new(team.members(), &self.shape, 16_384).unwrap();
        let mut plan = AttentionPlan::default();
        plan.build(&rows, &self.shape, &scratch);
        let query = Rows::new(&mut queries, tokens, width);
        let output = Rows::new(&mut out, tokens, width);
        let call = |layer: usize| PagedAttention {
            shape: self.shape,
            sinks: None,
            query,
            cache: cache(layer),
            rows,
            plan: &plan,
            scratch: &scratch,
            output,
        };
        let seconds = best(|| {
            team.run(&|worker| {
                // SAFETY: all members make the same calls.
                (0..self.layers).for_each(|l| unsafe { paged_attention(worker, isa, &call(l)) });
            });
        });
        let seen: f64 = positions.iter().map(|p| f64::from(*p) + 1.0).sum();
        let flops = seen * (4 * width * self.layers) as f64;
        let (name, format) = (self.name, self.format.name());
        println!(
            "{name:4} {format:5} batch {:2}, {:4} queries at {:5}: {:9.3} ms for {} layers, {:6.1} \
             GB/s, {:6.1} GFLOP/s",
            self.batch,
            self.asked,
            self.context,
            seconds * 1e3,
            self.layers,
            (self.layers * layer_bytes) as f64 / seconds / 1e9,
            flops / seconds / 1e9,
        );
    }

    /// A prompt's queries turned, its keys and values turned and stored, layer by layer.
    fn append(&self, team: &Team, isa: Isa) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        let (tokens, half) = (self.asked, head_dim / 2);
        let blocks = tokens.div_ceil(BLOCK_TOKENS);
        let room = LargeBuffer::zeroed(blocks * self.cache_shape().block_bytes()).unwrap();
        // SAFETY: the room is as large.
        let cache = unsafe { CacheView::from_raw(room.pointer(), blocks, self.cache_shape()) };
        let rows = |width: usize| -> Vec<f32> { (0..tokens * width).map(element).collect() };
        let (mut query, mut key) = (rows(heads * head_dim), rows(kv_heads * head_dim));
        let (mut value, mut cos, mut sin) = (key.clone(), rows(half), rows(half));
        let slots: Vec<u32> = (0..tokens as u32).collect();
        let table = RotaryTable {
            cos: Rows::new(&mut cos, tokens, half),
            sin: Rows::new(&mut sin, tokens, half),
            style: RotaryStyle::AdjacentPair,
        };
        let call = RotaryAppend {
            query: Rows::new(&mut query, tokens, heads * head_dim),
            key: Rows::new(&mut key, tokens, kv_heads * head_dim),
            value: Rows::new(&mut value, tokens, kv_heads * head_dim),
            table: Some(table),
            growth: None,
            head_norm: None,
            slots: &slots,
            cache,
        };
        let seconds = best(|| {
            // SAFETY: every member makes the same call on buffers of this function.
            team.run(&|worker| unsafe { rotary_append(worker, isa, &call) });
        });
        let (name, format) = (self.name, self.format.name());
        println!("{name:4} {format:5} append of {tokens:4}: {:6.1} us a layer", seconds * 1e6);
    }

    /// Some finite keys and values for every position.
    fn fill(&self, team: &Team, isa: Isa, cache: CacheView<'_>) {
        let tokens = cache.blocks() * BLOCK_TOKENS;
        let (step, kv) = (256, self.shape.kv_heads * self.shape.head_dim);
        for first in (0..tokens).step_by(step) {
            let count = step.min(tokens - first);
            let mut key: Vec<f32> = (0..count * kv).map(element).collect();
            let (mut value, mut query) = (key.clone(), key.clone());
            let slots: Vec<u32> = (first..first + count).map(|slot| slot as u32).collect();
            let call = RotaryAppend {
                query: Rows::new(&mut query, count, kv),
                key: Rows::new(&mut key, count, kv),
                value: Rows::new(&mut value, count, kv),
                table: None,
                growth: None,
                head_norm: None,
                slots: &slots,
                cache,
            };
            // SAFETY: every member makes the same call on buffers of this function.
            team.run(&|worker| unsafe { rotary_append(worker, isa, &call) });
        }
    }
}

/// In -1 to 1, without a short period.
fn element(index: usize) -> f32 {
    ((index * 7919 % 10_007) as f32 - 5003.0) / 5003.0
}

/// Best seconds of as many calls as fit in half a second, three at least.
fn best(mut call: impl FnMut()) -> f64 {
    call();
    let (start, mut best, mut calls) = (Instant::now(), f64::INFINITY, 0);
    while calls < 3 || (start.elapsed().as_secs_f64() < 0.5 && calls < 200) {
        let before = Instant::now();
        call();
        best = best.min(before.elapsed().as_secs_f64());
        calls += 1;
    }
    best
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.first().map_or_else(Team::default_threads, |n| n.parse().unwrap());
    let isa = arguments.get(1).map_or_else(Isa::detect, |name| Isa::forced(name).unwrap());
    let asked = arguments.get(2).map(|name| KvFormat::from_name(name).unwrap());
    let team = Team::new(threads).unwrap();
    println!("{threads} threads, {}", isa.name());
    let shape = |heads, kv_heads, head_dim: usize| {
        let scale = (head_dim as f32).powf(-0.5);
        AttentionShape { heads, kv_heads, head_dim, scale, window: None, soft_cap: None }
    };
    let decode = [(1, 128), (1, 512), (1, 2048), (1, 8192), (8, 512), (8, 2048), (32, 128)];
    let decode = decode.map(|(batch, context)| (batch, context, 1));
    let prefill = [(1, 512, 512), (1, 2048, 2048)];
    // Short ones first, whose best holds beside other programs, too.
    let brief = [("135M", shape(9, 3, 64)), ("8B", shape(32, 8, 128))];
    for format in asked.map_or(KvFormat::ALL.to_vec(), |format| vec![format]) {
        for ((name, shape), asked) in brief.into_iter().flat_map(|case| [(case, 1), (case, 64)]) {
            Case { name, layers: 1, shape, format, batch: 1, context: 1024, asked }.run(&team, isa);
        }
        for (batch, context, asked) in decode.into_iter().chain(prefill) {
            let (name, layers, shape) = ("135M", 30, shape(9, 3, 64));
            Case { name, layers, shape, format, batch, context, asked }.run(&team, isa);
        }
        for (batch, context, asked) in [(1, 2048, 1), (8, 2048, 1), (1, 512, 512)] {
            let (name, layers, shape) = ("8B", 8, shape(32, 8, 128));
            Case { name, layers, shape, format, batch, context, asked }.run(&team, isa);
        }
        let (name, layers, shape) = ("135M", 30, shape(9, 3, 64));
        for asked in [1, 256] {
            let case = Case { name, layers, shape, format, batch: 1, context: asked, asked };
            case.append(&team, isa);
        }
    }
}
