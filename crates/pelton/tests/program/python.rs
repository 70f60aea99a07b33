//! Packages of Python that tests ask: each set in a virtual environment, made once and kept beside
//! the build.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter of an environment called `name` that has `packages`; `None`, and a word of it,
/// where there is none and none can be made.
///
/// # Panics
/// In CI, where it must be.
pub(crate) fn environment(name: &str, packages: &[&str], imports: &str) -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let python = folder.join("bin/python");
    let has_all = || {
        let import = Command::new(&python).args(["-c", &format!("import {imports}")]).output();
        import.is_ok_and(|output| output.status.success())
    };
    let runs = |command: &mut Command| command.output().is_ok_and(|told| told.status.success());
    if has_all()
        || runs(Command::new("python3").args(["-m", "venv"]).arg(&folder))
            && runs(Command::new(&python).args(["-m", "pip", "install", "-q"]).args(packages))
            && has_all()
    {
        return Some(python);
    }
    assert!(std::env::var_os("CI").is_none(), "in CI {packages:?} must be installable");
    eprintln!("skipped: python3 with {packages:?} could not be set up");
    None
}
