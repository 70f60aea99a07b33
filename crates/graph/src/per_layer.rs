//! What does a layer get of a token besides the stream? Embeddings of its own for each layer.
//!
//! Gemma 3n and 4 (transformers `modeling_gemma4.py`, Per-Layer Embeddings): a second table has a
//! row a token with a part for each layer; to it comes a product of the token's embedding. Behind
//! its feed-forward a layer adds a product of both.

use device::Rows;
use ops::gated_linear::Activation;
use ops::{ActivationId, HeadColumns, LinearPart, Op, Target};

use crate::ShapeError;
use crate::blocks::Lowering;

/// Names of the tensors that all layers share.
#[derive(Clone, Debug)]
pub struct PerLayerInputs {
    /// `[vocabulary, layers * width]`
    pub table: String,
    /// `[layers * width, model width]`
    pub projection: String,
    /// `[width]`
    pub norm: String,
    /// A layer's part, and how many layers have one.
    pub width: u32,
    pub layers: u32,
}

/// Names of a layer's tensors.
#[derive(Clone, Debug)]
pub struct PerLayerBlock {
    /// `[width, model width]`
    pub gate: String,
    /// `[model width, width]`
    pub projection: String,
    /// Of what is added to the stream.
    pub norm_after: String,
}

#[derive(Clone, Copy)]
pub(crate) struct PerLayerBuffers {
    inputs: ActivationId,
    gate: ActivationId,
    part: ActivationId,
    joined: ActivationId,
    branch: ActivationId,
}

impl Lowering<'_> {
    /// Works out what each layer gets, from tokens and their embeddings in the stream.
    pub(crate) fn per_layer_inputs(&mut self, block: &PerLayerInputs) -> Result<(), ShapeError> {
        let (model, layers) = (self.decoder.width, block.layers);
        let (vocabulary, epsilon) = (self.decoder.vocabulary, self.decoder.epsilon);
        let all = layers.saturating_mul(block.width);
        let mut buffer = |name, width| self.builder.activation(name, width, Rows::Tokens);
        let projected = buffer("projected", all);
        let buffers = PerLayerBuffers {
            inputs: buffer("per layer", all),
            gate: buffer("per layer gate", block.width),
            part: buffer("per layer part", block.width),
            joined: buffer("per layer joined", block.width),
            branch: buffer("per layer branch", model),
        };
        self.per_layer = Some(buffers);
        let table = self.builder.weight(&block.table, vocabulary, all);
        let scale = (block.width as f32).sqrt();
        self.builder.push(Op::Embed { table, scale, output: buffers.inputs })?;
        let weight = self.builder.weight(&block.projection, all, model);
        let part = LinearPart { weight, bias: None, target: Target::Store(projected) };
        self.builder.push(Op::Linear { input: self.stream, parts: vec![part] })?;
        // The product is divided by the root of the width before its norm, which knows no sizes but
        // through its epsilon.
        let (epsilon, width) = (epsilon * model as f32, block.width);
        let weight = Some(self.builder.weight(&block.norm, 1, width));
        self.builder.push(Op::NormHeads { values: projected, width, weight, epsilon })?;
        let scale = std::f32::consts::FRAC_1_SQRT_2;
        self.builder.push(Op::Blend { values: buffers.inputs, other: projected, scale })
    }

    pub(crate) fn per_layer(
        &mut self,
        index: u32,
        block: &PerLayerBlock,
        PerLayerInputs { width, layers, .. }: &PerLayerInputs,
    ) -> Result<(), ShapeError> {
        let (model, width) = (self.decoder.width, *width);
        let buffers = self.per_layer.expect("invariant: inputs come before layers");
        let PerLayerBuffers { inputs, gate, part, joined, branch } = buffers;
        self.store(self.stream, &block.gate, [width, model], gate)?;
        let stride = width.saturating_mul(*layers);
        let input = HeadColumns { buffer: inputs, stride, first: index * width, width };
        let output = HeadColumns { buffer: part, stride: width, first: 0, width };
        self.builder.push(Op::CopyColumns { heads: 1, input, output })?;
        let activation = Activation::GeluTanh;
        self.builder.push(Op::Gate { gate, up: part, activation, output: joined })?;
        self.store(joined, &block.projection, [model, width], branch)?;
        self.norm(&block.norm_after, branch, Target::AddTo(self.stream))
    }
}
