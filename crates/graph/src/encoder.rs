//! Which blocks is an encoder made of? Every token sees the whole text; norms stand behind each
//! sum, and the stream is what they give.
//!
//! BERT, <https://arxiv.org/abs/1810.04805>. A text's positions are all in one row of one step.

use device::{Rows, Tape};
use ops::activate::Curve;
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::pool_rows::Pooling;
use ops::rotary::Rotary;
use ops::{ActivationId, EmbedBy, LinearPart, Op, Target};

use crate::{Builder, Classifier, Matrix, ShapeError};

/// A whole encoder; names of its tensors.
#[derive(Clone, Debug)]
pub struct Encoder {
    pub width: u32,
    pub vocabulary: u32,
    pub heads: u32,
    pub head_dim: u32,
    /// Rows of up and gate.
    pub inner: u32,
    pub epsilon: f32,
    pub embedding: String,
    /// Tables that are added to it: how many rows each has, and which one a token has.
    pub more: Vec<(String, u32, EmbedBy)>,
    pub embedding_norm: String,
    pub layers: Vec<EncoderLayer>,
    pub output: EncoderOutput,
}

/// What is told of a text.
#[derive(Clone, Debug)]
pub enum EncoderOutput {
    Vector(Pooling),
    /// Of its first token.
    Scores(Classifier),
}

#[derive(Clone, Debug)]
pub struct EncoderLayer {
    /// Queries, keys, values.
    pub inputs: [EncoderMatrix; 3],
    pub rotary: Option<Rotary>,
    pub output: EncoderMatrix,
    /// The stem of its weight and bias.
    pub attention_norm: String,
    pub up: EncoderMatrix,
    pub gate: EncoderGate,
    pub down: EncoderMatrix,
    pub output_norm: String,
}

#[derive(Clone, Debug)]
pub struct EncoderMatrix {
    pub weight: Matrix,
    pub bias: Option<String>,
}

/// What becomes of `up`'s product.
#[derive(Clone, Debug)]
pub enum EncoderGate {
    Plain(Curve),
    Gated(EncoderMatrix, Activation),
}

/// Lowers an encoder to a tape.
///
/// # Errors
/// [`ShapeError`] when sizes contradict each other.
pub fn lower_encoder(encoder: &Encoder) -> Result<Tape, ShapeError> {
    let mut builder = Builder::default();
    let heads_width = encoder.heads * encoder.head_dim;
    let mut buffer = |name, width| builder.activation(name, width, Rows::Tokens);
    let stream = buffer("stream", encoder.width);
    let queries = ["query", "key", "value"].map(|name| buffer(name, heads_width));
    let attended = buffer("attended", heads_width);
    let inner = buffer("inner", encoder.inner);
    let mut lowering = Lowering { encoder, builder, stream, queries, attended, inner };
    lowering.embedding()?;
    for (index, layer) in (0..).zip(&encoder.layers) {
        lowering.builder.begin_layer();
        lowering.attention(index, layer)?;
        lowering.feed_forward(layer)?;
    }
    lowering.pool()?;
    let layers = u32::try_from(encoder.layers.len()).expect("invariant: few layers");
    Ok(lowering.builder.finish(layers, encoder.heads, encoder.head_dim))
}

struct Lowering<'a> {
    encoder: &'a Encoder,
    builder: Builder,
    stream: ActivationId,
    /// And keys, and values.
    queries: [ActivationId; 3],
    attended: ActivationId,
    inner: ActivationId,
}

