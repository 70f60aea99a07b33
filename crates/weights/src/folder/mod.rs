//! What is in a model's folder? Settings in `config.json`, weights in `.safetensors` files; told in
//! the names and keys of GGUF, so that a family is described once.
//!
//! Nothing is believed: files are read within limits, every tensor was checked against its file
//! (`safetensors.rs`), and what belongs to no known name stays under its own, for which the family
//! refuses the model.
//!
//! Read in this order: this file, `shards.rs` (which files), `names.rs` (names of tensors),
//! `settings.rs`, `rotary.rs` and `defaults.rs` (keys), `quantized.rs`, `mlx.rs` and `published.rs`
//! (quantized weights), `texts.rs` (chat templates), `pooling.rs` (vectors of texts), `adapter.rs`
//! (adapters' folders), `bert.rs` (names and keys of encoders), `own_keys.rs`
//! (errors).

mod adapter;
mod bert;
mod config;
mod defaults;
mod mlx;
mod names;
mod own_keys;
mod pooling;
mod published;
mod quantized;
mod rotary;
mod settings;
mod shards;
mod texts;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ops::quant_format::QuantFormat;
use serde_json::Value as Json;

use crate::error::Quoted;
use crate::file_part::FilePart;
use crate::gguf::TensorInfo;
use crate::made_tensor::{Cut, Decoded, EXPERTS_MAX, MadeTensor, Piece, Recipe};
use crate::metadata::Metadata;
use crate::safetensors::RawTensor;
use crate::{Flaw, WeightsError};
use config::Config;
use defaults::Defaults;
use names::Meaning;
use published::Published;
use quantized::{Claim, Everything, Found, Method, Quantized};
use settings::{Architecture, Settings};
use shards::Shard;

/// More than any settings, and than any template with them.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// The key that tells whether the head is the embedding, or a matrix that must be there.
const HEAD_IS_EMBEDDING: &str = "pelton.head_is_embedding";

/// Under which names tensors are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// Those of GGUF, as families read them.
    Gguf,
    /// Their own, as they are stored; experts in stacks, called as MLX does.
    Own,
}

/// A folder, read and checked.
pub(crate) struct Opened {
    pub(crate) parts: Vec<FilePart>,
    pub(crate) metadata: Metadata,
    pub(crate) made: Vec<MadeTensor>,
    /// What decides the meaning of the files: the text of the settings.
    pub(crate) settings: Vec<u8>,
}

/// The folder of a model that this path means: itself, or where one of its weight files is.
pub(crate) fn of(path: &Path) -> Option<&Path> {
    let is_weights = path.extension().is_some_and(|extension| extension == "safetensors");
    let folder = if is_weights { path.parent()? } else { path };
    folder.join("config.json").is_file().then_some(folder)
}

pub use adapter::{Adapter, AdapterMatrix, AdapterPart};
pub use names::{FolderName, Holds, Part, folder_name};
pub use own_keys::own_key;
pub(crate) use texts::read as read_text;

/// What the folder of these settings calls a tensor, for errors.
pub(crate) fn own_name(settings: &[u8], name: &str) -> Option<String> {
    let json: Json = serde_json::from_slice(settings).ok()?;
    let kind = |json: &Json| json.get("model_type").and_then(Json::as_str).map(str::to_owned);
    let of_text = json.get("text_config").and_then(kind);
    let kinds = of_text.into_iter().chain(kind(&json));
    kinds.filter_map(|kind| folder_name(&kind, name)).map(|found| found.name).next()
}

