//! How do weights become blocks of GGUF's formats? As in ggml's reference quantizers: the same
//! scales, the same codes.
//!
//! Invariant: what is written is what `ops::quant_format` reads; weights are finite.
//!
//! Source: `quantize_row_q4_0_ref` to `quantize_row_q6_K_ref` in `ggml-quants.c` of ggml.

use half::{bf16, f16};
use ops::quant_format::QuantFormat;

use crate::rounding::{NOTHING, Search, nearest, symmetric, with_minimum};

/// The formats that weights are made into.
pub const FORMATS: [QuantFormat; 11] = [
    QuantFormat::F32,
    QuantFormat::F16,
    QuantFormat::Bf16,
    QuantFormat::Q4_0,
    QuantFormat::Q4_1,
    QuantFormat::Q5_0,
    QuantFormat::Q5_1,
    QuantFormat::Q8_0,
    QuantFormat::Q4K,
    QuantFormat::Q5K,
    QuantFormat::Q6K,
];

/// Encodes one row. `bytes` is as long as `format.row_bytes(values.len())` says.
///
/// # Panics
/// If it is not, or the format is none of `FORMATS`.
pub fn encode_row(format: QuantFormat, values: &[f32], bytes: &mut [u8]) {
    assert_eq!(Some(bytes.len()), format.row_bytes(values.len()), "{format}: row length");
    let encode: fn(&[f32], &mut [u8]) = match format {
        QuantFormat::F32 => |values, bytes| bytes.copy_from_slice(&values[0].to_le_bytes()),
        QuantFormat::F16 => {
            |values, bytes| bytes.copy_from_slice(&f16::from_f32(values[0]).to_le_bytes())
        }
        QuantFormat::Bf16 => {
            |values, bytes| bytes.copy_from_slice(&bf16::from_f32(values[0]).to_le_bytes())
        }
        QuantFormat::Q4_0 => |values, bytes| symmetric_block::<8>(values, bytes),
        QuantFormat::Q5_0 => |values, bytes| symmetric_block::<16>(values, bytes),
        QuantFormat::Q4_1 => |values, bytes| minimum_block::<15>(values, bytes),
        QuantFormat::Q5_1 => |values, bytes| minimum_block::<31>(values, bytes),
        QuantFormat::Q8_0 => q8_0,
        QuantFormat::Q4K => |values, bytes| q45_k(4, values, bytes),
        QuantFormat::Q5K => |values, bytes| q45_k(5, values, bytes),
        QuantFormat::Q6K => q6_k,
        other => panic!("{other} is no format that weights are made into"),
    };
    let blocks = bytes.chunks_exact_mut(format.block_bytes());
    for (values, block) in values.chunks_exact(format.block_elements()).zip(blocks) {
        encode(values, block);
    }
}

fn put_half(value: f32, to: &mut [u8]) -> f32 {
    let half = f16::from_f32(value);
    to.copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// Of a scale that is not rounded yet, as ggml does; 0 for 0.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Codes of Q4 and Q5 in their places: low nibbles first, fifth bits in a word before them.
fn put_codes(codes: &[u8; 32], has_fifth: bool, to: &mut [u8]) {
    let nibbles = if has_fifth {
        let word =
            (0..).zip(codes).fold(0u32, |word, (bit, code)| word | u32::from(code >> 4 & 1) << bit);
        to[..4].copy_from_slice(&word.to_le_bytes());
        &mut to[4..]
    } else {
        to
    };
    for (index, byte) in nibbles.iter_mut().enumerate() {
        *byte = codes[index] & 15 | (codes[index + 16] & 15) << 4;
    }
}

/// Q4_0 and Q5_0: the value of the largest magnitude is the lowest code.
fn symmetric_block<const HALF: i32>(values: &[f32], block: &mut [u8]) {
    let largest = values.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let scale = largest / -(HALF as f32);
    let inverse = inverse(scale);
    put_half(scale, &mut block[..2]);
    let code = |value: f32| ((value * inverse + HALF as f32 + 0.5) as i32).min(2 * HALF - 1) as u8;
    let codes: [u8; 32] = std::array::from_fn(|index| code(values[index]));
    put_codes(&codes, HALF == 16, &mut block[2..]);
}

/// Q4_1 and Q5_1: from the lowest value to the highest.
fn minimum_block<const MOST: i32>(values: &[f32], block: &mut [u8]) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (high - low) / MOST as f32;
    let inverse = inverse(scale);
    put_half(scale, &mut block[..2]);
    put_half(low, &mut block[2..4]);
    let code = |value: f32| (((value - low) * inverse + 0.5) as i32).min(MOST) as u8;
    let codes: [u8; 32] = std::array::from_fn(|index| code(values[index]));
    put_codes(&codes, MOST == 31, &mut block[4..]);
}

