//! How do the merges of a byte-level vocabulary turn a piece of text into tokens?
//!
//! Such files spell each byte as one printable character (GPT-2's alphabet); a piece's bytes are
//! the symbols that its merges join.

use crate::cuts::CutRule;
use crate::piece_cache::PieceCache;
use crate::pre_tokenizer::{PreTokenizer, pre_tokenizer_names};
use crate::ranked_merges::{MergeScratch, NONE, RankedMerges, SCAN_LENGTH_MAX, Sides};
use crate::token_table::{ByteArena, TokenTable};
use crate::vocabulary::{TokenType, Vocabulary, VocabularyError, shorten};

/// GPT-2's alphabet: bytes that print stand for themselves, the others follow U+0100 in order.
#[derive(Debug, Clone)]
pub(crate) struct Alphabet {
    characters: [char; 256],
}

impl Alphabet {
    pub(crate) fn new() -> Alphabet {
        let mut characters = ['\0'; 256];
        let mut next = 0x100;
        for (byte, character) in (0u8..=255).zip(&mut characters) {
            *character = match byte {
                0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
                _ => {
                    let shifted = char::from_u32(next);
                    next += 1;
                    shifted.expect("invariant: at most 68 characters after U+0100")
                }
            };
        }
        Alphabet { characters }
    }

    /// The byte that a character spells.
    fn byte(&self, character: char) -> Option<u8> {
        match u32::from(character) {
            code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => u8::try_from(code).ok(),
            // 33 below 0x21, 0x7F to 0xA0, 0xAD: in this order from U+0100 on.
            code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
            code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
            0x143 => Some(0xAD),
            _ => None,
        }
    }

    /// Writes the bytes that a token spells; the text itself where it is not of the alphabet.
    pub(crate) fn write_bytes(&self, text: &str, out: &mut Vec<u8>) {
        let start = out.len();
        for character in text.chars() {
            match self.byte(character) {
                Some(byte) => out.push(byte),
                None => {
                    out.truncate(start);
                    out.extend_from_slice(text.as_bytes());
                    return;
                }
            }
        }
    }

    fn write_text(&self, bytes: &[u8], out: &mut String) {
        out.extend(bytes.iter().map(|&byte| self.characters[usize::from(byte)]));
    }
}

#[derive(Debug, Clone)]
pub(crate) struct ByteLevelBpe {
    pre_tokenizer: PreTokenizer,
    alphabet: Alphabet,
    /// The token of each byte; `NONE` where the vocabulary has none.
    byte_tokens: Vec<u32>,
    merges: RankedMerges,
    /// Whether each text that does not begin with a space gets one in front.
    pub(crate) add_prefix_space: bool,
}

/// Memory that pieces of one text share.
#[derive(Debug, Default)]
pub(crate) struct ByteLevelScratch {
    merge: MergeScratch,
    spelled: String,
}

impl ByteLevelScratch {
    /// What it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.merge.bytes() + self.spelled.capacity()
    }
}

impl ByteLevelBpe {
    /// The way of a GGUF file, whose merges have spaces between.
    pub(crate) fn new(
        vocabulary: &Vocabulary<'_>,
        texts: &ByteArena,
        table: &TokenTable,
    ) -> Result<ByteLevelBpe, VocabularyError> {
        let name = vocabulary.pre_tokenizer;
        let pre_tokenizer = PreTokenizer::named(name)
            .ok_or_else(|| VocabularyError::UnknownPreTokenizer {
                name: shorten(name),
                known: pre_tokenizer_names().collect::<Vec<_>>().join(", "),
            })?
            .map_err(|reason| VocabularyError::Unprepared { reason })?;
        if vocabulary.merges.is_empty() {
            return Err(VocabularyError::NoMerges);
        }
        let is_text = |id| is_text(vocabulary, id);
        let merges = RankedMerges::new(spaced_merges(&vocabulary.merges), is_text, texts, table)?;
        ByteLevelBpe::with_parts(pre_tokenizer, merges, is_text, texts, table)
    }