pub(crate) fn open(path: &Path, naming: Naming) -> Result<Opened, WeightsError> {
    let config_path = path.join("config.json");
    let wrong = |problem| WeightsError::Folder { path: config_path.clone(), problem };
    let text = texts::read(&config_path, TEXT_BYTES_MAX)?;
    let json: Json =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("it is no JSON: {error}")))?;
    let Json::Object(object) = &json else { return Err(wrong("it is no object".to_owned())) };
    let whole = Config::new(object);
    // A model of images and text keeps the settings of its text apart.
    let inner = whole.object("text_config").map_err(&wrong)?;
    let config = inner.unwrap_or(whole);
    let (model_type, architecture, prefix) = Architecture::of(&config)
        .or_else(|error| if inner.is_some() { Architecture::of(&whole) } else { Err(error) })
        .map_err(&wrong)?;
    let told = config.flag("tie_word_embeddings").map_err(&wrong)?;
    let told = told.or(whole.flag("tie_word_embeddings").map_err(&wrong)?);
    let defaults = Defaults::new();
    let config = config.with_defaults(defaults.of(model_type));
    let tied = told.or(config.flag("tie_word_embeddings").map_err(&wrong)?);
    // Experts' biases of GPT-OSS are stored the same way whether its matrices are quantized or not.
    let unquantized =
        (architecture == Architecture::GptOss).then_some(Method::Published(Published::GptOss));
    let quantization = Method::read(&whole).map_err(&wrong)?.or(unquantized);
    let Settings { mut entries, vectors } =
        settings::read(&config, architecture, prefix).map_err(&wrong)?;
    entries.extend(tied.map(|tied| (HEAD_IS_EMBEDDING.into(), tied.into())));
    entries.extend(texts::entries(path)?);
    let kind = match pooling::ranks(&whole) {
        true => Some(pooling::RANK),
        false => pooling::read_kind(path)?,
    };
    if let Some(kind) = kind {
        entries.push((format!("{prefix}.pooling_type").into(), kind.into()));
    }
    entries.extend(pooling::texts(path)?);
    let metadata = Metadata::from_entries(entries)
        .map_err(|key| wrong(format!("it sets {} twice", Quoted(&key))))?;
    let shards = shards::open(path)?;
    let architecture = architecture.as_stored(&config, &shards).map_err(&wrong)?;
    let mut tensors = Tensors::new((architecture, naming), quantization, &shards);
    for (part, shard) in shards.iter().enumerate() {
        shard
            .tensors
            .iter()
            .try_for_each(|tensor| tensors.add(part, tensor, told))
            .map_err(|flaw| WeightsError::Damaged { path: shard.file.path().to_owned(), flaw })?;
    }
    if naming == Naming::Gguf {
        tensors.vectors(vectors);
    }
    let (stored, made) = tensors
        .finish()
        .map_err(|problem| WeightsError::Folder { path: path.to_owned(), problem })?;
    let part =
        |(shard, tensors): (Shard, _)| FilePart::of_folder(shard.file, tensors, shard.data_start);
    let parts = shards.into_iter().zip(stored).map(part).collect();
    Ok(Opened { parts, metadata, made, settings: text })
}

/// Collects the tensors of all files under their names in GGUF.
struct Tensors<'a> {
    architecture: Architecture,
    naming: Naming,
    quantization: Option<Method<'a>>,
    everything: Everything<'a>,
    /// By part.
    stored: Vec<Vec<TensorInfo>>,
    made: Vec<MadeTensor>,
    stacks: BTreeMap<String, BTreeMap<u32, (Recipe, Shape)>>,
}

/// How the columns of two matrices lie in one.
#[derive(Clone, Copy)]
enum Columns {
    ByTurns,
    Together,
}

#[derive(Clone, PartialEq, Eq)]
struct Shape {
    format: QuantFormat,
    /// Fastest first.
    dims: Vec<u64>,
}

impl<'a> Tensors<'a> {
    fn new(
        (architecture, naming): (Architecture, Naming),
        quantization: Option<Method<'a>>,
        shards: &'a [Shard],
    ) -> Self {
        Self {
            architecture,
            naming,
            quantization,
            everything: Everything::of(shards),
            stored: shards.iter().map(|_| Vec::new()).collect(),
            made: Vec::new(),
            stacks: BTreeMap::new(),
        }
    }

