//! How do weights that other programs quantized become blocks that the formats of `ops` have?
//!
//! GPTQ, AWQ and compressed-tensors keep whole numbers, a scale for a group of them and what means
//! zero; `scale * (code - zero)` is an affine block of MLX's form, exactly: with the scale as it is
//! stored and a bias of `-scale * zero`, where zero is a power of two for all, and else with both
//! in f32, which hold these products of short numbers. Where columns of a group are not together,
//! weights become plain floats of the scales' type, which is what their makers' code computes.
//!
//! Numbers of eight bits under a scale become BF16, rounded once, as their makers' code does it.
//!
//! Invariant: pieces are as long as rows, columns, bits and groups need; who makes them checks.
//!
//! Source: `qlinear_cuda_old.py` of AutoGPTQ, `packing_utils.py` of AutoAWQ, `pack_quantized` of
//! compressed-tensors, `finegrained_fp8.py` of transformers.

use half::{bf16, f16};
use ops::quant_format::{MlxFloat, QuantFormat, e4m3};

use crate::file_part::FilePart;
use crate::made_tensor::Piece;
use crate::{Flaw, WeightsError};

/// Where codes lie; zeros lie the same way, with rows and groups for columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// GPTQ: words of a column's codes in turn, `[words of columns][rows]`.
    Columns,
    /// AWQ: words of eight rows in an order of their own, `[columns][words of rows]`.
    EightRows,
    /// compressed-tensors: a stream of bits a row; zeros are `[words of rows][groups]`.
    Rows,
    /// A signed byte each, row by row.
    SignedBytes,
}

/// What code means zero.
#[derive(Clone, Debug)]
pub(crate) enum ZeroCode {
    /// Half of all codes; a tensor of zeros that is there must say so, too.
    Middle(Option<Zeros>),
    Stored(Zeros),
}

/// A tensor of zeros.
#[derive(Clone, Debug)]
pub(crate) struct Zeros {
    pub(crate) piece: Piece,
    /// Added to what is stored.
    pub(crate) added: u8,
}

#[derive(Debug)]
pub(crate) struct Integers {
    pub(crate) codes: Piece,
    pub(crate) scales: Piece,
    pub(crate) scale_float: MlxFloat,
    pub(crate) zero: ZeroCode,
    pub(crate) order: Order,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bits: u8,
    /// Columns that share a scale.
    pub(crate) group: usize,
    /// The group of each column, where it is not the place that tells.
    pub(crate) groups_of: Option<Box<[u32]>>,
    /// Affine blocks, or plain floats.
    pub(crate) format: QuantFormat,
}

/// Weights in E4M3.
#[derive(Debug)]
pub(crate) struct Bytes8 {
    pub(crate) codes: Piece,
    pub(crate) scales: Piece,
    pub(crate) scale_float: MlxFloat,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Rows and columns that share a scale.
    pub(crate) block: (usize, usize),
}