impl Lowering<'_> {
    fn embedding(&mut self) -> Result<(), ShapeError> {
        let Encoder { vocabulary, width, ref embedding, ref more, .. } = *self.encoder;
        let table = self.builder.weight(embedding, vocabulary, width);
        self.builder.push(Op::Embed { table, scale: 1.0, output: self.stream })?;
        for (name, rows, by) in more {
            let table = self.builder.weight(name, *rows, width);
            self.builder.push(Op::EmbedMore { table, by: *by, output: self.stream })?;
        }
        self.norm(&self.encoder.embedding_norm)
    }

    fn attention(&mut self, layer: u32, block: &EncoderLayer) -> Result<(), ShapeError> {
        let Encoder { width, heads, head_dim, .. } = *self.encoder;
        let heads_width = heads * head_dim;
        let mut parts = Vec::new();
        for (matrix, buffer) in block.inputs.iter().zip(self.queries) {
            parts.push(self.part(matrix, [heads_width, width], Target::Store(buffer)));
        }
        self.builder.push(Op::Linear { input: self.stream, parts })?;
        let [query, key, value] = self.queries;
        let rotary = block.rotary.as_ref().map(|rotary| self.builder.rotary(rotary));
        let (head_norms, growth) = (None, None);
        let append = Op::RotaryAppend { layer, head_norms, rotary, growth, query, key, value };
        self.builder.push(append)?;
        let shape = AttentionShape {
            heads,
            heads_kv: heads,
            head_dim,
            scale: (head_dim as f32).sqrt().recip(),
            window: Window::Whole,
            soft_cap: None,
        };
        let (output, sinks) = (self.attended, None);
        self.builder.push(Op::PagedAttention { layer, query, shape, sinks, output })?;
        let target = Target::AddTo(self.stream);
        let part = self.part(&block.output, [width, heads_width], target);
        self.builder.push(Op::Linear { input: self.attended, parts: vec![part] })?;
        self.norm(&block.attention_norm)
    }

    fn feed_forward(&mut self, block: &EncoderLayer) -> Result<(), ShapeError> {
        let Encoder { width, inner, .. } = *self.encoder;
        let (input, output) = (self.stream, self.inner);
        match &block.gate {
            EncoderGate::Plain(curve) => {
                let part = self.part(&block.up, [inner, width], Target::Store(output));
                self.builder.push(Op::Linear { input, parts: vec![part] })?;
                self.builder.push(Op::Activate { values: output, curve: *curve })?;
            }
            EncoderGate::Gated(gate, activation) => {
                let [gate, up] = [gate, &block.up].map(|matrix| {
                    let Matrix { name, part } = &matrix.weight;
                    self.builder.weight_part(name, inner, width, *part)
                });
                let activation = *activation;
                self.builder.push(Op::GatedLinear { input, gate, up, activation, output })?;
            }
        }
        let part = self.part(&block.down, [width, inner], Target::AddTo(self.stream));
        self.builder.push(Op::Linear { input: output, parts: vec![part] })?;
        self.norm(&block.output_norm)
    }

    fn pool(&mut self) -> Result<(), ShapeError> {
        let Encoder { width, ref output, .. } = *self.encoder;
        let (pooling, classifier) = match output {
            EncoderOutput::Vector(pooling) => (*pooling, None),
            EncoderOutput::Scores(classifier) => (Pooling::First, Some(classifier)),
        };
        let output = self.builder.activation("pooled", width, Rows::Sampled);
        self.builder.push(Op::PoolRows { input: self.stream, pooling, output })?;
        match classifier {
            None => self.builder.push(Op::GiveRows { parts: vec![output] }),
            Some(classifier) => classifier.lower(&mut self.builder, width, output),
        }
    }

    fn norm(&mut self, stem: &str) -> Result<(), ShapeError> {
        let Encoder { width, epsilon, .. } = *self.encoder;
        let weight = self.builder.weight(&format!("{stem}.weight"), 1, width);
        let bias = self.builder.weight(&format!("{stem}.bias"), 1, width);
        self.builder.push(Op::LayerNorm { values: self.stream, weight, bias, epsilon })
    }

    fn part(&mut self, matrix: &EncoderMatrix, shape: [u32; 2], target: Target) -> LinearPart {
        let Matrix { name, part } = &matrix.weight;
        let weight = self.builder.weight_part(name, shape[0], shape[1], *part);
        let bias = matrix.bias.as_ref().map(|name| self.builder.weight(name, 1, shape[0]));
        LinearPart { weight, bias, target }
    }
}