    fn add(&mut self, part: usize, tensor: &RawTensor, tied: Option<bool>) -> Result<(), Flaw> {
        let flaw = |problem: String| {
            let problem = format!("tensor {} {problem}", Quoted(&tensor.name));
            Flaw::new(tensor.range.start, problem)
        };
        let found = Found { part, tensor };
        let claim = self.quantization.as_ref().map(|q| q.claim(&self.everything, found));
        match claim.transpose().map_err(flaw)? {
            Some(Claim::Beside) => return Ok(()),
            Some(Claim::Weights(weights)) => {
                for (name, quantized) in weights {
                    if let Some(meaning) = self.meaning(&name, tied) {
                        self.add_quantized(meaning, &name, quantized).map_err(flaw)?;
                    }
                }
                return Ok(());
            }
            Some(Claim::Plain) | None => {}
        }
        let Some(meaning) = self.meaning(&tensor.name, tied) else { return Ok(()) };
        let piece = Piece { part, range: tensor.range.clone() };
        let Some(shape) = Shape::of(tensor) else {
            return Err(flaw(format!(
                "is stored as {}, which is not supported; supported: BF16, F16, F32",
                tensor.dtype.name()
            )));
        };
        let Shape { format, dims } = &shape;
        let info = |name: &str, format| {
            TensorInfo::described(name, format, dims, tensor.range.start as u64).ok_or_else(|| {
                flaw(format!("has shape {:?}, must be 1 to 4 dimensions above 0", tensor.shape))
            })
        };
        match meaning {
            Meaning::Whole(name) => self.stored[part].push(info(&name, *format)?),
            Meaning::Unknown => self.stored[part].push(info(&tensor.name, *format)?),
            Meaning::NormLessOne(name) => {
                let recipe = Recipe::PlusOne { piece, format: *format };
                self.made.push(MadeTensor::new(info(&name, QuantFormat::F32)?, recipe));
            }
            Meaning::LogOfMinus(name) => {
                let recipe = Recipe::MinusExp { piece, format: *format };
                self.made.push(MadeTensor::new(info(&name, QuantFormat::F32)?, recipe));
            }
            Meaning::Squeezed(name) => self.add_squeezed(&name, found, *format).map_err(flaw)?,
            Meaning::Halves(names) => self.add_halves(names, found, *format).map_err(flaw)?,
            Meaning::TurnedByTurns(names) => {
                self.add_turned(&names, Columns::ByTurns, found, *format).map_err(flaw)?;
            }
            Meaning::TurnedHalves(names) => {
                self.add_turned(&names, Columns::Together, found, *format).map_err(flaw)?;
            }
            Meaning::Turned(name) => {
                self.add_turned(&[name], Columns::Together, found, *format).map_err(flaw)?;
            }
            Meaning::KeysAndValues(_) | Meaning::MixedAndGates(_) => {
                let whole =
                    Quantized { format: *format, dims: dims.clone(), recipe: Recipe::Copy(piece) };
                self.add_of_heads(meaning, whole).map_err(flaw)?;
            }
            Meaning::Expert { stack, index } => {
                info(&stack, *format)?;
                self.add_expert(stack, index, (Recipe::Copy(piece), shape)).map_err(flaw)?;
            }
            Meaning::Unused => {}
        }
        Ok(())
    }

    /// `None` for what is not part of the model that is run.
    fn meaning(&self, name: &str, tied: Option<bool>) -> Option<Meaning> {
        let meaning = names::meaning(self.architecture, name);
        // A head that is said to be tied may be there as a copy of the embedding.
        let is_copy = tied == Some(true) && meaning == Meaning::Whole("output.weight".to_owned());
        let is_told = meaning != Meaning::Unused && !is_copy;
        is_told.then(|| match (self.naming, meaning) {
            (Naming::Gguf, meaning) => meaning,
            (Naming::Own, meaning) => names::own_meaning(self.architecture, name, meaning),
        })
    }

