//! How fast is this engine? Each test through admission, scheduler and device, as a client sees it.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use config::{Loaded, Origin, Setting, SpeculationMode};
use engine::{End, Engine, EngineOptions, GenerateRequest, Generation, Prompt, Service, StepWork};
use messages::{CacheNamespace, SamplingParams, SharingMode};
use tokio::runtime::Runtime;

use super::BenchArguments;
use super::report::{Report, Row};
use super::samples::Samples;
use super::trace;
use super::workload::{Kind, Test};
use crate::speaking;

/// A prompt of this length is the first after loading: the time a person waits for a short one.
const FIRST_PROMPT_TOKENS: u32 = 16;
/// Tries with ever longer answers, as long as the context has room for longer ones, until all
/// sequences run at once. On a busy machine this program may sleep while a small model answers.
const TRIES_MAX: u32 = 40;

/// Loads the model, runs every test, and finds the machine's ceilings.
pub(super) fn measure(arguments: &BenchArguments, tests: &[Test]) -> Result<Report> {
    let Loaded { mut config, settings, .. } = arguments.model.load(Vec::new())?;
    // Guesses at the bench's repetitive answers come true too often: only where they are asked for.
    let is_asked_for = settings
        .iter()
        .any(|Setting { key, origin, .. }| key.path == "speculation" && *origin == Origin::Flag);
    if !is_asked_for {
        config.speculation = SpeculationMode::Off;
    }
    let batch_max = tests.iter().map(|test| test.batch).max().unwrap_or(1);
    config.limits.sequences_max = config.limits.sequences_max.max(batch_max);
    let mut options = arguments.model.engine_options(&config)?;
    // Steps are measured when they are as fast as they will be.
    options.weights.pack_behind_bytes_min = u64::MAX;
    options.command_ring.trace = arguments.trace.as_ref().map(|_| trace::recording());
    let work = engine::inspect(&options.path)?.work;
    let start = Instant::now();
    let engine = Engine::load(&options)?;
    let load = start.elapsed();
    let card = engine.models()[0].clone();
    let mut bench = Bench { engine, runtime: speaking::runtime()?, texts: 0 };
    let first_tokens = bench.prefill(FIRST_PROMPT_TOKENS, 1)?;
    let mut rows = Vec::new();
    for &test in tests {
        bench.run(&test)?;
        let rates = (0..arguments.repeat()).map(|_| bench.run(&test)).collect::<Result<_>>()?;
        rows.push(Row { test, samples: Samples::new(rates), roof: None });
    }
    let peak_memory_bytes = peak_memory_bytes("self");
    let status = bench.engine.status();
    let (statistics, resources) = (status.statistics(), status.resources);
    drop(bench);
    if let (Some(path), Some(recorded)) = (&arguments.trace, &options.command_ring.trace) {
        trace::write(recorded, path)?;
    }
    let mut report = Report {
        card,
        threads: options.threads,
        load,
        first_token: load + Duration::from_secs_f64(f64::from(FIRST_PROMPT_TOKENS) / first_tokens),
        peak_memory_bytes,
        resources,
        ceilings: None,
        rows,
        statistics,
    };
    if !arguments.no_ceilings {
        find_roofs(&mut report, &options, &work)?;
    }
    Ok(report)
}

fn find_roofs(report: &mut Report, options: &EngineOptions, work: &StepWork) -> Result<()> {
    report.ceilings = engine::ceilings(options, work)?;
    let Some(ceilings) = &report.ceilings else { return Ok(()) };
    for row in &mut report.rows {
        let Test { kind, tokens, depth, batch } = row.test;
        row.roof = Some(match kind {
            Kind::Prefill => work.prefill_roof(ceilings, u64::from(batch), u64::from(tokens)),
            // Half of what is generated is in the cache on average.
            Kind::Decode => {
                let context = u64::from(depth) + u64::from(tokens) / 2;
                work.decode_roof(ceilings, u64::from(batch), context)
            }
        });
    }
    Ok(())
}

struct Bench {
    engine: Engine,
    runtime: Runtime,
    /// Prompts given so far: no two are alike, so nothing can be shared or replayed.
    texts: u32,
}

impl Bench {
    /// Tokens a second, all sequences together.
    fn run(&mut self, test: &Test) -> Result<f64> {
        match test.kind {
            Kind::Prefill => self.prefill(test.tokens, test.batch),
            Kind::Decode => self.decode(test.depth.max(1), test.tokens, test.batch),
        }
    }

    /// From asking to the first token of every sequence.
    fn prefill(&mut self, tokens: u32, batch: u32) -> Result<f64> {
        let start = Instant::now();
        let mut running = self.ask(tokens, 1, batch)?;
        self.runtime
            .block_on(advance(&mut running, |running| running.iter().all(|one| one.ended)))?;
        Ok(f64::from(tokens * batch) / start.elapsed().as_secs_f64())
    }

