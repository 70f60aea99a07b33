//! How do the tokenizer files of a Hugging Face model folder become a [`Tokenizer`]?
//!
//! `tokenizer.json` is a program in parts: normalizer, pre-tokenizer, model, post-processor. The
//! parts that language models use are mapped onto the machinery of GGUF vocabularies
//! (`splitting.rs`, `patterns.rs`, `framing.rs`), and whatever is not among them is refused by
//! name: an id that differs is worse than a model that does not load. The ids are those of the
//! `tokenizers` crate, tested kind by kind.
//!
//! Departures: 1. text that reads like a control token stays text where the caller asks for that;
//! 2. added tokens are matched in the text as it came in, also those marked `normalized`, whose own
//! text is normalized, too; 3. of a merge that is listed twice the first rank counts.

mod document;
mod error;
mod framing;
mod patterns;
mod scored;
mod settings;
mod splitting;
mod written;

use serde_json::Value;

use self::document::{AddedToken, Document, Merge};
pub use self::error::HuggingFaceError;
use self::framing::Frame;
pub use self::scored::{GgufScores, gguf_scores};
pub use self::settings::{ChatTemplates, GenerationDefaults};
use self::splitting::{Splitting, Symbols, unsupported};
pub use self::written::hugging_face_files;
use crate::byte_level::{ByteLevelBpe, is_text};
use crate::metaspace::{MetaspaceBpe, MetaspaceRules, Prefix};
use crate::normalizer::{Normalizer, normalize};
use crate::pre_tokenizer::{PreTokenizer, name_of};
use crate::ranked_merges::{RankedMerges, Sides};
use crate::sentence_piece::{SPACE, byte_of};
use crate::special::{Edges, Special};
use crate::token_table::{ByteArena, TokenTable};
use crate::tokenizer::{Extras, Model, index_texts};
use crate::unigram::Unigram;
use crate::vocabulary::{TOKEN_COUNT_MAX, TOKEN_LENGTH_MAX_BYTES, shorten};
use crate::word_piece::{WORD_CHARS_MAX, WordPiece};
use crate::{TokenType, Tokenizer, Vocabulary, VocabularyError, VocabularyKind};

const TOKENIZER_JSON: &str = "tokenizer.json";
/// Gemma 3's has 33 MB; eight times that.
const TOKENIZER_BYTES_MAX: usize = 256 << 20;

/// The files of a model folder that concern its tokenizer, as bytes that nobody believes yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct HuggingFaceFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`: asked where `tokenizer_config.json` does not say.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `generation_config.json`.
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`: asked for the end of answers where `generation_config.json` is missing.
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`.
    pub chat_template: Option<&'a [u8]>,
}

/// What those files come to.
#[derive(Debug)]
pub struct HuggingFaceTokenizer {
    /// Ready to use.
    pub tokenizer: Tokenizer,
    /// How messages become a prompt.
    pub chat_templates: ChatTemplates,
    /// What holds where a request does not say.
    pub generation: GenerationDefaults,
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face model folder. Never panics, whatever the files.
    ///
    /// # Errors
    /// [`HuggingFaceError`] naming the file and what in it is damaged or not supported.
    pub fn from_hugging_face(
        files: &HuggingFaceFiles<'_>,
    ) -> Result<HuggingFaceTokenizer, HuggingFaceError> {
        let bytes = files.tokenizer.len();
        if bytes > TOKENIZER_BYTES_MAX {
            let limit = TOKENIZER_BYTES_MAX;
            return Err(HuggingFaceError::TooLarge { file: TOKENIZER_JSON, bytes, limit });
        }
        let document: Value = serde_json::from_slice(files.tokenizer).map_err(|error| {
            HuggingFaceError::NotReadable { file: TOKENIZER_JSON, reason: error.to_string() }
        })?;
        if !document.is_object() || !document["model"].is_object() {
            return Err(damaged("it has no model".to_owned()));
        }
        let document = Document::read(document)?;
        let config = settings::read("tokenizer_config.json", files.tokenizer_config)?;
        let map = settings::read("special_tokens_map.json", files.special_tokens_map)?;
        let generation = settings::read("generation_config.json", files.generation_config)?;
        let model = settings::read("config.json", files.config)?;
        let roles = Roles { config: config.as_ref(), map: map.as_ref() };
        let ends = match &generation {
            Some(_) => ("generation_config.json", generation.as_ref()),
            None => ("config.json", model.as_ref()),
        };
        Ok(HuggingFaceTokenizer {
            tokenizer: build(&document, &roles, ends)?,
            chat_templates: ChatTemplates::read(config.as_ref(), files.chat_template)?,
            generation: GenerationDefaults::read(generation.as_ref())?,
        })
    }
}

