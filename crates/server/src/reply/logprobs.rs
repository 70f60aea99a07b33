//! How are log-probabilities shown? In the two forms of OpenAI's two endpoints; Ollama's is the
//! list of the first.

use engine::{DeltaLogprob, DeltaToken, ScoredToken};
use serde::{Serialize, Serializer};

/// OpenAI's number for "as good as impossible"; JSON has no infinity.
const LOGPROB_MIN: f32 = -9999.0;

/// The chat form: one entry for each token.
#[derive(Serialize)]
pub(crate) struct ChatLogprobs {
    content: Vec<TokenScore>,
    refusal: Option<()>,
}

/// A token with what else was likely in its place.
#[derive(Serialize)]
pub(crate) struct TokenScore {
    #[serde(flatten)]
    chosen: ChatScore,
    top_logprobs: Vec<ChatScore>,
}

#[derive(Serialize)]
struct ChatScore {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(crate) fn new(tokens: &[DeltaToken]) -> Self {
        Self { content: TokenScore::all(tokens).collect(), refusal: None }
    }
}

impl TokenScore {
    /// None where they were not asked for.
    pub(crate) fn all(tokens: &[DeltaToken]) -> impl Iterator<Item = Self> {
        tokens.iter().filter_map(|token| token.logprob.as_ref()).map(Self::new)
    }

    fn new(logprob: &DeltaLogprob) -> Self {
        Self {
            chosen: ChatScore::new(&logprob.chosen),
            top_logprobs: logprob.top.iter().map(ChatScore::new).collect(),
        }
    }
}

impl ChatScore {
    fn new(scored: &ScoredToken) -> Self {
        Self {
            token: String::from_utf8_lossy(&scored.bytes).into_owned(),
            logprob: finite(scored.logprob),
            bytes: scored.bytes.to_vec(),
        }
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob.max(LOGPROB_MIN) } else { LOGPROB_MIN }
}

/// The completions form: parallel arrays.
#[derive(Default, Serialize)]
pub(crate) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<TopScores>,
    text_offset: Vec<usize>,
}

/// Texts with their log-probabilities, likeliest first; an object on the wire.
#[derive(Default)]
struct TopScores(Vec<(String, f32)>);

impl TopScores {
    /// Ids that share a text share an entry; the first and likeliest counts.
    fn add(&mut self, scored: &ScoredToken) {
        let text = token_text(&scored.bytes);
        if self.0.iter().all(|(known, _)| *known != text) {
            self.0.push((text, finite(scored.logprob)));
        }
    }
}

impl Serialize for TopScores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

impl TextLogprobs {
    /// `offset` is where the first token begins, in characters; it moves past the last.
    pub(crate) fn new(tokens: &[DeltaToken], offset: &mut usize) -> Self {
        let mut shown = Self::default();
        for logprob in tokens.iter().filter_map(|token| token.logprob.as_ref()) {
            let text = token_text(&logprob.chosen.bytes);
            shown.text_offset.push(*offset);
            *offset += text.chars().count();
            shown.tokens.push(text);
            shown.token_logprobs.push(finite(logprob.chosen.logprob));
            let mut top = TopScores::default();
            // The chosen token belongs to the map even when it is not among the likeliest.
            for scored in logprob.top.iter().chain([&logprob.chosen]) {
                top.add(scored);
            }
            shown.top_logprobs.push(top);
        }
        shown
    }
}

/// The token's text, or OpenAI's `bytes:\xe2\x9c` for a part of a character: several such tokens
/// would otherwise share one key.
fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let escapes = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
            format!("bytes:{}", escapes.collect::<String>())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn scored(bytes: &[u8], logprob: f32) -> ScoredToken {
        ScoredToken { id: 0, bytes: Arc::from(bytes), logprob }
    }

    fn tokens() -> Vec<DeltaToken> {
        let one = DeltaLogprob {
            chosen: scored("\u{e9}a".as_bytes(), -0.5),
            top: vec![scored(b"x", -0.25), scored("\u{e9}a".as_bytes(), -0.5)],
        };
        let two = DeltaLogprob { chosen: scored(b"\xe2\x9c", f32::NEG_INFINITY), top: Vec::new() };
        let entry = |logprob| DeltaToken { id: 0, logprob: Some(logprob) };
        vec![entry(one), entry(two)]
    }

    #[test]
    fn chat_form() {
        assert_eq!(
            serde_json::to_value(ChatLogprobs::new(&tokens())).unwrap(),
            json!({"refusal": null, "content": [
                {"token": "\u{e9}a", "logprob": -0.5, "bytes": [195, 169, 97], "top_logprobs": [
                    {"token": "x", "logprob": -0.25, "bytes": [120]},
                    {"token": "\u{e9}a", "logprob": -0.5, "bytes": [195, 169, 97]}]},
                {"token": "\u{fffd}", "logprob": -9999.0, "bytes": [226, 156], "top_logprobs": []},
            ]})
        );
    }

    #[test]
    fn a_score_reads_the_same_wherever_it_stands() {
        let token = scored(b"a", -0.1);
        let logprob = DeltaLogprob { chosen: token.clone(), top: vec![token] };
        let tokens = [DeltaToken { id: 0, logprob: Some(logprob) }];
        let text = serde_json::to_string(&TextLogprobs::new(&tokens, &mut 0)).unwrap();
        assert_eq!(text.matches("-0.1").count(), 2, "{text}");
        assert!(
            text.contains("\"token_logprobs\":[-0.1],\"top_logprobs\":[{\"a\":-0.1}]"),
            "{text}"
        );
    }

    #[test]
    fn completions_form() {
        let mut offset = 3;
        assert_eq!(
            serde_json::to_value(TextLogprobs::new(&tokens(), &mut offset)).unwrap(),
            json!({
                "tokens": ["\u{e9}a", "bytes:\\xe2\\x9c"],
                "token_logprobs": [-0.5, -9999.0],
                "top_logprobs": [
                    {"x": -0.25, "\u{e9}a": -0.5}, {"bytes:\\xe2\\x9c": -9999.0}],
                "text_offset": [3, 5],
            })
        );
        assert_eq!(offset, 5 + "bytes:\\xe2\\x9c".len());
    }
}
