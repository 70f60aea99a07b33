//! How is a folder of MLX's form made from another folder, or of a GGUF file? Weights in shards of
//! safetensors, the settings with what was done, and all other files as they are, or as a GGUF file
//! has them in its keys.
//!
//! Source: `save_model` and `save_config` in `mlx_lm/utils.py`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use ops::quant_format::{MlxAffine, QuantFormat};
use serde_json::{Map, Value as Json, json};
use weights::{Holds, WeightFile};

use crate::affine::scales_of;
use crate::encoding::{Loss, NotFinite, Stored};
use crate::gguf_source::{GgufSource, Renamed};
use crate::head_order::Order;
use crate::joined::Joined;
use crate::partial::Partial;
use crate::plan::{Exception, MlxRecipe, ModelShape, Tensor, exception};
use crate::{Made, Progress, QuantizeError, Report, check_exceptions};

const NOT_OF_MLX: &str = "MLX does not have: it has 1 to 6 and 8 bits, in groups of 32, 64 and 128";

/// What the caller wants.
#[derive(Clone, Debug)]
pub struct MlxChoices {
    pub recipe: MlxRecipe,
    pub exceptions: Vec<Exception<MlxException>>,
    pub threads: usize,
}

/// What an exception makes of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlxException {
    Bits(u8),
    /// As it is.
    Plain,
}

/// As MLX-LM cuts files.
const SHARD_BYTES_MAX: u64 = 5 << 30;
const SETTINGS_BYTES_MAX: u64 = 16 << 20;
const INDEX: &str = "model.safetensors.index.json";
/// Files beside the weights that a model needs, by the ends of their names.
const COPIED: [&str; 7] = [".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", "LICENSE"];

struct Planned {
    name: String,
    /// In the source.
    own_name: String,
    /// Where its rows or columns are put.
    order: Option<Order>,
    holds: Holds,
    /// The numbers of two of the source's, instead.
    joined: Option<Joined>,
    /// Fastest first.
    dims: Vec<u64>,
    from: QuantFormat,
    to: Target,
}

#[derive(Clone, Copy)]
enum Target {
    Affine(MlxAffine),
    Plain(QuantFormat),
}

/// A tensor of the new files.
struct Part {
    name: String,
    dtype: &'static str,
    /// Slowest first.
    shape: Vec<u64>,
    bytes: u64,
}

