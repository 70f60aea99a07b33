//! What is in an adapter's folder? Two small matrices for each tensor that it adapts, of PEFT or of
//! MLX, told in the names of GGUF.
//!
//! PEFT: `adapter_config.json` and `adapter_model.safetensors`, `lora_A: [rank, input]` and
//! `lora_B: [output, rank]`. MLX: `adapters.safetensors`, the same two transposed, and a scale of
//! its own. What a configuration asks for beyond that is refused by its key.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::config::Config;
use super::names::{self, Meaning};
use super::settings::Architecture;
use super::shards::{self, Shard};
use super::{TEXT_BYTES_MAX, texts};
use crate::WeightsError;
use crate::error::Quoted;
use crate::safetensors::RawTensor;

/// Adapters are at most some hundred; a larger one would be a model.
const RANK_MAX: u64 = 4096;

/// An adapter, read and checked as far as it can be without its model.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// By the name of the tensor that each adapts.
    pub parts: BTreeMap<String, AdapterPart>,
}

/// What is added to one product: `scale * up (down x)`.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterPart {
    /// `[rank, input]`
    pub down: AdapterMatrix,
    /// `[output, rank]`
    pub up: AdapterMatrix,
    pub scale: f32,
}

/// Rows of floats.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterMatrix {
    pub rows: u32,
    pub cols: u32,
    pub values: Vec<f32>,
}

/// Who wrote the files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    Peft,
    Mlx,
}

