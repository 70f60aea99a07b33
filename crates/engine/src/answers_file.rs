//! How do remembered answers outlast the process? In one file a model, replaced as a whole when the
//! engine ends and read when it starts.
//!
//! It holds prompts and answers, so only its owner may read it. A file that cannot be used is left
//! out with a word in the log: what it held is computed again.

use std::fs::{self, File, OpenOptions};
use std::io::{Error, Read, Write};
use std::path::{Path, PathBuf};

use kv_tiers::BlockKey;
use sharing::{FileKey, Sharing};

use crate::EngineError;

pub(crate) struct AnswersFile {
    path: PathBuf,
    key: FileKey,
    /// Longer ones are not ours.
    bytes_max: u64,
}

/// The head of a file and its checksum; an answer takes fewer bytes in a file than in memory.
const FRAME_BYTES: u64 = 80;
const NAME_BYTES_MAX: usize = 100;
/// 64 bits: no two ids that somebody chose have the same.
const DIGEST_LETTERS: usize = 16;

impl AnswersFile {
    /// # Errors
    /// When the folder is not there and cannot be made.
    pub(crate) fn new(
        folder: &Path,
        model_id: &str,
        key: FileKey,
        answers_bytes_max: u64,
    ) -> Result<Self, EngineError> {
        fs::create_dir_all(folder).map_err(|error| {
            let shown = folder.display();
            EngineError::Option(format!("sharing.folder {shown} cannot be made: {error}"))
        })?;
        // Ids may hold slashes and whatever else a file name must not.
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        let letters = model_id.chars().map(|letter| if is_plain(letter) { letter } else { '-' });
        let mut name: String = letters.take(NAME_BYTES_MAX).collect();
        if name != model_id {
            // So that `a/b` and `a-b` have two files.
            let digest = BlockKey::root([model_id.as_bytes()]).to_string();
            name = format!("{name}.{}", &digest[..DIGEST_LETTERS]);
        }
        let path = folder.join(format!("{name}.answers"));
        Ok(Self { path, key, bytes_max: answers_bytes_max.saturating_add(FRAME_BYTES) })
    }

    pub(crate) fn read_into(&self, sharing: &mut Sharing, now_ms: u64) {
        let path = self.path.display();
        let bytes = match self.read() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%path, %error, "remembered answers cannot be read");
                return;
            }
        };
        match sharing.read_file(&bytes, &self.key, now_ms) {
            Ok(count) => tracing::info!(%path, count, "answers are remembered"),
            Err(problem) => tracing::warn!(%path, %problem, "remembered answers are not used"),
        }
    }

    /// `None`: there is no file.
    fn read(&self) -> Result<Option<Vec<u8>>, Error> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Vec::new();
        file.take(self.bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > self.bytes_max {
            return Err(Error::other(format!("it has more than {} bytes", self.bytes_max)));
        }
        Ok(Some(bytes))
    }

    pub(crate) fn write(&self, sharing: &Sharing) {
        let written = self.replace(&sharing.to_file(&self.key));
        if let Err(error) = written {
            let path = self.path.display();
            tracing::warn!(%path, %error, "remembered answers cannot be written");
        }
    }

    /// Whoever reads the path sees the old bytes or the new, also after a crash.
    fn replace(&self, bytes: &[u8]) -> Result<(), Error> {
        let unfinished = self.path.with_extension("answers.new");
        // One that a crash left may have been made with other rights.
        if let Err(error) = fs::remove_file(&unfinished)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = for_owner().open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, &self.path)
    }
}

/// Makes a new file that only its owner may read.
fn for_owner() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn models_have_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = |model_id: &str| {
            let key = FileKey { model: [0; 32], vocabulary_size: 1 };
            AnswersFile::new(folder.path(), model_id, key, 1).unwrap().path
        };
        let long = "m".repeat(NAME_BYTES_MAX);
        let ids = ["a/b", "a-b", "a b", "a.b", "../a", &long, &format!("{long}n")];
        let paths: std::collections::BTreeSet<_> = ids.iter().map(|id| path(id)).collect();
        assert_eq!(paths.len(), ids.len(), "{paths:?}");
        assert!(paths.iter().all(|path| path.parent() == Some(folder.path())), "{paths:?}");
        assert_eq!(path("a-b"), folder.path().join("a-b.answers"), "a plain one is its id");
    }
}
