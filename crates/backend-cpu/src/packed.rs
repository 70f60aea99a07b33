//! How are weights laid out for the kernels? In blocks of 16 rows, one register lane a row.
//!
//! A row block is one stream: for each k-group of 32 columns its codes, then its scales, then its
//! biases (those only where the format has one per group).
//!
//! - 4-bit codes: 4 x 64 bytes; byte `4 * row + b` of the j-th 64 holds column `8 j + b` in its
//!   low nibble and column `8 j + 4 + b` in its high nibble.
//! - 5- and 6-bit codes: their low four bits like 4-bit codes, then the fifth bits, then the
//!   sixth, each 8 x 8 bytes; bit `4 * row + b` of the q-th 8 belongs to column `4 q + b`.
//! - 8-bit codes: 8 x 64 bytes; byte `4 * row + b` of the q-th 64 holds column `4 q + b`.
//! - scales and biases: 16 f16 where the format stores f16, else 16 f32; twice (first half,
//!   second half) where a group of the format has 16 columns.
//!
//! So Q4_1 takes 320 bytes for 16 x 32 weights, 5 bits each, as in the file. Plain float formats
//! keep their width: `[row block][column][16 rows]`. Rows are padded to 16 with zeros.

use crate::Isa;
use crate::memory::ArenaPiece;
use crate::packing::pack_directly;
use crate::rows::GROUP;
use crate::team::Team;
use crate::unpacked::BLOCKS_MAX;
use crate::warming::fetch;
use device::{PackedBytes, StoredBytes, WeightShape, WeightView};
use half::{bf16, f16};
use ops::quant_format::{AffineShape, QuantFormat, Zero};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Rows of a block: the lanes of a kernel's vector.
pub(crate) const BLOCK_ROWS: usize = 16;
pub(crate) const CODES4_BYTES: usize = BLOCK_ROWS * GROUP / 2;
/// One more bit of each code.
const PLANE_BYTES: usize = BLOCK_ROWS * GROUP / 8;
const CODES8_BYTES: usize = BLOCK_ROWS * GROUP;

/// A matrix as a model file holds it: `rows` x `cols`, row-major.
#[derive(Clone, Copy)]
pub struct MatrixSource<'a> {
    pub format: QuantFormat,
    pub rows: usize,
    pub cols: usize,
    pub bytes: &'a [u8],
}

impl<'a> From<WeightView<'a>> for MatrixSource<'a> {
    fn from(WeightView { format, rows, cols, bytes }: WeightView<'a>) -> Self {
        Self { format, rows, cols, bytes }
    }
}

/// A matrix in the layout of the kernels.
pub struct PackedMatrix {
    rows: usize,
    cols: usize,
    layout: Layout,
    place: Place,
}

/// Where the packed bytes are.
enum Place {
    Heap(ArenaPiece),
    /// Where they were kept, from this byte on; never written.
    Kept(Arc<dyn PackedBytes>, usize),
    /// Nowhere yet: whoever comes to row blocks packs them for itself, from this one on of what is
    /// stored.
    Stored {
        stored: Arc<dyn StoredBytes>,
        format: QuantFormat,
        first: usize,
        spares: Arc<Spares>,
    },
}

/// Some row blocks of a matrix, packed.
#[derive(Clone, Copy)]
pub(crate) struct RowBlocks<'a> {
    pub(crate) layout: Layout,
    pub(crate) cols: usize,
    block_bytes: usize,
    bytes: &'a [u8],
    /// Which block of the matrix is the first of them.
    first: usize,
}

