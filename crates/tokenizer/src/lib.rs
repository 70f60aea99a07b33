//! Text to token ids and back, for the tokenizers that GGUF files and Hugging Face folders carry.
//!
//! The merging is our own and not the `tokenizers` crate, for three reasons.
//! Load: [`Tokenizer::new`] is on the way to the first answer, and merges in a flat table of id
//! pairs load in 10 ms for 49,000 tokens. Safety: that crate panics on some damaged vocabularies
//! and its patterns look ahead by backtracking; here every check returns an error, patterns are
//! linear, and merging is O(n log n). Reach: byte access for masks and log-probabilities, and
//! splitting of long texts, need the insides.
//! The same ids as that crate, and as SentencePiece's own, are tested on awkward texts.
//!
//! Nothing here reads files: a [`Vocabulary`], or [`HuggingFaceFiles`], is filled by the caller
//! and not believed.
//!
//! ```
//! use tokenizer::{DecodeOptions, EncodeOptions, Tokenizer, Vocabulary, VocabularyKind};
//! let vocabulary = Vocabulary {
//!     kind: VocabularyKind::ByteLevelBpe,
//!     pre_tokenizer: "gpt-2",
//!     tokens: vec!["a", "b", "Ġ", "ab"],
//!     token_types: vec![],
//!     scores: vec![],
//!     merges: vec!["a b"],
//!     bos: None,
//!     eos: None,
//!     eot: None,
//!     unknown: None,
//!     pad: None,
//!     add_bos: None,
//!     add_eos: None,
//!     add_space_prefix: None,
//! };
//! let tokenizer = Tokenizer::new(&vocabulary)?;
//! let ids = tokenizer.encode("ab a", EncodeOptions::USER_TEXT)?;
//! assert_eq!(ids, [3, 2, 0]);
//! assert_eq!(tokenizer.decode(&ids, DecodeOptions::default()), "ab a");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod ascii_words;
mod bert_normalizer;
mod byte_level;
mod char_class;
mod charsmap;
mod cuts;
mod decode;
mod encoding;
mod hugging_face;
mod metaspace;
mod normalizer;
mod piece_cache;
mod pre_tokenizer;
mod ranked_merges;
mod sentence_piece;
mod special;
mod token_table;
mod tokenizer;
mod unigram;
mod vocabulary;
mod word_piece;

pub use decode::{DecodeOptions, IncrementalDecoder};
pub use encoding::{EncodeCounts, EncodeSettings};
pub use hugging_face::{
    ChatTemplates, GenerationDefaults, GgufScores, HuggingFaceError, HuggingFaceFiles,
    HuggingFaceTokenizer, gguf_pre_tokenizer, gguf_scores, hugging_face_files,
};
pub use pre_tokenizer::pre_tokenizer_names;
pub use tokenizer::{
    EncodeError, EncodeOptions, SpecialIds, SpecialTokens, TEXT_MAX_BYTES, Tokenizer,
};
pub use vocabulary::{
    MERGE_COUNT_MAX, SPECIAL_COUNT_MAX, SPECIAL_TEXT_MAX_BYTES, TOKEN_COUNT_MAX,
    TOKEN_LENGTH_MAX_BYTES, TOKEN_TEXT_MAX_BYTES, TokenType, Vocabulary, VocabularyError,
    VocabularyKind,
};
