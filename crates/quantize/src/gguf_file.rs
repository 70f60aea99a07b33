//! How is a GGUF file made from another, or from a folder? The same keys and names, other types.
//!
//! A folder is told in the names and keys of GGUF already (`weights`); what is left is its
//! vocabulary (`gguf_vocabulary.rs`), small tensors in F32 as llama.cpp wants them, and the rows of
//! queries and keys: where GGUF files have the halves of rotary pairs side by side, they are taken
//! in turn from a head's two halves.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use ops::quant_format::QuantFormat;
use weights::{GgufBuilder, WeightFile};

use crate::blocks::FORMATS;
use crate::encoding::{Loss, NotFinite, Stored};
use crate::gguf_vocabulary;
use crate::partial::Partial;
use crate::plan::{Exception, GgufRecipe, ModelShape, Tensor, exception, fitting};
use crate::{Made, Progress, QuantizeError, Report, check_exceptions};

/// What the caller wants.
#[derive(Clone, Debug)]
pub struct GgufChoices {
    pub recipe: GgufRecipe,
    pub exceptions: Vec<Exception<QuantFormat>>,
    pub threads: usize,
    /// An existing file may be replaced.
    pub replaces: bool,
}

/// Version 2 of quantized GGUF files is all that there is.
const QUANTIZATION_VERSION: u32 = 2;

struct Planned {
    name: String,
    dims: Vec<u64>,
    from: QuantFormat,
    to: QuantFormat,
    bytes: usize,
    /// Heads whose rows are paired in another way.
    paired_heads: Option<u64>,
}

/// Architectures whose GGUF files have rotary pairs side by side.
const SIDE_BY_SIDE: [&str; 2] = ["llama", "smollm3"];

/// # Errors
/// [`QuantizeError`] when the source cannot be read, a tensor cannot become what it should, or the
/// disk fails; then nothing is at `place` that was not there before.
pub fn to_gguf(
    source: &Path,
    place: &Path,
    choices: &GgufChoices,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, QuantizeError> {
    let file = weights::open(source)?;
    let planned = plan(&file, choices)?;
    let mut builder = GgufBuilder::new();
    keys(&file, choices.recipe, &mut builder);
    if file.folder().is_some() {
        let rows = file.shape("token_embd.weight")?.rows;
        for (key, value) in gguf_vocabulary::keys(&file, rows)? {
            builder.key(key, value);
        }
    }
    for Planned { name, dims, to, bytes, .. } in &planned {
        builder.tensor_later(name, *to, dims, *bytes);
    }
    let partial = Partial::beside(place, choices.replaces)?;
    let io = |reason| QuantizeError::Write { path: place.to_owned(), reason };
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&partial.path).map_err(io)?);
    builder.write_head(&mut out)?;
    let mut report = Report { source_bytes: file.file_bytes(), ..Report::default() };
    let total_bytes = file.tensors().filter_map(weights::TensorInfo::bytes).sum();
    let (mut done_bytes, mut read) = (0, Vec::new());
    for one in &planned {
        progress(Progress { tensor: &one.name, done_bytes, total_bytes });
        file.read_into(&one.name, &mut read)?;
        if let Some(heads) = one.paired_heads {
            read = side_by_side(&read, rows_of(&one.dims), heads);
        }
        let (bytes, loss) = encode(one, &read, choices.threads)?;
        builder.write_tensor(&mut out, bytes.as_deref().unwrap_or(&read)).map_err(io)?;
        done_bytes += read.len() as u64;
        report.tensors.push(Made {
            name: one.name.clone(),
            from: one.from.name(),
            to: one.to.name(),
            weights: one.dims.iter().product(),
            bytes: one.bytes as u64,
            loss,
        });
    }
    file.check_lengths()?;
    let written = out.into_inner().map_err(|error| io(error.into_error()))?;
    written.sync_all().map_err(io)?;
    report.bytes = written.metadata().map_err(io)?.len();
    partial.finish()?;
    progress(Progress { tensor: "", done_bytes, total_bytes });
    Ok(report)
}

/// `None` where what was read is what is written.
fn encode(
    one: &Planned,
    read: &[u8],
    threads: usize,
) -> Result<(Option<Vec<u8>>, Loss), QuantizeError> {
    if one.from == one.to {
        return Ok((None, Loss::default()));
    }
    // Rows of a tensor in memory fit.
    let stored = Stored { format: one.from, cols: one.dims[0] as usize, bytes: read };
    let wrong = |NotFinite| QuantizeError::NotFinite { name: one.name.clone(), to: one.to.name() };
    let (bytes, loss) = stored.encode(one.to, threads).map_err(wrong)?;
    Ok((Some(bytes), loss))
}

/// A bias is a row for each of its numbers.
fn rows_of(dims: &[u64]) -> u64 {
    if let [count] = dims { *count } else { dims[1..].iter().product() }
}

