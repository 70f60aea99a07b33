//! What do the ternary formats hold? TQ1_0 and TQ2_0: -1, 0 or 1 times one f16 for 256 weights.
//!
//! Source: `block_tq1_0` and `block_tq2_0` in `ggml-common.h`.

use super::{BlockParts, half_at};

/// Five ternary digits a byte, as a fraction of 256: the next digit is what three times the rest
/// carries into the ninth bit.
fn digit(byte: u8, place: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let rest = byte.wrapping_mul(POWERS[place]);
    ((u16::from(rest) * 3) >> 8) as u8
}

/// 32 bytes of five digits each: the first digits of all, then the second ones; 16 more such; 4
/// bytes of four digits each; f16 d.
pub(super) fn unpack_tq1_0(block: &[u8], parts: BlockParts<'_>) {
    let sections = [(0..32, 5), (32..48, 5), (48..52, 4)];
    let mut codes = parts.codes.iter_mut();
    for (bytes, digits) in sections {
        for place in 0..digits {
            for (byte, code) in block[bytes.clone()].iter().zip(codes.by_ref()) {
                *code = digit(*byte, place);
            }
        }
    }
    parts.scales.fill(half_at(block, 52));
    parts.biases.fill(0.0);
}

/// Twice 32 bytes of four 2-bit codes each: the lowest codes of all, then the next ones; f16 d.
pub(super) fn unpack_tq2_0(block: &[u8], parts: BlockParts<'_>) {
    let halves = parts.codes.chunks_exact_mut(128).zip(block[..64].chunks_exact(32));
    for (codes, bytes) in halves {
        for (place, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, byte) in codes.iter_mut().zip(bytes) {
                *code = byte >> (2 * place) & 3;
            }
        }
    }
    parts.scales.fill(half_at(block, 64));
    parts.biases.fill(0.0);
}
