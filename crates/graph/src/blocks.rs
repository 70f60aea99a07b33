//! Which blocks is a decoder made of? Each is written once, for all families.
//!
//! A block holds the names of its tensors and what was chosen along each axis; [`lower`] writes the
//! ops. All layers share their buffers: a layer needs nothing of the one before but the stream.

use std::collections::BTreeMap;

use device::{RowPart, Rows, Tape};
use ops::activate::Curve;
use ops::experts::{Experts, Routing};
use ops::gated_linear::Activation;
use ops::paged_attention::AttentionShape;
use ops::pool_rows::Pooling;
use ops::rotary::{QueryGrowth, Rotary};
use ops::{ActivationId, HeadColumns, HeadNorms, LinearPart, Op, Target, WeightId};

use crate::delta::{DeltaBlock, DeltaBuffers};
use crate::fitted::{FittedBlock, FittedBuffers, FittedKeys};
use crate::per_layer::{PerLayerBlock, PerLayerBuffers, PerLayerInputs};
use crate::{Builder, ShapeError};

/// A whole decoder: embedding, layers, head.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub width: u32,
    pub vocabulary: u32,
    pub epsilon: f32,
    pub embedding: String,
    pub embedding_scale: f32,
    /// What layers get of a token besides the stream.
    pub per_layer: Option<PerLayerInputs>,
    pub layers: Vec<LayerBlock>,
    pub head: HeadBlock,
    pub heads_kv: u32,
    pub head_dim: u32,
    pub heads: u32,
}

#[derive(Clone, Debug)]
pub struct LayerBlock {
    pub mixer: MixerBlock,
    pub feed_forward: FeedForwardBlock,
    pub per_layer: Option<PerLayerBlock>,
    /// `[1]`: what the stream is multiplied by behind the layer.
    pub scale: Option<String>,
}

/// What brings tokens together.
#[derive(Clone, Debug)]
pub enum MixerBlock {
    Attention(AttentionBlock),
    Delta(DeltaBlock),
}

/// A matrix: a tensor, or some rows of one that holds several.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub name: String,
    pub part: Option<RowPart>,
}

impl Matrix {
    pub fn whole(name: String) -> Self {
        Self { name, part: None }
    }

    /// The rows from `first` on, of a tensor of `of` rows.
    pub fn part(name: String, first: u32, of: u32) -> Self {
        Self { name, part: Some(RowPart { first, of }) }
    }
}

/// Grouped attention; names of its tensors.
#[derive(Clone, Debug)]
pub struct AttentionBlock {
    /// `None`: it reads the stream as it is.
    pub norm: Option<String>,
    pub inputs: AttentionInputs,
    pub output: Matrix,
    pub output_bias: Option<String>,
    pub head_norms: Option<NormedHeads>,
    /// `None`: the layer knows no positions.
    pub rotary: Option<Rotary>,
    /// Of queries, with their positions.
    pub growth: Option<QueryGrowth>,
    pub sinks: Option<String>,
    pub shape: AttentionShape,
    /// A second norm, of what the block adds to the stream.
    pub norm_after: Option<String>,
}

/// How queries and keys are normed before they turn; names for both.
#[derive(Clone, Debug)]
pub enum NormedHeads {
    /// Each head alone.
    Each([String; 2]),
    /// All heads of a token together.
    Across([String; 2]),
}

impl AttentionBlock {
    /// Whether it writes keys and values to pages of its own.
    pub fn has_keys(&self) -> bool {
        match &self.inputs {
            AttentionInputs::Fitted(own) => matches!(own.keys, FittedKeys::Own { .. }),
            AttentionInputs::Matrices { .. }
            | AttentionInputs::Gated(_)
            | AttentionInputs::Latent(_) => true,
        }
    }
}

/// Where queries, keys and values come from.
#[derive(Clone, Debug)]
pub enum AttentionInputs {
    /// A matrix each, in this order, and biases where the model has them.
    Matrices {
        weights: [Matrix; 3],
        biases: [Option<String>; 3],
    },
    /// The same without biases, where each head's query has a gate for its output below it.
    Gated([Matrix; 3]),
    /// Of heads that are not those of the cache.
    Fitted(FittedBlock),
    Latent(LatentBlock),
}

