//! `pelton bench`: how fast are prefill and decode? Through the whole engine, as a client gets it.

use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Args;
use engine::{End, Engine, GenerateRequest, Generation, Prompt, Service};
use messages::{CacheNamespace, SamplingParams, SharingMode};

use crate::printing::say;
use crate::settings::ModelArguments;
use crate::speaking;

#[derive(Args)]
pub(crate) struct BenchArguments {
    /// Prompt lengths to measure prefill with, in tokens; 0 leaves prefill out
    #[arg(long, value_delimiter = ',', default_value = "512")]
    prompt_tokens: Vec<u32>,
    /// Answer lengths to measure decode with, in tokens; 0 leaves decode out
    #[arg(long, value_delimiter = ',', default_value = "128")]
    generate_tokens: Vec<u32>,
    /// Sequences at once
    #[arg(long, value_delimiter = ',', default_value = "1")]
    batch: Vec<u32>,
    /// Tokens in the cache before decode is measured
    #[arg(long, value_delimiter = ',', default_value = "1")]
    depth: Vec<u32>,
    /// Runs of each; the median is reported
    #[arg(long, default_value_t = 5)]
    repeat: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    model: ModelArguments,
}

/// One measured row.
struct Row {
    test: &'static str,
    tokens: u32,
    depth: u32,
    batch: u32,
    /// Tokens a second over all sequences, one for each run, ascending.
    rates: Vec<f64>,
}

pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    ensure!(arguments.repeat > 0, "--repeat must be at least 1");
    let mut config = arguments.model.config()?;
    let batch_max = arguments.batch.iter().copied().max().unwrap_or(1);
    ensure!(arguments.batch.iter().all(|&batch| batch > 0), "--batch must be at least 1");
    config.limits.sequences_max = config.limits.sequences_max.max(batch_max);
    let options = arguments.model.engine_options(&config)?;
    let engine = Engine::load(&options)?;
    let mut rows = Vec::new();
    for &batch in &arguments.batch {
        for &tokens in arguments.prompt_tokens.iter().filter(|&&tokens| tokens > 0) {
            rows.push(measure("prefill", tokens, 0, batch, arguments.repeat, || {
                prefill(&engine, tokens, batch)
            })?);
        }
        for &depth in &arguments.depth {
            for &tokens in arguments.generate_tokens.iter().filter(|&&tokens| tokens > 0) {
                ensure!(tokens > 1, "--generate-tokens must be at least 2: the first is prefill's");
                rows.push(measure("decode", tokens, depth, batch, arguments.repeat, || {
                    decode(&engine, depth.max(1), tokens, batch)
                })?);
            }
        }
    }
    print(arguments, &engine, &rows);
    Ok(())
}

fn measure(
    test: &'static str,
    tokens: u32,
    depth: u32,
    batch: u32,
    repeat: usize,
    mut once: impl FnMut() -> Result<f64>,
) -> Result<Row> {
    once()?;
    let mut rates = (0..repeat).map(|_| once()).collect::<Result<Vec<f64>>>()?;
    rates.sort_by(f64::total_cmp);
    Ok(Row { test, tokens, depth, batch, rates })
}

/// From asking to the first token of every sequence.
fn prefill(engine: &Engine, tokens: u32, batch: u32) -> Result<f64> {
    let start = Instant::now();
    let mut generations = ask(engine, tokens, 1, batch)?;
    generations.iter_mut().try_for_each(drain)?;
    Ok(f64::from(tokens * batch) / start.elapsed().as_secs_f64())
}

/// From the moment every sequence has its first token to the last token of all.
fn decode(engine: &Engine, depth: u32, tokens: u32, batch: u32) -> Result<f64> {
    let mut generations = ask(engine, depth, tokens, batch)?;
    let mut left = tokens * batch;
    for generation in &mut generations {
        left -= next(generation)?;
    }
    let start = Instant::now();
    generations.iter_mut().try_for_each(drain)?;
    Ok(f64::from(left) / start.elapsed().as_secs_f64())
}

fn ask(engine: &Engine, prompt: u32, generate: u32, batch: u32) -> Result<Vec<Generation>> {
    let vocabulary = engine.models()[0].vocabulary_size;
    let runtime = speaking::runtime()?;
    (0..batch)
        .map(|sequence| {
            // Different texts, so that nothing can be shared between them.
            let id = |at: u32| (at * 7919 + sequence * 104_729 + 11) % vocabulary;
            let request = GenerateRequest {
                model: "default".to_owned(),
                prompt: Prompt::Tokens((0..prompt).map(id).collect()),
                params: SamplingParams {
                    max_tokens: Some(generate),
                    ignore_eos: true,
                    ..SamplingParams::greedy()
                },
                stop: Vec::new(),
                include_stop: false,
                namespace: CacheNamespace::default(),
                // The same texts run by run: each is to be computed.
                sharing: SharingMode::Off,
            };
            Ok(runtime.block_on(engine.generate(request))?)
        })
        .collect()
}

fn next(generation: &mut Generation) -> Result<u32> {
    match generation.next_blocking() {
        None => Ok(0),
        Some(delta) => match delta.end {
            Some(End::Failed(fault)) => bail!("the device failed: {fault}"),
            _ => Ok(delta.tokens.len() as u32),
        },
    }
}

fn drain(generation: &mut Generation) -> Result<()> {
    while next(generation)? > 0 {}
    Ok(())
}

impl Row {
    fn median(&self) -> f64 {
        let middle = self.rates.len() / 2;
        if self.rates.len() % 2 == 1 {
            return self.rates[middle];
        }
        (self.rates[middle - 1] + self.rates[middle]) / 2.0
    }
}

fn print(arguments: &BenchArguments, engine: &Engine, rows: &[Row]) {
    let card = &engine.models()[0];
    if arguments.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "test": row.test, "tokens": row.tokens, "depth": row.depth,
                    "batch": row.batch, "tokens_per_second": row.median(), "runs": row.rates,
                })
            })
            .collect();
        let object = serde_json::json!({"model": card.id, "device": card.device, "results": rows});
        say!("{object:#}");
        return;
    }
    say!("{} on {}, {} runs each", card.id, card.device, arguments.repeat);
    say!(
        "{:<8} {:>7} {:>7} {:>6} {:>12} {:>23}",
        "test",
        "tokens",
        "depth",
        "batch",
        "tok/s median",
        "lowest to highest"
    );
    for row in rows {
        let (low, high) = (row.rates[0], row.rates[row.rates.len() - 1]);
        let spread = format!("{low:.1} to {high:.1}");
        say!(
            "{:<8} {:>7} {:>7} {:>6} {:>12.1} {spread:>23}",
            row.test,
            row.tokens,
            row.depth,
            row.batch,
            row.median()
        );
    }
}
