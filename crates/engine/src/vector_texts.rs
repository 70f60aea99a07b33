//! How does a model want the texts of vectors to be read? As its folder says, in the files of
//! sentence-transformers.

use weights::WeightFile;

use crate::EngineError;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct VectorTexts {
    /// Before each text.
    pub(crate) prefix: String,
    /// The longest text in tokens, those around it included.
    pub(crate) tokens_max: Option<u32>,
}

impl VectorTexts {
    pub(crate) fn of(file: &WeightFile) -> Result<Self, EngineError> {
        let prefix: Option<&str> = file.metadata().optional("pelton.text_prefix")?;
        let tokens_max = file.metadata().optional("pelton.text_tokens_max")?;
        Ok(Self { prefix: prefix.unwrap_or_default().to_owned(), tokens_max })
    }

    /// How many tokens of a text are read in such a context, in which one is the answer's.
    pub(crate) fn room(&self, context_tokens_max: u32) -> usize {
        let room = context_tokens_max - 1;
        self.tokens_max.map_or(room, |most| most.min(room)) as usize
    }
}
