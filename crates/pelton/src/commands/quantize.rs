//! `pelton quantize`: a model in fewer bits.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use ::quantize::{
    Exception, FORMATS, GgufChoices, GgufRecipe, MlxChoices, MlxException, MlxRecipe, Progress,
    Report,
};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use crate::printing::say;

#[derive(Args)]
pub(crate) struct QuantizeArguments {
    /// A name, or the path of a .gguf file or of a folder with config.json and .safetensors files
    model: String,
    /// The file or folder to make
    out: PathBuf,
    /// Make a GGUF file of this type or mix: F16, BF16, F32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K,
    /// Q4_K_M, Q5_K, Q5_K_M or Q6_K
    #[arg(
        long,
        value_name = "TYPE",
        conflicts_with = "mlx_bits",
        required_unless_present = "mlx_bits"
    )]
    gguf: Option<String>,
    /// Make a folder for MLX with so many bits a weight: 1, 2, 3, 4, 5, 6 or 8
    #[arg(long, value_name = "BITS")]
    mlx_bits: Option<u8>,
    /// Weights that share a scale in MLX's form: 32, 64 or 128
    #[arg(long, value_name = "WEIGHTS", default_value_t = 64, requires = "mlx_bits")]
    group: usize,
    /// Bits for values, for what comes down and for the head, as MLX-LM's mixes have them
    #[arg(long, value_name = "BITS", requires = "mlx_bits")]
    better_bits: Option<u8>,
    /// What tensors of a name become whatever the rest does: `PATTERN=TYPE`, in MLX's form
    /// `PATTERN=BITS` or `PATTERN=plain`; `*` stands for anything, the first that matches counts
    #[arg(long = "tensor", value_name = "PATTERN=TYPE")]
    tensors: Vec<String>,
    /// Threads; all cores if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Print JSON, tensor by tensor
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &QuantizeArguments) -> Result<()> {
    let source = hub::Store::open_default()?.resolve(&arguments.model)?.path;
    let threads = match arguments.threads {
        Some(0) => bail!("--threads is 0, it must be above"),
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let mut bar = Bar::default();
    let mut progress = |at: Progress<'_>| bar.show(at);
    let report = match (&arguments.gguf, arguments.mlx_bits) {
        (Some(recipe), _) => {
            let choices = GgufChoices {
                recipe: GgufRecipe::named(recipe)?,
                exceptions: exceptions(&arguments.tensors, gguf_type)?,
                threads,
                replaces: arguments.force,
            };
            ::quantize::to_gguf(&source, &arguments.out, &choices, &mut progress)?
        }
        (None, Some(bits)) => {
            if arguments.force {
                bail!("--force replaces files only: remove the folder yourself");
            }
            let better_bits = arguments.better_bits.unwrap_or(bits);
            let choices = MlxChoices {
                recipe: MlxRecipe { bits, better_bits, group: arguments.group },
                exceptions: exceptions(&arguments.tensors, mlx_bits)?,
                threads,
            };
            ::quantize::to_mlx(&source, &arguments.out, &choices, &mut progress)?
        }
        (None, None) => bail!("say what to make: --gguf TYPE or --mlx-bits BITS"),
    };
    bar.finish();
    print(arguments, &report);
    Ok(())
}

fn exceptions<T>(given: &[String], read: impl Fn(&str) -> Result<T>) -> Result<Vec<Exception<T>>> {
    let one = |text: &String| {
        let (pattern, becomes) = text
            .rsplit_once('=')
            .with_context(|| format!("--tensor {text}: expected PATTERN=TYPE"))?;
        let becomes = read(becomes).with_context(|| format!("--tensor {text}"))?;
        Ok(Exception { pattern: pattern.to_owned(), becomes })
    };
    given.iter().map(one).collect()
}

fn gguf_type(name: &str) -> Result<::quantize::QuantFormat> {
    let known = FORMATS.iter().find(|format| format.name().eq_ignore_ascii_case(name));
    known.copied().ok_or_else(|| {
        let names: Vec<&str> = FORMATS.iter().map(|format| format.name()).collect();
        anyhow!("{name} is no type; known are {}", names.join(", "))
    })
}

fn mlx_bits(text: &str) -> Result<MlxException> {
    if text == "plain" {
        return Ok(MlxException::Plain);
    }
    let bits = text.parse().map_err(|_| anyhow!("{text} is neither bits nor `plain`"))?;
    Ok(MlxException::Bits(bits))
}

fn print(arguments: &QuantizeArguments, report: &Report) {
    let weights: u64 = report.tensors.iter().map(|tensor| tensor.weights).sum();
    let bits = 8.0 * report.bytes as f64 / weights.max(1) as f64;
    let out: &Path = &arguments.out;
    if arguments.json {
        let tensors: Vec<_> = report
            .tensors
            .iter()
            .map(|tensor| {
                serde_json::json!({
                    "name": tensor.name,
                    "from": tensor.from,
                    "to": tensor.to,
                    "weights": tensor.weights,
                    "bytes": tensor.bytes,
                    "relative_error": tensor.loss.relative(),
                })
            })
            .collect();
        let object = serde_json::json!({
            "path": out,
            "source_bytes": report.source_bytes,
            "bytes": report.bytes,
            "bits_per_weight": bits,
            "relative_error": report.loss().relative(),
            "tensors": tensors,
        });
        say!("{object:#}");
        return;
    }
    // By what they became: tensors, bytes.
    let mut kinds: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for tensor in &report.tensors {
        let kind = kinds.entry(tensor.to).or_default();
        *kind = (kind.0 + 1, kind.1 + tensor.bytes);
    }
    for (kind, (count, bytes)) in kinds {
        say!("{kind:<10} {count:>5} tensors {:>10.1} MB", bytes as f64 / 1e6);
    }
    say!(
        "{}: {:.1} MB of {:.1} MB, {bits:.2} bits a weight, error {:.2} % of the weights changed",
        out.display(),
        report.bytes as f64 / 1e6,
        report.source_bytes as f64 / 1e6,
        100.0 * report.loss().relative()
    );
}

/// A bar on a terminal, nothing elsewhere.
#[derive(Default)]
struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    fn show(&mut self, at: Progress<'_>) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(at.total_bytes);
            let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_position(at.done_bytes);
        bar.set_message(at.tensor.to_owned());
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
