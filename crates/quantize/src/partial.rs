//! How does a file or folder come into being whole or not at all? Written beside its place under
//! another name, and renamed when it is complete.

use std::path::{Path, PathBuf};

use crate::QuantizeError;

/// What is being written; removed again unless it is finished.
pub(crate) struct Partial {
    pub(crate) path: PathBuf,
    place: PathBuf,
    is_finished: bool,
}

impl Partial {
    /// # Errors
    /// When something is at `place` already, unless it may be replaced and is a file.
    pub(crate) fn beside(place: &Path, replaces: bool) -> Result<Self, QuantizeError> {
        let is_there = place.symlink_metadata().is_ok();
        if is_there && !(replaces && place.is_file()) {
            return Err(QuantizeError::Exists { path: place.to_owned() });
        }
        let name = place.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| QuantizeError::Place { path: place.to_owned() })?;
        let path = place.with_file_name(format!(".{name}.{}.partial", std::process::id()));
        Ok(Self { path, place: place.to_owned(), is_finished: false })
    }

    pub(crate) fn finish(mut self) -> Result<(), QuantizeError> {
        std::fs::rename(&self.path, &self.place)
            .map_err(|reason| QuantizeError::Write { path: self.place.clone(), reason })?;
        self.is_finished = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // Nothing to be done if it cannot be removed: the error that is on its way says more.
        if self.path.is_dir() {
            let _ = std::fs::remove_dir_all(&self.path);
        } else {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