/// Latent attention (DeepSeek V2, <https://arxiv.org/abs/2405.04434>): one head of keys, which
/// is what turns and then a latent; values are that latent. Queries are brought to it, and what is
/// attended is brought back, by matrices of each head.
#[derive(Clone, Debug)]
pub struct LatentBlock {
    /// Where queries pass through fewer columns: matrix, norm, and how many.
    pub query_down: Option<(String, String, u32)>,
    pub query: String,
    /// `[latent + turning, width]`
    pub latent: String,
    pub latent_norm: String,
    /// `[heads * latent, plain]`
    pub key_up: String,
    /// `[heads * value, latent]`
    pub value_up: String,
    pub latent_width: u32,
    /// Columns of a query head that turn, and that do not.
    pub turning: u32,
    pub plain: u32,
    /// Columns of a value head.
    pub value: u32,
}

#[derive(Clone, Debug)]
pub struct FeedForwardBlock {
    /// `None`: it reads the stream as it is.
    pub norm: Option<String>,
    /// For every token.
    pub gated: Option<GatedBlock>,
    /// For some tokens each.
    pub experts: Option<ExpertsBlock>,
    /// A second norm, of what the block adds to the stream.
    pub norm_after: Option<String>,
}

/// A mixture of experts, and the router that chooses among them.
#[derive(Clone, Debug)]
pub struct ExpertsBlock {
    pub router: String,
    pub router_bias: Option<String>,
    pub choice_bias: Option<String>,
    pub weight_scales: Option<String>,
    pub gate: String,
    pub up: String,
    pub down: String,
    /// Of gate, up and down.
    pub biases: Option<[String; 3]>,
    pub routing: Routing,
    pub activation: Activation,
    pub inner: u32,
    /// Where they stand beside the feed-forward of every token, and do not read what it does.
    pub apart: Option<ApartNorms>,
}

/// Norms of experts and of the feed-forward beside them (Gemma 4): each reads the stream by a norm
/// of its own, as does the router, and what each gives is normed before it is added.
#[derive(Clone, Debug)]
pub struct ApartNorms {
    pub router: String,
    pub experts: String,
    pub experts_after: String,
    pub gated_after: String,
}

/// `down(activation(gate(x)) * up(x))`
#[derive(Clone, Debug)]
pub struct GatedBlock {
    pub gate: Matrix,
    pub up: Matrix,
    pub down: Matrix,
    pub activation: Activation,
    /// Rows of gate and up.
    pub inner: u32,
    /// `[1, width]`: how much of it a token takes.
    pub share: Option<String>,
}

#[derive(Clone, Debug)]
pub struct HeadBlock {
    pub norm: String,
    pub output: HeadOutput,
}

/// What comes of the stream in the end.
#[derive(Clone, Debug)]
pub enum HeadOutput {
    Logits {
        /// The embedding's name again where the two are tied.
        matrix: String,
        soft_cap: Option<f32>,
    },
    /// One vector a text.
    Vector(Pooling),
    /// Scores of a text, by a classifier of its last token.
    Scores(Classifier),
    /// The last token's logits of some tokens: rows of the head of this name.
    Answers { matrix: String, tokens: Vec<u32> },
}

/// A classifier of one row: perhaps a matrix and tanh, then scores.
#[derive(Clone, Debug)]
pub struct Classifier {
    pub dense: Option<(String, Option<String>)>,
    pub output: String,
    pub output_bias: Option<String>,
    pub labels: u32,
}

impl Classifier {
    /// Scores of pooled rows, handed out.
    pub(crate) fn lower(
        &self,
        builder: &mut Builder,
        width: u32,
        pooled: ActivationId,
    ) -> Result<(), ShapeError> {
        let mut row = pooled;
        if let Some((matrix, bias)) = &self.dense {
            row = builder.activation("classified", width, Rows::Sampled);
            let part = Self::part(builder, matrix, bias.as_ref(), [width, width], row);
            builder.push(Op::Linear { input: pooled, parts: vec![part] })?;
            builder.push(Op::Activate { values: row, curve: Curve::Tanh })?;
        }
        let scores = builder.activation("scores", self.labels, Rows::Sampled);
        let shape = [self.labels, width];
        let part = Self::part(builder, &self.output, self.output_bias.as_ref(), shape, scores);
        builder.push(Op::Linear { input: row, parts: vec![part] })?;
        builder.push(Op::GiveRows { parts: vec![scores] })
    }

