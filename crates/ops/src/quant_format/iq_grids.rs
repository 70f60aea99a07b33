//! What do the grid formats hold? IQ1, IQ2 and IQ3: indices of points of a grid, and signs.
//!
//! A point is 4 or 8 weights' magnitudes, so a few bits say them all. The grids are undone here: a
//! code is a level with its sign, plus the zero point. Levels of IQ2 and IQ3_XXS reach 62 and take
//! 8 bits, the odd levels of IQ3_S (to 15) and the eighths of IQ1 (to 9) take 5.
//!
//! `iq_grids.bin` holds the points as indices of levels, lowest bits first: 8 of 2 bits a point
//! (IQ2_XXS, IQ2_XS, IQ2_S, IQ1), or 4 of 4 bits (IQ3_XXS, IQ3_S). It is written by
//! `tools/golden/make_gguf_blocks.py`.
//!
//! Source: `block_iq1_s` to `block_iq3_s` and the grids in `ggml-common.h`.

use super::{BlockParts, half_at};

/// The zero point of codes in 8 bits.
const POINT8: u8 = 128;
/// The zero point of codes in 5 bits.
const POINT5: u8 = 16;

static POINTS: &[u8; GRID_IQ1.end()] = include_bytes!("iq_grids.bin");

/// A grid's place among the points.
#[derive(Clone, Copy)]
struct Grid {
    start: usize,
    points: usize,
}

const GRID_IQ2_XXS: Grid = Grid { start: 0, points: 256 };
const GRID_IQ2_XS: Grid = GRID_IQ2_XXS.then(512);
const GRID_IQ2_S: Grid = GRID_IQ2_XS.then(1024);
const GRID_IQ3_XXS: Grid = GRID_IQ2_S.then(256);
const GRID_IQ3_S: Grid = GRID_IQ3_XXS.then(512);
const GRID_IQ1: Grid = GRID_IQ3_S.then(2048);

const LEVELS_IQ2: [u8; 4] = [8, 25, 43, 0];
const LEVELS_IQ3_XXS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
const LEVELS_IQ3_S: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];

impl Grid {
    const fn then(self, points: usize) -> Grid {
        Grid { start: self.end(), points }
    }

    /// Every point is 16 bits.
    const fn end(self) -> usize {
        self.start + 2 * self.points
    }

    fn point(self, index: usize) -> u16 {
        let at = self.start + 2 * (index % self.points);
        u16::from_le_bytes([POINTS[at], POINTS[at + 1]])
    }

    /// Eight levels of IQ2 with their signs, bit by bit.
    fn put_eight(self, index: usize, signs: u8, codes: &mut [u8]) {
        let point = self.point(index);
        for (place, code) in codes.iter_mut().enumerate() {
            let level = LEVELS_IQ2[usize::from(point >> (2 * place) & 3)];
            *code = signed(POINT8, level, signs >> place);
        }
    }

    /// Four levels of IQ3.
    fn put_four(self, index: usize, levels: (u8, [u8; 8]), signs: u8, codes: &mut [u8]) {
        let (zero, levels) = levels;
        let point = self.point(index);
        for (place, code) in codes.iter_mut().enumerate() {
            let level = levels[usize::from(point >> (4 * place) & 7)];
            *code = signed(zero, level, signs >> place);
        }
    }
}

/// The level above the zero point, or below it if the lowest bit of `sign` is set.
fn signed(zero: u8, level: u8, sign: u8) -> u8 {
    if sign & 1 == 0 { zero + level } else { zero - level }
}

/// Eight signs from seven bits: their number is even.
fn even_signs(seven: u32) -> u8 {
    let seven = (seven & 0x7F) as u8;
    seven | ((seven.count_ones() & 1) as u8) << 7
}

fn word_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

fn long_at(block: &[u8], offset: usize) -> u32 {
    let bytes = [block[offset], block[offset + 1], block[offset + 2], block[offset + 3]];
    u32::from_le_bytes(bytes)
}

/// Sixteen 4-bit scales, low nibbles first: `d * (scale + 1/2) / 4`.
fn put_half_scales(d: f32, packed: &[u8], scales: &mut [f32]) {
    for (pair, byte) in scales.chunks_exact_mut(2).zip(packed) {
        pair[0] = d * (0.5 + f32::from(byte & 15)) * 0.25;
        pair[1] = d * (0.5 + f32::from(byte >> 4)) * 0.25;
    }
}

/// f16 d; for each 32 weights four indices, then four times seven signs and a 4-bit scale.
pub(super) fn unpack_iq2_xxs(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 0);
    parts.biases.fill(0.0);
    for (group, codes) in parts.codes.chunks_exact_mut(32).enumerate() {
        let at = 2 + 8 * group;
        let signs = long_at(block, at + 4);
        parts.scales[group] = d * (0.5 + (signs >> 28) as f32) * 0.25;
        for (part, codes) in codes.chunks_exact_mut(8).enumerate() {
            let index = usize::from(block[at + part]);
            GRID_IQ2_XXS.put_eight(index, even_signs(signs >> (7 * part)), codes);
        }
    }
}

