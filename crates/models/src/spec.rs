//! What can differ from family to family? One enum for each axis of choice.

use std::path::Path;

use ops::activate::Curve;
use ops::experts::Routing;
use ops::gated_delta::DeltaShape;
use ops::gated_linear::Activation;
use ops::paged_attention::Window;
use ops::pool_rows::Pooling;
use ops::rotary::{QueryGrowth, Rotary};

/// A decoder-only transformer, as settings.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    pub dims: Dims,
    /// Of every RMS norm.
    pub epsilon: f32,
    pub embedding: Embedding,
    /// What each layer gets of a token besides the stream, where it does.
    pub per_layer: Option<PerLayerSpec>,
    /// Whether the stream is scaled behind each layer.
    pub scales_layers: bool,
    /// Multiplies embeddings: 1 in most families.
    pub embedding_scale: f32,
    pub norms: Norms,
    pub attention: AttentionSpec,
    /// What differs from layer to layer; as many as `dims.layers`.
    pub layers: Vec<LayerSpec>,
    /// `cap * tanh(logit / cap)`, where set.
    pub logit_soft_cap: Option<f32>,
    pub output: Output,
    /// Where every token sees the whole text, what is not as in decoders; norms of layers and their
    /// feed-forwards are as it says.
    pub encoder: Option<EncoderSpec>,
}

/// What BERT and its kind have that decoders do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderSpec {
    /// Rows of the table of positions, where there is one.
    pub positions: Option<u32>,
    /// The row of a text's first position.
    pub positions_from: u32,
    /// Rows of the table that tells texts of one input apart.
    pub types: Option<u32>,
    /// The token that ends the first of two texts, where the model tells them apart.
    pub separator: Option<u32>,
    pub feed_forward: EncoderFeedForward,
    /// Queries, keys and values in one tensor, one below the other.
    pub is_fused: bool,
    /// Whether matrices have biases.
    pub has_biases: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncoderFeedForward {
    Plain(Curve),
    Gated(Activation),
}

/// What the model says of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// How it goes on.
    #[default]
    Logits,
    /// What it is about: a vector.
    Vector(Pooling),
    /// How well the second of two texts answers the first.
    Score(ScoreHead),
}

/// Where a score comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreHead {
    /// A classifier of so many labels, of the first token in encoders, the last in decoders.
    Classifier { labels: u32, has_bias: bool, dense: Option<Dense> },
    /// The logits of two tokens that say yes and no.
    Answers([u32; 2]),
}

/// A matrix and tanh before a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dense {
    pub has_bias: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    pub layers: u32,
    pub width: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub head_dim: u32,
    /// Of dense feed-forwards.
    pub feed_forward: u32,
    pub vocabulary: u32,
    /// Longest sequence, in tokens.
    pub context: u32,
}

/// What the attention of all layers has in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    pub inputs: AttentionInputs,
    /// Whether query, key, value and output projections of layer 0 have a bias.
    pub biases: [bool; 4],
    pub head_norms: HeadNorms,
    /// Multiplies `q . k`; `head_dim^-1/2` in most families.
    pub scale: f32,
    /// `cap * tanh(score / cap)`, where set.
    pub soft_cap: Option<f32>,
    pub sinks: Sinks,
    /// Of queries, with their positions.
    pub growth: Option<QueryGrowth>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LayerSpec {
    pub mixer: Mixer,
    /// Where its heads are not those of the cache: Gemma 4.
    pub own_heads: Option<OwnHeads>,
    /// Width of a dense feed-forward, where it is another than in most layers.
    pub inner: Option<u32>,
    /// `None`: no positions (NoPE, <https://arxiv.org/abs/2501.18795>).
    pub rotary: Option<Rotary>,
    pub window: Window,
    pub feed_forward: FeedForward,
}

/// Embeddings for each layer: a part so wide for each of so many layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerLayerSpec {
    pub width: u32,
    pub layers: u32,
}

