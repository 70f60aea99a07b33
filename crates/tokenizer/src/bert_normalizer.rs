//! BERT's way to make texts alike: no control characters, plain spaces, ideographs apart, and
//! perhaps no accents and no capitals.
//!
//! The reference is `BertNormalizer` of the `tokenizers` crate; its steps in its order.

use unicode_normalization::UnicodeNormalization;

use crate::char_class::CharClass;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BertNormalizer {
    pub(crate) cleans: bool,
    pub(crate) parts_ideographs: bool,
    pub(crate) strips_accents: bool,
    pub(crate) lowers: bool,
    /// Control characters, private ones and those that are none.
    pub(crate) others: CharClass,
    pub(crate) accents: CharClass,
}

impl BertNormalizer {
    /// Everything on: what uncased models expect.
    pub(crate) fn uncased() -> Option<BertNormalizer> {
        Some(BertNormalizer {
            cleans: true,
            parts_ideographs: true,
            strips_accents: true,
            lowers: true,
            others: CharClass::of(r"\p{C}")?,
            accents: CharClass::of(r"\p{Mn}")?,
        })
    }

    pub(crate) fn apply(&self, text: &str) -> String {
        let mut normal = String::with_capacity(text.len() + 8);
        for character in text.chars() {
            match character {
                '\t' | '\n' | '\r' if self.cleans => normal.push(' '),
                '\0' | '\u{fffd}' if self.cleans => {}
                _ if self.cleans && self.others.contains(character) => {}
                _ if self.cleans && character.is_whitespace() => normal.push(' '),
                _ if self.parts_ideographs && is_ideograph(character) => {
                    normal.extend([' ', character, ' ']);
                }
                _ => normal.push(character),
            }
        }
        if self.strips_accents {
            normal = normal.nfd().filter(|c| !self.accents.contains(*c)).collect();
        }
        if self.lowers {
            normal = normal.chars().flat_map(char::to_lowercase).collect();
        }
        normal
    }
}

/// The blocks that BERT's own code lists, which are not all there are.
fn is_ideograph(character: char) -> bool {
    matches!(
        u32::from(character),
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x2_0000..=0x2_A6DF
            | 0x2_A700..=0x2_B73F
            | 0x2_B740..=0x2_B81F
            | 0x2_B920..=0x2_CEAF
            | 0xF900..=0xFAFF
            | 0x2_F800..=0x2_FA1F
    )
}
