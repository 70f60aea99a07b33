//! How do weights lie on the device? In the order in which tensor-core fragments want them.
//!
//! A matrix is cut into tiles of 16 rows and chunks of 64 columns (padded with zeros). It has three
//! sections, each `[tile][chunk][..]`: codes, high bits of codes, scales. A lane (`g = lane / 4`,
//! `t = lane % 4`) has, for each of a chunk's four products `m` of 16 columns, four registers `j`
//! of two codes: of row `g` (j even) or `g + 8` (j odd), columns `16 m + 2 t + 8 (j / 2)` and the
//! next. A tile of a gate and an up has 8 rows of each. `kernels/packed.cuh` is the reader.
//!
//! A stack (experts, heads) differs: tiles of gates and ups alternate, and a lane's columns are
//! neighbors, so that it reads inputs 16 or 8 bytes at a time: `first + 2 (j / 2)` and the next,
//! where `first` is `32 (m / 2) + 8 t + 4 (m % 2)`, with groups of 16 `16 m + 4 t`.

use half::f16;
use ops::quant_format::{QuantFormat, Zero};

/// Rows of a tile and columns of a chunk.
pub(crate) const TILE_ROWS: usize = 16;
pub(crate) const CHUNK: usize = 64;
const LANES: usize = 32;

/// The form in which kernels read a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Form {
    /// Of a code; 16: the weight itself in f16, without scales.
    pub(crate) bits: usize,
    /// Columns that share a scale.
    pub(crate) group: usize,
    pub(crate) has_bias: bool,
}

impl Form {
    pub(crate) const DENSE: Self = Self { bits: 16, group: 32, has_bias: false };

    /// The form of a stored format. Scales that are products are rounded to f16, as inputs are.
    pub(crate) fn of(format: QuantFormat) -> Self {
        let affine = |bits, group, has_bias| Self { bits, group, has_bias };
        match format {
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::Bf16 | QuantFormat::Mxfp8 => {
                Self::DENSE
            }
            // A larger group's scale stands once for each 32 of its columns.
            QuantFormat::MlxAffine(mlx) => match mlx.bits() {
                1..=4 => affine(4, 32, true),
                5 => affine(5, 32, true),
                _ => affine(8, 32, true),
            },
            QuantFormat::Tq1_0 | QuantFormat::Tq2_0 => affine(4, 32, true),
            QuantFormat::Iq1S | QuantFormat::Iq3S | QuantFormat::GgufMxfp4 | QuantFormat::Mxfp4 => {
                affine(5, 32, true)
            }
            QuantFormat::Iq1M | QuantFormat::GgufNvfp4 | QuantFormat::Nvfp4 => affine(5, 16, true),
            QuantFormat::Iq2Xxs | QuantFormat::Iq3Xxs => affine(8, 32, false),
            QuantFormat::Iq2Xs | QuantFormat::Iq2S => affine(8, 16, false),
            QuantFormat::Q4_0 => affine(4, 32, false),
            QuantFormat::Q4_1 | QuantFormat::Q4K => affine(4, 32, true),
            QuantFormat::Q2K | QuantFormat::Q3K => affine(4, 16, true),
            QuantFormat::Q5_0 | QuantFormat::Q5_1 | QuantFormat::Q5K => affine(5, 32, true),
            QuantFormat::Q6K => affine(6, 16, false),
            QuantFormat::Q8_0 | QuantFormat::Iq4Nl | QuantFormat::Iq4Xs => affine(8, 32, false),
        }
    }

    /// As kernel images are named.
    pub(crate) fn name(self) -> String {
        format!("{}-{}-{}", self.bits, self.group, u8::from(self.has_bias))
    }

    fn code_bytes(self) -> usize {
        match self.bits {
            16 => 2048,
            8 => 1024,
            _ => 512,
        }
    }

    fn high_bytes(self) -> usize {
        match self.bits {
            5 => 128,
            6 => 256,
            _ => 0,
        }
    }

    fn scale_bytes(self) -> usize {
        let per_group = TILE_ROWS * 2 * (1 + usize::from(self.has_bias));
        if self.bits == 16 { 0 } else { CHUNK / self.group * per_group }
    }

    /// Column of a chunk that element `e` of a lane's register `j` of product `m` is of.
    fn column(self, is_stack: bool, (m, t, j, e): (usize, usize, usize, usize)) -> usize {
        match (is_stack, self.group) {
            (false, _) => 16 * m + 2 * t + 8 * (j / 2) + e,
            (true, 16) => 16 * m + 4 * t + 2 * (j / 2) + e,
            (true, _) => 32 * (m / 2) + 8 * t + 4 * (m % 2) + 2 * (j / 2) + e,
        }
    }

