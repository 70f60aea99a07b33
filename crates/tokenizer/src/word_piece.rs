//! How does a text become pieces of words? BERT's way: words apart, then the longest piece that is
//! a token, and again behind it.
//!
//! Wu and others 2016, <https://arxiv.org/abs/1609.08144>; the reference is `WordPiece` and
//! `BertPreTokenizer` of the `tokenizers` crate. A word that cannot be spelled is the unknown token
//! as a whole.

use crate::char_class::CharClass;
use crate::sentence_piece::Lookup;

/// Of a word, where a file does not say.
pub(crate) const WORD_CHARS_MAX: usize = 100;

#[derive(Debug, Clone)]
pub(crate) struct WordPiece {
    /// In front of pieces that begin a word: nothing, or `▁` in GGUF files.
    pub(crate) first: String,
    /// In front of the others: `##`, or nothing in GGUF files.
    pub(crate) inner: String,
    pub(crate) unknown: u32,
    /// Longer words are not spelled.
    pub(crate) word_chars_max: usize,
    pub(crate) punctuation: CharClass,
}

impl WordPiece {
    pub(crate) fn new(
        first: &str,
        inner: &str,
        unknown: u32,
        word_chars_max: usize,
    ) -> Option<WordPiece> {
        let (first, inner) = (first.to_owned(), inner.to_owned());
        let punctuation = CharClass::of(r"[\p{P}$+<=>^`|~]")?;
        Some(WordPiece { first, inner, unknown, word_chars_max, punctuation })
    }

    /// Appends the tokens of a text without special tokens.
    pub(crate) fn encode(&self, text: &str, lookup: Lookup<'_>, out: &mut Vec<u32>) {
        for word in text.split_whitespace() {
            let mut rest = word;
            while let Some(first) = rest.chars().next() {
                let end = if self.punctuation.contains(first) {
                    first.len_utf8()
                } else {
                    let is_mark = |c| self.punctuation.contains(c);
                    rest.find(is_mark).unwrap_or(rest.len())
                };
                let (part, after) = rest.split_at(end);
                self.spell(part, lookup, out);
                rest = after;
            }
        }
    }

    fn spell(&self, word: &str, lookup: Lookup<'_>, out: &mut Vec<u32>) {
        let before = out.len();
        if word.chars().count() > self.word_chars_max {
            return out.push(self.unknown);
        }
        let mut spelled = String::with_capacity(word.len() + 4);
        let mut start = 0;
        while start < word.len() {
            let lead = if start == 0 { &self.first } else { &self.inner };
            spelled.clear();
            spelled.push_str(lead);
            spelled.push_str(&word[start..]);
            let found = loop {
                if let Some(id) = lookup.text_token(spelled.as_bytes()) {
                    break Some(id);
                }
                spelled.pop();
                if spelled.len() <= lead.len() {
                    break None;
                }
            };
            let Some(id) = found else {
                out.truncate(before);
                return out.push(self.unknown);
            };
            out.push(id);
            start += spelled.len() - lead.len();
        }
    }
}