/// Where members of a team put row blocks that are not packed yet, while they multiply with them:
/// after the first steps as many as there are members.
#[derive(Default)]
pub(crate) struct Spares(Mutex<Vec<(PackScratch, Vec<u8>)>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Affine(AffineLayout),
    Dense(Dense),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AffineLayout {
    pub(crate) bits: u32,
    pub(crate) zero: Zero,
    pub(crate) spread: Spread,
    pub(crate) scale: ScaleWidth,
}

/// How many columns share a scale, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spread {
    Group32,
    Half16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScaleWidth {
    F16,
    F32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dense {
    F32,
    F16,
    Bf16,
}

impl Place {
    /// Some of the same bytes: row blocks of `block_bytes`.
    fn part(&self, start: usize, bytes: usize, block_bytes: usize) -> Self {
        match self {
            Self::Heap(piece) => Self::Heap(piece.part(start, bytes)),
            Self::Kept(kept, offset) => Self::Kept(Arc::clone(kept), offset + start),
            Self::Stored { stored, format, first, spares } => Self::Stored {
                stored: Arc::clone(stored),
                format: *format,
                first: first + start / block_bytes.max(1),
                spares: Arc::clone(spares),
            },
        }
    }
}

/// Why a matrix cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackError {
    /// The number of columns or bytes does not belong to the format and shape.
    Shape { format: QuantFormat, rows: usize, cols: usize, bytes: usize },
    /// The piece of memory given is too small.
    Memory { needed_bytes: usize, given_bytes: usize },
}

impl std::fmt::Display for PackError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shape { format, rows, cols, bytes } => write!(
                f,
                "the model file is damaged: {bytes} bytes are not {rows} rows of {cols} {format} \
                 weights; fetch the file again"
            ),
            Self::Memory { needed_bytes, given_bytes } => write!(
                f,
                "packing needs {needed_bytes} bytes where the memory plan gave {given_bytes}; \
                 this is a defect of the plan, please report it"
            ),
        }
    }
}

impl std::error::Error for PackError {}

impl AffineLayout {
    pub(crate) fn of(shape: AffineShape) -> Self {
        Self {
            bits: u32::from(shape.bits),
            zero: shape.zero,
            spread: if shape.group < GROUP { Spread::Half16 } else { Spread::Group32 },
            scale: if shape.scale_is_f16 { ScaleWidth::F16 } else { ScaleWidth::F32 },
        }
    }

    pub(crate) const fn codes_bytes(self) -> usize {
        if self.bits == 8 { CODES8_BYTES } else { CODES4_BYTES + self.planes() * PLANE_BYTES }
    }

    /// Bits of a code that are stored apart from its low four.
    const fn planes(self) -> usize {
        if self.bits == 8 { 0 } else { self.bits as usize - 4 }
    }

    const fn parts(self) -> usize {
        match self.spread {
            Spread::Group32 => 1,
            Spread::Half16 => 2,
        }
    }

    /// Bytes of 16 rows' scales (or biases) of one part of a group.
    pub(crate) const fn lane_bytes(self) -> usize {
        match self.scale {
            ScaleWidth::F16 => 2 * BLOCK_ROWS,
            ScaleWidth::F32 => 4 * BLOCK_ROWS,
        }
    }

    /// Bytes of one k-group of a row block.
    pub(crate) const fn group_bytes(self) -> usize {
        let kinds = match self.zero {
            Zero::PerGroup => 2,
            Zero::Point(_) => 1,
        };
        self.codes_bytes() + kinds * self.parts() * self.lane_bytes()
    }
}

impl Dense {
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Dense::F32 => 4,
            Dense::F16 | Dense::Bf16 => 2,
        }
    }
}

impl Layout {
    fn of(format: QuantFormat) -> Self {
        match (format.affine(), format) {
            (Some(shape), _) => Layout::Affine(AffineLayout::of(shape)),
            (None, QuantFormat::F16) => Layout::Dense(Dense::F16),
            // Four bits of mantissa times a power of two.
            (None, QuantFormat::Bf16 | QuantFormat::Mxfp8) => Layout::Dense(Dense::Bf16),
            (None, _) => Layout::Dense(Dense::F32),
        }
    }

    fn block_bytes(self, cols: usize) -> usize {
        match self {
            Layout::Affine(affine) => cols / GROUP * affine.group_bytes(),
            Layout::Dense(dense) => cols * BLOCK_ROWS * dense.bytes(),
        }
    }
}

