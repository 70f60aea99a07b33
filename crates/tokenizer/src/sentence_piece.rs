//! How do the scores of a SentencePiece vocabulary turn text into tokens?
//!
//! Spaces become `▁`, every character is a symbol, and the neighbours whose joint text is the token
//! with the best score are merged first, the leftmost among equals (SentencePiece's BPE). A symbol
//! that is no token is spelled in bytes, or is the unknown token where there are no byte tokens.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::cuts::CutRule;
use crate::piece_cache::PieceCache;
use crate::token_table::{ByteArena, TokenTable};
use crate::vocabulary::{TokenType, Vocabulary, VocabularyError, shorten};

/// What stands for a space: U+2581.
pub(crate) const SPACE: char = '\u{2581}';
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
pub(crate) struct SentencePieceBpe {
    /// For each token, smaller is merged earlier; `NONE` where text never becomes it.
    orders: Vec<u32>,
    /// The token of each byte, all or none.
    byte_tokens: Option<Vec<u32>>,
    unknown: Option<u32>,
    unused: Vec<bool>,
    longest_bytes: usize,
    pub(crate) add_space_prefix: bool,
    /// Whether no merge can reach over the beginning of a run of spaces: no token holds a space
    /// behind something else, and what merges leave behind does not depend on other words. So it
    /// is for vocabularies that were trained on words, which all published ones were.
    words_apart: bool,
}

/// A symbol: a slice of the text, in a list. Merged-away ones are empty.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: u32,
    length: u32,
    left: u32,
    right: u32,
}

/// Two neighbours that make a token. Ordered by score, then by place.
type Candidate = Reverse<(u32, u32, u32)>;

/// Memory that fragments of one text share.
#[derive(Debug, Default)]
pub(crate) struct SentencePieceScratch {
    text: String,
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
    /// For merged tokens that are unused, the length of the first of their two parts.
    unused_splits: HashMap<u32, u32>,
}

impl SentencePieceScratch {
    /// What it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.text.capacity()
            + size_of::<Symbol>() * self.symbols.capacity()
            + size_of::<Candidate>() * self.heap.capacity()
            + size_of::<(u32, u32)>() * self.unused_splits.capacity()
    }
}

/// Where texts are looked up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lookup<'a> {
    pub(crate) texts: &'a ByteArena,
    pub(crate) table: &'a TokenTable,
    pub(crate) types: &'a [TokenType],
}

impl Lookup<'_> {
    /// The token of ordinary text with these bytes.
    pub(crate) fn text_token(&self, bytes: &[u8]) -> Option<u32> {
        let id = self.table.find(self.texts, bytes)?;
        let text = matches!(self.types[id as usize], TokenType::Normal | TokenType::UserDefined);
        text.then_some(id)
    }
}

impl SentencePieceBpe {
    pub(crate) fn new(vocabulary: &Vocabulary<'_>) -> Result<SentencePieceBpe, VocabularyError> {
        let byte_tokens = byte_tokens(vocabulary)?;
        let mut orders = Vec::with_capacity(vocabulary.tokens.len());
        let mut unused = Vec::with_capacity(vocabulary.tokens.len());
        let mut longest_bytes = 0;
        let mut words_apart = true;
        for (id, text) in (0u32..).zip(&vocabulary.tokens) {
            let token_type = vocabulary.token_type(id as usize);
            let from_text = matches!(
                token_type,
                TokenType::Normal | TokenType::UserDefined | TokenType::Unused
            );
            let score = vocabulary.scores[id as usize];
            orders.push(if from_text { order_of(score) } else { NONE });
            unused.push(token_type == TokenType::Unused);
            if from_text {
                longest_bytes = longest_bytes.max(text.len());
                words_apart &= token_type != TokenType::Unused && !goes_on_with_space(text);
            }
        }
        let unknown = vocabulary.unknown;
        if byte_tokens.is_none() && unknown.is_none() {
            return Err(VocabularyError::NoByteTokens);
        }
        Ok(SentencePieceBpe {
            orders,
            // Without byte tokens, a run of unknown characters is one token across words.
            words_apart: words_apart && byte_tokens.is_some(),
            byte_tokens,
            unknown,
            unused,
            longest_bytes,
            add_space_prefix: vocabulary.add_space_prefix.unwrap_or(true),
        })
    }