    /// Bytes of one chunk of one tile.
    pub(crate) fn chunk_bytes(self) -> usize {
        self.code_bytes() + self.high_bytes() + self.scale_bytes()
    }
}

/// A stored tensor.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) format: QuantFormat,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) bytes: &'a [u8],
}

impl Source<'_> {
    /// One of so many equal parts, from the first row on.
    fn part(self, index: usize, parts: usize) -> Self {
        let (rows, bytes) = (self.rows / parts, self.bytes.len() / parts);
        Self { rows, bytes: &self.bytes[index * bytes..][..bytes], ..self }
    }
}

/// A number of a tensor that f16 cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BeyondHalf;

/// Which source rows a matrix is made of: those of one tensor, or of two in alternating tiles (a
/// gate and an up); of a stack, those of each part by itself.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub(crate) first: Source<'a>,
    pub(crate) up: Option<Source<'a>>,
    /// Of a stack: equal parts of each tensor that have tiles of their own, as experts have.
    pub(crate) parts: Option<usize>,
}

impl<'a> Rows<'a> {
    pub(crate) fn tiles(&self) -> usize {
        self.parts.unwrap_or(1) * self.tiles_each()
    }

    fn tiles_each(&self) -> usize {
        let rows = self.first.rows / self.parts.unwrap_or(1);
        match (self.up, self.parts) {
            (None, _) => rows.div_ceil(TILE_ROWS),
            (Some(_), None) => rows.div_ceil(TILE_ROWS / 2),
            (Some(_), Some(_)) => 2 * rows.div_ceil(TILE_ROWS),
        }
    }

    pub(crate) fn chunks(&self) -> usize {
        self.first.cols.div_ceil(CHUNK)
    }

    /// Both of a gated pair must be of one form; where they are not, they are kept in f16.
    pub(crate) fn form(&self) -> Form {
        let form = Form::of(self.first.format);
        match self.up {
            Some(up) if Form::of(up.format) != form => Form::DENSE,
            _ => form,
        }
    }

    /// Source of a tile's row, and which of its rows that is.
    fn row(&self, tile: usize, row: usize) -> (Source<'a>, usize) {
        let Some(parts) = self.parts else {
            return match self.up {
                None => (self.first, tile * TILE_ROWS + row),
                Some(up) => (if row < 8 { self.first } else { up }, tile * 8 + row % 8),
            };
        };
        let (part, tile) = (tile / self.tiles_each(), tile % self.tiles_each());
        let (source, tile) = match self.up {
            Some(up) if tile % 2 == 1 => (up, tile / 2),
            Some(_) => (self.first, tile / 2),
            None => (self.first, tile),
        };
        (source.part(part, parts), tile * TILE_ROWS + row)
    }
}

/// Packs a matrix into `form`, on as many threads as there are processors.
///
/// # Errors
/// [`BeyondHalf`] when a weight or scale is finite and its f16 is not.
pub(crate) fn pack(rows: &Rows<'_>, form: Form) -> Result<Vec<u8>, BeyondHalf> {
    let (tiles, chunks) = (rows.tiles(), rows.chunks());
    let mut bytes = vec![0u8; tiles * chunks * form.chunk_bytes()];
    let (codes, rest) = bytes.split_at_mut(tiles * chunks * form.code_bytes());
    let (high, scales) = rest.split_at_mut(tiles * chunks * form.high_bytes());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = tiles.div_ceil(threads).max(1);
    let cut = |section: usize| (share * chunks * section).max(1);
    let parts = pieces(codes, cut(form.code_bytes()))
        .zip(pieces(high, cut(form.high_bytes())))
        .zip(pieces(scales, cut(form.scale_bytes())));
    std::thread::scope(|scope| {
        let workers: Vec<_> = parts
            .zip((0..tiles).step_by(share))
            .map(|(((codes, high), scales), first)| {
                let is_stack = rows.parts.is_some();
                let part = Part { form, is_stack, chunks, codes, high, scales };
                scope.spawn(move || part.pack(rows, first..tiles.min(first + share)))
            })
            .collect();
        let finish = |worker: std::thread::ScopedJoinHandle<'_, _>| {
            worker.join().expect("invariant: packing never panics")
        };
        workers.into_iter().try_for_each(finish)
    })?;
    Ok(bytes)
}