    fn part(
        builder: &mut Builder,
        matrix: &str,
        bias: Option<&String>,
        [rows, cols]: [u32; 2],
        output: ActivationId,
    ) -> LinearPart {
        let weight = builder.weight(matrix, rows, cols);
        let bias = bias.map(|name| builder.weight(name, 1, rows));
        LinearPart { weight, bias, target: Target::Store(output) }
    }
}

/// Lowers a decoder to a tape.
///
/// # Errors
/// [`ShapeError`] when sizes contradict each other.
pub fn lower(decoder: &Decoder) -> Result<Tape, ShapeError> {
    let mut lowering = Lowering::new(decoder);
    lowering.embedding()?;
    // Of those that have keys and values.
    let mut attending = 0;
    for (index, layer) in (0..).zip(&decoder.layers) {
        lowering.builder.begin_layer();
        match &layer.mixer {
            MixerBlock::Attention(attention) => {
                lowering.attention(attending, attention)?;
                attending += u32::from(attention.has_keys());
            }
            MixerBlock::Delta(delta) => lowering.delta(delta)?,
        }
        lowering.feed_forward(&layer.feed_forward)?;
        lowering.behind(index, layer)?;
        if index == 0 {
            lowering.list_output();
        }
    }
    lowering.head()?;
    Ok(lowering.builder.finish(attending, decoder.heads_kv, decoder.head_dim))
}

/// A tape in the making, and the buffers that all layers share.
pub(crate) struct Lowering<'a> {
    pub(crate) decoder: &'a Decoder,
    pub(crate) builder: Builder,
    pub(crate) stream: ActivationId,
    normed: ActivationId,
    /// What a block reads: the stream, or that normed.
    pub(crate) input: ActivationId,
    query: ActivationId,
    key: ActivationId,
    value: ActivationId,
    attended: ActivationId,
    /// What a block adds to the stream, where that is normed first.
    branch: Option<ActivationId>,
    /// By width.
    gated: BTreeMap<u32, ActivationId>,
    /// What routers give.
    scores: Option<ActivationId>,
    latent: Option<LatentBuffers>,
    /// Queries with gates for outputs, and the gates alone.
    query_gates: Option<[ActivationId; 2]>,
    /// Of an expert that every token passes.
    shared_gate: Option<ActivationId>,
    /// What is normed before it is added to what else is.
    side: Option<ActivationId>,
    pub(crate) delta: Option<DeltaBuffers>,
    /// By size of a head and count of those for keys.
    pub(crate) fitted_buffers: BTreeMap<(u32, u32), FittedBuffers>,
    pub(crate) per_layer: Option<PerLayerBuffers>,
}

/// What latent attention needs beside the buffers of all attention.
#[derive(Clone, Copy)]
struct LatentBuffers {
    /// Before and behind the norm.
    down: Option<[ActivationId; 2]>,
    queries: ActivationId,
    latent: ActivationId,
    latent_normed: ActivationId,
    turning: ActivationId,
    values: ActivationId,
}

impl<'a> Lowering<'a> {
    fn new(decoder: &'a Decoder) -> Self {
        let mut builder = Builder::default();
        let heads_width = decoder.heads * decoder.head_dim;
        let kv_width = decoder.heads_kv * decoder.head_dim;
        let mut buffer = |name, width| builder.activation(name, width, Rows::Tokens);
        let [stream, normed] = ["stream", "normed"].map(|name| buffer(name, decoder.width));
        let norms_after = decoder.layers.iter().any(|layer| {
            let of_mixer = match &layer.mixer {
                MixerBlock::Attention(attention) => attention.norm_after.is_some(),
                MixerBlock::Delta(_) => false,
            };
            of_mixer || layer.feed_forward.norm_after.is_some()
        });
        Self {
            decoder,
            stream,
            normed,
            input: normed,
            query: buffer("query", heads_width),
            key: buffer("key", kv_width),
            value: buffer("value", kv_width),
            attended: buffer("attended", heads_width),
            branch: norms_after.then(|| buffer("branch", decoder.width)),
            gated: BTreeMap::new(),
            scores: None,
            latent: None,
            query_gates: None,
            shared_gate: None,
            side: None,
            delta: None,
            fitted_buffers: BTreeMap::new(),
            per_layer: None,
            builder,
        }
    }