    /// Appends the tokens of a text without special tokens; `prefix` puts a space in front.
    pub(crate) fn encode(
        &self,
        text: &str,
        prefix: bool,
        lookup: Lookup<'_>,
        scratch: &mut SentencePieceScratch,
        cache: &mut PieceCache,
        out: &mut Vec<u32>,
    ) {
        if prefix || !self.words_apart {
            // With a space in front, the first word is another one than its text.
            let end = self.cut_rule().next(text, 1).unwrap_or(text.len());
            self.merge_word(&text[..end], prefix, lookup, scratch, out);
            return match &text[end..] {
                "" => {}
                rest => self.encode(rest, false, lookup, scratch, cache, out),
            };
        }
        let mut from = 0;
        while from < text.len() {
            let end = self.cut_rule().next(text, from + 1).unwrap_or(text.len());
            let word = &text[from..end];
            from = end;
            let place = cache.place(word.as_bytes());
            if let Some(tokens) = place.and_then(|place| cache.find(place)) {
                out.extend_from_slice(tokens);
                continue;
            }
            let start = out.len();
            self.merge_word(word, false, lookup, scratch, out);
            if let Some(place) = place {
                cache.keep(place, &out[start..]);
            }
        }
    }

    /// Where texts may be cut.
    pub(crate) fn cut_rule(&self) -> CutRule {
        if self.words_apart { CutRule::Spaces } else { CutRule::Never }
    }

    /// A text whose merges know nothing of what is around it.
    fn merge_word(
        &self,
        text: &str,
        prefix: bool,
        lookup: Lookup<'_>,
        scratch: &mut SentencePieceScratch,
        out: &mut Vec<u32>,
    ) {
        scratch.text.clear();
        scratch.text.extend(prefix.then_some(SPACE));
        scratch.text.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        self.merge(lookup, scratch);
        let mut at = if scratch.symbols.is_empty() { NONE } else { 0 };
        let mut after_unknown = false;
        while let Some(symbol) = scratch.symbols.get(at as usize) {
            let (start, end) = (symbol.start as usize, (symbol.start + symbol.length) as usize);
            let spelled = &scratch.text.as_bytes()[start..end];
            after_unknown = self.emit(spelled, lookup, &scratch.unused_splits, after_unknown, out);
            at = symbol.right;
        }
    }

    fn merge(&self, lookup: Lookup<'_>, scratch: &mut SentencePieceScratch) {
        let SentencePieceScratch { text, symbols, heap, unused_splits } = scratch;
        let text = text.as_str();
        symbols.clear();
        heap.clear();
        unused_splits.clear();
        for (at, (start, character)) in (0u32..).zip(text.char_indices()) {
            symbols.push(Symbol {
                start: u32::try_from(start).expect("invariant: texts are bounded"),
                length: character.len_utf8() as u32,
                left: at.wrapping_sub(1),
                right: at + 1,
            });
        }
        let Some(last) = symbols.last_mut() else { return };
        last.right = NONE;
        for at in 0..symbols.len() - 1 {
            heap.extend(self.candidate(text, symbols, at as u32, lookup, unused_splits));
        }
        while let Some(Reverse((_, at, length))) = heap.pop() {
            let left = symbols[at as usize];
            let Some(&right) = symbols.get(left.right as usize) else { continue };
            // One of the two has been merged since: their lengths no longer add up.
            if left.length == 0 || left.length + right.length != length {
                continue;
            }
            symbols[left.right as usize].length = 0;
            symbols[at as usize].length = length;
            symbols[at as usize].right = right.right;
            if let Some(next) = symbols.get_mut(right.right as usize) {
                next.left = at;
            }
            heap.extend(self.candidate(text, symbols, at, lookup, unused_splits));
            if left.left != NONE {
                heap.extend(self.candidate(text, symbols, left.left, lookup, unused_splits));
            }
        }
    }

    /// The merge of a symbol with its right neighbour, if together they are a token.
    fn candidate(
        &self,
        text: &str,
        symbols: &[Symbol],
        at: u32,
        lookup: Lookup<'_>,
        unused_splits: &mut HashMap<u32, u32>,
    ) -> Option<Candidate> {
        let left = symbols[at as usize];
        let right = symbols.get(left.right as usize)?;
        let length = left.length + right.length;
        if length as usize > self.longest_bytes {
            return None;
        }
        let start = left.start as usize;
        let bytes = &text.as_bytes()[start..start + length as usize];
        let id = lookup.table.find(lookup.texts, bytes)?;
        let order = self.orders[id as usize];
        if order == NONE {
            return None;
        }
        if self.unused[id as usize] {
            unused_splits.insert(id, left.length);
        }
        Some(Reverse((order, at, length)))
    }

