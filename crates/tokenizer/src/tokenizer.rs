//! Which ids does a text become, and what is each id?

use thiserror::Error;

use crate::EncodeSettings;
use crate::byte_level::{Alphabet, ByteLevelBpe};
use crate::encoding::{Counters, ScratchPool};
use crate::sentence_piece::{SPACE, SentencePieceBpe, byte_of};
use crate::special::{SpecialMatcher, is_special};
use crate::token_table::{ByteArena, TokenTable};
use crate::vocabulary::{TokenType, Vocabulary, VocabularyError, VocabularyKind, shorten};

/// Longest text that is encoded at once, in bytes. Merging one unbroken piece takes about 40
/// bytes of memory for each of its own: 2.6 GB at this limit.
pub const TEXT_MAX_BYTES: usize = 64 << 20;

/// Tokens that end an answer in the well-known families, by name. They count where the file marks
/// them as control or user-defined.
const END_NAMES: &[&str] = &[
    "</s>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|eot|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<eos>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
];

/// What special tokens in a text mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Text that reads like a control token becomes that token: for rendered chat templates.
    Parse,
    /// Text that reads like a control token stays text: nobody can smuggle one in.
    AsText,
}

/// How to encode a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Whether control tokens are recognised. User-defined ones always are: they are text.
    pub special: SpecialTokens,
    /// Put the begin token in front, where the vocabulary has one.
    pub add_bos: bool,
    /// Put the end token behind, where the vocabulary has one.
    pub add_eos: bool,
}

impl EncodeOptions {
    /// For what a chat template gave: control tokens count, and the template wrote them all.
    pub const TEMPLATE: EncodeOptions =
        EncodeOptions { special: SpecialTokens::Parse, add_bos: false, add_eos: false };
    /// For words of a person: no control tokens at all.
    pub const USER_TEXT: EncodeOptions =
        EncodeOptions { special: SpecialTokens::AsText, add_bos: false, add_eos: false };
}

/// Why a text was not encoded.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Longer than [`TEXT_MAX_BYTES`].
    #[error("the text has {length} bytes, more than the {TEXT_MAX_BYTES} accepted; shorten it")]
    TextTooLong {
        /// Its length in bytes.
        length: usize,
    },
}

/// Ids with a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Stands for what cannot be spelled.
    pub unknown: Option<u32>,
    /// Fills rows.
    pub pad: Option<u32>,
}

#[derive(Debug)]
pub(crate) enum Model {
    ByteLevel(Box<ByteLevelBpe>),
    SentencePiece(Box<SentencePieceBpe>),
}

/// A checked vocabulary, ready to use. Shared between threads by reference; encoding changes
/// nothing in it but what it counts and remembers.
#[derive(Debug)]
pub struct Tokenizer {
    /// Texts as in the file, and where they are.
    texts: ByteArena,
    table: TokenTable,
    /// What each token adds to the output.
    bytes: ByteArena,
    types: Vec<TokenType>,
    special_ids: SpecialIds,
    end_of_generation: Vec<u32>,
    with_control: SpecialMatcher,
    without_control: SpecialMatcher,
    model: Model,
    adds_bos: bool,
    adds_eos: bool,
    settings: EncodeSettings,
    pub(crate) scratches: ScratchPool,
    pub(crate) counters: Counters,
}

impl Tokenizer {
    /// Checks a vocabulary and builds the tables. Never panics, whatever the vocabulary; memory
    /// is linear in its size.
    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, VocabularyError> {
        vocabulary.check_shape()?;
        let (texts, table) = index_texts(vocabulary)?;
        let model = match vocabulary.kind {
            VocabularyKind::ByteLevelBpe => {
                Model::ByteLevel(Box::new(ByteLevelBpe::new(vocabulary, &texts, &table)?))
            }
            VocabularyKind::SentencePieceBpe => {
                Model::SentencePiece(Box::new(SentencePieceBpe::new(vocabulary)?))
            }
        };
        let count = vocabulary.tokens.len();
        let mut types: Vec<TokenType> = (0..count).map(|id| vocabulary.token_type(id)).collect();
        let end_of_generation = find_ends(vocabulary, &texts, &table, &mut types);
        let adds_bos = vocabulary.add_bos.unwrap_or(match &model {
            Model::ByteLevel(bpe) => bpe.adds_bos(),
            Model::SentencePiece(_) => true,
        });
        Ok(Tokenizer {
            bytes: output_bytes(vocabulary),
            with_control: matcher(vocabulary, &types, true)?,
            without_control: matcher(vocabulary, &types, false)?,
            special_ids: SpecialIds {
                bos: vocabulary.bos,
                eos: vocabulary.eos,
                eot: vocabulary.eot,
                unknown: vocabulary.unknown,
                pad: vocabulary.pad,
            },
            adds_eos: vocabulary.add_eos.unwrap_or(false),
            texts,
            table,
            types,
            end_of_generation,
            model,
            adds_bos,
            settings: EncodeSettings::default(),
            scratches: ScratchPool::default(),
            counters: Counters::default(),
        })
    }

    /// The same with these settings.
    #[must_use]
    pub fn with_settings(mut self, settings: EncodeSettings) -> Tokenizer {
        self.settings = settings;
        self.scratches = ScratchPool::default();
        self
    }

    /// How it uses threads and memory.
    pub fn settings(&self) -> &EncodeSettings {
        &self.settings
    }

    /// Number of ids; all ids below it are valid.
    pub fn vocabulary_size(&self) -> usize {
        self.texts.len()
    }