/// The name under which GGUF files ask for the splitting of a `tokenizer.json` of byte-level BPE.
///
/// # Errors
/// [`HuggingFaceError`] when it is damaged, of another kind, or has no name there.
pub fn gguf_pre_tokenizer(tokenizer: &[u8]) -> Result<&'static str, HuggingFaceError> {
    let document: Value = serde_json::from_slice(tokenizer).map_err(|error| {
        HuggingFaceError::NotReadable { file: TOKENIZER_JSON, reason: error.to_string() }
    })?;
    let Splitting { normalizers, symbols } =
        Splitting::read(&document["normalizer"], &document["pre_tokenizer"])?;
    let whole_pieces = document["model"]["ignore_merges"].as_bool().unwrap_or(false);
    // Engines of GGUF files do not compose characters, and nearly all texts are composed.
    let is_plain = normalizers.iter().all(|normalizer| matches!(normalizer, Normalizer::Nfc));
    let name = match &symbols {
        Symbols::Bytes { steps, add_prefix_space: false } if is_plain => {
            name_of(steps, whole_pieces)
        }
        Symbols::Bytes { .. } | Symbols::Characters { .. } | Symbols::Words => None,
    };
    name.ok_or_else(|| unsupported("splitting that GGUF has no name for", "byte-level BPE"))
}

/// Where tokens with a role are named.
struct Roles<'a> {
    config: Option<&'a Value>,
    map: Option<&'a Value>,
}

impl Roles<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        settings::token_text(self.config, name).or_else(|| settings::token_text(self.map, name))
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.config?.get(name)?.as_bool()
    }
}

fn damaged(what: String) -> HuggingFaceError {
    HuggingFaceError::Damaged { file: TOKENIZER_JSON, what }
}

