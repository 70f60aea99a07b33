//! How is a llama-bench found, asked what it can do, and run? Its options are read from its own
//! `--help`, because llama.cpp's and ik_llama.cpp's differ, and both change.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::measuring::peak_memory_bytes;
use super::rival_output::{self, Measured};
use super::workload::{Kind, Test};

/// Options whose two values may each be the faster one: both are tried, unless one is given.
const SWITCHES: [&str; 2] = ["-fa", "-rtr"];
/// Beside `llama-bench`, for several sequences at once.
const BATCHED_NAME: &str = "llama-batched-bench";
/// Contexts are cut into equal parts of whole hundreds of positions.
const CONTEXT_GRANULE: u32 = 256;

/// A program to compare with, as it was found.
#[derive(Debug)]
pub(super) struct Rival {
    pub(super) name: String,
    program: PathBuf,
    options: BTreeSet<String>,
    batched: Option<(PathBuf, BTreeSet<String>)>,
    /// Options given by hand that are no switches.
    fixed: Vec<String>,
    pub(super) settings: Vec<Setting>,
}

/// Values of the switches for one turn, as `("-fa", "1")`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting(Vec<(&'static str, String)>);

/// What is the same for all programs.
pub(super) struct Turn<'a> {
    pub(super) file: &'a Path,
    pub(super) threads: usize,
    pub(super) repeat: usize,
}

/// What one turn gave.
pub(super) struct Outcome {
    pub(super) measured: Vec<Measured>,
    pub(super) peak_memory_bytes: Option<u64>,
}

