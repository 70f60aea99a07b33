//! Is a character of a class? Classes are named as in patterns: `\p{Mn}`.

use regex_syntax::hir::{Class, HirKind};

/// Ranges of characters, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CharClass(Vec<(char, char)>);

impl CharClass {
    /// `None` where the pattern is no class.
    pub(crate) fn of(pattern: &str) -> Option<CharClass> {
        match regex_syntax::parse(pattern).ok()?.into_kind() {
            HirKind::Class(Class::Unicode(class)) => {
                Some(CharClass(class.iter().map(|range| (range.start(), range.end())).collect()))
            }
            _ => None,
        }
    }

    pub(crate) fn contains(&self, character: char) -> bool {
        let after = self.0.partition_point(|(start, _)| *start <= character);
        after > 0 && character <= self.0[after - 1].1
    }
}

#[cfg(test)]
mod tests {
    use super::CharClass;

    #[test]
    fn classes_are_those_of_patterns() {
        let marks = CharClass::of(r"\p{Mn}");
        let marks = marks.as_ref();
        assert!(marks.is_some_and(|marks| marks.contains('\u{301}') && !marks.contains('e')));
        assert!(CharClass::of("ab").is_none() && CharClass::of("(").is_none());
    }
}
