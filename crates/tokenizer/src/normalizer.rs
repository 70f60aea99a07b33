//! What happens to a text before it is split, where a `tokenizer.json` asks for it?
//!
//! Special tokens are found before: each stretch of text between them is normalized by itself, so
//! that a mark behind one does not melt into it.

use std::borrow::Cow;

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
}

impl Normalizer {
    fn apply<'t>(&self, text: Cow<'t, str>) -> Cow<'t, str> {
        if text.is_ascii() && !matches!(self, Normalizer::Lowercase | Normalizer::Replace { .. }) {
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
            Normalizer::Replace { from, .. } if !text.contains(from.as_str()) => text,
            Normalizer::Replace { from, to } => Cow::Owned(text.replace(from.as_str(), to)),
        }
    }
}

/// All steps on one stretch of text.
pub(crate) fn normalize<'t>(steps: &[Normalizer], text: &'t str) -> Cow<'t, str> {
    steps.iter().fold(Cow::Borrowed(text), |text, step| step.apply(text))
}
