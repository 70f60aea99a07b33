//! Compiles the kernels ahead where `nvcc` is found: in `PELTON_NVCC`, or on the PATH.
//!
//! Without it the program carries the kernels' text, and compiles what a model needs at first use.
//! `PELTON_CUDA_TARGETS` narrows the list of targets (such as `90a`), for quicker builds.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "src/variants.rs"]
mod variants;

/// Machine code for data-center Ampere (and what else is 8.x), Ada, and all of Hopper.
const TARGETS: &str = "80,89,90a";

fn main() -> Result<(), Box<dyn Error>> {
    let mut cargo = std::io::stdout();
    for path in ["kernels", "src/variants.rs"] {
        writeln!(cargo, "cargo::rerun-if-changed={path}")?;
    }
    for variable in ["PELTON_NVCC", "PELTON_CUDA_TARGETS"] {
        writeln!(cargo, "cargo::rerun-if-env-changed={variable}")?;
    }
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut images = String::from("pub(crate) static IMAGES: &[(&str, &[u8])] = &[\n");
    if let Some(nvcc) = nvcc() {
        for &(name, files, definitions) in variants::VARIANTS {
            let image = out.join(format!("{name}.fatbin"));
            compile(&nvcc, files, definitions, &image)?;
            writeln!(images, "    ({name:?}, include_bytes!({image:?})),")?;
        }
    }
    images.push_str("];\n");
    std::fs::write(out.join("images.rs"), images)?;
    Ok(())
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
    let targets = std::env::var("PELTON_CUDA_TARGETS").unwrap_or_else(|_| TARGETS.to_owned());
    text += &format!("// {nvcc:?} {definitions:?} {targets}\n");
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
    let targets: Vec<&str> = targets.split(',').collect();
    for target in &targets {
        command.arg(format!("-gencode=arch=compute_{target},code=sm_{target}"));
    }
    // For what comes later: compiled by the driver.
    if let Some(last) = targets.last().map(|target| target.trim_end_matches('a')) {
        command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    }
    command.args(definitions.iter().map(|definition| format!("-D{definition}")));
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("nvcc refuses {files} of kernels/").into()) }
}
