//! How fast are the kernels here? Prints GB/s of a decode step's weights and GOP/s of a prompt's
//! and of a batch's linears on the shapes of a 135M decoder; `attention` is an example of its own.
//!
//! `cargo run --release -p backend-cpu --example kernels [threads] [instruction set] [tokens]`;
//! with tokens, only the linears of a step of so many.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints its figures")]

use backend_cpu::kernels::linear::{Activation, Finish, Linear, LinearInput, linear};
use backend_cpu::kernels::rms_norm::{RmsNorm, RowPass, row_pass};
use backend_cpu::{Arena, Isa, MatrixSource, PackedMatrix, QuantizedRows, Rows, Team, Worker};
use ops::linear::Sum;
use ops::quant_format::QuantFormat;
use std::time::Instant;

const LAYERS: usize = 30;
const WIDTH: usize = 576;
const KV: usize = 192;
const HIDDEN: usize = 1536;
const VOCABULARY: usize = 49_152;

struct Layer {
    q: PackedMatrix,
    k: PackedMatrix,
    v: PackedMatrix,
    o: PackedMatrix,
    gate: PackedMatrix,
    up: PackedMatrix,
    down: PackedMatrix,
}

struct Model {
    layers: Vec<Layer>,
    head: PackedMatrix,
    norm: Vec<f32>,
}

impl Model {
    fn new(team: &Team) -> Self {
        let arena = Arena::new(160 << 20).unwrap();
        let norm = vec![1.0; WIDTH];
        let pack = |format: QuantFormat, rows: usize, cols: usize| {
            // Small codes and scales: the values do not matter, only their number.
            let bytes = vec![0x11; format.row_bytes(cols).unwrap() * rows];
            let size = PackedMatrix::packed_bytes(format, rows, cols).unwrap();
            let source = MatrixSource { format, rows, cols, bytes: &bytes };
            PackedMatrix::pack(&source, arena.take(size).unwrap(), team).unwrap()
        };
        let matrix = |rows, cols| pack(QuantFormat::Q4_1, rows, cols);
        let layer = |_| Layer {
            q: matrix(WIDTH, WIDTH),
            k: matrix(KV, WIDTH),
            v: matrix(KV, WIDTH),
            o: matrix(WIDTH, WIDTH),
            gate: matrix(HIDDEN, WIDTH),
            up: matrix(HIDDEN, WIDTH),
            down: matrix(WIDTH, HIDDEN),
        };
        let layers = (0..LAYERS).map(layer).collect();
        Self { layers, head: pack(QuantFormat::Q8_0, VOCABULARY, WIDTH), norm }
    }

    fn layer_bytes(&self) -> usize {
        let layer = |layer: &Layer| {
            let Layer { q, k, v, o, gate, up, down } = layer;
            [q, k, v, o, gate, up, down].iter().map(|matrix| matrix.bytes()).sum::<usize>()
        };
        self.layers.iter().map(layer).sum()
    }
}

struct Buffers {
    x: Vec<f32>,
    qkv: Vec<f32>,
    hidden: Vec<f32>,
    logits: Vec<f32>,
    narrow: QuantizedRows,
    wide: QuantizedRows,
}

impl Buffers {
    fn new(tokens: usize, logit_rows: usize) -> Self {
        let x = (0..tokens * WIDTH).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        Self {
            x,
            qkv: vec![0.0; tokens * (WIDTH + 2 * KV)],
            hidden: vec![0.0; tokens * HIDDEN],
            logits: vec![0.0; logit_rows * VOCABULARY],
            narrow: QuantizedRows::new(tokens, WIDTH).unwrap(),
            wide: QuantizedRows::new(tokens, HIDDEN).unwrap(),
        }
    }
}

/// The linears, norms and quantizations of a step (no attention).
struct Step<'a> {
    model: &'a Model,
    isa: Isa,
    narrow: &'a QuantizedRows,
    wide: &'a QuantizedRows,
    x: Rows<'a>,
    qkv: Rows<'a>,
    hidden: Rows<'a>,
    logits: Rows<'a>,
}