/// # Errors
/// [`QuantizeError`] when the source cannot be read, a tensor cannot become what it should, or the
/// disk fails; then there is nothing at `place`.
pub fn to_mlx(
    source: &Path,
    place: &Path,
    choices: &MlxChoices,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, QuantizeError> {
    let source = Source::open(source)?;
    let planned = plan(&source, choices)?;
    let settings = new_settings(source.settings()?, choices, &planned);
    let partial = Partial::beside(place, false)?;
    std::fs::create_dir(&partial.path).map_err(cannot_write(place))?;
    source.write_beside(&partial.path)?;
    write_json(&partial.path.join("config.json"), &settings)?;
    let report = write_shards(&source.file, &partial.path, &planned, choices.threads, progress)?;
    source.file.check_lengths()?;
    partial.finish()?;
    Ok(report)
}

/// What a folder is made of.
struct Source {
    file: WeightFile,
    /// `None`: it is a folder.
    gguf: Option<GgufSource>,
}

impl Source {
    fn open(path: &Path) -> Result<Self, QuantizeError> {
        let file = weights::open(path)?;
        let Some(folder) = file.folder().map(Path::to_owned) else {
            let gguf = Some(GgufSource::read(&file)?);
            return Ok(Self { file, gguf });
        };
        drop(file);
        Ok(Self { file: weights::open_under_own_names(&folder)?, gguf: None })
    }

    fn settings(&self) -> Result<Map<String, Json>, QuantizeError> {
        if let Some(gguf) = &self.gguf {
            return Ok(gguf.settings.clone());
        }
        let text = self.file.beside("config.json", SETTINGS_BYTES_MAX)?.unwrap_or_default();
        serde_json::from_slice(&text).map_err(|error| QuantizeError::Settings {
            path: self.file.path().join("config.json"),
            problem: format!("it is no object: {error}"),
        })
    }

    fn write_beside(&self, place: &Path) -> Result<(), QuantizeError> {
        let Some(gguf) = &self.gguf else {
            copy_files(self.file.path(), place)?;
            return copy_stages(self.file.path(), place);
        };
        gguf.beside.iter().try_for_each(|(name, text)| {
            let path = place.join(name);
            let folder = path.parent().unwrap_or(place);
            std::fs::create_dir_all(folder).map_err(cannot_write(folder))?;
            write_json(&path, text)
        })
    }
}

fn cannot_write(path: &Path) -> impl FnOnce(std::io::Error) -> QuantizeError + use<> {
    let path = path.to_owned();
    move |reason| QuantizeError::Write { path, reason }
}

fn write_json(path: &Path, json: &Json) -> Result<(), QuantizeError> {
    std::fs::write(path, format!("{json:#}\n")).map_err(cannot_write(path))
}

fn plan(source: &Source, choices: &MlxChoices) -> Result<Vec<Planned>, QuantizeError> {
    let file = &source.file;
    let architecture = file.metadata().optional::<&str>("general.architecture")?.unwrap_or("");
    let layers = file.metadata().optional::<u32>(&format!("{architecture}.block_count"))?;
    let plain = ModelShape::plain_in_mlx(architecture);
    let model = ModelShape { layers: layers.unwrap_or(0), has_head: true, plain };
    let named = named_tensors(source)?;
    let names: Vec<&str> = named.iter().map(|one| one.renamed.name.as_str()).collect();
    check_exceptions(&choices.exceptions, &names)?;
    let one = |Named { info, renamed, joined }: Named<'_>| {
        let Renamed { name, order, holds } = renamed;
        let dims = joined.as_ref().map_or(info.dims(), |joined| &joined.dims);
        let (name, dims, from) = (name.as_str(), dims.to_vec(), info.format()?);
        let tensor = Tensor { name, dims: dims.len(), cols: dims[0] };
        let wanted = choices.recipe.bits(&model, &tensor);
        let bits = match (exception(&choices.exceptions, name), wanted) {
            (Some(MlxException::Bits(bits)), Some(_)) => Some(bits),
            (Some(MlxException::Bits(bits)), None) => {
                let to = format!("{bits} bits in groups of {}", choices.recipe.group);
                let problem = "its shape or kind does not allow".to_owned();
                return Err(QuantizeError::Impossible { name: name.to_owned(), to, problem });
            }
            (Some(MlxException::Plain), _) => None,
            (None, wanted) => wanted,
        };
        let to = match bits {
            Some(bits) => {
                let affine = MlxAffine::new(bits, choices.recipe.group, scales_of(from));
                Target::Affine(affine.ok_or_else(|| QuantizeError::Impossible {
                    name: name.to_owned(),
                    to: format!("{bits} bits in groups of {}", choices.recipe.group),
                    problem: NOT_OF_MLX.to_owned(),
                })?)
            }
            // Files of GGUF widen vectors to F32; MLX-LM keeps as wide what hangs on each bit.
            None if source.gguf.is_some() && dims.len() == 1 && !is_wide(name) => {
                Target::Plain(QuantFormat::F16)
            }
            None => Target::Plain(scales_of(from).format()),
        };
        Ok(Planned {
            name: name.to_owned(),
            own_name: info.name().to_owned(),
            order,
            holds,
            joined,
            dims: match holds {
                Holds::InRows => [&[1], &*dims].concat(),
                Holds::Same | Holds::LessOne | Holds::LogOfMinus | Holds::Part(_) => dims,
            },
            from,
            to,
        })
    };
    named.into_iter().map(one).collect()
}

/// A tensor, or a matrix of two, with its name.
struct Named<'a> {
    info: &'a weights::TensorInfo,
    renamed: Renamed,
    joined: Option<Joined>,
}

