//! Do all GPU kernels compile, for every kind of GPU they are meant for? No GPU is needed.
//!
//! With the `nvcc` of `PELTON_NVCC` or the PATH; without one, a word and no failure. The list of
//! kernels is the one that the program itself is built with.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::tree;

const TARGETS: [&str; 4] = ["75", "80", "89", "90a"];

pub(super) fn run(arguments: &[String]) -> Result<()> {
    ensure!(arguments.is_empty(), "`kernels` takes no arguments");
    let named = std::env::var("PELTON_NVCC").unwrap_or_default();
    let nvcc = if named.is_empty() { "nvcc" } else { &named };
    if Command::new(nvcc).arg("--version").output().is_err() {
        println!("skipped: there is no nvcc (PELTON_NVCC names one; PyPI has nvidia-cuda-nvcc)");
        return Ok(());
    }
    let root = tree::root()?.join("crates/backend-cuda");
    let list = std::fs::read_to_string(root.join("src/variants.rs"))?;
    let variants = variants(&list)?;
    let folder = std::env::temp_dir().join(format!("pelton-kernels-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let compiled = compile_all(nvcc, &root, &folder, &variants);
    std::fs::remove_dir_all(&folder)?;
    compiled?;
    println!("{} kernel images compiled for sm_{}", variants.len(), TARGETS.join(", sm_"));
    Ok(())
}

/// A row of `variants.rs`: name, files, definitions.
#[derive(Debug, PartialEq)]
struct Variant {
    name: String,
    files: String,
    definitions: Vec<String>,
}

/// The strings of each row, which may stand on several lines.
fn variants(list: &str) -> Result<Vec<Variant>> {
    let list: String = list.lines().map(str::trim).collect();
    let variant = |row: &str| {
        let row = row.split_once(']').map_or(row, |(row, _)| row);
        let mut strings = row.split('"').step_by(2).map(str::to_owned);
        let missing = || format!("no variant: {row}");
        let (name, files) =
            (strings.next().with_context(missing)?, strings.next().with_context(missing)?);
        Ok(Variant { name, files, definitions: strings.collect() })
    };
    let variants: Vec<Variant> = list.split("(\"").skip(1).map(variant).collect::<Result<_>>()?;
    ensure!(!variants.is_empty(), "no variants in src/variants.rs");
    Ok(variants)
}

/// As many at a time as there are cores.
fn compile_all(nvcc: &str, root: &Path, folder: &Path, variants: &[Variant]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(variant) = variants.get(next.fetch_add(1, Ordering::Relaxed)) {
            compile(nvcc, root, folder, variant)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("invariant: no panics"))
    })
}

fn compile(nvcc: &str, root: &Path, folder: &Path, variant: &Variant) -> Result<()> {
    let text = |name: &str| std::fs::read_to_string(root.join("kernels").join(name));
    let source = folder.join(format!("{}.cu", variant.name));
    let mut whole = text("prelude.cuh")?;
    for file in variant.files.split('+') {
        let ending = if file.contains('.') { "" } else { ".cu" };
        whole += &text(&format!("{file}{ending}"))?;
    }
    std::fs::write(&source, whole)?;
    let mut command = Command::new(nvcc);
    command.args(["--fatbin", "-std=c++17", "-o"]).arg(source.with_extension("image")).arg(&source);
    if let Some(folder) = Path::new(nvcc).parent().and_then(Path::parent) {
        command.arg("-I").arg(folder.join("include"));
    }
    for target in TARGETS {
        command.arg(format!("-gencode=arch=compute_{target},code=sm_{target}"));
    }
    command.args(variant.definitions.iter().map(|definition| format!("-D{definition}")));
    if !command.status()?.success() {
        bail!("nvcc refuses {}", variant.name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Variant, variants};

    #[test]
    fn the_list_is_read_as_it_is_written() {
        let list = "const A: &[V] = &[\n    (\"b-1\", \"b\", &[\"C=1\", \"D=2\"]),\n    \
                    (\"e\", \"e\", &[]),\n    (\n        \"f\",\n        \"g+f\",\n        \
                    &[\"D=3\"],\n    ),\n];";
        let of = |name: &str, files: &str, definitions: &[&str]| Variant {
            name: name.to_owned(),
            files: files.to_owned(),
            definitions: definitions.iter().map(|&one| one.to_owned()).collect(),
        };
        let read = variants(list).unwrap_or_default();
        assert_eq!(
            read,
            [of("b-1", "b", &["C=1", "D=2"]), of("e", "e", &[]), of("f", "g+f", &["D=3"])]
        );
        assert!(variants("nothing").is_err());
    }
}