    fn embedding(&mut self) -> Result<(), ShapeError> {
        let Decoder { vocabulary, width, embedding_scale, .. } = *self.decoder;
        let table = self.builder.weight(&self.decoder.embedding, vocabulary, width);
        self.builder.push(Op::Embed { table, scale: embedding_scale, output: self.stream })?;
        match &self.decoder.per_layer {
            Some(inputs) => self.per_layer_inputs(inputs),
            None => Ok(()),
        }
    }

    /// What comes behind a layer's feed-forward.
    fn behind(&mut self, index: u32, layer: &LayerBlock) -> Result<(), ShapeError> {
        if let (Some(block), Some(inputs)) = (&layer.per_layer, &self.decoder.per_layer) {
            self.per_layer(index, block, inputs)?;
        }
        let Some(scale) = &layer.scale else { return Ok(()) };
        let by = self.builder.weight(scale, 1, 1);
        self.builder.push(Op::Scale { values: self.stream, by })
    }

    fn attention(&mut self, layer: u32, block: &AttentionBlock) -> Result<(), ShapeError> {
        let Decoder { width, heads, heads_kv, head_dim, .. } = *self.decoder;
        let (query, key, value, attended) = (self.query, self.key, self.value, self.attended);
        self.read(block.norm.as_deref())?;
        match &block.inputs {
            AttentionInputs::Matrices { weights, biases } => {
                let rows = [heads, heads_kv, heads_kv].map(|heads| heads * head_dim);
                let mut parts = Vec::new();
                for (index, buffer) in [query, key, value].into_iter().enumerate() {
                    let (shape, target) = ([rows[index], width], Target::Store(buffer));
                    parts.push(self.part(&weights[index], &biases[index], shape, target));
                }
                self.builder.push(Op::Linear { input: self.input, parts })?;
            }
            AttentionInputs::Gated(weights) => self.gated_inputs(weights)?,
            AttentionInputs::Fitted(own) => {
                let (input, columns) = self.fitted(layer, block, own)?;
                return self.attended(block, input, columns);
            }
            AttentionInputs::Latent(latent) => self.latent_inputs(latent)?,
        }
        let head_norms = self.head_norms(block)?;
        let rotary = block.rotary.as_ref().map(|rotary| self.builder.rotary(rotary));
        let growth = block.growth;
        let append = Op::RotaryAppend { layer, head_norms, rotary, growth, query, key, value };
        self.builder.push(append)?;
        let sinks = block.sinks.as_ref().map(|name| self.builder.weight(name, 1, heads));
        let (shape, output) = (block.shape, attended);
        self.builder.push(Op::PagedAttention { layer, query, shape, sinks, output })?;
        let (input, columns) = match &block.inputs {
            AttentionInputs::Fitted(_) => unreachable!("handled above"),
            AttentionInputs::Matrices { .. } => (attended, heads * head_dim),
            AttentionInputs::Gated(_) => {
                let [_, gate] = self.query_gates();
                self.builder.push(Op::SigmoidGate { values: attended, gate })?;
                (attended, heads * head_dim)
            }
            AttentionInputs::Latent(latent) => self.latent_output(latent)?,
        };
        self.attended(block, input, columns)
    }

    /// Norms across heads are done here, those of each head where it turns.
    fn head_norms(&mut self, block: &AttentionBlock) -> Result<Option<HeadNorms>, ShapeError> {
        let Decoder { heads, heads_kv, head_dim, epsilon, .. } = *self.decoder;
        match &block.head_norms {
            None => Ok(None),
            Some(NormedHeads::Each([query, key])) => {
                let [query, key] = [query, key].map(|name| self.builder.weight(name, 1, head_dim));
                Ok(Some(HeadNorms { query, key, epsilon }))
            }
            Some(NormedHeads::Across([query, key])) => {
                for (name, heads, values) in [(query, heads, self.query), (key, heads_kv, self.key)]
                {
                    let width = heads * head_dim;
                    let weight = Some(self.builder.weight(name, 1, width));
                    self.builder.push(Op::NormHeads { values, width, weight, epsilon })?;
                }
                Ok(None)
            }
        }
    }