fn build(
    document: &Document,
    roles: &Roles<'_>,
    ends: (&'static str, Option<&Value>),
) -> Result<Tokenizer, HuggingFaceError> {
    let splitting = Splitting::read(&document.normalizer, &document.pre_tokenizer)?;
    check_model(document, &splitting.symbols)?;
    splitting.symbols.check_decoder(&document.decoder)?;
    let (tokens, token_types) = list_tokens(document, &splitting.symbols)?;
    let mut vocabulary = Vocabulary {
        kind: match splitting.symbols {
            Symbols::Bytes { .. } => VocabularyKind::ByteLevelBpe,
            Symbols::Characters { .. } => VocabularyKind::SentencePieceBpe,
            Symbols::Words => VocabularyKind::WordPiece,
        },
        pre_tokenizer: "",
        tokens,
        token_types,
        scores: vec![],
        merges: vec![],
        bos: None,
        eos: None,
        eot: None,
        unknown: None,
        pad: None,
        add_bos: None,
        add_eos: None,
        add_space_prefix: None,
    };
    vocabulary.check_shape(false)?;
    let (texts, table) = index_texts(&vocabulary)?;
    let find = |text: &str| table.find(&texts, text.as_bytes()).filter(|_| !text.is_empty());
    let role = |name: &str| roles.text(name).and_then(find);
    vocabulary.bos = role("bos_token");
    vocabulary.eos = role("eos_token");
    vocabulary.pad = role("pad_token");
    check_frame(roles, &vocabulary)?;
    let unknown = document.model["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
    vocabulary.unknown = unknown.or_else(|| document.text("unk_token").and_then(find));
    if let Some(id) = vocabulary.unknown.filter(|id| *id as usize >= vocabulary.tokens.len()) {
        return Err(damaged(format!("its unknown token {id} is not there")));
    }
    let frame = Frame::read(&document.post_processor, find)?;
    let frame = frame.or_flags(roles, &vocabulary);
    vocabulary.add_bos = Some(!frame.begin.is_empty());
    vocabulary.add_eos = Some(!frame.end.is_empty());
    for id in frame.begin.iter().chain(&frame.end).chain(&frame.between) {
        if *id as usize >= vocabulary.tokens.len() {
            return Err(damaged(format!("its post_processor adds token {id}, which is not there")));
        }
    }
    let or_role = |ids: Vec<u32>| if ids.is_empty() { None } else { Some(ids) };
    let extras = Extras {
        specials: Some(specials(document, &splitting)),
        begin: or_role(frame.begin),
        end: or_role(frame.end),
        between: or_role(frame.between),
        ends_answer: settings::end_ids(ends.0, ends.1, vocabulary.tokens.len())?,
        normalizers: splitting.normalizers,
    };
    let model = build_model(document, splitting.symbols, &vocabulary, &texts, &table)?;
    let tokenizer = Tokenizer::assemble(&vocabulary, texts, table, model, extras)?;
    check_end(roles, &tokenizer)?;
    Ok(tokenizer)
}

/// Refuses to frame texts with a token that is none.
fn check_frame(roles: &Roles<'_>, vocabulary: &Vocabulary<'_>) -> Result<(), HuggingFaceError> {
    for (flag, name, id) in [
        ("add_bos_token", "bos_token", vocabulary.bos),
        ("add_eos_token", "eos_token", vocabulary.eos),
    ] {
        if roles.flag(flag) == Some(true) && id.is_none() {
            let said = shorten(roles.text(name).unwrap_or_default());
            let what = format!("{flag} is true, and its {name} is {said:?}, which is no token");
            return Err(misnamed(what));
        }
    }
    Ok(())
}

/// A name that is no token is harmless where others end answers.
fn check_end(roles: &Roles<'_>, tokenizer: &Tokenizer) -> Result<(), HuggingFaceError> {
    let Some(text) = roles.text("eos_token") else { return Ok(()) };
    if !tokenizer.end_of_generation_ids().is_empty() {
        return Ok(());
    }
    let said = shorten(text);
    Err(misnamed(format!(
        "its eos_token is {said:?}, which is no token, and no other ends answers"
    )))
}

fn misnamed(what: String) -> HuggingFaceError {
    HuggingFaceError::Damaged { file: "tokenizer_config.json", what }
}

impl Frame {
    /// Where `tokenizer_config.json` has `add_bos_token` or `add_eos_token`, each decides alone
    /// about its side.
    fn or_flags(self, roles: &Roles<'_>, vocabulary: &Vocabulary<'_>) -> Frame {
        match (roles.flag("add_bos_token"), roles.flag("add_eos_token")) {
            (None, None) => self,
            (bos, eos) => {
                let ids = |add: Option<bool>, id: Option<u32>, framed| match add {
                    None => framed,
                    Some(add) => id.filter(|_| add).into_iter().collect(),
                };
                let begin = ids(bos, vocabulary.bos, self.begin);
                let end = ids(eos, vocabulary.eos, self.end);
                Frame { begin, end, between: self.between }
            }
        }
    }
}

/// Refuses what merges alone do not do, and pieces of anything but words.
fn check_model(document: &Document, symbols: &Symbols) -> Result<(), HuggingFaceError> {
    let kind = document.text("type").unwrap_or("BPE");
    if matches!(symbols, Symbols::Words) {
        let what = || unsupported(&format!("a model of type {kind} of BERT's words"), "WordPiece");
        return if kind == "WordPiece" { Ok(()) } else { Err(what()) };
    }
    if kind == "Unigram" {
        if document.flag("byte_fallback") {
            return Err(unsupported("Unigram with byte_fallback", "Unigram without"));
        }
        return match symbols {
            Symbols::Characters { .. } => Ok(()),
            Symbols::Bytes { .. } | Symbols::Words => {
                Err(unsupported("Unigram of bytes", "Unigram behind Metaspace"))
            }
        };
    }
    if matches!(symbols, Symbols::Characters { by_words: true, .. }) {
        return Err(unsupported("WhitespaceSplit in front of merges", "Unigram behind it"));
    }
    if kind != "BPE" {
        return Err(unsupported(&format!("a model of type {kind}"), "BPE"));
    }
    if !document.scores.is_empty() {
        return Err(damaged("its vocab has scores, which merges have no use for".to_owned()));
    }
    let affixes = ["continuing_subword_prefix", "end_of_word_suffix"];
    if affixes.iter().any(|name| document.text(name).is_some_and(|affix| !affix.is_empty())) {
        return Err(unsupported("BPE with a prefix or suffix for parts of words", "none"));
    }
    if document.model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0) {
        return Err(unsupported("BPE that drops merges at random", "dropout null or 0"));
    }
    Ok(())
}

/// Texts and types in id order; ids that nothing has are unused.
fn list_tokens<'a>(
    document: &'a Document,
    symbols: &Symbols,
) -> Result<(Vec<&'a str>, Vec<TokenType>), HuggingFaceError> {
    let vocab = &document.vocab;
    let added = document.added_tokens.iter().map(|token| (token.content.as_str(), token.id));
    let own = vocab.iter().map(|(text, id)| (text.as_str(), *id));
    let largest = own.clone().chain(added.clone()).map(|(_, id)| id).max();
    let count = largest.map_or(0, |id| id as usize + 1);
    if count > TOKEN_COUNT_MAX {
        return Err(damaged(format!("token id {} is too large", count - 1)));
    }
    let mut tokens = vec![""; count];
    for (text, id) in own.chain(added) {
        let place = &mut tokens[id as usize];
        if !place.is_empty() && *place != text {
            let (first, second) = (shorten(place), shorten(text));
            return Err(damaged(format!("id {id} is both {first:?} and {second:?}")));
        }
        *place = text;
    }
    let bytes = matches!(symbols, Symbols::Characters { .. }) && document.flag("byte_fallback");
    let kind = |text: &&str| match text.is_empty() {
        true => TokenType::Unused,
        false if bytes && byte_of(text).is_some() => TokenType::Byte,
        false => TokenType::Normal,
    };
    let mut types: Vec<TokenType> = tokens.iter().map(kind).collect();
    for AddedToken { id, special, .. } in &document.added_tokens {
        let kind = if *special { TokenType::Control } else { TokenType::UserDefined };
        types[*id as usize] = kind;
    }
    if let (Symbols::Characters { .. }, Some(unknown)) = (symbols, document.text("unk_token")) {
        let id = vocab.iter().find(|(text, _)| text == unknown).map(|(_, id)| *id);
        let id = id.ok_or_else(|| damaged("its unk_token is no token".to_owned()))?;
        types[id as usize] = TokenType::Unknown;
    }
    Ok((tokens, types))
}

