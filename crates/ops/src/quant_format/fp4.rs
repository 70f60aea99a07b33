//! What do floats of four bits hold? MXFP4 and NVFP4, as MLX stores them and as GGUF does.
//!
//! Twice an E2M1 is a whole number of -12 to 12, so codes fit 5 bits and scales are halved. MLX
//! has the nibbles of a group in turn, GGUF its first half in the low ones and its second half in
//! the high ones.
//!
//! Source: the OCP specification of microscaling formats; `block_mxfp4` and `block_nvfp4` in
//! `ggml-common.h`, `ggml_e8m0_to_fp32_half` and `ggml_ue4m3_to_fp32` of ggml.

use super::mlx::{e4m3, e8m0};
use super::{BlockParts, split_nibbles};

/// Twice the value of each E2M1 code, and 16: whole numbers.
const E2M1_TWICE: [u8; 16] = [16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4];

fn unpack_e2m1(packed: &[u8], codes: &mut [u8]) {
    for (pair, byte) in codes.chunks_exact_mut(2).zip(packed) {
        pair[0] = E2M1_TWICE[usize::from(byte & 15)];
        pair[1] = E2M1_TWICE[usize::from(byte >> 4)];
    }
}

fn unpack_e2m1_halves(packed: &[u8], codes: &mut [u8]) {
    split_nibbles(packed, codes);
    for code in codes {
        *code = E2M1_TWICE[usize::from(*code & 15)];
    }
}

/// E8M0 scale, 32 codes of E2M1.
pub(super) fn unpack_mxfp4(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = e8m0(block[0]) * 0.5;
    parts.biases[0] = 0.0;
    unpack_e2m1(&block[1..], parts.codes);
}

/// E4M3 scale, 16 codes of E2M1.
pub(super) fn unpack_nvfp4(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = e4m3(block[0]) * 0.5;
    parts.biases[0] = 0.0;
    unpack_e2m1(&block[1..], parts.codes);
}

/// As `unpack_mxfp4` but for the order; the scale of 255 is a number, 2^128, here.
pub(super) fn unpack_gguf_mxfp4(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = match block[0] {
        small @ 0..=1 => f32::from_bits(0x0020_0000 << small),
        exponent => f32::from_bits((u32::from(exponent) - 1) << 23),
    };
    parts.biases[0] = 0.0;
    unpack_e2m1_halves(&block[1..], parts.codes);
}

/// Four scales in E4M3 without a sign, then four times 16 codes.
pub(super) fn unpack_gguf_nvfp4(block: &[u8], parts: BlockParts<'_>) {
    for (scale, byte) in parts.scales.iter_mut().zip(block) {
        *scale = if *byte == 0x7F { 0.0 } else { unsigned_e4m3(*byte) * 0.5 };
    }
    parts.biases.fill(0.0);
    for (packed, codes) in block[4..].chunks_exact(8).zip(parts.codes.chunks_exact_mut(16)) {
        unpack_e2m1_halves(packed, codes);
    }
}

/// What the top bit says is left out, and all that is left are numbers.
fn unsigned_e4m3(byte: u8) -> f32 {
    if byte & 0x7F == 0x7F { 480.0 } else { e4m3(byte & 0x7F) }
}
