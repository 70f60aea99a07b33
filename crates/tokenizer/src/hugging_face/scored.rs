//! Which scores make the merges of a `tokenizer.json` those of SentencePiece, as GGUF files hold
//! them?
//!
//! SentencePiece merges the two neighbors whose joint text has the best score, whatever the two
//! are; a list of merges ranks pairs. Both are the same where every way to cut a token in two is
//! listed, and the merges that give a token are ranked together: lists made of scores are so.

use std::collections::HashMap;

use serde_json::Value;

use super::document::Document;
use super::splitting::{Splitting, Symbols, unsupported};
use super::{HuggingFaceError, TOKENIZER_JSON, check_model, list_tokens, sides};
use crate::TokenType;
use crate::metaspace::Prefix;
use crate::vocabulary::shorten;

const SUPPORTED: &str = "merges as they are made of SentencePiece's scores";

/// What GGUF's kind `llama` holds beside tokens and types.
#[derive(Debug, PartialEq)]
pub struct GgufScores {
    /// By id.
    pub scores: Vec<f32>,
    /// Whether a text gets a space in front.
    pub add_space_prefix: bool,
}

/// The scores of a `tokenizer.json` of merged characters; `None` if it is of another kind.
///
/// # Errors
/// [`HuggingFaceError`] when it is damaged, or no scores would merge as it does.
pub fn gguf_scores(tokenizer: &[u8]) -> Result<Option<GgufScores>, HuggingFaceError> {
    let value: Value = serde_json::from_slice(tokenizer).map_err(|error| {
        HuggingFaceError::NotReadable { file: TOKENIZER_JSON, reason: error.to_string() }
    })?;
    let document = Document::read(value)?;
    let splitting = Splitting::read(&document.normalizer, &document.pre_tokenizer)?;
    let &Symbols::Characters { prefix, split, .. } = &splitting.symbols else { return Ok(None) };
    check_model(&document, &splitting.symbols)?;
    if !document.scores.is_empty() {
        return Ok(None);
    }
    if !splitting.normalizers.is_empty() {
        return Err(unsupported("a normalizer of more than spaces", SUPPORTED));
    }
    if document.flag("ignore_merges") {
        return Err(unsupported("pieces that are tokens whatever merges say", SUPPORTED));
    }
    let (tokens, types) = list_tokens(&document, &splitting.symbols)?;
    let known = Pieces::of(&tokens, &types);
    if split && known.ids.keys().any(|text| crate::sentence_piece::goes_on_with_space(text)) {
        return Err(unsupported("tokens over the words that merges do not leave", SUPPORTED));
    }
    let ranks = known.ranks(&document)?;
    // What nothing merges into comes last.
    let last = document.merges.len() as f32;
    let scores = ranks.iter().map(|rank| rank.map_or(-last, |rank| -(rank as f32)));
    Ok(Some(GgufScores { scores: scores.collect(), add_space_prefix: prefix != Prefix::Never }))
}

/// Tokens of ordinary text.
struct Pieces<'a> {
    ids: HashMap<&'a str, usize>,
    tokens: &'a [&'a str],
}

impl<'a> Pieces<'a> {
    fn of(tokens: &'a [&'a str], types: &[TokenType]) -> Self {
        let is_text = |id: usize| types[id] == TokenType::Normal;
        let texts = tokens.iter().enumerate().filter(|(id, _)| is_text(*id));
        Self { ids: texts.map(|(id, text)| (*text, id)).collect(), tokens }
    }

    /// By id, the rank of the first merge that gives the token.
    fn ranks(&self, document: &Document) -> Result<Vec<Option<usize>>, HuggingFaceError> {
        // First and last rank, and how many.
        let mut merged: Vec<Option<(usize, usize, usize)>> = vec![None; self.tokens.len()];
        for (rank, merge) in document.merges.iter().enumerate() {
            let (left, right) = sides(merge, rank)?;
            let [left_id, right_id] = [left, right].map(|text| self.ids.get(text));
            let whole = self.ids.get(format!("{left}{right}").as_str());
            let (Some(_), Some(_), Some(&whole)) = (left_id, right_id, whole) else { continue };
            let (first, _, count) = merged[whole].unwrap_or((rank, rank, 0));
            merged[whole] = Some((first, rank, count + 1));
        }
        for (&text, &id) in &self.ids {
            let cuts = text.char_indices().skip(1).filter(|(at, _)| {
                let (left, right) = text.split_at(*at);
                self.ids.contains_key(left) && self.ids.contains_key(right)
            });
            if cuts.count() != merged[id].map_or(0, |(_, _, count)| count) {
                let what = format!("a token {} that not all its parts merge into", shorten(text));
                return Err(unsupported(&what, SUPPORTED));
            }
        }
        let mut in_turn: Vec<(usize, usize)> =
            merged.iter().flatten().map(|(first, last, _)| (*first, *last)).collect();
        in_turn.sort_unstable();
        if in_turn.windows(2).any(|two| two[0].1 > two[1].0) {
            return Err(unsupported("merges into one token with others between", SUPPORTED));
        }
        Ok(merged.iter().map(|merged| merged.map(|(first, ..)| first)).collect())
    }
}