    /// Appends the tokens of one symbol; tells whether the last one is the unknown token.
    fn emit(
        &self,
        spelled: &[u8],
        lookup: Lookup<'_>,
        unused_splits: &HashMap<u32, u32>,
        after_unknown: bool,
        out: &mut Vec<u32>,
    ) -> bool {
        let found = lookup.table.find(lookup.texts, spelled);
        if let Some(id) = found.filter(|id| self.orders[*id as usize] != NONE) {
            // An unused token only helps merging: it is taken apart again. Parts are shorter, so
            // this ends; the depth is bounded by the length of a token.
            let split = if self.unused[id as usize] { unused_splits.get(&id) } else { None };
            if let Some(first) = split {
                let (left, right) = spelled.split_at(*first as usize);
                let unknown = self.emit(left, lookup, unused_splits, after_unknown, out);
                return self.emit(right, lookup, unused_splits, unknown, out);
            }
            out.push(id);
            return false;
        }
        if let Some(bytes) = &self.byte_tokens {
            out.extend(spelled.iter().map(|byte| bytes[usize::from(*byte)]));
            return false;
        }
        // A run of unknown characters is one unknown token.
        if !after_unknown {
            out.extend(self.unknown);
        }
        true
    }
}

/// Whether a space stands behind anything but spaces.
pub(crate) fn goes_on_with_space(text: &str) -> bool {
    text.trim_start_matches(SPACE).contains(SPACE)
}

/// The score as a number that orders the other way round: the best score is the smallest.
fn order_of(score: f32) -> u32 {
    // Adding zero makes both zeros one. The bits of floats order like integers once negative ones
    // are reversed.
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    // `NONE` stays free: only a NaN could reach it, and those are refused before.
    !ascending
}

/// The token of each byte, for a vocabulary whose type-6 tokens say it: all 256 or none.
pub(crate) fn byte_tokens(
    vocabulary: &Vocabulary<'_>,
) -> Result<Option<Vec<u32>>, VocabularyError> {
    let mut bytes = vec![NONE; 256];
    for (id, text) in (0u32..).zip(&vocabulary.tokens) {
        if vocabulary.token_type(id as usize) == TokenType::Byte {
            enter_byte(&mut bytes, id, text)?;
        }
    }
    match bytes.iter().filter(|id| **id != NONE).count() {
        0 => Ok(None),
        256 => Ok(Some(bytes)),
        found => Err(VocabularyError::LengthMismatch {
            what: "byte tokens (256 or none are needed)",
            found,
            tokens: vocabulary.tokens.len(),
        }),
    }
}

fn enter_byte(bytes: &mut [u32], id: u32, text: &str) -> Result<(), VocabularyError> {
    let byte =
        byte_of(text).ok_or_else(|| VocabularyError::BadByteToken { id, text: shorten(text) })?;
    let first = &mut bytes[usize::from(byte)];
    if *first != NONE {
        return Err(VocabularyError::DuplicateByte { first: *first, second: id, byte });
    }
    *first = id;
    Ok(())
}

/// The byte that `<0x0A>` stands for: exactly two digits.
pub(crate) fn byte_of(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    let valid = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if valid { u8::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn better_scores_come_first() {
        let scores = [f32::INFINITY, 2.5, 1.0, 0.0, -0.5, -3.0, f32::NEG_INFINITY];
        assert!(scores.is_sorted_by_key(|score| order_of(*score)));
        assert_eq!(order_of(0.0), order_of(-0.0));
        assert!(scores.iter().all(|score| order_of(*score) != NONE));
    }

    #[test]
    fn bytes_are_read_strictly() {
        assert_eq!(byte_of("<0x0A>"), Some(10));
        assert_eq!(byte_of("<0xfF>"), Some(255));
        for text in ["<0x-1>", "<0x+1>", "<0x1>", "<0x001>", "0x0A", "<0x0A", "<0xé>"] {
            assert_eq!(byte_of(text), None, "{text}");
        }
    }
}
