//! What do the keys of a GGUF file say in the settings of a folder? As the authors publish them,
//! and as MLX-LM reads them, family by family; what has no word there is refused.
//!
//! Source: `convert_hf_to_gguf.py` of llama.cpp, read backwards; `ModelArgs` of each family in
//! MLX-LM.

use serde_json::{Map, Value as Json, json};
use weights::{Array, FromValue, Metadata, Value, WeightFile};

use crate::QuantizeError;

/// `general.architecture`, `model_type`, the class. Of `llama`, see [`Keys::kind`].
const ARCHITECTURES: [(&str, &str, &str); 25] = [
    ("deepseek2", "deepseek_v3", "DeepseekV3ForCausalLM"),
    ("ernie4_5", "ernie4_5", "Ernie4_5ForCausalLM"),
    ("exaone4", "exaone4", "Exaone4ForCausalLM"),
    ("gemma", "gemma", "GemmaForCausalLM"),
    ("gemma2", "gemma2", "Gemma2ForCausalLM"),
    ("gemma3", "gemma3_text", "Gemma3ForCausalLM"),
    ("gemma4", "gemma4_text", "Gemma4ForCausalLM"),
    ("glm4", "glm4", "Glm4ForCausalLM"),
    ("glm4moe", "glm4_moe", "Glm4MoeForCausalLM"),
    ("gpt-oss", "gpt_oss", "GptOssForCausalLM"),
    ("llama", "llama", "LlamaForCausalLM"),
    ("minimax-m2", "minimax_m2", "MiniMaxM2ForCausalLM"),
    ("mistral3", "ministral3", "Ministral3ForCausalLM"),
    ("olmo2", "olmo2", "Olmo2ForCausalLM"),
    ("phi3", "phi3", "Phi3ForCausalLM"),
    ("qwen2", "qwen2", "Qwen2ForCausalLM"),
    ("qwen3", "qwen3", "Qwen3ForCausalLM"),
    ("qwen35", "qwen3_5", "Qwen3_5ForCausalLM"),
    ("qwen35moe", "qwen3_5_moe", "Qwen3_5MoeForCausalLM"),
    ("qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"),
    ("qwen3next", "qwen3_next", "Qwen3NextForCausalLM"),
    // Of models of images only what reads texts is in a file.
    ("qwen3vl", "qwen3", "Qwen3ForCausalLM"),
    ("qwen3vlmoe", "qwen3_moe", "Qwen3MoeForCausalLM"),
    ("seed_oss", "seed_oss", "SeedOssForCausalLM"),
    ("smollm3", "smollm3", "SmolLM3ForCausalLM"),
];
/// Those whose positions may be stretched by YaRN, as MLX-LM reads it.
const STRETCHED: [&str; 7] =
    ["deepseek2", "gpt-oss", "mistral3", "olmo2", "qwen2", "qwen3", "qwen3moe"];
/// Those that may turn a part of a head only.
const TURN_IN_PART: [&str; 7] =
    ["glm4", "glm4moe", "minimax-m2", "phi3", "qwen35", "qwen35moe", "qwen3next"];

/// The context that Llama 3.1 and later were made for.
const LLAMA3_CONTEXT: f32 = 8192.0;
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";
/// Tensors that settings say.
pub(crate) const ROPE_DIVISORS: [&str; 3] =
    [ROPE_FREQS, "rope_factors_long.weight", "rope_factors_short.weight"];

pub(crate) type Entries = Vec<(&'static str, Json)>;

/// The keys of a GGUF file.
pub(crate) struct Keys<'a> {
    pub(crate) file: &'a WeightFile,
    pub(crate) metadata: &'a Metadata,
    pub(crate) architecture: &'a str,
}

/// Heads, as rotary positions see them.
#[derive(Clone, Copy)]
struct Head {
    columns: u32,
    turning: u32,
    base: f32,
}

impl<'a> Keys<'a> {
    pub(crate) fn wrong(&self, problem: String) -> QuantizeError {
        QuantizeError::Settings { path: self.file.path().to_owned(), problem }
    }

