//! Which tensor becomes what? By the recipe, and by what the caller says of names.
//!
//! Mixes are those that llama.cpp and MLX-LM make under the same names: more bits for values and
//! for what comes down, in the first and last layers and every third between, and for the head.
//!
//! Source: `llama_tensor_get_type` in `llama-quant.cpp` of llama.cpp, `mixed_quant_predicate` in
//! `convert.py` of MLX-LM.

use ops::quant_format::QuantFormat;

use crate::QuantizeError;

/// What most tensors become, under the names of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgufRecipe {
    pub name: &'static str,
    /// `general.file_type`.
    pub(crate) file_type: u32,
    plain: QuantFormat,
    /// For the tensors that suffer most, in some layers.
    better: QuantFormat,
}

const fn recipe(
    name: &'static str,
    file_type: u32,
    plain: QuantFormat,
    better: QuantFormat,
) -> GgufRecipe {
    GgufRecipe { name, file_type, plain, better }
}

/// All recipes for GGUF; numbers are `llama_ftype`.
pub const GGUF_RECIPES: [GgufRecipe; 13] = [
    recipe("F32", 0, QuantFormat::F32, QuantFormat::F32),
    recipe("F16", 1, QuantFormat::F16, QuantFormat::F16),
    recipe("BF16", 32, QuantFormat::Bf16, QuantFormat::Bf16),
    recipe("Q4_0", 2, QuantFormat::Q4_0, QuantFormat::Q4_0),
    recipe("Q4_1", 3, QuantFormat::Q4_1, QuantFormat::Q4_1),
    recipe("Q5_0", 8, QuantFormat::Q5_0, QuantFormat::Q5_0),
    recipe("Q5_1", 9, QuantFormat::Q5_1, QuantFormat::Q5_1),
    recipe("Q8_0", 7, QuantFormat::Q8_0, QuantFormat::Q8_0),
    recipe("Q4_K", 14, QuantFormat::Q4K, QuantFormat::Q4K),
    recipe("Q4_K_M", 15, QuantFormat::Q4K, QuantFormat::Q6K),
    recipe("Q5_K", 16, QuantFormat::Q5K, QuantFormat::Q5K),
    recipe("Q5_K_M", 17, QuantFormat::Q5K, QuantFormat::Q6K),
    recipe("Q6_K", 18, QuantFormat::Q6K, QuantFormat::Q6K),
];

/// How an MLX folder is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlxRecipe {
    pub bits: u8,
    /// Of the tensors that suffer most; as `bits` where nothing is mixed.
    pub better_bits: u8,
    pub group: usize,
}

/// A tensor whose name matches becomes this, whatever the recipe; `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception<T> {
    pub pattern: String,
    pub becomes: T,
}

impl GgufRecipe {
    /// # Errors
    /// With all names, when this is none of them.
    pub fn named(name: &str) -> Result<Self, QuantizeError> {
        let found = GGUF_RECIPES.iter().find(|recipe| recipe.name.eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| QuantizeError::Unknown {
            what: "recipe",
            found: name.to_owned(),
            known: GGUF_RECIPES.map(|recipe| recipe.name).join(", "),
        })
    }

    /// What a tensor becomes; `None`: it stays as it is.
    pub(crate) fn target(&self, model: &ModelShape, tensor: &Tensor<'_>) -> Option<QuantFormat> {
        if !tensor.is_matrix() || !tensor.name.ends_with(".weight") {
            return None;
        }
        // The choice of experts is small, and everything hangs on it.
        if ["ffn_gate_inp", "_norm", "rope_f", "attn_sinks"].iter().any(|s| tensor.name.contains(s))
        {
            return None;
        }
        let is_head =
            tensor.name == "output.weight" || !model.has_head && tensor.name == "token_embd.weight";
        let has_more = ["attn_v.", "ffn_down.", "ffn_down_exps."];
        let is_better = has_more.iter().any(|stem| tensor.name.contains(stem))
            && layer_of(tensor.name).is_some_and(|layer| gets_more(layer, model.layers));
        let wanted = match self.plain {
            QuantFormat::F32 | QuantFormat::F16 | QuantFormat::Bf16 => self.plain,
            QuantFormat::Q8_0 => QuantFormat::Q8_0,
            _ if is_head => QuantFormat::Q6K,
            _ if is_better => self.better,
            plain => plain,
        };
        Some(fitting(wanted, tensor.cols))
    }
}

/// The nearest format with blocks that such rows are whole numbers of.
pub(crate) fn fitting(format: QuantFormat, cols: u64) -> QuantFormat {
    let fits = |format: QuantFormat| cols.is_multiple_of(format.block_elements() as u64);
    let smaller = match format {
        QuantFormat::Q4K => QuantFormat::Q5_0,
        QuantFormat::Q5K => QuantFormat::Q5_1,
        QuantFormat::Q6K => QuantFormat::Q8_0,
        other => other,
    };
    let all = [format, smaller, QuantFormat::F16];
    all.into_iter().find(|format| fits(*format)).unwrap_or(QuantFormat::F16)
}

