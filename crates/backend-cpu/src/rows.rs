//! What do kernels read and write? Views of activations that all members of a team share.
//!
//! The views are `Copy` and carry no borrow of their elements: who writes which row in which
//! phase is settled by the kernels (each row or column range belongs to one task, and a barrier
//! ends each phase). That is why reading and writing through them is `unsafe`.

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
/// Bytes of a group's codes: 32 high parts, 32 low parts.
pub(crate) const GROUP_BYTES: usize = 64;
/// 127 * 128: the largest X whose high part, rounded to nearest, still fits i8 (with low <= 63).
const X_MAX: f32 = 16_256.0;
/// Tokens that share one pass over the weights.
pub(crate) const TILE_MAX: usize = 8;

/// What goes with the codes of one group of one token.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct GroupScale {
    /// `value = step * X`.
    pub(crate) step: f32,
    /// `step * sum of X`, for weights with a bias.
    pub(crate) total: f32,
    /// Sums of X over the first and the second 16.
    pub(crate) sums: [i32; 2],
}

/// Memory for activations as 15-bit integers, reused by every linear of a step.
pub struct QuantizedRows {
    codes: LargeBuffer,
    scales: LargeBuffer,
    groups_max: usize,
}

impl QuantizedRows {
    /// Room for `rows` rows of `width` values, in any shape of that many values.
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn new(rows: usize, width: usize) -> std::io::Result<Self> {
        let groups_max = Self::groups_max(rows, width);
        Ok(Self {
            codes: LargeBuffer::zeroed(groups_max * GROUP_BYTES)?,
            scales: LargeBuffer::zeroed(groups_max * size_of::<GroupScale>())?,
            groups_max,
        })
    }

    /// Bytes of a buffer made by [`QuantizedRows::new`].
    pub fn bytes(rows: usize, width: usize) -> usize {
        Self::groups_max(rows, width) * (GROUP_BYTES + size_of::<GroupScale>())
    }

    fn groups_max(rows: usize, width: usize) -> usize {
        rows * width.div_ceil(GROUP)
    }

    /// The memory as `rows` rows of `width` values.
    ///
    /// # Panics
    /// If they do not fit, or `width` is not a multiple of 32.
    pub fn view(&self, rows: usize, width: usize) -> QuantizedView<'_> {
        assert!(width.is_multiple_of(GROUP), "{width} columns are not whole groups of {GROUP}");
        let groups = width / GROUP;
        assert!(rows * groups <= self.groups_max, "{rows} rows of {width} exceed the room made");
        QuantizedView {
            codes: self.codes.pointer().cast(),
            scales: self.scales.pointer().cast(),
            rows,
            groups,
            owner: PhantomData,
        }
    }
}

/// Activations as 15-bit integers, `[tile][group][token of the tile]` so that a tile of tokens is
/// one stream: X = round(value / step), step = largest magnitude of the 32 / 16,256, X stored as
/// 128 * high + low.
///
/// Tiles are 8 tokens wide, the rest of the rows 4, 2 and 1.
#[derive(Clone, Copy)]
pub struct QuantizedView<'a> {
    codes: *mut i8,
    scales: *mut GroupScale,
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
        let RowPlaces { codes, scales, step } = self.row_places(row);
        // Tiles start at multiples of their width, a power of two, and rows advance by slices.
        let width = step.min(width_max);
        TileSlice { codes, scales, step, width }
    }

    /// Where a row's groups are: the first, and the distance to the next, in groups.
    #[inline(always)]
    pub(crate) fn row_places(&self, row: usize) -> RowPlaces {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let tile = TokenTile::holding(row, self.rows);
        let at = tile.first * self.groups + (row - tile.first);
        // SAFETY: inside the room checked by `view`.
        let codes = unsafe { self.codes.add(at * GROUP_BYTES) };
        // SAFETY: inside the room checked by `view`.
        let scales = unsafe { self.scales.add(at) };
        RowPlaces { codes, scales, step: tile.width }
    }

    /// What a row's integers stand for; for tests and traces.
    ///
    /// # Safety
    /// The row was quantized and nobody writes it meanwhile.
    pub unsafe fn decode_row(&self, row: usize) -> Vec<f32> {
        let places = self.row_places(row);
        let mut values = Vec::with_capacity(self.width());
        for group in 0..self.groups {
            // SAFETY: `row_places` points into the row; the caller promises no writers.
            let scale = unsafe { *places.scales.add(group * places.step) };
            for k in 0..GROUP {
                // SAFETY: as above.
                let high = unsafe { *places.codes.add(group * places.step * GROUP_BYTES + k) };
                // SAFETY: as above.
                let low = unsafe { *places.codes.add(group * places.step * GROUP_BYTES + 32 + k) };
                values.push(scale.step * (f32::from(high) * 128.0 + f32::from(low)));
            }
        }
        values
    }
}

/// Some tokens of one tile. The next token's group follows the one before.
#[derive(Clone, Copy)]
pub(crate) struct TileSlice {
    pub(crate) codes: *const i8,
    pub(crate) scales: *const GroupScale,
    /// Groups from one of a token to its next.
    pub(crate) step: usize,
    pub(crate) width: usize,
}

/// Addresses of a row's groups.
#[derive(Clone, Copy)]
pub(crate) struct RowPlaces {
    pub(crate) codes: *mut i8,
    pub(crate) scales: *mut GroupScale,
    /// Groups from one of the row to the next.
    pub(crate) step: usize,
}

/// The step and its inverse for a group whose largest magnitude is `largest`.
#[inline(always)]
pub(crate) fn step_of(largest: f32) -> (f32, f32) {
    let inverse = if largest > 0.0 { X_MAX / largest } else { 0.0 };
    // A group of subnormals has an infinite inverse: it becomes zeros.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    (largest / X_MAX, inverse)
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