    fn add_quantized(
        &mut self,
        meaning: Meaning,
        own_name: &str,
        quantized: Quantized,
    ) -> Result<(), String> {
        let Quantized { format, dims, recipe } = quantized;
        let name = match meaning {
            Meaning::Whole(name) => name,
            Meaning::Unknown => own_name.to_owned(),
            Meaning::Expert { stack, index } => {
                return self.add_expert(stack, index, (recipe, Shape { format, dims }));
            }
            Meaning::KeysAndValues(_) | Meaning::MixedAndGates(_) => {
                return self.add_of_heads(meaning, Quantized { format, dims, recipe });
            }
            Meaning::NormLessOne(_)
            | Meaning::LogOfMinus(_)
            | Meaning::Squeezed(_)
            | Meaning::Halves(_)
            | Meaning::TurnedByTurns(_)
            | Meaning::TurnedHalves(_)
            | Meaning::Turned(_)
            | Meaning::Unused => {
                return Err("is quantized, which is not read of tensors of its kind".to_owned());
            }
        };
        let info = TensorInfo::described(&name, format, &dims, 0);
        let info = info.ok_or_else(|| format!("is quantized and would have shape {dims:?}"))?;
        self.made.push(MadeTensor::new(info, recipe));
        Ok(())
    }

    /// A tensor without its dimensions of 1.
    fn add_squeezed(
        &mut self,
        name: &str,
        found: Found<'_>,
        format: QuantFormat,
    ) -> Result<(), String> {
        let shape = &found.tensor.shape;
        let dims: Vec<u64> = shape.iter().rev().copied().filter(|&dim| dim != 1).collect();
        let info = TensorInfo::described(name, format, &dims, found.tensor.range.start as u64);
        let info = info.ok_or_else(|| format!("has shape {shape:?}, must be a matrix"))?;
        self.stored[found.part].push(info);
        Ok(())
    }

    /// Stacks of experts' matrices, of which each expert has both, one below the other.
    fn add_halves(
        &mut self,
        names: [String; 2],
        found: Found<'_>,
        format: QuantFormat,
    ) -> Result<(), String> {
        let tensor = found.tensor;
        let dims: Vec<u64> = tensor.shape.iter().rev().copied().collect();
        let piece = Piece { part: found.part, range: tensor.range.clone() };
        let halves = MadeTensor::halves(names, &piece, format, &dims).ok_or_else(|| {
            format!("has shape {:?}, must be of two matrices an expert", tensor.shape)
        })?;
        self.made.extend(halves);
        Ok(())
    }

    /// Stacks of experts' matrices that are `[inputs, outputs]`, of one or of two.
    fn add_turned(
        &mut self,
        names: &[String],
        columns: Columns,
        found: Found<'_>,
        format: QuantFormat,
    ) -> Result<(), String> {
        let (shape, whole) = (&found.tensor.shape, &found.tensor.range);
        let wrong = || format!("has shape {shape:?}, must be of a matrix an expert");
        let &[experts, rows, cols] = shape.as_slice() else { return Err(wrong()) };
        let turns = names.len();
        let counted = (1..=u64::from(EXPERTS_MAX)).contains(&experts);
        let one = whole.len().checked_div(experts as usize);
        let one = one.filter(|&bytes| counted && bytes > 0);
        let (Some(bytes), true) = (one, cols.is_multiple_of(turns as u64)) else {
            return Err(wrong());
        };
        let own_cols = cols as usize / turns;
        for (turn, name) in names.iter().enumerate() {
            let part = |expert: usize| {
                let start = whole.start + expert * bytes;
                let piece = Piece { part: found.part, range: start..start + bytes };
                let cut = Cut {
                    whole: Recipe::Copy(piece),
                    element_bytes: format.block_bytes(),
                    count: 1,
                    rows: rows as usize,
                    cols: cols as usize,
                    taken_rows: 0..rows as usize,
                    taken_cols: match columns {
                        Columns::ByTurns => (turn..cols as usize).step_by(turns),
                        Columns::Together => (turn * own_cols..(turn + 1) * own_cols).step_by(1),
                    },
                    is_transposed: true,
                };
                (Recipe::Cut(Box::new(cut)), bytes / turns)
            };
            let recipes = (0..experts as usize).map(part).collect();
            let dims = [rows, own_cols as u64, experts];
            let info = TensorInfo::described(name, format, &dims, 0).ok_or_else(wrong)?;
            self.made.push(MadeTensor::new(info, Recipe::Stack(recipes)));
        }
        Ok(())
    }

