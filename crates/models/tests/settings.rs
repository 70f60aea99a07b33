//! Is every wrong setting of a model file refused by name, and every right one understood?

#![allow(clippy::unwrap_used, reason = "tests")]

use device::{LoadError, WeightSource, WeightView};
use models::{DecoderSpec, FeedForward, LoadSettings, ModelError};
use ops::WeightId;
use ops::paged_attention::Window;
use ops::quant_format::QuantFormat;
use ops::rotary::{RotaryScaling, Yarn};
use weights::{Array, GgufBuilder, Value, WeightFile};

/// A model file before it is written: keys without their architecture, and tensors of zeros or
/// ones.
#[derive(Clone)]
struct Draft {
    architecture: String,
    keys: Vec<(String, Value)>,
    /// Name and dimensions, fastest first.
    tensors: Vec<(String, Vec<u64>)>,
}

const WIDTH: u64 = 32;
const LAYERS: u64 = 2;

impl Draft {
    fn healthy() -> Self {
        let keys: [(&str, Value); 10] = [
            ("block_count", Value::U32(LAYERS as u32)),
            ("context_length", Value::U32(64)),
            ("embedding_length", Value::U32(WIDTH as u32)),
            ("feed_forward_length", Value::U32(48)),
            ("attention.head_count", Value::U32(4)),
            ("attention.head_count_kv", Value::U32(2)),
            ("attention.key_length", Value::U32(8)),
            ("attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("rope.freq_base", Value::F32(10_000.0)),
            ("rope.dimension_count", Value::U32(8)),
        ];
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), vec![WIDTH, 10]),
            ("output_norm.weight".to_owned(), vec![WIDTH]),
            ("output.weight".to_owned(), vec![WIDTH, 10]),
        ];
        for layer in 0..LAYERS {
            for (stem, dims) in [
                ("attn_norm", vec![WIDTH]),
                ("attn_q", vec![WIDTH, WIDTH]),
                ("attn_k", vec![WIDTH, 16]),
                ("attn_v", vec![WIDTH, 16]),
                ("attn_output", vec![WIDTH, WIDTH]),
                ("ffn_norm", vec![WIDTH]),
                ("ffn_gate", vec![WIDTH, 48]),
                ("ffn_up", vec![WIDTH, 48]),
                ("ffn_down", vec![48, WIDTH]),
            ] {
                tensors.push((format!("blk.{layer}.{stem}.weight"), dims));
            }
        }
        let keys = keys.map(|(name, value)| (name.to_owned(), value)).to_vec();
        Self { architecture: "llama".to_owned(), keys, tensors }
    }

    fn with(&self, key: &str, value: impl Into<Value>) -> Self {
        let mut draft = self.without(key);
        draft.keys.push((key.to_owned(), value.into()));
        draft
    }

    fn without(&self, key: &str) -> Self {
        let mut draft = self.clone();
        draft.keys.retain(|(name, _)| name != key);
        draft
    }

    fn with_tensor(&self, name: &str, dims: &[u64]) -> Self {
        let mut draft = self.without_tensor(name);
        draft.tensors.push((name.to_owned(), dims.to_vec()));
        draft
    }

    fn without_tensor(&self, name: &str) -> Self {
        let mut draft = self.clone();
        draft.tensors.retain(|(known, _)| known != name);
        draft
    }

    fn file(&self) -> WeightFile {
        let mut builder = GgufBuilder::new();
        builder.key("general.architecture", self.architecture.as_str());
        for (name, value) in &self.keys {
            // Keys of Pelton's own are of no architecture.
            let own = name.starts_with("pelton.").then(|| name.clone());
            let name = own.unwrap_or_else(|| format!("{}.{name}", self.architecture));
            builder.key(&name, value.clone());
        }
        for (name, dims) in &self.tensors {
            // Ones, so that they are divisors too.
            let count = dims.iter().product::<u64>() as usize;
            let bytes: Vec<u8> = 1f32.to_le_bytes().repeat(count);
            builder.tensor(name, QuantFormat::F32, dims, bytes);
        }
        WeightFile::from_bytes("draft.gguf", builder.to_bytes().unwrap()).unwrap()
    }

    fn read_for(&self, context_tokens: Option<u32>) -> Result<DecoderSpec, ModelError> {
        models::read_spec(&self.file(), &LoadSettings { context_tokens, ..LoadSettings::default() })
    }

    fn read(&self) -> Result<DecoderSpec, ModelError> {
        self.read_for(None)
    }

    /// All that comes before a backend packs weights; the text of what refuses it.
    fn load(&self) -> Result<(), String> {
        let spec = self.read().map_err(|error| error.to_string())?;
        let tape = models::lower(&spec).map_err(|error| error.to_string())?;
        let file = self.file();
        for id in 0..tape.weights.len() as u32 {
            tape.stored(WeightId(id), &Tensors(&file)).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// The refusal, which must name `name`.
    fn refused(&self, name: &str) -> String {
        let error = self.load().expect_err(name);
        assert!(error.contains(name), "{error} does not name {name}");
        error
    }
}

struct Tensors<'a>(&'a WeightFile);

