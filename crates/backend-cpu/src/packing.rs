//! How do the commonest formats come into the layout of `packed` without being taken apart? A row's
//! block is read as words, and each word of the layout is made of two of them.
//!
//! For 16 rows of a group this reads the blocks once and writes each byte of the layout once, which
//! is as fast as memory. Formats that are not here, and row blocks that are not full, are taken
//! apart and put together by `packed`; for the others that is the slow twin.

use ops::quant_format::QuantFormat;

use crate::Isa;
use crate::arch::Kernel;
use crate::packed::{BLOCK_ROWS, CODES4_BYTES};
use crate::vector::Vector;

const LOW: u32 = 0x0f0f_0f0f;
/// 16 rows' scales or biases in f16.
const LANES: usize = 2 * BLOCK_ROWS;
const CODES8_BYTES: usize = 32 * BLOCK_ROWS;

/// Whether `pack_directly` knows the format.
pub(crate) fn packs_directly(format: QuantFormat) -> bool {
    matches!(format, QuantFormat::Q4_0 | QuantFormat::Q4_1 | QuantFormat::Q8_0)
}

/// Packs 16 whole rows; false, and nothing is written, where the format has no such way.
pub(crate) fn pack_directly(
    isa: Isa,
    format: QuantFormat,
    bytes: &[u8],
    packed: &mut [u8],
) -> bool {
    // SAFETY: the kernel has no contract.
    unsafe { isa.run(PackRows { format, bytes, packed }) }
}

struct PackRows<'a> {
    format: QuantFormat,
    bytes: &'a [u8],
    packed: &'a mut [u8],
}

impl Kernel for PackRows<'_> {
    type Output = bool;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> bool {
        let Self { format, bytes, packed } = self;
        // Places of words are numbers of 32 bits.
        if !V::GATHERS || i32::try_from(bytes.len()).is_err() {
            return pack_by_row(format, bytes, packed);
        }
        macro_rules! gather {
            ($stored:literal, $packed:expr, $put:ident) => {{
                let (groups, _) = packed.as_chunks_mut::<{ $packed }>();
                let row_bytes = $stored * groups.len();
                assert_eq!(bytes.len(), BLOCK_ROWS * row_bytes, "whole rows of whole groups");
                for (group, packed) in groups.iter_mut().enumerate() {
                    // SAFETY: each of 16 rows has a block of this group there; the instruction set
                    // is the caller's promise.
                    unsafe { $put::<V>(bytes.as_ptr().add($stored * group), row_bytes, packed) };
                }
            }};
        }
        match format {
            QuantFormat::Q4_0 => gather!(18, CODES4_BYTES + LANES, gather_q4_0),
            QuantFormat::Q4_1 => gather!(20, CODES4_BYTES + 2 * LANES, gather_q4_1),
            QuantFormat::Q8_0 => gather!(34, CODES8_BYTES + LANES, gather_q8_0),
            _ => return false,
        }
        true
    }
}

/// Of 16 rows, whose blocks begin at `from` and `row_bytes` behind each other.
///
/// # Safety
/// There is a block of 18 bytes at each place; the instruction set of `V` is present.
#[inline(always)]
unsafe fn gather_q4_0<V: Vector>(
    from: *const u8,
    row_bytes: usize,
    packed: &mut [u8; CODES4_BYTES + LANES],
) {
    // SAFETY: the caller's promise.
    unsafe {
        gather_nibbles::<V>(from.add(2), row_bytes, &mut packed[..CODES4_BYTES]);
        put_halves(V::words(from, row_bytes), 0, &mut packed[CODES4_BYTES..]);
    }
}

/// # Safety
/// As `gather_q4_0`, of blocks of 20 bytes.
#[inline(always)]
unsafe fn gather_q4_1<V: Vector>(
    from: *const u8,
    row_bytes: usize,
    packed: &mut [u8; CODES4_BYTES + 2 * LANES],
) {
    // SAFETY: the caller's promise.
    unsafe {
        gather_nibbles::<V>(from.add(4), row_bytes, &mut packed[..CODES4_BYTES]);
        let both = V::words(from, row_bytes);
        put_halves(both, 0, &mut packed[CODES4_BYTES..]);
        put_halves(both, 16, &mut packed[CODES4_BYTES + LANES..]);
    }
}

