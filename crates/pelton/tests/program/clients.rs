//! The unmodified Python clients of OpenAI, Anthropic, Ollama and LangChain against a running
//! server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::running::{Home, Server};

/// What the scripts were written for; later ones of the same major version do.
const PACKAGES: &[&str] =
    &["openai>=2,<4", "anthropic>=0.60,<3", "ollama>=0.6.1,<1", "langchain-openai>=1,<2"];

/// A virtual environment with the clients, made once and kept beside the build.
fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    let python = folder.join("bin/python");
    let has_clients = |python: &Path| {
        let all = "import openai, anthropic, ollama, langchain_openai";
        let import = Command::new(python).args(["-c", all]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if has_clients(&python) {
        return Some(python);
    }
    let make = Command::new("python3").args(["-m", "venv"]).arg(&folder).output();
    if !make.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let install =
        Command::new(&python).args(["-m", "pip", "install", "-q"]).args(PACKAGES).output();
    (install.is_ok_and(|output| output.status.success()) && has_clients(&python)).then_some(python)
}

#[test]
fn clients_get_what_they_ask_for() {
    let home = Home::new();
    let Some(model) = testkit::default_model() else {
        eprintln!("skipped: the default model is not here; `pelton pull smollm2` brings it");
        return;
    };
    let Some(python) = python() else {
        assert!(std::env::var_os("CI").is_none(), "in CI the clients must be installable");
        eprintln!("skipped: python3 with {PACKAGES:?} could not be set up");
        return;
    };
    let server = Server::start(&home, &model, &[]);
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/clients");
    for script in ["check_openai.py", "check_anthropic_ollama.py", "check_langchain.py"] {
        let output =
            Command::new(&python).arg(scripts.join(script)).arg(&server.url).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {said}\n{errors}");
    }
}
