//! Seeded random numbers and weights for the kernels' tests.
#![allow(dead_code, reason = "each test program uses its own part")]

use ops::quant_format::{MlxFloat, QuantFormat};

/// A linear congruential generator (Knuth's MMIX constants): enough for test data.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }

    /// In [-1, 1).
    pub(crate) fn float(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }
}

/// Where a block keeps its f16 fields, which must not be random bits (NaN, infinities).
fn half_fields(format: QuantFormat) -> &'static [usize] {
    match format {
        QuantFormat::Q4_0 | QuantFormat::Q5_0 | QuantFormat::Q8_0 => &[0],
        QuantFormat::Iq1S
        | QuantFormat::Iq2Xxs
        | QuantFormat::Iq2Xs
        | QuantFormat::Iq2S
        | QuantFormat::Iq3Xxs
        | QuantFormat::Iq3S
        | QuantFormat::Iq4Nl
        | QuantFormat::Iq4Xs => &[0],
        QuantFormat::Tq1_0 => &[52],
        QuantFormat::Tq2_0 => &[64],
        QuantFormat::Q4_1 | QuantFormat::Q5_1 | QuantFormat::Q4K | QuantFormat::Q5K => &[0, 2],
        QuantFormat::Q2K => &[80, 82],
        QuantFormat::Q3K => &[108],
        QuantFormat::Q6K => &[208],
        QuantFormat::MlxAffine(affine) if affine.float() == MlxFloat::F16 => &[0, 2],
        QuantFormat::F32
        | QuantFormat::F16
        | QuantFormat::Bf16
        | QuantFormat::Iq1M
        | QuantFormat::GgufMxfp4
        | QuantFormat::GgufNvfp4
        | QuantFormat::MlxAffine(_)
        | QuantFormat::Mxfp4
        | QuantFormat::Mxfp8
        | QuantFormat::Nvfp4 => &[],
    }
}

/// Scales of other types than f16 that must not be random bits, either.
fn put_other_scales(random: &mut Random, format: QuantFormat, block: &mut [u8]) {
    let mut scale = || random.float() * 0.02;
    match format {
        QuantFormat::MlxAffine(affine) if affine.float() == MlxFloat::F32 => {
            block[..4].copy_from_slice(&scale().to_le_bytes());
            block[4..8].copy_from_slice(&scale().to_le_bytes());
        }
        QuantFormat::MlxAffine(affine) if affine.float() == MlxFloat::Bf16 => {
            block[..2].copy_from_slice(&half::bf16::from_f32(scale()).to_le_bytes());
            block[2..4].copy_from_slice(&half::bf16::from_f32(scale()).to_le_bytes());
        }
        // A power of two near 1; in E4M3 0x7f and 0xff are not numbers.
        QuantFormat::Mxfp4 | QuantFormat::GgufMxfp4 => block[0] = 120 + block[0] % 8,
        // Four nibbles of four words are an f16 of 2^-8 to 2^-7.
        QuantFormat::Iq1M => {
            block[53] = block[53] & 0x0f | 0xc0;
            block[55] = block[55] & 0x0f | 0x10;
        }
        QuantFormat::Mxfp8 => {
            block[0] = 120 + block[0] % 8;
            block[1..].iter_mut().for_each(|byte| *byte &= 0xbf);
        }
        QuantFormat::Nvfp4 => block[0] &= 0xbf,
        _ => {}
    }
}

/// A random matrix as a file would hold it.
pub(crate) fn weights(
    random: &mut Random,
    format: QuantFormat,
    rows: usize,
    cols: usize,
) -> Vec<u8> {
    let bytes = format.row_bytes(cols).unwrap() * rows;
    match format {
        QuantFormat::F32 => (0..rows * cols).flat_map(|_| random.float().to_le_bytes()).collect(),
        QuantFormat::F16 => (0..rows * cols)
            .flat_map(|_| half::f16::from_f32(random.float()).to_le_bytes())
            .collect(),
        QuantFormat::Bf16 => (0..rows * cols)
            .flat_map(|_| half::bf16::from_f32(random.float()).to_le_bytes())
            .collect(),
        _ => {
            let mut data: Vec<u8> = (0..bytes).map(|_| (random.bits() >> 13) as u8).collect();
            for block in data.chunks_exact_mut(format.block_bytes()) {
                for at in half_fields(format) {
                    let scale = half::f16::from_f32(random.float() * 0.02);
                    block[*at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
                put_other_scales(random, format, block);
            }
            data
        }
    }
}