    /// What was attended, to the stream.
    fn attended(
        &mut self,
        block: &AttentionBlock,
        input: ActivationId,
        columns: u32,
    ) -> Result<(), ShapeError> {
        let target = self.branch_target(block.norm_after.is_some());
        let shape = [self.decoder.width, columns];
        let part = self.part(&block.output, &block.output_bias, shape, target);
        self.builder.push(Op::Linear { input, parts: vec![part] })?;
        self.join(block.norm_after.as_deref())
    }

    /// Queries and gates by turns, which are parted by heads.
    fn gated_inputs(&mut self, weights: &[Matrix; 3]) -> Result<(), ShapeError> {
        let Decoder { width, heads, heads_kv, head_dim, .. } = *self.decoder;
        let [paired, gate] = self.query_gates();
        let mut parts = Vec::new();
        for (matrix, (heads, buffer)) in
            weights.iter().zip([(2 * heads, paired), (heads_kv, self.key), (heads_kv, self.value)])
        {
            let shape = [heads * head_dim, width];
            parts.push(self.part(matrix, &None, shape, Target::Store(buffer)));
        }
        self.builder.push(Op::Linear { input: self.input, parts })?;
        for (first, buffer) in [(0, self.query), (head_dim, gate)] {
            let of = |buffer, stride, first| HeadColumns { buffer, stride, first, width: head_dim };
            let (input, output) = (of(paired, 2 * head_dim, first), of(buffer, head_dim, 0));
            self.builder.push(Op::CopyColumns { heads, input, output })?;
        }
        Ok(())
    }

    fn query_gates(&mut self) -> [ActivationId; 2] {
        let width = self.decoder.heads * self.decoder.head_dim;
        let builder = &mut self.builder;
        *self.query_gates.get_or_insert_with(|| {
            [("queries and gates", 2 * width), ("gate", width)]
                .map(|(name, width)| builder.activation(name, width, Rows::Tokens))
        })
    }

    /// Heads of queries and the one of keys hold what turns first, then the latent; the value is
    /// the latent, and zeros that nobody writes.
    fn latent_inputs(&mut self, block: &LatentBlock) -> Result<(), ShapeError> {
        let Decoder { width, heads, head_dim, .. } = *self.decoder;
        let &LatentBlock { latent_width: latent, turning, plain, .. } = block;
        let buffers = self.latent_buffers(block);
        let (mut input, mut columns) = (self.input, width);
        if let (Some((down, norm, rank)), Some([raw, normed])) = (&block.query_down, buffers.down) {
            self.store(input, down, [*rank, width], raw)?;
            self.norm_of(norm, *rank, raw, Target::Store(normed))?;
            (input, columns) = (normed, *rank);
        }
        self.store(input, &block.query, [heads * (turning + plain), columns], buffers.queries)?;
        let rows = |first| Matrix::part(block.latent.clone(), first, latent + turning);
        let store = |buffer| Target::Store(buffer);
        let parts = vec![
            self.part(&rows(0), &None, [latent, width], store(buffers.latent)),
            self.part(&rows(latent), &None, [turning, width], store(buffers.turning)),
        ];
        self.builder.push(Op::Linear { input: self.input, parts })?;
        self.norm_of(&block.latent_norm, latent, buffers.latent, store(buffers.latent_normed))?;

        let stride = turning + plain;
        let of = |buffer, stride, first, width| HeadColumns { buffer, stride, first, width };
        let weight = self.builder.weight(&block.key_up, heads * latent, plain);
        let input = of(buffers.queries, stride, 0, plain);
        let output = of(self.query, head_dim, turning, latent);
        self.builder.push(Op::HeadLinear { heads, input, weight, output })?;
        for (heads, input, output) in [
            (
                heads,
                of(buffers.queries, stride, plain, turning),
                of(self.query, head_dim, 0, turning),
            ),
            (1, of(buffers.turning, turning, 0, turning), of(self.key, head_dim, 0, turning)),
            (
                1,
                of(buffers.latent_normed, latent, 0, latent),
                of(self.key, head_dim, turning, latent),
            ),
            (1, of(buffers.latent_normed, latent, 0, latent), of(self.value, head_dim, 0, latent)),
        ] {
            self.builder.push(Op::CopyColumns { heads, input, output })?;
        }
        Ok(())
    }