/// Consecutive pieces, and empty ones for ever after: a section may be empty.
fn pieces(bytes: &mut [u8], length: usize) -> impl Iterator<Item = &mut [u8]> {
    bytes.chunks_mut(length).chain(std::iter::repeat_with(Default::default))
}

/// One thread's tiles.
struct Part<'a> {
    form: Form,
    is_stack: bool,
    chunks: usize,
    codes: &'a mut [u8],
    high: &'a mut [u8],
    scales: &'a mut [u8],
}

/// A tile's rows, decoded: `[16][columns]` and `[16][groups]`, zeros beyond the matrix.
struct Decoded {
    codes: Vec<u8>,
    values: Vec<f32>,
    scales: Vec<f32>,
    biases: Vec<f32>,
}

impl Part<'_> {
    fn pack(mut self, rows: &Rows<'_>, tiles: std::ops::Range<usize>) -> Result<(), BeyondHalf> {
        let columns = self.chunks * CHUNK;
        let groups = columns / self.form.group;
        let mut decoded = Decoded {
            codes: vec![0; TILE_ROWS * columns],
            values: vec![0.0; TILE_ROWS * columns],
            scales: vec![0.0; TILE_ROWS * groups],
            biases: vec![0.0; TILE_ROWS * groups],
        };
        for (index, tile) in tiles.enumerate() {
            self.decode(rows, tile, columns, &mut decoded);
            self.check(&decoded)?;
            for chunk in 0..self.chunks {
                self.pack_codes(&decoded, index, chunk)?;
                self.pack_scales(&decoded, index, chunk)?;
            }
        }
        Ok(())
    }

    fn decode(&self, rows: &Rows<'_>, tile: usize, columns: usize, to: &mut Decoded) {
        let groups = columns / self.form.group;
        for row in 0..TILE_ROWS {
            let (source, index) = rows.row(tile, row);
            let row_bytes = source.bytes.len() / source.rows.max(1);
            let codes = &mut to.codes[row * columns..][..columns];
            let values = &mut to.values[row * columns..][..columns];
            let scales = &mut to.scales[row * groups..][..groups];
            let biases = &mut to.biases[row * groups..][..groups];
            codes.fill(0);
            values.fill(0.0);
            scales.fill(0.0);
            biases.fill(0.0);
            let Some(bytes) = source.bytes.chunks_exact(row_bytes).nth(index) else {
                continue;
            };
            if self.form.bits == 16 {
                source.format.decode_row(bytes, &mut values[..source.cols]);
                continue;
            }
            let shape = source.format.affine().expect("invariant: forms with scales are affine");
            let own_groups = source.cols / shape.group;
            source.format.decode_affine_row(
                bytes,
                &mut codes[..source.cols],
                &mut scales[..own_groups],
                &mut biases[..own_groups],
            );
            spread(scales, own_groups, shape.group / self.form.group);
            spread(biases, own_groups, shape.group / self.form.group);
            if let (QuantFormat::MlxAffine(mlx), 8) = (source.format, self.form.bits) {
                center(mlx.bits(), &mut codes[..source.cols], scales, biases);
            }
            if let (Zero::Point(point), true) = (shape.zero, self.form.has_bias) {
                for (bias, scale) in biases.iter_mut().zip(scales.iter()) {
                    *bias = -f32::from(point) * scale;
                }
            }
        }
    }

    /// A weight is one f16 in the end: its code times its scale, plus its bias.
    fn check(&self, from: &Decoded) -> Result<(), BeyondHalf> {
        let Form { bits, group, has_bias } = self.form;
        let zero = f32::from(match bits {
            16 => return Ok(()),
            8 => 128u8,
            _ if has_bias => 0,
            _ => 1 << (bits - 1),
        });
        let scaled = from.scales.iter().zip(&from.biases);
        for (codes, (&scale, &bias)) in from.codes.chunks_exact(group).zip(scaled) {
            let bias = if has_bias { bias } else { 0.0 };
            let beyond = |code: f32| ((code - zero) * scale + bias).abs() > f16::MAX.to_f32();
            // No code is so large that 8 bits do not hold it.
            if scale.is_finite()
                && bias.is_finite()
                && (beyond(0.0) || beyond(255.0))
                && codes.iter().any(|&code| beyond(f32::from(code)))
            {
                return Err(BeyondHalf);
            }
        }
        Ok(())
    }

    fn pack_codes(&mut self, from: &Decoded, tile: usize, chunk: usize) -> Result<(), BeyondHalf> {
        let form = self.form;
        let at = tile * self.chunks + chunk;
        let columns = self.chunks * CHUNK;
        let codes = &mut self.codes[at * form.code_bytes()..][..form.code_bytes()];
        let high = &mut self.high[at * form.high_bytes()..][..form.high_bytes()];
        for lane in 0..LANES {
            let (g, t) = (lane / 4, lane % 4);
            let mut high_word = 0u64;
            for m in 0..4 {
                let mut word = 0u32;
                for (j, e) in (0..4).flat_map(|j| [(j, 0), (j, 1)]) {
                    let row = g + 8 * (j % 2);
                    let column = chunk * CHUNK + form.column(self.is_stack, (m, t, j, e));
                    let element = row * columns + column;
                    let code = from.codes[element];
                    match form.bits {
                        16 => {
                            let half = to_half(from.values[element])?;
                            let place = 512 * m + 16 * lane + 4 * j + 2 * e;
                            codes[place..place + 2].copy_from_slice(&half.to_le_bytes());
                        }
                        8 => codes[512 * (m / 2) + 16 * lane + 8 * (m % 2) + 2 * j + e] = code,
                        _ => word |= u32::from(code & 15) << (4 * j + 16 * e),
                    }
                    let upper = u64::from(code >> 4);
                    match form.bits {
                        5 => high_word |= upper << (4 * m + j + 16 * e),
                        6 => high_word |= upper << (32 * (m / 2) + 8 * (m % 2) + 2 * j + 16 * e),
                        _ => {}
                    }
                }
                if form.bits < 8 {
                    let place = 16 * lane + 4 * m;
                    codes[place..place + 4].copy_from_slice(&word.to_le_bytes());
                }
            }
            let length = form.high_bytes() / LANES;
            high[length * lane..][..length].copy_from_slice(&high_word.to_le_bytes()[..length]);
        }
        Ok(())
    }

    /// `[g][scales, then biases][group][row g, row g + 8]`.
    fn pack_scales(&mut self, from: &Decoded, tile: usize, chunk: usize) -> Result<(), BeyondHalf> {
        let form = self.form;
        if form.bits == 16 {
            return Ok(());
        }
        let at = tile * self.chunks + chunk;
        let groups = CHUNK / form.group;
        let row_groups = self.chunks * groups;
        let scales = &mut self.scales[at * form.scale_bytes()..][..form.scale_bytes()];
        let kinds = [Some(&from.scales), form.has_bias.then_some(&from.biases)];
        let mut places = scales.as_chunks_mut::<2>().0.iter_mut();
        for g in 0..8 {
            for kind in kinds.iter().flatten() {
                for (group, row) in (0..groups).flat_map(|group| [(group, g), (group, g + 8)]) {
                    let value = kind[row * row_groups + chunk * groups + group];
                    let place = places.next().expect("invariant: a place for each scale");
                    *place = to_half(value)?.to_le_bytes();
                }
            }
        }
        Ok(())
    }
}