    /// What an id adds to the output, in bytes; perhaps a part of a character. For control tokens
    /// this is their name, which a decoder leaves out unless asked. `None`: no such id.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id)
    }

    /// The text of an id as it stands in the file, in the file's own alphabet.
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.texts.get(id).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The id whose text in the file is exactly this: `<|im_end|>`, `Ġthe`, `▁the`.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.table.find(&self.texts, text.as_bytes())
    }

    /// What an id is for. `None`: no such id.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    /// Whether an id steers the model and is not text: control tokens and the unknown token.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.token_type(id), Some(TokenType::Control | TokenType::Unknown))
    }

    /// Ids with a role.
    pub fn special_ids(&self) -> SpecialIds {
        self.special_ids
    }

    /// Ids after which an answer is complete, in increasing order.
    pub fn end_of_generation_ids(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether an answer is complete after this id.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// Whether a plain prompt begins with the begin token, as the file says or implies.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// Whether a plain prompt ends with the end token, as the file says.
    pub fn adds_eos(&self) -> bool {
        self.adds_eos
    }

    /// For a prompt without a template: text only, framed as the model expects.
    pub fn prompt_options(&self) -> EncodeOptions {
        EncodeOptions {
            special: SpecialTokens::AsText,
            add_bos: self.adds_bos,
            add_eos: self.adds_eos,
        }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) fn texts(&self) -> (&ByteArena, &TokenTable) {
        (&self.texts, &self.table)
    }

    /// Finds the special tokens of a text.
    pub(crate) fn matcher(&self, special: SpecialTokens) -> &SpecialMatcher {
        match special {
            SpecialTokens::Parse => &self.with_control,
            SpecialTokens::AsText => &self.without_control,
        }
    }

    /// Whether the first token of a text begins with a space that was not in it.
    pub(crate) fn has_space_prefix(&self) -> bool {
        match &self.model {
            Model::ByteLevel(_) => false,
            Model::SentencePiece(bpe) => bpe.add_space_prefix,
        }
    }
}

/// Copies the texts and refuses two that are the same. Unused tokens without text are no text.
fn index_texts(vocabulary: &Vocabulary<'_>) -> Result<(ByteArena, TokenTable), VocabularyError> {
    let count = vocabulary.tokens.len();
    let total = vocabulary.tokens.iter().map(|text| text.len()).sum();
    let mut texts = ByteArena::with_capacity(count, total);
    let mut table = TokenTable::with_capacity(count);
    for (id, text) in (0u32..).zip(&vocabulary.tokens) {
        texts.push(|data| data.extend_from_slice(text.as_bytes()));
        if text.is_empty() {
            continue;
        }
        table.insert(&texts, id).map_err(|first| VocabularyError::DuplicateToken {
            first,
            second: id,
            text: shorten(text),
        })?;
    }
    Ok((texts, table))
}

/// What each token adds to the output.
fn output_bytes(vocabulary: &Vocabulary<'_>) -> ByteArena {
    let alphabet = Alphabet::new();
    let total = vocabulary.tokens.iter().map(|text| text.len()).sum();
    let mut bytes = ByteArena::with_capacity(vocabulary.tokens.len(), total);
    for (index, text) in vocabulary.tokens.iter().enumerate() {
        let token_type = vocabulary.token_type(index);
        let byte = if token_type == TokenType::Byte { byte_of(text) } else { None };
        bytes.push(|data| match (vocabulary.kind, token_type, byte) {
            (_, _, Some(byte)) => data.push(byte),
            (_, TokenType::Control | TokenType::Unknown, _) => {
                data.extend_from_slice(text.as_bytes());
            }
            (VocabularyKind::ByteLevelBpe, TokenType::UserDefined, _) => {
                data.extend_from_slice(text.as_bytes());
            }
            (VocabularyKind::ByteLevelBpe, _, _) => alphabet.write_bytes(text, data),
            (VocabularyKind::SentencePieceBpe, _, _) => {
                data.extend_from_slice(text.replace(SPACE, " ").as_bytes());
            }
        });
    }
    bytes
}

/// The tokens of this vocabulary that are matched in raw text.
fn matcher(
    vocabulary: &Vocabulary<'_>,
    types: &[TokenType],
    control_too: bool,
) -> Result<SpecialMatcher, VocabularyError> {
    let spaced = vocabulary.kind == VocabularyKind::SentencePieceBpe;
    let tokens: Vec<(u32, String)> = (0u32..)
        .zip(&vocabulary.tokens)
        .zip(types)
        .filter(|(_, token_type)| is_special(**token_type, control_too))
        .map(|((id, text), token_type)| {
            let escaped = spaced && *token_type == TokenType::UserDefined;
            (id, if escaped { text.replace(SPACE, " ") } else { (*text).to_owned() })
        })
        .collect();
    SpecialMatcher::new(&tokens)
}

/// The ids that end an answer. A well-known one that the file calls user-defined becomes a control
/// token: it must neither be printed nor be taken from a person's text.
fn find_ends(
    vocabulary: &Vocabulary<'_>,
    texts: &ByteArena,
    table: &TokenTable,
    types: &mut [TokenType],
) -> Vec<u32> {
    let named = |name: &&str| table.find(texts, name.as_bytes());
    let mut ends: Vec<u32> = END_NAMES.iter().filter_map(named).collect();
    ends.retain(|id| matches!(types[*id as usize], TokenType::Control | TokenType::UserDefined));
    // Where answers end in <|return|> or <|call|>, <|end|> only ends a part of one.
    let parts = [&"<|return|>", &"<|call|>"].map(named);
    if parts.iter().all(|id| id.is_some_and(|id| ends.contains(&id))) {
        let end = named(&"<|end|>");
        ends.retain(|id| Some(*id) != end);
    }
    for id in &ends {
        types[*id as usize] = TokenType::Control;
    }
    ends.extend(vocabulary.eos);
    ends.extend(vocabulary.eot);
    ends.sort_unstable();
    ends.dedup();
    ends
}