    /// While all sequences run. Those that start early decode while others' prompts are still read
    /// (a step takes more than 128 tokens of those), so all get more tokens than are measured.
    fn decode(&mut self, depth: u32, tokens: u32, batch: u32) -> Result<f64> {
        let mut lead = (batch * depth).div_ceil(128) + batch;
        let room = self.engine.models()[0].context_tokens_max.saturating_sub(depth + tokens);
        let preempted = self.engine.status().preemptions_total;
        for _ in 0..TRIES_MAX {
            let rate = self.decode_together(depth, tokens, batch, lead)?;
            // They took turns: that is not the speed of so many at once, nor will it ever be.
            ensure!(
                self.engine.status().preemptions_total == preempted,
                "the KV cache does not hold {batch} sequences of {} tokens at once; give it more \
                 (--kv-cache-mb), or measure fewer or shorter ones",
                depth + tokens + lead,
            );
            if let Some(rate) = rate {
                return Ok(rate);
            }
            lead = (2 * lead).min(room.max(lead));
        }
        bail!("{batch} sequences never ran together: the first ended before the last began")
    }

    /// From the moment at which every sequence has its first token until each has `tokens` more or
    /// one ends. `None` where one ended before that moment.
    fn decode_together(
        &mut self,
        depth: u32,
        tokens: u32,
        batch: u32,
        lead: u32,
    ) -> Result<Option<f64>> {
        let mut running = self.ask(depth, tokens + lead, batch)?;
        let has_begun = |one: &Running| one.tokens > 0;
        self.runtime.block_on(advance(&mut running, |all| all.iter().all(has_begun)))?;
        let early: Vec<u32> = running.iter().map(|one| one.tokens).collect();
        let start = Instant::now();
        let is_over = running.iter().any(|one| one.ended);
        self.runtime.block_on(advance(&mut running, |all| {
            let done = |(one, early): (&Running, &u32)| one.tokens >= early + tokens - 1;
            all.iter().any(|one| one.ended) || all.iter().zip(&early).all(done)
        }))?;
        let seconds = start.elapsed().as_secs_f64();
        let taken: u32 = running.iter().zip(&early).map(|(one, early)| one.tokens - early).sum();
        drop(running);
        self.wait_until_idle();
        Ok((!is_over && taken > 0).then(|| f64::from(taken) / seconds))
    }

    fn ask(&mut self, prompt: u32, generate: u32, batch: u32) -> Result<Vec<Running>> {
        let vocabulary = self.engine.models()[0].vocabulary_size;
        let mut running = Vec::new();
        for _ in 0..batch {
            self.texts += 1;
            let text = self.texts;
            let id = |at: u32| {
                at.wrapping_mul(7919).wrapping_add(text.wrapping_mul(104_729)) % vocabulary
            };
            let params = SamplingParams {
                max_tokens: Some(generate),
                ignore_eos: true,
                ..SamplingParams::greedy()
            };
            let prompt = Prompt::Tokens((0..prompt).map(id).collect());
            // The same texts run by run: each is to be computed.
            let request = request(prompt, params, SharingMode::Off);
            let generation = self.runtime.block_on(self.engine.generate(request))?;
            running.push(Running { generation, tokens: 0, ended: false });
        }
        Ok(running)
    }

    /// A cancelled sequence may have a step left in flight.
    fn wait_until_idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.engine.status().sequences_running > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A request to the one model that is measured.
pub(super) fn request(
    prompt: Prompt,
    params: SamplingParams,
    sharing: SharingMode,
) -> GenerateRequest {
    GenerateRequest {
        model: "default".to_owned(),
        prompt,
        params,
        stop: Vec::new(),
        include_stop: false,
        namespace: CacheNamespace::default(),
        sharing,
        urgency: engine::Urgency::default(),
    }
}

/// A sequence and what has come of it.
struct Running {
    generation: Generation,
    tokens: u32,
    ended: bool,
}

/// Takes tokens of all sequences as they come until `done` says so.
async fn advance(running: &mut [Running], done: impl Fn(&[Running]) -> bool) -> Result<()> {
    while !done(running) {
        for one in wait_for_any(running).await {
            let (index, delta) = one;
            let Some(delta) = delta else {
                running[index].ended = true;
                continue;
            };
            running[index].tokens += delta.tokens.len() as u32;
            match delta.end {
                None => {}
                Some(End::Refused(refusal)) => bail!("{refusal}"),
                Some(End::Failed(fault)) => bail!("the device failed: {fault}"),
                Some(End::Late(deadline)) => bail!("{}", deadline.text()),
                Some(End::Finished { .. }) => running[index].ended = true,
            }
        }
    }
    Ok(())
}

/// What has come for each sequence that has not ended; at least one delta.
async fn wait_for_any(running: &mut [Running]) -> Vec<(usize, Option<engine::Delta>)> {
    let mut waits: Vec<_> = running
        .iter_mut()
        .enumerate()
        .filter(|(_, one)| !one.ended)
        .map(|(index, one)| (index, Box::pin(one.generation.next())))
        .collect();
    poll_fn(|context| {
        let mut ready = Vec::new();
        for (index, wait) in &mut waits {
            if let Poll::Ready(delta) = wait.as_mut().poll(context) {
                ready.push((*index, delta));
            }
        }
        if ready.is_empty() && !waits.is_empty() { Poll::Pending } else { Poll::Ready(ready) }
    })
    .await
}

/// The most memory a process had at once so far, where the system tells.
pub(super) fn peak_memory_bytes(process: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
