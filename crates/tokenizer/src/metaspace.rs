//! How do ranked merges of characters turn text into tokens?
//!
//! The kind of `tokenizer.json` that was made from a SentencePiece vocabulary: spaces become `▁`,
//! each character that is a token is a symbol, and listed pairs merge in order of rank. A character
//! that is no token is spelled in bytes, or is the unknown token where there are no byte tokens.

use crate::cuts::CutRule;
use crate::piece_cache::PieceCache;
use crate::ranked_merges::{MergeScratch, RankedMerges, SCAN_LENGTH_MAX};
use crate::sentence_piece::{Lookup, SPACE};

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

#[derive(Debug, Clone)]
pub(crate) struct MetaspaceBpe {
    pub(crate) merges: RankedMerges,
    /// The token of each byte, all or none.
    pub(crate) byte_tokens: Option<Vec<u32>>,
    pub(crate) unknown: Option<u32>,
    /// A run of unknown characters is one unknown token.
    pub(crate) fuse_unknown: bool,
    /// A piece that is a token is that token, whether or not merges lead there.
    pub(crate) whole_pieces: bool,
    pub(crate) prefix: Prefix,
    /// Each space begins a piece that merges do not leave.
    pub(crate) split: bool,
    /// No merge reaches over the beginning of a run of spaces, so words may be merged apart.
    pub(crate) words_apart: bool,
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
    /// Whether a text at the start, or behind a special token, gets a space in front.
    pub(crate) fn prefix_at(&self, start: bool) -> bool {
        match self.prefix {
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
        let spaced = text.starts_with([' ', SPACE]) && self.prefix != Prefix::EachAnyway;
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
            let begins = character == SPACE && (self.split || before != Some(SPACE));
            if begins && (self.split || self.words_apart) {
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
        if self.whole_pieces
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
                symbols.extend(self.unknown.filter(|_| !(after_unknown && self.fuse_unknown)));
                after_unknown = true;
            }
        }
        let short = symbols.len() <= SCAN_LENGTH_MAX;
        self.merges.merge(symbols.iter().copied(), short, merge, out);
    }
}
