//! What does a model file say about its tokens, and can it be believed?
//!
//! [`Vocabulary`] is filled by whoever read the file; nothing in it is trusted. The limits below
//! bound what a hostile file can make this crate allocate: every structure built from a vocabulary
//! is linear in the strings the caller already holds.

use thiserror::Error;

/// Most tokens accepted. The largest published vocabularies have 262,144; four times that.
pub const TOKEN_COUNT_MAX: usize = 1 << 20;
/// Longest token accepted, in bytes. Published ones stay under 512 (runs of spaces).
pub const TOKEN_LENGTH_MAX_BYTES: usize = 4096;
/// All token texts together, in bytes. Published ones stay under 4 MiB.
pub const TOKEN_TEXT_MAX_BYTES: usize = 64 << 20;
/// Most merge rules accepted. Published ones stay under 600,000.
pub const MERGE_COUNT_MAX: usize = 1 << 21;
/// Most tokens matched in raw text (control and user-defined). Gemma 3 has about 6,400.
pub const SPECIAL_COUNT_MAX: usize = 1 << 16;
/// Texts of those together, in bytes: the matcher takes up to about 50 bytes for each.
pub const SPECIAL_TEXT_MAX_BYTES: usize = 1 << 20;

/// How text becomes tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VocabularyKind {
    /// Bytes spelled in a printable alphabet, ranked merges, a pre-tokenizer (GGUF model `gpt2`).
    ByteLevelBpe,
    /// Characters with `▁` for space, merges by score, byte fallback (GGUF model `llama`).
    SentencePieceBpe,
    /// The same, merges by a list in order of rank (GGUF model `gemma4`).
    MetaspaceBpe,
    /// Words apart, then the longest pieces, `▁` in front of a word (GGUF model `bert`).
    WordPiece,
    /// The likeliest pieces by scores (GGUF model `t5`).
    Unigram,
}

/// What a token is for. The numbers are those of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenType {
    /// Ordinary text.
    Normal = 1,
    /// Stands for text that the vocabulary cannot spell.
    Unknown = 2,
    /// Steers the model; is never text of a person.
    Control = 3,
    /// Text that is always one token, wherever it occurs.
    UserDefined = 4,
    /// Reserved: never produced.
    Unused = 5,
    /// One byte, written `<0x0A>`.
    Byte = 6,
}

impl TokenType {
    /// The type with this number in a GGUF file, if there is one.
    pub fn from_number(number: i64) -> Option<TokenType> {
        Some(match number {
            1 => TokenType::Normal,
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            4 => TokenType::UserDefined,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => return None,
        })
    }
}

/// A tokenizer as a model file describes it. Borrowed: `Tokenizer::new` copies what it keeps.
#[derive(Debug, Clone)]
pub struct Vocabulary<'a> {
    /// Which algorithm.
    pub kind: VocabularyKind,
    /// `tokenizer.ggml.pre`; read by the byte-level kind only. Empty means `default`.
    pub pre_tokenizer: &'a str,
    /// Text of each token as in the file, in id order.
    pub tokens: Vec<&'a str>,
    /// One for each token, or empty: all normal.
    pub token_types: Vec<TokenType>,
    /// One for each token; read by the SentencePiece kind only, empty otherwise allowed.
    pub scores: Vec<f32>,
    /// `"left right"` in order of rank; read by the kinds with ranked merges only.
    pub merges: Vec<&'a str>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Stands for what cannot be spelled.
    pub unknown: Option<u32>,
    /// Fills rows; never meant.
    pub pad: Option<u32>,
    /// Whether encoding a whole prompt begins with `bos`. `None`: the file does not say, and the
    /// kind or the pre-tokenizer decides, as the common reader of such files does.
    pub add_bos: Option<bool>,
    /// Whether encoding a whole prompt ends with `eos`. `None`: no.
    pub add_eos: Option<bool>,
    /// SentencePiece kind: whether a text gets a space in front. `None`: yes.
    pub add_space_prefix: Option<bool>,
}

impl Vocabulary<'_> {
    /// Bytes that a tokenizer of this vocabulary keeps, the pre-tokenizer's automata aside: texts
    /// twice (as in the file, and as bytes), and the tables that find them, at most half full.
    pub fn tokenizer_bytes(&self) -> usize {
        let texts: usize = self.tokens.iter().map(|token| token.len()).sum();
        let (tokens, merges) = (self.tokens.len(), self.merges.len());
        let table = |entries: usize| (entries.max(1) * 2).next_power_of_two();
        2 * (texts + 4 * tokens) + tokens + 4 * table(tokens) + 16 * table(merges) + 4 * merges
    }
}