impl Step<'_> {
    /// # Safety
    /// All members call it together.
    unsafe fn run(&self, worker: &Worker<'_>) {
        let tokens = self.x.rows();
        let narrow = self.narrow.view(tokens, WIDTH);
        let wide = self.wide.view(tokens, HIDDEN);
        let norm = Some(RmsNorm { weight: &self.model.norm, epsilon: 1e-5 });
        let pass = |input, norm, quantized| RowPass {
            input,
            picks: None,
            norm,
            output: None,
            sum: Sum::Store,
            quantized: Some(quantized),
        };
        let input = |view| LinearInput { quantized: Some(view), rows: None };
        let job = |matrix, output, finish| Linear { matrix, bias: None, output, finish };
        let attention = self.qkv.columns(0, WIDTH);
        let activation = Activation::Silu;
        for layer in &self.model.layers {
            // SAFETY: all members, the same calls.
            unsafe {
                row_pass(worker, self.isa, &pass(self.x, norm, narrow));
                let k = self.qkv.columns(WIDTH, KV);
                let v = self.qkv.columns(WIDTH + KV, KV);
                let jobs = [
                    job(&layer.q, attention, Finish::Store),
                    job(&layer.k, k, Finish::Store),
                    job(&layer.v, v, Finish::Store),
                ];
                linear(worker, self.isa, &input(narrow), &jobs);
                row_pass(worker, self.isa, &pass(attention, None, narrow));
                let jobs = [job(&layer.o, self.x, Finish::Add)];
                linear(worker, self.isa, &input(narrow), &jobs);
                row_pass(worker, self.isa, &pass(self.x, norm, narrow));
                let finish = Finish::Gated { up: &layer.up, up_bias: None, activation };
                let jobs = [job(&layer.gate, self.hidden, finish)];
                linear(worker, self.isa, &input(narrow), &jobs);
                row_pass(worker, self.isa, &pass(self.hidden, None, wide));
                let jobs = [job(&layer.down, self.x, Finish::Add)];
                linear(worker, self.isa, &input(wide), &jobs);
            }
        }
        let rows = self.logits.rows();
        let last = self.narrow.view(rows, WIDTH);
        // SAFETY: all members, the same calls.
        unsafe {
            row_pass(worker, self.isa, &pass(self.x.first(rows), norm, last));
            let jobs = [job(&self.model.head, self.logits, Finish::Store)];
            linear(worker, self.isa, &input(last), &jobs);
        }
    }
}

/// Best and median seconds of `runs` calls.
fn time(runs: usize, mut call: impl FnMut()) -> (f64, f64) {
    call();
    let mut times: Vec<f64> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    (times[0], times[runs / 2])
}

fn linears(team: &Team, isa: Isa, model: &Model, tokens: usize, logit_rows: usize) {
    let mut buffers = Buffers::new(tokens, logit_rows);
    let step = Step {
        model,
        isa,
        narrow: &buffers.narrow,
        wide: &buffers.wide,
        x: Rows::new(&mut buffers.x, tokens, WIDTH),
        qkv: Rows::new(&mut buffers.qkv, tokens, WIDTH + 2 * KV),
        hidden: Rows::new(&mut buffers.hidden, tokens, HIDDEN),
        logits: Rows::new(&mut buffers.logits, logit_rows, VOCABULARY),
    };
    // SAFETY: the closure is the same for all members.
    let run = || team.run(&|worker| unsafe { step.run(worker) });
    let (best, median) = time(if tokens > 64 { 5 } else { 40 }, run);
    let layer_bytes = model.layer_bytes();
    let bytes = layer_bytes + model.head.bytes();
    // 2 operations a product; each product is done twice, for the high and the low part.
    let layer_products = layer_bytes as f64 * 8.0 / 5.0;
    let products = tokens as f64 * layer_products + (logit_rows * VOCABULARY * WIDTH) as f64;
    println!(
        "{tokens:5} tokens: best {:8.3} ms, median {:8.3} ms; {:6.1} GB/s, {:7.1} GOP/s (high and \
         low), {:7.1} tok/s",
        best * 1e3,
        median * 1e3,
        bytes as f64 / best / 1e9,
        4.0 * products / best / 1e9,
        tokens as f64 / best,
    );
}

fn phases(worker: &Worker<'_>) {
    (0..300).for_each(|_| worker.for_each_near(8, |task| _ = std::hint::black_box(task)));
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = arguments.next().map_or_else(Team::default_threads, |n| n.parse().unwrap());
    let isa = arguments.next().map_or_else(Isa::detect, |name| Isa::forced(&name).unwrap());
    let team = Team::new(threads).unwrap();
    let start = Instant::now();
    let model = Model::new(&team);
    let bytes = model.layer_bytes() + model.head.bytes();
    println!(
        "{threads} threads, {}: packed {} MB in {:?}",
        isa.name(),
        bytes >> 20,
        start.elapsed()
    );
    let (best, _) = time(50, || team.run(&|worker| phases(worker)));
    println!("300 phases of 8 empty tasks: {:.1} us", best * 1e6);
    if let Some(tokens) = arguments.next() {
        let tokens = tokens.parse().unwrap();
        return linears(&team, isa, &model, tokens, tokens.min(32));
    }
    for (tokens, logit_rows) in [(1, 1), (2, 2), (4, 4), (8, 8), (32, 32), (512, 1)] {
        linears(&team, isa, &model, tokens, logit_rows);
    }
}
