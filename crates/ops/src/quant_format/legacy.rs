//! What do the 32-weight blocks hold? Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: one f16 scale a block.
//!
//! Source: `block_q4_0` to `block_q8_0` in `ggml-common.h`.

use super::{BlockParts, half_at, split_nibbles};

/// f16 scale, 16 bytes of nibbles.
pub(super) fn unpack_q4_0(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = half_at(block, 0);
    parts.biases[0] = 0.0;
    split_nibbles(&block[2..18], parts.codes);
}

/// f16 scale, f16 bias, 16 bytes of nibbles.
pub(super) fn unpack_q4_1(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = half_at(block, 0);
    parts.biases[0] = half_at(block, 2);
    split_nibbles(&block[4..20], parts.codes);
}

/// f16 scale, 32 fifth bits, 16 bytes of nibbles.
pub(super) fn unpack_q5_0(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = half_at(block, 0);
    parts.biases[0] = 0.0;
    split_nibbles(&block[6..22], parts.codes);
    add_fifth_bits(&block[2..6], parts.codes);
}

/// f16 scale, f16 bias, 32 fifth bits, 16 bytes of nibbles.
pub(super) fn unpack_q5_1(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = half_at(block, 0);
    parts.biases[0] = half_at(block, 2);
    split_nibbles(&block[8..24], parts.codes);
    add_fifth_bits(&block[4..8], parts.codes);
}

/// f16 scale, 32 signed bytes. Flipping the sign bit adds 128, the zero point.
pub(super) fn unpack_q8_0(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = half_at(block, 0);
    parts.biases[0] = 0.0;
    for (code, byte) in parts.codes.iter_mut().zip(&block[2..34]) {
        *code = byte ^ 0x80;
    }
}

/// Bit `i` of the little-endian word is the fifth bit of code `i`.
fn add_fifth_bits(word: &[u8], codes: &mut [u8]) {
    for (byte, codes) in word.iter().zip(codes.chunks_exact_mut(8)) {
        for (bit, code) in codes.iter_mut().enumerate() {
            *code |= ((byte >> bit) & 1) << 4;
        }
    }
}
