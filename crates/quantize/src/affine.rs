//! How do weights become MLX's affine codes? As its own quantizer makes them: the same scales,
//! biases and codes.
//!
//! The end of a group's range that is further from 0 is hit exactly, and 0 too where it can be.
//!
//! Source: `quantize` in `mlx/backend/cpu/quantized.cpp` of MLX.

use ops::quant_format::{MlxAffine, MlxFloat, QuantFormat};

/// A smaller scale than this is none.
const SCALE_LEAST: f32 = 1e-7;

/// Rows of a matrix as MLX keeps them, each part end to end.
#[derive(Default)]
pub(crate) struct AffineRows {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<u8>,
    pub(crate) biases: Vec<u8>,
}

impl AffineRows {
    /// Adds one row; it is a whole number of groups.
    pub(crate) fn add(&mut self, affine: MlxAffine, values: &[f32]) {
        let most = f32::from((1u16 << affine.bits()) - 1);
        let mut codes = vec![0u8; affine.group()];
        let mut block = vec![0u8; affine.block_bytes()];
        let width = affine.float().bytes();
        for values in values.chunks_exact(affine.group()) {
            let (scale, bias) = fit(values, most);
            for (code, value) in codes.iter_mut().zip(values) {
                *code = ((value - bias) / scale).round_ties_even().clamp(0.0, most) as u8;
            }
            affine.pack(scale, bias, &codes, &mut block);
            self.scales.extend_from_slice(&block[..width]);
            self.biases.extend_from_slice(&block[width..2 * width]);
            self.codes.extend_from_slice(&block[2 * width..]);
        }
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.codes.append(&mut other.codes);
        self.scales.append(&mut other.scales);
        self.biases.append(&mut other.biases);
    }

    /// What a row decodes to.
    pub(crate) fn decode(&self, affine: MlxAffine, out: &mut [f32]) {
        let width = affine.float().bytes();
        let code_bytes = affine.block_bytes() - 2 * width;
        let mut block = Vec::with_capacity(affine.block_bytes());
        for (index, out) in out.chunks_exact_mut(affine.group()).enumerate() {
            block.clear();
            block.extend_from_slice(&self.scales[width * index..][..width]);
            block.extend_from_slice(&self.biases[width * index..][..width]);
            block.extend_from_slice(&self.codes[code_bytes * index..][..code_bytes]);
            QuantFormat::MlxAffine(affine).decode_row(&block, out);
        }
    }
}

/// One row's codes, scales and biases, as MLX keeps them; it is a whole number of groups.
pub fn encode_affine_row(affine: MlxAffine, values: &[f32]) -> [Vec<u8>; 3] {
    let mut rows = AffineRows::default();
    rows.add(affine, values);
    [rows.codes, rows.scales, rows.biases]
}

fn fit(values: &[f32], most: f32) -> (f32, f32) {
    let low = values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // One bit is one of two values, the least and the largest.
    if most == 1.0 {
        return ((high - low).max(SCALE_LEAST), low);
    }
    let from_low = low.abs() > high.abs();
    let size = ((high - low) / most).max(SCALE_LEAST);
    let (scale, edge) = if from_low { (size, low) } else { (-size, high) };
    let steps = (edge / scale).round_ties_even();
    if steps == 0.0 { (scale, 0.0) } else { (edge / steps, edge) }
}

/// The type of scales for weights of this format: that of the weights, or of their model's others.
pub(crate) fn scales_of(format: QuantFormat) -> MlxFloat {
    match format {
        QuantFormat::F32 => MlxFloat::F32,
        QuantFormat::Bf16 | QuantFormat::Mxfp4 | QuantFormat::Mxfp8 | QuantFormat::Nvfp4 => {
            MlxFloat::Bf16
        }
        QuantFormat::MlxAffine(affine) if affine.float() == MlxFloat::Bf16 => MlxFloat::Bf16,
        // Scales in f32 are those of AWQ and GPTQ, whose models are in f16.
        _ => MlxFloat::F16,
    }
}
