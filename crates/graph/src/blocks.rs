//! Which blocks is a decoder made of? Each is written once, for all families.

use device::{Rows, Tape};
use ops::gated_linear::Activation;
use ops::paged_attention::AttentionShape;
use ops::rotary::Rotary;
use ops::{ActivationId, LinearPart, Op, Target, WeightId};

use crate::{Builder, ShapeError};

/// A whole decoder: embedding, layers, head.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub width: u32,
    pub vocabulary: u32,
    pub feed_forward_width: u32,
    pub epsilon: f32,
    pub embedding: String,
    pub embedding_scale: f32,
    pub layers: Vec<LayerBlock>,
    pub head: HeadBlock,
    pub rotary: Rotary,
    pub heads_kv: u32,
    pub head_dim: u32,
    pub heads: u32,
}

#[derive(Clone, Debug)]
pub struct LayerBlock {
    pub attention: AttentionBlock,
    pub feed_forward: FeedForwardBlock,
}

/// Pre-norm grouped attention with rotary positions; names of its tensors.
#[derive(Clone, Debug)]
pub struct AttentionBlock {
    pub norm: String,
    pub query: String,
    pub key: String,
    pub value: String,
    pub output: String,
    /// Query, key, value, output; where the model has them.
    pub biases: [Option<String>; 4],
    pub shape: AttentionShape,
}

/// Pre-norm gated feed-forward.
#[derive(Clone, Debug)]
pub struct FeedForwardBlock {
    pub norm: String,
    pub gate: String,
    pub up: String,
    pub down: String,
    pub activation: Activation,
}

#[derive(Clone, Debug)]
pub struct HeadBlock {
    pub norm: String,
    /// The embedding's name again where the two are tied.
    pub output: String,
}

/// Buffers shared by all layers: a layer needs nothing of the one before but the residual stream.
struct Buffers {
    stream: ActivationId,
    normed: ActivationId,
    query: ActivationId,
    key: ActivationId,
    value: ActivationId,
    attended: ActivationId,
    gated: ActivationId,
}

/// Lowers a decoder to a tape.
///
/// # Errors
/// [`ShapeError`] when sizes contradict each other.
pub fn lower(decoder: &Decoder) -> Result<Tape, ShapeError> {
    let mut builder = Builder::default();
    let heads_width = decoder.heads * decoder.head_dim;
    let kv_width = decoder.heads_kv * decoder.head_dim;
    let buffers = Buffers {
        stream: builder.activation("stream", decoder.width, Rows::Tokens),
        normed: builder.activation("normed", decoder.width, Rows::Tokens),
        query: builder.activation("query", heads_width, Rows::Tokens),
        key: builder.activation("key", kv_width, Rows::Tokens),
        value: builder.activation("value", kv_width, Rows::Tokens),
        attended: builder.activation("attended", heads_width, Rows::Tokens),
        gated: builder.activation("gated", decoder.feed_forward_width, Rows::Tokens),
    };
    let table = builder.weight(&decoder.embedding, decoder.vocabulary, decoder.width);
    let scale = decoder.embedding_scale;
    builder.push(Op::Embed { table, scale, output: buffers.stream })?;
    for (index, layer) in (0..).zip(&decoder.layers) {
        attention(&mut builder, decoder, &buffers, index, &layer.attention)?;
        feed_forward(&mut builder, decoder, &buffers, &layer.feed_forward)?;
    }
    head(&mut builder, decoder, &buffers)?;
    let layers = u32::try_from(decoder.layers.len()).expect("invariant: few layers");
    Ok(builder.finish(decoder.rotary.clone(), layers, decoder.heads_kv, decoder.head_dim))
}

fn attention(
    builder: &mut Builder,
    decoder: &Decoder,
    buffers: &Buffers,
    layer: u32,
    block: &AttentionBlock,
) -> Result<(), ShapeError> {
    norm(builder, decoder, &block.norm, buffers.stream, buffers.normed)?;
    let heads_width = decoder.heads * decoder.head_dim;
    let kv_width = decoder.heads_kv * decoder.head_dim;
    let bias = |builder: &mut Builder, index: usize, width| {
        block.biases[index].as_ref().map(|name| builder.weight(name, 1, width))
    };
    let part = |builder: &mut Builder, index, name, width, buffer| LinearPart {
        weight: builder.weight(name, width, decoder.width),
        bias: bias(builder, index, width),
        target: Target::Store(buffer),
    };
    let parts = vec![
        part(builder, 0, &block.query, heads_width, buffers.query),
        part(builder, 1, &block.key, kv_width, buffers.key),
        part(builder, 2, &block.value, kv_width, buffers.value),
    ];
    builder.push(Op::Linear { input: buffers.normed, parts })?;
    let (query, key, value) = (buffers.query, buffers.key, buffers.value);
    builder.push(Op::RotaryAppend { layer, query, key, value })?;
    let (shape, output) = (block.shape, buffers.attended);
    builder.push(Op::PagedAttention { layer, query, shape, output })?;
    let weight = builder.weight(&block.output, decoder.width, heads_width);
    let bias = bias(builder, 3, decoder.width);
    let parts = vec![LinearPart { weight, bias, target: Target::AddTo(buffers.stream) }];
    builder.push(Op::Linear { input: buffers.attended, parts })
}

fn feed_forward(
    builder: &mut Builder,
    decoder: &Decoder,
    buffers: &Buffers,
    block: &FeedForwardBlock,
) -> Result<(), ShapeError> {
    norm(builder, decoder, &block.norm, buffers.stream, buffers.normed)?;
    let inner = decoder.feed_forward_width;
    let gate = builder.weight(&block.gate, inner, decoder.width);
    let up = builder.weight(&block.up, inner, decoder.width);
    let activation = block.activation;
    let (input, output) = (buffers.normed, buffers.gated);
    builder.push(Op::GatedLinear { input, gate, up, activation, output })?;
    let weight = builder.weight(&block.down, decoder.width, inner);
    let target = Target::AddTo(buffers.stream);
    let parts = vec![LinearPart { weight, bias: None, target }];
    builder.push(Op::Linear { input: buffers.gated, parts })
}

fn head(builder: &mut Builder, decoder: &Decoder, buffers: &Buffers) -> Result<(), ShapeError> {
    let selected = builder.activation("selected", decoder.width, Rows::Sampled);
    let normed = builder.activation("selected normed", decoder.width, Rows::Sampled);
    let logits = builder.activation("logits", decoder.vocabulary, Rows::Sampled);
    builder.push(Op::SelectRows { input: buffers.stream, output: selected })?;
    norm(builder, decoder, &decoder.head.norm, selected, normed)?;
    let weight = builder.weight(&decoder.head.output, decoder.vocabulary, decoder.width);
    let parts = vec![LinearPart { weight, bias: None, target: Target::Store(logits) }];
    builder.push(Op::Linear { input: normed, parts })?;
    builder.push(Op::SampleRows { logits })
}

fn norm(
    builder: &mut Builder,
    decoder: &Decoder,
    name: &str,
    input: ActivationId,
    output: ActivationId,
) -> Result<(), ShapeError> {
    let weight: WeightId = builder.weight(name, 1, decoder.width);
    builder.push(Op::RmsNorm { input, weight, epsilon: decoder.epsilon, output })
}