impl WeightSource for Tensors<'_> {
    fn weight(&self, name: &str) -> Result<WeightView<'_>, LoadError> {
        let tensor = self.0.tensor(name).map_err(|error| LoadError(error.to_string()))?;
        let (format, rows, cols, bytes) = (tensor.format, tensor.rows, tensor.cols, tensor.bytes);
        Ok(WeightView { format, rows, cols, bytes })
    }
}

fn scaling(draft: &Draft) -> RotaryScaling {
    draft.read().unwrap().layers[0].rotary.clone().unwrap().scaling
}

#[test]
fn the_healthy_draft_loads() {
    Draft::healthy().load().unwrap();
    // The head is the embedding, and all heads have keys and sizes of their own, by default.
    let mut tied = Draft::healthy().without_tensor("output.weight");
    for key in ["attention.key_length", "rope.dimension_count", "rope.freq_base"] {
        tied = tied.without(key);
    }
    tied.load().unwrap();
    assert_eq!(tied.read().unwrap().dims.head_dim, 8);
}

#[test]
fn the_output_is_not_what_a_load_ends_with() {
    let tape = models::lower(&Draft::healthy().read().unwrap()).unwrap();
    let place = |name: &str| tape.weights.iter().position(|weight| weight.name == name).unwrap();
    assert!(place("output.weight") > place("blk.0.ffn_down.weight"));
    assert!(place("output.weight") < place("blk.1.attn_norm.weight"));
}

#[test]
fn an_unknown_architecture_is_named_with_the_known_ones() {
    let mut draft = Draft::healthy();
    draft.architecture = "mamba\u{1b}[2J".to_owned();
    let error = draft.refused("mamba");
    assert!(matches!(draft.read(), Err(ModelError::UnknownArchitecture { .. })));
    assert!(error.contains("supported: deepseek2, ") && error.contains(", llama, "), "{error}");
    assert!(!error.contains('\u{1b}'), "control characters of a file are not printed");
    assert!(!error.contains("nearest"), "{error}");
    for (architecture, nearest) in
        [("qwen4", "qwen3"), ("gemma3n", "gemma3"), ("glm5", "glm4"), ("lama", "llama")]
    {
        draft.architecture = architecture.to_owned();
        draft.refused(&format!(
            "`{architecture}`, which is not supported (the nearest that is: \
                                {nearest})"
        ));
    }
}

#[test]
fn a_head_that_should_be_there_is_not_replaced_by_the_embedding() {
    let headless = Draft::healthy().without_tensor("output.weight");
    let key = "pelton.head_is_embedding";
    headless.with(key, true).load().unwrap();
    Draft::healthy().with(key, false).load().unwrap();
    let error = headless.with(key, false).refused("lm_head.weight");
    assert!(error.contains("tie_word_embeddings is false"), "{error}");
    // Who gives vectors needs none.
    headless.with(key, false).with("pooling_type", 3u32).load().unwrap();
}

