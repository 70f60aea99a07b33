//! Which ids does a text become, and what is each id?

use std::num::NonZeroUsize;

use thiserror::Error;

use crate::EncodeSettings;
use crate::bert_normalizer::BertNormalizer;
use crate::byte_level::{Alphabet, ByteLevelBpe, is_text, spaced_merges};
use crate::charsmap::Charsmap;
use crate::encoding::{Counters, ScratchPool};
use crate::metaspace::{MetaspaceBpe, MetaspaceRules, Prefix};
use crate::normalizer::Normalizer;
use crate::ranked_merges::RankedMerges;
use crate::sentence_piece::{SPACE, SentencePieceBpe, byte_of};
use crate::special::{Edges, Special, SpecialMatcher, is_special};
use crate::token_table::{ByteArena, TokenTable};
use crate::unigram::Unigram;
use crate::vocabulary::{TokenType, Vocabulary, VocabularyError, VocabularyKind, shorten};
use crate::word_piece::{WORD_CHARS_MAX, WordPiece};

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
    "<turn|>",
    // What a caller answers to a call follows: Gemma 4, GLM.
    "<|tool_response>",
    "<|observation|>",
    "<|eot|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
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
    Metaspace(Box<MetaspaceBpe>),
    WordPiece(Box<WordPiece>),
    Unigram(Box<Unigram>),
}

/// What a vocabulary may say beyond [`Vocabulary`].
#[derive(Debug, Default)]
pub(crate) struct Extras {
    /// The tokens that are matched in raw text, where their types alone do not tell it.
    pub(crate) specials: Option<Vec<Special>>,
    pub(crate) normalizers: Vec<Normalizer>,
    /// What a framed prompt begins and ends with, where it is not just `bos` and `eos`.
    pub(crate) begin: Option<Vec<u32>>,
    pub(crate) end: Option<Vec<u32>>,
    /// What stands between two texts, where it is not what ends one.
    pub(crate) between: Option<Vec<u32>>,
    /// Ids that end an answer, beside those that names and roles tell.
    pub(crate) ends_answer: Vec<u32>,
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
    normalizers: Vec<Normalizer>,
    begin: Vec<u32>,
    end: Vec<u32>,
    between: Vec<u32>,
    adds_bos: bool,
    adds_eos: bool,
    /// Most bytes of a text that one token takes; `None`: any number.
    token_bytes_max: Option<NonZeroUsize>,
    settings: EncodeSettings,
    pub(crate) scratches: ScratchPool,
    pub(crate) counters: Counters,
}

