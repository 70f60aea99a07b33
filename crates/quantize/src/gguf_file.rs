//! How is a GGUF file made from another, or from a folder? The same keys and names, other types.
//!
//! A folder is told in the names and keys of GGUF already (`weights`); what is left is its
//! vocabulary (`gguf_vocabulary.rs`), small tensors in F32 as llama.cpp wants them, and heads that
//! lie in another order (`head_order.rs`).

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use ops::quant_format::QuantFormat;
use weights::{GgufBuilder, WeightFile};

use crate::blocks::FORMATS;
use crate::encoding::{Loss, NotFinite, Stored};
use crate::gguf_vocabulary;
use crate::head_order::{HeadOrder, Order};
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
    order: Option<Order>,
}

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
        done_bytes += read.len() as u64;
        let mut format = one.from;
        if let Some(order) = &one.order {
            (read, format) = order.apply(&one.stored(format, &read));
        }
        let (bytes, loss) = encode(one, format, &read, choices.threads)?;
        builder.write_tensor(&mut out, bytes.as_deref().unwrap_or(&read)).map_err(io)?;
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

impl Planned {
    fn stored<'a>(&self, format: QuantFormat, bytes: &'a [u8]) -> Stored<'a> {
        // Rows of a tensor in memory fit.
        Stored { format, cols: self.dims[0] as usize, bytes }
    }
}

/// `None` where what was read is what is written.
fn encode(
    one: &Planned,
    format: QuantFormat,
    read: &[u8],
    threads: usize,
) -> Result<(Option<Vec<u8>>, Loss), QuantizeError> {
    if format == one.to {
        return Ok((None, Loss::default()));
    }
    let wrong = |NotFinite| QuantizeError::NotFinite { name: one.name.clone(), to: one.to.name() };
    let (bytes, loss) = one.stored(format, read).encode(one.to, threads).map_err(wrong)?;
    Ok((Some(bytes), loss))
}

fn plan(file: &WeightFile, choices: &GgufChoices) -> Result<Vec<Planned>, QuantizeError> {
    let architecture = file.metadata().optional::<&str>("general.architecture")?.unwrap_or("");
    let layers = file.metadata().optional::<u32>(&format!("{architecture}.block_count"))?;
    let has_head = file.contains("output.weight");
    let model = ModelShape { layers: layers.unwrap_or(0), has_head, plain: &[] };
    let names: Vec<&str> = file.tensors().map(weights::TensorInfo::name).collect();
    check_exceptions(&choices.exceptions, &names)?;
    let is_folder = file.folder().is_some();
    let heads = if is_folder { HeadOrder::of(file, architecture)? } else { HeadOrder::default() };
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
        let order = heads.of_tensor(name, dims).map_err(|problem| {
            let (name, to, problem) = (name.to_owned(), to.to_string(), problem.to_owned());
            QuantizeError::Impossible { name, to, problem }
        })?;
        let (name, dims, bytes) = (name.to_owned(), dims.to_vec(), bytes as usize);
        Ok(Planned { name, dims, from, to, bytes, order })
    };
    file.tensors().map(one).collect()
}

/// The source's keys, but for those that say how it was stored.
fn keys(file: &WeightFile, recipe: GgufRecipe, builder: &mut GgufBuilder<'_>) {
    const STORAGE: [&str; 3] =
        ["general.alignment", "general.file_type", "general.quantization_version"];
    for (key, value) in file.metadata().iter() {
        // What an importance matrix says of another file, and how that was split, is not of this,
        // nor how a folder's tensors lie; how it has texts read is.
        let left = ["split.", "quantize.imatrix.", "pelton."];
        let is_left =
            left.iter().any(|start| key.starts_with(start)) && !key.starts_with("pelton.text_");
        if !is_left && !STORAGE.contains(&key) {
            builder.key(key, value.clone());
        }
    }
    builder.key("general.quantization_version", QUANTIZATION_VERSION);
    builder.key("general.file_type", recipe.file_type);
}