fn named_tensors(source: &Source) -> Result<Vec<Named<'_>>, QuantizeError> {
    let mut named = Vec::new();
    // First parts of matrices, until the second comes.
    let mut parts: BTreeMap<String, (&weights::TensorInfo, Holds)> = BTreeMap::new();
    for info in source.file.tensors() {
        let Some(gguf) = &source.gguf else {
            let name = info.name().to_owned();
            let renamed = Renamed { name, order: None, holds: Holds::Same };
            named.push(Named { info, renamed, joined: None });
            continue;
        };
        let Some(renamed) = gguf.rename(info)? else { continue };
        let Renamed { name, holds, .. } = &renamed;
        let joined = match (holds, parts.remove(name)) {
            (Holds::Part(_), None) => {
                parts.insert(name.clone(), (info, *holds));
                continue;
            }
            (Holds::Part(_), Some(first)) => Some(gguf.join(name, [first, (info, *holds)])?),
            _ => None,
        };
        named.push(Named { info, renamed, joined });
    }
    match parts.into_iter().next() {
        None => Ok(named),
        Some((whole, (info, _))) => Err(QuantizeError::Impossible {
            name: info.name().to_owned(),
            to: format!("a part of {whole}"),
            problem: "has another part, which the file lacks".to_owned(),
        }),
    }
}

/// How fast heads forget, and by how much experts are preferred.
fn is_wide(name: &str) -> bool {
    name.ends_with(".A_log") || name.ends_with(".e_score_correction_bias")
}

fn new_settings(
    mut settings: Map<String, Json>,
    choices: &MlxChoices,
    planned: &[Planned],
) -> Json {
    let MlxRecipe { bits, group, .. } = choices.recipe;
    let mut said = Map::new();
    said.insert("group_size".to_owned(), json!(group));
    said.insert("bits".to_owned(), json!(bits));
    said.insert("mode".to_owned(), json!("affine"));
    for Planned { name, to, dims, .. } in planned {
        let path = name.strip_suffix(".weight").unwrap_or(name);
        match to {
            Target::Affine(affine) if affine.bits() != bits => {
                let own = json!({"group_size": group, "bits": affine.bits(), "mode": "affine"});
                said.insert(path.to_owned(), own);
            }
            // A module that could be quantized and is not.
            Target::Plain(_) if dims.len() >= 2 => {
                said.insert(path.to_owned(), json!(false));
            }
            Target::Affine(_) | Target::Plain(_) => {}
        }
    }
    tell_positions(&mut settings);
    if let Some(text) = settings.get_mut("text_config").and_then(Json::as_object_mut) {
        tell_positions(text);
    }
    settings.remove("compression_config");
    settings.insert("quantization".to_owned(), Json::Object(said.clone()));
    settings.insert("quantization_config".to_owned(), Json::Object(said));
    Json::Object(settings)
}

/// Newer configurations of transformers tell positions in an object of their own, or in one for
/// each kind of layer, where MLX-LM does not look in all families.
fn tell_positions(settings: &mut Map<String, Json>) {
    let Some(told) = settings.get("rope_parameters").and_then(Json::as_object).cloned() else {
        return;
    };
    let kind = |kind: &str| told.get(kind).and_then(Json::as_object);
    let whole = kind("full_attention").unwrap_or(&told);
    if let Some(base) = kind("sliding_attention").and_then(|local| local.get("rope_theta")) {
        settings.entry("rope_local_base_freq").or_insert_with(|| base.clone());
    }
    let Some(base) = whole.get("rope_theta") else { return };
    settings.entry("rope_theta").or_insert_with(|| base.clone());
    // Gemma 4's is read where it is.
    let scaling = whole.get("rope_type").and_then(Json::as_str).unwrap_or("default");
    if !["default", "proportional"].contains(&scaling) {
        settings.entry("rope_scaling").or_insert_with(|| Json::Object(whole.clone()));
    }
}

fn copy_files(from: &Path, to: &Path) -> Result<(), QuantizeError> {
    for entry in std::fs::read_dir(from).map_err(cannot_write(from))? {
        let entry = entry.map_err(cannot_write(from))?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_ours = name == "config.json" || name.ends_with(".index.json");
        if is_ours || name.starts_with('.') || !COPIED.iter().any(|end| name.ends_with(end)) {
            continue;
        }
        if entry.path().is_file() {
            let path = to.join(name);
            std::fs::copy(entry.path(), &path).map_err(cannot_write(&path))?;
        }
    }
    Ok(())
}

