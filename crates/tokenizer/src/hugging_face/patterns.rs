//! How is a published pattern run without looking ahead?
//!
//! Most end in `\s+(?!\S)|\s+`: a run of spaces keeps its last one for the word behind it. Here
//! that is `\s+` and giving the last space back (`pre_tokenizer.rs`), which is the same if no other
//! branch ends in white space. The patterns of the table were checked by hand; of others
//! [`last_characters`] proves it, or they are refused. Patterns are compared by what they match,
//! not by how they are written.

use regex_syntax::hir::{Class, ClassUnicode, Hir, HirKind};

use crate::pre_tokenizer::{GiveBack, Step, known_steps};

/// The end that looks ahead, and what stands for it.
const LOOKS_AHEAD: &str = r"|\s+(?!\S)|\s+";
const TAKES_ALL: &str = r"|\s+";

/// Known patterns that no row of the table of pre-tokenizers has: GPT-4's.
const ALSO_KNOWN: &[(&str, GiveBack)] = &[(
    concat!(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
    ),
    GiveBack::SpaceButLines,
)];

/// The step that splits as the pattern does; `None`: it cannot be run.
pub(crate) fn step_of(pattern: &str) -> Option<Step> {
    // What a possessive repeat of a known pattern takes, what follows it cannot match: the same
    // without. Of unknown ones nobody knows, and our parser would read them as repeats of repeats.
    let plain = pattern.replace("?+", "?").replace("++", "+").replace("*+", "*");
    let found = known(pattern).or_else(|| known(&plain));
    found.or_else(|| if plain == pattern { proven(pattern) } else { None })
}

/// A pattern of ours as it is published.
pub(crate) fn with_look_ahead(pattern: &str, gives_back: GiveBack) -> String {
    match pattern.strip_suffix(TAKES_ALL) {
        Some(words) if gives_back != GiveBack::Nothing => format!("{words}{LOOKS_AHEAD}"),
        _ => pattern.to_owned(),
    }
}

fn without_look_ahead(pattern: &str) -> Option<(&str, String)> {
    let words = pattern.strip_suffix(LOOKS_AHEAD)?;
    Some((words, format!("{words}{TAKES_ALL}")))
}

fn known(pattern: &str) -> Option<Step> {
    let (pattern, ahead) = match without_look_ahead(pattern) {
        Some((_, linear)) => (linear, true),
        None => (pattern.to_owned(), false),
    };
    let meaning = regex_syntax::parse(&pattern).ok()?;
    let same = |(known, gives_back): &(&str, GiveBack)| {
        (*gives_back != GiveBack::Nothing) == ahead
            && regex_syntax::parse(known).is_ok_and(|known| known == meaning)
    };
    let (pattern, gives_back) = known_steps().chain(ALSO_KNOWN.iter().copied()).find(same)?;
    Some(Step { pattern: pattern.to_owned(), gives_back })
}

fn proven(pattern: &str) -> Option<Step> {
    let Some((words, linear)) = without_look_ahead(pattern) else {
        let meaning = regex_syntax::parse(pattern).ok()?;
        let plain = meaning.properties().look_set().is_empty();
        return plain.then(|| Step { pattern: pattern.to_owned(), gives_back: GiveBack::Nothing });
    };
    let mut last = last_characters(&regex_syntax::parse(words).ok()?)?.characters;
    last.intersect(&class_of(r"\s")?);
    // Where runs that end in line breaks are taken before, what is left never ends in one.
    let lines_before = [r"|\s*[\r\n]+", r"|\s*[\r\n]"].iter().any(|end| words.ends_with(end));
    if last.ranges().is_empty() {
        return Some(Step { pattern: linear, gives_back: GiveBack::Space });
    }
    last.difference(&class_of(r"[\r\n]")?);
    let only_lines = lines_before && last.ranges().is_empty();
    only_lines.then_some(Step { pattern: linear, gives_back: GiveBack::SpaceButLines })
}

fn class_of(pattern: &str) -> Option<ClassUnicode> {
    match regex_syntax::parse(pattern).ok()?.into_kind() {
        HirKind::Class(Class::Unicode(class)) => Some(class),
        _ => None,
    }
}

struct Last {
    characters: ClassUnicode,
    may_be_empty: bool,
}

/// The characters that a match may end in; `None` where that is not known. The depth is bounded by
/// the parser's own limit.
fn last_characters(hir: &Hir) -> Option<Last> {
    let mut characters = ClassUnicode::empty();
    let may_be_empty = match hir.kind() {
        HirKind::Empty => true,
        HirKind::Literal(literal) => {
            let last = std::str::from_utf8(&literal.0).ok()?.chars().next_back()?;
            characters.push(regex_syntax::hir::ClassUnicodeRange::new(last, last));
            false
        }
        HirKind::Class(Class::Unicode(class)) => {
            characters = class.clone();
            false
        }
        HirKind::Class(Class::Bytes(_)) | HirKind::Look(_) => return None,
        HirKind::Repetition(repetition) => {
            let last = last_characters(&repetition.sub)?;
            characters = last.characters;
            last.may_be_empty || repetition.min == 0
        }
        HirKind::Capture(capture) => return last_characters(&capture.sub),
        HirKind::Concat(parts) => {
            let mut empty_so_far = true;
            for part in parts.iter().rev() {
                let last = last_characters(part)?;
                characters.union(&last.characters);
                empty_so_far = last.may_be_empty;
                if !empty_so_far {
                    break;
                }
            }
            empty_so_far
        }
        HirKind::Alternation(branches) => {
            let mut any_empty = false;
            for branch in branches {
                let last = last_characters(branch)?;
                characters.union(&last.characters);
                any_empty |= last.may_be_empty;
            }
            any_empty
        }
    };
    Some(Last { characters, may_be_empty })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_known_proven_or_refused() {
        let gives_back = |pattern: &str| step_of(pattern).map(|step| step.gives_back);
        let known = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
        assert_eq!(gives_back(known), Some(GiveBack::Space));
        let proven = r" ?\p{L}+| ?[^\s\p{L}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert_eq!(gives_back(proven), Some(GiveBack::SpaceButLines));
        assert_eq!(gives_back(r"\p{N}{1,2}"), Some(GiveBack::Nothing));
        for refused in [
            r"\p{L}+ ?|\s+(?!\S)|\s+",
            r"\p{L}+[\r\n]*|\s+(?!\S)|\s+",
            r"(?=a)b",
            r"a(?!b)|\s+",
            r"(a)\1",
            r"\p{L}?+\p{L}",
            "(",
        ] {
            assert_eq!(gives_back(refused), None, "{refused}");
        }
    }

    #[test]
    fn spelling_does_not_matter() {
        let written = r"[一-龥぀-ゟ゠-ヿ]+";
        let step = step_of(written).map(|step| step.pattern);
        assert_eq!(
            step.as_deref(),
            Some(r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+")
        );
    }
}