/// Heads of a layer's own size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnHeads {
    pub head_dim: u32,
    pub heads_kv: u32,
    pub keys: OwnKeys,
}

/// Where keys and values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnKeys {
    /// A matrix each.
    Two,
    /// One for both.
    One,
    /// Those of an earlier layer, by its number among those that have any.
    Of(u32),
}

/// What brings tokens together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mixer {
    Attention,
    /// A gated delta net, which has no keys and values but a state.
    Delta(DeltaSpec),
}

/// A gated delta net, <https://arxiv.org/abs/2412.06464>.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaSpec {
    pub shape: DeltaShape,
    /// Tokens that the convolution sees.
    pub taps: u32,
    pub gates: DeltaGates,
}

/// How the matrices of a net's decays and strengths are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaGates {
    /// Each in a tensor of its own: Qwen 3.5.
    Apart,
    /// By heads of keys in one: Qwen3-Next.
    Paired,
}

/// Where norms stand around attention and feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// Before each block.
    Before,
    /// The same, but the one before the feed-forward is called `post_attention_norm`: GPT-OSS,
    /// GLM-4-MoE.
    BeforeByOtherName,
    /// Before each block, and of what it adds to the stream: Gemma 2 and later, GLM-4.
    BeforeAndAfter,
    /// Of what each block adds to the stream alone: OLMo 2, EXAONE 4.
    After,
}

/// Whether query and key heads are normed before they turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadNorms {
    None,
    /// Each alone: Qwen 3, Gemma 3.
    BeforeRotation,
    /// All of a token's together: OLMo 2.
    AcrossHeads,
}

/// Whether each head has one more score, of a position without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sinks {
    None,
    /// GPT-OSS.
    OnePerHead,
}

/// Where queries, keys and values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionInputs {
    /// A matrix each.
    Matrices(Stored),
    /// A matrix each, where each head's query has a gate for its output below it: Qwen 3.5.
    Gated,
    /// Keys and values of all heads from one latent: DeepSeek V2 and V3.
    Latent(LatentSpec),
}

/// Latent attention, whose one head of keys is what turns and a latent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSpec {
    /// Columns that queries pass through, where they do.
    pub query_rank: Option<u32>,
    pub latent: u32,
    /// Columns of a query head that turn, and that do not.
    pub turning: u32,
    pub plain: u32,
    /// Columns of a value head.
    pub value: u32,
}

/// How matrices that read the same input are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Each in a tensor of its own.
    Apart,
    /// One below the other in one tensor: query, key, value; or gate, up. Phi-3.
    Together,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FeedForward {
    /// `down(activation(gate(x)) * up(x))`: Llama and most that followed.
    Gated { activation: Activation, stored: Stored },
    /// Some of many such for each token: Mixtral and most large models that followed.
    Experts(ExpertsSpec),
}

/// A mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsSpec {
    pub routing: Routing,
    /// Whether a bias takes part in the choice, not in the weights.
    pub has_choice_bias: bool,
    /// Whether the weight of each expert is scaled by a number of its own.
    pub has_weight_scales: bool,
    /// Whether router and experts have biases.
    pub has_biases: bool,
    pub activation: Activation,
    /// Width of an expert.
    pub inner: u32,
    /// Width of what every token passes besides, if anything.
    pub shared: Option<u32>,
    pub beside: Beside,
}

/// How that stands beside the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// One more expert, which reads what they read.
    Shared,
    /// The same, and a token says how much of it is taken: Qwen.
    Share,
    /// A feed-forward that has norms of its own, as the experts have: Gemma 4.
    Apart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedding {
    /// The head is the embedding table.
    Tied,
    /// The head has its own tensor.
    Untied,
}