/// Keys of PEFT that must be as given where they are there.
fn neutral() -> [(&'static str, Json); 12] {
    [
        ("peft_type", json!("LORA")),
        ("bias", json!("none")),
        ("lora_bias", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("use_dora", json!(false)),
        ("modules_to_save", json!([])),
        ("trainable_token_indices", json!([])),
        ("target_parameters", json!([])),
        ("alora_invocation_tokens", json!([])),
        ("layer_replication", json!([])),
        ("use_qalora", json!(false)),
        ("use_bdlora", json!(false)),
    ]
}

impl Adapter {
    /// Reads the folder of an adapter, or the folder that one of its files is in.
    ///
    /// # Errors
    /// [`WeightsError`] naming the file, and the key or tensor that is not as it must be.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let folder = if path.is_file() { path.parent().unwrap_or(path) } else { path };
        let of = |name: &str| folder.join(name);
        let (maker, weights) = match (of("adapter_model.safetensors"), of("adapters.safetensors")) {
            (peft, _) if peft.is_file() => (Maker::Peft, peft),
            (_, mlx) if mlx.is_file() => (Maker::Mlx, mlx),
            _ => {
                let problem = if folder.is_dir() {
                    "it is no adapter: it has neither adapter_model.safetensors (PEFT) nor \
                     adapters.safetensors (MLX)"
                } else {
                    "there is no such folder: give the path of an adapter's folder"
                };
                let path = folder.to_owned();
                return Err(WeightsError::Folder { path, problem: problem.to_owned() });
            }
        };
        let path = of("adapter_config.json");
        let wrong = |problem| WeightsError::Folder { path: path.clone(), problem };
        let json: Json = serde_json::from_slice(&texts::read(&path, TEXT_BYTES_MAX)?)
            .map_err(|error| wrong(format!("it is no JSON: {error}")))?;
        let object = json.as_object().ok_or_else(|| wrong("it is no object".to_owned()))?;
        let scales = Scales::read(maker, &Config::new(object)).map_err(wrong)?;
        let shard = shards::open_one(weights.clone())?;
        Self::of_shard(maker, &scales, &shard)
            .map_err(|problem| WeightsError::Folder { path: weights, problem })
    }

    fn of_shard(maker: Maker, scales: &Scales, shard: &Shard) -> Result<Self, String> {
        let mut found: BTreeMap<&str, [Option<&RawTensor>; 2]> = BTreeMap::new();
        for tensor in &shard.tensors {
            let (module, side) = side(maker, &tensor.name).ok_or_else(|| {
                format!("tensor {} is no part of LoRA as it is read here", Quoted(&tensor.name))
            })?;
            found.entry(module).or_default()[side] = Some(tensor);
        }
        let mut parts = BTreeMap::new();
        for (module, sides) in found {
            let [Some(down), Some(up)] = sides else {
                return Err(format!("{} has one matrix of its two", Quoted(module)));
            };
            let [down, up] = [down, up].map(|tensor| matrix(shard, maker, tensor));
            let (down, up) = (down?, up?);
            if down.rows != up.cols {
                let (one, other) = (down.rows, up.cols);
                return Err(format!("{} is of rank {one} and of rank {other}", Quoted(module)));
            }
            let scale = scales.of(module, down.rows)?;
            let name = name(module)?;
            parts.insert(name, AdapterPart { down, up, scale });
        }
        if parts.is_empty() {
            return Err("it adapts nothing".to_owned());
        }
        Ok(Self { parts })
    }
}

/// Which module a tensor is of, and which of its matrices: 0 down, 1 up.
fn side(maker: Maker, name: &str) -> Option<(&str, usize)> {
    let sides: [&[&str]; 2] = match maker {
        Maker::Peft => [
            &[".lora_A.weight", ".lora_A.default.weight"],
            &[".lora_B.weight", ".lora_B.default.weight"],
        ],
        Maker::Mlx => [&[".lora_a"], &[".lora_b"]],
    };
    let module = |endings: &[&str]| endings.iter().find_map(|ending| name.strip_suffix(ending));
    sides.into_iter().enumerate().find_map(|(side, endings)| Some((module(endings)?, side)))
}

/// The tensor that a module's product is of.
fn name(module: &str) -> Result<String, String> {
    let inner = module.strip_prefix("base_model.model.").unwrap_or(module);
    // Names of matrices are the same in all architectures.
    match names::meaning(Architecture::Llama, &format!("{inner}.weight")) {
        Meaning::Whole(name) if name.starts_with("blk.") && !name.contains("norm") => Ok(name),
        _ => Err(format!(
            "it adapts {}; supported are the matrices of attention and of dense feed-forwards",
            Quoted(module)
        )),
    }
}

fn matrix(shard: &Shard, maker: Maker, tensor: &RawTensor) -> Result<AdapterMatrix, String> {
    let wrong = |problem: &str| format!("tensor {} {problem}", Quoted(&tensor.name));
    let [rows, cols] = *tensor.shape.as_slice() else { return Err(wrong("is no matrix")) };
    if rows == 0 || cols == 0 || rows.min(cols) > RANK_MAX {
        return Err(wrong(&format!("is {rows} x {cols}, its rank must be from 1 to {RANK_MAX}")));
    }
    let format = tensor.dtype.format().ok_or_else(|| {
        wrong(&format!("is stored as {}; supported: F32, F16, BF16", tensor.dtype.name()))
    })?;
    let size = |count: u64| usize::try_from(count).map_err(|_| wrong("is too large"));
    let (height, width) = (size(rows)?, size(cols)?);
    let mut values = vec![0.0; height * width];
    format.decode_row(&shard.file.bytes()[tensor.range.clone()], &mut values);
    if !values.iter().all(|value| value.is_finite()) {
        return Err(wrong("has values that are not numbers"));
    }
    let count = |count: u64| u32::try_from(count).map_err(|_| wrong("is too large"));
    let (rows, cols) = (count(rows)?, count(cols)?);
    if maker == Maker::Peft {
        return Ok(AdapterMatrix { rows, cols, values });
    }
    let turned = (0..width).flat_map(|col| (0..height).map(move |row| row * width + col));
    let values = turned.map(|place| values[place]).collect();
    Ok(AdapterMatrix { rows: cols, cols: rows, values })
}

/// What multiplies the product of each module.
enum Scales {
    Peft {
        alpha: f32,
        /// Of modules with these endings.
        alphas: Vec<(String, f32)>,
        by_root: bool,
    },
    Mlx(f32),
}

impl Scales {
    fn read(maker: Maker, config: &Config<'_>) -> Result<Self, String> {
        if maker == Maker::Mlx {
            config.refuse_unless("fine_tune_type", &json!("lora"))?;
            let inner = config.object("lora_parameters")?;
            let inner = config.required("lora_parameters", inner)?;
            return Ok(Self::Mlx(inner.required("scale", inner.float("scale")?)?));
        }
        for (key, known) in neutral() {
            config.refuse_unless(key, &known)?;
        }
        // Methods that change the model's own weights, too.
        let start = config.get("init_lora_weights").and_then(Json::as_str).unwrap_or("");
        if ["pissa", "olora", "corda", "loftq"].iter().any(|method| start.starts_with(method)) {
            let start = Quoted(start);
            return Err(format!("init_lora_weights is \"{start}\": save it converted to LoRA"));
        }
        let alpha = config.required("lora_alpha", config.float("lora_alpha")?)?;
        let by_root = config.flag("use_rslora")?.unwrap_or(false);
        let mut alphas = Vec::new();
        if let Some(Json::Object(patterns)) = config.get("alpha_pattern") {
            for (pattern, value) in patterns {
                let value = value.as_f64().ok_or("alpha_pattern has a value that is no number")?;
                // An expression in general; published ones are endings of names.
                if pattern.contains(|c: char| "^$*+?()[]{}|\\".contains(c)) {
                    let pattern = Quoted(pattern);
                    return Err(format!("alpha_pattern {pattern} is no plain ending of a name"));
                }
                alphas.push((pattern.clone(), value as f32));
            }
        }
        Ok(Self::Peft { alpha, alphas, by_root })
    }

    fn of(&self, module: &str, rank: u32) -> Result<f32, String> {
        let scale = match self {
            Self::Mlx(scale) => *scale,
            Self::Peft { alpha, alphas, by_root } => {
                let ends = |ending: &str| {
                    let before = module.strip_suffix(ending);
                    before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
                };
                let own = alphas.iter().find(|(ending, _)| ends(ending));
                let alpha = own.map_or(*alpha, |(_, alpha)| *alpha);
                let rank = rank as f32;
                alpha / if *by_root { rank.sqrt() } else { rank }
            }
        };
        if scale.is_finite() { Ok(scale) } else { Err("its scale is not a number".to_owned()) }
    }
}