    /// Parts of a matrix that has all that makes a head in one place.
    fn add_of_heads(&mut self, meaning: Meaning, whole: Quantized) -> Result<(), String> {
        match meaning {
            Meaning::KeysAndValues(names) => self.add_keys_values(names, whole),
            Meaning::MixedAndGates(names) => self.add_mixed_gates(names, whole),
            _ => unreachable!("invariant: of heads"),
        }
    }

    /// What a gated delta net mixes, kind by kind, and its gates.
    fn add_mixed_gates(&mut self, names: [String; 2], whole: Quantized) -> Result<(), String> {
        let Architecture::Qwen3Next { heads, key, values, .. } = self.architecture else {
            return Err("is of gated delta nets, which this model has not".to_owned());
        };
        let Quantized { format, dims, recipe } = whole;
        let [count, key, values] = [heads, key, values].map(u64::from);
        let rows = key.saturating_add(values).saturating_mul(2);
        let is_whole = dims.get(1..) == Some(&[rows.saturating_mul(count)]) && count > 0;
        let (&[cols, ..], true) = (&*dims, is_whole) else {
            return Err(format!("has shape {dims:?}, must be of {heads} heads of {rows} rows"));
        };
        let row_bytes = format.row_bytes(cols as usize);
        let row_bytes = row_bytes.ok_or_else(|| format!("has rows of {cols} elements"))?;
        let recipe = Arc::new(recipe);
        let taken = |rows_taken: Range<u64>| {
            let taken_rows = rows_taken.start as usize..rows_taken.end as usize;
            let bytes = count as usize * taken_rows.len() * row_bytes;
            let cut = Cut {
                whole: Recipe::Shared(Arc::clone(&recipe)),
                // Rows are taken whole.
                element_bytes: row_bytes,
                count: count as usize,
                rows: rows as usize,
                cols: 1,
                taken_rows,
                taken_cols: (0..1).step_by(1),
                is_transposed: false,
            };
            (Recipe::Cut(Box::new(cut)), bytes)
        };
        let gates = 2 * key + values;
        let mixed = vec![taken(0..key), taken(key..2 * key), taken(2 * key..gates)];
        let parts = [(mixed, gates), (vec![taken(gates..rows)], values)];
        for (name, (recipes, rows)) in names.into_iter().zip(parts) {
            let dims = [cols, rows * count];
            let info = TensorInfo::described(&name, format, &dims, 0);
            let info = info.ok_or_else(|| format!("has parts of shape {dims:?}"))?;
            self.made.push(MadeTensor::new(info, Recipe::Stack(recipes)));
        }
        Ok(())
    }

