//! What is a tensor of a model folder called in GGUF? The names of Hugging Face and of MLX, once
//! for all families.

use super::bert;
use super::settings::{Architecture, PostAttention};

/// What becomes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The tensor of this name.
    Whole(String),
    /// A norm that GGUF files hold with its 1 added.
    NormLessOne(String),
    /// A logarithm of what GGUF files hold with a minus.
    LogOfMinus(String),
    /// The tensor of this name, without its dimensions of 1.
    Squeezed(String),
    /// Stacks of these names, one expert's rows of the second below those of the first.
    Halves([String; 2]),
    /// The same, each expert's matrices turned over, where their rows take turns.
    TurnedByTurns([String; 2]),
    /// The same, where the columns of the first are before those of the second.
    TurnedHalves([String; 2]),
    /// A stack of experts' matrices that are turned over.
    Turned(String),
    /// Each head's rows for keys, which are turned over, and below them those for values.
    KeysAndValues([String; 2]),
    /// Each head's rows for queries, keys and values, which stand in this order in the first
    /// tensor, and for gates, which are the second.
    MixedAndGates([String; 2]),
    /// One expert's part of the stack of this name.
    Expert { stack: String, index: u32 },
    /// Not part of the model that is run: tables worked out from the settings, towers for images.
    Unused,
    /// Nothing known: kept under its own name, which no family reads.
    Unknown,
}

/// Names around the layers.
const OUTER: &[(&str, &str)] = &[
    ("embed_tokens.weight", "token_embd.weight"),
    ("norm.weight", "output_norm.weight"),
    ("embed_tokens_per_layer.weight", "per_layer_token_embd.weight"),
    ("per_layer_model_projection.weight", "per_layer_model_proj.weight"),
    ("per_layer_projection_norm.weight", "per_layer_proj_norm.weight"),
];