/// Gemma 3 has no caps of its own, and knows one of logits only.
#[test]
fn caps_are_as_said() {
    let window = ("attention.sliding_window", Value::U32(8));
    for (family, defaults) in [("gemma2", [Some(50.0), Some(30.0)]), ("gemma3", [None; 2])] {
        let draft = of(family, std::slice::from_ref(&window), &[]);
        let caps = |draft: &Draft| {
            let spec = draft.read().unwrap();
            [spec.attention.soft_cap, spec.logit_soft_cap]
        };
        assert_eq!(caps(&draft), defaults, "{family}");
        let attention = if family == "gemma2" { 0.0 } else { 3.0 };
        let capped = draft
            .with("attn_logit_softcapping", Value::F32(attention))
            .with("final_logit_softcapping", Value::F32(2.0));
        assert_eq!(caps(&capped), [None, Some(2.0)], "{family}");
    }
}

#[test]
fn a_missing_key_is_named() {
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
    ] {
        Draft::healthy().without(key).refused(&format!("llama.{key}"));
    }
}

#[test]
fn impossible_whole_numbers_are_named() {
    let draft = Draft::healthy();
    let values = [Value::U32(0), Value::I32(-1), Value::U32(u32::MAX), Value::U64(1 << 32)];
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "rope.dimension_count",
    ] {
        for value in &values {
            draft.with(key, value.clone()).refused(key);
        }
        draft.with(key, Value::F32(8.0)).refused(key);
        draft.with(key, "8").refused(key);
    }
    let yarn = draft.with("rope.scaling.type", "yarn");
    for value in [Value::U32(0), Value::U32(1), Value::I32(-1), Value::U64(1 << 32)] {
        let key = "rope.scaling.original_context_length";
        yarn.with(key, value).refused(key);
    }
}

#[test]
fn whole_numbers_that_contradict_each_other_are_named() {
    let draft = Draft::healthy();
    draft.with("attention.head_count_kv", 3u32).refused("attention.head_count_kv");
    draft.with("attention.head_count_kv", 8u32).refused("attention.head_count_kv");
    draft.with("attention.key_length", 7u32).refused("attention.key_length");
    for turning in [7u32, 10, 1 << 20, 1 << 31] {
        draft.with("rope.dimension_count", turning).refused("rope.dimension_count");
    }
    draft.with("rope.dimension_count", 4u32).load().unwrap();
    // Possible sizes, but not those of the tensors.
    draft.with("block_count", 1024u32).refused("blk.2.attn_norm.weight");
    draft.with("block_count", 1u32).refused("blk.1.attn_norm.weight");
    draft.with("embedding_length", 1u32 << 17).refused("token_embd.weight");
    draft.with("feed_forward_length", 1u32 << 20).refused("blk.0.ffn_gate.weight");
    draft.with("attention.head_count", 1024u32).refused("blk.0.attn_q.weight");
    let error = draft.read_for(Some(65)).unwrap_err().to_string();
    assert!(error.contains("context_length is 65") && error.contains("64"), "{error}");
}

