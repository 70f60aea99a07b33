//! How is a tensor of the model made where no file holds it as one? Read from several places, or
//! worked out, when somebody asks for it.
//!
//! Invariant: every piece lies inside its file, and the pieces together are as long as the recipe
//! needs, by the checks of whoever wrote it; disks may still fail.

use std::iter::StepBy;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use ops::quant_format::QuantFormat;

use crate::WeightsError;
use crate::conversion::{Bytes8, Integers};
use crate::file_part::FilePart;
use crate::gguf::TensorInfo;

/// Bytes of one of the model's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) part: usize,
    pub(crate) range: Range<usize>,
}

#[derive(Debug)]
pub(crate) enum Recipe {
    /// Worked out from settings.
    Bytes(Box<[u8]>),
    /// As it is stored.
    Copy(Piece),
    /// As another.
    Shared(Arc<Recipe>),
    /// End to end, each of so many bytes: a stack of experts that are stored apart.
    Stack(Vec<(Recipe, usize)>),
    /// Quantized weights whose codes, scales and biases are apart: block by block.
    Blocks { streams: Vec<Stream>, count: usize },
    /// The same of every second row, of so many blocks each, from row 0 or 1 on.
    EverySecondRow { streams: Vec<Stream>, row_blocks: usize, first: usize },
    /// Codes of whole numbers in an order of their own.
    Integers(Box<Integers>),
    /// Numbers of eight bits whose scales are apart.
    Bytes8(Box<Bytes8>),
    /// Some rows or columns of matrices that stand one below the other.
    Cut(Box<Cut>),
    /// What quantized rows mean, as F32.
    Decoded(Box<Decoded>),
    /// A vector of `format` with 1 added to each value, as F32.
    PlusOne { piece: Piece, format: QuantFormat },
    /// Minus the exponential of each value of a vector of `format`, as F32.
    MinusExp { piece: Piece, format: QuantFormat },
}

/// What is taken of each of `count` matrices: rows or columns, as they are or turned over.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) whole: Recipe,
    pub(crate) element_bytes: usize,
    pub(crate) count: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) taken_rows: Range<usize>,
    pub(crate) taken_cols: StepBy<Range<usize>>,
    pub(crate) is_transposed: bool,
}

/// The values of quantized rows, of `cols` elements in `row_bytes` bytes each.
#[derive(Debug)]
pub(crate) struct Decoded {
    pub(crate) whole: Recipe,
    pub(crate) format: QuantFormat,
    pub(crate) cols: usize,
    pub(crate) row_bytes: usize,
}

/// One of the tensors that blocks are made of.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) piece: Piece,
    /// What each block gets of it.
    pub(crate) block_bytes: usize,
}

/// More experts than any model has in a layer.
pub(crate) const EXPERTS_MAX: u32 = 1 << 16;
/// Blocks read at once: some MB of the largest.
const BLOCKS_AT_ONCE: usize = 1 << 16;

#[derive(Debug)]
pub(crate) struct MadeTensor {
    info: TensorInfo,
    recipe: Recipe,
    /// Made once for those who want to look at it in place, and kept.
    kept: OnceLock<Box<[u8]>>,
}

impl Piece {
    pub(crate) fn read(&self, parts: &[FilePart], to: &mut [u8]) -> Result<(), WeightsError> {
        parts[self.part].read_range(self.range.clone(), to)
    }
}

impl MadeTensor {
    pub(crate) fn new(info: TensorInfo, recipe: Recipe) -> Self {
        Self { info, recipe, kept: OnceLock::new() }
    }