/// # Safety
/// As `gather_q4_0`, of blocks of 34 bytes.
#[inline(always)]
unsafe fn gather_q8_0<V: Vector>(
    from: *const u8,
    row_bytes: usize,
    packed: &mut [u8; CODES8_BYTES + LANES],
) {
    // SAFETY: the caller's promise.
    unsafe {
        for quad in 0..8 {
            let mut codes = V::words(from.add(2 + 4 * quad), row_bytes);
            for codes in &mut codes {
                *codes ^= 0x8080_8080;
            }
            put_words(codes, &mut packed[64 * quad..]);
        }
        put_halves(V::words(from, row_bytes), 0, &mut packed[CODES8_BYTES..]);
    }
}

/// # Safety
/// As `gather_q4_0`; `from` is where the codes begin.
#[inline(always)]
unsafe fn gather_nibbles<V: Vector>(from: *const u8, row_bytes: usize, packed: &mut [u8]) {
    for pair in 0..2 {
        // SAFETY: the caller's promise.
        let (first, second) = unsafe {
            let from = from.add(8 * pair);
            (V::words(from, row_bytes), V::words(from.add(4), row_bytes))
        };
        let (mut low, mut high) = ([0; BLOCK_ROWS], [0; BLOCK_ROWS]);
        for row in 0..BLOCK_ROWS {
            low[row] = first[row] & LOW | (second[row] & LOW) << 4;
            high[row] = first[row] >> 4 & LOW | second[row] & !LOW;
        }
        put_words(low, &mut packed[64 * pair..]);
        put_words(high, &mut packed[64 * (2 + pair)..]);
    }
}

/// 64 bytes: a word of each row.
#[inline(always)]
fn put_words(words: [u32; BLOCK_ROWS], packed: &mut [u8]) {
    let (to, _) = packed[..64].as_chunks_mut::<4>();
    for row in 0..BLOCK_ROWS {
        to[row] = words[row].to_le_bytes();
    }
}

/// Half of a word of each row.
#[inline(always)]
fn put_halves(words: [u32; BLOCK_ROWS], shift: u32, lanes: &mut [u8]) {
    let (to, _) = lanes[..LANES].as_chunks_mut::<2>();
    for row in 0..BLOCK_ROWS {
        to[row] = ((words[row] >> shift) as u16).to_le_bytes();
    }
}

/// The slow twin: a row's blocks one after another.
fn pack_by_row(format: QuantFormat, bytes: &[u8], packed: &mut [u8]) -> bool {
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
        for isa in Isa::all() {
            let mut direct = Vec::new();
            for format in QuantFormat::ALL.iter().copied() {
                let Some(shape) = format.affine() else { continue };
                let affine = AffineLayout::of(shape);
                for groups in [1, 3, 8] {
                    let cols = groups * format.block_elements();
                    let bytes = stored(format, BLOCK_ROWS * groups);
                    let packed_bytes = cols / 32 * affine.group_bytes();
                    let (mut quick, mut slow) = (vec![0; packed_bytes], vec![0; packed_bytes]);
                    if pack_directly(isa, format, &bytes, &mut quick) {
                        direct.push(format);
                        let mut scratch = PackScratch::default();
                        scratch.pack(affine, format, &bytes, BLOCK_ROWS, &mut slow);
                        assert!(quick == slow, "{format}, {groups} groups, {}", isa.name());
                    } else {
                        assert!(quick.iter().all(|byte| *byte == 0), "{format} was written");
                    }
                }
            }
            direct.dedup();
            assert!(direct.iter().all(|format| packs_directly(*format)));
            assert_eq!(direct, [QuantFormat::Q4_0, QuantFormat::Q4_1, QuantFormat::Q8_0]);
        }
    }
}