impl Rival {
    /// `asked` is a program's name or path, with options after it.
    pub(super) fn find(asked: &str) -> Result<Self> {
        let (name, given) = split(asked)?;
        let program = on_path(&name, std::env::var_os("PATH")).with_context(|| {
            format!("--against {name}: there is no such program, neither as a path nor on the PATH")
        })?;
        let options = help(&program)?;
        for needed in ["-m", "-p", "-n", "-t", "-r", "-o"] {
            ensure!(
                options.contains(needed),
                "--against {name}: its --help does not name {needed}, so it is no llama-bench",
            );
        }
        let beside = program.with_file_name(BATCHED_NAME);
        let batched = if beside.is_file() { Ok(beside) } else { on_path_default(BATCHED_NAME) };
        let batched = match batched {
            Ok(batched) => {
                let options = help(&batched)?;
                ["-npp", "-ntg", "-npl"]
                    .iter()
                    .all(|needed| options.contains(*needed))
                    .then_some((batched, options))
            }
            Err(_) => None,
        };
        let (fixed, settings) = settings(&given, &options)?;
        let file_name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name: file_name, program, options, batched, fixed, settings })
    }

    /// Why this program cannot run a test, where it cannot.
    pub(super) fn lacks(&self, test: &Test) -> Option<&'static str> {
        match test.kind {
            Kind::Prefill if test.batch > 1 => Some("has no prefill of several sequences"),
            Kind::Prefill => None,
            Kind::Decode if test.batch > 1 && self.batched.is_none() => {
                Some("has no llama-batched-bench beside it or on the PATH")
            }
            Kind::Decode if test.batch == 1 && test.depth > 0 => {
                let has_depth = self.options.contains("-d") || self.options.contains("-gp");
                (!has_depth).then_some("cannot start at a depth")
            }
            Kind::Decode => None,
        }
    }

    /// Runs the tests that this program can run, with one setting.
    pub(super) fn run(
        &self,
        setting: &Setting,
        tests: &[Test],
        turn: &Turn<'_>,
    ) -> Result<Outcome> {
        let mut outcome = Outcome { measured: Vec::new(), peak_memory_bytes: None };
        for arguments in self.invocations(tests) {
            let mut command = self.command(&self.program, turn);
            command.args(["-r", &turn.repeat.to_string(), "-o", "json"]).args(arguments);
            setting.0.iter().for_each(|(switch, value)| {
                command.args([*switch, value]);
            });
            let (output, peak) = run_to_end(command)?;
            let text = String::from_utf8_lossy(&output.stdout);
            let measured = rival_output::read_bench(&text)
                .with_context(|| format!("{} printed no llama-bench JSON", self.name))?;
            outcome.add(measured, peak);
        }
        let several = |test: &&Test| test.kind == Kind::Decode && test.batch > 1;
        for test in tests.iter().filter(several) {
            let Some((program, options)) = &self.batched else { continue };
            let mut measured = Vec::new();
            let mut peak = None;
            for _ in 0..turn.repeat {
                let mut command = self.command(program, turn);
                command.args(batched_arguments(test, setting, options));
                let (output, run_peak) = run_to_end(command)?;
                // ik_llama.cpp's prints its table on stderr.
                let text = [output.stdout, output.stderr].concat();
                let text = String::from_utf8_lossy(&text);
                let found = rival_output::read_batched(&text, test)
                    .with_context(|| format!("{BATCHED_NAME} printed no rate for this test"))?;
                measured.push(found);
                peak = peak.max(run_peak);
            }
            outcome.add(measured, peak);
        }
        Ok(outcome)
    }

    fn command(&self, program: &Path, turn: &Turn<'_>) -> Command {
        let mut command = Command::new(program);
        command.arg("-m").arg(turn.file).args(["-t", &turn.threads.to_string()]);
        command.args(&self.fixed);
        command
    }

    /// Arguments of each start of the program that the tests of one sequence need.
    fn invocations(&self, tests: &[Test]) -> Vec<Vec<String>> {
        let of = |kind, depth| {
            let chosen = tests
                .iter()
                .filter(move |test| test.batch == 1 && test.kind == kind && test.depth == depth);
            let mut list: Vec<u32> = chosen.map(|test| test.tokens).collect();
            list.dedup();
            list
        };
        let text = |list: &[u32]| {
            let list: Vec<String> = list.iter().map(u32::to_string).collect();
            if list.is_empty() { "0".to_owned() } else { list.join(",") }
        };
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        let mut invocations: Vec<Vec<String>> = Vec::new();
        let (prompts, answers) = (of(Kind::Prefill, 0), of(Kind::Decode, 0));
        if !prompts.is_empty() || !answers.is_empty() {
            invocations.push(words(&["-p", &text(&prompts), "-n", &text(&answers)]));
        }
        let mut depths: Vec<u32> =
            tests.iter().filter(|test| self.lacks(test).is_none()).map(|test| test.depth).collect();
        depths.sort_unstable();
        depths.dedup();
        for depth in depths.into_iter().filter(|&depth| depth > 0) {
            let answers = of(Kind::Decode, depth);
            let depth = depth.to_string();
            if answers.is_empty() {
                continue;
            }
            if self.options.contains("-d") {
                invocations.push(words(&["-p", "0", "-n", &text(&answers), "-d", &depth]));
            } else {
                let mut arguments: Vec<String> = words(&["-p", "0", "-n", "0"]);
                for answer in answers {
                    arguments.extend(["-gp".to_owned(), format!("{depth},{answer}")]);
                }
                invocations.push(arguments);
            }
        }
        invocations
    }
}

impl Outcome {
    fn add(&mut self, measured: Vec<Measured>, peak_memory_bytes: Option<u64>) {
        self.measured.extend(measured);
        self.peak_memory_bytes = self.peak_memory_bytes.max(peak_memory_bytes);
    }
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (switch, value)) in self.0.iter().enumerate() {
            let space = if index > 0 { " " } else { "" };
            write!(f, "{space}{switch} {value}")?;
        }
        Ok(())
    }
}