    /// Stacks of these names, of `dims` `[cols, rows, experts]` where each expert's rows of the
    /// second stand below those of the first; `None` if it is no such tensor.
    pub(crate) fn halves(
        names: [String; 2],
        whole: &Piece,
        format: QuantFormat,
        dims: &[u64],
    ) -> Option<[Self; 2]> {
        let &[cols, both, experts] = dims else { return None };
        let halves = (experts as usize).saturating_mul(2);
        let is_counted = (1..=u64::from(EXPERTS_MAX)).contains(&experts);
        let is_sized = !whole.range.is_empty() && whole.range.len().is_multiple_of(halves.max(1));
        if !is_counted || !is_sized || !both.is_multiple_of(2) {
            return None;
        }
        let bytes = whole.range.len() / halves;
        let mut half = 0;
        let made = names.map(|name| {
            let starts = (whole.range.start + half * bytes..whole.range.end).step_by(2 * bytes);
            half += 1;
            let piece = |start| Piece { part: whole.part, range: start..start + bytes };
            let recipes = starts.map(|start| (Recipe::Copy(piece(start)), bytes)).collect();
            let info = TensorInfo::described(&name, format, &[cols, both / 2, experts], 0)?;
            Some(MadeTensor::new(info, Recipe::Stack(recipes)))
        });
        let [first, second] = made;
        Some([first?, second?])
    }

    pub(crate) fn info(&self) -> &TensorInfo {
        &self.info
    }

    pub(crate) fn byte_count(&self) -> usize {
        self.info.byte_range().map_or(0, |range| range.len())
    }

    /// In place; made by the first who asks.
    pub(crate) fn view(&self, parts: &[FilePart]) -> Result<&[u8], WeightsError> {
        if let Some(bytes) = self.kept.get() {
            return Ok(bytes);
        }
        let mut bytes = vec![0; self.byte_count()];
        self.write(parts, &mut bytes)?;
        Ok(self.kept.get_or_init(|| bytes.into()))
    }

    /// Makes it in `to`, which is as long as it is.
    pub(crate) fn write(&self, parts: &[FilePart], to: &mut [u8]) -> Result<(), WeightsError> {
        self.recipe.write(parts, to)
    }
}

impl Recipe {
    fn write(&self, parts: &[FilePart], to: &mut [u8]) -> Result<(), WeightsError> {
        match self {
            Recipe::Bytes(bytes) => to.copy_from_slice(bytes),
            Recipe::Copy(piece) => piece.read(parts, to)?,
            Recipe::Shared(recipe) => recipe.write(parts, to)?,
            Recipe::Stack(recipes) => {
                let mut rest = to;
                for (recipe, bytes) in recipes {
                    let (one, behind) = rest.split_at_mut(*bytes);
                    recipe.write(parts, one)?;
                    rest = behind;
                }
            }
            Recipe::Blocks { streams, count } => interleave(streams, *count, parts, to)?,
            Recipe::EverySecondRow { streams, row_blocks, first } => {
                every_second_row(streams, *row_blocks, *first, parts, to)?;
            }
            Recipe::Integers(integers) => integers.write(parts, to)?,
            Recipe::Bytes8(bytes8) => bytes8.write(parts, to)?,
            Recipe::Cut(cut) => cut.write(parts, to)?,
            Recipe::Decoded(decoded) => decoded.write(parts, to)?,
            Recipe::PlusOne { piece, format } => {
                each_value(piece, *format, parts, to, |value| value + 1.0)?;
            }
            Recipe::MinusExp { piece, format } => {
                each_value(piece, *format, parts, to, |value| -value.exp())?;
            }
        }
        Ok(())
    }
}

impl Cut {
    fn write(&self, parts: &[FilePart], to: &mut [u8]) -> Result<(), WeightsError> {
        let size = self.element_bytes;
        let mut whole = vec![0; self.count * self.rows * self.cols * size];
        self.whole.write(parts, &mut whole)?;
        let mut places = to.chunks_exact_mut(size);
        let mut take = |matrix: usize, row: usize, col: usize| {
            let at = ((matrix * self.rows + row) * self.cols + col) * size;
            let place = places.next().expect("invariant: a place for each element");
            place.copy_from_slice(&whole[at..at + size]);
        };
        let cols = || self.taken_cols.clone();
        for matrix in 0..self.count {
            if self.is_transposed {
                cols()
                    .for_each(|col| self.taken_rows.clone().for_each(|row| take(matrix, row, col)));
            } else {
                self.taken_rows
                    .clone()
                    .for_each(|row| cols().for_each(|col| take(matrix, row, col)));
            }
        }
        Ok(())
    }
}

