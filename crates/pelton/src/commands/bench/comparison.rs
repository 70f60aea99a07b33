//! Who is faster on the same file, with the same threads, in turn? Every program starts anew each
//! round, so that none has the better memory or the quieter minute.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::BenchArguments;
use super::rival::{Rival, Setting, Turn, run_to_end};
use super::rival_output::{Measured, read_own};
use super::samples::Samples;
use super::workload::Test;
use crate::model_file;
use crate::printing::say;
use crate::settings::DEFAULT_MODEL;
use crate::speaking::remark;

/// One program with one setting, and everything it measured.
struct Contestant {
    name: String,
    setting: String,
    commit: Option<String>,
    results: Vec<Measured>,
    peak_memory_bytes: Option<u64>,
}

pub(super) fn run(arguments: &BenchArguments, tests: &[Test]) -> Result<()> {
    let rivals: Vec<Rival> =
        arguments.against.iter().map(|asked| Rival::find(asked)).collect::<Result<_>>()?;
    let config = arguments.model.config()?;
    let file = model_file::find(config.model.name.as_deref().unwrap_or(DEFAULT_MODEL))?;
    let threads = match config.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism()?.get(),
    };
    for rival in &rivals {
        for test in tests {
            if let Some(why) = rival.lacks(test) {
                remark(&format!("{} is left out of {}: it {why}", rival.name, test.describe()));
            }
        }
    }
    let turn = Turn { file: &file.path, threads, repeat: arguments.repeat() };
    let mut own = Contestant::new("pelton", "");
    let mut others: Vec<(&Rival, &Setting, Contestant)> = rivals
        .iter()
        .flat_map(|rival| {
            rival.settings.iter().map(move |setting| {
                (rival, setting, Contestant::new(&rival.name, &setting.to_string()))
            })
        })
        .collect();
    for round in 1..=arguments.rounds() {
        remark(&format!("round {round} of {}: pelton", arguments.rounds()));
        let (measured, peak) = run_own(arguments, &file.path, threads)?;
        own.add(measured, peak);
        for (rival, setting, contestant) in &mut others {
            remark(&format!("round {round} of {}: {} {setting}", arguments.rounds(), rival.name));
            let outcome = rival.run(setting, tests, &turn)?;
            contestant.add(outcome.measured, outcome.peak_memory_bytes);
        }
    }
    let others: Vec<Contestant> = others.into_iter().map(|(_, _, contestant)| contestant).collect();
    if arguments.json {
        say!("{:#}", to_json(&file.name, threads, tests, &own, &others));
    } else {
        say!("{} with {threads} threads, {} rounds in turn", file.name, arguments.rounds());
        print_table(tests, &own, &others);
    }
    Ok(())
}

/// This very program as a child: it starts as cold as the others.
fn run_own(
    arguments: &BenchArguments,
    file: &Path,
    threads: usize,
) -> Result<(Vec<Measured>, Option<u64>)> {
    let list = |list: &[u32]| list.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let program = std::env::current_exe().context("this program's own path is unknown")?;
    let mut command = Command::new(program);
    command
        .args(["bench", "--json", "--repeat", &arguments.repeat().to_string()])
        .args(["--prompt-tokens", &list(&arguments.prompt_tokens)])
        .args(["--generate-tokens", &list(&arguments.generate_tokens)])
        .args(["--batch", &list(&arguments.batch)])
        .args(["--depth", &list(&arguments.depth)])
        .args(arguments.no_ceilings.then_some("--no-ceilings"))
        .args(arguments.model.as_flags())
        .arg("--model")
        .arg(file)
        .args(["--threads", &threads.to_string()]);
    let (output, peak) = run_to_end(command)?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok((read_own(&text).context("pelton bench --json cannot be read back")?, peak))
}

impl Contestant {
    fn new(name: &str, setting: &str) -> Self {
        Self {
            name: name.to_owned(),
            setting: setting.to_owned(),
            commit: None,
            results: Vec::new(),
            peak_memory_bytes: None,
        }
    }

