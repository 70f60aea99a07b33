//! Where do compiled kernels stay from one start to the next? In a folder of the user's caches.

use std::path::{Path, PathBuf};

/// `pelton/kernels` in the user's caches; `None`: the environment names no place for them.
pub fn folder() -> Option<PathBuf> {
    let caches = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let caches = caches.map(PathBuf::from).or_else(|| {
        let home = std::env::var_os("HOME").filter(|path| !path.is_empty())?;
        Some(PathBuf::from(home).join(".cache"))
    })?;
    Some(caches.join("pelton").join("kernels"))
}

/// Whole or not at all: another process may read it at the same time.
///
/// # Errors
/// What the system says. Nothing is lost but time at the next start.
pub fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, bytes)?;
    std::fs::rename(partial, path)
}