impl Decoded {
    fn write(&self, parts: &[FilePart], to: &mut [u8]) -> Result<(), WeightsError> {
        let mut values = vec![0.0; self.cols];
        let mut stored = vec![0; to.len() / (4 * self.cols) * self.row_bytes];
        self.whole.write(parts, &mut stored)?;
        let rows = stored.chunks_exact(self.row_bytes);
        for (row, to) in rows.zip(to.chunks_exact_mut(4 * self.cols)) {
            self.format.decode_row(row, &mut values);
            for (bytes, value) in to.chunks_exact_mut(4).zip(&values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        Ok(())
    }
}

fn each_value(
    piece: &Piece,
    format: QuantFormat,
    parts: &[FilePart],
    to: &mut [u8],
    change: impl Fn(f32) -> f32,
) -> Result<(), WeightsError> {
    let mut stored = vec![0; piece.range.len()];
    piece.read(parts, &mut stored)?;
    let mut values = vec![0.0; to.len() / 4];
    format.decode_row(&stored, &mut values);
    for (bytes, value) in to.chunks_exact_mut(4).zip(values) {
        bytes.copy_from_slice(&change(value).to_le_bytes());
    }
    Ok(())
}

fn interleave(
    streams: &[Stream],
    count: usize,
    parts: &[FilePart],
    to: &mut [u8],
) -> Result<(), WeightsError> {
    let whole: usize = streams.iter().map(|stream| stream.block_bytes).sum();
    let mut read = Vec::new();
    for first in (0..count).step_by(BLOCKS_AT_ONCE) {
        let blocks = BLOCKS_AT_ONCE.min(count - first);
        let mut offset = 0;
        for Stream { piece, block_bytes } in streams {
            let start = piece.range.start + first * block_bytes;
            read.resize(blocks * block_bytes, 0);
            parts[piece.part].read_range(start..start + read.len(), &mut read)?;
            let behind = &mut to[first * whole..][..blocks * whole];
            for (block, bytes) in behind.chunks_exact_mut(whole).zip(read.chunks(*block_bytes)) {
                block[offset..offset + block_bytes].copy_from_slice(bytes);
            }
            offset += block_bytes;
        }
    }
    Ok(())
}

fn every_second_row(
    streams: &[Stream],
    row_blocks: usize,
    first: usize,
    parts: &[FilePart],
    to: &mut [u8],
) -> Result<(), WeightsError> {
    let pair_blocks = 2 * row_blocks;
    let row_bytes = row_blocks * streams.iter().map(|stream| stream.block_bytes).sum::<usize>();
    let pairs_at_once = (BLOCKS_AT_ONCE / pair_blocks).max(1);
    let mut both = Vec::new();
    for (turn, rows) in to.chunks_mut(pairs_at_once * row_bytes).enumerate() {
        let pairs = rows.len() / row_bytes;
        let some = |Stream { piece, block_bytes }: &Stream| {
            let start = piece.range.start + turn * pairs_at_once * pair_blocks * block_bytes;
            let range = start..start + pairs * pair_blocks * block_bytes;
            Stream { piece: Piece { part: piece.part, range }, block_bytes: *block_bytes }
        };
        let streams: Vec<Stream> = streams.iter().map(some).collect();
        both.resize(2 * rows.len(), 0);
        interleave(&streams, pairs * pair_blocks, parts, &mut both)?;
        let wanted = both.chunks_exact(row_bytes).skip(first).step_by(2);
        for (row, stored) in rows.chunks_exact_mut(row_bytes).zip(wanted) {
            row.copy_from_slice(stored);
        }
    }
    Ok(())
}
