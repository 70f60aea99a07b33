//! Which files make up the project? Those git tracks or would track, with their text.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::rust_source::RustSource;

/// The files of a checkout, sorted by path.
pub(crate) struct Tree {
    pub(crate) root: PathBuf,
    pub(crate) files: Vec<File>,
}

pub(crate) struct File {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    /// `None` where the file is not UTF-8.
    pub(crate) text: Option<String>,
    /// `Some` for `.rs` files.
    pub(crate) rust: Option<RustSource>,
}

/// The folder that holds the virtual manifest: the parent of this crate's, wherever the clone is.
pub(crate) fn root() -> Result<PathBuf> {
    let manifest = std::env::var("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set: start xtask with `cargo xtask`")?;
    let root = Path::new(&manifest).parent().context("xtask has no parent folder")?;
    Ok(root.to_owned())
}

impl Tree {
    pub(crate) fn here() -> Result<Self> {
        let root = root()?;
        let mut paths = listed_by_git(&root).or_else(|_| walked(&root))?;
        paths.sort();
        paths.dedup();
        let mut files = Vec::new();
        for path in paths {
            let full = root.join(&path);
            // A file deleted but not yet committed is still listed.
            if full.is_file() {
                let bytes = std::fs::read(&full).with_context(|| format!("reading {path}"))?;
                files.push(File::new(path, bytes));
            }
        }
        Ok(Self { root, files })
    }

    /// A tree that exists only in a test.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| File::new((*path).to_owned(), (*text).into());
        Self { root: PathBuf::new(), files: files.iter().map(file).collect() }
    }

    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.files.iter().find(|file| file.path == path)?.text.as_deref()
    }

    pub(crate) fn rust(&self) -> impl Iterator<Item = (&File, &RustSource)> {
        self.files.iter().filter_map(|file| Some((file, file.rust.as_ref()?)))
    }

    /// Names of all crates: folders with a manifest under `crates/`, and `xtask`.
    pub(crate) fn crates(&self) -> impl Iterator<Item = &str> {
        self.files
            .iter()
            .filter(|file| file.path.ends_with("/Cargo.toml"))
            .filter_map(|file| file.crate_name())
    }
}

impl File {
    fn new(path: String, bytes: Vec<u8>) -> Self {
        let size = bytes.len() as u64;
        let text = String::from_utf8(bytes).ok();
        let rust = text
            .as_deref()
            .filter(|_| path.ends_with(".rs"))
            .map(|text| RustSource::new(text, is_test_path(&path)));
        Self { path, bytes: size, text, rust }
    }

    /// The folder name of the crate the file is in.
    pub(crate) fn crate_name(&self) -> Option<&str> {
        match self.path.strip_prefix("crates/") {
            Some(inside) => inside.split_once('/').map(|(name, _)| name),
            None => self.path.starts_with("xtask/").then_some("xtask"),
        }
    }
}

/// Integration tests, and modules named `tests` in files of their own.
fn is_test_path(path: &str) -> bool {
    path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

fn listed_by_git(root: &Path) -> Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("git cannot be started")?;
    if !output.status.success() {
        bail!("git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    }
    let paths = String::from_utf8(output.stdout).context("a path is not UTF-8")?;
    Ok(paths.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
}

/// For source archives without a repository: everything but build output and hidden folders.
fn walked(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && name != "__pycache__" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if let Ok(inside) = path.strip_prefix(root) {
                paths.push(inside.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    Ok(paths)
}