/// The model cannot be loaded, and which of its settings is at fault.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(
        "the model's architecture is `{found}`, which is not supported{}; supported: {}",
        nearest.map(|nearest| format!(" (the nearest that is: {nearest})")).unwrap_or_default(),
        known.join(", ")
    )]
    UnknownArchitecture { found: String, nearest: Option<&'static str>, known: Vec<&'static str> },
    #[error("the model's setting {key} is {value}: {reason}")]
    Setting { key: String, value: String, reason: String },
    #[error(
        "the model has tensor {name}, which no {architecture} model known here reads: \
         it has a part that is not supported"
    )]
    UnreadTensor { name: String, architecture: String },
    #[error(transparent)]
    File(#[from] weights::WeightsError),
    #[error("the model's sizes contradict each other: {0}")]
    Shape(#[from] graph::ShapeError),
}

impl ModelError {
    pub(crate) fn setting(key: &str, value: impl ToString, reason: &str) -> Self {
        Self::Setting { key: key.to_owned(), value: value.to_string(), reason: reason.to_owned() }
    }

    /// The same in the words of a folder, whose owner knows `config.json`.
    pub(crate) fn of_folder(self, folder: &Path) -> Self {
        let told = |key: &str, problem: String| {
            let own = weights::own_key(key).map_or_else(|| printable(key), str::to_owned);
            let (path, problem) = (folder.join("config.json"), format!("{own} {problem}"));
            Self::File(weights::WeightsError::Folder { path, problem })
        };
        match self {
            Self::Setting { key, value, reason } => {
                let key = weights::own_key(&key).map_or(key, str::to_owned);
                Self::Setting { key, value, reason }
            }
            Self::File(weights::WeightsError::KeyMissing { key }) => {
                told(&key, "is missing".to_owned())
            }
            Self::File(weights::WeightsError::KeyType { key, found, expected }) => {
                told(&key, format!("is {found}, expected {expected}"))
            }
            other => other,
        }
    }
}

/// A text from a file, safe to print: control characters escaped, the rest of a long one left out.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

impl Dims {
    /// Checks that the sizes are possible: they size buffers and divide each other.
    ///
    /// # Errors
    /// [`ModelError::Setting`] naming the first that is not.
    pub fn audit(&self) -> Result<(), ModelError> {
        let dims = self;
        // Upper bounds are several times the largest published models (126 layers, width 16,384,
        // 128 heads, feed-forward 53,248, vocabulary 262,208), so that a damaged file is noticed.
        for (key, value, max) in [
            ("block_count", dims.layers, 1024),
            ("embedding_length", dims.width, 1 << 17),
            ("attention.head_count", dims.heads, 1024),
            ("attention.head_count_kv", dims.heads_kv, 1024),
            ("attention.key_length", dims.head_dim, 1024),
            ("feed_forward_length", dims.feed_forward, 1 << 20),
            ("vocab_size", dims.vocabulary, 1 << 22),
        ] {
            if value == 0 || value > max {
                let reason = format!("it must be between 1 and {max}");
                return Err(ModelError::setting(key, value, &reason));
            }
        }
        if dims.context < 2 || dims.context > 1 << 28 {
            let reason = "it must be between 2 (a prompt and an answer) and 268435456";
            return Err(ModelError::setting("context_length", dims.context, reason));
        }
        if !dims.heads.is_multiple_of(dims.heads_kv) {
            let reason = "query heads must be a multiple of key heads";
            return Err(ModelError::setting("attention.head_count_kv", dims.heads_kv, reason));
        }
        if !dims.head_dim.is_multiple_of(2) {
            let reason = "a head must have an even number of elements";
            return Err(ModelError::setting("attention.key_length", dims.head_dim, reason));
        }
        Ok(())
    }
}

impl LatentSpec {
    fn audit(&self, dims: &Dims) -> Result<(), ModelError> {
        let Self { query_rank, latent, turning, plain, value } = *self;
        // Several times those of DeepSeek V3: 1536, 512, 128 and 128.
        for (key, size) in [
            ("attention.q_lora_rank", query_rank.unwrap_or(1)),
            ("attention.kv_lora_rank", latent),
            ("attention.key_length_mla", plain),
            ("attention.value_length_mla", value),
        ] {
            if size == 0 || size > 1 << 14 {
                let reason = "too small or too large for latent attention";
                return Err(ModelError::setting(key, size, reason));
            }
        }
        if dims.heads_kv != 1 || latent.saturating_add(turning) != dims.head_dim {
            let reason = "latent attention has one head of keys, of kv_lora_rank and \
                          rope.dimension_count: convert the model anew if the file is older than \
                          April 2025";
            return Err(ModelError::setting("attention.key_length", dims.head_dim, reason));
        }
        Ok(())
    }
}

impl OwnHeads {
    fn audit(&self, dims: &Dims) -> Result<(), ModelError> {
        let Self { head_dim, heads_kv, .. } = *self;
        if head_dim == 0 || head_dim > dims.head_dim {
            let reason = format!("a layer's head must have 1 to {} elements", dims.head_dim);
            return Err(ModelError::setting("attention.key_length_swa", head_dim, &reason));
        }
        if heads_kv == 0 || !dims.heads_kv.is_multiple_of(heads_kv) {
            let reason = format!("it must divide the {} of other layers", dims.heads_kv);
            return Err(ModelError::setting("attention.head_count_kv", heads_kv, &reason));
        }
        Ok(())
    }
}

impl DeltaSpec {
    fn audit(&self) -> Result<(), ModelError> {
        let DeltaShape { heads, heads_key, key_dim, value_dim, .. } = self.shape;
        // Several times the largest published: 64 heads of values, 16 of keys, 128 each, 4 taps.
        for (key, value, max) in [
            ("ssm.time_step_rank", heads, 1024),
            ("ssm.group_count", heads_key, 1024),
            ("ssm.state_size", key_dim, 1024),
            ("ssm.inner_size", value_dim, 1024),
            ("ssm.conv_kernel", self.taps, 16),
        ] {
            if value == 0 || value > max {
                let reason = format!("it must be between 1 and {max}, a head");
                return Err(ModelError::setting(key, value, &reason));
            }
        }
        if !heads.is_multiple_of(heads_key) {
            let reason = "heads of values must be a multiple of heads of keys";
            return Err(ModelError::setting("ssm.group_count", heads_key, reason));
        }
        Ok(())
    }
}

impl ExpertsSpec {
    fn audit(&self) -> Result<(), ModelError> {
        let Routing { experts, used, groups, groups_used, scale, .. } = self.routing;
        // Several times the largest published: 512 experts, 10 of them used.
        for (key, value, max) in [
            ("expert_count", experts, 4096),
            ("expert_used_count", used, experts.min(64)),
            ("expert_feed_forward_length", self.inner, 1 << 20),
            ("expert_shared_feed_forward_length", self.shared.unwrap_or(1), 1 << 20),
            ("expert_group_count", groups, experts.min(128)),
            ("expert_group_used_count", groups_used, groups),
        ] {
            if value == 0 || value > max {
                let reason = format!("it must be between 1 and {max}");
                return Err(ModelError::setting(key, value, &reason));
            }
        }
        if !experts.is_multiple_of(groups) {
            let reason = format!("it must divide the {experts} experts");
            return Err(ModelError::setting("expert_group_count", groups, &reason));
        }
        if used > experts / groups * groups_used {
            let reason = "the groups that are used have fewer experts";
            return Err(ModelError::setting("expert_used_count", used, reason));
        }
        if !(scale.is_finite() && scale > 0.0) {
            return Err(ModelError::setting("expert_weights_scale", scale, "it must be above 0"));
        }
        Ok(())
    }
}

impl DecoderSpec {
    /// How long the vectors are that it gives; `None`: it says how a text goes on.
    pub fn vector_width(&self) -> Option<u32> {
        match self.output {
            Output::Logits => None,
            Output::Vector(_) => Some(self.dims.width),
            Output::Score(ScoreHead::Classifier { labels, .. }) => Some(labels),
            Output::Score(ScoreHead::Answers(_)) => Some(2),
        }
    }

    /// Whether sequences carry a state from token to token, besides keys and values.
    pub fn carries_state(&self) -> bool {
        self.layers.iter().any(|layer| layer.mixer != Mixer::Attention)
    }

    /// Layers that keep keys and values.
    pub fn attention_layers(&self) -> u32 {
        let attends = |layer: &&LayerSpec| {
            let reads = layer.own_heads.is_some_and(|own| matches!(own.keys, OwnKeys::Of(_)));
            layer.mixer == Mixer::Attention && !reads
        };
        self.layers.iter().filter(attends).count() as u32
    }

    /// Checks that all settings are possible.
    ///
    /// # Errors
    /// [`ModelError::Setting`] naming the first that is not.
    pub fn audit(&self) -> Result<(), ModelError> {
        self.dims.audit()?;
        if self.attention_layers() == 0 {
            let reason = "at least one layer must attend";
            return Err(ModelError::setting("full_attention_interval", 0, reason));
        }
        if let AttentionInputs::Latent(latent) = &self.attention.inputs {
            latent.audit(&self.dims)?;
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0 && self.epsilon < 1.0) {
            let key = "attention.layer_norm_rms_epsilon";
            return Err(ModelError::setting(key, self.epsilon, "it must be between 0 and 1"));
        }
        for (key, value) in [
            ("attention.scale", Some(self.attention.scale)),
            ("embedding_scale", Some(self.embedding_scale)),
            ("attn_logit_softcapping", self.attention.soft_cap),
            ("final_logit_softcapping", self.logit_soft_cap),
        ] {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value > 0.0)) {
                return Err(ModelError::setting(key, value, "it must be above 0"));
            }
        }
        if let Some(encoder) = &self.encoder {
            self.audit_encoder(encoder)?;
        }
        self.layers.iter().try_for_each(|layer| self.audit_layer(layer))
    }

    fn audit_encoder(&self, encoder: &EncoderSpec) -> Result<(), ModelError> {
        if matches!(self.output, Output::Logits | Output::Score(ScoreHead::Answers(_))) {
            let reason = "this model reads texts as a whole and cannot go on with them";
            return Err(ModelError::setting("model.pooling", "none", reason));
        }
        if self.dims.heads != self.dims.heads_kv {
            let reason = "every head of an encoder has keys of its own";
            return Err(ModelError::setting("attention.head_count_kv", self.dims.heads_kv, reason));
        }
        let needed = self.dims.context.saturating_add(encoder.positions_from);
        match encoder.positions {
            Some(rows) if rows < needed => {
                let reason = format!("the table of positions has {rows} rows, {needed} are needed");
                Err(ModelError::setting("context_length", self.dims.context, &reason))
            }
            _ => Ok(()),
        }
    }

    fn audit_layer(&self, layer: &LayerSpec) -> Result<(), ModelError> {
        if let Mixer::Delta(delta) = &layer.mixer {
            delta.audit()?;
        }
        if let Some(own) = &layer.own_heads {
            own.audit(&self.dims)?;
        }
        if layer.window == Window::Sliding(0) {
            let reason = "a window must hold a token's own position at least";
            return Err(ModelError::setting("attention.sliding_window", 0, reason));
        }
        if let FeedForward::Experts(experts) = &layer.feed_forward {
            experts.audit()?;
        }
        let Some(rotary) = &layer.rotary else { return Ok(()) };
        let turning = rotary.dims;
        if turning == 0 || turning > self.dims.head_dim || !turning.is_multiple_of(2) {
            let reason = "it must be even, above 0 and at most the head's size";
            return Err(ModelError::setting("rope.dimension_count", turning, reason));
        }
        // Angles at the last position, where they are largest.
        let angle = |frequency: f32| frequency * self.dims.context as f32;
        let mut frequencies = rotary.inverse_frequencies().into_iter();
        if !frequencies.all(|frequency| angle(frequency).is_finite())
            || !rotary.attention_factor().is_finite()
        {
            let reason = "base and scaling give rotation angles that are not numbers";
            return Err(ModelError::setting("rope.freq_base", rotary.base, reason));
        }
        Ok(())
    }
}