impl PackedMatrix {
    /// Bytes a packed matrix takes; `None` if the columns are not whole groups of 32 (block
    /// formats) or the size overflows.
    pub fn packed_bytes(format: QuantFormat, rows: usize, cols: usize) -> Option<usize> {
        let layout = Layout::of(format);
        let whole = matches!(layout, Layout::Dense(_)) || cols.is_multiple_of(GROUP);
        let block_bytes = whole.then(|| layout.block_bytes(cols))?;
        rows.div_ceil(BLOCK_ROWS).checked_mul(block_bytes)
    }

    /// Repacks `source` into `piece`, which holds `packed_bytes` or more, with the whole team.
    ///
    /// # Errors
    /// When the source's bytes or columns do not fit its format, or `piece` is too small.
    pub fn pack(
        source: &MatrixSource<'_>,
        piece: ArenaPiece,
        team: &Team,
    ) -> Result<Self, PackError> {
        let MatrixSource { format, rows, cols, bytes } = *source;
        let shape = WeightShape { format, rows, cols, bytes: bytes.len() };
        let matrix = Self::checked(&shape, piece.len(), Place::Heap(piece))?;
        let row_bytes = format.row_bytes(cols).unwrap_or(0);
        let blocks = matrix.blocks();
        team.run(&|worker| {
            let mut scratch = PackScratch::default();
            // Some blocks at a time: claims are cheap but not free.
            worker.for_each(blocks.div_ceil(4), |task| {
                let those = 4 * task..blocks.min(4 * task + 4);
                let rows_read = those.start * BLOCK_ROWS..rows.min(those.end * BLOCK_ROWS);
                fetch(&bytes[rows_read.start * row_bytes..rows_read.end * row_bytes]);
                for block in those {
                    // SAFETY: the block lies inside the piece, and only this task touches it.
                    let packed = unsafe { matrix.block_mut(block) };
                    let first = block * BLOCK_ROWS;
                    let rows = first..rows.min(first + BLOCK_ROWS);
                    let bytes = &bytes[rows.start * row_bytes..rows.end * row_bytes];
                    matrix.pack_block(format, bytes, rows.len(), packed, &mut scratch);
                }
            });
        });
        Ok(matrix)
    }

    /// Bytes one member needs to pack rows of `cols` columns: codes of 16 rows, and a scale and a
    /// bias for each group of 16.
    pub fn staging_bytes(cols: usize) -> usize {
        BLOCK_ROWS * (cols + 8 * cols.div_ceil(16))
    }

    /// Takes `piece` as it is: it holds what `pack` made of the same source at an earlier start.
    /// Other bytes are other weights, nothing worse.
    ///
    /// # Errors
    /// As `pack`.
    pub fn adopt(source: &WeightShape, piece: ArenaPiece) -> Result<Self, PackError> {
        Self::checked(source, piece.len(), Place::Heap(piece))
    }

    /// The same from byte `offset` on of what was kept, and there.
    ///
    /// # Errors
    /// As `pack`.
    pub(crate) fn adopt_in_place(
        source: &WeightShape,
        kept: Arc<dyn PackedBytes>,
        offset: usize,
    ) -> Result<Self, PackError> {
        let left = kept.in_place().and_then(|bytes| bytes.len().checked_sub(offset));
        Self::checked(source, left.unwrap_or(0), Place::Kept(kept, offset))
    }

    /// Not packed yet: whoever multiplies with row blocks packs them for itself.
    ///
    /// # Errors
    /// As `pack`.
    pub(crate) fn stored(
        source: &WeightShape,
        stored: Arc<dyn StoredBytes>,
        spares: Arc<Spares>,
    ) -> Result<Self, PackError> {
        let shape = WeightShape { bytes: stored.bytes().len(), ..*source };
        let place = Place::Stored { stored, format: source.format, first: 0, spares };
        Self::checked(&shape, usize::MAX, place)
    }