fn q8_0(values: &[f32], block: &mut [u8]) {
    let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = inverse(scale);
    put_half(scale, &mut block[..2]);
    for (value, byte) in values.iter().zip(&mut block[2..]) {
        *byte = ((value * inverse).round() as i8).cast_unsigned();
    }
}

/// Q4_K and Q5_K: eight groups with scales and minima of six bits.
fn q45_k(bits: u32, values: &[f32], block: &mut [u8]) {
    let search = if bits == 4 {
        Search { codes_max: 15, first: -1.0, steps: 20 }
    } else {
        Search { codes_max: 31, first: -0.5, steps: 15 }
    };
    let (mut scales, mut minima) = ([0f32; 8], [0f32; 8]);
    for (group, values) in values.chunks_exact(32).enumerate() {
        let mean = (values.iter().map(|value| value * value).sum::<f32>() / 32.0).sqrt();
        let weights: [f32; 32] = std::array::from_fn(|index| mean + values[index].abs());
        let (scale, minimum) = with_minimum(values, &weights, search);
        (scales[group], minima[group]) = (scale, -minimum);
    }
    let largest = |values: &[f32; 8]| values.iter().copied().fold(0f32, f32::max);
    let (scale_max, minimum_max) = (largest(&scales), largest(&minima));
    let six_bits = |value: f32, most: f32| {
        let inverse = if most > 0.0 { 63.0 / most } else { 0.0 };
        nearest(inverse * value).clamp(0, 63) as u8
    };
    let d = put_half(scale_max / 63.0, &mut block[..2]);
    let d_minimum = put_half(minimum_max / 63.0, &mut block[2..4]);
    let pairs: [(u8, u8); 8] = std::array::from_fn(|group| {
        (six_bits(scales[group], scale_max), six_bits(minima[group], minimum_max))
    });
    put_six_bits(&pairs, &mut block[4..16]);
    let mut codes = [0u8; 256];
    for (group, codes) in codes.chunks_exact_mut(32).enumerate() {
        let scale = d * f32::from(pairs[group].0);
        let minimum = d_minimum * f32::from(pairs[group].1);
        if scale == 0.0 {
            continue;
        }
        for (code, value) in codes.iter_mut().zip(&values[32 * group..]) {
            *code = nearest((value + minimum) / scale).clamp(0, search.codes_max) as u8;
        }
    }
    let (high, low) = block[16..].split_at_mut(if bits == 5 { 32 } else { 0 });
    high.fill(0);
    for (pair, codes) in codes.chunks_exact(64).enumerate() {
        for l in 0..32 {
            low[32 * pair + l] = codes[l] & 15 | (codes[l + 32] & 15) << 4;
            if bits == 5 {
                high[l] |= (codes[l] >> 4) << (2 * pair) | (codes[l + 32] >> 4) << (2 * pair + 1);
            }
        }
    }
}

/// The first four pairs in six bits each, the others in nibbles behind and the bits left over.
fn put_six_bits(pairs: &[(u8, u8); 8], to: &mut [u8]) {
    for group in 0..4 {
        let ((scale, minimum), (late_scale, late_minimum)) = (pairs[group], pairs[group + 4]);
        to[group] = scale | (late_scale >> 4) << 6;
        to[group + 4] = minimum | (late_minimum >> 4) << 6;
        to[group + 8] = late_scale & 15 | (late_minimum & 15) << 4;
    }
}

/// Sixteen groups with signed scales of eight bits.
fn q6_k(values: &[f32], block: &mut [u8]) {
    let scales: [f32; 16] = std::array::from_fn(|group| symmetric(&values[16 * group..][..16], 32));
    let largest = scales.iter().copied().fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    block.fill(0);
    if largest.abs() < NOTHING {
        return;
    }
    let inverse = -128.0 / largest;
    let d = put_half(1.0 / inverse, &mut block[208..210]);
    let mut codes = [0u8; 256];
    for (group, scale) in scales.iter().enumerate() {
        let eight = nearest(inverse * scale).min(127);
        block[192 + group] = (eight as i8).cast_unsigned();
        let step = d * eight as f32;
        let values = &values[16 * group..];
        for (code, value) in codes[16 * group..][..16].iter_mut().zip(values) {
            let code_of = |step: f32| nearest(value / step).clamp(-32, 31) + 32;
            *code = if step == 0.0 { 32 } else { code_of(step) as u8 };
        }
    }
    for half in 0..2 {
        let codes = &codes[128 * half..][..128];
        for l in 0..32 {
            let four = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
            block[64 * half + l] = four[0] & 15 | (four[2] & 15) << 4;
            block[64 * half + l + 32] = four[1] & 15 | (four[3] & 15) << 4;
            block[128 + 32 * half + l] =
                four[0] >> 4 | four[1] >> 4 << 2 | four[2] >> 4 << 4 | four[3] >> 4 << 6;
        }
    }
}