/// Why a vocabulary was refused. All are the model file's fault.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum VocabularyError {
    /// No tokens at all.
    #[error("the model file lists no tokens; it has no usable tokenizer")]
    NoTokens,
    /// Words that cannot be spelled need a token.
    #[error("the model file names no unknown token, which its kind of tokenizer needs")]
    NoUnknown,
    /// Replacements of characters that cannot be read.
    #[error("the model file's precompiled_charsmap is damaged")]
    Charsmap,
    /// A count or length above its limit.
    #[error("the model file has {found} {what}, more than the {limit} accepted; it is damaged")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many are accepted.
        limit: usize,
    },
    /// A per-token list of another length than the token list.
    #[error("the model file has {found} {what} for {tokens} tokens; it is damaged")]
    LengthMismatch {
        /// Which list.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The number of tokens.
        tokens: usize,
    },
    /// A token without text that is not marked unused.
    #[error("token {id} of the model file is empty; it is damaged")]
    EmptyToken {
        /// The token.
        id: u32,
    },
    /// Two tokens with the same text.
    #[error("tokens {first} and {second} of the model file are both {text:?}; it is damaged")]
    DuplicateToken {
        /// The first one.
        first: u32,
        /// The second one.
        second: u32,
        /// Their text.
        text: String,
    },
    /// A special id outside the vocabulary.
    #[error("the model file names token {id} as {role}, but has only {tokens} tokens")]
    IdOutOfRange {
        /// What the id is meant for.
        role: &'static str,
        /// The id.
        id: u32,
        /// The number of tokens.
        tokens: usize,
    },
    /// A byte token that is not of the form `<0x0A>`.
    #[error("token {id} of the model file is marked as a byte but reads {text:?}, not like <0x0A>")]
    BadByteToken {
        /// The token.
        id: u32,
        /// Its text, shortened.
        text: String,
    },
    /// Two tokens for the same byte.
    #[error("tokens {first} and {second} of the model file both stand for byte {byte:#04x}")]
    DuplicateByte {
        /// The first one.
        first: u32,
        /// The second one.
        second: u32,
        /// The byte.
        byte: u8,
    },
    /// A merge that is not two parts with a space between.
    #[error("merge {rank} of the model file reads {text:?}, not like two tokens and a space")]
    BadMerge {
        /// Which merge.
        rank: usize,
        /// Its text, shortened.
        text: String,
    },
    /// A merge with a part, or a result, that is no token.
    #[error("merge {rank} of the model file needs the token {text:?}, which is not there")]
    MergeOfUnknownToken {
        /// Which merge.
        rank: usize,
        /// The missing token, shortened.
        text: String,
    },
    /// Byte-level kind without merges.
    #[error("the model file has no merges, which its byte-level tokenizer needs")]
    NoMerges,
    /// No way to spell even one byte.
    #[error("the model file has no tokens for single bytes, which its tokenizer needs")]
    NoByteTokens,
    /// Only vocabularies that merge are written as `tokenizer.json`.
    #[error(
        "its tokenizer is neither byte-level BPE nor SentencePiece's, the kinds that become a \
         tokenizer.json"
    )]
    NotMerged,
    /// A score that is not a number.
    #[error("the score of token {id} in the model file is not a number; it is damaged")]
    BadScore {
        /// The token.
        id: u32,
    },
    /// A pre-tokenizer that this program does not know.
    #[error(
        "the model file asks for the pre-tokenizer {name:?}, which is not supported; \
         supported are: {known}"
    )]
    UnknownPreTokenizer {
        /// The name, shortened.
        name: String,
        /// The names that are known, with commas.
        known: String,
    },
    /// The pattern of a known pre-tokenizer, or the set of special tokens, could not be compiled.
    #[error("the tokenizer of the model file could not be prepared: {reason}")]
    Unprepared {
        /// What the matcher said.
        reason: String,
    },
}

/// At most 64 characters of a text from the file, for an error.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The same with its control characters escaped, where it stands without quotes.
pub(crate) fn printable(text: &str) -> String {
    let escaped = |character: char| {
        let escape = character.is_control().then(|| character.escape_debug());
        let plain = escape.is_none().then_some(character);
        escape.into_iter().flatten().chain(plain)
    };
    shorten(text).chars().flat_map(escaped).collect()
}

impl Vocabulary<'_> {
    /// The type of a token; normal where the file gives none.
    pub(crate) fn token_type(&self, index: usize) -> TokenType {
        self.token_types.get(index).copied().unwrap_or(TokenType::Normal)
    }

    /// Checks everything that needs no tables: counts, lengths, ranges, scores.
    pub(crate) fn check_shape(&self, scores_needed: bool) -> Result<(), VocabularyError> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(VocabularyError::NoTokens);
        }
        at_most("tokens", count, TOKEN_COUNT_MAX)?;
        at_most("merges", self.merges.len(), MERGE_COUNT_MAX)?;
        let text_bytes = self.tokens.iter().map(|text| text.len()).sum();
        at_most("bytes of token text", text_bytes, TOKEN_TEXT_MAX_BYTES)?;
        same_length("token types", self.token_types.len(), count, false)?;
        same_length("scores", self.scores.len(), count, scores_needed)?;
        for (id, text) in (0u32..).zip(&self.tokens) {
            if text.is_empty() && self.token_type(id as usize) != TokenType::Unused {
                return Err(VocabularyError::EmptyToken { id });
            }
            at_most("bytes in one token", text.len(), TOKEN_LENGTH_MAX_BYTES)?;
        }
        for (id, score) in (0u32..).zip(&self.scores) {
            if score.is_nan() {
                return Err(VocabularyError::BadScore { id });
            }
        }
        let roles = [
            ("begin of text", self.bos),
            ("end of text", self.eos),
            ("end of turn", self.eot),
            ("unknown", self.unknown),
            ("padding", self.pad),
        ];
        for (role, id) in roles {
            if let Some(id) = id.filter(|id| *id as usize >= count) {
                return Err(VocabularyError::IdOutOfRange { role, id, tokens: count });
            }
        }
        Ok(())
    }
}

fn at_most(what: &'static str, found: usize, limit: usize) -> Result<(), VocabularyError> {
    if found > limit { Err(VocabularyError::TooMany { what, found, limit }) } else { Ok(()) }
}

fn same_length(
    what: &'static str,
    found: usize,
    tokens: usize,
    needed: bool,
) -> Result<(), VocabularyError> {
    if found == tokens || (found == 0 && !needed) {
        Ok(())
    } else {
        Err(VocabularyError::LengthMismatch { what, found, tokens })
    }
}