fn batched_arguments(test: &Test, setting: &Setting, options: &BTreeSet<String>) -> Vec<String> {
    let depth = test.depth.max(1);
    let part = (depth + test.tokens).next_multiple_of(CONTEXT_GRANULE);
    let mut arguments = vec![
        "-npp".to_owned(),
        depth.to_string(),
        "-ntg".to_owned(),
        test.tokens.to_string(),
        "-npl".to_owned(),
        test.batch.to_string(),
        "-c".to_owned(),
        (part * test.batch).to_string(),
    ];
    if options.contains("jsonl") {
        arguments.extend(["--output-format".to_owned(), "jsonl".to_owned()]);
    }
    for (switch, value) in setting.0.iter().filter(|(switch, _)| options.contains(*switch)) {
        match (*switch, value.as_str()) {
            // A flag there, which is off unless it is given.
            ("-rtr", "0") => {}
            ("-rtr", _) => arguments.push((*switch).to_owned()),
            (_, value) => {
                let word = match value {
                    "0" => "off",
                    "1" => "on",
                    other => other,
                };
                arguments.extend([(*switch).to_owned(), word.to_owned()]);
            }
        }
    }
    arguments
}

/// The program and the options after it. A path that has spaces must be there.
fn split(asked: &str) -> Result<(String, Vec<String>)> {
    if Path::new(asked).is_file() {
        return Ok((asked.to_owned(), Vec::new()));
    }
    let mut words = asked.split_whitespace().map(str::to_owned);
    let name = words.next().context("--against is empty: give a program's name or path")?;
    Ok((name, words.collect()))
}

