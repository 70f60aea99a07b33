//! What do the 256-weight K-quant blocks hold? Q2_K to Q6_K: small integer scales a group, times
//! one f16 `d` (and one f16 `dmin` for the mins, which are subtracted) a block.
//!
//! The product of the f16 and the small integer is rounded to f32 once, as the reference does.
//! Source: `block_q2_K` to `block_q6_K` in `ggml-common.h`.

use super::{BlockParts, half_at, split_nibbles};

/// 16 bytes of (scale, min) nibbles, 64 bytes of 2-bit codes, f16 d, f16 dmin.
pub(super) fn unpack_q2_k(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 80);
    let dmin = half_at(block, 82);
    for (group, byte) in block[..16].iter().enumerate() {
        parts.scales[group] = d * f32::from(byte & 0x0F);
        parts.biases[group] = -(dmin * f32::from(byte >> 4));
    }
    unpack_two_bits(&block[16..80], parts.codes);
}

/// 32 bytes of third bits, 64 bytes of 2-bit codes, 12 bytes of 6-bit scales, f16 d.
///
/// A set third bit means "do not subtract 4", so it is simply bit 2 of a code with zero point 4.
pub(super) fn unpack_q3_k(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 108);
    let packed = &block[96..108];
    for group in 0..16 {
        let low = (packed[group % 8] >> (4 * (group / 8))) & 0x0F;
        let high = (packed[8 + group % 4] >> (2 * (group / 4))) & 0x03;
        let scale = i16::from(low | (high << 4)) - 32;
        parts.scales[group] = d * f32::from(scale);
    }
    parts.biases.fill(0.0);
    unpack_two_bits(&block[32..96], parts.codes);
    for (bit, codes) in parts.codes.chunks_exact_mut(32).enumerate() {
        for (code, byte) in codes.iter_mut().zip(&block[..32]) {
            *code |= ((byte >> bit) & 1) << 2;
        }
    }
}

/// f16 d, f16 dmin, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles.
pub(super) fn unpack_q4_k(block: &[u8], mut parts: BlockParts<'_>) {
    unpack_scales_and_mins(block, &mut parts);
    let packed = block[16..144].chunks_exact(32);
    for (packed, codes) in packed.zip(parts.codes.chunks_exact_mut(64)) {
        split_nibbles(packed, codes);
    }
}

/// As Q4_K, with 32 bytes of fifth bits before the nibbles: bit `group` of byte `l` belongs to
/// weight `l` of that group.
pub(super) fn unpack_q5_k(block: &[u8], mut parts: BlockParts<'_>) {
    unpack_scales_and_mins(block, &mut parts);
    let packed = block[48..176].chunks_exact(32);
    for (packed, codes) in packed.zip(parts.codes.chunks_exact_mut(64)) {
        split_nibbles(packed, codes);
    }
    for (bit, codes) in parts.codes.chunks_exact_mut(32).enumerate() {
        for (code, byte) in codes.iter_mut().zip(&block[16..48]) {
            *code |= ((byte >> bit) & 1) << 4;
        }
    }
}

/// 128 bytes of nibbles, 64 bytes of high bit pairs, 16 signed byte scales, f16 d.
///
/// Each half of the block (128 weights) has 64 bytes of nibbles and 32 bytes of pairs; its four
/// runs of 32 weights take pair 0, 1, 2, 3 of the same 32 bytes.
pub(super) fn unpack_q6_k(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 208);
    for (scale, byte) in parts.scales.iter_mut().zip(&block[192..208]) {
        *scale = d * f32::from(byte.cast_signed());
    }
    parts.biases.fill(0.0);
    let nibbles = block[..128].chunks_exact(64);
    let pairs = block[128..192].chunks_exact(32);
    for ((nibbles, pairs), codes) in nibbles.zip(pairs).zip(parts.codes.chunks_exact_mut(128)) {
        split_nibbles(nibbles, codes);
        for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(pairs) {
                *code |= ((byte >> (2 * run)) & 0x03) << 4;
            }
        }
    }
}

/// Each 32 bytes hold four runs of 32 codes, in bits 0-1, 2-3, 4-5 and 6-7.
fn unpack_two_bits(packed: &[u8], codes: &mut [u8]) {
    for (packed, codes) in packed.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (run, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(packed) {
                *code = (byte >> (2 * run)) & 0x03;
            }
        }
    }
}

/// Q4_K's and Q5_K's head: eight 6-bit scales and eight 6-bit mins in twelve bytes.
///
/// Groups 0-3 use the low six bits of bytes 0-3 (scale) and 4-7 (min). Groups 4-7 have their low
/// four bits in bytes 8-11 (scale low nibble, min high nibble) and their top two bits in the top
/// of bytes 0-3 and 4-7.
fn unpack_scales_and_mins(block: &[u8], parts: &mut BlockParts<'_>) {
    let d = half_at(block, 0);
    let dmin = half_at(block, 2);
    let packed = &block[4..16];
    for group in 0..4 {
        let (scale_byte, min_byte, low_bits) =
            (packed[group], packed[group + 4], packed[group + 8]);
        let mut set = |group: usize, scale: u8, min: u8| {
            parts.scales[group] = d * f32::from(scale);
            parts.biases[group] = -(dmin * f32::from(min));
        };
        set(group, scale_byte & 0x3F, min_byte & 0x3F);
        set(
            group + 4,
            (low_bits & 0x0F) | ((scale_byte >> 6) << 4),
            (low_bits >> 4) | ((min_byte >> 6) << 4),
        );
    }
}