    /// Packs what is stored into `piece`, alone; false if it was told to stop.
    ///
    /// # Errors
    /// As `pack`.
    pub(crate) fn pack_alone(
        source: &MatrixSource<'_>,
        piece: ArenaPiece,
        goes_on: impl Fn() -> bool,
    ) -> Result<bool, PackError> {
        let MatrixSource { format, rows, cols, bytes } = *source;
        let shape = WeightShape { format, rows, cols, bytes: bytes.len() };
        let matrix = Self::checked(&shape, piece.len(), Place::Heap(piece))?;
        let mut scratch = PackScratch::default();
        let block_rows = BLOCK_ROWS * (bytes.len() / rows.max(1));
        for (block, bytes) in bytes.chunks(block_rows.max(1)).enumerate() {
            if !goes_on() {
                return Ok(false);
            }
            // SAFETY: the block lies inside the piece, which nobody else has.
            let packed = unsafe { matrix.block_mut(block) };
            let rows = BLOCK_ROWS.min(rows - block * BLOCK_ROWS);
            matrix.pack_block(format, bytes, rows, packed, &mut scratch);
        }
        Ok(true)
    }

    /// Shows some row blocks to `take`, packed.
    pub(crate) fn with_blocks<R>(
        &self,
        blocks: Range<usize>,
        take: impl FnOnce(RowBlocks<'_>) -> R,
    ) -> R {
        let (layout, cols, first) = (self.layout, self.cols, blocks.start);
        assert!(blocks.end <= self.blocks(), "row blocks {blocks:?} of {}", self.blocks());
        let block_bytes = self.block_bytes();
        let Place::Stored { stored, format, first: before, spares } = &self.place else {
            let bytes = self.part(blocks.start * block_bytes..blocks.end * block_bytes);
            return take(RowBlocks { layout, cols, block_bytes, bytes, first });
        };
        let row_bytes = format.row_bytes(cols).unwrap_or(0);
        let rows = blocks.start * BLOCK_ROWS..self.rows.min(blocks.end * BLOCK_ROWS);
        let start = before * BLOCK_ROWS * row_bytes;
        let source = &stored.bytes()[start + rows.start * row_bytes..][..rows.len() * row_bytes];
        fetch(source);
        let lock = || spares.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = lock().pop();
        let (mut scratch, mut packed) = spare.unwrap_or_default();
        packed.resize(packed.len().max(blocks.len() * block_bytes), 0);
        let places = packed.chunks_exact_mut(block_bytes);
        for (bytes, packed) in source.chunks(BLOCK_ROWS * row_bytes).zip(places) {
            self.pack_block(*format, bytes, bytes.len() / row_bytes, packed, &mut scratch);
        }
        let taken = take(RowBlocks { layout, cols, block_bytes, bytes: &packed, first });
        lock().push((scratch, packed));
        taken
    }

    /// Row blocks that a member shows itself at once, at most.
    pub(crate) fn blocks_at_once(&self) -> usize {
        match self.place {
            // They stay in the second-level cache.
            Place::Stored { .. } => BLOCKS_MAX,
            _ => usize::MAX,
        }
    }

    /// Reads its bytes in `piece` from now on, which holds the same ones.
    ///
    /// # Panics
    /// If the piece is too small.
    pub(crate) fn move_to(&mut self, piece: ArenaPiece) {
        assert!(piece.len() >= self.bytes(), "a piece for all row blocks");
        self.place = Place::Heap(piece);
    }

    /// The matrix that `source` is packed to in `room` bytes of `place`, which are still anything.
    fn checked(source: &WeightShape, room: usize, place: Place) -> Result<Self, PackError> {
        let WeightShape { format, rows, cols, bytes } = *source;
        let shape_error = || PackError::Shape { format, rows, cols, bytes };
        let row_bytes = format.row_bytes(cols).ok_or_else(shape_error)?;
        if row_bytes.checked_mul(rows) != Some(bytes) {
            return Err(shape_error());
        }
        let needed_bytes = Self::packed_bytes(format, rows, cols).ok_or_else(shape_error)?;
        if room < needed_bytes {
            return Err(PackError::Memory { needed_bytes, given_bytes: room });
        }
        Ok(Self { rows, cols, layout: Layout::of(format), place })
    }

    /// A stack of `count` matrices taken apart; they share its memory. `None` if a matrix would
    /// begin within a block of rows.
    pub(crate) fn unstack(&self, count: usize) -> Option<Vec<Self>> {
        let rows = self.rows / count;
        if !rows.is_multiple_of(BLOCK_ROWS) || rows * count != self.rows {
            return None;
        }
        let bytes = rows / BLOCK_ROWS * self.block_bytes();
        let one = |index| Self {
            rows,
            cols: self.cols,
            layout: self.layout,
            place: self.place.part(index * bytes, bytes, self.block_bytes()),
        };
        Some((0..count).map(one).collect())
    }

    /// All of the packed bytes.
    pub(crate) fn packed(&self) -> &[u8] {
        self.part(0..self.bytes())
    }

    /// Some of the packed bytes.
    fn part(&self, range: Range<usize>) -> &[u8] {
        match &self.place {
            Place::Heap(piece) => {
                assert!(range.start <= range.end && range.end <= piece.len(), "within its piece");
                // SAFETY: inside the piece, and nobody writes after `pack`.
                unsafe { std::slice::from_raw_parts(piece.pointer().add(range.start), range.len()) }
            }
            Place::Kept(kept, offset) => {
                let bytes = kept.in_place().expect("invariant: `adopt_in_place` saw them");
                &bytes[offset + range.start..offset + range.end]
            }
            Place::Stored { .. } => unreachable!("invariant: these are packed in `with_blocks`"),
        }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes a pass over the whole matrix reads.
    pub fn bytes(&self) -> usize {
        self.blocks() * self.block_bytes()
    }

    /// Whether the kernels want the activations quantized (else as f32).
    pub fn wants_quantized(&self) -> bool {
        matches!(self.layout, Layout::Affine(_))
    }

    pub(crate) fn blocks(&self) -> usize {
        self.rows.div_ceil(BLOCK_ROWS)
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.layout.block_bytes(self.cols)
    }

    /// # Safety
    /// Nobody else reads or writes the block while the slice lives.
    #[allow(clippy::mut_from_ref, reason = "the matrix is being built; see the contract")]
    unsafe fn block_mut(&self, block: usize) -> &mut [u8] {
        let bytes = self.block_bytes();
        let Place::Heap(piece) = &self.place else {
            unreachable!("invariant: a matrix is packed in the heap")
        };
        // SAFETY: `checked` saw the piece's size; the caller promises exclusiveness.
        unsafe { std::slice::from_raw_parts_mut(piece.pointer().add(block * bytes), bytes) }
    }

    fn pack_block(
        &self,
        format: QuantFormat,
        bytes: &[u8],
        rows: usize,
        packed: &mut [u8],
        scratch: &mut PackScratch,
    ) {
        match self.layout {
            Layout::Dense(dense) => {
                let width = dense.bytes();
                let bytes = scratch.as_floats(format, self.cols, bytes, rows);
                let row_bytes = bytes.len() / rows;
                for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
                    for (column, value) in bytes.chunks_exact(width).enumerate() {
                        let at = (column * BLOCK_ROWS + row) * width;
                        packed[at..at + width].copy_from_slice(value);
                    }
                }
            }
            Layout::Affine(affine) => {
                // The same bytes whatever the instruction set.
                let isa = Isa::detect();
                if rows < BLOCK_ROWS || !pack_directly(isa, format, bytes, packed) {
                    scratch.pack(affine, format, bytes, rows, packed);
                }
            }
        }
    }

    /// Decodes a row as f32, bit-equal to the format's own definition. The embedding table is
    /// read this way; it is also the truth that kernels are tested against.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `cols` long.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "a row has {} columns", self.cols);
        if let Place::Stored { stored, format, first: before, .. } = &self.place {
            let row_bytes = format.row_bytes(self.cols).unwrap_or(0);
            let row = before * BLOCK_ROWS + row;
            format.decode_row(&stored.bytes()[row * row_bytes..][..row_bytes], out);
            return;
        }
        let (bytes, lane) = (self.block_bytes(), row % BLOCK_ROWS);
        let block = self.part(row / BLOCK_ROWS * bytes..(row / BLOCK_ROWS + 1) * bytes);
        match self.layout {
            Layout::Affine(affine) => {
                let groups = block.chunks_exact(affine.group_bytes());
                for (group, out) in groups.zip(out.chunks_exact_mut(GROUP)) {
                    affine.decode_group(group, lane, out);
                }
            }
            Layout::Dense(dense) => {
                let columns = block.chunks_exact(BLOCK_ROWS * dense.bytes());
                let format = match dense {
                    Dense::F32 => QuantFormat::F32,
                    Dense::F16 => QuantFormat::F16,
                    Dense::Bf16 => QuantFormat::Bf16,
                };
                for (column, out) in columns.zip(out.iter_mut()) {
                    let at = lane * dense.bytes();
                    let value = std::slice::from_mut(out);
                    format.decode_row(&column[at..at + dense.bytes()], value);
                }
            }
        }
    }
}