    /// Brings what was attended out of the latent space.
    fn latent_output(&mut self, block: &LatentBlock) -> Result<(ActivationId, u32), ShapeError> {
        let Decoder { heads, head_dim, .. } = *self.decoder;
        let &LatentBlock { latent_width: latent, value, .. } = block;
        let buffer = self.latent_buffers(block).values;
        let weight = self.builder.weight(&block.value_up, heads * value, latent);
        let input =
            HeadColumns { buffer: self.attended, stride: head_dim, first: 0, width: latent };
        let output = HeadColumns { buffer, stride: value, first: 0, width: value };
        self.builder.push(Op::HeadLinear { heads, input, weight, output })?;
        Ok((buffer, heads * value))
    }

    fn latent_buffers(&mut self, block: &LatentBlock) -> LatentBuffers {
        let heads = self.decoder.heads;
        let builder = &mut self.builder;
        *self.latent.get_or_insert_with(|| {
            let mut buffer = |name, width| builder.activation(name, width, Rows::Tokens);
            LatentBuffers {
                down: block.query_down.as_ref().map(|(_, _, rank)| {
                    ["query down", "query normed"].map(|name| buffer(name, *rank))
                }),
                queries: buffer("queries", heads * (block.turning + block.plain)),
                latent: buffer("latent", block.latent_width),
                latent_normed: buffer("latent normed", block.latent_width),
                turning: buffer("turning key", block.turning),
                values: buffer("values", heads * block.value),
            }
        })
    }

    pub(crate) fn store(
        &mut self,
        input: ActivationId,
        name: &str,
        [rows, cols]: [u32; 2],
        output: ActivationId,
    ) -> Result<(), ShapeError> {
        let weight = self.builder.weight(name, rows, cols);
        let parts = vec![LinearPart { weight, bias: None, target: Target::Store(output) }];
        self.builder.push(Op::Linear { input, parts })
    }

    fn feed_forward(&mut self, block: &FeedForwardBlock) -> Result<(), ShapeError> {
        if let Some(experts) = &block.experts
            && let Some(norms) = &experts.apart
        {
            return self.side_by_side(block, experts, norms);
        }
        self.read(block.norm.as_deref())?;
        let target = self.branch_target(block.norm_after.is_some());
        if let Some(experts) = &block.experts {
            let scores = self.router(experts)?;
            self.experts(experts, scores, target)?;
        }
        if let Some(gated) = &block.gated {
            // What experts put aside stays.
            let joins = block.experts.is_some();
            let target = if joins { Target::AddTo(target.buffer()) } else { target };
            self.gated(gated, target)?;
        }
        self.join(block.norm_after.as_deref())
    }

    fn side_by_side(
        &mut self,
        block: &FeedForwardBlock,
        experts: &ExpertsBlock,
        norms: &ApartNorms,
    ) -> Result<(), ShapeError> {
        let width = self.decoder.width;
        let mut sum = self.branch_target(block.norm_after.is_some());
        let builder = &mut self.builder;
        let new = || builder.activation("side", width, Rows::Tokens);
        let side = *self.side.get_or_insert_with(new);
        if let Some(gated) = &block.gated {
            self.read(block.norm.as_deref())?;
            self.gated(gated, Target::Store(side))?;
            self.norm(&norms.gated_after, side, sum)?;
            sum = Target::AddTo(sum.buffer());
        }
        self.read(Some(&norms.router))?;
        let scores = self.router(experts)?;
        self.read(Some(&norms.experts))?;
        self.experts(experts, scores, Target::Store(side))?;
        self.norm(&norms.experts_after, side, sum)?;
        self.join(block.norm_after.as_deref())
    }