    fn add(&mut self, measured: Vec<Measured>, peak_memory_bytes: Option<u64>) {
        self.peak_memory_bytes = self.peak_memory_bytes.max(peak_memory_bytes);
        for one in measured {
            self.commit = one.commit.clone().or(self.commit.take());
            match self.results.iter_mut().find(|known| known.test == one.test) {
                Some(known) => {
                    known.samples.add(&one.samples);
                    known.roof = known.roof.max_by_value(one.roof);
                }
                None => self.results.push(one),
            }
        }
    }

    fn result(&self, test: &Test) -> Option<&Measured> {
        self.results.iter().find(|one| one.test == *test && !one.samples.is_empty())
    }

    fn label(&self) -> String {
        let parts = [self.name.as_str(), self.commit.as_deref().unwrap_or(""), &self.setting];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}

/// The larger of two numbers of which either may be missing.
trait MaxByValue {
    fn max_by_value(self, other: Self) -> Self;
}

impl MaxByValue for Option<f64> {
    fn max_by_value(self, other: Self) -> Self {
        match (self, other) {
            (Some(one), Some(two)) => Some(one.max(two)),
            (one, two) => one.or(two),
        }
    }
}

fn print_table(tests: &[Test], own: &Contestant, others: &[Contestant]) {
    let width = others.iter().map(|other| other.label().len()).max().unwrap_or(0).max(20);
    for test in tests {
        let Some(ours) = own.result(test) else { continue };
        say!(
            "\n{:<width$}   {:>12} {:>20}   pelton is",
            test.describe(),
            "tok/s median",
            "lowest to highest"
        );
        print_line(width, &own.label(), &ours.samples, "");
        let median = ours.samples.median();
        for other in others {
            let Some(theirs) = other.result(test) else { continue };
            let ratio = format!("{:.2}x", median / theirs.samples.median());
            print_line(width, &other.label(), &theirs.samples, &ratio);
        }
        if let Some(roof) = ours.roof {
            say!("  {:<width$} {roof:>12.1} {:>20}   {:.2}x", "this machine", "", median / roof);
        }
    }
    say!("\npeak memory");
    for contestant in [own].into_iter().chain(others) {
        if let Some(bytes) = contestant.peak_memory_bytes {
            say!("  {:<width$} {:>9.0} MB", contestant.label(), bytes as f64 / 1e6);
        }
    }
}

fn print_line(width: usize, label: &str, samples: &Samples, ratio: &str) {
    say!("  {label:<width$} {:>12.1} {:>20}   {ratio}", samples.median(), samples.spread());
}

fn to_json(
    model: &str,
    threads: usize,
    tests: &[Test],
    own: &Contestant,
    others: &[Contestant],
) -> Value {
    let tests: Vec<Value> = tests
        .iter()
        .filter_map(|test| {
            let ours = own.result(test)?;
            let all: Vec<Value> = [own]
                .into_iter()
                .chain(others)
                .filter_map(|one| {
                    let samples = &one.result(test)?.samples;
                    Some(json!({
                        "program": one.name,
                        "commit": one.commit,
                        "setting": one.setting,
                        "tokens_per_second": samples.median(),
                        "runs": samples.rates(),
                        "pelton_is": ours.samples.median() / samples.median(),
                    }))
                })
                .collect();
            Some(json!({
                "test": test.kind.name(),
                "tokens": test.tokens,
                "depth": test.depth,
                "batch": test.batch,
                "roof_tokens_per_second": ours.roof,
                "programs": all,
            }))
        })
        .collect();
    let memory: Vec<Value> = [own]
        .into_iter()
        .chain(others)
        .map(|one| {
            json!({
                "program": one.name,
                "setting": one.setting,
                "peak_memory_bytes": one.peak_memory_bytes,
            })
        })
        .collect();
    json!({"model": model, "threads": threads, "results": tests, "memory": memory})
}