impl<'a> RowBlocks<'a> {
    /// By its number in the matrix.
    #[inline(always)]
    pub(crate) fn block(&self, block: usize) -> &'a [u8] {
        &self.bytes[(block - self.first) * self.block_bytes..][..self.block_bytes]
    }
}

impl AffineLayout {
    fn decode_group(self, group: &[u8], lane: usize, out: &mut [f32]) {
        let (codes, scales) = group.split_at(self.codes_bytes());
        let lane_bytes = self.lane_bytes();
        for (k, out) in out.iter_mut().enumerate() {
            let part = match self.spread {
                Spread::Group32 => 0,
                Spread::Half16 => k / 16,
            };
            let scale = self.lane(&scales[part * lane_bytes..], lane);
            let code = if self.bits == 8 {
                codes[k / 4 * 64 + lane * 4 + k % 4]
            } else {
                let byte = codes[k / 8 * 64 + lane * 4 + k % 4];
                let mut code = if k % 8 < 4 { byte & 15 } else { byte >> 4 };
                let (planes, _) = codes[CODES4_BYTES..].as_chunks::<PLANE_BYTES>();
                for (plane, bits) in planes.iter().enumerate() {
                    let bit = lane * 4 + k % 4;
                    code |= (bits[k / 4 * 8 + bit / 8] >> (bit % 8) & 1) << (4 + plane);
                }
                code
            };
            *out = match self.zero {
                Zero::Point(point) => scale * f32::from(i16::from(code) - i16::from(point)),
                Zero::PerGroup => {
                    let bias = self.lane(&scales[(self.parts() + part) * lane_bytes..], lane);
                    scale * f32::from(code) + bias
                }
            };
        }
    }

