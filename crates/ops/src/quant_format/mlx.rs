//! What do MLX's quantized weights hold? Codes as a stream of bits, a scale (and a bias) a group.
//!
//! MLX keeps codes, scales and biases in tensors of their own. Here a block is one group of a row:
//! its scale, its bias where it has one, then its codes; a reader of files lays them out so. A row
//! of codes is one little-endian stream of bits in the file, and a group of 32 or more codes is
//! whole bytes of it whatever the bits.
//!
//! Source: `mlx/ops.cpp` and `mlx/backend/cpu/quantized.cpp` of MLX; the OCP specification of
//! microscaling formats for E2M1, E4M3 and E8M0.

use super::{BlockParts, QuantFormat, half_at};

/// How a scale (and a bias) is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MlxFloat {
    F32,
    F16,
    Bf16,
}

/// MLX's affine mode: `weight = scale * code + bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MlxAffine {
    bits: u8,
    group: u8,
    float: MlxFloat,
}

impl MlxFloat {
    /// Of rows of such numbers.
    pub const fn format(self) -> QuantFormat {
        match self {
            MlxFloat::F32 => QuantFormat::F32,
            MlxFloat::F16 => QuantFormat::F16,
            MlxFloat::Bf16 => QuantFormat::Bf16,
        }
    }

    pub const fn bytes(self) -> usize {
        match self {
            MlxFloat::F32 => 4,
            MlxFloat::F16 | MlxFloat::Bf16 => 2,
        }
    }

    fn put(self, value: f32, to: &mut [u8]) {
        match self {
            MlxFloat::F32 => to.copy_from_slice(&value.to_le_bytes()),
            MlxFloat::F16 => to.copy_from_slice(&half::f16::from_f32(value).to_le_bytes()),
            MlxFloat::Bf16 => to.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
        }
    }

    /// The number at `offset` of a block, widened (always exact).
    fn at(self, block: &[u8], offset: usize) -> f32 {
        match self {
            MlxFloat::F32 => f32::from_le_bytes([
                block[offset],
                block[offset + 1],
                block[offset + 2],
                block[offset + 3],
            ]),
            MlxFloat::F16 => half_at(block, offset),
            MlxFloat::Bf16 => {
                half::bf16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
            }
        }
    }
}

impl MlxAffine {
    /// `None` for what MLX does not have: bits other than 1 to 6 and 8, groups other than 32, 64
    /// and 128.
    pub fn new(bits: u8, group: usize, float: MlxFloat) -> Option<Self> {
        let is_known = matches!(bits, 1..=6 | 8) && matches!(group, 32 | 64 | 128);
        is_known.then_some(Self { bits, group: group as u8, float })
    }

    pub const fn bits(self) -> u8 {
        self.bits
    }

    pub const fn group(self) -> usize {
        self.group as usize
    }

    pub const fn float(self) -> MlxFloat {
        self.float
    }

    pub(super) const fn name(self) -> &'static str {
        match self.bits {
            1 => "MLX 1-bit",
            2 => "MLX 2-bit",
            3 => "MLX 3-bit",
            4 => "MLX 4-bit",
            5 => "MLX 5-bit",
            6 => "MLX 6-bit",
            _ => "MLX 8-bit",
        }
    }

    /// Scale, bias, codes.
    pub const fn block_bytes(self) -> usize {
        2 * self.float.bytes() + self.group() * self.bits as usize / 8
    }

    /// Bits that a kernel has: six are packed as eight.
    pub(super) const fn packed_bits(self) -> u8 {
        match self.bits {
            1..=4 => 4,
            5 => 5,
            _ => 8,
        }
    }

    /// A block of these codes; scale and bias are rounded to its kind of float.
    ///
    /// # Panics
    /// If there are not as many codes as a group has, or `block` is of another length.
    pub fn pack(self, scale: f32, bias: f32, codes: &[u8], block: &mut [u8]) {
        assert_eq!((codes.len(), block.len()), (self.group(), self.block_bytes()), "a block");
        let width = self.float.bytes();
        self.float.put(scale, &mut block[..width]);
        self.float.put(bias, &mut block[width..2 * width]);
        let (mut held, mut count, mut bytes) = (0u32, 0, block[2 * width..].iter_mut());
        for code in codes {
            held |= u32::from(*code) << count;
            count += self.bits;
            while count >= 8 {
                *bytes.next().expect("invariant: codes are whole bytes") = held as u8;
                held >>= 8;
                count -= 8;
            }
        }
    }

    pub(super) fn unpack(self, block: &[u8], parts: BlockParts<'_>) {
        let width = self.float.bytes();
        parts.scales[0] = self.float.at(block, 0);
        parts.biases[0] = self.float.at(block, width);
        unpack_bits(&block[2 * width..], self.bits, parts.codes);
    }
}

/// Codes of `bits` bits, the first in the lowest.
fn unpack_bits(packed: &[u8], bits: u8, codes: &mut [u8]) {
    let (mut held, mut count, mut bytes) = (0u32, 0, packed.iter());
    let mask = (1u32 << bits) - 1;
    for code in codes {
        if count < bits {
            held |= u32::from(*bytes.next().expect("invariant: codes are whole bytes")) << count;
            count += 8;
        }
        *code = (held & mask) as u8; // At most 8 bits.
        held >>= bits;
        count -= bits;
    }
}

/// An E8M0 scale, `2^(byte - 127)`; its NaN (255) is one here, too.
pub(super) fn e8m0(byte: u8) -> f32 {
    match byte {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        exponent => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// E4M3 as weights have it: no infinities, one NaN.
pub fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (byte >> 3 & 15, f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 120) << 23),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// E8M0 scale, 32 numbers in E4M3: decoded, not an affine format.
pub(super) fn decode_mxfp8(blocks: &[u8], out: &mut [f32]) {
    for (block, values) in blocks.chunks_exact(33).zip(out.chunks_exact_mut(32)) {
        let scale = e8m0(block[0]);
        for (value, byte) in values.iter_mut().zip(&block[1..]) {
            *value = scale * e4m3(*byte);
        }
    }
}
