//! How do weights lie on the device? In tiles of 16 rows by units of 32 columns, padded with zeros.
//!
//! A matrix has three sections, each `[tile][unit][row]`: codes, high bits of codes, scales; what
//! neighbors in a workgroup load together lies together. A unit's codes are four bits each in four
//! words: of the columns from 8 j on, those at even places are in the low half of word j and their
//! neighbors in the high one, so that pairs come out together. What a code has above them is in the
//! second section, one bit or two a column in their order. Codes of eight bits and floats need no
//! second section. Scales are f16, followed by the group's bias where there is one; of two units
//! without biases they are one word. `kernels/packed.wgsli` is the reader.

use std::fmt::Write as _;

use half::f16;
use ops::quant_format::{QuantFormat, Zero};

/// Columns of a unit.
pub(crate) const UNIT: usize = 32;

/// Rows that lie unit by unit.
pub(crate) const TILE_ROWS: usize = 16;

/// The form in which kernels read a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Form {
    /// Codes of 4, 5, 6 or 8 bits; 16 or 32 columns share a scale, and a bias where there is one.
    Affine {
        bits: u32,
        group: u32,
        has_bias: bool,
        /// In the order of `kernels/arranged.wgsli`, and not unit by unit.
        is_arranged: bool,
    },
    F16,
    Bf16,
    F32,
}

impl Form {
    /// All that any format has, and so all that kernels are made for.
    pub(crate) const ALL: [Self; 13] = [
        Self::affine(4, 16, true),
        Self::affine(4, 32, false),
        Self::affine(4, 32, true),
        Self::affine(5, 16, true),
        Self::affine(5, 32, true),
        Self::affine(6, 16, false),
        Self::affine(8, 16, false),
        Self::affine(8, 32, false),
        Self::affine(8, 32, true),
        Self::affine(5, 32, false),
        Self::F16,
        Self::Bf16,
        Self::F32,
    ];

    const fn affine(bits: u32, group: u32, has_bias: bool) -> Self {
        Self::Affine { bits, group, has_bias, is_arranged: false }
    }

    /// The form of a stored format. Scales that are products of two numbers are rounded to f16.
    pub(crate) fn of(format: QuantFormat) -> Self {
        match format {
            QuantFormat::F32 => Self::F32,
            QuantFormat::F16 => Self::F16,
            // Three bits of mantissa and a power of two are in bf16 what they are.
            QuantFormat::Bf16 | QuantFormat::Mxfp8 => Self::Bf16,
            // A larger group's scale stands once for each 32 of its columns.
            QuantFormat::MlxAffine(mlx) => match mlx.bits() {
                1..=4 => Self::affine(4, 32, true),
                5 => Self::affine(5, 32, true),
                _ => Self::affine(8, 32, true),
            },
            QuantFormat::Tq1_0 | QuantFormat::Tq2_0 => Self::affine(4, 32, true),
            QuantFormat::Iq1S | QuantFormat::Iq3S | QuantFormat::GgufMxfp4 | QuantFormat::Mxfp4 => {
                Self::affine(5, 32, true)
            }
            QuantFormat::Iq1M | QuantFormat::GgufNvfp4 | QuantFormat::Nvfp4 => {
                Self::affine(5, 16, true)
            }
            QuantFormat::Iq2Xxs | QuantFormat::Iq3Xxs => Self::affine(8, 32, false),
            QuantFormat::Iq2Xs | QuantFormat::Iq2S => Self::affine(8, 16, false),
            QuantFormat::Q4_0 => Self::affine(4, 32, false),
            QuantFormat::Q4_1 | QuantFormat::Q4K => Self::affine(4, 32, true),
            QuantFormat::Q2K | QuantFormat::Q3K => Self::affine(4, 16, true),
            QuantFormat::Q5_0 => Self::affine(5, 32, false),
            QuantFormat::Q5_1 | QuantFormat::Q5K => Self::affine(5, 32, true),
            QuantFormat::Q6K => Self::affine(6, 16, false),
            QuantFormat::Q8_0 | QuantFormat::Iq4Nl | QuantFormat::Iq4Xs => {
                Self::affine(8, 32, false)
            }
        }
    }

    /// Arranged ones, for devices that put matrices together out of lanes' own words.
    pub(crate) const ARRANGED: [Self; 4] = [
        Self::affine(4, 32, false).arranged(2),
        Self::affine(4, 32, true).arranged(2),
        Self::affine(8, 32, false).arranged(2),
        Self::affine(8, 32, true).arranged(2),
    ];

