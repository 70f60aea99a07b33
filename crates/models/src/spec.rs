//! What can differ from family to family? One enum for each axis of choice.

use graph::{AttentionBlock, Decoder, FeedForwardBlock, HeadBlock, LayerBlock};
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::rotary::Rotary;

/// A decoder-only transformer, as settings.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    pub dims: Dims,
    /// Of every RMS norm.
    pub epsilon: f32,
    pub rotary: Rotary,
    pub feed_forward: FeedForward,
    pub embedding: Embedding,
    /// Whether query, key, value and output projections of layer 0 have a bias.
    pub attention_biases: [bool; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dims {
    pub layers: u32,
    pub width: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub head_dim: u32,
    pub feed_forward: u32,
    pub vocabulary: u32,
    /// Longest sequence, in tokens.
    pub context: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForward {
    /// `down(activation(gate(x)) * up(x))`: Llama and most that followed.
    Gated(Activation),
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
        "the model's architecture is `{found}`, which is not supported; supported: {}",
        known.join(", ")
    )]
    UnknownArchitecture { found: String, known: Vec<&'static str> },
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
}

/// A text from a file, safe to print: control characters escaped, the rest of a long one left out.
pub(crate) fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_debug).collect()
}

impl DecoderSpec {
    /// Checks that the sizes are possible: they size buffers and divide each other.
    ///
    /// # Errors
    /// [`ModelError::Setting`] naming the first that is not.
    pub fn audit(&self) -> Result<(), ModelError> {
        let dims = &self.dims;
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
        let turning = self.rotary.dims;
        if turning == 0 || turning > dims.head_dim || !turning.is_multiple_of(2) {
            let reason = "it must be even, above 0 and at most the head's size";
            return Err(ModelError::setting("rope.dimension_count", turning, reason));
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0 && self.epsilon < 1.0) {
            let key = "attention.layer_norm_rms_epsilon";
            return Err(ModelError::setting(key, self.epsilon, "it must be between 0 and 1"));
        }
        // Angles at the last position, where they are largest.
        let angle = |frequency: f32| frequency * dims.context as f32;
        let mut frequencies = self.rotary.inverse_frequencies().into_iter();
        if !frequencies.all(|frequency| angle(frequency).is_finite())
            || !self.rotary.attention_factor().is_finite()
        {
            let reason = "base and scaling give rotation angles that are not numbers";
            return Err(ModelError::setting("rope.freq_base", self.rotary.base, reason));
        }
        Ok(())
    }

    /// The blocks of this decoder, with the tensor names of GGUF files.
    pub(crate) fn decoder(&self) -> Decoder {
        let dims = &self.dims;
        let output = match self.embedding {
            Embedding::Tied => "token_embd.weight",
            Embedding::Untied => "output.weight",
        };
        Decoder {
            width: dims.width,
            vocabulary: dims.vocabulary,
            feed_forward_width: dims.feed_forward,
            epsilon: self.epsilon,
            embedding: "token_embd.weight".to_owned(),
            embedding_scale: 1.0,
            layers: (0..dims.layers).map(|layer| self.layer(layer)).collect(),
            head: HeadBlock { norm: "output_norm.weight".to_owned(), output: output.to_owned() },
            rotary: self.rotary.clone(),
            heads: dims.heads,
            heads_kv: dims.heads_kv,
            head_dim: dims.head_dim,
        }
    }

    fn layer(&self, layer: u32) -> LayerBlock {
        let name = |stem: &str| format!("blk.{layer}.{stem}.weight");
        let stems = ["attn_q", "attn_k", "attn_v", "attn_output"];
        let bias = |index: usize| {
            self.attention_biases[index].then(|| format!("blk.{layer}.{}.bias", stems[index]))
        };
        let FeedForward::Gated(activation) = self.feed_forward;
        LayerBlock {
            attention: AttentionBlock {
                norm: name("attn_norm"),
                query: name(stems[0]),
                key: name(stems[1]),
                value: name(stems[2]),
                output: name(stems[3]),
                biases: [bias(0), bias(1), bias(2), bias(3)],
                shape: AttentionShape {
                    heads: self.dims.heads,
                    heads_kv: self.dims.heads_kv,
                    head_dim: self.dims.head_dim,
                    scale: (self.dims.head_dim as f32).sqrt().recip(),
                    window: Window::Full,
                    soft_cap: None,
                },
            },
            feed_forward: FeedForwardBlock {
                norm: name("ffn_norm"),
                gate: name("ffn_gate"),
                up: name("ffn_up"),
                down: name("ffn_down"),
                activation,
            },
        }
    }
}