#[test]
fn impossible_numbers_are_named() {
    let draft = Draft::healthy();
    let never = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0];
    let linear = draft.with("rope.scaling.type", "linear");
    let yarn = draft.with("rope.scaling.type", "yarn").with("rope.scaling.factor", 4.0f32);
    for value in never.into_iter().chain([0.0, -0.0]) {
        for key in ["attention.layer_norm_rms_epsilon", "rope.freq_base"] {
            draft.with(key, value).refused(key);
        }
        linear.with("rope.scaling.factor", value).refused("rope.scaling.factor");
        for key in ["factor", "attn_factor", "yarn_beta_fast", "yarn_beta_slow"] {
            let key = format!("rope.scaling.{key}");
            yarn.with(&key, value).refused(&key);
        }
    }
    let key = "rope.scaling.yarn_log_multiplier";
    never.into_iter().for_each(|value| drop(yarn.with(key, value).refused(key)));
    yarn.with(key, 1.0f32).refused(key);
    yarn.with(key, 0.0f32).load().unwrap();
    draft.with("attention.layer_norm_rms_epsilon", 1.0f32).refused("layer_norm_rms_epsilon");
    yarn.with("rope.scaling.yarn_beta_fast", 0.5f32).refused("rope.scaling.yarn_beta_fast");
    // Frequencies that overflow although every setting is a number.
    linear.with("rope.scaling.factor", 1e-45f32).refused("rope.freq_base");
    // And angles that overflow although every frequency is a number.
    linear.with("rope.scaling.factor", 1e-37f32).refused("rope.freq_base");
}

#[test]
fn a_missing_or_misshapen_tensor_is_named() {
    let healthy = Draft::healthy();
    for (name, dims) in &healthy.tensors {
        if name != "output.weight" {
            healthy.without_tensor(name).refused(name);
        }
        let mut wider = dims.clone();
        wider[0] += 1;
        healthy.with_tensor(name, &wider).refused(name);
        if dims.len() == 2 && name != "token_embd.weight" {
            healthy.with_tensor(name, &[dims[0], dims[1] + 1]).refused(name);
        }
    }
    // Rows of the embedding are the vocabulary: it is the head that disagrees.
    healthy.with_tensor("token_embd.weight", &[WIDTH, 11]).refused("output.weight");
}

/// Leaving out a tensor that the file has would change answers without a word.
#[test]
fn a_tensor_that_nobody_reads_is_named() {
    let draft = Draft::healthy();
    for name in [
        "blk.0.ffn_up.bias",
        "blk.1.attn_q.bias",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_sinks.weight",
        "blk.0.ffn_gate_inp.weight",
        "blk.1.ffn_gate_inp.weight",
        "blk.2.attn_norm.weight",
        "output.bias",
        "position_embd.weight",
        "blk.0.attn_q.scale",
    ] {
        draft.with_tensor(name, &[WIDTH]).refused(name);
    }
    let hostile = draft.with_tensor("\u{1b}[2Jx", &[WIDTH]).load().unwrap_err();
    assert!(!hostile.contains('\u{1b}'), "{hostile}");
    draft.with_tensor("blk.0.attn_rot_embd.weight", &[4]).load().unwrap();
}

#[test]
fn linear_and_no_scaling_are_understood() {
    let draft = Draft::healthy();
    assert_eq!(scaling(&draft), RotaryScaling::None);
    let factor = draft.with("rope.scaling.factor", 4.0f32);
    // A factor without a type, and the key of old files, are linear; a type of none wins.
    for linear in [
        factor.clone(),
        factor.with("rope.scaling.type", "linear"),
        draft.with("rope.scale_linear", 4.0f32),
    ] {
        assert_eq!(scaling(&linear), RotaryScaling::Linear { factor: 4.0 });
    }
    assert_eq!(scaling(&factor.with("rope.scaling.type", "none")), RotaryScaling::None);
    let unknown = draft.with("rope.scaling.type", "spiral\u{7}").refused("rope.scaling.type");
    assert!(unknown.contains("spiral") && !unknown.contains('\u{7}'), "{unknown}");
    draft.with("rope.scaling.type", "longrope").refused("rope_factors");
}