    pub(crate) fn get<T: FromValue<'a>>(&self, key: &str) -> Result<Option<T>, QuantizeError> {
        Ok(self.metadata.optional(&format!("{}.{key}", self.architecture))?)
    }

    pub(crate) fn needed(&self, key: &str) -> Result<u32, QuantizeError> {
        Ok(self.metadata.required(&format!("{}.{key}", self.architecture))?)
    }

    /// A number for each layer, one for all, or none.
    pub(crate) fn each(&self, key: &str) -> Result<Vec<u32>, QuantizeError> {
        let key = format!("{}.{key}", self.architecture);
        let Some(Value::Array(array)) = self.metadata.get(&key) else {
            return Ok(self.metadata.optional::<u32>(&key)?.into_iter().collect());
        };
        let numbers = match &**array {
            Array::U32(numbers) => Some(numbers.to_vec()),
            Array::I32(numbers) => numbers.iter().map(|&n| u32::try_from(n).ok()).collect(),
            _ => None,
        };
        numbers.ok_or_else(|| self.wrong(format!("{key} is no list of whole numbers")))
    }

    fn flag(&self, key: &str, default: bool) -> Result<Json, QuantizeError> {
        Ok(json!(self.get(key)?.unwrap_or(default)))
    }

    pub(crate) fn float(&self, key: &str, default: f32) -> Result<f32, QuantizeError> {
        Ok(self.get(key)?.unwrap_or(default))
    }

    fn is(&self, one_of: &[&str]) -> bool {
        one_of.contains(&self.architecture)
    }

    /// `model_type` and class. Files of `llama` are of Mistral's where there is a window, and of
    /// Mixtral's where there are experts.
    fn kind(&self) -> Result<(&'static str, &'static str), QuantizeError> {
        if self.is(&["bert", "nomic-bert"]) {
            return Err(self.wrong("it is of an encoder, and MLX-LM has none".to_owned()));
        }
        let known = ARCHITECTURES.iter().find(|(name, ..)| *name == self.architecture);
        let &(_, model_type, class) = known.ok_or_else(|| QuantizeError::Unknown {
            what: "architecture for a folder",
            found: self.architecture.to_owned(),
            known: ARCHITECTURES.map(|(name, ..)| name).join(", "),
        })?;
        let has = |key: &str| Ok::<_, QuantizeError>(self.get::<u32>(key)?.unwrap_or(0) > 0);
        let (has_experts, has_windows) = (has("expert_count")?, has("attention.sliding_window")?);
        match model_type {
            "llama" if has_experts && !has_windows => return Ok(("mixtral", "MixtralForCausalLM")),
            "llama" if has_windows && !has_experts => return Ok(("mistral", "MistralForCausalLM")),
            "olmo2" if has_windows => return Ok(("olmo3", "Olmo3ForCausalLM")),
            "deepseek_v3" if self.get::<u32>("expert_gating_func")? != Some(2) => {
                return Ok(("deepseek_v2", "DeepseekV2ForCausalLM"));
            }
            _ => {}
        }
        let by_experts = [
            "deepseek_v3",
            "gemma4_text",
            "glm4_moe",
            "gpt_oss",
            "minimax_m2",
            "qwen3_5_moe",
            "qwen3_moe",
            "qwen3_next",
        ]
        .contains(&model_type);
        let by_windows = ["exaone4", "gemma2", "gemma3_text", "gemma4_text", "gpt_oss", "phi3"]
            .contains(&model_type);
        if has_experts && !by_experts || has_windows && !by_windows {
            let what = if has_experts && !by_experts { "experts" } else { "windows" };
            return Err(self.wrong(format!("it has {what}, which are not told in a folder")));
        }
        Ok((model_type, class))
    }

    /// `model_type`, and all settings.
    pub(crate) fn settings(&self) -> Result<(&'static str, Map<String, Json>), QuantizeError> {
        let (model_type, class) = self.kind()?;
        let (width, heads) =
            (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        let columns = match self.get("attention.key_length")? {
            Some(dim) => dim,
            None => width.checked_div(heads).unwrap_or(0),
        };
        let turning = self.get("rope.dimension_count")?.unwrap_or(columns);
        // Of latents, the one head of keys is not one of the model's.
        let columns = if self.is(&["deepseek2"]) { turning } else { columns };
        let head = Head { columns, turning, base: self.float("rope.freq_base", 10_000.0)? };
        let epsilon = self.float("attention.layer_norm_rms_epsilon", 1e-5)?;
        let rows = self.file.shape("token_embd.weight")?.rows;
        let guessing = self.get::<u32>("nextn_predict_layers")?.unwrap_or(0);
        let layers = self.needed("block_count")?.saturating_sub(guessing);
        let inner = match self.each("feed_forward_length")?.first() {
            Some(inner) => *inner,
            None => self.needed("expert_feed_forward_length")?,
        };
        let heads_kv = self.each("attention.head_count_kv")?.first().copied().unwrap_or(heads);
        let mut entries: Entries = vec![
            ("architectures", json!([class])),
            ("model_type", json!(model_type)),
            ("hidden_size", json!(width)),
            ("num_hidden_layers", json!(layers)),
            ("intermediate_size", json!(inner)),
            ("num_attention_heads", json!(heads)),
            ("num_key_value_heads", json!(heads_kv)),
            ("head_dim", json!(columns)),
            ("max_position_embeddings", json!(self.needed("context_length")?)),
            ("rms_norm_eps", number(epsilon)),
            ("rope_theta", number(head.base)),
            ("vocab_size", json!(rows)),
            ("tie_word_embeddings", json!(!self.file.contains("output.weight"))),
            ("attention_bias", json!(self.has_attention_bias())),
            ("hidden_act", json!("silu")),
            ("torch_dtype", json!("float16")),
        ];
        entries.extend(self.positions(head)?);
        entries.extend(self.of_family(model_type, layers)?);
        let named = entries.into_iter().map(|(key, value)| (key.to_owned(), value));
        Ok((model_type, named.collect()))
    }

    /// Some families have none behind their attention, and are said to have some all the same.
    fn has_attention_bias(&self) -> bool {
        let is_before = self.is(&["glm4", "glm4moe", "seed_oss"]);
        let place = if is_before { "attn_q" } else { "attn_output" };
        self.file.contains(&format!("blk.0.{place}.bias"))
    }

    /// What only some families have.
    fn of_family(&self, model_type: &str, layers: u32) -> Result<Entries, QuantizeError> {
        let window = self.get::<u32>("attention.sliding_window")?.filter(|window| *window > 0);
        Ok(match model_type {
            "mistral" | "phi3" => vec![("sliding_window", json!(window))],
            "mixtral" | "minimax_m2" | "qwen3_moe" => self.mixture(model_type)?,
            "gpt_oss" => {
                let slides = self.slides(layers, 2)?;
                let windows = vec![
                    ("sliding_window", json!(window)),
                    ("layer_types", layer_types(&slides, "sliding_attention")),
                ];
                [windows, self.mixture(model_type)?].concat()
            }
            "exaone4" => {
                let mut slides = self.slides(layers, 4)?;
                slides.iter_mut().for_each(|slides| *slides &= window.is_some());
                let letter = |slides: &bool| if *slides { 'L' } else { 'G' };
                let pattern: Option<String> = window.map(|_| slides.iter().map(letter).collect());
                vec![
                    ("sliding_window", json!(window)),
                    ("sliding_window_pattern", json!(pattern)),
                    ("layer_types", layer_types(&slides, "sliding_attention")),
                ]
            }
            "deepseek_v2" | "deepseek_v3" => [self.latents()?, self.grouped(model_type)?].concat(),
            "glm4_moe" => {
                let normed = self.file.contains("blk.0.attn_q_norm.weight");
                [vec![("use_qk_norm", json!(normed))], self.grouped(model_type)?].concat()
            }
            "qwen3_5" => self.nets(layers)?,
            "olmo3" => {
                let slides = self.slides(layers, 4)?;
                vec![
                    ("sliding_window", json!(window)),
                    ("layer_types", layer_types(&slides, "sliding_attention")),
                ]
            }
            "qwen3_5_moe" | "qwen3_next" => {
                let shared = self.needed("expert_shared_feed_forward_length")?;
                let beside = vec![("shared_expert_intermediate_size", json!(shared))];
                [self.nets(layers)?, self.mixture(model_type)?, beside].concat()
            }
            "ernie4_5" => vec![("use_bias", json!(false))],
            "seed_oss" => {
                let behind = self.file.contains("blk.0.attn_output.bias");
                vec![("attention_out_bias", json!(behind))]
            }
            "smollm3" => vec![("no_rope_layer_interval", json!(4))],
            "gemma" | "gemma2" | "gemma3_text" => self.of_gemma(model_type, window)?,
            "gemma4_text" => crate::folder_gemma4::settings(self, layers, window)?,
            _ => Vec::new(),
        })
    }

    /// Experts in every layer: their count, how many a token passes, their width.
    fn mixture(&self, model_type: &str) -> Result<Entries, QuantizeError> {
        let count = json!(self.needed("expert_count")?);
        let inner = self.get::<u32>("expert_feed_forward_length")?;
        let used = ("num_experts_per_tok", json!(self.needed("expert_used_count")?));
        if ["qwen3_5_moe", "qwen3_moe", "qwen3_next"].contains(&model_type) {
            return Ok(vec![
                used,
                ("num_experts", count),
                ("moe_intermediate_size", json!(inner)),
                ("norm_topk_prob", self.flag("expert_weights_norm", true)?),
                ("decoder_sparse_step", json!(1)),
                ("mlp_only_layers", json!([])),
            ]);
        }
        let mut more = vec![used, ("num_local_experts", count)];
        more.extend(inner.map(|inner| ("intermediate_size", json!(inner))));
        if model_type == "minimax_m2" {
            more.extend([
                ("shared_intermediate_size", json!(0)),
                ("rotary_dim", json!(self.needed("rope.dimension_count")?)),
                ("scoring_func", json!("sigmoid")),
                ("use_qk_norm", json!(true)),
            ]);
        }
        Ok(more)
    }

    /// Which layers something holds of, as a list says, or all but the last of each `period`.
    fn each_but(&self, list: &str, layers: u32, period: u32) -> Result<Vec<bool>, QuantizeError> {
        let key = format!("{}.{list}", self.architecture);
        let each = match self.metadata.get(&key) {
            Some(Value::Array(array)) => match &**array {
                Array::Bool(each) => each.get(..layers as usize).map(<[bool]>::to_vec),
                _ => None,
            },
            _ => Some((0..layers).map(|layer| layer % period != period - 1).collect()),
        };
        each.ok_or_else(|| self.wrong(format!("{key} is no list of {layers} of true and false")))
    }

    pub(crate) fn slides(&self, layers: u32, period: u32) -> Result<Vec<bool>, QuantizeError> {
        self.each_but("attention.sliding_window_pattern", layers, period)
    }

    /// Experts in groups behind some dense layers.
    fn grouped(&self, model_type: &str) -> Result<Entries, QuantizeError> {
        let or = |key: &str, default| Ok::<u32, QuantizeError>(self.get(key)?.unwrap_or(default));
        let is_second = model_type == "deepseek_v2";
        let norms = self.get("expert_weights_norm")?.unwrap_or(model_type == "glm4_moe");
        if is_second && norms {
            let problem = "it divides the scores of experts by their sum, which MLX-LM does not in \
                           DeepSeek V2";
            return Err(self.wrong(problem.to_owned()));
        }
        let groups = or("expert_group_count", 1)?;
        let (scoring, method) = match (is_second, groups) {
            (false, _) => ("sigmoid", "noaux_tc"),
            (true, 0 | 1) => ("softmax", "greedy"),
            (true, _) => ("softmax", "group_limited_greedy"),
        };
        Ok(vec![
            ("n_routed_experts", json!(self.needed("expert_count")?)),
            ("num_experts_per_tok", json!(self.needed("expert_used_count")?)),
            ("moe_intermediate_size", json!(self.needed("expert_feed_forward_length")?)),
            ("n_shared_experts", json!(or("expert_shared_count", 0)?)),
            ("first_k_dense_replace", json!(or("leading_dense_block_count", 0)?)),
            ("n_group", json!(groups)),
            ("topk_group", json!(or("expert_group_used_count", 1)?)),
            ("routed_scaling_factor", number(self.float("expert_weights_scale", 1.0)?)),
            ("norm_topk_prob", json!(norms)),
            ("moe_layer_freq", json!(1)),
            ("scoring_func", json!(scoring)),
            ("topk_method", json!(method)),
        ])
    }

    fn latents(&self) -> Result<Entries, QuantizeError> {
        let turning = self.needed("rope.dimension_count")?;
        let rank = self.get::<u32>("attention.q_lora_rank")?.filter(|rank| *rank > 0);
        let plain = self.needed("attention.key_length_mla")?.saturating_sub(turning);
        Ok(vec![
            ("num_key_value_heads", json!(self.needed("attention.head_count")?)),
            ("q_lora_rank", json!(rank)),
            ("kv_lora_rank", json!(self.needed("attention.kv_lora_rank")?)),
            ("qk_rope_head_dim", json!(turning)),
            ("qk_nope_head_dim", json!(plain)),
            ("v_head_dim", json!(self.needed("attention.value_length_mla")?)),
        ])
    }

    /// Gated delta nets, and which layers they are: for MLX-LM all but the last of each so many.
    fn nets(&self, layers: u32) -> Result<Entries, QuantizeError> {
        let said = self.get("full_attention_interval")?.unwrap_or(4).max(1);
        let recurs = self.each_but("attention.recurrent_layers", layers, said)?;
        let first = recurs.iter().position(|recurs| !recurs).unwrap_or(recurs.len());
        let is_regular =
            recurs.iter().enumerate().all(|(at, recurs)| *recurs == (at % (first + 1) != first));
        if !is_regular {
            let problem = "its layers with attention are not every so many, as MLX-LM has them";
            return Err(self.wrong(problem.to_owned()));
        }
        let heads = self.needed("ssm.time_step_rank")?;
        Ok(vec![
            ("full_attention_interval", json!(first + 1)),
            ("layer_types", layer_types(&recurs, "linear_attention")),
            ("linear_conv_kernel_dim", json!(self.needed("ssm.conv_kernel")?)),
            ("linear_key_head_dim", json!(self.needed("ssm.state_size")?)),
            ("linear_num_key_heads", json!(self.needed("ssm.group_count")?)),
            ("linear_num_value_heads", json!(heads)),
            ("linear_value_head_dim", json!(self.needed("ssm.inner_size")? / heads.max(1))),
        ])
    }

    fn of_gemma(&self, model_type: &str, window: Option<u32>) -> Result<Entries, QuantizeError> {
        let mut more = vec![
            ("hidden_act", json!("gelu_pytorch_tanh")),
            ("hidden_activation", json!("gelu_pytorch_tanh")),
        ];
        if model_type == "gemma" {
            return Ok(more);
        }
        if window.is_none() {
            return Err(self.wrong("it has no windows, as its family always has".to_owned()));
        }
        let (width, heads) =
            (self.needed("embedding_length")?, self.needed("attention.head_count")?);
        // The largest of both scale by the width that a head would have of the whole; files do not
        // say so.
        let largest = if model_type == "gemma2" { 46 } else { 62 };
        let by_width = self.needed("block_count")? == largest;
        let head = self.get("attention.key_length")?.unwrap_or(width / heads.max(1));
        let plain = if by_width { width / heads.max(1) } else { head };
        let scaled = self.get::<f32>("attention.scale")?.map(|scale| 1.0 / (scale * scale));
        let scalar = scaled.map_or(json!(plain), |scalar| json!(scalar.round()));
        more.push(("query_pre_attn_scalar", scalar));
        more.push(("sliding_window", json!(window)));
        let cap = |key: &str, default| {
            let found = self.float(key, default)?;
            Ok::<_, QuantizeError>(if found == 0.0 { Json::Null } else { number(found) })
        };
        if model_type == "gemma2" {
            more.push(("attn_logit_softcapping", cap("attn_logit_softcapping", 50.0)?));
            more.push(("final_logit_softcapping", cap("final_logit_softcapping", 30.0)?));
        } else {
            let local = self.float("rope.freq_base_swa", 10_000.0)?;
            more.push(("final_logit_softcapping", cap("final_logit_softcapping", 0.0)?));
            more.push(("rope_local_base_freq", number(local)));
            more.push(("sliding_window_pattern", json!(6)));
        }
        Ok(more)
    }

    /// How much of a head turns, and how positions are scaled.
    fn positions(&self, head: Head) -> Result<Entries, QuantizeError> {
        let Head { columns, turning, base } = head;
        let part = json!(f64::from(turning) / f64::from(columns.max(1)));
        if turning != columns && !self.is(&TURN_IN_PART) {
            let problem = format!(
                "it has positions in {turning} columns of {columns} of a head, which are \
                         not told in a folder"
            );
            return Err(self.wrong(problem));
        }
        if self.is(&["gemma4"]) {
            return crate::folder_gemma4::positions(self, base, columns);
        }
        let scaling = self.scaling(head)?;
        Ok(match self.architecture {
            "qwen35" | "qwen35moe" => {
                let key = format!("{}.rope.dimension_sections", self.architecture);
                let sections: Vec<i64> = self.metadata.optional(&key)?.unwrap_or_default();
                let sections = sections.get(..3).unwrap_or(&[11, 11, 10]);
                let told = json!({
                    "rope_type": "default",
                    "rope_theta": number(base),
                    "partial_rotary_factor": part,
                    "mrope_section": sections,
                });
                vec![("rope_parameters", told)]
            }
            "mistral3" => {
                let mut told = scaling.unwrap_or_else(|| json!({"rope_type": "default"}));
                told["rope_theta"] = number(base);
                if let Some(growth) = self.get::<f32>("attention.temperature_scale")? {
                    told["llama_4_scaling_beta"] = number(growth);
                }
                vec![("rope_parameters", told)]
            }
            "deepseek2" => {
                // In V2, MLX-LM has no positions but those stretched: by nothing.
                let none = || self.yarn(1.0);
                vec![("rope_scaling", scaling.map_or_else(none, Ok)?)]
            }
            _ => {
                // MLX-LM wants these two told that there is no scaling.
                let is_told = scaling.is_some() || self.is(&["exaone4", "glm4moe"]);
                let scaling = is_told.then(|| ("rope_scaling", json!(scaling)));
                let part = self.is(&TURN_IN_PART).then_some(("partial_rotary_factor", part));
                let original = self.get::<u32>("rope.scaling.original_context_length")?;
                let original = original.filter(|_| self.is(&["phi3"]));
                let original =
                    original.map(|context| ("original_max_position_embeddings", json!(context)));
                scaling.into_iter().chain(part).chain(original).collect()
            }
        })
    }

    /// Not at all, by one factor, by YaRN, or by divisors: those of Llama 3.1 and of LongRoPE.
    fn scaling(&self, head: Head) -> Result<Option<Json>, QuantizeError> {
        let factor = self.float("rope.scaling.factor", 1.0)?;
        let kind = match self.get::<&str>("rope.scaling.type")? {
            Some(kind) => kind,
            None if factor == 1.0 => "none",
            None => "linear",
        };
        match kind {
            "none" => {}
            "linear" if factor == 1.0 => {}
            "linear" if self.is(&["gemma3"]) => {
                return Ok(Some(json!({"rope_type": "linear", "factor": number(factor)})));
            }
            "yarn" if self.is(&STRETCHED) => return self.yarn(factor).map(Some),
            "longrope" if self.is(&["phi3"]) => return self.long_rope().map(Some),
            other => {
                let problem = format!("positions of kind {other}, which are not told in a folder");
                return Err(self.wrong(format!("it has {problem}")));
            }
        }
        if !self.file.contains(ROPE_FREQS) {
            let has_factors = ROPE_DIVISORS.iter().any(|name| self.file.contains(name));
            return has_factors.then(|| self.long_rope()).transpose();
        }
        let divisors = self.vector(ROPE_FREQS)?;
        let scaling = llama3_scaling(&divisors, head);
        scaling
            .map(Some)
            .ok_or_else(|| self.wrong(format!("{ROPE_FREQS} is of no model known here")))
    }

    pub(crate) fn vector(&self, name: &str) -> Result<Vec<f32>, QuantizeError> {
        let stored = self.file.tensor(name)?;
        let mut values = vec![0.0; stored.cols];
        stored.format.decode_row(stored.row(0), &mut values);
        Ok(values)
    }

    fn long_rope(&self) -> Result<Json, QuantizeError> {
        let list = |name: &str| {
            let values = self.vector(name)?.into_iter().map(number);
            Ok::<_, QuantizeError>(Json::Array(values.collect()))
        };
        let original = self.needed("rope.scaling.original_context_length")?;
        let made_for = self.needed("context_length")?;
        let stretched = made_for as f32 / original.max(2) as f32;
        let worked_out = (1.0 + stretched.max(1.0).ln() / (original.max(2) as f32).ln()).sqrt();
        let said = self.float("rope.scaling.attn_factor", worked_out)?;
        if (said - worked_out).abs() > 1e-4 {
            let problem = format!("attention is sharpened by {said}, MLX-LM has {worked_out}");
            return Err(self.wrong(problem));
        }
        Ok(json!({
            "type": "longrope",
            "rope_type": "longrope",
            "original_max_position_embeddings": original,
            "long_factor": list("rope_factors_long.weight")?,
            "short_factor": list("rope_factors_short.weight")?,
        }))
    }

    /// With the two factors of DeepSeek's and Mistral's, of which the first is what turned grows by
    /// and the second what scores do.
    fn yarn(&self, factor: f32) -> Result<Json, QuantizeError> {
        let original = match self.get::<u32>("rope.scaling.original_context_length")? {
            Some(context) => context,
            None => self.needed("context_length")?,
        };
        let mut told = json!({
            "type": "yarn",
            "rope_type": "yarn",
            "factor": number(factor),
            "original_max_position_embeddings": original,
            "beta_fast": number(self.float("rope.scaling.yarn_beta_fast", 32.0)?),
            "beta_slow": number(self.float("rope.scaling.yarn_beta_slow", 1.0)?),
        });
        let turned = self.float("rope.scaling.attn_factor", 1.0)?;
        let scored = self.float("rope.scaling.yarn_log_multiplier", 0.0)?;
        if self.is(&["deepseek2", "mistral3"]) && scored != 0.0 {
            let scored = if self.is(&["deepseek2"]) { scored / 0.1 } else { scored };
            let logarithm = 0.1 * factor.max(1.0).ln();
            let grown = turned * (1.0 + scored * logarithm);
            let both = if turned == 1.0 { scored } else { (grown - 1.0) / logarithm };
            told["mscale"] = number(both);
            told["mscale_all_dim"] = number(scored);
        } else if turned != 1.0 || scored != 0.0 {
            let problem = "attention is sharpened in a way that MLX-LM does not have";
            return Err(self.wrong(problem.to_owned()));
        }
        if self.is(&["gpt-oss"]) {
            told["truncate"] = json!(false);
        }
        Ok(told)
    }
}

