//! Which tokens may be sampled next? What sampling asks of a grammar, and no grammar: parsers live
//! above this crate.
//!
//! A slot owns a [`Matcher`]: it is advanced by every token of the sequence and asked before every
//! draw, so that batches, guesses, steps planned ahead and sequences computed anew all see the same
//! masks.

use std::fmt;
use std::sync::Arc;

/// A compiled constraint, shared by the sequences under it.
pub trait Grammar: Send + Sync {
    /// A matcher before the first token.
    fn matcher(&self) -> Box<dyn Matcher>;
}

/// Where one sequence is in its grammar.
pub trait Matcher: Send {
    /// The tokens that may come next: bit `t % 32` of word `t / 32`. A token beyond the words may
    /// not come. Never empty: at the end of the grammar, and after it, the end tokens are allowed.
    ///
    /// # Errors
    /// What went wrong, here or in an earlier [`Matcher::advance`].
    fn allowed(&mut self) -> Result<&[u32], String>;

    /// Takes a sampled token into account.
    fn advance(&mut self, token: u32);
}

/// A grammar among the parameters of a request: the same one is equal to itself only.
#[derive(Clone)]
pub struct SharedGrammar(pub Arc<dyn Grammar>);

impl PartialEq for SharedGrammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for SharedGrammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SharedGrammar")
    }
}

/// Forbids what `allowed` does not name.
pub(crate) fn mask(logits: &mut [f32], allowed: &[u32]) {
    let named = allowed.len().saturating_mul(32).min(logits.len());
    let (named, beyond) = logits.split_at_mut(named);
    beyond.fill(f32::NEG_INFINITY);
    for (logits, &word) in named.chunks_mut(32).zip(allowed) {
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn what_is_not_named_is_forbidden() {
        // Words that allow nothing, everything and some, an incomplete one, and too few.
        for (tokens, words) in
            [(128, vec![0, u32::MAX, 0x8000_0001, 5]), (70, vec![u32::MAX, 1, 6]), (70, vec![1])]
        {
            let mut logits = vec![1.0; tokens];
            mask(&mut logits, &words);
            for (token, &logit) in logits.iter().enumerate() {
                let word = words.get(token / 32).copied().unwrap_or(0);
                let is_named = word & (1 << (token % 32)) != 0;
                assert_eq!(logit == 1.0, is_named, "token {token} of {words:?}");
                assert!(is_named || logit == f32::NEG_INFINITY);
            }
        }
    }
}
