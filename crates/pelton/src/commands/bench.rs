//! `pelton bench`: how fast are prefill and decode, and how near to what the machine can do?
//!
//! Read `workload` (what is measured), `measuring` (through the whole engine, as a client gets it),
//! `report` (table and JSON), `resources` and `trace`; with `--against`, `rival` and `comparison`;
//! with `--ablate`, `ablation`.

mod ablation;
mod comparison;
mod measuring;
mod report;
mod resources;
mod rival;
mod rival_output;
mod samples;
mod trace;
mod workload;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::settings::ModelArguments;

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Prompt lengths to measure prefill with, in tokens; 0 leaves prefill out
    #[arg(long, value_delimiter = ',', default_value = "512", conflicts_with = "ablate")]
    prompt_tokens: Vec<u32>,
    /// Answer lengths to measure decode with, in tokens; 0 leaves decode out
    #[arg(long, value_delimiter = ',', default_value = "128", conflicts_with = "ablate")]
    generate_tokens: Vec<u32>,
    /// Sequences at once
    #[arg(long, value_delimiter = ',', default_value = "1", conflicts_with = "ablate")]
    batch: Vec<u32>,
    /// Tokens of each sequence that are in the cache before decode is measured
    #[arg(long, value_delimiter = ',', default_value = "0", conflicts_with = "ablate")]
    depth: Vec<u32>,
    /// Runs of each; the median is reported [default: 5; 2 a round with --against]
    #[arg(long, conflicts_with = "ablate")]
    repeat: Option<usize>,
    /// Leave out what the machine can do at best, which takes some seconds to find
    #[arg(long, conflicts_with = "ablate")]
    no_ceilings: bool,
    /// Run this llama-bench (llama.cpp's or ik_llama.cpp's; a name on the PATH or a path, and
    /// options after it) on the same file in turn, and print ratios; can be given several times
    #[arg(long, value_name = "PROGRAM")]
    against: Vec<String>,
    /// Switch these systems off in turn (`all`, or names as in `sharing,prefix_cache`), serve the
    /// same work each time, and print what each is worth
    #[arg(long, value_name = "SYSTEMS", value_delimiter = ',', conflicts_with = "against")]
    ablate: Vec<String>,
    /// Lengths of the texts that --ablate serves, against those for a small model [default: 1]
    #[arg(long, value_name = "FACTOR")]
    ablate_scale: Option<f64>,
    /// Serves that work once in this process
    #[arg(long, hide = true)]
    ablation_work: bool,
    /// How often each has its turn with --against or --ablate [default: 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// Record plans, steps and copies in this file, as trace events that browsers' timelines and
    /// Perfetto show
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "ablate"])]
    trace: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pub(super) model: ModelArguments,
}

const REPEAT_DEFAULT: usize = 5;
const ROUNDS_DEFAULT: usize = 3;
const REPEAT_DEFAULT_A_ROUND: usize = 2;

pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    ensure!(arguments.repeat != Some(0), "--repeat must be at least 1");
    ensure!(arguments.rounds != Some(0), "--rounds must be at least 1");
    if arguments.ablation_work {
        return ablation::run_work(arguments);
    }
    if !arguments.ablate.is_empty() {
        return ablation::run(arguments);
    }
    let is_alone = arguments.against.is_empty();
    ensure!(!is_alone || arguments.rounds.is_none(), "--rounds goes with --against or --ablate");
    ensure!(arguments.ablate_scale.is_none(), "--ablate-scale goes with --ablate");
    let tests = workload::tests(arguments)?;
    if arguments.against.is_empty() {
        let report = measuring::measure(arguments, &tests)?;
        report.print(arguments.json);
        return Ok(());
    }
    comparison::run(arguments, &tests)
}

impl BenchArguments {
    fn rounds(&self) -> usize {
        self.rounds.unwrap_or(ROUNDS_DEFAULT)
    }

    fn scale(&self) -> f64 {
        self.ablate_scale.unwrap_or(1.0)
    }

    fn repeat(&self) -> usize {
        let default = if self.against.is_empty() { REPEAT_DEFAULT } else { REPEAT_DEFAULT_A_ROUND };
        self.repeat.unwrap_or(default)
    }
}
