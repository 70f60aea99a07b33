//! Random weights of a plausible size, in every format.

use device::{LoadError, Tape, WeightSource, WeightView};
use ops::quant_format::{MlxAffine, MlxFloat, QuantFormat};

use crate::device_cases::Model;

/// Random tensors in the formats of a model: name, format, rows, columns and bytes.
pub struct Tensors(pub Vec<(String, QuantFormat, usize, usize, Vec<u8>)>);

impl WeightSource for Tensors {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        let found = self.0.iter().find(|(known, ..)| known == name);
        let found = found.ok_or_else(|| LoadError(format!("there is no {name}")))?;
        let &(_, format, rows, cols, ref bytes) = found;
        Ok(WeightView { format, rows, cols, bytes })
    }
}

impl Tensors {
    pub fn of(model: &Model, tape: &Tape) -> Self {
        let mut random = Random(11);
        let tensor = |spec: &device::WeightSpec| {
            let (rows, cols) = (spec.rows as usize, spec.cols as usize);
            let is_vector = rows == 1 || spec.name.ends_with("bias");
            let format = match (is_vector, spec.name.ends_with("other")) {
                (true, _) => QuantFormat::F32,
                (false, true) => model.other,
                (false, false) => model.format,
            };
            let bytes = if is_vector {
                let near = if spec.name.contains("norm") { 1.0 } else { 0.0 };
                let value = |_| (near + 0.2 * random.signed()).to_le_bytes();
                (0..rows * cols).flat_map(value).collect()
            } else {
                random.blocks(format, rows * cols)
            };
            (spec.name.clone(), format, rows, cols, bytes)
        };
        Self(tape.weights.iter().map(tensor).collect())
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Random codes under scales that make weights of about 0.05 to 0.1.
    fn blocks(&mut self, format: QuantFormat, elements: usize) -> Vec<u8> {
        // Where the f16 scales stand in a block, and how large they may be.
        let scales: &[(usize, f32)] = match format {
            QuantFormat::F32 => {
                return (0..elements).flat_map(|_| (0.15 * self.signed()).to_le_bytes()).collect();
            }
            QuantFormat::F16 => {
                return (0..elements)
                    .flat_map(|_| half(0.15 * self.signed()).to_le_bytes())
                    .collect();
            }
            QuantFormat::Bf16 => {
                let upper = |value: f32| (value.to_bits() >> 16) as u16;
                return (0..elements)
                    .flat_map(|_| upper(0.15 * self.signed()).to_le_bytes())
                    .collect();
            }
            QuantFormat::Q4_0 => &[(0, 0.02)],
            QuantFormat::Q4_1 => &[(0, 0.02), (2, -0.15)],
            QuantFormat::Q5_0 => &[(0, 0.01)],
            QuantFormat::Q5_1 => &[(0, 0.01), (2, -0.15)],
            QuantFormat::Q8_0 | QuantFormat::Iq4Nl => &[(0, 0.001)],
            QuantFormat::Q2K => &[(80, 0.003), (82, 0.0045)],
            QuantFormat::Q3K => &[(108, 0.002)],
            QuantFormat::Q4K => &[(0, 0.0002), (2, 0.0015)],
            QuantFormat::Q5K => &[(0, 0.0001), (2, 0.0015)],
            QuantFormat::Q6K | QuantFormat::Iq4Xs => {
                &[(if format == QuantFormat::Q6K { 208 } else { 0 }, 0.00006)]
            }
            QuantFormat::Iq2Xxs | QuantFormat::Iq2Xs | QuantFormat::Iq2S => &[(0, 0.0005)],
            QuantFormat::Iq1S => &[(0, 0.007)],
            QuantFormat::Iq3Xxs => &[(0, 0.0002)],
            QuantFormat::Iq3S => &[(0, 0.0003)],
            QuantFormat::Tq1_0 => &[(52, 0.1)],
            QuantFormat::Tq2_0 => &[(64, 0.05)],
            QuantFormat::Iq1M | QuantFormat::GgufMxfp4 | QuantFormat::GgufNvfp4 => &[],
            QuantFormat::MlxAffine(mlx) => return self.mlx_blocks(mlx, elements),
            QuantFormat::Mxfp4 | QuantFormat::Mxfp8 | QuantFormat::Nvfp4 => {
                return self.float_blocks(format, elements);
            }
        };
        let mut bytes = Vec::new();
        for _ in 0..elements / format.block_elements() {
            let start = bytes.len();
            bytes.extend((0..format.block_bytes()).map(|_| self.next() as u8));
            for &(at, scale) in scales {
                let scale = scale * (0.6 + 0.4 * self.signed());
                bytes[start + at..start + at + 2].copy_from_slice(&half(scale).to_le_bytes());
            }
            self.other_scales(format, &mut bytes[start..]);
        }
        bytes
    }

    /// Scales that are not an f16 of their own, for weights of the same size.
    fn other_scales(&mut self, format: QuantFormat, block: &mut [u8]) {
        match format {
            // Half of 2^-6 times 12 at most.
            QuantFormat::GgufMxfp4 => block[0] = 120 + (self.next() % 2) as u8,
            // Subnormal E4M3, and the first normal ones.
            QuantFormat::GgufNvfp4 => block[..4].iter_mut().for_each(|byte| *byte &= 0x0f),
            // Four nibbles of four words are an f16 of 2^-8 to 2^-7.
            QuantFormat::Iq1M => {
                block[53] = block[53] & 0x0f | 0xc0;
                block[55] = block[55] & 0x0f | 0x10;
            }
            _ => {}
        }
    }
}

/// The formats of MLX.
impl Random {
    /// Scales that make weights of about 0.1, and biases that make their mean 0.
    fn mlx_blocks(&mut self, mlx: MlxAffine, elements: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let middle = 2f32.powi(i32::from(mlx.bits()) - 1);
        for _ in 0..elements / mlx.group() {
            let scale = 0.12 / middle * (0.6 + 0.4 * self.signed());
            for value in [scale, -scale * middle * (0.9 + 0.1 * self.signed())] {
                match mlx.float() {
                    MlxFloat::F32 => bytes.extend(value.to_le_bytes()),
                    MlxFloat::F16 => bytes.extend(half(value).to_le_bytes()),
                    MlxFloat::Bf16 => bytes.extend(((value.to_bits() >> 16) as u16).to_le_bytes()),
                }
            }
            bytes.extend((0..mlx.group() * usize::from(mlx.bits()) / 8).map(|_| self.next() as u8));
        }
        bytes
    }

    fn float_blocks(&mut self, format: QuantFormat, elements: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..elements / format.block_elements() {
            let scale = match format {
                // 2^-7 to 2^-5, of codes up to 6; 2^-13 to 2^-11, of codes up to 448.
                QuantFormat::Mxfp4 => 120 + self.next() % 3,
                QuantFormat::Mxfp8 => 114 + self.next() % 3,
                // E4M3: 1.0 to 1.9 times 2^-6.
                _ => 8 + self.next() % 8,
            };
            bytes.push(scale as u8);
            // E4M3's codes of no number are left out.
            let code = |byte: u64| if byte & 0x7f == 0x7f { 0x70 } else { byte as u8 };
            bytes.extend((1..format.block_bytes()).map(|_| code(self.next() & 0xff)));
        }
        bytes
    }
}

/// An f32 as the bits of an f16, cut off; below the smallest normal one zero.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xff) as i32 - 127 + 15;
    let sign = (bits >> 16) as u16 & 0x8000;
    if exponent <= 0 {
        return sign | 1 << 9;
    }
    sign | (exponent as u16) << 10 | (bits >> 13 & 0x3ff) as u16
}