    /// The same for such a device, for products of columns of so many units.
    pub(crate) const fn arranged(self, units: usize) -> Self {
        match self {
            Self::Affine { bits: bits @ (4 | 8), group: 32, has_bias, .. }
                if units.is_multiple_of(2) =>
            {
                Self::Affine { bits, group: 32, has_bias, is_arranged: true }
            }
            other => other,
        }
    }

    pub(crate) fn is_arranged(self) -> bool {
        matches!(self, Self::Affine { is_arranged: true, .. })
    }

    /// As kernels are named.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Affine { bits, group, has_bias, is_arranged } => {
                let order = if is_arranged { " arranged" } else { "" };
                format!("{bits}-{group}-{}{order}", u8::from(has_bias))
            }
            Self::F16 => "f16".to_owned(),
            Self::Bf16 => "bf16".to_owned(),
            Self::F32 => "f32".to_owned(),
        }
    }

    /// The constants with which `kernels/packed.wgsli` becomes the reader of this form.
    pub(crate) fn constants(self) -> String {
        let (bits, group, has_bias) = match self {
            Self::Affine { bits, group, has_bias, .. } => (bits, group, has_bias),
            Self::F16 => (16, 32, false),
            Self::Bf16 => (17, 32, false),
            Self::F32 => (32, 32, false),
        };
        let mut text = format!("const BITS = {bits}u;\nconst GROUP = {group}u;\n");
        let _ = writeln!(text, "const HAS_BIAS = {has_bias};\nconst POINT = {:?};", self.point());
        let _ = writeln!(text, "const IS_ARRANGED = {};", self.is_arranged());
        text
    }

    /// Whether f16, which matrix units read, holds what it has.
    pub(crate) fn fits_units(self) -> bool {
        !matches!(self, Self::Bf16 | Self::F32)
    }

    /// The code that means zero, where groups have no bias.
    fn point(self) -> f32 {
        match self {
            Self::Affine { bits: 8, has_bias: false, .. } => 128.0,
            Self::Affine { bits, has_bias: false, .. } => f32::from(1u16 << (bits - 1)),
            Self::Affine { .. } | Self::F16 | Self::Bf16 | Self::F32 => 0.0,
        }
    }

    /// Words of a unit's codes.
    pub(crate) fn code_words(self) -> usize {
        match self {
            Self::Affine { bits: 8, .. } => 8,
            Self::Affine { .. } => 4,
            Self::F16 | Self::Bf16 => 16,
            Self::F32 => 32,
        }
    }

    /// Words of a unit's high bits.
    pub(crate) fn high_words(self) -> usize {
        match self {
            Self::Affine { bits: 5, .. } => 1,
            Self::Affine { bits: 6, .. } => 2,
            Self::Affine { .. } | Self::F16 | Self::Bf16 | Self::F32 => 0,
        }
    }

    /// Words of a row's scales.
    pub(crate) fn scale_words(self, units: usize) -> usize {
        let Self::Affine { group, has_bias, .. } = self else { return 0 };
        let groups = units * UNIT / group as usize;
        if has_bias { groups } else { groups.div_ceil(2) }
    }

    /// Words of scales that stay together: those of a unit, or of two whose scales are one word.
    pub(crate) fn scale_each(self) -> usize {
        let Self::Affine { group, has_bias, .. } = self else { return 0 };
        if has_bias { UNIT / group as usize } else { 1 }
    }

    pub(crate) fn row_words(self, units: usize) -> usize {
        units * (self.code_words() + self.high_words()) + self.scale_words(units)
    }
}

/// Words of a tile's rows of two units in codes of four bits, and of one unit in eight.
const CHUNK_WORDS: usize = 2 * TILE_ROWS * 4;

/// Codes of a tile's rows that lie unit by unit, in the order of `kernels/arranged.wgsli`.
pub(crate) fn arrange(form: Form, words: &mut [u32]) {
    let arrange = if form.code_words() == 8 { arrange_bytes } else { arrange_fours };
    words.as_chunks_mut().0.iter_mut().for_each(arrange);
}

/// One unit, which is 32 columns.
fn arrange_bytes(unit: &mut [u32; CHUNK_WORDS]) {
    let plain = *unit;
    for (index, word) in unit.iter_mut().enumerate() {
        let (lane, block, below) = (index / 4, index % 4 / 2, index % 2);
        let row = lane / 4 + 8 * below;
        let pair = |eight: usize| {
            let own = plain[row * 8 + 4 * block + 2 * eight + lane % 4 / 2] >> (16 * (lane % 2));
            own & 0xff | (own & 0xff00) << 8
        };
        *word = pair(0) | pair(1) << 8;
    }
}

