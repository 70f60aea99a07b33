//! What do kernels read and write? Views of activations that all members of a team share.
//!
//! The views are `Copy` and carry no borrow of their elements: who writes which row in which
//! phase is settled by the kernels (each row or column range belongs to one task, and a phase ends
//! when its tasks are done). That is why reading and writing through them is `unsafe`.

use device::{HeapError, HeapPool};

use crate::memory::LargeBuffer;
use std::marker::PhantomData;

/// f32 rows: `rows` of `width` values, `stride` apart. Shape `[rows, width]`.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    start: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    owner: PhantomData<&'a f32>,
}

// SAFETY: plain floats; races are excluded by the contract of the unsafe accessors.
unsafe impl Send for Rows<'_> {}
// SAFETY: as above.
unsafe impl Sync for Rows<'_> {}

impl<'a> Rows<'a> {
    /// # Panics
    /// If `data` is too short.
    pub fn new(data: &'a mut [f32], rows: usize, width: usize) -> Self {
        assert!(rows * width <= data.len(), "{rows} rows of {width} in {} floats", data.len());
        // SAFETY: the slice is borrowed exclusively for 'a and long enough.
        unsafe { Self::from_raw(data.as_mut_ptr(), rows, width, width) }
    }

    /// # Safety
    /// For 'a, `start` is valid for reads and writes of `rows` rows of `width` floats, `stride`
    /// apart, and only views touch them.
    pub unsafe fn from_raw(start: *mut f32, rows: usize, width: usize, stride: usize) -> Self {
        assert!(width <= stride || rows <= 1, "rows of {width} overlap at a stride of {stride}");
        Self { start, rows, width, stride, owner: PhantomData }
    }

    /// The same rows, `width` columns of them from column `from` on.
    ///
    /// # Panics
    /// If there are no such columns.
    pub fn columns(self, from: usize, width: usize) -> Self {
        assert!(from + width <= self.width, "columns {from}+{width} of {}", self.width);
        // SAFETY: inside the first row.
        let start = unsafe { self.start.add(from) };
        Self { start, width, ..self }
    }

    /// The first `rows` rows.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn first(self, rows: usize) -> Self {
        assert!(rows <= self.rows, "{rows} of {} rows", self.rows);
        Self { rows, ..self }
    }

    /// `rows` rows from `first` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn range(self, first: usize, rows: usize) -> Self {
        assert!(first + rows <= self.rows, "rows {first}+{rows} of {}", self.rows);
        // SAFETY: inside the memory promised to `from_raw`.
        let start = unsafe { self.start.add(first * self.stride) };
        Self { start, rows, ..self }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.width
    }

    /// The address of a row's first value.
    #[inline(always)]
    pub fn pointer(&self, row: usize) -> *mut f32 {
        debug_assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: inside the memory promised to `from_raw`.
        unsafe { self.start.add(row * self.stride) }
    }

    /// # Safety
    /// Nobody writes the row while the slice lives.
    #[inline(always)]
    pub unsafe fn row(&self, row: usize) -> &'a [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: in bounds; the caller promises the absence of writers.
        unsafe { std::slice::from_raw_parts(self.pointer(row), self.width) }
    }

    /// # Safety
    /// Nobody else reads or writes the row while the slice lives.
    #[inline(always)]
    pub unsafe fn row_mut(&self, row: usize) -> &'a mut [f32] {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: in bounds; the caller promises exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(row), self.width) }
    }
}

/// Activations of a k-group: 32 columns.
pub(crate) const GROUP: usize = 32;
/// Largest magnitude of a high part.
const HIGH_MAX: f32 = 127.0;
/// A group whose largest magnitude is over 10 times the mean magnitude of its row is an outlier
/// and keeps its low parts. On SmolLM2-135M this is a tenth of the groups (4 % to 12 % by kind of
/// layer), and the mean KL divergence to f32 over 1,100 positions is 7.2e-4 nats, where 8 bits
/// for all give 3.2e-3 (llama.cpp on the same file: 3.1e-3) and 4 times the mean gives 2.6e-4 at
/// a third of the groups.
const OUTLIER_RATIO: f32 = 10.0;
/// A group of larger values counts as not finite: MAGIC times its step may not be.
const LARGEST: f32 = 1e30;
/// Tokens that share one pass over the weights.
pub(crate) const TILE_MAX: usize = 8;