/// Inside a layer, without `.weight` and `.bias`.
const INNER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("post_feedforward_layernorm_1", "post_ffw_norm_1"),
    ("post_feedforward_layernorm_2", "post_ffw_norm_2"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("linear_attn.in_proj_qkv", "attn_qkv"),
    ("linear_attn.in_proj_z", "attn_gate"),
    ("linear_attn.in_proj_a", "ssm_alpha"),
    ("linear_attn.in_proj_b", "ssm_beta"),
    ("linear_attn.in_proj_ba", "ssm_ba"),
    ("linear_attn.out_proj", "ssm_out"),
    ("per_layer_input_gate", "inp_gate"),
    ("per_layer_projection", "proj"),
    ("post_per_layer_input_norm", "post_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.switch_mlp.gate_proj", "ffn_gate_exps"),
    ("mlp.switch_mlp.up_proj", "ffn_up_exps"),
    ("mlp.switch_mlp.down_proj", "ffn_down_exps"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    // MLX parts the matrix behind a latent as GGUF does.
    ("self_attn.embed_q", "attn_k_b"),
    ("self_attn.unembed_out", "attn_v_b"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_expert.up_proj", "ffn_up_shexp"),
    ("mlp.shared_expert.down_proj", "ffn_down_shexp"),
    ("mlp.shared_expert_gate", "ffn_gate_inp_shexp"),
    ("mlp.router", "ffn_gate_inp"),
    ("router.proj", "ffn_gate_inp"),
    ("experts.switch_glu.gate_proj", "ffn_gate_exps"),
    ("experts.switch_glu.up_proj", "ffn_up_exps"),
    ("experts.switch_glu.down_proj", "ffn_down_exps"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
    ("block_sparse_moe.switch_mlp.gate_proj", "ffn_gate_exps"),
    ("block_sparse_moe.switch_mlp.up_proj", "ffn_up_exps"),
    ("block_sparse_moe.switch_mlp.down_proj", "ffn_down_exps"),
];

const EXPERTS: &[&str] = &["mlp.experts.", "block_sparse_moe.experts."];
/// Qwen's names and Mixtral's.
const OF_EXPERT: &[(&str, &str)] = &[
    ("gate_proj.weight", "ffn_gate_exps.weight"),
    ("up_proj.weight", "ffn_up_exps.weight"),
    ("down_proj.weight", "ffn_down_exps.weight"),
    ("w1.weight", "ffn_gate_exps.weight"),
    ("w3.weight", "ffn_up_exps.weight"),
    ("w2.weight", "ffn_down_exps.weight"),
];

type Becomes = fn(String) -> Meaning;
/// Inside a layer, whole.
const NAMED: &[(&str, Becomes, &str)] = &[
    ("linear_attn.A_log", Meaning::LogOfMinus, "ssm_a"),
    ("linear_attn.dt_bias", Meaning::Whole, "ssm_dt.bias"),
    ("linear_attn.conv1d.weight", Meaning::Squeezed, "ssm_conv1d.weight"),
    ("linear_attn.norm.weight", Meaning::Whole, "ssm_norm.weight"),
    ("mlp.experts.down_proj", Meaning::Whole, "ffn_down_exps.weight"),
    ("experts.down_proj", Meaning::Whole, "ffn_down_exps.weight"),
    ("router.scale", Meaning::Whole, "ffn_gate_inp.scale"),
    ("router.per_expert_scale", Meaning::Whole, "ffn_down_exps.scale"),
    ("mlp.gate.e_score_correction_bias", Meaning::Whole, "exp_probs_b.bias"),
    ("block_sparse_moe.e_score_correction_bias", Meaning::Whole, "exp_probs_b.bias"),
    ("layer_scalar", Meaning::Whole, "layer_output_scale.weight"),
    ("self_attn.sinks", Meaning::Whole, "attn_sinks.weight"),
];

/// What makes each head in one place.
const TOGETHER: [&str; 2] = ["self_attn.kv_b_proj.weight", "linear_attn.in_proj_qkvz.weight"];

/// Of images, and of layers that guess at later tokens.
const UNUSED: &[&str] =
    &["vision_tower.", "vision_model.", "multi_modal_projector.", "visual.", "mtp."];

/// What a tensor of a model of this architecture means.
pub(super) fn meaning(architecture: Architecture, name: &str) -> Meaning {
    if architecture.is_encoder() {
        return bert::meaning(name);
    }
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    if UNUSED.iter().any(|prefix| name.trim_start_matches("model.").starts_with(prefix)) {
        return Meaning::Unused;
    }
    if name == "score.weight" {
        return Meaning::Whole("cls.output.weight".to_owned());
    }
    if name == "lm_head.weight" {
        return Meaning::Whole("output.weight".to_owned());
    }
    // Models without a head for words are saved from the inside.
    let name = name.strip_prefix("model.").unwrap_or(name);
    let name = name.strip_prefix("language_model.").unwrap_or(name);
    if let Some((_, known)) = OUTER.iter().find(|(theirs, _)| *theirs == name) {
        return norm(architecture, (*known).to_owned());
    }
    let Some((layer, inner)) = name.strip_prefix("layers.").and_then(|n| n.split_once('.')) else {
        return Meaning::Unknown;
    };
    if layer.is_empty() || !layer.bytes().all(|byte| byte.is_ascii_digit()) {
        return Meaning::Unknown;
    }
    // Layers behind the last guess at later tokens.
    let is_behind = |layers| layer.parse::<u32>().is_ok_and(|layer| layer >= layers);
    if architecture.guessing_from().is_some_and(is_behind) {
        return Meaning::Unused;
    }
    if let Architecture::Gemma4 { reading_from } = architecture {
        let reads = layer.parse::<u32>().is_ok_and(|layer| layer >= reading_from);
        let makes_keys = ["k_proj", "v_proj", "k_norm"];
        let stem = inner.strip_prefix("self_attn.").and_then(|rest| rest.split('.').next());
        if reads && stem.is_some_and(|stem| makes_keys.contains(&stem)) {
            return Meaning::Unused;
        }
    }
    if inner.ends_with("rotary_emb.inv_freq") {
        return Meaning::Unused;
    }
    in_layer(architecture, layer, inner)
}

/// What a tensor of GGUF's name is called in a folder that MLX reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderName {
    pub name: String,
    pub holds: Holds,
}

/// What a folder holds of a GGUF file's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Same,
    /// A norm without its 1.
    LessOne,
    /// The logarithm of what is there with a minus.
    LogOfMinus,
    /// The same, each in a row of its own.
    InRows,
    /// The numbers of two of a file's tensors; this is the one with this part of each head.
    Part(Part),
}

/// What a tensor is to a matrix that has all that makes a head in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Of what stands behind a latent, each head's keys, which are turned over.
    Keys,
    /// And its values, below them.
    Values,
    /// Of a gated delta net, all heads' queries, keys and values, kind by kind.
    Mixed,
    /// And the gates, which in the matrix are below the head's values.
    Gates,
}