impl Tokenizer {
    /// Checks a vocabulary and builds the tables. Never panics, whatever the vocabulary; memory
    /// is linear in its size.
    pub fn new(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, VocabularyError> {
        let scored = [VocabularyKind::SentencePieceBpe, VocabularyKind::Unigram];
        vocabulary.check_shape(scored.contains(&vocabulary.kind))?;
        let told = tell_line_ends(vocabulary);
        let vocabulary = told.as_ref().unwrap_or(vocabulary);
        let (texts, table) = index_texts(vocabulary)?;
        let model = match vocabulary.kind {
            VocabularyKind::ByteLevelBpe => {
                Model::ByteLevel(Box::new(ByteLevelBpe::new(vocabulary, &texts, &table)?))
            }
            VocabularyKind::SentencePieceBpe => {
                Model::SentencePiece(Box::new(SentencePieceBpe::new(vocabulary)?))
            }
            VocabularyKind::MetaspaceBpe => {
                if vocabulary.merges.is_empty() {
                    return Err(VocabularyError::NoMerges);
                }
                let pairs = spaced_merges(&vocabulary.merges);
                let is_text = |id| is_text(vocabulary, id);
                let merges = RankedMerges::new(pairs, is_text, &texts, &table)?;
                let rules = MetaspaceRules {
                    fuse_unknown: true,
                    whole_pieces: false,
                    prefix: Prefix::Never,
                    split: false,
                };
                Model::Metaspace(Box::new(MetaspaceBpe::new(vocabulary, merges, rules)?))
            }
            VocabularyKind::WordPiece => {
                let unknown = vocabulary.unknown.ok_or(VocabularyError::NoUnknown)?;
                let space = String::from(SPACE);
                let pieces = WordPiece::new(&space, "", unknown, WORD_CHARS_MAX);
                Model::WordPiece(Box::new(pieces.expect("invariant: classes of characters")))
            }
            VocabularyKind::Unigram => {
                let unknown = vocabulary.unknown.ok_or(VocabularyError::NoUnknown)?;
                let prefix = match vocabulary.add_space_prefix {
                    Some(false) => Prefix::Never,
                    _ => Prefix::Each,
                };
                let (scores, tokens) = (vocabulary.scores.clone(), &vocabulary.tokens);
                let mut unigram = Unigram::new(scores, tokens, unknown, prefix);
                // As files of this kind nearly all ask for.
                unigram.trims = true;
                Model::Unigram(Box::new(unigram))
            }
        };
        let mut extras = Extras::default();
        if vocabulary.kind == VocabularyKind::Unigram {
            extras.normalizers.push(Normalizer::SpaceRuns(" ".to_owned()));
        }
        if vocabulary.kind == VocabularyKind::WordPiece {
            // Files do not say it: their readers know uncased models only.
            let uncased = BertNormalizer::uncased().expect("invariant: classes of characters");
            extras.normalizers.push(Normalizer::Bert(Box::new(uncased)));
        }
        Tokenizer::assemble(vocabulary, texts, table, model, extras)
    }

    /// Puts the parts of a checked vocabulary together.
    pub(crate) fn assemble(
        vocabulary: &Vocabulary<'_>,
        texts: ByteArena,
        table: TokenTable,
        model: Model,
        extras: Extras,
    ) -> Result<Tokenizer, VocabularyError> {
        let count = vocabulary.tokens.len();
        let mut types: Vec<TokenType> = (0..count).map(|id| vocabulary.token_type(id)).collect();
        let mut end_of_generation = find_ends(vocabulary, &texts, &table, &mut types);
        end_of_generation.extend(extras.ends_answer);
        end_of_generation.sort_unstable();
        end_of_generation.dedup();
        let adds_bos = vocabulary.add_bos.unwrap_or(match &model {
            Model::ByteLevel(bpe) => bpe.adds_bos(),
            Model::SentencePiece(_) => true,
            Model::Metaspace(_) => false,
            Model::WordPiece(_) | Model::Unigram(_) => true,
        });
        let specials = extras.specials.unwrap_or_else(|| specials(vocabulary, &types));
        let bytes = output_bytes(vocabulary);
        let keeps_all = extras.normalizers.is_empty()
            && matches!(&model, Model::ByteLevel(bpe) if bpe.spells_all())
            && specials.iter().all(|special| !special.edges.takes_space());
        let token_bytes_max = if keeps_all { longest(&bytes, &specials) } else { None };
        Ok(Tokenizer {
            bytes,
            with_control: matcher(&specials, &types, true)?,
            without_control: matcher(&specials, &types, false)?,
            special_ids: SpecialIds {
                bos: vocabulary.bos,
                eos: vocabulary.eos,
                eot: vocabulary.eot,
                unknown: vocabulary.unknown,
                pad: vocabulary.pad,
            },
            normalizers: extras.normalizers,
            begin: extras.begin.unwrap_or_else(|| vocabulary.bos.into_iter().collect()),
            between: extras
                .between
                .or_else(|| extras.end.clone())
                .unwrap_or_else(|| vocabulary.eos.into_iter().collect()),
            end: extras.end.unwrap_or_else(|| vocabulary.eos.into_iter().collect()),
            adds_eos: vocabulary.add_eos.unwrap_or(false),
            texts,
            table,
            types,
            end_of_generation,
            model,
            adds_bos,
            token_bytes_max,
            settings: EncodeSettings::default(),
            scratches: ScratchPool::default(),
            counters: Counters::default(),
        })
    }

    /// The same with a table of replacements, as GGUF files of the kind `t5` carry it.
    ///
    /// # Errors
    /// [`VocabularyError`] when it is no such table.
    pub fn with_charsmap(mut self, bytes: &[u8]) -> Result<Tokenizer, VocabularyError> {
        let map = Charsmap::read(bytes).ok_or(VocabularyError::Charsmap)?;
        self.normalizers.insert(0, Normalizer::Charsmap(Box::new(map)));
        self.token_bytes_max = None;
        Ok(self)
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

    /// How many tokens a text of so many bytes has at least, whatever it says: known at once, where
    /// encoding it takes a while. 0 where tokens may stand for any number of bytes.
    pub fn tokens_min(&self, text_bytes: usize) -> usize {
        self.token_bytes_max.map_or(0, |longest| text_bytes.div_ceil(longest.get()))
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

    /// The token that ends the first of two texts.
    pub fn separator(&self) -> Option<u32> {
        self.between.first().copied()
    }

    /// Two texts as one input, framed as models that are told two expect them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<Vec<u32>, EncodeError> {
        let mut ids = self.begin.clone();
        ids.extend(self.encode(first, EncodeOptions::USER_TEXT)?);
        ids.extend_from_slice(&self.between);
        ids.extend(self.encode(second, EncodeOptions::USER_TEXT)?);
        ids.extend_from_slice(&self.end);
        Ok(ids)
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

    pub(crate) fn types(&self) -> &[TokenType] {
        &self.types
    }

    pub(crate) fn normalizers(&self) -> &[Normalizer] {
        &self.normalizers
    }

    /// What a framed prompt begins with, in order.
    pub(crate) fn begin_ids(&self) -> &[u32] {
        &self.begin
    }

    /// What a framed prompt ends with, in order.
    pub(crate) fn end_ids(&self) -> &[u32] {
        &self.end
    }

    /// Whether a text gets a space in front: at the start of all, or behind a special token.
    pub(crate) fn prefix_at(&self, start: bool) -> bool {
        match &self.model {
            Model::ByteLevel(bpe) => bpe.add_prefix_space,
            Model::SentencePiece(bpe) => bpe.add_space_prefix,
            Model::Metaspace(bpe) => bpe.prefix_at(start),
            Model::WordPiece(_) => false,
            Model::Unigram(unigram) => unigram.prefix_at(start),
        }
    }

    /// Whether a user-defined token is text as far as spaces in front are concerned.
    pub(crate) fn user_defined_is_text(&self) -> bool {
        matches!(self.model, Model::SentencePiece(_))
    }

    /// Whether the first token of a text begins with a space that was not in it.
    pub(crate) fn strips_space(&self) -> bool {
        match &self.model {
            Model::ByteLevel(_) | Model::WordPiece(_) => false,
            Model::Unigram(unigram) => unigram.prefix != Prefix::Never,
            Model::SentencePiece(bpe) => bpe.add_space_prefix,
            Model::Metaspace(bpe) => bpe.prefix() != Prefix::Never,
        }
    }
}

/// Most bytes of a text that one of these tokens takes.
fn longest(bytes: &ByteArena, specials: &[Special]) -> Option<NonZeroUsize> {
    let spelled = (0..bytes.len() as u32).filter_map(|id| bytes.get(id)).map(<[u8]>::len);
    NonZeroUsize::new(spelled.chain(specials.iter().map(|special| special.text.len())).max()?)
}

/// Copies the texts and refuses two that are the same. Unused tokens without text are no text.
pub(crate) fn index_texts(
    vocabulary: &Vocabulary<'_>,
) -> Result<(ByteArena, TokenTable), VocabularyError> {
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

/// GGUF files of Gemma 4 call runs of line ends ordinary text, which in the models' own files are
/// matched before anything merges, and some say falsely that no text begins with `bos`.
fn tell_line_ends<'a>(vocabulary: &Vocabulary<'a>) -> Option<Vocabulary<'a>> {
    if vocabulary.kind != VocabularyKind::MetaspaceBpe {
        return None;
    }
    let kind = |(id, text): (usize, &&str)| match vocabulary.token_type(id) {
        TokenType::Normal if text.len() > 1 && text.bytes().all(|byte| byte == b'\n') => {
            TokenType::UserDefined
        }
        kind => kind,
    };
    let token_types = vocabulary.tokens.iter().enumerate().map(kind).collect();
    Some(Vocabulary { token_types, add_bos: Some(true), ..vocabulary.clone() })
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
            // Vectors are no text: this is for people who look at tokens.
            (VocabularyKind::WordPiece, _, _) => {
                let text = text.strip_prefix("##").unwrap_or(text);
                data.extend_from_slice(text.replace(SPACE, " ").as_bytes());
            }
            (
                VocabularyKind::SentencePieceBpe
                | VocabularyKind::MetaspaceBpe
                | VocabularyKind::Unigram,
                _,
                _,
            ) => {
                data.extend_from_slice(text.replace(SPACE, " ").as_bytes());
            }
        });
    }
    bytes
}

/// The tokens of this vocabulary that are matched in raw text, as their types tell.
fn specials(vocabulary: &Vocabulary<'_>, types: &[TokenType]) -> Vec<Special> {
    let escaping = [VocabularyKind::SentencePieceBpe, VocabularyKind::MetaspaceBpe];
    let spaced = escaping.contains(&vocabulary.kind);
    (0u32..)
        .zip(&vocabulary.tokens)
        .zip(types)
        .filter(|(_, token_type)| is_special(**token_type, true))
        .map(|((id, text), token_type)| {
            let escaped = spaced && *token_type == TokenType::UserDefined;
            let text = if escaped { text.replace(SPACE, " ") } else { (*text).to_owned() };
            Special { id, text, edges: Edges::default() }
        })
        .collect()
}

/// Finds all of them, or only those that are text.
fn matcher(
    specials: &[Special],
    types: &[TokenType],
    control_too: bool,
) -> Result<SpecialMatcher, VocabularyError> {
    let wanted = |special: &&Special| is_special(types[special.id as usize], control_too);
    let tokens: Vec<Special> = specials.iter().filter(wanted).cloned().collect();
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