#[test]
fn yarn_is_understood() {
    let draft = Draft::healthy()
        .with("rope.scaling.type", "yarn")
        .with("rope.scaling.factor", 4.0f32)
        .with("rope.scaling.original_context_length", 16u32);
    let expected = Yarn {
        factor: 4.0,
        original_context: 16,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        attention_factor: Some(0.1 * 4f32.ln() + 1.0),
    };
    assert_eq!(scaling(&draft), RotaryScaling::Yarn(expected.clone()));
    // The model was stretched from what the file says, not from what is asked for now.
    let unsaid = draft.without("rope.scaling.original_context_length");
    let spec = unsaid.read_for(Some(8)).unwrap();
    assert_eq!(spec.dims.context, 8);
    let expected = Yarn { original_context: 64, ..expected };
    assert_eq!(spec.layers[0].rotary.clone().unwrap().scaling, RotaryScaling::Yarn(expected));
}

#[test]
fn factor_tensors_are_understood() {
    let draft = Draft::healthy();
    let divisors =
        |attention_factor| RotaryScaling::Divisors { divisors: vec![1.0; 4], attention_factor };
    let llama3 = draft.with_tensor("rope_freqs.weight", &[4]);
    assert_eq!(scaling(&llama3), divisors(1.0));
    draft.with_tensor("rope_freqs.weight", &[5]).refused("rope_freqs.weight");
    let linear = llama3.with("rope.scaling.factor", 4.0f32);
    linear.refused("rope.scaling.type");
    llama3.with("rope.scaling.type", "yarn").refused("rope.scaling.type");

    let long = draft
        .with("rope.scaling.original_context_length", 16u32)
        .with_tensor("rope_factors_long.weight", &[4]);
    long.load().unwrap();
    assert_eq!(models::context_before_stretching(&long.file()), Some(16));
    assert_eq!(models::context_before_stretching(&draft.file()), None);
    let both = long.with_tensor("rope_factors_short.weight", &[4]);
    // Stretched from 16 to 64: sqrt(1 + ln 4 / ln 16).
    assert_eq!(scaling(&both), divisors(1.5f32.sqrt()));
    assert_eq!(scaling(&both.with("rope.scaling.attn_factor", 1.25f32)), divisors(1.25));
    both.with("rope.scaling.attn_factor", 0.0f32).refused("rope.scaling.attn_factor");
    let error = long.read_for(Some(16)).unwrap_err().to_string();
    assert!(error.contains("rope_factors_short.weight"), "{error}");
    both.with_tensor("rope_factors_long.weight", &[3]).refused("rope_factors_long.weight");
    both.with_tensor("rope_freqs.weight", &[4]).refused("rope_factors");
}

/// The draft as another architecture, which has its keys under its own name.
fn of(architecture: &str, keys: &[(&str, Value)], tensors: &[(&str, &[u64])]) -> Draft {
    let mut draft = Draft::healthy();
    draft.architecture = architecture.to_owned();
    for (key, value) in keys {
        draft = draft.with(key, value.clone());
    }
    for layer in 0..LAYERS {
        for (stem, dims) in tensors {
            draft = draft.with_tensor(&format!("blk.{layer}.{stem}"), dims);
        }
    }
    draft
}

fn mixture() -> Draft {
    let keys = [("expert_count", Value::U32(4)), ("expert_used_count", Value::U32(2))];
    let mut draft = of("llama", &keys, &[("ffn_gate_inp.weight", &[WIDTH, 4])]);
    for layer in 0..LAYERS {
        for (stem, dims) in
            [("ffn_gate", [WIDTH, 48, 4]), ("ffn_up", [WIDTH, 48, 4]), ("ffn_down", [48, WIDTH, 4])]
        {
            draft = draft.without_tensor(&format!("blk.{layer}.{stem}.weight"));
            draft = draft.with_tensor(&format!("blk.{layer}.{stem}_exps.weight"), &dims);
        }
    }
    draft
}

