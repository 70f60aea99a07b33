//! Which tokens stand in the text as they are, whatever the merges say?

use crate::vocabulary::{SPECIAL_COUNT_MAX, SPECIAL_TEXT_MAX_BYTES, TokenType, VocabularyError};
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// A stretch of text, or a token that stands for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// What an added token of a Hugging Face tokenizer does at its edges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Edges {
    /// Takes the white space before it.
    pub(crate) takes_left: bool,
    /// Takes the white space behind it.
    pub(crate) takes_right: bool,
    /// Counts only where it is no part of a longer word.
    pub(crate) whole_word: bool,
}

impl Edges {
    pub(crate) fn takes_space(&self) -> bool {
        self.takes_left || self.takes_right
    }
}

/// A token that is matched in raw text.
#[derive(Debug, Clone)]
pub(crate) struct Special {
    pub(crate) id: u32,
    pub(crate) text: String,
    pub(crate) edges: Edges,
}

/// Finds the longest of some tokens, leftmost first.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialMatcher {
    matcher: Option<AhoCorasick>,
    /// In the matcher's order.
    found: Vec<(u32, Edges)>,
}

impl SpecialMatcher {
    pub(crate) fn new(tokens: &[Special]) -> Result<SpecialMatcher, VocabularyError> {
        if tokens.is_empty() {
            return Ok(SpecialMatcher::default());
        }
        let bytes: usize = tokens.iter().map(|token| token.text.len()).sum();
        let counted = [
            ("special tokens", tokens.len(), SPECIAL_COUNT_MAX),
            ("bytes of special tokens", bytes, SPECIAL_TEXT_MAX_BYTES),
        ];
        for (what, found, limit) in counted {
            if found > limit {
                return Err(VocabularyError::TooMany { what, found, limit });
            }
        }
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            // The other kinds can take far more memory than the texts themselves.
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .build(tokens.iter().map(|token| token.text.as_bytes()))
            .map_err(|error| VocabularyError::Unprepared { reason: error.to_string() })?;
        let found = tokens.iter().map(|token| (token.id, token.edges)).collect();
        Ok(SpecialMatcher { matcher: Some(matcher), found })
    }

    /// Cuts the text at its special tokens; `emit` gets each fragment and where it ends. No text
    /// fragment is empty.
    pub(crate) fn fragments<'t>(&self, text: &'t str, emit: &mut dyn FnMut(Fragment<'t>, usize)) {
        let mut from = 0;
        if let Some(matcher) = &self.matcher {
            for found in matcher.find_iter(text) {
                let (id, edges) = self.found[found.pattern().as_usize()];
                // The token before may have taken the space that this one begins with.
                let (mut start, mut end) = (found.start().max(from), found.end().max(from));
                if edges.whole_word && !stands_alone(text, found.start(), found.end()) {
                    continue;
                }
                if edges.takes_left {
                    start = from + text[from..start].trim_end().len();
                }
                if edges.takes_right {
                    end = text.len() - text[end..].trim_start().len();
                }
                if start > from {
                    emit(Fragment::Text(&text[from..start]), start);
                }
                emit(Fragment::Token(id), end);
                from = end;
            }
        }
        if from < text.len() {
            emit(Fragment::Text(&text[from..]), text.len());
        }
    }
}

/// Whether no word goes on over the borders of a stretch of text.
fn stands_alone(text: &str, start: usize, end: usize) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    let before = text[..start].chars().next_back();
    let after = text[end..].chars().next();
    !before.is_some_and(in_word) && !after.is_some_and(in_word)
}

/// Whether a token of this type is matched in raw text: always, or only where asked.
pub(crate) fn is_special(token_type: TokenType, control_too: bool) -> bool {
    match token_type {
        TokenType::UserDefined => true,
        TokenType::Control | TokenType::Unknown => control_too,
        TokenType::Normal | TokenType::Unused | TokenType::Byte => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_longest_token_at_the_leftmost_place_wins() {
        let plain = |(id, text): (u32, &str)| Special {
            id,
            text: text.to_owned(),
            edges: Edges::default(),
        };
        let tokens = [(5, "<|a|>"), (6, "<|a|><|b"), (7, "b")].map(plain);
        let matcher = SpecialMatcher::new(&tokens).unwrap();
        let mut found = Vec::new();
        let text = "x<|a|><|b<|a|>y";
        let mut ends = Vec::new();
        matcher.fragments(text, &mut |fragment, end| {
            found.push(fragment);
            ends.push(end);
        });
        assert_eq!(ends, [1, 9, 14, 15]);
        use Fragment::{Text, Token};
        assert_eq!(found, [Text("x"), Token(6), Token(5), Text("y")]);
    }

    #[test]
    fn too_many_are_refused() {
        let text = "x".repeat(SPECIAL_TEXT_MAX_BYTES + 1);
        let long = [Special { id: 0, text, edges: Edges::default() }];
        assert!(matches!(SpecialMatcher::new(&long), Err(VocabularyError::TooMany { .. })));
    }
}