/// Weights handled at once: some MB.
const WEIGHTS_AT_ONCE: usize = 1 << 20;
/// The place of each of eight rows among the nibbles of an AWQ word.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Integers {
    pub(crate) fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    pub(crate) fn write(&self, parts: &[FilePart], to: &mut [u8]) -> Result<(), WeightsError> {
        let scales = floats(&self.scales, self.scale_float, parts)?;
        let zeros = self.zeros(parts)?;
        match self.format {
            QuantFormat::MlxAffine(affine) => {
                let block = affine.group();
                let row_blocks = self.cols / block;
                let step = (WEIGHTS_AT_ONCE / self.rows / block).max(1);
                for first in (0..row_blocks).step_by(step) {
                    let count = step.min(row_blocks - first);
                    let codes = self.read_codes(first * block, count * block, parts)?;
                    for (row, codes) in codes.chunks_exact(count * block).enumerate() {
                        for (index, codes) in codes.chunks_exact(block).enumerate() {
                            let group = (first + index) * block / self.group;
                            let (scale, zero) = self.of_group(row, group, &scales, &zeros);
                            let bytes = affine.block_bytes();
                            let at = (row * row_blocks + first + index) * bytes;
                            affine.pack(scale, -scale * zero, codes, &mut to[at..at + bytes]);
                        }
                    }
                }
            }
            _ => self.write_floats(&scales, &zeros, parts, to)?,
        }
        Ok(())
    }

    fn of_group(&self, row: usize, group: usize, scales: &[f32], zeros: &[u8]) -> (f32, f32) {
        let by_rows = row * self.groups() + group;
        let by_columns = group * self.rows + row;
        let scale = match self.order {
            Order::Columns | Order::EightRows => scales[by_columns],
            Order::Rows | Order::SignedBytes => scales[by_rows],
        };
        (scale, f32::from(zeros.get(by_columns).copied().unwrap_or(self.middle())))
    }

    fn write_floats(
        &self,
        scales: &[f32],
        zeros: &[u8],
        parts: &[FilePart],
        to: &mut [u8],
    ) -> Result<(), WeightsError> {
        let step = (WEIGHTS_AT_ONCE / self.rows / 32).max(1) * 32;
        for first in (0..self.cols).step_by(step) {
            let count = step.min(self.cols - first);
            let codes = self.read_codes(first, count, parts)?;
            for (row, codes) in codes.chunks_exact(count).enumerate() {
                for (index, code) in codes.iter().enumerate() {
                    let column = first + index;
                    let by_place = || column / self.group;
                    let group =
                        self.groups_of.as_ref().map_or_else(by_place, |of| of[column] as usize);
                    let (scale, zero) = self.of_group(row, group, scales, zeros);
                    let value = scale * (f32::from(*code) - zero);
                    let at = row * self.cols + column;
                    match self.scale_float {
                        MlxFloat::F32 => {
                            to[4 * at..4 * at + 4].copy_from_slice(&value.to_le_bytes());
                        }
                        MlxFloat::F16 => {
                            let half = f16::from_f32(value).to_le_bytes();
                            to[2 * at..2 * at + 2].copy_from_slice(&half);
                        }
                        MlxFloat::Bf16 => {
                            let half = bf16::from_f32(value).to_le_bytes();
                            to[2 * at..2 * at + 2].copy_from_slice(&half);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// `[group][row]`; nothing where all are the middle.
    fn zeros(&self, parts: &[FilePart]) -> Result<Vec<u8>, WeightsError> {
        let (ZeroCode::Middle(Some(stored)) | ZeroCode::Stored(stored)) = &self.zero else {
            return Ok(Vec::new());
        };
        let packed = bytes(&stored.piece, parts)?;
        let groups = self.groups();
        let mut zeros = vec![0u8; groups * self.rows];
        for group in 0..groups {
            let zeros = &mut zeros[group * self.rows..][..self.rows];
            let words = self.rows * usize::from(self.bits) / 8;
            match self.order {
                Order::Columns => unpack(&packed[group * words..][..words], self.bits, zeros),
                Order::EightRows => unpack_awq(&packed[group * words..][..words], zeros),
                // Across: a word of rows of each group in turn.
                Order::Rows | Order::SignedBytes => {
                    let own: Vec<u8> = packed
                        .chunks_exact(4 * groups)
                        .flat_map(|words| words[4 * group..4 * group + 4].iter().copied())
                        .collect();
                    unpack(&own, self.bits, zeros);
                }
            }
        }
        let mask = (1u16 << self.bits) - 1;
        for zero in &mut zeros {
            *zero = ((u16::from(*zero) + u16::from(stored.added)) & mask) as u8;
        }
        let is_middle = matches!(self.zero, ZeroCode::Middle(_));
        if is_middle && let Some(other) = zeros.iter().find(|zero| **zero != self.middle()) {
            let middle = self.middle();
            let problem = format!(
                "a code of {other} means zero here, where the settings say that {middle} does for \
                 all (sym): get the model from another source, or correct its settings"
            );
            return Err(WeightsError::Damaged {
                path: parts[stored.piece.part].path().to_owned(),
                flaw: Flaw::new(stored.piece.range.start, problem),
            });
        }
        if is_middle {
            zeros.clear();
        }
        Ok(zeros)
    }

    /// The codes of `count` columns from `first` on, row by row. Both are multiples of 32.
    fn read_codes(
        &self,
        first: usize,
        count: usize,
        parts: &[FilePart],
    ) -> Result<Vec<u8>, WeightsError> {
        let bits = usize::from(self.bits);
        let mut codes = vec![0u8; self.rows * count];
        let part = |start: usize, length: usize| {
            let start = self.codes.range.start + start;
            bytes(&Piece { part: self.codes.part, range: start..start + length }, parts)
        };
        match self.order {
            Order::Columns => {
                let words = part(first * bits / 8 * self.rows, count * bits / 8 * self.rows)?;
                let mut own = Vec::with_capacity(count * bits / 8);
                for (row, codes) in codes.chunks_exact_mut(count).enumerate() {
                    own.clear();
                    for words in words.chunks_exact(4 * self.rows) {
                        own.extend_from_slice(&words[4 * row..4 * row + 4]);
                    }
                    unpack(&own, self.bits, codes);
                }
            }
            Order::EightRows => {
                let column_bytes = self.rows / 2;
                let words = part(first * column_bytes, count * column_bytes)?;
                let mut rows = vec![0u8; self.rows];
                for (column, words) in words.chunks_exact(column_bytes).enumerate() {
                    unpack_awq(words, &mut rows);
                    for (row, code) in rows.iter().enumerate() {
                        codes[row * count + column] = *code;
                    }
                }
            }
            Order::Rows => {
                let (row_bytes, from) = (self.cols * bits / 8, first * bits / 8);
                for (row, codes) in codes.chunks_exact_mut(count).enumerate() {
                    let own = part(row * row_bytes + from, count * bits / 8)?;
                    unpack(&own, self.bits, codes);
                }
            }
            Order::SignedBytes => {
                for (row, codes) in codes.chunks_exact_mut(count).enumerate() {
                    codes.copy_from_slice(&part(row * self.cols + first, count)?);
                    codes.iter_mut().for_each(|code| *code ^= 0x80);
                }
            }
        }
        Ok(codes)
    }
}

impl Bytes8 {
    pub(crate) fn write(&self, parts: &[FilePart], to: &mut [u8]) -> Result<(), WeightsError> {
        let scales = floats(&self.scales, self.scale_float, parts)?;
        let scale_cols = self.cols.div_ceil(self.block.1);
        let values: [f32; 256] = std::array::from_fn(|byte| e4m3(byte as u8));
        let rows_at_once = (WEIGHTS_AT_ONCE / self.cols).max(1);
        for first in (0..self.rows).step_by(rows_at_once) {
            let count = rows_at_once.min(self.rows - first);
            let start = self.codes.range.start + first * self.cols;
            let range = start..start + count * self.cols;
            let codes = bytes(&Piece { part: self.codes.part, range }, parts)?;
            for (index, codes) in codes.chunks_exact(self.cols).enumerate() {
                let row = first + index;
                let scales = &scales[row / self.block.0 * scale_cols..][..scale_cols];
                let row = to[2 * row * self.cols..].as_chunks_mut::<2>().0;
                for ((column, code), to) in codes.iter().enumerate().zip(row) {
                    let value = values[usize::from(*code)] * scales[column / self.block.1];
                    *to = bf16::from_f32(value).to_le_bytes();
                }
            }
        }
        Ok(())
    }
}

fn bytes(piece: &Piece, parts: &[FilePart]) -> Result<Vec<u8>, WeightsError> {
    let mut bytes = vec![0; piece.range.len()];
    piece.read(parts, &mut bytes)?;
    Ok(bytes)
}

fn floats(piece: &Piece, float: MlxFloat, parts: &[FilePart]) -> Result<Vec<f32>, WeightsError> {
    let stored = bytes(piece, parts)?;
    let mut values = vec![0.0; stored.len() / float.bytes()];
    float.format().decode_row(&stored, &mut values);
    Ok(values)
}

/// Codes of a stream of bits, the first in the lowest.
fn unpack(packed: &[u8], bits: u8, codes: &mut [u8]) {
    let (mut held, mut count, mut bytes) = (0u32, 0, packed.iter());
    let mask = (1u32 << bits) - 1;
    for code in codes {
        while count < bits {
            held |= u32::from(*bytes.next().unwrap_or(&0)) << count;
            count += 8;
        }
        *code = (held & mask) as u8; // At most 8 bits.
        held >>= bits;
        count -= bits;
    }
}

fn unpack_awq(words: &[u8], codes: &mut [u8]) {
    for (word, codes) in words.chunks_exact(4).zip(codes.chunks_exact_mut(8)) {
        for (code, place) in codes.iter_mut().zip(AWQ_PLACES) {
            *code = word[place / 2] >> (4 * (place % 2)) & 15;
        }
    }
}