#[test]
fn impossible_mixtures_are_named() {
    mixture().load().unwrap();
    for (key, values) in [
        ("expert_used_count", &[0, 5, 65, u32::MAX][..]),
        ("expert_group_count", &[0, 3, 5, u32::MAX]),
        ("expert_group_used_count", &[0, 2, u32::MAX]),
    ] {
        for &value in values {
            mixture().with(key, value).refused(key);
        }
    }
    for value in [3u32, 5, 4097, u32::MAX] {
        mixture().with("expert_count", value).load().unwrap_err();
    }
    // Two groups of two: of the one that is used come two experts at most.
    let grouped = mixture().with("expert_group_count", 2u32).with("expert_group_used_count", 1u32);
    grouped.load().unwrap();
    grouped.with("expert_used_count", 3u32).refused("expert_used_count");
    for value in [f32::NAN, f32::INFINITY, -1.0, 0.0] {
        mixture().with("expert_weights_scale", value).refused("expert_weights_scale");
    }
    mixture().with("expert_shared_count", u32::MAX).refused("expert_shared_feed_forward_length");
    for stem in ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "ffn_gate_inp"] {
        let name = format!("blk.1.{stem}.weight");
        mixture().without_tensor(&name).refused(&name);
    }
    mixture().with_tensor("blk.0.ffn_gate_exps.weight", &[WIDTH, 48, 5]).refused("ffn_gate_exps");
}

#[test]
fn windows_are_understood() {
    let windows = |draft: &Draft| -> Vec<Window> {
        draft.read().unwrap().layers.iter().map(|layer| layer.window).collect()
    };
    let llama = Draft::healthy();
    assert_eq!(windows(&llama), [Window::Full; 2]);
    assert_eq!(windows(&llama.with("attention.sliding_window", 0u32)), [Window::Full; 2]);
    let sliding = Window::Sliding(7);
    assert_eq!(windows(&llama.with("attention.sliding_window", 7u32)), [sliding; 2]);
}

#[test]
fn alternating_windows_are_understood() {
    let norms: [(&str, &[u64]); 4] = [
        ("attn_q_norm.weight", &[8]),
        ("attn_k_norm.weight", &[8]),
        ("post_attention_norm.weight", &[WIDTH]),
        ("post_ffw_norm.weight", &[WIDTH]),
    ];
    let gemma = of("gemma3", &[("attention.sliding_window", Value::U32(7))], &norms);
    gemma.load().unwrap();
    let slides = |draft: &Draft| -> Vec<bool> {
        let layers = draft.read().unwrap().layers;
        layers.iter().map(|layer| layer.window == Window::Sliding(7)).collect()
    };
    let key = "attention.sliding_window_pattern";
    assert_eq!(slides(&gemma), [true, true], "the sixth sees everything, and there are two");
    assert_eq!(slides(&gemma.with(key, 2u32)), [true, false]);
    assert_eq!(slides(&gemma.with(key, 1u32)), [false, false]);
    assert_eq!(slides(&gemma.with(key, 0u32)), [true, true]);
    let list = |each: &[bool]| Value::Array(Box::new(Array::Bool(each.into())));
    assert_eq!(slides(&gemma.with(key, list(&[false, true]))), [false, true]);
    gemma.with(key, list(&[false, true, true])).refused(key);
    gemma.with(key, Value::Array(Box::new(Array::U32([0, 1].into())))).refused(key);
    gemma.with("attention.sliding_window", 0u32).refused("attention.sliding_window");
    gemma.without("attention.sliding_window").refused("attention.sliding_window");
    // Two rotations: the base of the one in windows has a key of its own.
    let spec = gemma.with(key, 2u32).with("rope.freq_base_swa", 500.0f32).read().unwrap();
    let bases = spec.layers.iter().map(|layer| layer.rotary.as_ref().unwrap().base);
    assert_eq!(bases.collect::<Vec<f32>>(), [500.0, 10_000.0]);
    gemma.with("rope.freq_base_swa", 0.0f32).refused("rope.freq_base_swa");
}

