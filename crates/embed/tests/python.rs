//! Python's `pelton.Engine` on this build, a tiny model and an allocator in C.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::tiny_model::TinyModel;

/// `target/debug` or another profile's folder: this test is in its `deps`.
fn build_folder() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    program.parent().unwrap().parent().unwrap().to_owned()
}

fn tree() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().parent().unwrap()
}

/// The program beside this build; made now where this package alone is tested.
fn program() -> PathBuf {
    let folder = build_folder();
    let path = folder.join(format!("pelton{}", std::env::consts::EXE_SUFFIX));
    if !path.is_file() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "pelton", "--bin", "pelton", "--offline"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the program cannot be built");
    }
    path
}

fn library() -> PathBuf {
    let (before, after) = (std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let path = build_folder().join("deps").join(format!("{before}pelton_embed{after}"));
    assert!(path.is_file(), "{} was not built with this test", path.display());
    path
}

/// The example of docs/allocator.md.
fn allocator(folder: &Path) -> Option<PathBuf> {
    let path = folder.join("libheaps.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&path)
        .arg(tree().join("docs/allocator/mapped.c"))
        .arg(format!("-I{}", tree().join("include").display()))
        .status();
    compiled.is_ok_and(|status| status.success()).then_some(path)
}

#[test]
fn python_holds_an_engine_in_its_own_process() {
    if Command::new("python3").arg("--version").output().is_err() {
        println!("skipped: there is no python3");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("tiny.gguf");
    std::fs::write(&model, TinyModel::default().to_bytes()).unwrap();
    let mut check = Command::new("python3");
    check
        .arg(tree().join("packaging/python/tests/check.py"))
        .arg(&model)
        .args(allocator(folder.path()))
        .env("PYTHONPATH", tree().join("packaging/python/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PELTON_EMBED_LIBRARY", library())
        .env("PELTON_PROGRAM", program())
        .env("PELTON_HOME", folder.path())
        .env("XDG_CONFIG_HOME", folder.path())
        .env("PELTON_OFFLINE", "1");
    let output = check.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(" passed"), "{said}");
}
