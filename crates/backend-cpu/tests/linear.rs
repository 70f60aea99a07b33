//! Linear layers against their scalar twin and f64: all formats, ragged shapes, all instruction
//! sets and thread counts, exact equality.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use backend_cpu::kernels::linear::{Activation, Finish, Linear, LinearInput, linear};
use backend_cpu::kernels::rms_norm::{RmsNorm, RowPass, row_pass};
use backend_cpu::kernels::soft_cap::soft_cap;
use backend_cpu::{ArenaPiece, Isa, MatrixSource, PackedMatrix, QuantizedRows, Rows, Team};
use ops::linear::Sum;
use ops::quant_format::{QuantFormat, Zero};
use support::{Random, weights};

fn pack(source: &MatrixSource<'_>, team: &Team) -> PackedMatrix {
    let bytes = PackedMatrix::packed_bytes(source.format, source.rows, source.cols).unwrap();
    PackedMatrix::pack(source, ArenaPiece::alone(bytes).unwrap(), team).unwrap()
}

/// Quantizes `x` and multiplies, on `team` with `isa`.
fn product(
    team: &Team,
    isa: Isa,
    matrix: &PackedMatrix,
    x: &[f32],
    finish: Finish<'_>,
    start: f32,
) -> Vec<f32> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let tokens = x.len() / cols;
    let mut x = x.to_vec();
    let mut out = vec![start; tokens * rows];
    let room = QuantizedRows::new(tokens, cols.next_multiple_of(32)).unwrap();
    let input = Rows::new(&mut x, tokens, cols);
    let output = Rows::new(&mut out, tokens, rows);
    let quantized = matrix.wants_quantized().then(|| room.view(tokens, cols));
    let pass = RowPass { input, picks: None, norm: None, output: None, sum: Sum::Store, quantized };
    let job = Linear { matrix, bias: None, output, finish };
    team.run(&|worker| {
        // SAFETY: every member makes the same calls on buffers of this function.
        unsafe {
            row_pass(worker, isa, &pass);
            linear(worker, isa, &LinearInput { quantized, rows: Some(input) }, &[job]);
        }
    });
    out
}

/// Values between -1 and 1, in every fifth group some 30 times larger: both kinds of groups.
fn activations(random: &mut Random, count: usize) -> Vec<f32> {
    let mut x = random.floats(count);
    for (index, value) in x.iter_mut().enumerate() {
        if index / 32 % 5 == 2 && index % 7 == 3 {
            *value *= 30.0;
        }
    }
    x
}

