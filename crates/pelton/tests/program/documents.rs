//! Do the commands of the documents work, on the default model?
//!
//! Every line of a block of `sh` is run (with the lines that a quoted text goes on in), but for
//! blocks below a mark: `<!-- ci:tiny: REASON -->` has a tiny model stand in for the default one;
//! `<!-- ci:build -->` is run by `.ci/run`, in a copy of the tree; `<!-- ci:test -->` runs these
//! tests; and `<!-- ci:skip: REASON -->` is not run. Each document starts in an empty folder that
//! is its reader's home, too. Where `curl` asks the server, one is there, with an embedding model
//! and a reranker; who listens to other machines does so in a network without any.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use testkit::default_model;
use testkit::tiny_model::TinyModel;

use crate::running::{Home, Server};

const DOCUMENTS: [&str; 10] = [
    "README.md",
    "docs/allocator.md",
    "docs/apis.md",
    "docs/how-it-works.md",
    "docs/install.md",
    "docs/models.md",
    "docs/operations.md",
    "docs/performance.md",
    "docs/python.md",
    "docs/web.md",
];
/// What is not run, by the first line of its block: a new one is to be noticed.
const SKIPPED: [&str; 1] = ["docker build -f packaging/container/Containerfile -t pelton ."];

/// Who runs a block.
#[derive(Clone, Copy, PartialEq)]
enum Runner {
    Here,
    HereWithTiny,
    /// `.ci/run`: the tests themselves, and what builds.
    Ci,
    Nobody,
}

struct Block {
    runner: Runner,
    lines: Vec<String>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The blocks of commands of a document.
fn blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open, mut runner) = (Vec::new(), None, Runner::Here);
    for line in text.lines() {
        match &mut open {
            Some(Block { lines, .. }) if !line.starts_with("```") => lines.push(line.to_owned()),
            Some(_) => blocks.extend(open.take()),
            None if line == "```sh" => open = Some(Block { runner, lines: Vec::new() }),
            None => {}
        }
        if !line.is_empty() {
            runner = match line.strip_prefix("<!-- ci:") {
                Some("test -->" | "build -->") => Runner::Ci,
                Some(mark) if mark.starts_with("tiny: ") => Runner::HereWithTiny,
                Some(mark) if mark.starts_with("skip: ") => Runner::Nobody,
                Some(mark) => panic!("ci:{mark} is no mark"),
                None => Runner::Here,
            };
        }
    }
    blocks
}

fn read(document: &str) -> Vec<Block> {
    blocks(&std::fs::read_to_string(root().join(document)).unwrap())
}

#[test]
fn what_documents_say_and_nobody_runs_is_known() {
    let mut skipped = Vec::new();
    for document in DOCUMENTS {
        let all = read(document).into_iter().filter(|block| block.runner == Runner::Nobody);
        skipped.extend(all.map(|mut block| block.lines.remove(0)));
    }
    assert_eq!(skipped, SKIPPED);
    // `.ci/run` looks for these marks in one document each.
    for (document, mark) in
        [("README.md", "<!-- ci:test -->"), ("docs/install.md", "<!-- ci:build -->")]
    {
        let has_mark =
            |name: &&str| std::fs::read_to_string(root().join(name)).unwrap().contains(mark);
        assert_eq!(DOCUMENTS.iter().copied().filter(has_mark).collect::<Vec<_>>(), [document]);
        let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
        assert!(ci.contains(&format!("'{mark}' {document}")), "{mark} of {document}");
    }
    let all = std::fs::read_dir(root().join("docs")).unwrap();
    for path in all.map(|entry| entry.unwrap().path()) {
        let name = format!("docs/{}", path.file_name().unwrap().to_str().unwrap());
        // The reference is written by the program and has no commands.
        let is_known = DOCUMENTS.contains(&name.as_str()) || name == "docs/configuration.md";
        assert!(is_known || !name.ends_with(".md"), "{name} is not looked at");
    }
}