/// What a text passes behind the model, where that gives vectors: stages of sentence-transformers,
/// as `1_Pooling`.
fn copy_stages(from: &Path, to: &Path) -> Result<(), QuantizeError> {
    for entry in std::fs::read_dir(from).map_err(cannot_write(from))? {
        let entry = entry.map_err(cannot_write(from))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split_once('_')).map(|(number, _)| number);
        let is_stage = number.is_some_and(|number| number.parse::<u32>().is_ok());
        let settings = entry.path().join("config.json");
        if is_stage && settings.is_file() {
            let folder = to.join(&name);
            std::fs::create_dir(&folder).map_err(cannot_write(&folder))?;
            let path = folder.join("config.json");
            std::fs::copy(settings, &path).map_err(cannot_write(&path))?;
        }
    }
    Ok(())
}

impl Planned {
    /// The tensors that it is written as, in order.
    fn parts(&self) -> Vec<Part> {
        let shape = |cols: u64| -> Vec<u64> {
            self.dims[1..].iter().rev().copied().chain([cols]).collect()
        };
        let rows: u64 = self.dims[1..].iter().product();
        match self.to {
            Target::Plain(format) => {
                let bytes = rows * self.dims[0] * format.block_bytes() as u64;
                let (name, dtype) = (self.name.clone(), dtype(format));
                vec![Part { name, dtype, shape: shape(self.dims[0]), bytes }]
            }
            Target::Affine(affine) => {
                let path = self.name.strip_suffix(".weight").unwrap_or(&self.name);
                let groups = self.dims[0] / affine.group() as u64;
                let words = self.dims[0] * u64::from(affine.bits()) / 32;
                let float = affine.float().format();
                let beside = |end: &str| Part {
                    name: format!("{path}.{end}"),
                    dtype: dtype(float),
                    shape: shape(groups),
                    bytes: rows * groups * float.block_bytes() as u64,
                };
                let (name, bytes) = (self.name.clone(), 4 * rows * words);
                let weight = Part { name, dtype: "U32", shape: shape(words), bytes };
                vec![weight, beside("scales"), beside("biases")]
            }
        }
    }

    /// The tensor's bytes as a folder holds them, and their format.
    fn read(&self, file: &WeightFile, read: &mut Vec<u8>) -> Result<QuantFormat, QuantizeError> {
        if let Some(joined) = &self.joined {
            joined.read_into(file, read)?;
            return Ok(QuantFormat::F32);
        }
        file.read_into(&self.own_name, read)?;
        self.put_back(read)
    }

    /// Rows and columns of heads, where they were published, and numbers as they were; the format
    /// that they have then.
    fn put_back(&self, read: &mut Vec<u8>) -> Result<QuantFormat, QuantizeError> {
        let published: fn(f32) -> f32 = match self.holds {
            Holds::Same | Holds::InRows | Holds::Part(_) => |value| value,
            Holds::LessOne => |value| value - 1.0,
            Holds::LogOfMinus => |value| (-value).ln(),
        };
        match self.holds {
            Holds::Same | Holds::InRows | Holds::Part(_) => {}
            Holds::LessOne | Holds::LogOfMinus if self.from == QuantFormat::F32 => {
                for bytes in read.as_chunks_mut::<4>().0 {
                    *bytes = published(f32::from_le_bytes(*bytes)).to_le_bytes();
                }
            }
            Holds::LessOne | Holds::LogOfMinus => {
                return Err(QuantizeError::Impossible {
                    name: self.own_name.clone(),
                    to: "what a folder holds of it".to_owned(),
                    problem: format!("is made of F32 only, not of {}", self.from.name()),
                });
            }
        }
        let Some(order) = &self.order else { return Ok(self.from) };
        // Rows of a tensor in memory fit.
        let cols = self.dims[0] as usize;
        let (moved, format) = order.apply(&Stored { format: self.from, cols, bytes: read });
        *read = moved;
        Ok(format)
    }

    fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes).sum()
    }
}

fn dtype(format: QuantFormat) -> &'static str {
    match format {
        QuantFormat::F32 => "F32",
        QuantFormat::F16 => "F16",
        _ => "BF16",
    }
}