/// Options that go to every run, and every combination of the switches' values.
fn settings(given: &[String], options: &BTreeSet<String>) -> Result<(Vec<String>, Vec<Setting>)> {
    let mut fixed = Vec::new();
    let mut chosen: Vec<(&'static str, Vec<String>)> = Vec::new();
    let mut words = given.iter();
    while let Some(word) = words.next() {
        let Some(switch) = SWITCHES.into_iter().find(|switch| switch == word) else {
            fixed.push(word.clone());
            continue;
        };
        ensure!(options.contains(switch), "--against: this program has no option {switch}");
        let values = words.next().with_context(|| format!("--against: {switch} needs a value"))?;
        chosen.push((switch, values.split(',').map(str::to_owned).collect()));
    }
    for switch in SWITCHES {
        if options.contains(switch) && !chosen.iter().any(|(known, _)| *known == switch) {
            chosen.push((switch, vec!["0".to_owned(), "1".to_owned()]));
        }
    }
    let mut settings = vec![Setting(Vec::new())];
    for (switch, values) in chosen {
        settings = settings
            .iter()
            .flat_map(|setting| {
                values.iter().map(move |value| {
                    let mut longer = setting.clone();
                    longer.0.push((switch, value.clone()));
                    longer
                })
            })
            .collect();
    }
    Ok((fixed, settings))
}

fn on_path_default(name: &str) -> Result<PathBuf> {
    on_path(name, std::env::var_os("PATH"))
}

fn on_path(name: &str, path: Option<std::ffi::OsString>) -> Result<PathBuf> {
    if name.contains(std::path::MAIN_SEPARATOR) {
        ensure!(Path::new(name).is_file(), "{name} is not a file");
        return Ok(PathBuf::from(name));
    }
    std::env::split_paths(&path.unwrap_or_default())
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is in no folder of the PATH"))
}

/// Every word of a program's help.
fn help(program: &Path) -> Result<BTreeSet<String>> {
    let output = Command::new(program)
        .arg("--help")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} cannot be started", program.display()))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let is_end = |c: char| c.is_whitespace() || ",|<>()[]{}:;".contains(c);
    Ok(text.split(is_end).filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// Runs a program to its end, watching how much memory it takes.
pub(super) fn run_to_end(mut command: Command) -> Result<(Output, Option<u64>)> {
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
    let process = child.id().to_string();
    let ended = AtomicBool::new(false);
    let (output, peak) = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = None;
            while !ended.load(Ordering::Relaxed) {
                peak = peak.max(peak_memory_bytes(&process));
                std::thread::sleep(Duration::from_millis(20));
            }
            peak
        });
        let output = child.wait_with_output();
        ended.store(true, Ordering::Relaxed);
        (output, watch.join().unwrap_or(None))
    });
    let output = output.with_context(|| format!("{program} cannot be waited for"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = lines[lines.len().saturating_sub(3)..].join(" / ");
        bail!("{program} failed ({}): {last}", output.status);
    }
    Ok((output, peak))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn words(text: &str) -> BTreeSet<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn shown(given: &str, options: &str) -> (Vec<String>, Vec<String>) {
        let given: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
        let (fixed, settings) = settings(&given, &words(options)).unwrap();
        (fixed, settings.iter().map(Setting::to_string).collect())
    }

    #[test]
    fn switches_vary_unless_they_are_given() {
        let all = ["-fa 0 -rtr 0", "-fa 0 -rtr 1", "-fa 1 -rtr 0", "-fa 1 -rtr 1"];
        assert_eq!(shown("", "-fa -rtr"), (vec![], all.map(str::to_owned).to_vec()));
        let (fixed, settings) = shown("-fa 1 -ctk q8_0", "-fa -ctk");
        assert_eq!((fixed.join(" "), settings.join(" ")), ("-ctk q8_0".into(), "-fa 1".into()));
        assert_eq!(shown("", "-m").1, [""]);
        let refused = settings_error("-rtr 1", "-fa");
        assert!(refused.contains("no option -rtr"), "{refused}");
        assert!(settings_error("-fa", "-fa").contains("needs a value"));
    }

    fn settings_error(given: &str, options: &str) -> String {
        let given: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
        settings(&given, &words(options)).unwrap_err().to_string()
    }

    fn rival(options: &str) -> Rival {
        Rival {
            name: "llama-bench".to_owned(),
            program: PathBuf::new(),
            options: words(options),
            batched: None,
            fixed: Vec::new(),
            settings: Vec::new(),
        }
    }

    #[test]
    fn tests_become_arguments_of_either_program() {
        let test = |kind, tokens, depth| Test { kind, tokens, depth, batch: 1 };
        let tests = [
            test(Kind::Prefill, 512, 0),
            test(Kind::Prefill, 2048, 0),
            test(Kind::Decode, 128, 0),
            test(Kind::Decode, 128, 2048),
        ];
        let joined = |options: &str| {
            let invocations = rival(options).invocations(&tests);
            invocations.iter().map(|arguments| arguments.join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(joined("-d"), ["-p 512,2048 -n 128", "-p 0 -n 128 -d 2048"]);
        assert_eq!(joined("-gp"), ["-p 512,2048 -n 128", "-p 0 -n 0 -gp 2048,128"]);
        assert_eq!(joined(""), ["-p 512,2048 -n 128"]);
        assert_eq!(rival("").lacks(&tests[3]), Some("cannot start at a depth"));
        let many = Test { batch: 8, ..tests[2] };
        assert!(rival("").lacks(&many).unwrap().contains("llama-batched-bench"));
    }

    #[test]
    fn several_sequences_have_their_own_program() {
        let test = Test { kind: Kind::Decode, tokens: 128, depth: 0, batch: 8 };
        let setting = Setting(vec![("-fa", "0".to_owned()), ("-rtr", "1".to_owned())]);
        let both = batched_arguments(&test, &setting, &words("-fa -rtr"));
        assert_eq!(both.join(" "), "-npp 1 -ntg 128 -npl 8 -c 2048 -fa off -rtr");
        let one = batched_arguments(&test, &setting, &words("-fa jsonl"));
        assert_eq!(one.join(" "), "-npp 1 -ntg 128 -npl 8 -c 2048 --output-format jsonl -fa off");
    }
}