/// Each of the first `count` values `times` over: a stored group's for each of its groups here.
fn spread(values: &mut [f32], count: usize, times: usize) {
    if times > 1 {
        (0..count * times).rev().for_each(|place| values[place] = values[place / times]);
    }
}

/// Kernels take 128 from 8-bit codes before they multiply. Codes are moved to have their middle
/// there, and biases with it: they are near zero then, and lose least to f16.
fn center(bits: u8, codes: &mut [u8], scales: &[f32], biases: &mut [f32]) {
    let middle = 1u8 << (bits - 1);
    codes.iter_mut().for_each(|code| *code += 128 - middle);
    for (bias, scale) in biases.iter_mut().zip(scales) {
        *bias += f32::from(middle) * scale;
    }
}

fn to_half(value: f32) -> Result<f16, BeyondHalf> {
    let half = f16::from_f32(value);
    if half.is_finite() || !value.is_finite() { Ok(half) } else { Err(BeyondHalf) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use half::bf16;
    use ops::quant_format::MlxFloat;

    use super::*;

    /// Every weight of a packed matrix, as the kernels read it; the packing's twin.
    fn unpack(packed: &[u8], form: Form, rows: &Rows<'_>) -> Vec<f32> {
        let (tiles, chunks) = (rows.tiles(), rows.chunks());
        let (codes, rest) = packed.split_at(tiles * chunks * form.code_bytes());
        let (high, scales) = rest.split_at(tiles * chunks * form.high_bytes());
        let half =
            |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        let columns = chunks * CHUNK;
        let mut weights = vec![f32::NAN; tiles * TILE_ROWS * columns];
        for tile in 0..tiles {
            for chunk in 0..chunks {
                let at = tile * chunks + chunk;
                let codes = &codes[at * form.code_bytes()..];
                let high = &high[at * form.high_bytes()..];
                let scales = &scales[at * form.scale_bytes()..];
                for (lane, m, j, e) in (0..1024).map(|i| (i / 32, i / 8 % 4, i / 2 % 4, i % 2)) {
                    let (g, t) = (lane / 4, lane % 4);
                    let column = match rows.parts {
                        None => 16 * m + 2 * t + 8 * (j / 2) + e,
                        // A lane's own 8 neighbors of 32, or 4 of 16.
                        Some(_) if form.group == 32 => {
                            32 * (m / 2) + 8 * t + (4 * m + 2 * (j / 2)) % 8 + e
                        }
                        Some(_) => 16 * m + 4 * t + 2 * (j / 2) + e,
                    };
                    let row = g + 8 * (j % 2);
                    let to = (tile * TILE_ROWS + row) * columns + chunk * CHUNK + column;
                    if form.bits == 16 {
                        weights[to] = half(codes, 512 * m + 16 * lane + 4 * j + 2 * e);
                        continue;
                    }
                    let nibble =
                        || codes[16 * lane + 4 * m + (4 * j + 16 * e) / 8] >> (4 * (j % 2)) & 15;
                    let bit = |at: usize, bytes: usize| high[bytes * lane + at / 8] >> (at % 8);
                    let code = match form.bits {
                        8 => codes[512 * (m / 2) + 16 * lane + 8 * (m % 2) + 2 * j + e],
                        6 => {
                            let at = 32 * (m / 2) + 8 * (m % 2) + 2 * j + 16 * e;
                            nibble() | (bit(at, 8) & 3) << 4
                        }
                        5 => nibble() | (bit(4 * m + j + 16 * e, 4) & 1) << 4,
                        _ => nibble(),
                    };
                    let groups = CHUNK / form.group;
                    let first = g * 4 * groups * (1 + usize::from(form.has_bias));
                    let place = first + 4 * (column / form.group) + 2 * (row / 8);
                    let scale = half(scales, place);
                    let point = match (form.bits, form.has_bias) {
                        (8, _) => 128.0,
                        (_, true) => 0.0,
                        (4, _) => 8.0,
                        (6, _) => 32.0,
                        _ => 128.0,
                    };
                    let bias = if form.has_bias { half(scales, place + 4 * groups) } else { 0.0 };
                    weights[to] = scale * (f32::from(code) - point) + bias;
                }
            }
        }
        weights
    }

    /// Bytes of plausible blocks: everything random, scales small.
    fn random_rows(format: QuantFormat, rows: usize, cols: usize) -> Vec<u8> {
        let mut state = 7u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        };
        let mut bytes: Vec<u8> =
            (0..rows * format.row_bytes(cols).unwrap()).map(|_| next()).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            if let Some(scales) = mlx_scales(format, block[0]) {
                block[..scales.len()].copy_from_slice(&scales);
                if format == QuantFormat::Mxfp8 {
                    // One of its codes is no number.
                    block[1..].iter_mut().for_each(|code| *code &= 0xbf);
                }
                continue;
            }
            for pair in block.chunks_exact_mut(2) {
                match format {
                    // Half of 1 to 2 in each float format's high byte; blocks may hold any bytes.
                    QuantFormat::F16 => pair[1] = 0x3c,
                    _ => pair[1] &= 0x3f,
                }
            }
        }
        bytes
    }

    /// A scale of some hundredths by a random byte, and a bias where the format has one.
    fn mlx_scales(format: QuantFormat, byte: u8) -> Option<Vec<u8>> {
        let (scale, bias) = (0.01 + f32::from(byte) / 4096.0, -0.3 * f32::from(byte) / 128.0);
        match format {
            QuantFormat::MlxAffine(mlx) => Some(match mlx.float() {
                MlxFloat::F32 => [scale, bias].map(f32::to_le_bytes).concat(),
                MlxFloat::F16 => [scale, bias].map(|v| f16::from_f32(v).to_le_bytes()).concat(),
                MlxFloat::Bf16 => [scale, bias].map(|v| bf16::from_f32(v).to_le_bytes()).concat(),
            }),
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 => Some(vec![118 + byte % 4]),
            QuantFormat::Nvfp4 => Some(vec![0x20 + byte % 16]),
            _ => None,
        }
    }

    #[test]
    fn packed_weights_are_the_stored_ones() {
        for format in QuantFormat::ALL.iter().copied().chain(QuantFormat::of_mlx()) {
            let (rows, cols) = (21, 256 + 256 * usize::from(format.block_elements() == 256));
            let bytes = random_rows(format, rows, cols);
            let source = Source { format, rows, cols, bytes: &bytes };
            let form = Form::of(format);
            let mut expected = vec![0.0; cols];
            for (row, parts) in (0..rows).flat_map(|row| [(row, None), (row, Some(1))]) {
                let made_of = Rows { first: source, up: None, parts };
                let Ok(packed) = pack(&made_of, form) else { continue };
                let weights = unpack(&packed, form, &made_of);
                let own = &bytes[row * bytes.len() / rows..][..bytes.len() / rows];
                format.decode_row(own, &mut expected);
                for (got, want) in weights[row * cols..].iter().zip(&expected) {
                    // Scales and biases are rounded to 11 bits: of weights as large as the largest.
                    let largest = expected.iter().fold(0f32, |most, v| most.max(v.abs()));
                    let same = (got - want).abs() <= largest * 2f32.powi(-9);
                    assert!(same || got == want, "{format} row {row}: {got} for {want}");
                }
            }
        }
    }

    #[test]
    fn gate_and_up_alternate_and_the_rest_is_zero() {
        let format = QuantFormat::F32;
        let tensor =
            |value: f32| -> Vec<u8> { (0..17 * 32).flat_map(|_| value.to_le_bytes()).collect() };
        let (gate, up) = (tensor(1.0), tensor(2.0));
        let source = |bytes| Source { format, rows: 17, cols: 32, bytes };
        let rows = Rows { first: source(&gate), up: Some(source(&up)), parts: None };
        let packed = pack(&rows, rows.form()).unwrap();
        let weights = unpack(&packed, rows.form(), &rows);
        let at = |row: usize, column: usize| weights[row * CHUNK + column];
        // 8 + 8 rows, 8 + 8 rows, and one of each.
        assert_eq!(
            (rows.tiles(), at(7, 0), at(8, 31), at(23, 5), at(24, 5), at(32, 5), at(40, 5)),
            (3, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0)
        );
        assert_eq!((at(0, 32), at(33, 0), at(41, 0)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn parts_of_a_stack_have_tiles_of_their_own() {
        // Three parts of 5 rows, each of its own number.
        let tensor = |by: f32| -> Vec<u8> {
            let value = |row: usize| by * (1 + row / 5) as f32;
            (0..15).flat_map(|row| [value(row); 32]).flat_map(f32::to_le_bytes).collect()
        };
        let (gate, up) = (tensor(1.0), tensor(10.0));
        let source = |bytes| Source { format: QuantFormat::F32, rows: 15, cols: 32, bytes };
        for up in [None, Some(source(&up))] {
            let rows = Rows { first: source(&gate), up, parts: Some(3) };
            let packed = pack(&rows, rows.form()).unwrap();
            let weights = unpack(&packed, rows.form(), &rows);
            let first: Vec<f32> = weights.chunks_exact(16 * CHUNK).map(|tile| tile[0]).collect();
            match up {
                None => assert_eq!(first, [1.0, 2.0, 3.0]),
                Some(_) => assert_eq!(first, [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]),
            }
            let row = |row: usize| weights[row * CHUNK + 31];
            assert_eq!((row(4), row(5), row(15)), (1.0, 0.0, 0.0));
        }
    }

    fn plain(source: Source<'_>) -> Rows<'_> {
        Rows { first: source, up: None, parts: None }
    }

    #[test]
    fn what_half_cannot_hold_is_refused() {
        let bytes: Vec<u8> = (0..32).flat_map(|_| 1e6f32.to_le_bytes()).collect();
        let source = Source { format: QuantFormat::F32, rows: 1, cols: 32, bytes: &bytes };
        assert_eq!(pack(&plain(source), Form::DENSE), Err(BeyondHalf));
        // A scale that half can hold, times codes: -8 of the first, -1 of the second.
        let block = |codes: u8| [&0x7000u16.to_le_bytes()[..], &[codes; 16]].concat();
        for (codes, fits) in [(0x00, false), (0x77, true)] {
            let bytes = block(codes);
            let source = Source { format: QuantFormat::Q4_0, rows: 1, cols: 32, bytes: &bytes };
            let rows = plain(source);
            assert_eq!(pack(&rows, rows.form()).is_ok(), fits);
        }
    }
}