/// Group by group of a row: the step, the integers that are multiplied with it, and those with a
/// 128th of it where the group's largest magnitude is over ten times the row's mean magnitude.
fn integers(row: &[f32]) -> Vec<(f32, Vec<i64>, Option<Vec<i64>>)> {
    let mean = row.iter().map(|x| f64::from(x.abs())).sum::<f64>() / row.len() as f64;
    let groups = row.chunks_exact(32).map(|group| {
        let largest = group.iter().fold(0f32, |a, v| a.max(v.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        // A float has 24 bits, a step 22.
        let step = f32::from_bits((largest / 127.0).to_bits() & !3);
        let round = |by: f32| group.iter().map(move |x| (x * by).round_ties_even() as i64);
        if f64::from(largest) > 10.0 * mean {
            let high = round(128.0 * inverse).map(|x| (x + 64).div_euclid(128));
            let low = round(128.0 * inverse).map(|x| (x + 64).rem_euclid(128) - 64);
            (step, high.collect(), Some(low.collect()))
        } else {
            (step, round(inverse).collect(), None)
        }
    });
    groups.collect()
}

/// What such integers stand for.
fn decoded((step, high, low): &(f32, Vec<i64>, Option<Vec<i64>>)) -> Vec<f64> {
    let low = low.clone().unwrap_or_else(|| vec![0; high.len()]);
    let values = high.iter().zip(low);
    values.map(|(high, low)| f64::from(*step) / 128.0 * (128 * high + low) as f64).collect()
}

/// The formulas of `kernels::linear` and `rows`, written again in plain scalar code: the high
/// parts' sum, and the low ones'.
fn twin(source: &MatrixSource<'_>, x: &[f32]) -> Vec<f32> {
    let MatrixSource { format, rows, cols, bytes } = *source;
    let shape = format.affine().unwrap();
    let groups = cols / shape.group;
    let mut out = Vec::new();
    for x in x.chunks_exact(cols) {
        let integers: Vec<_> = integers(x).into_iter().enumerate().collect();
        for row in bytes.chunks_exact(bytes.len() / rows) {
            let mut codes = vec![0u8; cols];
            let (mut scales, mut biases) = (vec![0f32; groups], vec![0f32; groups]);
            format.decode_affine_row(row, &mut codes, &mut scales, &mut biases);
            let add = |mut sum: f32, group: usize, unit: f32, x: &[i64]| {
                let part = shape.group.min(32);
                for first in (32 * group..32 * group + 32).step_by(part) {
                    let (mut dot, mut total) = (0i64, 0i64);
                    for k in first..first + part {
                        dot += i64::from(codes[k]) * x[k % 32];
                        total += x[k % 32];
                    }
                    let index = first / shape.group;
                    if let Zero::Point(point) = shape.zero {
                        dot -= i64::from(point) * total;
                    } else {
                        sum = biases[index].mul_add(unit * total as f32, sum);
                    }
                    sum = scales[index].mul_add(dot as f32 * unit, sum);
                }
                sum
            };
            let (mut sum, mut low_sum) = (0f32, 0f32);
            for (group, (step, high, low)) in &integers {
                sum = add(sum, *group, *step, high);
                if let Some(low) = low {
                    low_sum = add(low_sum, *group, step / 128.0, low);
                }
            }
            out.push(sum + low_sum);
        }
    }
    out
}

/// Every format of GGUF and of MLX.
fn all() -> Vec<QuantFormat> {
    QuantFormat::ALL.iter().copied().chain(QuantFormat::of_mlx()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_block_format_equals_its_twin_bit_for_bit() {
    let team = Team::new(2).unwrap();
    let mut random = Random::new(1);
    for format in all().into_iter().filter(|format| format.affine().is_some()) {
        // One to six row blocks; runs of groups of one length and of two.
        for (rows, groups) in [(1, 1), (15, 3), (33, 2), (48, 1), (90, 20), (20, 37)] {
            let cols = groups * format.block_elements().max(32);
            let bytes = weights(&mut random, format, rows, cols);
            let source = MatrixSource { format, rows, cols, bytes: &bytes };
            let matrix = pack(&source, &team);
            for tokens in [1, 2, 3, 5, 8, 15, 33] {
                let x = activations(&mut random, tokens * cols);
                let expected = bits(&twin(&source, &x));
                for isa in Isa::all() {
                    let got = product(&team, isa, &matrix, &x, Finish::Store, f32::NAN);
                    let case = format!("{format} {rows}x{cols}, {tokens} tokens, {}", isa.name());
                    assert_eq!(bits(&got), expected, "{case}");
                }
            }
        }
    }
}

#[test]
fn products_are_near_the_exact_ones() {
    let team = Team::new(2).unwrap();
    let mut random = Random::new(2);
    for format in all() {
        let (rows, cols, tokens) = (37, 512, 9);
        let bytes = weights(&mut random, format, rows, cols);
        let matrix = pack(&MatrixSource { format, rows, cols, bytes: &bytes }, &team);
        let x = activations(&mut random, tokens * cols);
        let got = product(&team, Isa::detect(), &matrix, &x, Finish::Store, f32::NAN);
        let mut weight = vec![0f32; cols];
        for row in 0..rows {
            matrix.decode_row(row, &mut weight);
            let mut stored = vec![0f32; cols];
            format
                .decode_row(&bytes[row * bytes.len() / rows..][..bytes.len() / rows], &mut stored);
            assert_eq!(bits(&weight), bits(&stored), "{format}: decode_row");
            for token in 0..tokens {
                let x = &x[token * cols..][..cols];
                let pairs = weight.iter().zip(x);
                let exact: f64 = pairs.clone().map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let size: f64 = pairs.map(|(w, x)| f64::from(*w * *x).abs()).sum();
                let error = (f64::from(got[token * rows + row]) - exact).abs();
                // What X leaves out of x, seen through the weights, and no more: f32 sums of up to
                // 512 terms are off by 16 times 2^-24 or so, of partial sums twice as large.
                let left = integers(x).into_iter().zip(weight.chunks(32).zip(x.chunks(32)));
                let left = left.map(|(integers, (weight, x))| {
                    let products = decoded(&integers).into_iter().zip(weight.iter().zip(x));
                    let products =
                        products.map(|(x8, (w, x))| f64::from(*w) * (f64::from(*x) - x8));
                    products.sum::<f64>()
                });
                let left = if matrix.wants_quantized() { left.sum::<f64>().abs() } else { 0.0 };
                assert!(left <= size * 0.01, "{format}: X leaves out {left} of {size}");
                assert!(error <= left + size * 4e-6, "{format}: {error} of {size}, X {left}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_batch_or_instruction_set() {
    let mut random = Random::new(3);
    let one = Team::new(1).unwrap();
    let formats = [QuantFormat::Q4_1, QuantFormat::Q8_0, QuantFormat::F16, QuantFormat::F32];
    // More tokens of so many columns than pass by together.
    let wide = (20, 672, 45);
    for (format, shape) in formats.into_iter().flat_map(|f| [(f, (77, 96, 33)), (f, wide)]) {
        let (rows, cols, tokens) = shape;
        let bytes = weights(&mut random, format, rows, cols);
        let matrix = pack(&MatrixSource { format, rows, cols, bytes: &bytes }, &one);
        let x = random.floats(tokens * cols);
        let alone: Vec<u32> = x
            .chunks_exact(cols)
            .flat_map(|x| product(&one, Isa::detect(), &matrix, x, Finish::Store, 0.0))
            .map(f32::to_bits)
            .collect();
        for members in [1, 2, 3, 7] {
            let team = Team::new(members).unwrap();
            for isa in Isa::all() {
                let got = product(&team, isa, &matrix, &x, Finish::Store, 0.0);
                assert_eq!(bits(&got), alone, "{format}, {members} threads, {}", isa.name());
            }
        }
    }
}

#[test]
fn finishes_add_and_gate() {
    let team = Team::new(2).unwrap();
    let mut random = Random::new(4);
    let (rows, cols, tokens) = (40, 64, 11);
    let mut matrices = [QuantFormat::Q4_1, QuantFormat::Q8_0].into_iter().map(|format| {
        let bytes = weights(&mut random, format, rows, cols);
        pack(&MatrixSource { format, rows, cols, bytes: &bytes }, &team)
    });
    let (gate, up) = (matrices.next().unwrap(), matrices.next().unwrap());
    drop(matrices);
    let x: Vec<f32> = random.floats(tokens * cols).iter().map(|x| x * 8.0).collect();
    let isa = Isa::detect();
    let gates = product(&team, isa, &gate, &x, Finish::Store, 0.0);
    let ups = product(&team, isa, &up, &x, Finish::Store, 0.0);
    let added = product(&team, isa, &gate, &x, Finish::Add, 2.5);
    let sums: Vec<f32> = gates.iter().map(|product| 2.5 + product).collect();
    assert_eq!(bits(&added), bits(&sums));
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::ClampedSilu] {
        let finish = Finish::Gated { up: &up, up_bias: None, activation };
        let fused = product(&team, isa, &gate, &x, finish, 0.0);
        for other in Isa::all() {
            let got = product(&team, other, &gate, &x, finish, 0.0);
            assert_eq!(bits(&got), bits(&fused), "{}", other.name());
        }
        for ((gate, up), fused) in gates.iter().zip(&ups).zip(&fused) {
            let g = f64::from(*gate);
            let u = f64::from(*up);
            let exact = match activation {
                Activation::Silu => u * g / (1.0 + (-g).exp()),
                Activation::GeluTanh => {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g * g * g);
                    0.5 * g * (1.0 + u.tanh()) * f64::from(*up)
                }
                Activation::ClampedSilu => {
                    let g = g.min(7.0);
                    (u.clamp(-7.0, 7.0) + 1.0) * g / (1.0 + (-1.702 * g).exp())
                }
            };
            let error = (f64::from(*fused) - exact).abs();
            assert!(
                error <= 1e-6 * exact.abs() + 1e-7 * (1.0 + f64::from(up.abs())),
                "{gate} {up}: {error}"
            );
        }
    }
}

#[test]
fn a_bias_is_added() {
    let team = Team::new(2).unwrap();
    let mut random = Random::new(5);
    let (rows, cols) = (21, 32);
    let bytes = weights(&mut random, QuantFormat::Q4_0, rows, cols);
    let source = MatrixSource { format: QuantFormat::Q4_0, rows, cols, bytes: &bytes };
    let matrix = pack(&source, &team);
    let (mut x, bias) = (random.floats(cols), random.floats(rows));
    let plain = product(&team, Isa::detect(), &matrix, &x, Finish::Store, 0.0);
    let room = QuantizedRows::new(1, cols).unwrap();
    let view = room.view(1, cols);
    let mut out = vec![0.0; rows];
    let output = Rows::new(&mut out, 1, rows);
    let input = Rows::new(&mut x, 1, cols);
    let job = Linear { matrix: &matrix, bias: Some(&bias), output, finish: Finish::Store };
    let (sum, quantized) = (Sum::Store, Some(view));
    let pass = RowPass { input, picks: None, norm: None, output: None, sum, quantized };
    team.run(&|worker| {
        // SAFETY: every member makes the same calls on buffers of this function.
        unsafe {
            row_pass(worker, Isa::detect(), &pass);
            let input = LinearInput { quantized: Some(view), rows: None };
            linear(worker, Isa::detect(), &input, &[job]);
        }
    });
    for row in 0..rows {
        assert_eq!(out[row], plain[row] + bias[row]);
    }
}

#[test]
fn norm_gathers_scales_and_quantizes() {
    let team = Team::new(3).unwrap();
    let mut random = Random::new(6);
    let (tokens, width) = (13, 96);
    let mut x = activations(&mut random, tokens * width);
    let weight = random.floats(width);
    let picks = [12, 0, 5, 5];
    let room = QuantizedRows::new(picks.len(), width).unwrap();
    let view = room.view(picks.len(), width);
    let copy = x.clone();
    let input = Rows::new(&mut x, tokens, width);
    let mut expected: Option<Vec<u32>> = None;
    for isa in Isa::all() {
        let mut out = vec![0.0; picks.len() * width];
        let pass = RowPass {
            input,
            picks: Some(&picks),
            norm: Some(RmsNorm { weight: &weight, epsilon: 1e-5 }),
            output: Some(Rows::new(&mut out, picks.len(), width)),
            sum: Sum::Store,
            quantized: Some(view),
        };
        // SAFETY: every member makes the same call on buffers of this function.
        team.run(&|worker| unsafe { row_pass(worker, isa, &pass) });
        for (row, pick) in picks.iter().enumerate() {
            let x = &copy[*pick as usize * width..][..width];
            let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
            // SAFETY: the team has finished.
            let values = unsafe { view.decode_row(row) };
            for k in 0..width {
                let exact = f64::from(x[k]) / (mean + 1e-5).sqrt() * f64::from(weight[k]);
                let got = out[row * width + k];
                assert!((f64::from(got) - exact).abs() < 1e-6, "{got} for {exact}");
                let twin = decoded(&integers(&out[row * width..][..width])[k / 32])[k % 32] as f32;
                assert!((values[k] - twin).abs() <= 1e-6 * twin.abs(), "{} {twin}", values[k]);
            }
        }
        let out = bits(&out);
        assert_eq!(&out, expected.get_or_insert(out.clone()), "{}", isa.name());
    }
}

#[test]
fn norm_adds_to_what_is_there() {
    let mut random = Random::new(8);
    // Whole groups of 32, and some with a tail.
    for width in [96, 40] {
        let mut x = activations(&mut random, 5 * width);
        let (weight, before) = (random.floats(width), random.floats(5 * width));
        let input = Rows::new(&mut x, 5, width);
        for (isa, members) in Isa::all().into_iter().flat_map(|isa| [(isa, 1), (isa, 3)]) {
            let run = |start: &[f32], sum| {
                let mut out = start.to_vec();
                let pass = RowPass {
                    input,
                    picks: None,
                    norm: Some(RmsNorm { weight: &weight, epsilon: 1e-5 }),
                    output: Some(Rows::new(&mut out, 5, width)),
                    sum,
                    quantized: None,
                };
                // SAFETY: every member makes the same call on buffers of this function.
                Team::new(members).unwrap().run(&|worker| unsafe { row_pass(worker, isa, &pass) });
                out
            };
            let (stored, added) = (run(&before, Sum::Store), run(&before, Sum::Add));
            for ((added, stored), before) in added.iter().zip(stored).zip(&before) {
                assert_eq!(*added, before + stored, "{} on {members}", isa.name());
            }
        }
    }
}

#[test]
fn soft_cap_is_near_the_definition() {
    let team = Team::new(3).unwrap();
    let mut random = Random::new(4);
    for width in [5, 96, 9001] {
        let values: Vec<f32> = random.floats(2 * width).iter().map(|x| 90.0 * x).collect();
        let mut expected: Option<Vec<u32>> = None;
        for isa in Isa::all() {
            let mut out = values.clone();
            let rows = Rows::new(&mut out, 2, width);
            // SAFETY: every member makes the same call on buffers of this function.
            team.run(&|worker| unsafe { soft_cap(worker, isa, 30.0, rows) });
            for (got, x) in out.iter().zip(&values) {
                let exact = 30.0 * (f64::from(*x) / 30.0).tanh();
                assert!((f64::from(*got) - exact).abs() < 2e-5, "{got} for {exact}");
            }
            let out = bits(&out);
            assert_eq!(&out, expected.get_or_insert(out.clone()), "{}", isa.name());
        }
    }
}