/// 1.5 * 2^23: the bits of this float plus an integer within 2^22 are those of its sum with it.
pub(crate) const MAGIC: f32 = 12_582_912.0;

/// What goes with one part of one group of one token.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct GroupScale {
    /// `value = unit * X`.
    pub(crate) unit: f32,
    /// `-MAGIC * unit`, exactly: an integer's float comes without a conversion,
    /// `unit * X = fma(MAGIC + X, unit, magic)`.
    pub(crate) magic: f32,
    /// The values' sum, for weights with a bias.
    pub(crate) total: f32,
    /// Sums of X over the first and the second 16.
    pub(crate) sums: [i32; 2],
}

impl GroupScale {
    #[inline(always)]
    pub(crate) fn new(unit: f32, sums: [i32; 2]) -> Self {
        let total = unit * sums[0].wrapping_add(sums[1]) as f32;
        Self { unit, magic: -MAGIC * unit, total, sums }
    }

    /// The sum of X over one of `parts` parts.
    #[inline(always)]
    pub(crate) fn sum(&self, parts: usize, part: usize) -> i32 {
        if parts == 1 { self.sums[0].wrapping_add(self.sums[1]) } else { self.sums[part] }
    }

    /// The sum of values over one of `parts` parts.
    #[inline(always)]
    pub(crate) fn total(&self, parts: usize, part: usize) -> f32 {
        if parts == 1 { self.total } else { self.unit * self.sums[part] as f32 }
    }
}

/// Memory for activations as integers, reused by every linear of a step.
pub struct QuantizedRows {
    high: LargeBuffer,
    low: LargeBuffer,
    outliers: LargeBuffer,
    high_scales: LargeBuffer,
    low_scales: LargeBuffer,
    groups_max: usize,
}

impl QuantizedRows {
    /// The memory they are made of.
    pub(crate) fn buffers(&self) -> [&LargeBuffer; 5] {
        [&self.high, &self.low, &self.outliers, &self.high_scales, &self.low_scales]
    }

    /// Room for `rows` rows of `width` values, in any shape of that many values.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn new(rows: usize, width: usize) -> std::io::Result<Self> {
        Self::made_by(rows, width, &mut LargeBuffer::zeroed)
    }

    /// The same out of a pool.
    ///
    /// # Errors
    /// When the pool has no room.
    pub fn carve(pool: &HeapPool, rows: usize, width: usize) -> Result<Self, HeapError> {
        Self::made_by(rows, width, &mut |bytes| LargeBuffer::carve(pool, "activations", bytes))
    }

    fn made_by<E>(
        rows: usize,
        width: usize,
        make: &mut dyn FnMut(usize) -> Result<LargeBuffer, E>,
    ) -> Result<Self, E> {
        let groups_max = Self::groups_max(rows, width);
        let [high, low, outliers, high_scales, low_scales] = Self::parts(groups_max);
        Ok(Self {
            high: make(high)?,
            low: make(low)?,
            outliers: make(outliers)?,
            high_scales: make(high_scales)?,
            low_scales: make(low_scales)?,
            groups_max,
        })
    }

    /// Bytes of the buffers, in their order.
    fn parts(groups: usize) -> [usize; 5] {
        let scales = groups * size_of::<GroupScale>();
        [groups * GROUP, groups * GROUP, groups, scales, scales]
    }

    /// What a buffer made by [`QuantizedRows::carve`] takes of a pool.
    pub fn room(rows: usize, width: usize) -> usize {
        Self::parts(Self::groups_max(rows, width)).map(HeapPool::room).iter().sum()
    }

    /// Bytes of a buffer made by [`QuantizedRows::new`].
    pub fn bytes(rows: usize, width: usize) -> usize {
        Self::parts(Self::groups_max(rows, width)).iter().sum()
    }

    fn groups_max(rows: usize, width: usize) -> usize {
        rows * width.div_ceil(GROUP)
    }

    /// The memory as `rows` rows of `width` values.
    ///
    /// # Panics
    /// If they do not fit, or `width` is not a multiple of 32.
    pub fn view(&self, rows: usize, width: usize) -> QuantizedView<'_> {
        self.view_behind(0, rows, width)
    }

    /// The memory behind `before` rows, as `rows` rows with tiles of their own.
    ///
    /// # Panics
    /// As `view`.
    pub(crate) fn view_behind(
        &self,
        before: usize,
        rows: usize,
        width: usize,
    ) -> QuantizedView<'_> {
        assert!(width.is_multiple_of(GROUP), "{width} columns are not whole groups of {GROUP}");
        let groups = width / GROUP;
        let (start, end) = (before * groups, (before + rows) * groups);
        assert!(end <= self.groups_max, "{rows} rows of {width} exceed the room made");
        QuantizedView {
            // Not dereferenced here; each stays inside its buffer by the assertion.
            high: PartPlaces::of(&self.high, &self.high_scales).at(start),
            low: PartPlaces::of(&self.low, &self.low_scales).at(start),
            outliers: self.outliers.pointer().wrapping_add(start),
            rows,
            groups,
            owner: PhantomData,
        }
    }
}