fn write_shards(
    file: &WeightFile,
    folder: &Path,
    planned: &[Planned],
    threads: usize,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, QuantizeError> {
    let shards = cut(planned);
    let total_bytes = file.tensors().filter_map(weights::TensorInfo::bytes).sum();
    let mut report = Report { source_bytes: file.file_bytes(), ..Report::default() };
    let (mut done_bytes, mut read, mut places) = (0, Vec::new(), Map::new());
    for (number, shard) in (1..).zip(&shards) {
        let name = shard_name(number, shards.len());
        let path = folder.join(&name);
        let io = |reason| QuantizeError::Write { path: path.clone(), reason };
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(io)?);
        out.write_all(&head(shard)).map_err(io)?;
        for one in *shard {
            progress(Progress { tensor: &one.name, done_bytes, total_bytes });
            let format = one.read(file, &mut read)?;
            let (loss, to) =
                write_one(one, (format, &read), threads, &mut out).map_err(|e| e.at(one, &path))?;
            done_bytes += read.len() as u64;
            for part in one.parts() {
                places.insert(part.name, json!(name));
            }
            report.tensors.push(Made {
                name: one.name.clone(),
                from: one.from.name(),
                to,
                weights: one.dims.iter().product(),
                bytes: one.bytes(),
                loss,
            });
        }
        let written = out.into_inner().map_err(|error| io(error.into_error()))?;
        written.sync_all().map_err(io)?;
        report.bytes += written.metadata().map_err(io)?.len();
    }
    write_index(folder, &report, places)?;
    progress(Progress { tensor: "", done_bytes, total_bytes });
    Ok(report)
}

enum Failed {
    NotFinite,
    Write(std::io::Error),
}

impl Failed {
    fn at(self, one: &Planned, path: &Path) -> QuantizeError {
        let to = match one.to {
            Target::Affine(affine) => QuantFormat::MlxAffine(affine).name(),
            Target::Plain(format) => format.name(),
        };
        match self {
            Failed::NotFinite => QuantizeError::NotFinite { name: one.name.clone(), to },
            Failed::Write(reason) => QuantizeError::Write { path: PathBuf::from(path), reason },
        }
    }
}

fn write_one(
    one: &Planned,
    (from, read): (QuantFormat, &[u8]),
    threads: usize,
    out: &mut impl Write,
) -> Result<(Loss, &'static str), Failed> {
    // Rows of a tensor in memory fit.
    let stored = Stored { format: from, cols: one.dims[0] as usize, bytes: read };
    let not_finite = |NotFinite| Failed::NotFinite;
    match one.to {
        Target::Plain(format) if format == from => {
            out.write_all(read).map_err(Failed::Write)?;
            Ok((Loss::default(), format.name()))
        }
        Target::Plain(format) => {
            let (bytes, loss) = stored.encode(format, threads).map_err(not_finite)?;
            out.write_all(&bytes).map_err(Failed::Write)?;
            Ok((loss, format.name()))
        }
        Target::Affine(affine) => {
            let (rows, loss) = stored.encode_affine(affine, threads).map_err(not_finite)?;
            for part in [&rows.codes, &rows.scales, &rows.biases] {
                out.write_all(part).map_err(Failed::Write)?;
            }
            Ok((loss, QuantFormat::MlxAffine(affine).name()))
        }
    }
}

/// Tensors in files of a size that is usual.
fn cut(planned: &[Planned]) -> Vec<&[Planned]> {
    let (mut shards, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (index, one) in planned.iter().enumerate() {
        if index > start && bytes + one.bytes() > SHARD_BYTES_MAX {
            shards.push(&planned[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += one.bytes();
    }
    shards.push(&planned[start..]);
    shards
}

fn shard_name(number: usize, count: usize) -> String {
    if count == 1 {
        return "model.safetensors".to_owned();
    }
    format!("model-{number:05}-of-{count:05}.safetensors")
}

/// A file's length of header and header, padded so that the data is aligned.
fn head(shard: &[Planned]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "mlx"}));
    let mut start = 0;
    for Part { name, dtype, shape, bytes } in shard.iter().flat_map(Planned::parts) {
        let offsets = [start, start + bytes];
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        start += bytes;
    }
    let mut text = Json::Object(header).to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text.as_bytes());
    head
}

fn write_index(
    folder: &Path,
    report: &Report,
    places: Map<String, Json>,
) -> Result<(), QuantizeError> {
    let bytes: u64 = report.tensors.iter().map(|tensor| tensor.bytes).sum();
    let weights: u64 = report.tensors.iter().map(|tensor| tensor.weights).sum();
    let index = json!({
        "metadata": {"total_size": bytes, "total_parameters": weights},
        "weight_map": places,
    });
    write_json(&folder.join(INDEX), &index)
}
