//! How near is one linear to what the processor can do? The best of many short runs on one thread:
//! whatever else runs can only lower a run, so this holds on a busy machine too.
//!
//! `cargo run --release -p backend-cpu --example one_linear [instruction set] [format] [index of a
//! shape]`
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints its figures")]

use backend_cpu::kernels::linear::{Finish, Linear, LinearInput, linear};
use backend_cpu::kernels::rms_norm::{RowPass, row_pass};
use backend_cpu::{Arena, Isa, MatrixSource, PackedMatrix, QuantizedRows, Rows, Team};
use ops::linear::Sum;
use ops::quant_format::QuantFormat;
use std::time::Instant;

const FORMATS: [QuantFormat; 5] =
    [QuantFormat::Q4_1, QuantFormat::Q4_0, QuantFormat::Q4K, QuantFormat::Q6K, QuantFormat::Q8_0];
/// Rows, columns, tokens.
const SHAPES: [(usize, usize, usize); 8] = [
    (576, 1536, 256),
    (1536, 576, 256),
    (1536, 576, 32),
    (1536, 576, 8),
    (128, 1536, 1),
    (4096, 2048, 128),
    (2048, 8192, 128),
    (4096, 14336, 64),
];

fn main() {
    let name = std::env::args().nth(1);
    let isa = name.map_or_else(Isa::detect, |name| Isa::forced(&name).unwrap());
    let team = Team::new(1).unwrap();
    let only = std::env::args().nth(2);
    let shape: Option<usize> = std::env::args().nth(3).map(|index| index.parse().unwrap());
    let wanted = |format: &QuantFormat| only.as_ref().is_none_or(|name| name == format.name());
    for format in FORMATS.into_iter().filter(wanted) {
        for (index, (rows, cols, tokens)) in SHAPES.into_iter().enumerate() {
            if format.row_bytes(cols).is_some() && shape.is_none_or(|shape| shape == index) {
                for outliers in [false, true] {
                    measure(&team, isa, format, (rows, cols, tokens), outliers);
                }
            }
        }
    }
}

fn best_seconds(runs: usize, mut call: impl FnMut()) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = Instant::now();
        call();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn measure(
    team: &Team,
    isa: Isa,
    format: QuantFormat,
    (rows, cols, tokens): (usize, usize, usize),
    outliers: bool,
) {
    let size = PackedMatrix::packed_bytes(format, rows, cols).unwrap();
    let arena = Arena::new(Arena::piece_bytes(size)).unwrap();
    let bytes = vec![0x11; format.row_bytes(cols).unwrap() * rows];
    let source = MatrixSource { format, rows, cols, bytes: &bytes };
    let matrix = PackedMatrix::pack(&source, arena.take(size).unwrap(), team).unwrap();
    let mut x = activations(tokens * cols, outliers);
    let mut out = vec![0.0; tokens * rows];
    let room = QuantizedRows::new(tokens, cols).unwrap();
    let quantized = Some(room.view(tokens, cols));
    let input = Rows::new(&mut x, tokens, cols);
    let output = Rows::new(&mut out, tokens, rows);
    let (picks, norm, output_rows) = (None, None, None);
    let pass = RowPass { input, picks, norm, output: output_rows, sum: Sum::Store, quantized };
    let job = [Linear { matrix: &matrix, bias: None, output, finish: Finish::Store }];
    let input = LinearInput { quantized, rows: None };
    let quantizing = best_seconds(50, || {
        // SAFETY: one member, buffers of this function.
        team.run(&|worker| unsafe { row_pass(worker, isa, &pass) });
    });
    let multiplying =
        best_seconds((60_000_000_000 / (rows * cols * tokens)).clamp(20, 3000), || {
            // SAFETY: as above.
            team.run(&|worker| unsafe { linear(worker, isa, &input, &job) });
        });
    println!(
        "{:5} {rows:5} x {cols:5} x {tokens:4}{}: {:7.1} us, {:6.1} GOP/s, {:6.1} GB/s; quantizing \
         {:6.1} us, {:4.2} G/s",
        format.name(),
        if outliers { ", a tenth outliers" } else { "" },
        multiplying * 1e6,
        2.0 * (rows * cols * tokens) as f64 / multiplying / 1e9,
        size as f64 / multiplying / 1e9,
        quantizing * 1e6,
        (cols * tokens) as f64 / quantizing / 1e9,
    );
}

/// Between -1 and 1; outliers are in other groups of each token.
fn activations(count: usize, outliers: bool) -> Vec<f32> {
    let mut x: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    for (index, group) in x.chunks_exact_mut(32).enumerate() {
        if outliers && ((index * 7919) >> 3).is_multiple_of(10) {
            group[3] = 20.0;
        }
    }
    x
}