    fn lane(self, bytes: &[u8], lane: usize) -> f32 {
        match self.scale {
            ScaleWidth::F16 => f16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]).to_f32(),
            ScaleWidth::F32 => {
                let at = 4 * lane;
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
        }
    }
}

/// One row block taken apart.
#[derive(Default)]
pub(crate) struct PackScratch {
    /// `[16][cols]`
    codes: Vec<u8>,
    /// `[16][groups of the format]`
    scales: Vec<f32>,
    biases: Vec<f32>,
    /// Rows of floats that are stored otherwise.
    floats: Vec<u8>,
}

impl PackScratch {
    /// Rows of floats as they are packed: as stored, but for those with scales, in bf16.
    fn as_floats<'a>(
        &'a mut self,
        format: QuantFormat,
        cols: usize,
        bytes: &'a [u8],
        rows: usize,
    ) -> &'a [u8] {
        if format != QuantFormat::Mxfp8 {
            return bytes;
        }
        let mut values = vec![0.0; cols];
        self.floats.clear();
        for row in bytes.chunks_exact(bytes.len() / rows) {
            format.decode_row(row, &mut values);
            let halves = values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes());
            self.floats.extend(halves);
        }
        &self.floats
    }

    /// Takes `rows` rows apart and puts them together in the layout: any format.
    pub(crate) fn pack(
        &mut self,
        affine: AffineLayout,
        format: QuantFormat,
        bytes: &[u8],
        rows: usize,
        packed: &mut [u8],
    ) {
        let shape = format.affine().expect("invariant: the layout came from the shape");
        let groups = packed.chunks_exact_mut(affine.group_bytes());
        let cols = GROUP * groups.len();
        self.decode(format, shape.group, cols, bytes, rows);
        for (group, packed) in groups.enumerate() {
            self.pack_group(affine, shape.group, group, cols, packed);
        }
    }

    fn decode(
        &mut self,
        format: QuantFormat,
        group: usize,
        cols: usize,
        bytes: &[u8],
        rows: usize,
    ) {
        let groups = cols / group;
        if rows < BLOCK_ROWS || self.codes.len() != BLOCK_ROWS * cols {
            // Lanes beyond the last row keep zeros.
            self.codes = vec![0; BLOCK_ROWS * cols];
            self.scales = vec![0.0; BLOCK_ROWS * groups];
            self.biases = vec![0.0; BLOCK_ROWS * groups];
        }
        let row_bytes = bytes.len() / rows;
        for (row, bytes) in bytes.chunks_exact(row_bytes).enumerate() {
            format.decode_affine_row(
                bytes,
                &mut self.codes[row * cols..][..cols],
                &mut self.scales[row * groups..][..groups],
                &mut self.biases[row * groups..][..groups],
            );
        }
    }

    fn pack_group(
        &self,
        affine: AffineLayout,
        source_group: usize,
        group: usize,
        cols: usize,
        packed: &mut [u8],
    ) {
        let (codes, mut scales) = packed.split_at_mut(affine.codes_bytes());
        for row in 0..BLOCK_ROWS {
            let (quads, _) = self.codes[row * cols + group * GROUP..][..GROUP].as_chunks::<4>();
            if affine.bits == 8 {
                for (index, quad) in quads.iter().enumerate() {
                    codes[index * 64 + 4 * row..][..4].copy_from_slice(quad);
                }
                continue;
            }
            let (nibbles, planes) = codes.split_at_mut(CODES4_BYTES);
            for (pair, [first, second]) in quads.as_chunks::<2>().0.iter().enumerate() {
                let (first, second) = (u32::from_le_bytes(*first), u32::from_le_bytes(*second));
                let word = first & 0x0f0f_0f0f | (second & 0x0f0f_0f0f) << 4;
                nibbles[pair * 64 + 4 * row..][..4].copy_from_slice(&word.to_le_bytes());
            }
            if !planes.is_empty() {
                for (index, quad) in quads.iter().enumerate() {
                    put_planes(*quad, row, index, planes);
                }
            }
        }
        // Groups of 64 or more repeat their scale for each 32 columns.
        let first = group * GROUP / source_group;
        let parts = first..first + affine.parts();
        self.put_lanes(affine, &self.scales, parts.clone(), cols / source_group, &mut scales);
        if affine.zero == Zero::PerGroup {
            self.put_lanes(affine, &self.biases, parts, cols / source_group, &mut scales);
        }
    }

    fn put_lanes(
        &self,
        affine: AffineLayout,
        values: &[f32],
        parts: Range<usize>,
        groups: usize,
        packed: &mut &mut [u8],
    ) {
        for part in parts {
            let (lanes, rest) = std::mem::take(packed).split_at_mut(affine.lane_bytes());
            for row in 0..BLOCK_ROWS {
                let value = values[row * groups + part];
                match affine.scale {
                    ScaleWidth::F16 => {
                        let bytes = f16::from_f32(value).to_le_bytes();
                        lanes[2 * row..2 * row + 2].copy_from_slice(&bytes);
                    }
                    ScaleWidth::F32 => {
                        lanes[4 * row..4 * row + 4].copy_from_slice(&value.to_le_bytes());
                    }
                }
            }
            *packed = rest;
        }
    }
}

