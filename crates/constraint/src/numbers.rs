//! How long may a number of a JSON answer be? JSON knows no bound, and small models that have begun
//! a number like to write digits for ever.
//!
//! Behind many digits no more are allowed, unless nothing else is: the number ends, and what is
//! allowed stays a part of what the grammar allows, and never nothing. Digits of texts are free.

use std::sync::Arc;

use ops::constraint::{Grammar, Matcher};
use tokenizer::Tokenizer;

/// Whole numbers of 256 bits have 78 digits; what most programs read has 17 that count.
const DIGITS_MAX: u32 = 80;

/// The tokens of one vocabulary that go on with a number.
pub(crate) struct Digits {
    tokenizer: Arc<Tokenizer>,
    /// Those that begin with a digit: bit `t % 32` of word `t / 32`.
    tokens: Vec<u32>,
}

impl Digits {
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>) -> Self {
        let count = tokenizer.vocabulary_size();
        let mut tokens = vec![0; count.div_ceil(32)];
        for token in 0..count as u32 {
            let first = tokenizer.token_bytes(token).and_then(<[u8]>::first);
            if first.is_some_and(u8::is_ascii_digit) {
                tokens[token as usize / 32] |= 1 << (token % 32);
            }
        }
        Self { tokenizer: Arc::clone(tokenizer), tokens }
    }
}

/// A grammar of JSON texts whose numbers come to an end.
pub(crate) struct EndingNumbers<G> {
    pub(crate) inner: G,
    pub(crate) digits: Arc<Digits>,
}

impl<G: Grammar> Grammar for EndingNumbers<G> {
    fn matcher(&self) -> Box<dyn Matcher> {
        let (inner, digits) = (self.inner.matcher(), Arc::clone(&self.digits));
        let left = Vec::with_capacity(digits.tokens.len());
        Box::new(EndingMatcher { inner, digits, place: Place::default(), left })
    }
}

struct EndingMatcher {
    inner: Box<dyn Matcher>,
    digits: Arc<Digits>,
    place: Place,
    /// What is allowed behind many digits.
    left: Vec<u32>,
}

/// Where a JSON text ends so far.
#[derive(Default)]
struct Place {
    is_in_text: bool,
    is_escaped: bool,
    /// Of the number that it ends with.
    digits: u32,
}

impl Place {
    fn advance(&mut self, byte: u8) {
        self.digits = match byte {
            b'0'..=b'9' if !self.is_in_text => self.digits.saturating_add(1),
            b'.' | b'e' | b'E' | b'+' | b'-' => self.digits,
            _ => 0,
        };
        self.is_in_text ^= byte == b'"' && !self.is_escaped;
        self.is_escaped = self.is_in_text && byte == b'\\' && !self.is_escaped;
    }
}

impl Matcher for EndingMatcher {
    fn allowed(&mut self) -> Result<&[u32], String> {
        if self.place.digits < DIGITS_MAX {
            return self.inner.allowed();
        }
        let allowed = self.inner.allowed()?;
        let digits = self.digits.tokens.iter().copied().chain(std::iter::repeat(0));
        self.left.clear();
        self.left.extend(allowed.iter().zip(digits).map(|(word, digits)| word & !digits));
        let has_others = self.left.iter().any(|&word| word != 0);
        Ok(if has_others { &self.left } else { allowed })
    }

    fn advance(&mut self, token: u32) {
        let bytes = self.digits.tokenizer.token_bytes(token).unwrap_or_default();
        bytes.iter().for_each(|&byte| self.place.advance(byte));
        self.inner.advance(token);
    }
}