/// Activations as integers X, `[tile][group][token of the tile]` so that a tile of tokens is one
/// stream. With step = largest magnitude of the 32 / 127:
///
/// - a plain group has 8 bits: high = round(value / step);
/// - an outlier group has 15: 128 * high + low = round(128 * value / step). Its low part is a group
///   of its own, of a 128th of the unit; a plain group has none, and nothing is written there.
///
/// High parts, low parts, their scales and outlier marks each have a plane of their own: only where
/// a token is an outlier, low parts are read. Whether a group is an outlier depends on its own row
/// only, so results do not depend on the tile.
///
/// Tiles are 8 tokens wide, the rest of the rows 4, 2 and 1.
#[derive(Clone, Copy)]
pub struct QuantizedView<'a> {
    high: PartPlaces,
    low: PartPlaces,
    outliers: *mut u8,
    rows: usize,
    groups: usize,
    owner: PhantomData<&'a u8>,
}

// SAFETY: plain bytes; races are excluded by the contract of the kernels.
unsafe impl Send for QuantizedView<'_> {}
// SAFETY: as above.
unsafe impl Sync for QuantizedView<'_> {}

/// A run of tokens that one pass over the weights serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenTile {
    pub(crate) first: usize,
    pub(crate) width: usize,
}

impl TokenTile {
    /// The tile that starts at `first` of `rows` rows.
    #[inline(always)]
    pub(crate) fn starting(first: usize, rows: usize) -> Self {
        let width = match rows - first {
            0 => 0,
            1 => 1,
            2 | 3 => 2,
            4..=7 => 4,
            _ => TILE_MAX,
        };
        Self { first, width }
    }

    /// The tile that holds `row`.
    fn holding(row: usize, rows: usize) -> Self {
        let mut tile = Self::starting(row / TILE_MAX * TILE_MAX, rows);
        while tile.first + tile.width <= row {
            tile = Self::starting(tile.first + tile.width, rows);
        }
        tile
    }
}

impl QuantizedView<'_> {
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn width(&self) -> usize {
        self.groups * GROUP
    }

    pub(crate) fn groups(&self) -> usize {
        self.groups
    }

    /// The tokens from `row` to the end of its tile, `width_max` at most (a power of two).
    #[inline(always)]
    pub(crate) fn slice(&self, row: usize, width_max: usize) -> TileSlice {
        let places = self.row_places(row);
        // Tiles start at multiples of their width, a power of two, and rows advance by slices.
        TileSlice { places, width: places.step.min(width_max) }
    }

    /// Where a row's groups are: the first, and the distance to the next, in groups.
    #[inline(always)]
    pub(crate) fn row_places(&self, row: usize) -> RowPlaces {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let tile = TokenTile::holding(row, self.rows);
        let at = tile.first * self.groups + (row - tile.first);
        RowPlaces {
            high: self.high.at(at),
            low: self.low.at(at),
            outliers: self.outliers.wrapping_add(at),
            step: tile.width,
        }
    }

    /// What a row's integers stand for; for tests and traces.
    ///
    /// # Safety
    /// The row was quantized and nobody writes it meanwhile.
    pub unsafe fn decode_row(&self, row: usize) -> Vec<f32> {
        let places = self.row_places(row);
        let mut values = Vec::with_capacity(self.width());
        for group in 0..self.groups {
            let at = group * places.step;
            // SAFETY: `row_places` points into the row; the caller promises no writers.
            unsafe {
                let outlier = *places.outliers.add(at) != 0;
                let (high, low) = (places.high.at(at), places.low.at(at));
                let unit = (*high.scales).unit;
                for k in 0..GROUP {
                    let high = i32::from(*high.codes.add(k));
                    let low = if outlier { i32::from(*low.codes.add(k)) } else { 0 };
                    values.push(unit / 128.0 * (128 * high + low) as f32);
                }
            }
        }
        values
    }
}

