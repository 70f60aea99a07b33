//! What is a layer made of whose tokens hand a state on, where others attend? A gated delta net.
//!
//! Gated Delta Networks, <https://arxiv.org/abs/2412.06464>: queries, keys and values pass a short
//! convolution, heads of matrices are corrected and read, and what they say is normed and gated.

use device::Rows;
use ops::gated_delta::DeltaShape;
use ops::{ActivationId, DeltaInputs, HeadColumns, Op, Target};

use crate::blocks::Lowering;
use crate::{Matrix, ShapeError};

/// A gated delta net behind a norm; names of its tensors.
#[derive(Clone, Debug)]
pub struct DeltaBlock {
    pub norm: String,
    pub inputs: DeltaMatrices,
    /// `[mixed width, taps]`
    pub convolution: String,
    pub taps: u32,
    /// `[heads]`
    pub rate: String,
    pub bias: String,
    /// `[value_dim]`
    pub output_norm: String,
    pub output: Matrix,
    pub shape: DeltaShape,
}

/// Where a net's inputs come from.
#[derive(Clone, Debug)]
pub enum DeltaMatrices {
    /// Queries, keys and values in one matrix, and one each for gates, decays and strengths.
    Apart { mixed: Matrix, gate: Matrix, decay: Matrix, strength: Matrix },
    /// Strengths and decays in one matrix, by heads of keys.
    PairedGates { mixed: Matrix, gate: Matrix, strength_decay: Matrix },
}

/// What all nets of a model share.
#[derive(Clone, Copy)]
pub(crate) struct DeltaBuffers {
    mixed: ActivationId,
    gate: ActivationId,
    decay: ActivationId,
    strength: ActivationId,
    paired: Option<ActivationId>,
    read: ActivationId,
}

impl Lowering<'_> {
    pub(crate) fn delta(&mut self, block: &DeltaBlock) -> Result<(), ShapeError> {
        let (width, epsilon) = (self.decoder.width, self.decoder.epsilon);
        let &DeltaBlock { shape, taps, .. } = block;
        let buffers = self.delta_buffers(block);
        let DeltaBuffers { mixed, gate, decay, strength, read, .. } = buffers;
        self.read(Some(&block.norm))?;
        self.delta_inputs(block, buffers)?;

        let mixed_width = shape.mixed_width();
        let weight = self.builder.weight(&block.convolution, mixed_width, taps);
        let carried = self.builder.carry((taps - 1).saturating_mul(mixed_width), mixed_width)?;
        self.builder.push(Op::CausalConv { values: mixed, weight, taps, carried })?;
        let inputs = DeltaInputs { mixed, decay, strength };
        let [rate, bias] =
            [&block.rate, &block.bias].map(|name| self.builder.weight(name, 1, shape.heads));
        let kept = mixed_width + 2 * shape.heads;
        let carried = self.builder.carry(shape.state_elements(), kept)?;
        self.builder.push(Op::GatedDelta { shape, inputs, rate, bias, carried, output: read })?;
        let weight = self.builder.weight(&block.output_norm, 1, shape.value_dim);
        self.builder.push(Op::GatedNorm { values: read, weight, epsilon, gate })?;

        let target = Target::AddTo(self.stream);
        let part = self.part(&block.output, &None, [width, shape.value_width()], target);
        self.builder.push(Op::Linear { input: read, parts: vec![part] })
    }

    fn delta_inputs(
        &mut self,
        block: &DeltaBlock,
        buffers: DeltaBuffers,
    ) -> Result<(), ShapeError> {
        let (width, shape) = (self.decoder.width, block.shape);
        let heads = shape.heads;
        let mut part = |matrix: &Matrix, rows, buffer| {
            self.part(matrix, &None, [rows, width], Target::Store(buffer))
        };
        let (mixed_width, value_width) = (shape.mixed_width(), shape.value_width());
        let parts = match &block.inputs {
            DeltaMatrices::Apart { mixed, gate, decay, strength } => vec![
                part(mixed, mixed_width, buffers.mixed),
                part(gate, value_width, buffers.gate),
                part(decay, heads, buffers.decay),
                part(strength, heads, buffers.strength),
            ],
            DeltaMatrices::PairedGates { mixed, gate, strength_decay } => {
                let paired = buffers.paired.expect("invariant: made for such blocks");
                vec![
                    part(mixed, mixed_width, buffers.mixed),
                    part(gate, value_width, buffers.gate),
                    part(strength_decay, 2 * heads, paired),
                ]
            }
        };
        self.builder.push(Op::Linear { input: self.input, parts })?;
        let (Some(paired), DeltaMatrices::PairedGates { .. }) = (buffers.paired, &block.inputs)
        else {
            return Ok(());
        };
        let each = heads / shape.heads_key;
        for (first, buffer) in [(0, buffers.strength), (each, buffers.decay)] {
            let of = |buffer, stride, first| HeadColumns { buffer, stride, first, width: each };
            let (input, output) = (of(paired, 2 * each, first), of(buffer, each, 0));
            self.builder.push(Op::CopyColumns { heads: shape.heads_key, input, output })?;
        }
        Ok(())
    }

    fn delta_buffers(&mut self, block: &DeltaBlock) -> DeltaBuffers {
        let (builder, shape) = (&mut self.builder, block.shape);
        let is_paired = matches!(block.inputs, DeltaMatrices::PairedGates { .. });
        *self.delta.get_or_insert_with(|| {
            let mut buffer = |name, width| builder.activation(name, width, Rows::Tokens);
            DeltaBuffers {
                mixed: buffer("mixed", shape.mixed_width()),
                gate: buffer("delta gate", shape.value_width()),
                decay: buffer("decay", shape.heads),
                strength: buffer("strength", shape.heads),
                paired: is_paired.then(|| buffer("strength and decay", 2 * shape.heads)),
                read: buffer("read", shape.value_width()),
            }
        })
    }
}
