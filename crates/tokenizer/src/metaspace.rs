//! How do ranked merges of characters turn text into tokens?
//!
//! The kind of `tokenizer.json` that was made from a SentencePiece vocabulary: spaces become `▁`,
//! each character that is a token is a symbol, and listed pairs merge in order of rank. A character
//! that is no token is spelled in bytes, or is the unknown token where there are no byte tokens.

use crate::cuts::CutRule;
use crate::piece_cache::PieceCache;
use crate::ranked_merges::{MergeScratch, RankedMerges, SCAN_LENGTH_MAX};
use crate::sentence_piece::{Lookup, SPACE, byte_tokens, goes_on_with_space};
use crate::vocabulary::{TokenType, Vocabulary, VocabularyError};

/// Where a space goes in front of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefix {
    Never,
    /// In front of the whole text, unless it begins with one or with a special token.
    First,
    /// In front of each text between special tokens, unless it begins with one.
    Each,
    /// In front of each text between special tokens, whatever it begins with.
    EachAnyway,
}

/// What a file says of its merges beside the list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MetaspaceRules {
    /// A run of unknown characters is one unknown token.
    pub(crate) fuse_unknown: bool,
    /// A piece that is a token is that token, whether or not merges lead there.
    pub(crate) whole_pieces: bool,
    pub(crate) prefix: Prefix,
    /// Each space begins a piece that merges do not leave.
    pub(crate) split: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct MetaspaceBpe {
    merges: RankedMerges,
    /// The token of each byte, all or none.
    byte_tokens: Option<Vec<u32>>,
    unknown: Option<u32>,
    rules: MetaspaceRules,
    /// No merge reaches over the beginning of a run of spaces, so words may be merged apart.
    words_apart: bool,
}

/// Memory that fragments of one text share.
#[derive(Debug, Default)]
pub(crate) struct MetaspaceScratch {
    text: String,
    symbols: Vec<u32>,
    merge: MergeScratch,
}

impl MetaspaceScratch {
    /// What it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.text.capacity() + size_of::<u32>() * self.symbols.capacity() + self.merge.bytes()
    }
}

impl MetaspaceBpe {
    pub(crate) fn new(
        vocabulary: &Vocabulary<'_>,
        merges: RankedMerges,
        rules: MetaspaceRules,
    ) -> Result<Self, VocabularyError> {
        let byte_tokens = byte_tokens(vocabulary)?;
        let text = |(id, _): &(usize, &&str)| vocabulary.token_type(*id) == TokenType::Normal;
        let over_words = (vocabulary.tokens.iter().enumerate().filter(text))
            .any(|(_, text)| goes_on_with_space(text));
        // A run of unknown characters, or a piece that is a token as a whole, may span words.
        let in_words = !rules.whole_pieces && (byte_tokens.is_some() || !rules.fuse_unknown);
        let (unknown, words_apart) = (vocabulary.unknown, !over_words && in_words);
        Ok(Self { merges, byte_tokens, unknown, rules, words_apart })
    }

    pub(crate) fn prefix(&self) -> Prefix {
        self.rules.prefix
    }

    /// Whether a text at the start, or behind a special token, gets a space in front.
    pub(crate) fn prefix_at(&self, start: bool) -> bool {
        match self.rules.prefix {
            Prefix::Never => false,
            Prefix::First => start,
            Prefix::Each | Prefix::EachAnyway => true,
        }
    }

    /// Where texts may be cut.
    pub(crate) fn cut_rule(&self) -> CutRule {
        if self.words_apart { CutRule::Spaces } else { CutRule::Never }
    }

    /// Appends the tokens of a text without special tokens; `prefix` puts a space in front.
    pub(crate) fn encode(
        &self,
        text: &str,
        prefix: bool,
        lookup: Lookup<'_>,
        scratch: &mut MetaspaceScratch,
        cache: &mut PieceCache,
        out: &mut Vec<u32>,
    ) {
        let spaced = text.starts_with([' ', SPACE]) && self.rules.prefix != Prefix::EachAnyway;
        let mut spelled = std::mem::take(&mut scratch.text);
        spelled.clear();
        spelled.extend((prefix && !spaced).then_some(SPACE));
        spelled.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut rest = spelled.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(self.piece_end(rest));
            rest = after;
            let place = cache.place(piece.as_bytes());
            if let Some(tokens) = place.and_then(|place| cache.find(place)) {
                out.extend_from_slice(tokens);
                continue;
            }
            let start = out.len();
            self.merge_piece(piece, lookup, scratch, out);
            if let Some(place) = place {
                cache.keep(place, &out[start..]);
            }
        }
        scratch.text = spelled;
    }

    /// Where the first piece of a text ends.
    fn piece_end(&self, text: &str) -> usize {
        let mut before = text.chars().next();
        for (at, character) in text.char_indices().skip(1) {
            let begins = character == SPACE && (self.rules.split || before != Some(SPACE));
            if begins && (self.rules.split || self.words_apart) {
                return at;
            }
            before = Some(character);
        }
        text.len()
    }

    fn merge_piece(
        &self,
        piece: &str,
        lookup: Lookup<'_>,
        scratch: &mut MetaspaceScratch,
        out: &mut Vec<u32>,
    ) {
        if self.rules.whole_pieces
            && let Some(id) = lookup.text_token(piece.as_bytes())
        {
            out.push(id);
            return;
        }
        let MetaspaceScratch { symbols, merge, .. } = scratch;
        symbols.clear();
        let mut after_unknown = false;
        let mut buffer = [0u8; 4];
        for character in piece.chars() {
            let spelled = character.encode_utf8(&mut buffer).as_bytes();
            if let Some(id) = lookup.text_token(spelled) {
                symbols.push(id);
                after_unknown = false;
            } else if let Some(bytes) = &self.byte_tokens {
                symbols.extend(spelled.iter().map(|byte| bytes[usize::from(*byte)]));
            } else {
                symbols
                    .extend(self.unknown.filter(|_| !(after_unknown && self.rules.fuse_unknown)));
                after_unknown = true;
            }
        }
        let short = symbols.len() <= SCAN_LENGTH_MAX;
        self.merges.merge(symbols.iter().copied(), short, merge, out);
    }
}