/// Two units.
fn arrange_fours(chunk: &mut [u32; CHUNK_WORDS]) {
    let plain = *chunk;
    for (index, word) in chunk.iter_mut().enumerate() {
        let (lane, block) = (index / 4, index % 4);
        let pair = |(slot, below, beside): (usize, usize, usize)| {
            let row = block / 2 * TILE_ROWS + lane / 4 + below;
            let eight = plain[row * 4 + block % 2 * 2 + beside];
            (eight >> (4 * (lane % 4)) & 0x000f_000f) << (4 * slot)
        };
        *word = [(0, 0, 0), (1, 0, 1), (2, 8, 0), (3, 8, 1)].into_iter().map(pair).sum();
    }
}

/// A tensor's rows, as they are stored.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) format: QuantFormat,
    pub(crate) cols: usize,
    pub(crate) bytes: &'a [u8],
}

impl Stored<'_> {
    fn row(&self, row: usize) -> Option<&[u8]> {
        let row_bytes = self.format.row_bytes(self.cols)?;
        self.bytes.chunks_exact(row_bytes).nth(row)
    }
}

/// A number of a tensor is finite and its f16 is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BeyondHalf;

/// One row after another into the words of a matrix.
pub(crate) struct Packer {
    form: Form,
    codes: Vec<u8>,
    values: Vec<f32>,
    scales: Vec<f32>,
    biases: Vec<f32>,
}

/// A row's words of each section.
pub(crate) struct RowWords<'a> {
    pub(crate) codes: &'a mut [u32],
    pub(crate) high: &'a mut [u32],
    pub(crate) scales: &'a mut [u32],
}

/// Where a matrix's sections begin, in words, with so many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sections {
    pub(crate) high: usize,
    pub(crate) scales: usize,
    pub(crate) end: usize,
}

impl Sections {
    pub(crate) fn new(form: Form, rows: usize, units: usize) -> Self {
        let rows = rows.next_multiple_of(TILE_ROWS);
        let high = rows * units * form.code_words();
        let scales = high + rows * units * form.high_words();
        // A whole number of the loads of four words.
        let end = (scales + rows * form.scale_words(units)).next_multiple_of(4);
        Self { high, scales, end }
    }
}

impl Packer {
    pub(crate) fn new(form: Form, cols: usize) -> Self {
        let units = cols.div_ceil(UNIT);
        let groups = match form {
            Form::Affine { group, .. } => units * UNIT / group as usize,
            Form::F16 | Form::Bf16 | Form::F32 => 0,
        };
        Self {
            form,
            codes: vec![0; units * UNIT],
            values: vec![0.0; units * UNIT],
            scales: vec![0.0; groups],
            biases: vec![0.0; groups],
        }
    }

    /// Row `from` of a tensor, into a row of each section.
    ///
    /// # Errors
    /// [`BeyondHalf`]: the matrix has no such form.
    pub(crate) fn pack(
        &mut self,
        stored: &Stored<'_>,
        from: usize,
        to: RowWords<'_>,
    ) -> Result<(), BeyondHalf> {
        let bytes = stored.row(from).expect("invariant: a tensor has the rows of its shape");
        let Form::Affine { bits, .. } = self.form else {
            stored.format.decode_row(bytes, &mut self.values[..stored.cols]);
            return self.pack_floats(to.codes);
        };
        self.decode(stored, bytes);
        self.pack_codes(bits, to.codes);
        self.pack_high(bits, to.high);
        self.pack_scales(to.scales)
    }

    fn decode(&mut self, stored: &Stored<'_>, bytes: &[u8]) {
        let Form::Affine { bits, group, has_bias, .. } = self.form else { return };
        let shape = stored.format.affine().expect("invariant: such forms are of affine formats");
        let groups = stored.cols / shape.group;
        stored.format.decode_affine_row(
            bytes,
            &mut self.codes[..stored.cols],
            &mut self.scales[..groups],
            &mut self.biases[..groups],
        );
        spread(&mut self.scales, groups, shape.group / group as usize);
        spread(&mut self.biases, groups, shape.group / group as usize);
        match (shape.zero, has_bias) {
            (Zero::Point(point), true) => {
                for (bias, scale) in self.biases.iter_mut().zip(&self.scales) {
                    *bias = -f32::from(point) * scale;
                }
            }
            (Zero::Point(point), false) => {
                let is_same = f32::from(point) == self.form.point();
                assert!(is_same, "{}: zero is {point} of {bits} bits", stored.format.name());
            }
            (Zero::PerGroup, _) => assert!(has_bias, "{}: biases", stored.format.name()),
        }
    }

