//! What do the bytes of a stored weight row mean?
//!
//! A row is a whole number of blocks, each of `block_elements` weights in `block_bytes` bytes.
//! Every block format is affine, per group of consecutive weights: `scale * (code - point)` or
//! `scale * code + bias`. Backends repack codes, scales and biases into layouts of their own, so
//! one kernel family serves them all; `decode_row` is the truth they are compared with.
//!
//! Invariants: decoding depends on the bytes only, never panics for any byte content, and is
//! bit-equal to the `dequantize` of the `gguf` Python package (`testdata/gguf_blocks.bin`).
//!
//! Read in this order: this file, `legacy.rs` (32 weights a block), `k_quants.rs` (256 weights a
//! block, scales quantized too), `iq4.rs` (codes through a codebook), `iq_grids.rs` (points of a
//! grid), `ternary.rs`, `mlx.rs` (those of MLX), `fp4.rs` (floats of four bits, of MLX and GGUF).
//!
//! Source of the layouts: `ggml-common.h` of ggml and `gguf-py/gguf/quants.py` of llama.cpp.

mod fp4;
mod iq4;
mod iq_grids;
mod k_quants;
mod legacy;
mod mlx;
mod ternary;

pub use mlx::{MlxAffine, MlxFloat, e4m3};

/// How the elements of a stored tensor row are encoded: the formats of GGUF v3, then those of MLX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuantFormat {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Iq1S,
    Iq1M,
    Iq2Xxs,
    Iq2Xs,
    Iq2S,
    Iq3Xxs,
    Iq3S,
    Iq4Nl,
    Iq4Xs,
    Tq1_0,
    Tq2_0,
    /// What `Mxfp4` holds, the nibbles of a group in halves.
    GgufMxfp4,
    /// Four groups of what `Nvfp4` holds, their nibbles in halves; its scales have no sign.
    GgufNvfp4,
    MlxAffine(MlxAffine),
    /// Microscaling: E2M1 with a scale in E8M0 for 32.
    Mxfp4,
    /// E4M3 with a scale in E8M0 for 32.
    Mxfp8,
    /// E2M1 with a scale in E4M3 for 16.
    Nvfp4,
}

/// The affine reading of a block format: what a repacking backend has to store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffineShape {
    /// Bits that hold every code: 4, 5, 6 or 8.
    pub bits: u8,
    /// Consecutive weights that share one scale (and one bias): 16, 32, 64 or 128.
    pub group: usize,
    pub zero: Zero,
    /// Scales (and biases) are exactly the f16 values stored in the file. False where a scale is
    /// a product of two stored numbers, which needs f32.
    pub scale_is_f16: bool,
}

/// Where zero lies on the scale of codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// `weight = scale * code + bias`, a bias per group.
    PerGroup,
    /// `weight = scale * (code - point)`, the same point everywhere.
    Point(u8),
}

/// Largest block of any format, in weights (the K-quants' super-block).
const BLOCK_ELEMENTS_MAX: usize = 256;
/// Smallest group of any format is 16, so a block has at most this many groups.
const BLOCK_GROUPS_MAX: usize = BLOCK_ELEMENTS_MAX / 16;

impl QuantFormat {
    /// All that GGUF files have.
    pub const ALL: &[QuantFormat] = &[
        QuantFormat::F32,
        QuantFormat::F16,
        QuantFormat::Bf16,
        QuantFormat::Q4_0,
        QuantFormat::Q4_1,
        QuantFormat::Q5_0,
        QuantFormat::Q5_1,
        QuantFormat::Q8_0,
        QuantFormat::Q2K,
        QuantFormat::Q3K,
        QuantFormat::Q4K,
        QuantFormat::Q5K,
        QuantFormat::Q6K,
        QuantFormat::Iq1S,
        QuantFormat::Iq1M,
        QuantFormat::Iq2Xxs,
        QuantFormat::Iq2Xs,
        QuantFormat::Iq2S,
        QuantFormat::Iq3Xxs,
        QuantFormat::Iq3S,
        QuantFormat::Iq4Nl,
        QuantFormat::Iq4Xs,
        QuantFormat::Tq1_0,
        QuantFormat::Tq2_0,
        QuantFormat::GgufMxfp4,
        QuantFormat::GgufNvfp4,
    ];

