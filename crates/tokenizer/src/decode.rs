//! Which text do ids become, all at once or one by one?
//!
//! Tokens are bytes, and a character may be spread over several tokens. Bytes that are no UTF-8
//! become U+FFFD, one for each longest part of a character, as Unicode recommends and Python's
//! `errors="replace"` does. One by one, what may still become a character is held back.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;
use crate::vocabulary::TokenType;

/// What decoding leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeOptions {
    /// Leave control tokens out.
    pub skip_control: bool,
    /// The ids begin a text: where encoding puts a space in front, leave that space out.
    pub at_text_start: bool,
}

impl Default for DecodeOptions {
    /// For answers: no control tokens, and every space is meant.
    fn default() -> DecodeOptions {
        DecodeOptions { skip_control: true, at_text_start: false }
    }
}

impl Tokenizer {
    /// The text of some ids. Ids that do not exist add nothing.
    pub fn decode(&self, ids: &[u32], options: DecodeOptions) -> String {
        let bytes = self.decode_bytes(ids, options);
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// The bytes of some ids, which need not be UTF-8.
    pub fn decode_bytes(&self, ids: &[u32], options: DecodeOptions) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut at_start = options.at_text_start;
        for &id in ids {
            bytes.extend_from_slice(self.visible_bytes(id, options.skip_control, &mut at_start));
        }
        bytes
    }

    /// What an id adds. `at_start` is cleared by the first token of text.
    fn visible_bytes(&self, id: u32, skip_control: bool, at_start: &mut bool) -> &[u8] {
        let control = self.is_control(id);
        if control && skip_control {
            return &[];
        }
        let bytes = self.token_bytes(id).unwrap_or_default();
        if control || !std::mem::take(at_start) || !self.strips_space() {
            return bytes;
        }
        let spelled = self.token_type(id) != Some(TokenType::Byte);
        bytes.strip_prefix(b" ").filter(|_| spelled).unwrap_or(bytes)
    }
}

/// Decodes ids one by one. What `push` and `finish` give, put together, is what
/// [`Tokenizer::decode`] gives for all ids at once.
#[derive(Debug, Clone)]
pub struct IncrementalDecoder {
    tokenizer: Arc<Tokenizer>,
    options: DecodeOptions,
    at_start: bool,
    /// The beginning of a character: at most three bytes between pushes.
    pending: Vec<u8>,
    text: String,
}

impl IncrementalDecoder {
    /// A decoder at the beginning of an answer.
    pub fn new(tokenizer: Arc<Tokenizer>, options: DecodeOptions) -> IncrementalDecoder {
        IncrementalDecoder {
            tokenizer,
            options,
            at_start: options.at_text_start,
            pending: Vec::new(),
            text: String::new(),
        }
    }

    /// Takes the next id; gives the text that is now certain, perhaps empty.
    pub fn push(&mut self, id: u32) -> &str {
        self.push_with(id, self.options.skip_control)
    }

    /// The same for an id that is shown even if it is a control token.
    pub fn push_shown(&mut self, id: u32) -> &str {
        self.push_with(id, false)
    }

    fn push_with(&mut self, id: u32, skip_control: bool) -> &str {
        let bytes = self.tokenizer.visible_bytes(id, skip_control, &mut self.at_start);
        self.pending.extend_from_slice(bytes);
        self.text.clear();
        let mut rest = self.pending.as_slice();
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, after) = rest.split_at(error.valid_up_to());
            self.text.push_str(&String::from_utf8_lossy(valid));
            rest = after;
            // No length: the bytes end in what may still become a character.
            let Some(length) = error.error_len() else { break };
            self.text.push(char::REPLACEMENT_CHARACTER);
            rest = &after[length..];
        }
        if let Ok(valid) = std::str::from_utf8(rest) {
            self.text.push_str(valid);
            rest = &[];
        }
        let done = self.pending.len() - rest.len();
        self.pending.drain(..done);
        &self.text
    }

    /// The end of the answer: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> &str {
        self.text.clear();
        if !self.pending.is_empty() {
            self.pending.clear();
            self.text.push(char::REPLACEMENT_CHARACTER);
        }
        &self.text
    }

    /// How many bytes are held back: 0 to 3.
    pub fn held_bytes(&self) -> usize {
        self.pending.len()
    }
}