    /// Scores of all experts, of what is normed.
    fn router(&mut self, block: &ExpertsBlock) -> Result<ActivationId, ShapeError> {
        let (width, count) = (self.decoder.width, block.routing.experts);
        let builder = &mut self.builder;
        let new = || builder.activation("scores", count, Rows::Tokens);
        let scores = *self.scores.get_or_insert_with(new);
        let weight = self.builder.weight(&block.router, count, width);
        let bias = block.router_bias.as_ref().map(|name| self.builder.weight(name, 1, count));
        let parts = vec![LinearPart { weight, bias, target: Target::Store(scores) }];
        self.builder.push(Op::Linear { input: self.input, parts })?;
        Ok(scores)
    }

    fn experts(
        &mut self,
        block: &ExpertsBlock,
        scores: ActivationId,
        target: Target,
    ) -> Result<(), ShapeError> {
        let (width, inner, count) = (self.decoder.width, block.inner, block.routing.experts);
        let builder = &mut self.builder;
        let mut vector =
            |name: &Option<String>| name.as_ref().map(|name| builder.weight(name, 1, count));
        let [choice_bias, weight_scales] =
            [&block.choice_bias, &block.weight_scales].map(&mut vector);
        let rows = |rows: u32| rows.saturating_mul(count);
        let experts = Experts {
            routing: block.routing,
            choice_bias,
            weight_scales,
            gate: builder.weight(&block.gate, rows(inner), width),
            up: builder.weight(&block.up, rows(inner), width),
            down: builder.weight(&block.down, rows(width), inner),
            biases: block.biases.as_ref().map(|[gate, up, down]| {
                [(gate, inner), (up, inner), (down, width)]
                    .map(|(name, cols)| builder.weight(name, count, cols))
            }),
            activation: block.activation,
            inner,
        };
        self.builder.push(Op::Experts { input: self.input, scores, experts, target })
    }

    fn gated(&mut self, block: &GatedBlock, target: Target) -> Result<(), ShapeError> {
        let (width, inner) = (self.decoder.width, block.inner);
        let builder = &mut self.builder;
        let new = || builder.activation("gated", inner, Rows::Tokens);
        let output = *self.gated.entry(inner).or_insert_with(new);
        let gate = self.matrix(&block.gate, [inner, width]);
        let up = self.matrix(&block.up, [inner, width]);
        let (input, activation) = (self.input, block.activation);
        self.builder.push(Op::GatedLinear { input, gate, up, activation, output })?;
        if let Some(share) = &block.share {
            let builder = &mut self.builder;
            let new = || builder.activation("share", 1, Rows::Tokens);
            let gate = *self.shared_gate.get_or_insert_with(new);
            self.store(self.input, share, [1, width], gate)?;
            self.builder.push(Op::SigmoidGate { values: output, gate })?;
        }
        let part = self.part(&block.down, &None, [width, inner], target);
        self.builder.push(Op::Linear { input: output, parts: vec![part] })
    }

    fn head(&mut self) -> Result<(), ShapeError> {
        let head = &self.decoder.head;
        match &head.output {
            HeadOutput::Logits { matrix, soft_cap } => self.logits(&head.norm, matrix, *soft_cap),
            HeadOutput::Vector(pooling) => {
                let output = self.pooled(&head.norm, *pooling)?;
                self.builder.push(Op::GiveRows { parts: vec![output] })
            }
            HeadOutput::Scores(classifier) => {
                let pooled = self.pooled(&head.norm, Pooling::Last)?;
                classifier.lower(&mut self.builder, self.decoder.width, pooled)
            }
            HeadOutput::Answers { matrix, tokens } => self.answers(&head.norm, matrix, tokens),
        }
    }

    /// Lists the matrix of logits among the first weights, though it is used last: weights are
    /// loaded in this order, and the largest of all must not be the one that is packed when nothing
    /// is left to be read.
    fn list_output(&mut self) {
        let Decoder { width, vocabulary, .. } = *self.decoder;
        if let HeadOutput::Logits { matrix, .. } = &self.decoder.head.output {
            self.builder.weight(matrix, vocabulary, width);
        }
    }

