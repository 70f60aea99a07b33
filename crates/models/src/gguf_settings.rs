//! How are a model's settings spelled in GGUF metadata? Keys, defaults and RoPE scalings, once for
//! all families.
//!
//! Source: the GGUF description of the ggml project, `docs/gguf.md`, and llama.cpp's readers.

use ops::experts::{Routing, Scoring};
use ops::gated_delta::HeadSharing;
use ops::gated_linear::Activation;
use ops::paged_attention::Window;
use ops::pool_rows::Pooling;
use ops::quant_format::QuantFormat;
use ops::rotary::{Pairing, Rotary, RotaryScaling, Yarn, long_rope_attention_factor};
use weights::{Array, Value, WeightFile};

use crate::LoadSettings;
use crate::spec::{
    AttentionInputs, AttentionSpec, Beside, DecoderSpec, Dense, Dims, Embedding, ExpertsSpec,
    FeedForward, HeadNorms, LayerSpec, Mixer, ModelError, Norms, Output, ScoreHead, Sinks, Stored,
    printable,
};

/// What the file says the model is for. It says so by numbers: those of llama.cpp's
/// `llama_pooling_type`.
pub(crate) fn output(
    file: &WeightFile,
    architecture: &str,
    is_encoder: bool,
) -> Result<Option<Output>, ModelError> {
    let key = format!("{architecture}.pooling_type");
    match file.metadata().optional::<u32>(&key)? {
        None | Some(0) => Ok(None),
        Some(1) => Ok(Some(Output::Vector(Pooling::Mean))),
        Some(2) if is_encoder => Ok(Some(Output::Vector(Pooling::First))),
        Some(3) => Ok(Some(Output::Vector(Pooling::Last))),
        Some(4) => classifier(file).map(|head| Some(Output::Score(head))),
        Some(2) => {
            let reason = "a model that sees no later tokens cannot tell a text by its first";
            Err(ModelError::setting(&key, 2, reason))
        }
        Some(other) => {
            let reason =
                "not supported; supported: 0 (none), 1 (mean), 2 (first), 3 (last), 4 (rank)";
            Err(ModelError::setting(&key, other, reason))
        }
    }
}

/// The classifier of a model that ranks texts.
fn classifier(file: &WeightFile) -> Result<ScoreHead, ModelError> {
    let rows = file.shape("cls.output.weight")?.rows;
    let labels = u32::try_from(rows).ok().filter(|labels| (1..=2).contains(labels));
    let labels = labels.ok_or_else(|| {
        let reason = "a text is ranked by one label, or by yes and no";
        ModelError::setting("cls.output.weight", format!("{rows} rows"), reason)
    })?;
    let dense = file.contains("cls.weight");
    Ok(ScoreHead::Classifier {
        labels,
        has_bias: file.contains("cls.output.bias"),
        dense: dense.then(|| Dense { has_bias: file.contains("cls.bias") }),
    })
}

/// Fails where a folder says that its head is a matrix of its own, and has none: the embedding in
/// its place would answer nonsense.
pub(crate) fn refuse_headless(file: &WeightFile, output: &Output) -> Result<(), ModelError> {
    let is_answered = matches!(output, Output::Logits | Output::Score(ScoreHead::Answers(_)));
    let key = "pelton.head_is_embedding";
    let is_apart = file.metadata().optional::<bool>(key)? == Some(false);
    if is_answered && is_apart && !file.contains("output.weight") {
        let reason = "so there must be a tensor lm_head.weight, and there is none: the files are \
                      incomplete";
        return Err(ModelError::setting("tie_word_embeddings", false, reason));
    }
    Ok(())
}

/// Layers behind the model's own that guess at later tokens.
pub(crate) fn guessing_layers(file: &WeightFile, architecture: &str) -> Result<u32, ModelError> {
    let key = format!("{architecture}.nextn_predict_layers");
    Ok(file.metadata().optional(&key)?.unwrap_or(0))
}

pub(crate) struct GgufSettings<'a> {
    file: &'a WeightFile,
    architecture: &'a str,
    load: &'a LoadSettings,
    /// Whether this family reads YaRN's second factor.
    reads_log_multiplier: bool,
}

