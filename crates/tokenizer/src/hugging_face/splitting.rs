//! What do the normalizer and the pre-tokenizer of a `tokenizer.json` come to?

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::error::HuggingFaceError;
use super::patterns::step_of;
use crate::bert_normalizer::BertNormalizer;
use crate::charsmap::Charsmap;
use crate::metaspace::Prefix;
use crate::normalizer::Normalizer;
use crate::pre_tokenizer::{GiveBack, Step};
use crate::sentence_piece::SPACE;
use crate::vocabulary::printable;

const NORMALIZERS: &str = "NFC, NFD, NFKC, NFKD, Lowercase, Replace of a text, Prepend of `▁`, \
                           BertNormalizer, Precompiled";
const PRE_TOKENIZERS: &str = "ByteLevel, Metaspace, Split, Digits, Punctuation, BertPreTokenizer, \
                              WhitespaceSplit";

/// How a text is prepared for its merges.
#[derive(Debug)]
pub(crate) struct Splitting {
    pub(crate) normalizers: Vec<Normalizer>,
    pub(crate) symbols: Symbols,
}

/// What merges begin with.
#[derive(Debug)]
pub(crate) enum Symbols {
    Bytes {
        steps: Vec<Step>,
        add_prefix_space: bool,
    },
    Characters {
        prefix: Prefix,
        split: bool,
        /// White space is only where words are parted.
        by_words: bool,
    },
    /// Words as BERT parts them.
    Words,
}

pub(crate) fn unsupported(what: &str, supported: &'static str) -> HuggingFaceError {
    HuggingFaceError::Unsupported { what: printable(what), supported }
}

/// The parts of a `Sequence`, or the thing itself; nothing for `null`.
pub(crate) fn flatten<'a>(value: &'a Value, list: &str) -> Vec<&'a Value> {
    match (value, value[list].as_array()) {
        (Value::Null, _) => Vec::new(),
        (_, Some(parts)) if kind(value) == "Sequence" => {
            parts.iter().flat_map(|part| flatten(part, list)).collect()
        }
        _ => vec![value],
    }
}

pub(crate) fn kind(value: &Value) -> &str {
    value["type"].as_str().unwrap_or("something without a type")
}

fn flag(value: &Value, name: &str, default: bool) -> bool {
    value[name].as_bool().unwrap_or(default)
}

impl Splitting {
    pub(crate) fn read(
        normalizer: &Value,
        pre_tokenizer: &Value,
    ) -> Result<Splitting, HuggingFaceError> {
        let mut normalizers = Vec::new();
        let (mut escapes, mut prefix) = (false, Prefix::Never);
        for part in flatten(normalizer, "normalizers") {
            match kind(part) {
                "NFC" => normalizers.push(Normalizer::Nfc),
                "NFD" => normalizers.push(Normalizer::Nfd),
                "NFKC" => normalizers.push(Normalizer::Nfkc),
                "NFKD" => normalizers.push(Normalizer::Nfkd),
                "Lowercase" => normalizers.push(Normalizer::Lowercase),
                "Precompiled" => normalizers.push(charsmap(part)?),
                "Replace" if part["pattern"]["Regex"] == " {2,}" => {
                    let to = part["content"].as_str().unwrap_or_default();
                    normalizers.push(Normalizer::SpaceRuns(to.to_owned()));
                }
                "BertNormalizer" => normalizers.push(bert(part)?),
                "Prepend" if is_space(&part["prepend"]) => prefix = Prefix::EachAnyway,
                "Replace" => match (part["pattern"]["String"].as_str(), &part["content"]) {
                    (Some(" "), content) if is_space(content) => escapes = true,
                    (Some(from), Value::String(to)) if !from.is_empty() => {
                        let (from, to) = (from.to_owned(), to.clone());
                        normalizers.push(Normalizer::Replace { from, to });
                    }
                    _ => return Err(unsupported("a Replace of a pattern", NORMALIZERS)),
                },
                other => return Err(unsupported(&format!("normalizer {other}"), NORMALIZERS)),
            }
        }
        let parts = flatten(pre_tokenizer, "pretokenizers");
        let symbols = if parts.iter().any(|part| kind(part) == "ByteLevel") {
            if escapes || prefix != Prefix::Never {
                return Err(unsupported("ByteLevel behind a normalizer of spaces", NORMALIZERS));
            }
            bytes(&parts)?
        } else if parts.iter().map(|part| kind(part)).eq(["BertPreTokenizer"]) {
            Symbols::Words
        } else {
            characters(&parts, escapes, prefix)?
        };
        Ok(Splitting { normalizers, symbols })
    }
}

impl Symbols {
    /// Refuses a decoder that would make another text of the tokens than these symbols do.
    pub(crate) fn check_decoder(&self, decoder: &Value) -> Result<(), HuggingFaceError> {
        let (known, supported): (&[&str], &str) = match self {
            Symbols::Bytes { .. } => (&["ByteLevel"], "ByteLevel"),
            Symbols::Words => (&["WordPiece"], "WordPiece"),
            Symbols::Characters { .. } => (
                &["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"],
                "Replace, ByteFallback, Fuse, Strip, Metaspace",
            ),
        };
        match flatten(decoder, "decoders").into_iter().find(|part| !known.contains(&kind(part))) {
            Some(part) => Err(unsupported(&format!("decoder {}", kind(part)), supported)),
            None => Ok(()),
        }
    }
}

