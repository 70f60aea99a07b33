//! What went wrong with a model file, where in it, and what can its owner do?

use std::fmt;
use std::path::PathBuf;

/// Text after which nothing more of a name from a file is quoted, in characters.
const QUOTE_CHARS_MAX: usize = 120;

/// Why a model file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("cannot {action} {}: {reason}", path.display())]
    Io { action: &'static str, path: PathBuf, reason: std::io::Error },
    #[error("{} is {found}; supported now: a GGUF file (.gguf), and a folder \
        with config.json and .safetensors files",
        path.display())]
    NotSupported { path: PathBuf, found: String },
    #[error("{}: {flaw}", path.display())]
    Damaged { path: PathBuf, flaw: Flaw },
    #[error("part {part} of {count} is missing: put {} beside the others", path.display())]
    PartMissing { path: PathBuf, part: u32, count: u32 },
    #[error("{}: the parts do not belong together: {problem}", path.display())]
    PartMismatch { path: PathBuf, problem: String },
    #[error(
        "{} had {opened_bytes} bytes when it was opened and has {now_bytes} now: \
        do not change a model file while it loads", path.display())]
    Changed { path: PathBuf, opened_bytes: u64, now_bytes: u64 },
    #[error("{}: {problem}", path.display())]
    Folder { path: PathBuf, problem: String },
    #[error("metadata key {key} is missing: the file is not a model of this kind, or incomplete")]
    KeyMissing { key: String },
    #[error("metadata key {key} holds {found}, expected {expected}")]
    KeyType { key: String, found: String, expected: &'static str },
    #[error("tensor {name} is missing: the file is incomplete or of another architecture")]
    TensorMissing { name: String },
    #[error("tensor {name} is stored as {found}, which is not supported; supported: {supported}")]
    TensorFormat { name: String, found: String, supported: String },
}

/// What is wrong with the bytes of a file, and at which offset from its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    pub offset: u64,
    pub problem: String,
}

impl Flaw {
    pub(crate) fn new(offset: usize, problem: String) -> Self {
        Flaw { offset: offset as u64, problem }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at byte {}: {}", self.offset, self.problem)
    }
}

/// A name from a file, safe to print: control characters escaped, long ones cut.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for character in chars.by_ref().take(QUOTE_CHARS_MAX) {
            write!(f, "{}", character.escape_debug())?;
        }
        if chars.next().is_some() {
            f.write_str("...")?;
        }
        Ok(())
    }
}