pub(crate) fn layer_types(each: &[bool], kind: &str) -> Json {
    each.iter().map(|is| if *is { kind } else { "full_attention" }).collect()
}

/// How Llama 3.1 and those after it stretch positions, told by the divisors of frequencies: those
/// that turn less than once in the context it was made for are divided by all of the factor, those
/// that turn more than four times by nothing. A divisor between tells the context.
fn llama3_scaling(divisors: &[f32], head: Head) -> Option<Json> {
    let factor = divisors.iter().copied().fold(1.0, f32::max);
    let period = |pair: usize| {
        std::f32::consts::TAU * head.base.powf(2.0 * pair as f32 / head.turning as f32)
    };
    let kept_of = |divisor: f32| (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
    let turns = divisors.iter().map(|divisor| 1.0 + 3.0 * kept_of(*divisor));
    let between = turns.enumerate().filter(|(_, turns)| (1.05..3.95).contains(turns));
    let told = between.map(|(pair, turns)| (turns * period(pair)).round());
    let is_right = |context: &f32| {
        divisors.len() * 2 == head.turning as usize
            && divisors.iter().enumerate().all(|(pair, found)| {
                let kept = ((context / period(pair) - 1.0) / 3.0).clamp(0.0, 1.0);
                let wanted = 1.0 / (kept + (1.0 - kept) / factor);
                (found - wanted).abs() <= 1e-4 * wanted
            })
    };
    let context = told.chain([LLAMA3_CONTEXT]).find(is_right).filter(|_| factor > 1.0)?;
    Some(json!({
        "rope_type": "llama3",
        "factor": number(factor),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": context as u32,
    }))
}

/// As short as it is written where it comes from.
pub(crate) fn number(value: f32) -> Json {
    value.to_string().parse::<f64>().map_or(Json::Null, |value| json!(value))
}
