//! How does a text become the likeliest pieces? Of all ways to part it, the one whose pieces'
//! logarithms of likelihood add up to the most.
//!
//! Kudo 2018, <https://arxiv.org/abs/1804.10959>; the reference is `Unigram` of the `tokenizers`
//! crate. A character that no piece spells is the unknown token, and so is a run of them; its score
//! is below that of all pieces.

use crate::metaspace::Prefix;
use crate::sentence_piece::{Lookup, SPACE};

/// How far the unknown token is below the least likely piece.
const UNKNOWN_BELOW: f64 = 10.0;

#[derive(Debug, Clone)]
pub(crate) struct Unigram {
    /// By id.
    pub(crate) scores: Vec<f32>,
    pub(crate) unknown: u32,
    /// Bytes of the longest piece.
    longest: usize,
    unknown_score: f64,
    pub(crate) prefix: Prefix,
    /// Each run of white space is one space, and those around a text are none.
    pub(crate) splits_at_whitespace: bool,
    /// Spaces around a text are none.
    pub(crate) trims: bool,
    /// Each space begins a piece that is parted by itself.
    pub(crate) splits: bool,
}

/// The best way to a place in a text.
#[derive(Clone, Copy)]
struct Best {
    score: f64,
    /// Where its last piece starts; `None`: no way is known.
    from: Option<usize>,
    id: u32,
}

impl Unigram {
    pub(crate) fn new(scores: Vec<f32>, texts: &[&str], unknown: u32, prefix: Prefix) -> Unigram {
        let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
        let least = if least.is_finite() { f64::from(least) } else { 0.0 };
        Unigram {
            longest: texts.iter().map(|text| text.len()).max().unwrap_or(0),
            scores,
            unknown,
            unknown_score: least - UNKNOWN_BELOW,
            prefix,
            splits_at_whitespace: false,
            trims: false,
            splits: true,
        }
    }

    pub(crate) fn prefix_at(&self, start: bool) -> bool {
        match self.prefix {
            Prefix::Never => false,
            Prefix::First => start,
            Prefix::Each | Prefix::EachAnyway => true,
        }
    }

    /// Appends the tokens of a text without special tokens; `prefix` puts a space in front.
    pub(crate) fn encode(&self, text: &str, prefix: bool, lookup: Lookup<'_>, out: &mut Vec<u32>) {
        if self.splits_at_whitespace {
            for word in text.split_whitespace() {
                self.encode_piece(&self.spelled(word, prefix), lookup, out);
            }
            return;
        }
        let text = if self.trims { text.trim_matches(' ') } else { text };
        if text.is_empty() {
            return;
        }
        let spelled = self.spelled(text, prefix);
        let mut rest = spelled.as_str();
        while !rest.is_empty() {
            let inner = rest.char_indices().skip(1);
            let next = inner.filter(|(_, c)| self.splits && *c == SPACE).map(|(at, _)| at).next();
            let (piece, after) = rest.split_at(next.unwrap_or(rest.len()));
            self.encode_piece(piece, lookup, out);
            rest = after;
        }
    }

    fn spelled(&self, text: &str, prefix: bool) -> String {
        let mut spelled = String::with_capacity(text.len() + 4);
        let is_spaced = text.starts_with([' ', SPACE]) && self.prefix != Prefix::EachAnyway;
        spelled.extend((prefix && !is_spaced).then_some(SPACE));
        spelled.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        spelled
    }

    fn encode_piece(&self, text: &str, lookup: Lookup<'_>, out: &mut Vec<u32>) {
        let nowhere = Best { score: 0.0, from: None, id: self.unknown };
        let mut best = vec![nowhere; text.len() + 1];
        best[0].from = Some(0);
        for (at, character) in text.char_indices() {
            let before = best[at].score;
            let mut offer = |end: usize, id: u32, score: f64| {
                let place = &mut best[end];
                if place.from.is_none() || score > place.score {
                    *place = Best { score, from: Some(at), id };
                }
            };
            let first_end = at + character.len_utf8();
            let mut spells_one = false;
            let ends = text[at..].char_indices().map(|(offset, c)| at + offset + c.len_utf8());
            for end in ends.take_while(|end| end - at <= self.longest) {
                let Some(id) = lookup.text_token(&text.as_bytes()[at..end]) else { continue };
                let score = self.scores.get(id as usize).copied().unwrap_or(0.0);
                offer(end, id, before + f64::from(score));
                spells_one |= end == first_end;
            }
            if !spells_one {
                offer(first_end, self.unknown, before + self.unknown_score);
            }
        }
        let start = out.len();
        let mut at = text.len();
        while at > 0 {
            let Best { from, id, .. } = best[at];
            let is_run = id == self.unknown && out.len() > start && out.last() == Some(&id);
            if !is_run {
                out.push(id);
            }
            at = from.expect("invariant: each character is reached");
        }
        out[start..].reverse();
    }
}