#[test]
fn the_commands_of_documents_work() {
    let Some(model) = default_model() else {
        eprintln!("the default model is not here");
        return;
    };
    let (home, running) = (Home::new(), Home::new());
    std::fs::create_dir(home.path().join("models")).unwrap();
    let name = model.file_name().unwrap();
    std::os::unix::fs::symlink(&model, home.path().join("models").join(name)).unwrap();
    let server = examples_server(&running, &model);
    let is_here = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let absent: Vec<&str> =
        ["curl ", "python3 "].into_iter().filter(|name| !is_here(name.trim())).collect();
    for document in DOCUMENTS {
        let reader = Reader::new(&home, &server);
        for Block { runner, lines } in read(document) {
            if !matches!(runner, Runner::Here | Runner::HereWithTiny) {
                continue;
            }
            for line in commands(&lines) {
                if let Some(name) = absent.iter().find(|name| line.starts_with(**name)) {
                    eprintln!("{document}: there is no {name}here");
                    continue;
                }
                reader.run(document, &line, runner);
            }
        }
    }
}

/// What the examples of the APIs ask.
fn examples_server(running: &Home, model: &Path) -> Server {
    let golden = root().join("crates/engine/golden");
    let named = |name: &str, path: &Path| format!("{name}={}", path.display());
    let models = [
        named("smollm2", model),
        named("vectors", &golden.join("embeddings/bert_first.gguf")),
        named("ranker", &golden.join("rerankers/bert")),
    ];
    let models: Vec<&str> = models.iter().map(String::as_str).collect();
    Server::start_with(running, &[&models[..], &["--set", "limits.kv_cache_mb=200"]].concat())
}

/// Lines, each with those that its quoted text goes on in.
fn commands(lines: &[String]) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    for line in lines {
        match commands.last_mut().filter(|last| last.matches('\'').count() % 2 == 1) {
            Some(open) => open.push_str(&format!("\n{line}")),
            None => commands.push(line.clone()),
        }
    }
    commands
}

/// Who does what a document says.
struct Reader<'a> {
    home: &'a Home,
    folder: tempfile::TempDir,
    /// Of a server that is there to be looked at.
    port: &'a str,
}

impl<'a> Reader<'a> {
    fn new(home: &'a Home, server: &'a Server) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        std::os::unix::fs::symlink(root().join("tools"), folder.path().join("tools")).unwrap();
        std::fs::copy(home.tiny(), folder.path().join("models/big.gguf")).unwrap();
        let tiny = TinyModel { context: 2048, ..TinyModel::default() };
        std::fs::write(folder.path().join("tiny.gguf"), tiny.to_bytes()).unwrap();
        let port = server.url.trim_end_matches("/v1").rsplit(':').next().unwrap();
        Self { home, folder, port }
    }

    fn run(&self, document: &str, line: &str, runner: Runner) {
        let line = line.replace("cargo run --release -- ", "pelton ");
        let asks = "curl --fail-with-body --silent --show-error --max-time 300 ";
        let line = match line.strip_prefix("curl ") {
            Some(rest) => format!("{asks}{}", rest.replace(":8080", &format!(":{}", self.port))),
            None => line,
        };
        let is_server = line.starts_with("pelton serve");
        let looks = line.starts_with("pelton ps") || line.starts_with("pelton top");
        let alone = "unshare --user --map-root-user --net";
        // `exec`, so that what is ended is the server and not its shell.
        let text = match is_server {
            true if !line.contains("--host ") => format!("exec {line}"),
            true if self.command(&format!("{alone} true")).status().unwrap().success() => {
                format!("exec {alone} {line}")
            }
            true => {
                eprintln!("{document}: skipped, for {alone} is not possible here: {line}");
                return;
            }
            false => line.clone(),
        };
        let mut command = self.command(&text);
        if runner == Runner::HereWithTiny {
            command.env("PELTON_MODEL", "tiny.gguf");
        }
        command.env("PELTON_SERVER__PORT", if looks { self.port } else { "0" });
        if !is_server {
            let output = command.output().unwrap();
            assert!(output.status.success(), "{document}: {line}: {output:?}");
            return;
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(child.stderr.take().unwrap()).lines();
        let is_serving = said.map_while(Result::ok).any(|said| said.starts_with("serving "));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_serving, "{document}: {line}");
    }

    /// A line in a shell that finds the program.
    fn command(&self, line: &str) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_pelton")).parent().unwrap();
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-euc", line])
            .current_dir(self.folder.path())
            .env("PATH", format!("{}:{path}", program.display()))
            .env("HOME", self.folder.path())
            .env("PELTON_HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.folder.path().join(".config"))
            .env("PELTON_OFFLINE", "1")
            .env("PELTON_DEVICE", "cpu")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }
}
