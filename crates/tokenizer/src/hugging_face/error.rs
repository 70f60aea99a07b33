//! Why was a Hugging Face tokenizer refused?

use thiserror::Error;

use crate::VocabularyError;

/// Why the tokenizer of a model folder was refused. All are the files' fault.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum HuggingFaceError {
    /// A file above its limit.
    #[error("{file} has {bytes} bytes, more than the {limit} accepted; it is damaged")]
    TooLarge {
        /// Which file.
        file: &'static str,
        /// Its length.
        bytes: usize,
        /// What is accepted.
        limit: usize,
    },
    /// Not the JSON that this file should be.
    #[error("{file} cannot be read: {reason}")]
    NotReadable {
        /// Which file.
        file: &'static str,
        /// What the reader said, with the place.
        reason: String,
    },
    /// Something that this program does not do.
    #[error("tokenizer.json asks for {what}, which is not supported; supported: {supported}")]
    Unsupported {
        /// What it asks for, shortened.
        what: String,
        /// What is there instead.
        supported: &'static str,
    },
    /// Contradicts itself or another file.
    #[error("{file} is damaged: {what}")]
    Damaged {
        /// Which file.
        file: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Its tokens and merges do not fit together.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
}