/// f16 d; for each 8 weights nine bits of index and seven signs; sixteen 4-bit scales.
pub(super) fn unpack_iq2_xs(block: &[u8], parts: BlockParts<'_>) {
    put_half_scales(half_at(block, 0), &block[66..74], parts.scales);
    parts.biases.fill(0.0);
    for (part, codes) in parts.codes.chunks_exact_mut(8).enumerate() {
        let word = word_at(block, 2 + 2 * part);
        GRID_IQ2_XS.put_eight(usize::from(word & 511), even_signs(u32::from(word >> 9)), codes);
    }
}

/// f16 d; low bytes of 32 indices; signs; two high bits of each index; sixteen 4-bit scales.
pub(super) fn unpack_iq2_s(block: &[u8], parts: BlockParts<'_>) {
    put_half_scales(half_at(block, 0), &block[74..82], parts.scales);
    parts.biases.fill(0.0);
    for (part, codes) in parts.codes.chunks_exact_mut(8).enumerate() {
        let high = usize::from(block[66 + part / 4] >> (2 * (part % 4)) & 3);
        let index = usize::from(block[2 + part]) | high << 8;
        GRID_IQ2_S.put_eight(index, block[34 + part], codes);
    }
}

/// f16 d; 64 indices; for each 32 weights four times seven signs and a 4-bit scale.
pub(super) fn unpack_iq3_xxs(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 0);
    parts.biases.fill(0.0);
    for (group, codes) in parts.codes.chunks_exact_mut(32).enumerate() {
        let signs = long_at(block, 66 + 4 * group);
        parts.scales[group] = d * (0.5 + (signs >> 28) as f32) * 0.5;
        for (part, codes) in codes.chunks_exact_mut(4).enumerate() {
            let index = usize::from(block[2 + 8 * group + part]);
            let signs = even_signs(signs >> (7 * (part / 2))) >> (4 * (part % 2));
            GRID_IQ3_XXS.put_four(index, (POINT8, LEVELS_IQ3_XXS), signs, codes);
        }
    }
}

/// f16 d; low bytes of 64 indices; their ninth bits; signs; eight 4-bit scales.
pub(super) fn unpack_iq3_s(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 0);
    parts.biases.fill(0.0);
    for (group, scale) in parts.scales.iter_mut().enumerate() {
        let nibble = block[106 + group / 2] >> (4 * (group % 2)) & 15;
        *scale = d * f32::from(1 + 2 * nibble);
    }
    for (part, codes) in parts.codes.chunks_exact_mut(4).enumerate() {
        let high = usize::from(block[66 + part / 8] >> (part % 8) & 1);
        let index = usize::from(block[2 + part]) | high << 8;
        let signs = block[74 + part / 2] >> (4 * (part % 2));
        GRID_IQ3_S.put_four(index, (POINT5, LEVELS_IQ3_S), signs, codes);
    }
}

/// A point of IQ1 is eight of -1, 0 and 1, all moved up or down by an eighth: codes count eighths.
fn put_eighths(index: usize, is_lowered: bool, codes: &mut [u8]) {
    let point = GRID_IQ1.point(index);
    let shifted = if is_lowered { POINT5 - 8 - 1 } else { POINT5 - 8 + 1 };
    for (place, code) in codes.iter_mut().enumerate() {
        *code = shifted + 8 * (point >> (2 * place) & 3).min(2) as u8;
    }
}

/// f16 d; low bytes of 32 indices; for each 32 weights three high bits of each index, a 3-bit scale
/// and whether the points are lowered.
pub(super) fn unpack_iq1_s(block: &[u8], parts: BlockParts<'_>) {
    let d = half_at(block, 0);
    parts.biases.fill(0.0);
    for (group, codes) in parts.codes.chunks_exact_mut(32).enumerate() {
        let high = word_at(block, 34 + 2 * group);
        parts.scales[group] = d * f32::from(2 * (high >> 12 & 7) + 1) * 0.125;
        for (part, codes) in codes.chunks_exact_mut(8).enumerate() {
            let upper = usize::from(high >> (3 * part) & 7);
            let index = usize::from(block[2 + 4 * group + part]) | upper << 8;
            put_eighths(index, high & 0x8000 != 0, codes);
        }
    }
}

/// Low bytes of 32 indices; for each a nibble of three high bits and whether the point is lowered;
/// four words of four 3-bit scales each, whose top nibbles are the f16 d.
pub(super) fn unpack_iq1_m(block: &[u8], parts: BlockParts<'_>) {
    let words: [u16; 4] = std::array::from_fn(|index| word_at(block, 48 + 2 * index));
    let d = words[0] >> 12 | words[1] >> 8 & 0xF0 | words[2] >> 4 & 0xF00 | words[3] & 0xF000;
    let d = half::f16::from_bits(d).to_f32();
    parts.biases.fill(0.0);
    for (group, scale) in parts.scales.iter_mut().enumerate() {
        let small = words[group / 4] >> (3 * (group % 4)) & 7;
        *scale = d * f32::from(2 * small + 1) * 0.125;
    }
    for (part, codes) in parts.codes.chunks_exact_mut(8).enumerate() {
        let high = block[32 + part / 2] >> (4 * (part % 2));
        let index = usize::from(block[part]) | usize::from(high & 7) << 8;
        put_eighths(index, high & 8 != 0, codes);
    }
}