/// The names of [`meaning`], read backwards; `None` for what a model of this `model_type` does not
/// have, or has not as a tensor of its own.
pub fn folder_name(model_type: &str, name: &str) -> Option<FolderName> {
    let architecture = Architecture::known(model_type)?.as_mlx_saves();
    let part_of = |[first, second]: [String; 2], parts: [Part; 2]| {
        let is_second = second == name;
        (if is_second { second } else { first }, Holds::Part(parts[usize::from(is_second)]))
    };
    let theirs = |own: &str| {
        let whole = format!("model.{own}");
        let (known, holds) = match meaning(architecture, &whole) {
            Meaning::Whole(known) => (known, Holds::Same),
            Meaning::NormLessOne(known) => (known, Holds::LessOne),
            Meaning::LogOfMinus(known) => (known, Holds::LogOfMinus),
            Meaning::Squeezed(known) => (known, Holds::InRows),
            Meaning::KeysAndValues(names) => part_of(names, [Part::Keys, Part::Values]),
            Meaning::MixedAndGates(names) => part_of(names, [Part::Mixed, Part::Gates]),
            _ => return None,
        };
        (known == name).then_some((whole, holds))
    };
    let found = if name == "output.weight" {
        Some(("lm_head.weight".to_owned(), Holds::Same))
    } else if let Some((layer, inner)) =
        name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
    {
        // Of experts, MLX has matrices apart.
        let whole = NAMED.iter().filter(|(own, _, known)| {
            *known == inner && !own.ends_with("experts.down_proj") && is_in_mlx(architecture, own)
        });
        let together = TOGETHER.iter().filter(|own| is_in_mlx(architecture, own));
        let whole = whole.map(|(own, ..)| *own).chain(together.copied()).map(str::to_owned);
        let (stem, kind) = inner.rsplit_once('.').unwrap_or((inner, ""));
        // These mean what they do by the architecture.
        let norms = ["post_attention_layernorm", "post_self_attn_layernorm"].into_iter();
        let others = INNER.iter().filter(|(_, known)| *known == stem).map(|(own, _)| *own);
        let stems = norms.chain(others).filter(|own| is_in_mlx(architecture, own));
        whole
            .chain(stems.map(|own| format!("{own}.{kind}")))
            .find_map(|own| theirs(&format!("layers.{layer}.{own}")))
    } else {
        OUTER.iter().find_map(|(own, _)| theirs(own))
    };
    found.map(|(name, holds)| FolderName { name, holds })
}

/// Whether MLX has a model's tensor under this of several names that mean the same.
fn is_in_mlx(architecture: Architecture, own: &str) -> bool {
    let is_fused = matches!(architecture, Architecture::Phi3 | Architecture::Glm4);
    let has_latent_whole = matches!(architecture, Architecture::DeepSeek { is_second: true, .. });
    let has_nets_whole = matches!(architecture, Architecture::Qwen3Next { .. });
    let experts = match architecture {
        Architecture::Mixtral | Architecture::MiniMaxM2 => "block_sparse_moe.",
        Architecture::GptOss => "mlp.experts.",
        Architecture::Gemma4 { .. } => "experts.",
        _ => "mlp.switch_mlp.",
    };
    match own {
        "self_attn.qkv_proj" => !architecture.has_nets(),
        "self_attn.kv_b_proj.weight" => has_latent_whole,
        "linear_attn.in_proj_qkvz.weight" => has_nets_whole,
        "linear_attn.in_proj_qkv" | "linear_attn.in_proj_z" => {
            architecture.has_nets() && !has_nets_whole
        }
        own if own.starts_with("linear_attn.") => architecture.has_nets(),
        own if own.starts_with("mlp.shared_expert.") => architecture.has_nets(),
        own if own.starts_with("mlp.shared_experts.") => !architecture.has_nets(),
        "mlp.up_proj" => !is_fused,
        "mlp.gate_up_proj" => is_fused,
        "mlp.gate" | "mlp.gate.e_score_correction_bias" => experts == "mlp.switch_mlp.",
        "router.proj" => matches!(architecture, Architecture::Gemma4 { .. }),
        "mlp.router" => experts == "mlp.experts.",
        "block_sparse_moe.gate" | "block_sparse_moe.e_score_correction_bias" => {
            experts == "block_sparse_moe."
        }
        "post_mlp_layernorm" => architecture == Architecture::Glm4,
        "post_feedforward_layernorm" => architecture != Architecture::Glm4,
        own if own.contains("switch_") || own.starts_with("mlp.experts.") => {
            own.starts_with(experts)
        }
        _ => true,
    }
}