impl MlxRecipe {
    /// Bits of a module's weight; `None`: it is not quantized.
    pub(crate) fn bits(&self, model: &ModelShape, tensor: &Tensor<'_>) -> Option<u8> {
        let path = tensor.name.strip_suffix(".weight")?;
        let is_whole = tensor.cols.is_multiple_of(self.group as u64);
        let norms = path.ends_with("norm");
        if !tensor.is_matrix() || !is_whole || norms {
            return None;
        }
        // What MLX-LM has no quantized form of, or is read as it is.
        if model.is_plain(path) {
            return None;
        }
        // Small, and everything hangs on it: MLX-LM has eight bits for what chooses experts.
        let chooses = ["mlp.gate", "mlp.router", "router.proj", "shared_expert_gate"];
        if chooses.iter().any(|end| path.ends_with(end)) {
            return Some(8);
        }
        if self.better_bits == self.bits {
            return Some(self.bits);
        }
        let layer = layer_of(path).unwrap_or(0);
        let is_better = path.contains("lm_head")
            || gets_more(layer, model.layers)
                && (path.contains("v_proj") || path.contains("down_proj"));
        Some(if is_better { self.better_bits } else { self.bits })
    }
}

/// What recipes need to know of a model.
pub(crate) struct ModelShape {
    pub(crate) layers: u32,
    /// A head apart from the embedding.
    pub(crate) has_head: bool,
    /// Ends of the names of what is never quantized in MLX's form.
    pub(crate) plain: &'static [&'static str],
}

impl ModelShape {
    /// Modules that stay as they are: where what chooses experts is no layer of its own in MLX-LM's
    /// code, and the matrix of latent attention that is taken apart by heads, of numbers.
    pub(crate) fn plain_in_mlx(architecture: &str) -> &'static [&'static str] {
        match architecture {
            "deepseek2" => &["mlp.gate", "self_attn.kv_b_proj"],
            "glm4moe" => &["mlp.gate"],
            _ => &[],
        }
    }

    fn is_plain(&self, path: &str) -> bool {
        self.plain.iter().any(|end| path.ends_with(end))
    }
}

pub(crate) struct Tensor<'a> {
    pub(crate) name: &'a str,
    pub(crate) dims: usize,
    pub(crate) cols: u64,
}

impl Tensor<'_> {
    fn is_matrix(&self) -> bool {
        self.dims >= 2
    }
}

/// The first and the last eighth of the layers, and every third between.
fn gets_more(layer: u32, layers: u32) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// The first whole number between stops.
fn layer_of(name: &str) -> Option<u32> {
    name.split('.').find_map(|word| word.parse().ok())
}

/// The first exception that says something of this name.
pub(crate) fn exception<T: Copy>(exceptions: &[Exception<T>], name: &str) -> Option<T> {
    exceptions.iter().find(|e| matches(&e.pattern, name)).map(|e| e.becomes)
}

/// Does the whole name match, where `*` stands for any text?
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, behind)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    if !behind.contains('*') {
        return rest.ends_with(behind);
    }
    rest.char_indices().map(|(at, _)| at).chain([rest.len()]).any(|at| matches(behind, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        let cases = [
            ("*", "anything", true),
            ("output.weight", "output.weight", true),
            ("output", "output.weight", false),
            ("blk.*.attn_v.*", "blk.12.attn_v.weight", true),
            ("blk.*.attn_v.*", "blk.12.attn_q.weight", false),
            ("*down*", "blk.0.ffn_down.weight", true),
            ("a*b*c", "abbc", true),
            ("a*b*c", "abb", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn mixes_are_those_of_their_names() {
        let model = ModelShape { layers: 32, has_head: true, plain: &[] };
        let recipe = GgufRecipe::named("q4_k_m").unwrap_or(GGUF_RECIPES[0]);
        let target = |name: &str, cols| recipe.target(&model, &Tensor { name, dims: 2, cols });
        assert_eq!(target("blk.0.attn_v.weight", 4096), Some(QuantFormat::Q6K));
        assert_eq!(target("blk.4.attn_v.weight", 4096), Some(QuantFormat::Q4K));
        assert_eq!(target("blk.6.ffn_down.weight", 4096), Some(QuantFormat::Q6K));
        assert_eq!(target("blk.31.ffn_down.weight", 4096), Some(QuantFormat::Q6K));
        assert_eq!(target("blk.0.attn_q.weight", 4096), Some(QuantFormat::Q4K));
        assert_eq!(target("blk.0.attn_q.weight", 576), Some(QuantFormat::Q5_0));
        assert_eq!(target("blk.0.attn_q.weight", 40), Some(QuantFormat::F16));
        assert_eq!(target("output.weight", 4096), Some(QuantFormat::Q6K));
        assert_eq!(target("token_embd.weight", 4096), Some(QuantFormat::Q4K));
        assert_eq!(target("blk.0.ffn_gate_inp.weight", 4096), None);
        let tied = ModelShape { layers: 32, has_head: false, plain: &[] };
        let embedding = Tensor { name: "token_embd.weight", dims: 2, cols: 576 };
        assert_eq!(recipe.target(&tied, &embedding), Some(QuantFormat::Q8_0));
        let mixed = MlxRecipe { bits: 3, better_bits: 6, group: 64 };
        let bits = |name: &str, cols| mixed.bits(&model, &Tensor { name, dims: 2, cols });
        assert_eq!(bits("model.layers.0.self_attn.v_proj.weight", 512), Some(6));
        assert_eq!(bits("model.layers.4.self_attn.v_proj.weight", 512), Some(3));
        assert_eq!(bits("model.layers.0.self_attn.q_proj.weight", 512), Some(3));
        assert_eq!(bits("model.layers.0.self_attn.q_proj.weight", 96), None);
        assert_eq!(bits("lm_head.weight", 512), Some(6));
        let gate = "model.layers.3.mlp.gate.weight";
        assert_eq!(bits(gate, 512), Some(8));
        let plain = ModelShape::plain_in_mlx("deepseek2");
        let kept = ModelShape { layers: 32, has_head: true, plain };
        assert_eq!(mixed.bits(&kept, &Tensor { name: gate, dims: 2, cols: 512 }), None);
    }
}
