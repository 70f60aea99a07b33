//! Which tokens stand in the text as they are, whatever the merges say?

use crate::vocabulary::{SPECIAL_COUNT_MAX, SPECIAL_TEXT_MAX_BYTES, TokenType, VocabularyError};
use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

/// A stretch of text, or a token that stands for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds the longest of some tokens, leftmost first.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpecialMatcher {
    matcher: Option<AhoCorasick>,
    ids: Vec<u32>,
}

impl SpecialMatcher {
    pub(crate) fn new(tokens: &[(u32, String)]) -> Result<SpecialMatcher, VocabularyError> {
        if tokens.is_empty() {
            return Ok(SpecialMatcher::default());
        }
        let bytes: usize = tokens.iter().map(|(_, text)| text.len()).sum();
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
            .build(tokens.iter().map(|(_, text)| text.as_bytes()))
            .map_err(|error| VocabularyError::Unprepared { reason: error.to_string() })?;
        let ids = tokens.iter().map(|(id, _)| *id).collect();
        Ok(SpecialMatcher { matcher: Some(matcher), ids })
    }

    /// Cuts the text at its special tokens; `emit` gets each fragment and where it ends. No text
    /// fragment is empty.
    pub(crate) fn fragments<'t>(&self, text: &'t str, emit: &mut dyn FnMut(Fragment<'t>, usize)) {
        let mut from = 0;
        if let Some(matcher) = &self.matcher {
            for found in matcher.find_iter(text) {
                if found.start() > from {
                    emit(Fragment::Text(&text[from..found.start()]), found.start());
                }
                emit(Fragment::Token(self.ids[found.pattern().as_usize()]), found.end());
                from = found.end();
            }
        }
        if from < text.len() {
            emit(Fragment::Text(&text[from..]), text.len());
        }
    }
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
        let tokens = [(5, "<|a|>".to_owned()), (6, "<|a|><|b".to_owned()), (7, "b".to_owned())];
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
        let long = vec![(0, "x".repeat(SPECIAL_TEXT_MAX_BYTES + 1))];
        assert!(matches!(SpecialMatcher::new(&long), Err(VocabularyError::TooMany { .. })));
    }
}