    fn pack_floats(&self, words: &mut [u32]) -> Result<(), BeyondHalf> {
        let pairs = self.values.as_chunks::<2>().0;
        match self.form {
            Form::F16 => {
                for (word, &[low, high]) in words.iter_mut().zip(pairs) {
                    *word = u32::from(to_half(low)?) | u32::from(to_half(high)?) << 16;
                }
            }
            Form::Bf16 => {
                for (word, &[low, high]) in words.iter_mut().zip(pairs) {
                    *word = low.to_bits() >> 16 | high.to_bits() & 0xffff_0000;
                }
            }
            Form::F32 | Form::Affine { .. } => {
                for (word, value) in words.iter_mut().zip(&self.values) {
                    *word = value.to_bits();
                }
            }
        }
        Ok(())
    }

    fn pack_codes(&self, bits: u32, words: &mut [u32]) {
        if bits == 8 {
            for (word, codes) in words.iter_mut().zip(self.codes.as_chunks().0) {
                *word = u32::from_le_bytes(*codes);
            }
            return;
        }
        for (word, codes) in words.iter_mut().zip(self.codes.chunks_exact(8)) {
            let place =
                |(i, &code): (usize, &u8)| u32::from(code & 15) << (16 * (i % 2) + i / 2 * 4);
            *word = codes.iter().enumerate().map(place).sum();
        }
    }

    fn pack_high(&self, bits: u32, words: &mut [u32]) {
        let each = if bits == 5 { 32 } else { 16 };
        for (word, codes) in words.iter_mut().zip(self.codes.chunks_exact(each)) {
            let place = |(i, &code): (usize, &u8)| u32::from(code >> 4) << (i * 32 / each);
            *word = codes.iter().enumerate().map(place).sum();
        }
    }

    fn pack_scales(&self, words: &mut [u32]) -> Result<(), BeyondHalf> {
        let Form::Affine { has_bias, .. } = self.form else { return Ok(()) };
        if has_bias {
            for (word, (&scale, &bias)) in
                words.iter_mut().zip(self.scales.iter().zip(&self.biases))
            {
                *word = u32::from(to_half(scale)?) | u32::from(to_half(bias)?) << 16;
            }
            return Ok(());
        }
        for (word, scales) in words.iter_mut().zip(self.scales.chunks(2)) {
            let high = scales.get(1).copied().unwrap_or(0.0);
            *word = u32::from(to_half(scales[0])?) | u32::from(to_half(high)?) << 16;
        }
        Ok(())
    }
}

/// Each of `count` values `times` times.
fn spread(values: &mut [f32], count: usize, times: usize) {
    if times > 1 {
        for index in (0..count).rev() {
            let value = values[index];
            values[index * times..(index + 1) * times].fill(value);
        }
    }
}

fn to_half(value: f32) -> Result<u16, BeyondHalf> {
    let half = f16::from_f32(value);
    if value.is_finite() && half.is_infinite() { Err(BeyondHalf) } else { Ok(half.to_bits()) }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK_WORDS, arrange_bytes, arrange_fours};

    fn mixed(index: usize) -> u32 {
        let index = index as u32 + 1;
        index.wrapping_mul(2_654_435_769) ^ index << 13
    }

    /// As `gathered` of `kernels/packed.wgsli` has it.
    #[test]
    fn what_was_arranged_is_found_again() {
        let plain: [u32; CHUNK_WORDS] = std::array::from_fn(mixed);
        let mut arranged = plain;
        arrange_fours(&mut arranged);
        for (index, plain) in plain.into_iter().enumerate() {
            let (unit, row, eight) = (index / 64, index / 4 % 16, index % 4);
            let found: u32 = (0..4)
                .map(|pair| {
                    let word = arranged[(row % 8 * 4 + pair) * 4 + unit * 2 + eight / 2];
                    let slot = row / 8 * 2 + eight % 2;
                    (word >> (4 * slot) & 0x000f_000f) << (4 * pair)
                })
                .sum();
            assert_eq!(found, plain, "row {row}, unit {unit}, columns from {}", 8 * eight);
        }
    }

    /// As `gathered_bytes` has it, and as lanes read their elements.
    #[test]
    fn bytes_that_were_arranged_are_found_again() {
        let plain: [u32; CHUNK_WORDS] = std::array::from_fn(mixed);
        let mut arranged = plain;
        arrange_bytes(&mut arranged);
        for row in 0..16 {
            for column in 0..32 {
                let expected = plain[row * 8 + column / 4] >> (8 * (column % 4)) & 0xff;
                let (lane, block) = (row % 8 * 4 + column % 8 / 2, column / 16);
                let word = arranged[lane * 4 + 2 * block + row / 8];
                let found = word >> (column % 16 / 8 * 8 + column % 2 * 16) & 0xff;
                assert_eq!(found, expected, "row {row}, column {column}");
            }
        }
    }
}