/// What MLX calls the stack that this expert's matrix is part of.
fn own_stack(name: &str) -> String {
    let Some((path, rest)) = name.split_once(".experts.") else { return name.to_owned() };
    let matrix = rest.split_once('.').map_or(rest, |(_, matrix)| matrix);
    let matrix = match matrix {
        "w1.weight" => "gate_proj.weight",
        "w2.weight" => "down_proj.weight",
        "w3.weight" => "up_proj.weight",
        other => other,
    };
    format!("{path}.switch_mlp.{matrix}")
}

/// What a tensor becomes where tensors keep their own names: experts are in stacks for each of
/// their matrices, under the names that MLX gives those.
pub(super) fn own_meaning(architecture: Architecture, name: &str, meaning: Meaning) -> Meaning {
    let container = match architecture {
        Architecture::GptOss => "experts",
        // Of Gemma 4, experts are beside the feed-forward and not in its place.
        Architecture::Gemma4 { .. } => "experts.switch_glu",
        _ => "switch_mlp",
    };
    let stacks = || {
        let path = name.strip_suffix("gate_up_proj").unwrap_or(name);
        let path = path.strip_suffix("experts.").unwrap_or(path);
        ["gate_proj", "up_proj"].map(|matrix| format!("{path}{container}.{matrix}.weight"))
    };
    let down = |path: &str| format!("{path}{container}.down_proj.weight");
    match (meaning, name.strip_suffix("experts.down_proj")) {
        (Meaning::Expert { index, .. }, _) => Meaning::Expert { stack: own_stack(name), index },
        (Meaning::Halves(_), _) => Meaning::Halves(stacks()),
        (Meaning::TurnedByTurns(_), _) => Meaning::TurnedByTurns(stacks()),
        (Meaning::TurnedHalves(_), _) => Meaning::TurnedHalves(stacks()),
        (Meaning::Whole(_), Some(path)) => Meaning::Whole(down(path)),
        (Meaning::Turned(_), Some(path)) => Meaning::Turned(down(path)),
        _ => Meaning::Unknown,
    }
}

fn in_layer(architecture: Architecture, layer: &str, inner: &str) -> Meaning {
    for prefix in EXPERTS {
        let rest = inner.strip_prefix(prefix).and_then(|rest| rest.split_once('.'));
        let Some((index, matrix)) = rest else { continue };
        let known = OF_EXPERT.iter().find(|(theirs, _)| *theirs == matrix);
        if let (Ok(index), Some((_, known))) = (index.parse(), known) {
            return Meaning::Expert { stack: format!("blk.{layer}.{known}"), index };
        }
    }
    let stacks = |stems: [&str; 2]| stems.map(|stem| format!("blk.{layer}.{stem}.weight"));
    match (architecture, inner) {
        (Architecture::GptOss, "mlp.experts.gate_up_proj") => {
            return Meaning::TurnedByTurns(stacks(["ffn_gate_exps", "ffn_up_exps"]));
        }
        (Architecture::Qwen3VlMoe { is_turned: true }, "mlp.experts.gate_up_proj") => {
            return Meaning::TurnedHalves(stacks(["ffn_gate_exps", "ffn_up_exps"]));
        }
        (
            Architecture::GptOss | Architecture::Qwen3VlMoe { is_turned: true },
            "mlp.experts.down_proj",
        ) => {
            return Meaning::Turned(format!("blk.{layer}.ffn_down_exps.weight"));
        }
        (Architecture::DeepSeek { .. }, "self_attn.kv_b_proj.weight") => {
            return Meaning::KeysAndValues(stacks(["attn_k_b", "attn_v_b"]));
        }
        (_, "linear_attn.in_proj_qkvz.weight") => {
            return Meaning::MixedAndGates(stacks(["attn_qkv", "attn_gate"]));
        }
        (_, "mlp.experts.gate_up_proj" | "experts.gate_up_proj") => {
            return Meaning::Halves(stacks(["ffn_gate_exps", "ffn_up_exps"]));
        }
        _ => {}
    }
    if let Some((_, meaning, known)) = NAMED.iter().find(|(theirs, ..)| *theirs == inner) {
        return meaning(format!("blk.{layer}.{known}"));
    }
    let Some((stem, kind)) = inner.rsplit_once('.') else { return Meaning::Unknown };
    if !matches!(kind, "weight" | "bias") {
        return Meaning::Unknown;
    }
    if architecture == Architecture::Glm4 && stem == "post_self_attn_layernorm" {
        return Meaning::Whole(format!("blk.{layer}.post_attention_norm.{kind}"));
    }
    if stem == "post_attention_layernorm" {
        let known = match architecture.post_attention() {
            PostAttention::FeedForward => "ffn_norm",
            PostAttention::FeedForwardByOtherName | PostAttention::Behind => "post_attention_norm",
        };
        return norm(architecture, format!("blk.{layer}.{known}.{kind}"));
    }
    match INNER.iter().find(|(theirs, _)| *theirs == stem) {
        Some((_, known)) => norm(architecture, format!("blk.{layer}.{known}.{kind}")),
        None => Meaning::Unknown,
    }
}