    /// All that MLX has.
    pub fn of_mlx() -> Vec<QuantFormat> {
        let mut formats = vec![QuantFormat::Mxfp4, QuantFormat::Mxfp8, QuantFormat::Nvfp4];
        for bits in 1..=8 {
            for group in [32, 64, 128] {
                let floats = [MlxFloat::F32, MlxFloat::F16, MlxFloat::Bf16];
                let affine = floats.into_iter().filter_map(|f| MlxAffine::new(bits, group, f));
                formats.extend(affine.map(QuantFormat::MlxAffine));
            }
        }
        formats
    }

    /// The name used in files' names and messages: `Q4_1`, `BF16`.
    pub const fn name(self) -> &'static str {
        match self {
            QuantFormat::F32 => "F32",
            QuantFormat::F16 => "F16",
            QuantFormat::Bf16 => "BF16",
            QuantFormat::Q4_0 => "Q4_0",
            QuantFormat::Q4_1 => "Q4_1",
            QuantFormat::Q5_0 => "Q5_0",
            QuantFormat::Q5_1 => "Q5_1",
            QuantFormat::Q8_0 => "Q8_0",
            QuantFormat::Q2K => "Q2_K",
            QuantFormat::Q3K => "Q3_K",
            QuantFormat::Q4K => "Q4_K",
            QuantFormat::Q5K => "Q5_K",
            QuantFormat::Q6K => "Q6_K",
            QuantFormat::Iq1S => "IQ1_S",
            QuantFormat::Iq1M => "IQ1_M",
            QuantFormat::Iq2Xxs => "IQ2_XXS",
            QuantFormat::Iq2Xs => "IQ2_XS",
            QuantFormat::Iq2S => "IQ2_S",
            QuantFormat::Iq3Xxs => "IQ3_XXS",
            QuantFormat::Iq3S => "IQ3_S",
            QuantFormat::Iq4Nl => "IQ4_NL",
            QuantFormat::Iq4Xs => "IQ4_XS",
            QuantFormat::Tq1_0 => "TQ1_0",
            QuantFormat::Tq2_0 => "TQ2_0",
            QuantFormat::GgufMxfp4 => "MXFP4",
            QuantFormat::GgufNvfp4 => "NVFP4",
            QuantFormat::MlxAffine(affine) => affine.name(),
            QuantFormat::Mxfp4 => "MLX mxfp4",
            QuantFormat::Mxfp8 => "MLX mxfp8",
            QuantFormat::Nvfp4 => "MLX nvfp4",
        }
    }

    /// Weights in one block.
    pub const fn block_elements(self) -> usize {
        match self {
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::Bf16 => 1,
            QuantFormat::Q4_0
            | QuantFormat::Q4_1
            | QuantFormat::Q5_0
            | QuantFormat::Q5_1
            | QuantFormat::Q8_0
            | QuantFormat::Iq4Nl
            | QuantFormat::GgufMxfp4
            | QuantFormat::Mxfp4
            | QuantFormat::Mxfp8 => 32,
            QuantFormat::Nvfp4 => 16,
            QuantFormat::GgufNvfp4 => 64,
            QuantFormat::MlxAffine(affine) => affine.group(),
            QuantFormat::Q2K
            | QuantFormat::Q3K
            | QuantFormat::Q4K
            | QuantFormat::Q5K
            | QuantFormat::Q6K
            | QuantFormat::Iq1S
            | QuantFormat::Iq1M
            | QuantFormat::Iq2Xxs
            | QuantFormat::Iq2Xs
            | QuantFormat::Iq2S
            | QuantFormat::Iq3Xxs
            | QuantFormat::Iq3S
            | QuantFormat::Iq4Xs
            | QuantFormat::Tq1_0
            | QuantFormat::Tq2_0 => BLOCK_ELEMENTS_MAX,
        }
    }

    /// Bytes of one block: the sum of its fields, in stored order.
    pub const fn block_bytes(self) -> usize {
        match self {
            QuantFormat::F32 => 4,
            QuantFormat::F16 | QuantFormat::Bf16 => 2,
            QuantFormat::Q4_0 | QuantFormat::Iq4Nl => 2 + 16, // scale, nibbles
            QuantFormat::Q4_1 => 2 + 2 + 16,                  // scale, bias, nibbles
            QuantFormat::Q5_0 => 2 + 4 + 16,                  // scale, fifth bits, nibbles
            QuantFormat::Q5_1 => 2 + 2 + 4 + 16,              // scale, bias, fifth bits, nibbles
            QuantFormat::Q8_0 => 2 + 32,                      // scale, bytes
            QuantFormat::Q2K => 16 + 64 + 2 + 2,              // scales, codes, d, dmin
            QuantFormat::Q3K => 32 + 64 + 12 + 2,             // high bits, codes, scales, d
            QuantFormat::Q4K => 2 + 2 + 12 + 128,             // d, dmin, scales, nibbles
            QuantFormat::Q5K => 2 + 2 + 12 + 32 + 128,        // as Q4_K with fifth bits
            QuantFormat::Q6K => 128 + 64 + 16 + 2,            // nibbles, high bits, scales, d
            QuantFormat::Iq1S => 2 + 32 + 16,                 // d, indices, high bits and scales
            QuantFormat::Iq1M => 32 + 16 + 8,                 // indices, high bits, scales and d
            QuantFormat::Iq2Xxs => 2 + 64,                    // d, indices with signs and scales
            QuantFormat::Iq2Xs => 2 + 64 + 8,                 // d, indices with signs, scales
            QuantFormat::Iq2S => 2 + 32 + 32 + 8 + 8, // d, indices, signs, high bits, scales
            QuantFormat::Iq3Xxs => 2 + 64 + 32,       // d, indices, signs with scales
            QuantFormat::Iq3S => 2 + 64 + 8 + 32 + 4, // d, indices, high bits, signs, scales
            QuantFormat::Iq4Xs => 2 + 2 + 4 + 128,    // d, scales, nibbles
            QuantFormat::Tq1_0 => 48 + 4 + 2,         // five a byte, four a byte, d
            QuantFormat::Tq2_0 => 64 + 2,             // four a byte, d
            QuantFormat::GgufMxfp4 => 1 + 16,         // scale, nibbles
            QuantFormat::GgufNvfp4 => 4 + 32,         // scales, nibbles
            QuantFormat::MlxAffine(affine) => affine.block_bytes(),
            QuantFormat::Mxfp4 => 1 + 16, // scale, nibbles
            QuantFormat::Mxfp8 => 1 + 32, // scale, bytes
            QuantFormat::Nvfp4 => 1 + 8,  // scale, nibbles
        }
    }

    /// Bytes of a row of `cols` weights; `None` if that is not a whole number of blocks or
    /// overflows `usize`.
    pub fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_elements()) {
            return None;
        }
        (cols / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// How a repacking backend may store this format; `None` for the plain float formats.
    pub const fn affine(self) -> Option<AffineShape> {
        let (bits, group, zero, scale_is_f16) = match self {
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::Bf16 | QuantFormat::Mxfp8 => {
                return None;
            }
            QuantFormat::Q4_0 => (4, 32, Zero::Point(8), true),
            QuantFormat::Q4_1 => (4, 32, Zero::PerGroup, true),
            QuantFormat::Q5_0 => (5, 32, Zero::Point(16), true),
            QuantFormat::Q5_1 => (5, 32, Zero::PerGroup, true),
            QuantFormat::Q8_0 | QuantFormat::Iq4Nl => (8, 32, Zero::Point(128), true),
            QuantFormat::Q2K => (4, 16, Zero::PerGroup, false),
            QuantFormat::Q3K => (4, 16, Zero::Point(4), false),
            QuantFormat::Q4K => (4, 32, Zero::PerGroup, false),
            QuantFormat::Q5K => (5, 32, Zero::PerGroup, false),
            QuantFormat::Q6K => (6, 16, Zero::Point(32), false),
            QuantFormat::Iq4Xs | QuantFormat::Iq2Xxs | QuantFormat::Iq3Xxs => {
                (8, 32, Zero::Point(128), false)
            }
            QuantFormat::Iq2Xs | QuantFormat::Iq2S => (8, 16, Zero::Point(128), false),
            QuantFormat::Iq1S | QuantFormat::Iq3S | QuantFormat::GgufMxfp4 | QuantFormat::Mxfp4 => {
                (5, 32, Zero::Point(16), false)
            }
            QuantFormat::Iq1M => (5, 16, Zero::Point(16), false),
            QuantFormat::Tq1_0 | QuantFormat::Tq2_0 => (4, 32, Zero::Point(1), true),
            QuantFormat::GgufNvfp4 | QuantFormat::Nvfp4 => (5, 16, Zero::Point(16), true),
            QuantFormat::MlxAffine(affine) => {
                let is_f16 = matches!(affine.float(), MlxFloat::F16);
                (affine.packed_bits(), affine.group(), Zero::PerGroup, is_f16)
            }
        };
        Some(AffineShape { bits, group, zero, scale_is_f16 })
    }

    /// Decodes one row: `out.len()` weights from `row_bytes(out.len())` bytes.
    ///
    /// Each weight is computed in f32 with one rounding per operation (no fused multiply-add).
    ///
    /// # Panics
    /// If the two lengths do not belong together; never because of what the bytes hold.
    pub fn decode_row(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(Some(bytes.len()), self.row_bytes(out.len()), "{}: row length", self.name());
        match self {
            QuantFormat::F32 => {
                for (value, raw) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = f32::from_le_bytes(*raw);
                }
            }
            QuantFormat::F16 => {
                for (value, raw) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = half::f16::from_le_bytes(*raw).to_f32();
                }
            }
            QuantFormat::Bf16 => {
                for (value, raw) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *value = half::bf16::from_le_bytes(*raw).to_f32();
                }
            }
            QuantFormat::Q4_0
            | QuantFormat::Q4_1
            | QuantFormat::Q5_0
            | QuantFormat::Q5_1
            | QuantFormat::Q8_0
            | QuantFormat::Q2K
            | QuantFormat::Q3K
            | QuantFormat::Q4K
            | QuantFormat::Q5K
            | QuantFormat::Q6K
            | QuantFormat::Iq1S
            | QuantFormat::Iq1M
            | QuantFormat::Iq2Xxs
            | QuantFormat::Iq2Xs
            | QuantFormat::Iq2S
            | QuantFormat::Iq3Xxs
            | QuantFormat::Iq3S
            | QuantFormat::Iq4Nl
            | QuantFormat::Iq4Xs
            | QuantFormat::Tq1_0
            | QuantFormat::Tq2_0
            | QuantFormat::GgufMxfp4
            | QuantFormat::GgufNvfp4
            | QuantFormat::MlxAffine(_)
            | QuantFormat::Mxfp4
            | QuantFormat::Nvfp4 => self.decode_affine_blocks(bytes, out),
            QuantFormat::Mxfp8 => mlx::decode_mxfp8(bytes, out),
        }
    }

    /// Splits one row into what a repacking backend stores: `cols` codes, then a scale and a bias
    /// for each of `cols / group` groups. Biases are 0 where the format has a fixed zero point.
    ///
    /// `scale * (code - point)` or `scale * code + bias`, in f32 without fusing, is bit-equal to
    /// `decode_row`: codes and points are small integers, exact in f32, and `x - b` rounds as
    /// `x + -b` does.
    ///
    /// # Panics
    /// If `affine()` is `None` or the lengths do not belong together; never because of what the
    /// bytes hold.
    pub fn decode_affine_row(
        self,
        bytes: &[u8],
        codes: &mut [u8],
        scales: &mut [f32],
        biases: &mut [f32],
    ) {
        let Some(shape) = self.affine() else {
            panic!("{} has no affine form: the caller must ask affine() first", self.name());
        };
        let groups = codes.len() / shape.group;
        assert_eq!(Some(bytes.len()), self.row_bytes(codes.len()), "{}: row length", self.name());
        assert_eq!((groups, groups), (scales.len(), biases.len()), "{}: groups", self.name());
        let block_groups = self.block_elements() / shape.group;
        let blocks = bytes.chunks_exact(self.block_bytes());
        let codes = codes.chunks_exact_mut(self.block_elements());
        let scales = scales.chunks_exact_mut(block_groups);
        let biases = biases.chunks_exact_mut(block_groups);
        for (((block, codes), scales), biases) in blocks.zip(codes).zip(scales).zip(biases) {
            self.unpack_block(block, BlockParts { codes, scales, biases });
        }
    }

    fn decode_affine_blocks(self, bytes: &[u8], out: &mut [f32]) {
        let shape = self.affine().expect("invariant: called for affine formats only");
        let elements = self.block_elements();
        let groups = elements / shape.group;
        let mut codes = [0u8; BLOCK_ELEMENTS_MAX];
        let mut scales = [0f32; BLOCK_GROUPS_MAX];
        let mut biases = [0f32; BLOCK_GROUPS_MAX];
        let blocks = bytes.chunks_exact(self.block_bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(elements)) {
            let codes = &mut codes[..elements];
            let scales = &mut scales[..groups];
            let biases = &mut biases[..groups];
            self.unpack_block(block, BlockParts { codes, scales, biases });
            let group_codes = codes.chunks_exact(shape.group);
            let group_values = out.chunks_exact_mut(shape.group);
            for (index, (codes, values)) in group_codes.zip(group_values).enumerate() {
                decode_group(shape.zero, (scales[index], biases[index]), codes, values);
            }
        }
    }

    fn unpack_block(self, block: &[u8], parts: BlockParts<'_>) {
        match self {
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::Bf16 | QuantFormat::Mxfp8 => {
                unreachable!("invariant: only formats with an affine shape have parts")
            }
            QuantFormat::Q4_0 => legacy::unpack_q4_0(block, parts),
            QuantFormat::Q4_1 => legacy::unpack_q4_1(block, parts),
            QuantFormat::Q5_0 => legacy::unpack_q5_0(block, parts),
            QuantFormat::Q5_1 => legacy::unpack_q5_1(block, parts),
            QuantFormat::Q8_0 => legacy::unpack_q8_0(block, parts),
            QuantFormat::Q2K => k_quants::unpack_q2_k(block, parts),
            QuantFormat::Q3K => k_quants::unpack_q3_k(block, parts),
            QuantFormat::Q4K => k_quants::unpack_q4_k(block, parts),
            QuantFormat::Q5K => k_quants::unpack_q5_k(block, parts),
            QuantFormat::Q6K => k_quants::unpack_q6_k(block, parts),
            QuantFormat::Iq1S => iq_grids::unpack_iq1_s(block, parts),
            QuantFormat::Iq1M => iq_grids::unpack_iq1_m(block, parts),
            QuantFormat::Iq2Xxs => iq_grids::unpack_iq2_xxs(block, parts),
            QuantFormat::Iq2Xs => iq_grids::unpack_iq2_xs(block, parts),
            QuantFormat::Iq2S => iq_grids::unpack_iq2_s(block, parts),
            QuantFormat::Iq3Xxs => iq_grids::unpack_iq3_xxs(block, parts),
            QuantFormat::Iq3S => iq_grids::unpack_iq3_s(block, parts),
            QuantFormat::Iq4Nl => iq4::unpack_iq4_nl(block, parts),
            QuantFormat::Iq4Xs => iq4::unpack_iq4_xs(block, parts),
            QuantFormat::Tq1_0 => ternary::unpack_tq1_0(block, parts),
            QuantFormat::Tq2_0 => ternary::unpack_tq2_0(block, parts),
            QuantFormat::GgufMxfp4 => fp4::unpack_gguf_mxfp4(block, parts),
            QuantFormat::GgufNvfp4 => fp4::unpack_gguf_nvfp4(block, parts),
            QuantFormat::MlxAffine(affine) => affine.unpack(block, parts),
            QuantFormat::Mxfp4 => fp4::unpack_mxfp4(block, parts),
            QuantFormat::Nvfp4 => fp4::unpack_nvfp4(block, parts),
        }
    }
}

impl std::fmt::Display for QuantFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Where one block's parts go: `block_elements` codes, a scale and a bias a group.
struct BlockParts<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
    biases: &'a mut [f32],
}

fn decode_group(zero: Zero, (scale, bias): (f32, f32), codes: &[u8], values: &mut [f32]) {
    match zero {
        Zero::PerGroup => {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = scale * f32::from(*code) + bias;
            }
        }
        Zero::Point(point) => {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = scale * f32::from(i16::from(*code) - i16::from(point));
            }
        }
    }
}

/// The little-endian f16 at `offset` of a block, widened (always exact).
fn half_at(block: &[u8], offset: usize) -> f32 {
    half::f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// Low nibbles are the first half of the codes, high nibbles the second.
fn split_nibbles(packed: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(packed.len());
    for ((byte, low), high) in packed.iter().zip(low).zip(high) {
        *low = byte & 0x0F;
        *high = byte >> 4;
    }
}

#[cfg(test)]
mod tests;
