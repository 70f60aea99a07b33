//! How do the commonest formats come into the layout of `packed` without being taken apart? A row's
//! block is read as words, and each word of the layout is made of two of them.
//!
//! For 16 rows of a group this reads the blocks once and writes each byte of the layout once, which
//! is as fast as memory. Formats that are not here, and row blocks that are not full, are taken
//! apart and put together by `packed`; for the others that is the slow twin.

use ops::quant_format::QuantFormat;

use crate::packed::{BLOCK_ROWS, CODES4_BYTES};

const LOW: u32 = 0x0f0f_0f0f;
/// 16 rows' scales or biases in f16.
const LANES: usize = 2 * BLOCK_ROWS;
const CODES8_BYTES: usize = 32 * BLOCK_ROWS;

/// Packs 16 whole rows; false, and nothing is written, where the format has no such way.
pub(crate) fn pack_directly(format: QuantFormat, bytes: &[u8], packed: &mut [u8]) -> bool {
    match format {
        QuantFormat::Q4_0 => pack_groups::<18, { CODES4_BYTES + LANES }>(bytes, packed, put_q4_0),
        QuantFormat::Q4_1 => {
            pack_groups::<20, { CODES4_BYTES + 2 * LANES }>(bytes, packed, put_q4_1);
        }
        QuantFormat::Q8_0 => pack_groups::<34, { CODES8_BYTES + LANES }>(bytes, packed, put_q8_0),
        _ => return false,
    }
    true
}

/// Puts the blocks of each group, row by row, to where `put` wants them.
fn pack_groups<const STORED: usize, const PACKED: usize>(
    bytes: &[u8],
    packed: &mut [u8],
    put: impl Fn(&[u8; STORED], usize, &mut [u8; PACKED]),
) {
    let (blocks, _) = bytes.as_chunks::<STORED>();
    let (groups, _) = packed.as_chunks_mut::<PACKED>();
    let row_blocks = groups.len();
    assert_eq!(blocks.len(), BLOCK_ROWS * row_blocks, "whole rows of whole groups");
    for (group, packed) in groups.iter_mut().enumerate() {
        for row in 0..BLOCK_ROWS {
            put(&blocks[row * row_blocks + group], row, packed);
        }
    }
}

/// Stored are an f16 scale, then 16 bytes: low nibbles are columns 0 to 15, high ones 16 to 31.
fn put_q4_0<const PACKED: usize>(block: &[u8; 18], row: usize, packed: &mut [u8; PACKED]) {
    put_nibbles(&block[2..], row, packed);
    put_half(&block[..2], row, &mut packed[CODES4_BYTES..]);
}

/// The same with an f16 bias behind the scale.
fn put_q4_1<const PACKED: usize>(block: &[u8; 20], row: usize, packed: &mut [u8; PACKED]) {
    put_nibbles(&block[4..], row, packed);
    put_half(&block[..2], row, &mut packed[CODES4_BYTES..]);
    put_half(&block[2..4], row, &mut packed[CODES4_BYTES + LANES..]);
}

/// Stored are an f16 scale and 32 signed bytes; 128 is added to each.
fn put_q8_0<const PACKED: usize>(block: &[u8; 34], row: usize, packed: &mut [u8; PACKED]) {
    for quad in 0..8 {
        let code = word(&block[2..], quad) ^ 0x8080_8080;
        put_word(code, 64 * quad + 4 * row, packed);
    }
    put_half(&block[..2], row, &mut packed[CODES8_BYTES..]);
}

fn put_nibbles<const PACKED: usize>(stored: &[u8], row: usize, packed: &mut [u8; PACKED]) {
    for pair in 0..2 {
        let (first, second) = (word(stored, 2 * pair), word(stored, 2 * pair + 1));
        let low = first & LOW | (second & LOW) << 4;
        let high = first >> 4 & LOW | second & !LOW;
        put_word(low, 64 * pair + 4 * row, packed);
        put_word(high, 64 * (2 + pair) + 4 * row, packed);
    }
}

#[inline(always)]
fn word(bytes: &[u8], index: usize) -> u32 {
    let at = 4 * index;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn put_word(word: u32, at: usize, packed: &mut [u8]) {
    packed[at..at + 4].copy_from_slice(&word.to_le_bytes());
}

#[inline(always)]
fn put_half(half: &[u8], row: usize, lanes: &mut [u8]) {
    lanes[2 * row..2 * row + 2].copy_from_slice(half);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{AffineLayout, PackScratch};

    /// Any bytes are codes; scales and biases are numbers.
    fn stored(format: QuantFormat, blocks: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut state = 7u32;
        for index in 0..blocks * format.block_bytes() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let is_top_of_half = [1, 3].contains(&(index % format.block_bytes()));
            let byte = (state >> 24) as u8;
            bytes.push(if is_top_of_half { byte & 0xb7 } else { byte });
        }
        bytes
    }

    #[test]
    fn what_is_packed_directly_is_what_is_taken_apart() {
        let mut direct = Vec::new();
        for format in QuantFormat::ALL.iter().copied() {
            let Some(shape) = format.affine() else { continue };
            let affine = AffineLayout::of(shape);
            for groups in [1, 3, 8] {
                let cols = groups * format.block_elements();
                let bytes = stored(format, BLOCK_ROWS * groups);
                let packed_bytes = cols / 32 * affine.group_bytes();
                let (mut quick, mut slow) = (vec![0; packed_bytes], vec![0; packed_bytes]);
                if pack_directly(format, &bytes, &mut quick) {
                    direct.push(format);
                    PackScratch::default().pack(affine, format, &bytes, BLOCK_ROWS, &mut slow);
                    assert!(quick == slow, "{format}, {groups} groups");
                } else {
                    assert!(quick.iter().all(|byte| *byte == 0), "{format} was written");
                }
            }
        }
        direct.dedup();
        assert_eq!(direct, [QuantFormat::Q4_0, QuantFormat::Q4_1, QuantFormat::Q8_0]);
    }
}