/// Rows of each head: the first of its first half, the first of its second half, and so on.
fn side_by_side(bytes: &[u8], rows: u64, heads: u64) -> Vec<u8> {
    // A tensor in memory has as many rows as memory has bytes at most.
    let (rows, half) = (rows as usize, (rows / heads / 2) as usize);
    let row_bytes = bytes.len() / rows;
    let mut paired = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, place) = (row / (2 * half), row % (2 * half));
        let from = head * 2 * half + place % 2 * half + place / 2;
        paired.extend_from_slice(&bytes[from * row_bytes..][..row_bytes]);
    }
    paired
}

fn plan(file: &WeightFile, choices: &GgufChoices) -> Result<Vec<Planned>, QuantizeError> {
    let architecture = file.metadata().optional::<&str>("general.architecture")?.unwrap_or("");
    let layers = file.metadata().optional::<u32>(&format!("{architecture}.block_count"))?;
    let model =
        ModelShape { layers: layers.unwrap_or(0), has_head: file.contains("output.weight") };
    let names: Vec<&str> = file.tensors().map(weights::TensorInfo::name).collect();
    check_exceptions(&choices.exceptions, &names)?;
    let pairs = Pairs::of(file, architecture)?;
    let is_folder = file.folder().is_some();
    let one = |info: &weights::TensorInfo| {
        let (name, dims, from) = (info.name(), info.dims(), info.format()?);
        let tensor = Tensor { name, dims: dims.len(), cols: info.cols() };
        let to = match exception(&choices.exceptions, name) {
            Some(asked) if fitting(asked, info.cols()) == asked => asked,
            Some(asked) => {
                let problem = format!(
                    "has blocks of {}, and its rows are {} long",
                    asked.block_elements(),
                    info.cols()
                );
                let (name, to) = (name.to_owned(), asked.to_string());
                return Err(QuantizeError::Impossible { name, to, problem });
            }
            // What stays as it is in a folder is small, and F32 in GGUF files.
            None => choices.recipe.target(&model, &tensor).unwrap_or(if is_folder {
                QuantFormat::F32
            } else {
                from
            }),
        };
        if from != to && !FORMATS.contains(&to) {
            let problem = "weights are not made into".to_owned();
            let (name, to) = (name.to_owned(), to.to_string());
            return Err(QuantizeError::Impossible { name, to, problem });
        }
        let elements: u64 = dims.iter().product();
        let bytes = elements / to.block_elements() as u64 * to.block_bytes() as u64;
        let paired_heads = pairs.as_ref().and_then(|pairs| pairs.heads(name));
        if paired_heads.is_some_and(|heads| !rows_of(dims).is_multiple_of(2 * heads)) {
            let problem = "its rows, no pairs in each head, do not allow".to_owned();
            let (name, to) = (name.to_owned(), to.to_string());
            return Err(QuantizeError::Impossible { name, to, problem });
        }
        let (name, dims, bytes) = (name.to_owned(), dims.to_vec(), bytes as usize);
        Ok(Planned { name, dims, from, to, bytes, paired_heads })
    };
    file.tensors().map(one).collect()
}

/// The heads of a folder's model whose rows are not as in GGUF files.
struct Pairs {
    heads: u64,
    heads_kv: u64,
}

impl Pairs {
    fn of(file: &WeightFile, architecture: &str) -> Result<Option<Self>, QuantizeError> {
        if file.folder().is_none() || !SIDE_BY_SIDE.contains(&architecture) {
            return Ok(None);
        }
        let count = |key: &str| {
            let key = format!("{architecture}.attention.{key}");
            file.metadata().optional::<u32>(&key).map(|count| count.map(u64::from))
        };
        let heads = count("head_count")?.unwrap_or(1).max(1);
        let heads_kv = count("head_count_kv")?.unwrap_or(heads).max(1);
        Ok(Some(Self { heads, heads_kv }))
    }

    fn heads(&self, name: &str) -> Option<u64> {
        let is = |stem: &str| name.contains(&format!(".{stem}."));
        if is("attn_q") { Some(self.heads) } else { is("attn_k").then_some(self.heads_kv) }
    }
}

/// The source's keys, but for those that say how it was stored.
fn keys(file: &WeightFile, recipe: GgufRecipe, builder: &mut GgufBuilder<'_>) {
    const STORAGE: [&str; 3] =
        ["general.alignment", "general.file_type", "general.quantization_version"];
    for (key, value) in file.metadata().iter() {
        // What an importance matrix says of another file, and how that was split, is not of this.
        let left = ["split.", "quantize.imatrix.", "pelton."];
        let is_left = left.iter().any(|start| key.starts_with(start));
        if !is_left && !STORAGE.contains(&key) {
            builder.key(key, value.clone());
        }
    }
    builder.key("general.quantization_version", QUANTIZATION_VERSION);
    builder.key("general.file_type", recipe.file_type);
}