impl<'a> GgufSettings<'a> {
    pub(crate) fn new(file: &'a WeightFile, load: &'a LoadSettings) -> Result<Self, ModelError> {
        let architecture = file.metadata().required("general.architecture")?;
        Ok(Self { file, architecture, load, reads_log_multiplier: false })
    }

    /// For a family whose scores YaRN's `yarn_log_multiplier` scales: see [`Self::yarn_scale`].
    pub(crate) fn reading_log_multiplier(self) -> Self {
        Self { reads_log_multiplier: true, ..self }
    }

    /// The one of its family's architectures that this file is of.
    pub(crate) fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// What Llama is, and most that followed are but for a few fields: norms before each block,
    /// rotary positions in every layer, a gated feed-forward.
    pub(crate) fn plain_decoder(
        &self,
        pairing: Pairing,
        activation: Activation,
    ) -> Result<DecoderSpec, ModelError> {
        let epsilon = self.float("attention.layer_norm_rms_epsilon")?;
        self.plain_decoder_of(Some(pairing), activation, epsilon)
    }

    /// The same for families that may know no rotary positions, and have another norm's epsilon.
    pub(crate) fn plain_decoder_of(
        &self,
        pairing: Option<Pairing>,
        activation: Activation,
        epsilon: f32,
    ) -> Result<DecoderSpec, ModelError> {
        let dims = self.dims()?;
        // Before anything is made that is as large as they say.
        dims.audit()?;
        let layer = LayerSpec {
            mixer: Mixer::Attention,
            own_heads: None,
            inner: None,
            rotary: pairing.map(|pairing| self.rotary(pairing, &dims)).transpose()?,
            window: Window::Full,
            feed_forward: FeedForward::Gated { activation, stored: Stored::Apart },
        };
        Ok(DecoderSpec {
            dims,
            epsilon,
            embedding: self.embedding(),
            embedding_scale: 1.0,
            per_layer: None,
            scales_layers: false,
            norms: Norms::Before,
            attention: AttentionSpec {
                inputs: AttentionInputs::Matrices(Stored::Apart),
                biases: self.attention_biases(),
                head_norms: HeadNorms::None,
                scale: self.float_or("attention.scale", (dims.head_dim as f32).sqrt().recip())?,
                soft_cap: None,
                sinks: Sinks::None,
                growth: None,
            },
            layers: vec![layer; dims.layers as usize],
            logit_soft_cap: None,
            output: Output::Logits,
            encoder: None,
        })
    }

    /// How rotary pairs lie in a family whose GGUF files have query and key rows permuted:
    /// adjacent, but where weights come as the authors published them (`weights` says so).
    pub(crate) fn permuted_pairing(&self) -> Result<Pairing, ModelError> {
        let key = "pelton.rotary_pairs";
        match self.file.metadata().optional::<&str>(key)? {
            None => Ok(Pairing::Adjacent),
            Some("half_split") => Ok(Pairing::HalfSplit),
            Some(other) => Err(ModelError::setting(key, printable(other), "it must be half_split")),
        }
    }

    /// A window for all layers, where the file gives one and it is not 0.
    pub(crate) fn window_or_full(&self) -> Result<Window, ModelError> {
        Ok(match self.integer_or("attention.sliding_window", 0)? {
            0 => Window::Full,
            tokens => Window::Sliding(tokens),
        })
    }

    /// A mixture of experts of width `inner`, as the file counts them.
    pub(crate) fn experts(&self, scoring: Scoring, inner: u32) -> Result<ExpertsSpec, ModelError> {
        let shared = self.integer_or("expert_shared_count", 0)?;
        Ok(ExpertsSpec {
            routing: Routing {
                experts: self.integer("expert_count")?,
                used: self.integer("expert_used_count")?,
                scoring,
                groups: self.integer_or("expert_group_count", 1)?,
                groups_used: self.integer_or("expert_group_used_count", 1)?,
                scale: self.float_or("expert_weights_scale", 1.0)?,
                sharpness: 1.0,
            },
            has_choice_bias: false,
            has_weight_scales: false,
            has_biases: false,
            activation: Activation::Silu,
            inner,
            shared: (shared > 0).then(|| inner.saturating_mul(shared)),
            beside: Beside::Shared,
        })
    }