    /// From a pre-tokenizer and merges that were read before.
    pub(crate) fn with_parts(
        pre_tokenizer: PreTokenizer,
        merges: RankedMerges,
        is_text: impl Fn(u32) -> bool,
        texts: &ByteArena,
        table: &TokenTable,
    ) -> Result<ByteLevelBpe, VocabularyError> {
        let alphabet = Alphabet::new();
        let mut buffer = [0u8; 4];
        let byte_tokens: Vec<u32> = alphabet
            .characters
            .iter()
            .map(|character| {
                let spelled = character.encode_utf8(&mut buffer);
                let id = table.find(texts, spelled.as_bytes());
                id.filter(|id| is_text(*id)).unwrap_or(NONE)
            })
            .collect();
        if byte_tokens.iter().all(|id| *id == NONE) {
            return Err(VocabularyError::NoByteTokens);
        }
        let add_prefix_space = false;
        Ok(ByteLevelBpe { pre_tokenizer, alphabet, byte_tokens, merges, add_prefix_space })
    }

    /// Whether files with this pre-tokenizer mean a begin token where they do not say.
    pub(crate) fn adds_bos(&self) -> bool {
        self.pre_tokenizer.adds_bos
    }

    /// Whether every byte of a text is in one of its tokens.
    pub(crate) fn spells_all(&self) -> bool {
        self.byte_tokens.iter().all(|id| *id != NONE)
    }

    /// Appends the tokens of a text without special tokens. A byte that the vocabulary cannot
    /// spell is left out, as in the implementations that these vocabularies come from.
    pub(crate) fn encode(
        &self,
        text: &str,
        whole: impl Fn(&[u8]) -> Option<u32>,
        scratch: &mut ByteLevelScratch,
        cache: &mut PieceCache,
        out: &mut Vec<u32>,
    ) {
        self.pre_tokenizer.split(text, |piece| {
            let place = cache.place(piece.as_bytes());
            if let Some(tokens) = place.and_then(|place| cache.find(place)) {
                out.extend_from_slice(tokens);
                return;
            }
            let start = out.len();
            self.merge(piece, &whole, scratch, out);
            if let Some(place) = place {
                cache.keep(place, &out[start..]);
            }
        });
    }

    fn merge(
        &self,
        piece: &str,
        whole: &impl Fn(&[u8]) -> Option<u32>,
        scratch: &mut ByteLevelScratch,
        out: &mut Vec<u32>,
    ) {
        if self.pre_tokenizer.whole_pieces {
            scratch.spelled.clear();
            self.alphabet.write_text(piece.as_bytes(), &mut scratch.spelled);
            if let Some(id) = whole(scratch.spelled.as_bytes()) {
                out.push(id);
                return;
            }
        }
        let short = piece.len() <= SCAN_LENGTH_MAX;
        self.merges.merge(self.ids(piece.as_bytes()), short, &mut scratch.merge, out);
    }

    /// Where texts may be cut.
    pub(crate) fn cut_rule(&self) -> CutRule {
        self.pre_tokenizer.cuts
    }

    fn ids<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = u32> + 'a {
        bytes.iter().map(|&byte| self.byte_tokens[usize::from(byte)]).filter(|id| *id != NONE)
    }
}

/// Whether merging text may give this token: control tokens never come from text.
pub(crate) fn is_text(vocabulary: &Vocabulary<'_>, id: u32) -> bool {
    let token_type = vocabulary.token_type(id as usize);
    !matches!(token_type, TokenType::Control | TokenType::Unknown)
}

/// The sides of the merges that a file writes with a space between.
pub(crate) fn spaced_merges<'a>(
    merges: &'a [&'a str],
) -> impl ExactSizeIterator<Item = Result<Sides<'a>, VocabularyError>> {
    merges.iter().enumerate().map(|(rank, text)| {
        let bad = || VocabularyError::BadMerge { rank, text: shorten(text) };
        // A first character may itself be a space in files with an alphabet of their own.
        let space = text.bytes().skip(1).position(|byte| byte == b' ').ok_or_else(bad)? + 1;
        let right = text.get(space + 1..).filter(|right| !right.is_empty()).ok_or_else(bad)?;
        Ok((&text[..space], right))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_goes_both_ways() {
        let alphabet = Alphabet::new();
        for byte in 0..=255u8 {
            let mut text = String::new();
            alphabet.write_text(&[byte], &mut text);
            let mut bytes = Vec::new();
            alphabet.write_bytes(&text, &mut bytes);
            assert_eq!(bytes, [byte]);
        }
        assert_eq!(alphabet.characters[usize::from(b' ')], 'Ġ');
        assert_eq!(alphabet.characters[usize::from(b'\n')], 'Ċ');
        let mut bytes = Vec::new();
        alphabet.write_bytes("a b", &mut bytes);
        assert_eq!(bytes, b"a b", "not of the alphabet: kept as it is");
    }
}
