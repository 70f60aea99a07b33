//! What happens to a text before it is split, where a `tokenizer.json` asks for it?
//!
//! Special tokens are found before: each stretch of text between them is normalized by itself, so
//! that a mark behind one does not melt into it.

use std::borrow::Cow;

use crate::bert_normalizer::BertNormalizer;
use crate::charsmap::Charsmap;
use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick, is_nfkc_quick};

/// One step; they run in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Normalizer {
    Nfc,
    Nfd,
    Nfkc,
    Nfkd,
    Lowercase,
    /// Every occurrence of a text becomes another one.
    Replace {
        from: String,
        to: String,
    },
    Bert(Box<BertNormalizer>),
    /// A table made with a SentencePiece vocabulary.
    Charsmap(Box<Charsmap>),
    /// Runs of two spaces and more become this text.
    SpaceRuns(String),
}

impl Normalizer {
    fn apply<'t>(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        let of_unicode = !matches!(
            self,
            Normalizer::Lowercase
                | Normalizer::Replace { .. }
                | Normalizer::Bert(_)
                | Normalizer::Charsmap(_)
                | Normalizer::SpaceRuns(_)
        );
        if text.is_ascii() && of_unicode {
            return text;
        }
        let yes = IsNormalized::Yes;
        match self {
            Normalizer::Nfc if is_nfc_quick(text.chars()) == yes => text,
            Normalizer::Nfkc if is_nfkc_quick(text.chars()) == yes => text,
            Normalizer::Nfc => Cow::Owned(text.nfc().collect()),
            Normalizer::Nfd => Cow::Owned(text.nfd().collect()),
            Normalizer::Nfkc => Cow::Owned(text.nfkc().collect()),
            Normalizer::Nfkd => Cow::Owned(text.nfkd().collect()),
            // Character by character, as the reference does: a final sigma is not told apart.
            Normalizer::Lowercase => {
                Cow::Owned(text.chars().flat_map(char::to_lowercase).collect())
            }
            Normalizer::Bert(bert) => Cow::Owned(bert.apply(&text)),
            Normalizer::Charsmap(map) => Cow::Owned(map.apply(&text)),
            Normalizer::SpaceRuns(_) if !text.contains("  ") => text,
            Normalizer::SpaceRuns(to) => Cow::Owned(space_runs(&text, to)),
            Normalizer::Replace { from, .. } if !text.contains(from.as_str()) => text,
            Normalizer::Replace { from, to } => Cow::Owned(text.replace(from.as_str(), to)),
        }
    }
}

fn space_runs(text: &str, to: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("  ") {
        normal.push_str(&rest[..start]);
        normal.push_str(to);
        rest = rest[start..].trim_start_matches(' ');
    }
    normal.push_str(rest);
    normal
}

/// All steps on one stretch of text.
pub(crate) fn normalize<'t>(steps: &[Normalizer], text: &'t str) -> Cow<'t, str> {
    steps.iter().fold(Cow::Borrowed(text), |text, step| step.apply(text))
}