/// The added tokens as they are matched in a text that has spaces.
fn specials(document: &Document, splitting: &Splitting) -> Vec<Special> {
    let escapes = matches!(splitting.symbols, Symbols::Characters { .. });
    let special = |token: &AddedToken| {
        let mut text = token.content.clone();
        if token.normalized {
            text = normalize(&splitting.normalizers, &text).into_owned();
            if escapes {
                text = text.replace(SPACE, " ");
            }
        }
        let AddedToken { id, lstrip, rstrip, single_word, .. } = *token;
        let edges = Edges { takes_left: lstrip, takes_right: rstrip, whole_word: single_word };
        Special { id, text, edges }
    };
    document.added_tokens.iter().filter(|t| !t.content.is_empty()).map(special).collect()
}

fn sides(merge: &Merge, rank: usize) -> Result<Sides<'_>, VocabularyError> {
    match merge {
        Merge::Pair(left, right) => Ok((left, right)),
        Merge::Spaced(text) => text
            .split_once(' ')
            .filter(|(left, right)| ![left, right].contains(&&"") && !right.contains(' '))
            .ok_or_else(|| VocabularyError::BadMerge { rank, text: shorten(text) }),
    }
}

fn build_model(
    document: &Document,
    symbols: Symbols,
    vocabulary: &Vocabulary<'_>,
    texts: &ByteArena,
    table: &TokenTable,
) -> Result<Model, HuggingFaceError> {
    let pairs = document.merges.iter().enumerate().map(|(rank, merge)| sides(merge, rank));
    let is_text = |id| is_text(vocabulary, id);
    let merges = RankedMerges::new(pairs, is_text, texts, table)?;
    let whole_pieces = document.flag("ignore_merges");
    Ok(match symbols {
        Symbols::Bytes { steps, add_prefix_space } => {
            let pre_tokenizer = PreTokenizer::of_steps(&steps, whole_pieces)
                .map_err(|reason| VocabularyError::Unprepared { reason })?;
            let mut bpe = ByteLevelBpe::with_parts(pre_tokenizer, merges, is_text, texts, table)?;
            bpe.add_prefix_space = add_prefix_space;
            Model::ByteLevel(Box::new(bpe))
        }
        Symbols::Words => Model::WordPiece(Box::new(word_piece(document, vocabulary)?)),
        Symbols::Characters { prefix, split, by_words } if !document.scores.is_empty() => {
            let unknown = vocabulary.unknown.ok_or(VocabularyError::NoUnknown)?;
            let scores = document.scores.clone();
            let mut unigram = Unigram::new(scores, &vocabulary.tokens, unknown, prefix);
            (unigram.splits, unigram.splits_at_whitespace) = (split, by_words);
            Model::Unigram(Box::new(unigram))
        }
        Symbols::Characters { prefix, split, .. } => {
            Model::Metaspace(Box::new(metaspace(document, vocabulary, merges, (prefix, split))?))
        }
    })
}

fn word_piece(
    document: &Document,
    vocabulary: &Vocabulary<'_>,
) -> Result<WordPiece, HuggingFaceError> {
    let unknown = vocabulary.unknown.ok_or(VocabularyError::NoUnknown)?;
    let inner = document.text("continuing_subword_prefix").unwrap_or("##");
    let chars_max = document.model["max_input_chars_per_word"].as_u64();
    let chars_max = chars_max.and_then(|count| usize::try_from(count).ok());
    let chars_max = chars_max.unwrap_or(WORD_CHARS_MAX).min(TOKEN_LENGTH_MAX_BYTES);
    WordPiece::new("", inner, unknown, chars_max)
        .ok_or_else(|| unsupported("WordPiece", "classes of characters"))
}

fn metaspace(
    document: &Document,
    vocabulary: &Vocabulary<'_>,
    merges: RankedMerges,
    (prefix, split): (Prefix, bool),
) -> Result<MetaspaceBpe, HuggingFaceError> {
    let rules = MetaspaceRules {
        fuse_unknown: document.flag("fuse_unk"),
        whole_pieces: document.flag("ignore_merges"),
        prefix,
        split,
    };
    Ok(MetaspaceBpe::new(vocabulary, merges, rules)?)
}