/// Some tokens of one tile. The next token's group follows the one before.
#[derive(Clone, Copy)]
pub(crate) struct TileSlice {
    /// The first token's.
    pub(crate) places: RowPlaces,
    pub(crate) width: usize,
}

/// Addresses of one of the two parts of groups.
#[derive(Clone, Copy)]
pub(crate) struct PartPlaces {
    /// 32 a group.
    pub(crate) codes: *mut i8,
    pub(crate) scales: *mut GroupScale,
}

impl PartPlaces {
    fn of(codes: &LargeBuffer, scales: &LargeBuffer) -> Self {
        Self { codes: codes.pointer().cast(), scales: scales.pointer().cast() }
    }

    /// Those from `group` on. Not dereferenced here.
    #[inline(always)]
    pub(crate) fn at(self, group: usize) -> Self {
        Self {
            codes: self.codes.wrapping_add(group * GROUP),
            scales: self.scales.wrapping_add(group),
        }
    }
}

/// Addresses of a row's groups.
#[derive(Clone, Copy)]
pub(crate) struct RowPlaces {
    pub(crate) high: PartPlaces,
    pub(crate) low: PartPlaces,
    /// 1 where there is a low part.
    pub(crate) outliers: *mut u8,
    /// Groups from one of the row to the next.
    pub(crate) step: usize,
}

impl RowPlaces {
    /// How far the marks of `T` tokens' first `groups` groups reach.
    #[inline(always)]
    pub(crate) fn marks<const T: usize>(&self, groups: usize) -> usize {
        groups * self.step - (self.step - T)
    }

    /// Of 64 marks of a tile those of its first `T` tokens, a bit each.
    #[inline(always)]
    pub(crate) fn ours<const T: usize>(&self) -> u64 {
        // A bit in every `step`, which is a power of two up to 8.
        let every = u64::MAX / ((1 << self.step) - 1);
        every * ((1 << T) - 1)
    }

    /// The group and the token of a mark.
    #[inline(always)]
    pub(crate) fn marked(&self, mark: usize) -> (usize, usize) {
        (mark >> self.step.trailing_zeros(), mark & (self.step - 1))
    }

    /// Those behind the row's first `groups` groups.
    #[inline(always)]
    pub(crate) fn after(self, groups: usize) -> Self {
        let at = groups * self.step;
        Self {
            high: self.high.at(at),
            low: self.low.at(at),
            outliers: self.outliers.wrapping_add(at),
            ..self
        }
    }
}

/// The step and its inverse for a group whose largest magnitude is `largest`.
#[inline(always)]
pub(crate) fn step_of(largest: f32) -> (f32, f32) {
    let inverse = if largest > 0.0 { HIGH_MAX / largest } else { 0.0 };
    // A group of subnormals has an inverse beyond f32 (or beyond it times 128): zeros.
    let inverse = if (128.0 * inverse).is_finite() { inverse } else { 0.0 };
    // Two bits less, so that three times the step has 24 and MAGIC times it is exact.
    let step = f32::from_bits((largest / HIGH_MAX).to_bits() & !3);
    (if largest < LARGEST { step } else { f32::NAN }, inverse)
}

/// The largest magnitude of a plain group, in a row of `width` values whose magnitudes have this
/// sum.
#[inline(always)]
pub(crate) fn plain_max(magnitudes: f32, width: usize) -> f32 {
    OUTLIER_RATIO * magnitudes / width as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_partition_the_rows() {
        for rows in 1..40 {
            let mut first = 0;
            while first < rows {
                let tile = TokenTile::starting(first, rows);
                for row in first..first + tile.width {
                    assert_eq!(TokenTile::holding(row, rows), tile, "row {row} of {rows}");
                }
                first += tile.width;
            }
            assert_eq!(first, rows);
        }
    }
}