    /// Parts of the matrix behind a latent: of each head, what makes keys and what makes values.
    fn add_keys_values(&mut self, names: [String; 2], whole: Quantized) -> Result<(), String> {
        let Architecture::DeepSeek { heads, plain, value, .. } = self.architecture else {
            return Err("is of latent attention, which this model has not".to_owned());
        };
        let Quantized { format, dims, recipe } = whole;
        let sizes = [heads, plain, value].map(u64::from);
        let [count, plain, value] = sizes;
        let rows = plain.saturating_add(value);
        let is_whole = dims.get(1..) == Some(&[rows.saturating_mul(count)]) && count > 0;
        let (&[latent, ..], true) = (&*dims, is_whole) else {
            return Err(format!(
                "has shape {dims:?} as {}, must be of {heads} heads of {rows} rows",
                format.name()
            ));
        };
        // Quantized rows cannot be turned over: keys are made of what they mean.
        let is_float = matches!(format, QuantFormat::F32 | QuantFormat::F16 | QuantFormat::Bf16);
        let (format, recipe) = if is_float {
            (format, recipe)
        } else {
            let cols = latent as usize;
            let row_bytes = format.row_bytes(cols).filter(|_| cols > 0);
            let row_bytes = row_bytes.ok_or_else(|| format!("has rows of {cols} elements"))?;
            let decoded = Decoded { whole: recipe, format, cols, row_bytes };
            (QuantFormat::F32, Recipe::Decoded(Box::new(decoded)))
        };
        let recipe = Arc::new(recipe);
        let parts = [(0..plain, true), (plain..rows, false)];
        for (name, (taken, is_transposed)) in names.into_iter().zip(parts) {
            let taken_rows = taken.start as usize..taken.end as usize;
            let cut = Cut {
                whole: Recipe::Shared(Arc::clone(&recipe)),
                element_bytes: format.block_bytes(),
                count: count as usize,
                rows: rows as usize,
                cols: latent as usize,
                taken_cols: (0..latent as usize).step_by(1),
                is_transposed,
                taken_rows,
            };
            let taken = taken.end - taken.start;
            let dims = if is_transposed { [taken, latent, count] } else { [latent, taken, count] };
            let info = TensorInfo::described(&name, format, &dims, 0);
            let info = info.ok_or_else(|| format!("has parts of shape {dims:?}"))?;
            self.made.push(MadeTensor::new(info, Recipe::Cut(Box::new(cut))));
        }
        Ok(())
    }

    fn add_expert(
        &mut self,
        stack: String,
        index: u32,
        expert: (Recipe, Shape),
    ) -> Result<(), String> {
        let experts = self.stacks.entry(stack).or_default();
        if index >= EXPERTS_MAX || experts.insert(index, expert).is_some() {
            return Err("is of an expert that is there already".to_owned());
        }
        Ok(())
    }

    fn vectors(&mut self, vectors: rotary::Vectors) {
        for (name, values) in vectors {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let dims = [values.len() as u64];
            if let Some(info) = TensorInfo::described(name, QuantFormat::F32, &dims, 0) {
                self.made.push(MadeTensor::new(info, Recipe::Bytes(bytes.into())));
            }
        }
    }

    fn finish(mut self) -> Result<(Vec<Vec<TensorInfo>>, Vec<MadeTensor>), String> {
        for (name, experts) in std::mem::take(&mut self.stacks) {
            self.made.push(stack(&name, experts)?);
        }
        Ok((self.stored, self.made))
    }
}

/// One tensor of all experts' matrices, the first below.
fn stack(name: &str, experts: BTreeMap<u32, (Recipe, Shape)>) -> Result<MadeTensor, String> {
    let count = experts.len();
    let mut recipes = Vec::with_capacity(count);
    let mut first: Option<Shape> = None;
    for (place, (index, (recipe, shape))) in (0..).zip(experts) {
        if index != place {
            return Err(format!("{name}: expert {place} is missing: the files are incomplete"));
        }
        if *first.get_or_insert_with(|| shape.clone()) != shape {
            return Err(format!("{name}: expert {index} has another shape or type than the first"));
        }
        let one = TensorInfo::described(name, shape.format, &shape.dims, 0);
        let bytes = one.and_then(|info| info.byte_range()).map(|range| range.len());
        recipes.push((recipe, bytes.ok_or_else(|| format!("{name}: expert {index} is too big"))?));
    }
    let Shape { format, mut dims } = first.expect("invariant: a stack begins with its first");
    dims.push(count as u64);
    let info = TensorInfo::described(name, format, &dims, 0);
    let info = info.ok_or_else(|| format!("{name}: experts of shape {dims:?} are no matrices"))?;
    Ok(MadeTensor::new(info, Recipe::Stack(recipes)))
}

impl Shape {
    /// `None` if it is no tensor of plain floats.
    fn of(tensor: &RawTensor) -> Option<Self> {
        let mut dims: Vec<u64> = tensor.shape.iter().rev().copied().collect();
        if dims.is_empty() {
            dims.push(1);
        }
        Some(Self { format: tensor.dtype.format()?, dims })
    }
}
