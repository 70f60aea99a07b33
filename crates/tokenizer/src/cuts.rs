//! Where may a text be cut, so that its parts give the tokens that it gives as a whole?
//!
//! A cut stands between two pieces of the pre-tokenizer, whatever is around it. Two places are
//! such, for letters of four scripts that every pattern takes into its words ([`is_letter`]):
//!
//! - *between a letter and a space with a letter behind it*: where a pattern takes a space, the
//!   space is the first of a piece or one of a run of white space, so no piece holds a letter and
//!   then a space; and the piece that ends there ends in a letter, so no rule about spaces at the
//!   end of a text sees a difference. One pattern takes words with the spaces between them
//!   ([`CutRule::Lines`]);
//! - *between a single line break and a letter*: where a pattern takes a line break, only white
//!   space, line breaks or marks follow in that piece, and no piece begins with a line break and
//!   goes on with a letter. A single one has no last one to give back.
//!
//! No pattern looks behind, and none looks ahead but for spaces, so what is left of a cut does not
//! change what is right of it. The tests cut texts at all places that these rules name, and
//! compare.

/// Which places are cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CutRule {
    /// Between words, and after line breaks.
    WordsAndLines,
    /// After line breaks only.
    Lines,
    /// Before any space that follows something else, for SentencePiece vocabularies none of whose
    /// tokens goes on with a space.
    Spaces,
    /// Nowhere.
    Never,
}

impl CutRule {
    /// The first cut at or after `from`, inside the text.
    pub(crate) fn next(self, text: &str, from: usize) -> Option<usize> {
        let bytes = text.as_bytes();
        let mut at = from.max(1);
        while let Some(found) = self.candidate(bytes.get(at..)?) {
            at += found;
            if let Some(cut) = self.cut_at(text, at).filter(|cut| *cut < text.len()) {
                return Some(cut);
            }
            at += 1;
        }
        None
    }

    /// The next byte that a rule names.
    fn candidate(self, bytes: &[u8]) -> Option<usize> {
        match self {
            CutRule::WordsAndLines => bytes.iter().position(|byte| matches!(byte, b' ' | b'\n')),
            CutRule::Lines => bytes.iter().position(|byte| *byte == b'\n'),
            CutRule::Spaces => bytes.iter().position(|byte| *byte == b' '),
            CutRule::Never => None,
        }
    }

    /// The cut that the space or line break at `at` allows.
    fn cut_at(self, text: &str, at: usize) -> Option<usize> {
        let before = text[..at].chars().next_back()?;
        let after = text[at + 1..].chars().next();
        if self == CutRule::Spaces {
            return (before != ' ' && before != crate::sentence_piece::SPACE).then_some(at);
        }
        if !after.is_some_and(is_letter) {
            return None;
        }
        match text.as_bytes()[at] {
            b' ' => is_letter(before).then_some(at),
            _ => (!before.is_whitespace()).then_some(at + 1),
        }
    }
}

/// Letters that every pattern takes into words: Latin without accents, Russian, Korean, Chinese.
fn is_letter(character: char) -> bool {
    matches!(
        character,
        'a'..='z'
            | 'A'..='Z'
            | '\u{410}'..='\u{44F}'
            | '\u{AC00}'..='\u{D7A3}'
            | '\u{4E00}'..='\u{9FA5}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rule: CutRule, text: &str, expected: &[usize]) {
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(cut) = rule.next(text, from) {
            found.push(cut);
            from = cut + 1;
        }
        assert_eq!(found, expected, "{rule:?} {text:?}");
    }

    #[test]
    fn cuts_are_where_the_rules_say() {
        use CutRule::{Lines, Never, Spaces, WordsAndLines};
        check(WordsAndLines, "ab cd\nef", &[2, 6]);
        check(WordsAndLines, " a  b 1 c. d\n\ne\r\nf ", &[]);
        check(WordsAndLines, "中 \u{44F}\u{301} b.\nx", &[3, 12]);
        check(Lines, "ab cd\nef .\ng", &[6, 11]);
        check(Spaces, "ab cd\nef \u{2581} . g", &[2, 8, 14]);
        check(Spaces, "  a  b", &[3]);
        check(Never, "ab cd\nef", &[]);
    }
}