/// Folders say so; GGUF files of these families know no windows.
#[test]
fn listed_layers_get_a_window() {
    let pattern = Value::from(Array::Bool([false, true].into()));
    for family in ["llama", "qwen2", "qwen3"] {
        let draft = of(family, &[("attention.sliding_window", Value::U32(7))], &[]);
        let listed = draft.with("attention.sliding_window_pattern", pattern.clone());
        let windows: Vec<Window> =
            listed.read().unwrap().layers.iter().map(|layer| layer.window).collect();
        assert_eq!(windows, [Window::Full, Window::Sliding(7)], "{family}");
    }
}

/// Dense layers among those by experts, and scores that are left as they are.
#[test]
fn experts_are_where_their_tensors_are() {
    let keys = [
        ("expert_count", Value::U32(4)),
        ("expert_used_count", Value::U32(2)),
        ("expert_feed_forward_length", Value::U32(16)),
        ("expert_weights_norm", Value::Bool(false)),
    ];
    let dense = of("qwen3moe", &keys, &[]);
    let mut draft = dense.with_tensor("blk.0.ffn_gate_inp.weight", &[WIDTH, 4]);
    for (stem, dims) in
        [("ffn_gate", [WIDTH, 16, 4]), ("ffn_up", [WIDTH, 16, 4]), ("ffn_down", [16, WIDTH, 4])]
    {
        draft = draft.without_tensor(&format!("blk.0.{stem}.weight"));
        draft = draft.with_tensor(&format!("blk.0.{stem}_exps.weight"), &dims);
    }
    let spec = draft.read().unwrap();
    let FeedForward::Experts(experts) = spec.layers[0].feed_forward else { panic!("dense") };
    assert_eq!(experts.routing.scoring, ops::experts::Scoring::Softmax);
    assert!(matches!(spec.layers[1].feed_forward, FeedForward::Gated { .. }));
}

#[test]
fn impossible_latents_are_named() {
    let keys = [
        ("attention.head_count_kv", 1),
        ("attention.key_length", 24),
        ("attention.kv_lora_rank", 16),
        ("attention.key_length_mla", 20),
        ("attention.value_length_mla", 12),
        ("rope.dimension_count", 8),
        ("expert_count", 4),
        ("expert_used_count", 2),
        ("expert_feed_forward_length", 16),
        ("leading_dense_block_count", 2),
    ]
    .map(|(key, value)| (key, Value::U32(value)));
    let mut latent = of(
        "deepseek2",
        &keys,
        &[
            ("attn_q.weight", &[WIDTH, 80]),
            ("attn_kv_a_mqa.weight", &[WIDTH, 24]),
            ("attn_kv_a_norm.weight", &[16]),
            ("attn_k_b.weight", &[12, 16, 4]),
            ("attn_v_b.weight", &[16, 12, 4]),
            ("attn_output.weight", &[48, WIDTH]),
        ],
    );
    for (layer, stem) in (0..LAYERS).flat_map(|layer| [(layer, "attn_k"), (layer, "attn_v")]) {
        latent = latent.without_tensor(&format!("blk.{layer}.{stem}.weight"));
    }
    latent.load().unwrap();
    for value in [0u32, 15, 17, u32::MAX] {
        latent.with("attention.kv_lora_rank", value).load().unwrap_err();
    }
    for value in [0u32, 8, u32::MAX] {
        latent.with("attention.key_length_mla", value).refused("attention.key_length_mla");
    }
    for value in [0u32, u32::MAX] {
        latent.with("attention.value_length_mla", value).refused("attention.value_length_mla");
    }
    latent.with("attention.q_lora_rank", u32::MAX).refused("attention.q_lora_rank");
    latent.with("attention.head_count_kv", 2u32).refused("attention.key_length");
    // As files from before the change were: one matrix behind the latent.
    let old =
        latent.without_tensor("blk.0.attn_k_b.weight").without_tensor("blk.0.attn_v_b.weight");
    old.with_tensor("blk.0.attn_kv_b.weight", &[16, 96]).refused("attn_kv_b");
}
