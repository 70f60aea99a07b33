//! What do the codebook formats hold? IQ4_NL and IQ4_XS: nibbles that index 16 uneven levels.
//!
//! A level plus 128 fits a byte, so the unpacked code is that byte and the zero point is 128: the
//! codebook disappears at repacking, at the price of 8-bit codes.
//! Source: `kvalues_iq4nl` and `block_iq4_xs` in `ggml-common.h`.

use super::{BlockParts, half_at, split_nibbles};

const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// f16 scale, 16 bytes of nibbles.
pub(super) fn unpack_iq4_nl(block: &[u8], parts: BlockParts<'_>) {
    parts.scales[0] = half_at(block, 0);
    parts.biases[0] = 0.0;
    split_nibbles(&block[2..18], parts.codes);
    look_up_levels(parts.codes);
}

/// f16 d, 16 bits with the top two bits of eight 6-bit scales, 4 bytes with their low nibbles,
/// 128 bytes of nibbles.
pub(super) fn unpack_iq4_xs(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 0);
    let high_bits = u16::from_le_bytes([block[2], block[3]]);
    for group in 0..8 {
        let low = (block[4 + group / 2] >> (4 * (group % 2))) & 0x0F;
        let high = ((high_bits >> (2 * group)) & 0x03) as u8;
        let scale = i16::from(low | (high << 4)) - 32;
        parts.scales[group] = d * f32::from(scale);
    }
    parts.biases.fill(0.0);
    let packed = block[8..136].chunks_exact(16);
    for (packed, codes) in packed.zip(parts.codes.chunks_exact_mut(32)) {
        split_nibbles(packed, codes);
    }
    look_up_levels(parts.codes);
}

fn look_up_levels(codes: &mut [u8]) {
    for code in codes {
        *code = LEVELS[usize::from(*code & 0x0F)].cast_unsigned() ^ 0x80;
    }
}