    fn answers(&mut self, norm: &str, matrix: &str, tokens: &[u32]) -> Result<(), ShapeError> {
        let Decoder { width, vocabulary, .. } = *self.decoder;
        let pooled = self.pooled(norm, Pooling::Last)?;
        let mut given = Vec::new();
        for &token in tokens {
            let output = self.builder.activation("answer", 1, Rows::Sampled);
            let row = Matrix::part(matrix.to_owned(), token, vocabulary);
            let part = self.part(&row, &None, [1, width], Target::Store(output));
            self.builder.push(Op::Linear { input: pooled, parts: vec![part] })?;
            given.push(output);
        }
        self.builder.push(Op::GiveRows { parts: given })
    }

    fn pooled(&mut self, norm: &str, pooling: Pooling) -> Result<ActivationId, ShapeError> {
        let output = self.builder.activation("pooled", self.decoder.width, Rows::Sampled);
        self.norm(norm, self.stream, Target::Store(self.normed))?;
        self.builder.push(Op::PoolRows { input: self.normed, pooling, output })?;
        Ok(output)
    }

    fn logits(
        &mut self,
        norm: &str,
        matrix: &str,
        soft_cap: Option<f32>,
    ) -> Result<(), ShapeError> {
        let Decoder { width, vocabulary, .. } = *self.decoder;
        let mut buffer = |name, width| self.builder.activation(name, width, Rows::Sampled);
        let selected = buffer("selected", width);
        let normed = buffer("selected normed", width);
        let logits = buffer("logits", vocabulary);
        self.builder.push(Op::SelectRows { input: self.stream, output: selected })?;
        self.norm(norm, selected, Target::Store(normed))?;
        let weight = self.builder.weight(matrix, vocabulary, width);
        let parts = vec![LinearPart { weight, bias: None, target: Target::Store(logits) }];
        self.builder.push(Op::Linear { input: normed, parts })?;
        if let Some(cap) = soft_cap {
            self.builder.push(Op::SoftCap { values: logits, cap })?;
        }
        self.builder.push(Op::SampleRows { logits })
    }

    /// Sets what the block reads.
    pub(crate) fn read(&mut self, norm: Option<&str>) -> Result<(), ShapeError> {
        self.input = self.stream;
        if let Some(norm) = norm {
            self.input = self.normed;
            self.norm(norm, self.stream, Target::Store(self.normed))?;
        }
        Ok(())
    }

    /// Where a block's last product goes: to the stream, or aside to be normed first.
    fn branch_target(&self, is_normed: bool) -> Target {
        match self.branch {
            Some(branch) if is_normed => Target::Store(branch),
            _ => Target::AddTo(self.stream),
        }
    }

    /// Adds to the stream what [`Self::branch_target`] put aside.
    fn join(&mut self, norm_after: Option<&str>) -> Result<(), ShapeError> {
        match (self.branch, norm_after) {
            (Some(branch), Some(norm)) => self.norm(norm, branch, Target::AddTo(self.stream)),
            _ => Ok(()),
        }
    }

    pub(crate) fn norm(
        &mut self,
        name: &str,
        input: ActivationId,
        target: Target,
    ) -> Result<(), ShapeError> {
        self.norm_of(name, self.decoder.width, input, target)
    }

    fn norm_of(
        &mut self,
        name: &str,
        width: u32,
        input: ActivationId,
        target: Target,
    ) -> Result<(), ShapeError> {
        let weight = self.builder.weight(name, 1, width);
        let epsilon = self.decoder.epsilon;
        self.builder.push(Op::RmsNorm { input, weight, epsilon, target })
    }

    pub(crate) fn part(
        &mut self,
        matrix: &Matrix,
        bias: &Option<String>,
        shape: [u32; 2],
        target: Target,
    ) -> LinearPart {
        let weight = self.matrix(matrix, shape);
        let bias = bias.as_ref().map(|name| self.builder.weight(name, 1, shape[0]));
        LinearPart { weight, bias, target }
    }

    fn matrix(&mut self, matrix: &Matrix, [rows, cols]: [u32; 2]) -> WeightId {
        self.builder.weight_part(&matrix.name, rows, cols, matrix.part)
    }
}
