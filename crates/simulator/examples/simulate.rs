//! Do thousands of seeded worlds keep every invariant? `cargo xtask sim` runs this.
//!
//! Prints one line for each seed that breaks something, and what the worlds came to.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a command line program talks on its standard output")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use simulator::{Outcome, SharingOutcome};

struct Arguments {
    /// Worlds from here on.
    first: u64,
    seeds: u64,
    turns: u32,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match read(&arguments) {
        Ok(arguments) => simulate(&arguments),
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

fn read(arguments: &[String]) -> Result<Arguments, String> {
    let mut read = Arguments { first: 0, seeds: 1000, turns: 400 };
    let mut seeds = None;
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let number = rest.next().and_then(|text| text.parse::<u64>().ok());
        let number = number.ok_or_else(|| format!("{flag} needs a number"))?;
        match flag.as_str() {
            "--seed" => {
                read.first = number;
                seeds.get_or_insert(1);
            }
            "--seeds" => seeds = Some(number),
            "--turns" => {
                read.turns =
                    u32::try_from(number).map_err(|_| "--turns is too large".to_owned())?;
            }
            _ => return Err(format!("`{flag}` is not known; there are --seed, --seeds, --turns")),
        }
    }
    read.seeds = seeds.unwrap_or(read.seeds);
    Ok(read)
}

fn simulate(arguments: &Arguments) -> ExitCode {
    // A broken invariant is told in one line; the panic's own lines would bury it.
    std::panic::set_hook(Box::new(|_| {}));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicU64::new(0);
    let work = || {
        let mut sums = Sums::default();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= arguments.seeds {
                return sums;
            }
            sums.run(arguments.first.wrapping_add(index), arguments.turns);
        }
    };
    let total = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().fold(Sums::default(), |mut total, worker| {
            total.add(worker.join().unwrap_or_default());
            total
        })
    });
    total.print(arguments.seeds);
    if total.broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What worlds came to, together.
#[derive(Default)]
struct Sums {
    broken: u64,
    counts: Vec<(&'static str, u64)>,
}

impl Sums {
    fn run(&mut self, seed: u64, turns: u32) {
        match simulator::run(seed, turns) {
            Ok(outcome) => self.count(scheduling(&outcome)),
            Err(line) => self.fail(&line),
        }
        match simulator::run_sharing(seed, turns) {
            Ok(outcome) => self.count(sharing(&outcome)),
            Err(line) => self.fail(&line),
        }
    }

    fn fail(&mut self, line: &str) {
        self.broken += 1;
        println!("{line}");
    }

    fn count(&mut self, counts: impl IntoIterator<Item = (&'static str, u64)>) {
        for (name, count) in counts {
            match self.counts.iter_mut().find(|(other, _)| *other == name) {
                Some((_, sum)) => *sum += count,
                None => self.counts.push((name, count)),
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.broken += other.broken;
        self.count(other.counts);
    }

    fn print(&self, seeds: u64) {
        let counts: Vec<String> =
            self.counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
        println!("{seeds} seeds, {} violations: {}", self.broken, counts.join(", "));
    }
}

fn scheduling(outcome: &Outcome) -> [(&'static str, u64); 13] {
    [
        ("steps", outcome.steps),
        ("tokens", outcome.tokens),
        ("finished", outcome.finished),
        ("cancelled", outcome.cancelled),
        ("past their deadlines", outcome.expired),
        ("failed", outcome.failed),
        ("rows left out", outcome.left_out),
        ("refused as busy", outcome.refused_busy),
        ("preemptions", outcome.preemptions),
        ("evictions", outcome.evictions),
        ("blocks copied in", outcome.restored),
        ("steps at a pace", outcome.paced),
        ("guesses accepted", u64::from(outcome.proposals.accepted)),
    ]
}

fn sharing(outcome: &SharingOutcome) -> [(&'static str, u64); 4] {
    [
        ("answers replayed", outcome.hits),
        ("joined", outcome.joins),
        ("computed", outcome.misses),
        ("readers told of a fault", outcome.failed),
    ]
}
