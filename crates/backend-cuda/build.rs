//! Compiles the kernels ahead where `nvcc` is found: in `PELTON_NVCC`, or on the PATH.
//!
//! Without it the program carries the kernels' text, and compiles what a model needs at first use.
//! `PELTON_CUDA_TARGETS` narrows the list of targets (such as `90`), for quicker builds.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "src/variants.rs"]
mod variants;

/// Machine code for Turing, data-center Ampere (and what else is 8.x), Ada, and all of Hopper.
const TARGETS: &str = "75,80,89,90";

fn main() -> Result<(), Box<dyn Error>> {
    let mut cargo = std::io::stdout();
    for path in ["kernels", "src/variants.rs"] {
        writeln!(cargo, "cargo::rerun-if-changed={path}")?;
    }
    for variable in ["PELTON_NVCC", "PELTON_CUDA_TARGETS"] {
        writeln!(cargo, "cargo::rerun-if-env-changed={variable}")?;
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let targets = targets()?;
    let mut images = format!("pub(crate) static TARGETS: &[u32] = &{targets:?};\n");
    images.push_str("pub(crate) static IMAGES: &[(&str, &[u8])] = &[\n");
    if let Some(nvcc) = nvcc() {
        for &(name, files, definitions) in variants::VARIANTS {
            let image = out.join(format!("{name}.fatbin"));
            compile(&nvcc, &targets, files, definitions, &image)?;
            writeln!(images, "    ({name:?}, include_bytes!({image:?})),")?;
        }
    }
    images.push_str("];\n");
    std::fs::write(out.join("images.rs"), images)?;
    Ok(())
}

/// Capabilities in tenths, each later than the one before.
fn targets() -> Result<Vec<u32>, Box<dyn Error>> {
    let text = std::env::var("PELTON_CUDA_TARGETS").unwrap_or_else(|_| TARGETS.to_owned());
    let number = |part: &str| part.trim_end_matches('a').parse().ok().filter(|&part| part >= 75);
    let targets: Option<Vec<u32>> = text.split(',').map(number).collect();
    let in_order = targets.filter(|targets| targets.is_sorted_by(|a, b| a < b));
    in_order.ok_or_else(|| {
        format!("PELTON_CUDA_TARGETS is `{text}`: name capabilities from 75 on, as in `{TARGETS}`")
            .into()
    })
}

/// An `nvcc` that answers.
fn nvcc() -> Option<PathBuf> {
    let named = std::env::var_os("PELTON_NVCC").filter(|path| !path.is_empty());
    let nvcc = PathBuf::from(named.unwrap_or_else(|| "nvcc".into()));
    let answer = Command::new(&nvcc).arg("--version").output().ok()?;
    answer.status.success().then_some(nvcc)
}

fn compile(
    nvcc: &Path,
    targets: &[u32],
    files: &str,
    definitions: &[&str],
    image: &Path,
) -> Result<(), Box<dyn Error>> {
    let mut text = std::fs::read_to_string("kernels/prelude.cuh")?;
    for file in files.split('+') {
        let ending = if file.contains('.') { "" } else { ".cu" };
        text += &std::fs::read_to_string(format!("kernels/{file}{ending}"))?;
    }
    // Named by the image: unchanged texts with unchanged options are not compiled again.
    text += &format!("// {nvcc:?} {definitions:?} {targets:?}\n");
    let source = image.with_extension("cu");
    if image.exists() && std::fs::read_to_string(&source).is_ok_and(|known| known == text) {
        return Ok(());
    }
    // Until it is made, an older image is nobody's.
    let _ = std::fs::remove_file(image);
    std::fs::write(&source, text)?;
    let mut command = Command::new(nvcc);
    command.args(["--fatbin", "-O3", "-std=c++17", "-o"]).arg(image).arg(&source);
    // Where PyPI's packages put the headers, beside their bin folder.
    if let Some(folder) = nvcc.parent().and_then(Path::parent) {
        command.arg("-I").arg(folder.join("include"));
    }
    for target in targets {
        // All of Hopper, not only what its successors have too.
        let all = if *target == 90 { "a" } else { "" };
        command.arg(format!("-gencode=arch=compute_{target}{all},code=sm_{target}{all}"));
    }
    // For what comes later: compiled by the driver.
    if let Some(last) = targets.last() {
        command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    }
    command.args(definitions.iter().map(|definition| format!("-D{definition}")));
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("nvcc refuses {files} of kernels/").into()) }
}