/// Puts the bits above the fourth of a quad of codes into their planes, row by row from 0 on: the
/// first row of a byte clears what the byte held.
fn put_planes(quad: [u8; 4], row: usize, index: usize, planes: &mut [u8]) {
    for (plane, bits) in planes.chunks_exact_mut(PLANE_BYTES).enumerate() {
        let mut nibble = 0;
        for (b, code) in quad.iter().enumerate() {
            nibble |= (code >> (4 + plane) & 1) << b;
        }
        let byte = &mut bits[index * 8 + row / 2];
        *byte = if row.is_multiple_of(2) { nibble } else { *byte | nibble << 4 };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    struct Bytes(Vec<u8>);

    impl StoredBytes for Bytes {
        fn bytes(&self) -> &[u8] {
            &self.0
        }

        fn release(&self) {}

        fn are_wanted(&self) -> bool {
            false
        }
    }

    fn packed(shape: &WeightShape, bytes: &[u8]) -> PackedMatrix {
        let WeightShape { format, rows, cols, .. } = *shape;
        let room = PackedMatrix::packed_bytes(format, rows, cols).unwrap();
        let source = MatrixSource { format, rows, cols, bytes };
        let team = Team::new(2).unwrap();
        PackedMatrix::pack(&source, ArenaPiece::alone(room).unwrap(), &team).unwrap()
    }

    fn blocks(matrix: &PackedMatrix, range: Range<usize>) -> Vec<u8> {
        matrix.with_blocks(range.clone(), |blocks| {
            range.flat_map(|at| blocks.block(at).iter().copied()).collect()
        })
    }

    #[test]
    fn what_is_stored_is_shown_as_it_would_be_packed() {
        for format in [QuantFormat::Q4_0, QuantFormat::Q4_1, QuantFormat::Q8_0] {
            for (rows, cols) in [(16, 32), (40, 96), (128, 64)] {
                let bytes = rows * format.row_bytes(cols).unwrap();
                let shape = WeightShape { format, rows, cols, bytes };
                // Scales are numbers whatever the bytes.
                let bytes: Vec<u8> = (0..bytes).map(|at| (at * 31 % 113) as u8).collect();
                let packed = packed(&shape, &bytes);
                let stored: Arc<dyn StoredBytes> = Arc::new(Bytes(bytes.clone()));
                let stored = PackedMatrix::stored(&shape, stored, Arc::default()).unwrap();
                let all = packed.blocks();
                for range in [0..all, 0..1, all - 1..all] {
                    assert_eq!(blocks(&stored, range.clone()), blocks(&packed, range), "{shape:?}");
                }
                let (mut left, mut right) = (vec![0.0; cols], vec![0.0; cols]);
                for row in 0..rows {
                    stored.decode_row(row, &mut left);
                    packed.decode_row(row, &mut right);
                    assert_eq!(left, right, "row {row} of {shape:?}");
                }
                let parts = [&stored, &packed].map(|matrix| matrix.unstack(4));
                if let [Some(stored), Some(packed)] = parts {
                    for (stored, packed) in stored.iter().zip(&packed) {
                        assert_eq!(blocks(stored, 0..2), blocks(packed, 0..2), "{shape:?}");
                    }
                } else {
                    assert_ne!(rows, 128);
                }
                let piece = ArenaPiece::alone(packed.bytes()).unwrap();
                let copy = piece.part(0, piece.len());
                let source = MatrixSource { format, rows, cols, bytes: &bytes };
                assert!(PackedMatrix::pack_alone(&source, piece, || true).unwrap());
                let moved = PackedMatrix::adopt(&shape, copy).unwrap();
                assert_eq!(blocks(&moved, 0..all), blocks(&packed, 0..all), "{shape:?}");
                let piece = ArenaPiece::alone(packed.bytes()).unwrap();
                assert!(!PackedMatrix::pack_alone(&source, piece, || false).unwrap());
            }
        }
    }
}