    /// Gives a window to all layers but the last of each `period`, or as the file says; tells which
    /// got one.
    pub(crate) fn alternate_windows(
        &self,
        layers: &mut [LayerSpec],
        period: u32,
    ) -> Result<Vec<usize>, ModelError> {
        let window = Window::Sliding(self.integer("attention.sliding_window")?);
        let listed = self.windowed_layers(layers.len(), period)?;
        for &index in &listed {
            layers[index].window = window;
        }
        Ok(listed)
    }

    /// Gives a window to the layers that the file lists, and to no other where it lists any.
    pub(crate) fn listed_windows(&self, layers: &mut [LayerSpec]) -> Result<(), ModelError> {
        let window = self.window_or_full()?;
        let listed = self.file.metadata().get(&self.key("attention.sliding_window_pattern"));
        if let (Some(Value::Array(_)), Window::Sliding(_)) = (listed, window) {
            layers.iter_mut().for_each(|layer| layer.window = Window::Full);
            self.alternate_windows(layers, 0)?;
        }
        Ok(())
    }

    fn windowed_layers(&self, layers: usize, period: u32) -> Result<Vec<usize>, ModelError> {
        let key = self.key("attention.sliding_window_pattern");
        if let Some(Value::Array(array)) = self.file.metadata().get(&key) {
            let Array::Bool(each) = &**array else {
                return Err(ModelError::setting(&key, "a list", "it must be of true and false"));
            };
            if each.len() != layers {
                let reason = format!("there are {layers} layers");
                return Err(ModelError::setting(&key, format!("{} long", each.len()), &reason));
            }
            return Ok((0..layers).filter(|&index| each[index]).collect());
        }
        let period = self.integer_or("attention.sliding_window_pattern", period)? as usize;
        Ok((0..layers).filter(|index| period == 0 || index % period < period - 1).collect())
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(crate) fn integer(&self, key: &str) -> Result<u32, ModelError> {
        Ok(self.file.metadata().required(&self.key(key))?)
    }

    pub(crate) fn integer_or(&self, key: &str, default: u32) -> Result<u32, ModelError> {
        Ok(self.file.metadata().optional(&self.key(key))?.unwrap_or(default))
    }

    pub(crate) fn float(&self, key: &str) -> Result<f32, ModelError> {
        Ok(self.file.metadata().required(&self.key(key))?)
    }

    pub(crate) fn float_or(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        Ok(self.file.metadata().optional(&self.key(key))?.unwrap_or(default))
    }

    pub(crate) fn truth_or(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        Ok(self.file.metadata().optional(&self.key(key))?.unwrap_or(default))
    }

    /// Which layers something holds of: as a list says, or else all but the last of each `period`.
    pub(crate) fn layers_but_each(
        &self,
        list: &str,
        layers: usize,
        (period_key, period): (&str, u32),
    ) -> Result<Vec<bool>, ModelError> {
        let key = self.key(list);
        if let Some(Value::Array(array)) = self.file.metadata().get(&key) {
            let Array::Bool(each) = &**array else {
                return Err(ModelError::setting(&key, "a list", "it must be of true and false"));
            };
            if each.len() < layers {
                let reason = format!("there are {layers} layers");
                return Err(ModelError::setting(&key, format!("{} long", each.len()), &reason));
            }
            return Ok(each[..layers].to_vec());
        }
        let period = self.integer_or(period_key, period)? as usize;
        Ok((0..layers).map(|index| period == 0 || index % period < period - 1).collect())
    }

    /// Which heads share keys, in a family whose GGUF files have heads of values in another order:
    /// theirs, but where weights come as the authors published them (`weights` says so).
    pub(crate) fn head_sharing(&self) -> Result<HeadSharing, ModelError> {
        let key = "pelton.value_heads";
        match self.file.metadata().optional::<&str>(key)? {
            None => Ok(HeadSharing::Tiled),
            Some("grouped") => Ok(HeadSharing::Grouped),
            Some(other) => Err(ModelError::setting(key, printable(other), "it must be grouped")),
        }
    }

    /// Fails where the file says something else than what its family always is.
    pub(crate) fn refuse_unless(
        &self,
        key: &str,
        known: u32,
        meaning: &str,
    ) -> Result<(), ModelError> {
        let found = self.integer_or(key, known)?;
        if found == known {
            return Ok(());
        }
        let reason = format!("only {meaning}, is supported in this family");
        Err(ModelError::setting(&self.key(key), found, &reason))
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        Ok(self.file.metadata().optional(&self.key(key))?)
    }

    pub(crate) fn contains(&self, tensor: &str) -> bool {
        self.file.contains(tensor)
    }

    pub(crate) fn dims(&self) -> Result<Dims, ModelError> {
        let heads = self.integer("attention.head_count")?;
        let width = self.integer("embedding_length")?;
        if heads == 0 {
            let key = self.key("attention.head_count");
            return Err(ModelError::setting(&key, 0, "it must be at least 1"));
        }
        let made_for = self.integer("context_length")?;
        let context = self.load.context_tokens.unwrap_or(made_for);
        if context > made_for {
            let reason = format!("the model was made for {made_for}; ask for at most that");
            return Err(ModelError::setting("context_length", context, &reason));
        }
        Ok(Dims {
            layers: self
                .integer("block_count")?
                .saturating_sub(guessing_layers(self.file, self.architecture)?),
            width,
            heads,
            heads_kv: self.largest("attention.head_count_kv")?.unwrap_or(heads),
            head_dim: self.integer_or("attention.key_length", width / heads)?,
            // Models whose layers are all by experts may say nothing of dense ones.
            feed_forward: match self.largest("feed_forward_length")? {
                Some(length) => length,
                None if self.contains("blk.0.ffn_gate_exps.weight") => {
                    self.integer("expert_feed_forward_length")?
                }
                None => self.integer("feed_forward_length")?,
            },
            vocabulary: self.vocabulary()?,
            context,
        })
    }

    /// A number for each layer, or one for all.
    pub(crate) fn integers(&self, key: &str) -> Result<Option<Vec<u32>>, ModelError> {
        let key = self.key(key);
        let Some(Value::Array(array)) = self.file.metadata().get(&key) else {
            return Ok(self.file.metadata().optional::<u32>(&key)?.map(|one| vec![one]));
        };
        let wrong = || ModelError::setting(&key, "a list", "it must be of whole numbers");
        match &**array {
            Array::U32(values) => Ok(Some(values.to_vec())),
            Array::I32(values) => {
                let whole = values.iter().map(|&value| u32::try_from(value).map_err(|_| wrong()));
                whole.collect::<Result<_, _>>().map(Some)
            }
            _ => Err(wrong()),
        }
    }

    fn largest(&self, key: &str) -> Result<Option<u32>, ModelError> {
        Ok(self.integers(key)?.and_then(|each| each.into_iter().max()))
    }

    /// Rows of a tensor.
    pub(crate) fn rows(&self, tensor: &str) -> Result<u32, ModelError> {
        let rows = self.file.shape(tensor)?.rows;
        u32::try_from(rows).map_err(|_| ModelError::setting(tensor, rows, "too many rows"))
    }

    /// Rows of the embedding: the one place that cannot disagree with the tensors.
    fn vocabulary(&self) -> Result<u32, ModelError> {
        let rows = self.file.tensor("token_embd.weight")?.rows;
        u32::try_from(rows).map_err(|_| {
            ModelError::setting("vocab_size", rows, "the embedding has too many rows to be one")
        })
    }

    /// Whether the file itself says something under a key.
    pub(crate) fn gives(&self, key: &str) -> bool {
        self.file.metadata().get(&self.key(key)).is_some()
    }

    pub(crate) fn embedding(&self) -> Embedding {
        if self.file.contains("output.weight") { Embedding::Untied } else { Embedding::Tied }
    }

    pub(crate) fn attention_biases(&self) -> [bool; 4] {
        ["attn_q", "attn_k", "attn_v", "attn_output"]
            .map(|stem| self.file.contains(&format!("blk.0.{stem}.bias")))
    }

    pub(crate) fn rotary(&self, pairing: Pairing, dims: &Dims) -> Result<Rotary, ModelError> {
        let turning = self.integer_or("rope.dimension_count", dims.head_dim)?;
        let base = self.rotary_base("rope.freq_base", 10_000.0)?;
        let scaling = self.rotary_scaling(turning, dims)?;
        Ok(Rotary { pairing, dims: turning, base, scaling })
    }

    pub(crate) fn rotary_base(&self, key: &str, default: f32) -> Result<f32, ModelError> {
        let base = self.float_or(key, default)?;
        if base <= 0.0 {
            return Err(ModelError::setting(&self.key(key), base, "it must be above 0"));
        }
        Ok(base)
    }

    fn rotary_scaling(&self, turning: u32, dims: &Dims) -> Result<RotaryScaling, ModelError> {
        let count = turning as usize / 2;
        // Files from before `rope.scaling.*` have only `rope.scale_linear`.
        let old_linear = self.float_or("rope.scale_linear", 1.0)?;
        let factor = self.float_or("rope.scaling.factor", old_linear)?;
        if factor <= 0.0 {
            let key = self.key("rope.scaling.factor");
            return Err(ModelError::setting(&key, factor, "it must be above 0"));
        }
        // As in llama.cpp, a factor without a type is linear.
        let kind = self.text("rope.scaling.type")?.unwrap_or("linear");
        let by_key = match kind {
            "none" | "longrope" => RotaryScaling::None,
            "linear" if factor == 1.0 => RotaryScaling::None,
            "linear" => RotaryScaling::Linear { factor },
            "yarn" => RotaryScaling::Yarn(self.yarn(factor)?),
            other => {
                let reason = "not supported; supported: none, linear, yarn, and longrope by its \
                              factor tensors";
                return Err(self.scaling_type(other, reason));
            }
        };
        let Some(by_tensors) = self.divisors(count, dims.context)? else {
            if kind == "longrope" {
                return Err(self.scaling_type(kind, "the file has no rope_factors tensors for it"));
            }
            return Ok(by_key);
        };
        if by_key != RotaryScaling::None {
            let reason = "the file has factor tensors for another scaling, and both at once are \
                          not supported";
            return Err(self.scaling_type(kind, reason));
        }
        Ok(by_tensors)
    }

    fn scaling_type(&self, found: &str, reason: &str) -> ModelError {
        ModelError::setting(&self.key("rope.scaling.type"), printable(found), reason)
    }

    /// Scaling that is stored as a tensor of divisors.
    fn divisors(&self, count: usize, context: u32) -> Result<Option<RotaryScaling>, ModelError> {
        let names = ["rope_factors_long.weight", "rope_factors_short.weight"];
        let is_long_rope = names.iter().any(|name| self.file.contains(name));
        if self.file.contains("rope_freqs.weight") {
            if is_long_rope {
                let reason = "the file has rope_freqs too, and both at once are not supported";
                return Err(ModelError::setting("rope_factors", "there", reason));
            }
            // Llama 3.1 and later: the converter worked the `llama3` scaling out already.
            let divisors = self.vector("rope_freqs.weight", count)?;
            return Ok(Some(RotaryScaling::Divisors { divisors, attention_factor: 1.0 }));
        }
        if is_long_rope { self.long_rope(count, context).map(Some) } else { Ok(None) }
    }

    /// The context before stretching; by default what the file says the model was made for,
    /// however much of it is asked for.
    pub(crate) fn original_context(&self) -> Result<u32, ModelError> {
        let made_for = self.integer("context_length")?;
        let original = self.integer_or("rope.scaling.original_context_length", made_for)?;
        if original < 2 {
            let key = self.key("rope.scaling.original_context_length");
            return Err(ModelError::setting(&key, original, "it must be at least 2"));
        }
        Ok(original)
    }

    fn yarn(&self, factor: f32) -> Result<Yarn, ModelError> {
        let multiplier = self.attention_factor()?.unwrap_or(1.0);
        let beta_fast = self.float_or("rope.scaling.yarn_beta_fast", 32.0)?;
        let beta_slow = self.float_or("rope.scaling.yarn_beta_slow", 1.0)?;
        for (key, beta) in [("yarn_beta_slow", beta_slow), ("yarn_beta_fast", beta_fast)] {
            if beta <= 0.0 {
                let key = self.key(&format!("rope.scaling.{key}"));
                return Err(ModelError::setting(&key, beta, "it must be above 0"));
            }
        }
        if beta_fast < beta_slow {
            let key = self.key("rope.scaling.yarn_beta_fast");
            let reason = format!("it must be at least yarn_beta_slow, {beta_slow}");
            return Err(ModelError::setting(&key, beta_fast, &reason));
        }
        // DeepSeek's and Mistral 3's second factor; in llama.cpp it means different things in
        // different families, and nothing in those read here.
        let key = self.key("rope.scaling.yarn_log_multiplier");
        let logarithm: f32 = self.file.metadata().optional(&key)?.unwrap_or(0.0);
        if logarithm != 0.0 && !self.reads_log_multiplier {
            return Err(ModelError::setting(&key, logarithm, "not supported in this family"));
        }
        // Where scores are scaled instead, turns are not: both factors are one, and cancel.
        let grown = if logarithm == 0.0 { 0.1 * factor.max(1.0).ln() + 1.0 } else { 1.0 };
        Ok(Yarn {
            factor,
            original_context: self.original_context()?,
            beta_fast,
            beta_slow,
            truncate: true,
            attention_factor: Some(multiplier * grown),
        })
    }

    /// What multiplies scores besides the head's size: `(1 + multiplier ln(factor))^2`.
    pub(crate) fn yarn_scale(&self) -> Result<f32, ModelError> {
        if self.text("rope.scaling.type")? != Some("yarn") {
            return Ok(1.0);
        }
        let multiplier = self.float_or("rope.scaling.yarn_log_multiplier", 0.0)?;
        let factor = self.float_or("rope.scaling.factor", 1.0)?;
        let grown = 1.0 + multiplier * factor.max(1.0).ln();
        Ok(grown * grown)
    }

    fn attention_factor(&self) -> Result<Option<f32>, ModelError> {
        let key = self.key("rope.scaling.attn_factor");
        let given: Option<f32> = self.file.metadata().optional(&key)?;
        match given {
            Some(factor) if factor <= 0.0 => {
                Err(ModelError::setting(&key, factor, "it must be above 0"))
            }
            given => Ok(given),
        }
    }

    fn long_rope(&self, count: usize, context: u32) -> Result<RotaryScaling, ModelError> {
        let original = self.original_context()?;
        // The long factors serve a context beyond the original one; chosen once, at load, because
        // positions already in the cache cannot be turned again.
        let name = if context > original { "long" } else { "short" };
        let divisors = self.vector(&format!("rope_factors_{name}.weight"), count)?;
        let worked_out = long_rope_attention_factor(original, context);
        let attention_factor = self.attention_factor()?.unwrap_or(worked_out);
        Ok(RotaryScaling::Divisors { divisors, attention_factor })
    }

    fn vector(&self, name: &str, count: usize) -> Result<Vec<f32>, ModelError> {
        let tensor = self.file.tensor(name)?;
        let is_vector = tensor.rows == 1 && tensor.cols == count;
        if !is_vector || tensor.format != QuantFormat::F32 {
            let value = format!("{} x {} {}", tensor.rows, tensor.cols, tensor.format.name());
            let reason = format!("it must be {count} values of F32");
            return Err(ModelError::setting(name, value, &reason));
        }
        let mut values = vec![0.0; count];
        tensor.format.decode_row(tensor.bytes, &mut values);
        if values.iter().all(|value| value.is_finite() && *value > 0.0) {
            return Ok(values);
        }
        Err(ModelError::setting(name, "its values", "every divisor must be above 0"))
    }
}
