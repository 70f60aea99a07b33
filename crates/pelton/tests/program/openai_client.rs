//! The unmodified `openai` Python client against a running server.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::running::{Home, Server};

/// What the acceptance script was written for; any later 3.x does.
const PACKAGE: &str = "openai>=2,<4";

/// A virtual environment with the client, made once and kept beside the build.
fn python() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-client");
    let python = folder.join("bin/python");
    let has_client = |python: &Path| {
        let import = Command::new(python).args(["-c", "import openai"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if has_client(&python) {
        return Some(python);
    }
    let make = Command::new("python3").args(["-m", "venv"]).arg(&folder).output();
    if !make.is_ok_and(|output| output.status.success()) {
        return None;
    }
    let install = Command::new(&python).args(["-m", "pip", "install", "-q", PACKAGE]).output();
    (install.is_ok_and(|output| output.status.success()) && has_client(&python)).then_some(python)
}

#[test]
fn openai_client_gets_what_it_asks_for() {
    let home = Home::new();
    let Some(model) = testkit::default_model() else {
        eprintln!("skipped: the default model is not here; `pelton pull smollm2` brings it");
        return;
    };
    let Some(python) = python() else {
        assert!(std::env::var_os("CI").is_none(), "in CI the client must be installable");
        eprintln!("skipped: python3 with {PACKAGE} could not be set up");
        return;
    };
    let server = Server::start(&home, &model, &[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/openai_client/check.py");
    let output = Command::new(python).arg(script).arg(&server.url).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
}