fn norm(architecture: Architecture, name: String) -> Meaning {
    if architecture.norms_lack_one() && name.ends_with("norm.weight") {
        Meaning::NormLessOne(name)
    } else {
        Meaning::Whole(name)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Architecture, FolderName, Holds, Meaning, Part, folder_name, meaning, own_meaning,
        own_stack,
    };

    #[test]
    fn stacks_are_called_as_mlx_does() {
        let cases = [
            ("model.layers.1.mlp.experts.12.up_proj.weight", "mlp.switch_mlp.up_proj"),
            (
                "model.layers.1.block_sparse_moe.experts.7.w2.weight",
                "block_sparse_moe.switch_mlp.down_proj",
            ),
        ];
        for (name, expected) in cases {
            assert_eq!(own_stack(name), format!("model.layers.1.{expected}.weight"));
        }
    }

    #[test]
    fn names_are_read_backwards() {
        let cases = [
            ("llama", "token_embd.weight", "model.embed_tokens.weight", false),
            ("llama", "output.weight", "lm_head.weight", false),
            ("qwen2", "blk.3.attn_q.bias", "model.layers.3.self_attn.q_proj.bias", false),
            (
                "llama",
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                false,
            ),
            (
                "gemma2",
                "blk.0.ffn_norm.weight",
                "model.layers.0.pre_feedforward_layernorm.weight",
                true,
            ),
            (
                "gemma2",
                "blk.0.post_attention_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                true,
            ),
            ("gemma3_text", "output_norm.weight", "model.norm.weight", true),
            (
                "glm4",
                "blk.1.post_ffw_norm.weight",
                "model.layers.1.post_mlp_layernorm.weight",
                false,
            ),
            ("glm4", "blk.1.ffn_up.weight", "model.layers.1.mlp.gate_up_proj.weight", false),
            ("qwen3", "blk.1.ffn_up.weight", "model.layers.1.mlp.up_proj.weight", false),
            (
                "qwen3_moe",
                "blk.1.ffn_down_exps.weight",
                "model.layers.1.mlp.switch_mlp.down_proj.weight",
                false,
            ),
            (
                "gpt_oss",
                "blk.1.ffn_down_exps.weight",
                "model.layers.1.mlp.experts.down_proj.weight",
                false,
            ),
            (
                "qwen3_moe",
                "blk.1.ffn_up_exps.weight",
                "model.layers.1.mlp.switch_mlp.up_proj.weight",
                false,
            ),
            (
                "mixtral",
                "blk.1.ffn_up_exps.weight",
                "model.layers.1.block_sparse_moe.switch_mlp.up_proj.weight",
                false,
            ),
            (
                "mixtral",
                "blk.1.ffn_gate_inp.weight",
                "model.layers.1.block_sparse_moe.gate.weight",
                false,
            ),
            ("gpt_oss", "blk.1.ffn_up_exps.bias", "model.layers.1.mlp.experts.up_proj.bias", false),
        ];
        for (kind, name, own, lacks_one) in cases {
            let holds = if lacks_one { Holds::LessOne } else { Holds::Same };
            let expected = Some(FolderName { name: own.to_owned(), holds });
            assert_eq!(folder_name(kind, name), expected, "{kind}, {name}");
        }
    }

    #[test]
    fn nets_and_latents_are_called_as_mlx_does() {
        let cases = [
            ("qwen3_5", "attn_norm.weight", "input_layernorm.weight", Holds::Same),
            ("qwen3_5", "attn_qkv.weight", "linear_attn.in_proj_qkv.weight", Holds::Same),
            ("qwen3_5", "ssm_a", "linear_attn.A_log", Holds::LogOfMinus),
            ("qwen3_5", "ssm_dt.bias", "linear_attn.dt_bias", Holds::Same),
            ("qwen3_5", "ssm_conv1d.weight", "linear_attn.conv1d.weight", Holds::InRows),
            ("qwen3_5_moe", "ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", Holds::Same),
            ("gpt_oss", "attn_sinks.weight", "self_attn.sinks", Holds::Same),
            ("phi3", "attn_qkv.weight", "self_attn.qkv_proj.weight", Holds::Same),
            ("deepseek_v3", "attn_k_b.weight", "self_attn.embed_q.weight", Holds::Same),
            ("deepseek_v3", "exp_probs_b.bias", "mlp.gate.e_score_correction_bias", Holds::Same),
            (
                "deepseek_v2",
                "attn_k_b.weight",
                "self_attn.kv_b_proj.weight",
                Holds::Part(Part::Keys),
            ),
            (
                "deepseek_v2",
                "attn_v_b.weight",
                "self_attn.kv_b_proj.weight",
                Holds::Part(Part::Values),
            ),
            (
                "qwen3_next",
                "attn_qkv.weight",
                "linear_attn.in_proj_qkvz.weight",
                Holds::Part(Part::Mixed),
            ),
            (
                "qwen3_next",
                "attn_gate.weight",
                "linear_attn.in_proj_qkvz.weight",
                Holds::Part(Part::Gates),
            ),
            ("qwen3_next", "ssm_ba.weight", "linear_attn.in_proj_ba.weight", Holds::Same),
            ("qwen3_next", "attn_norm.weight", "input_layernorm.weight", Holds::Same),
            ("gemma4_text", "layer_output_scale.weight", "layer_scalar", Holds::Same),
            ("gemma4_text", "ffn_up_exps.weight", "experts.switch_glu.up_proj.weight", Holds::Same),
            ("gemma4_text", "ffn_down_exps.scale", "router.per_expert_scale", Holds::Same),
            (
                "minimax_m2",
                "exp_probs_b.bias",
                "block_sparse_moe.e_score_correction_bias",
                Holds::Same,
            ),
            ("glm4_moe", "ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight", Holds::Same),
        ];
        for (kind, name, own, holds) in cases {
            let expected = Some(FolderName { name: format!("model.layers.7.{own}"), holds });
            assert_eq!(folder_name(kind, &format!("blk.7.{name}")), expected, "{kind}, {name}");
        }
    }

    #[test]
    fn names_that_no_folder_has_are_none() {
        for (kind, name) in [("llama", "blk.0.attn_sink.weight"), ("zebra", "output.weight")] {
            assert_eq!(folder_name(kind, name), None);
        }
    }

    #[test]
    fn names_are_those_of_gguf() {
        let whole = |name: &str| Meaning::Whole(name.to_owned());
        let less = |name: &str| Meaning::NormLessOne(name.to_owned());
        let expert =
            |stack: &str, index| Meaning::Expert { stack: format!("{stack}.weight"), index };
        let cases = [
            (Architecture::Llama, "model.embed_tokens.weight", whole("token_embd.weight")),
            (Architecture::Llama, "lm_head.weight", whole("output.weight")),
            (
                Architecture::Llama,
                "model.layers.3.self_attn.q_proj.weight",
                whole("blk.3.attn_q.weight"),
            ),
            (
                Architecture::Qwen2,
                "model.layers.3.self_attn.k_proj.bias",
                whole("blk.3.attn_k.bias"),
            ),
            (
                Architecture::Llama,
                "model.layers.0.post_attention_layernorm.weight",
                whole("blk.0.ffn_norm.weight"),
            ),
            (
                Architecture::Gemma2,
                "model.layers.0.post_attention_layernorm.weight",
                less("blk.0.post_attention_norm.weight"),
            ),
            (Architecture::Gemma3, "language_model.model.norm.weight", less("output_norm.weight")),
            (Architecture::Gemma3, "model.vision_tower.x.weight", Meaning::Unused),
            (
                Architecture::Glm4,
                "model.layers.0.post_self_attn_layernorm.weight",
                whole("blk.0.post_attention_norm.weight"),
            ),
            (
                Architecture::Glm4,
                "model.layers.0.post_attention_layernorm.weight",
                whole("blk.0.ffn_norm.weight"),
            ),
            (
                Architecture::Mixtral,
                "model.layers.1.block_sparse_moe.experts.7.w2.weight",
                expert("blk.1.ffn_down_exps", 7),
            ),
            (
                Architecture::Qwen3Moe,
                "model.layers.1.mlp.experts.12.up_proj.weight",
                expert("blk.1.ffn_up_exps", 12),
            ),
            (Architecture::Llama, "model.layers.0.self_attn.rotary_emb.inv_freq", Meaning::Unused),
            (Architecture::Llama, "model.layers.x.mlp.up_proj.weight", Meaning::Unknown),
            (Architecture::Llama, "model.layers.0.mlp.up_proj.scales", Meaning::Unknown),
        ];
        for (architecture, name, expected) in cases {
            assert_eq!(meaning(architecture, name), expected, "{name}");
        }
    }

    #[test]
    fn experts_keep_names_that_mlx_knows() {
        let [qwen, gemma] =
            [Architecture::Qwen35 { is_mlx: false }, Architecture::Gemma4 { reading_from: 9 }];
        let both = |path: &str| ["gate", "up"].map(|stem| format!("{path}.{stem}_proj.weight"));
        let (mlp, beside) = ("model.layers.0.mlp", "model.layers.0.experts");
        let cases = [
            (
                qwen,
                "model.layers.0.mlp.experts.gate_up_proj",
                Meaning::Halves(both(&format!("{mlp}.switch_mlp"))),
            ),
            (
                qwen,
                "model.layers.0.mlp.experts.down_proj",
                Meaning::Whole(format!("{mlp}.switch_mlp.down_proj.weight")),
            ),
            (
                qwen,
                "model.layers.0.mlp.experts.3.up_proj.weight",
                Meaning::Expert { stack: format!("{mlp}.switch_mlp.up_proj.weight"), index: 3 },
            ),
            (
                gemma,
                "model.layers.0.experts.gate_up_proj",
                Meaning::Halves(both(&format!("{beside}.switch_glu"))),
            ),
            (
                gemma,
                "model.layers.0.experts.down_proj",
                Meaning::Whole(format!("{beside}.switch_glu.down_proj.weight")),
            ),
            (
                Architecture::GptOss,
                "model.layers.0.mlp.experts.gate_up_proj",
                Meaning::TurnedByTurns(both(&format!("{mlp}.experts"))),
            ),
            (
                Architecture::GptOss,
                "model.layers.0.mlp.experts.down_proj",
                Meaning::Turned(format!("{mlp}.experts.down_proj.weight")),
            ),
            (qwen, "model.layers.0.mlp.gate.weight", Meaning::Unknown),
        ];
        for (architecture, name, expected) in cases {
            assert_eq!(
                own_meaning(architecture, name, meaning(architecture, name)),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn names_of_gated_delta_nets_are_those_of_gguf() {
        let whole = |name: &str| Meaning::Whole(name.to_owned());
        let less = |name: &str| Meaning::NormLessOne(name.to_owned());
        let [ours, mlx] = [false, true].map(|is_mlx| Architecture::Qwen35 { is_mlx });
        let cases = [
            (
                ours,
                "model.language_model.layers.0.linear_attn.A_log",
                Meaning::LogOfMinus("blk.0.ssm_a".to_owned()),
            ),
            (ours, "model.layers.3.self_attn.q_norm.weight", less("blk.3.attn_q_norm.weight")),
            (
                mlx,
                "language_model.model.layers.3.post_attention_layernorm.weight",
                whole("blk.3.post_attention_norm.weight"),
            ),
            (ours, "model.layers.0.linear_attn.norm.weight", whole("blk.0.ssm_norm.weight")),
            (
                ours,
                "model.layers.0.mlp.experts.gate_up_proj",
                Meaning::Halves(["gate", "up"].map(|stem| format!("blk.0.ffn_{stem}_exps.weight"))),
            ),
            (ours, "mtp.fc.weight", Meaning::Unused),
        ];
        for (architecture, name, expected) in cases {
            assert_eq!(meaning(architecture, name), expected, "{name}");
        }
    }
}