fn charsmap(part: &Value) -> Result<Normalizer, HuggingFaceError> {
    let text = part["precompiled_charsmap"].as_str().unwrap_or_default();
    let map = STANDARD.decode(text).ok().and_then(|bytes| Charsmap::read(&bytes));
    let map = map.ok_or_else(|| HuggingFaceError::Damaged {
        file: "tokenizer.json",
        what: "its precompiled_charsmap cannot be read".to_owned(),
    })?;
    Ok(Normalizer::Charsmap(Box::new(map)))
}

fn bert(part: &Value) -> Result<Normalizer, HuggingFaceError> {
    let lowers = flag(part, "lowercase", true);
    let bert = BertNormalizer::uncased().map(|uncased| BertNormalizer {
        cleans: flag(part, "clean_text", true),
        parts_ideographs: flag(part, "handle_chinese_chars", true),
        strips_accents: flag(part, "strip_accents", lowers),
        lowers,
        ..uncased
    });
    let bert = bert.ok_or_else(|| unsupported("BertNormalizer", NORMALIZERS))?;
    Ok(Normalizer::Bert(Box::new(bert)))
}

fn is_space(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.chars().eq([SPACE]))
}

fn characters(
    parts: &[&Value],
    mut escapes: bool,
    mut prefix: Prefix,
) -> Result<Symbols, HuggingFaceError> {
    let (mut split, mut by_words) = (false, false);
    for part in parts {
        match kind(part) {
            "WhitespaceSplit" => by_words = true,
            "Metaspace" if is_space(&part["replacement"]) => {
                split |= flag(part, "split", true);
                escapes = true;
                let asked = match part["prepend_scheme"].as_str() {
                    Some("always") => Prefix::Each,
                    Some("first") => Prefix::First,
                    Some("never") => Prefix::Never,
                    Some(other) => {
                        let what = format!("Metaspace with prepend_scheme {other}");
                        return Err(unsupported(&what, "always, first, never"));
                    }
                    None if flag(part, "add_prefix_space", true) => Prefix::Each,
                    None => Prefix::Never,
                };
                // What the normalizer put in front is there already.
                prefix = if prefix == Prefix::Never { asked } else { prefix };
            }
            // No space is left to split at.
            "Split" if escapes && part["pattern"]["String"] == " " => {}
            other => {
                let what = format!("pre-tokenizer {other} without ByteLevel");
                return Err(unsupported(&what, PRE_TOKENIZERS));
            }
        }
    }
    if !escapes {
        return Err(unsupported("merges of plain characters", "ByteLevel or Metaspace"));
    }
    Ok(Symbols::Characters { prefix, split, by_words })
}

fn bytes(parts: &[&Value]) -> Result<Symbols, HuggingFaceError> {
    let mut steps = Vec::new();
    let (mut spelled, mut add_prefix_space) = (false, false);
    for part in parts {
        match kind(part) {
            "ByteLevel" => {
                add_prefix_space = flag(part, "add_prefix_space", true);
                if add_prefix_space && parts.len() > 1 {
                    let what = "ByteLevel with add_prefix_space behind another pre-tokenizer";
                    return Err(unsupported(what, "ByteLevel alone"));
                }
                if flag(part, "use_regex", true) {
                    steps.push(gpt2());
                }
                spelled = true;
            }
            // Behind ByteLevel, patterns see its alphabet: only those of ASCII mean the same.
            "Split" if !spelled || part["pattern"]["Regex"] == "[0-9][0-9][0-9]" => {
                steps.push(split(part)?);
            }
            "Digits" if !spelled => {
                let each = flag(part, "individual_digits", false);
                steps.push(isolate(if each { r"\p{N}" } else { r"\p{N}+" }));
            }
            "Punctuation" if !spelled => match part["behavior"].as_str() {
                None | Some("Isolated") => steps.push(isolate(r"[\p{P}\$\+<=>\^`\|~]")),
                Some("Contiguous") => steps.push(isolate(r"[\p{P}\$\+<=>\^`\|~]+")),
                Some(other) => {
                    let what = format!("Punctuation {other}");
                    return Err(unsupported(&what, "Isolated, Contiguous"));
                }
            },
            other => {
                let behind = if spelled { " behind ByteLevel" } else { "" };
                let what = format!("pre-tokenizer {other}{behind}");
                return Err(unsupported(&what, PRE_TOKENIZERS));
            }
        }
    }
    Ok(Symbols::Bytes { steps, add_prefix_space })
}

fn isolate(pattern: &str) -> Step {
    Step { pattern: pattern.to_owned(), gives_back: GiveBack::Nothing }
}

fn gpt2() -> Step {
    let pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
    Step { pattern: pattern.to_owned(), gives_back: GiveBack::Space }
}

fn split(part: &Value) -> Result<Step, HuggingFaceError> {
    let step = match (part["pattern"]["Regex"].as_str(), part["pattern"]["String"].as_str()) {
        (Some(pattern), _) => step_of(pattern).ok_or_else(|| HuggingFaceError::Unsupported {
            what: format!("the split pattern {:?}", pattern.chars().take(400).collect::<String>()),
            supported: "published ones, and those without looking around, back or possessively",
        })?,
        (None, Some(text)) if !text.is_empty() => isolate(&regex_syntax::escape(text)),
        _ => return Err(unsupported("a Split without a pattern", PRE_TOKENIZERS)),
    };
    let inverted = flag(part, "invert", false);
    match part["behavior"].as_str() {
        Some("Isolated") => Ok(step),
        // Patterns that end in a word's spaces match everything: nothing between is removed.
        Some("Removed") if inverted && step.gives_back != GiveBack::Nothing => Ok(step),
        other => {
            let what = format!("a Split that is {}", other.unwrap_or("of no behavior"));
            Err(unsupported(&what, "Isolated, or Removed and inverted for word patterns"))
        }
    }
}
