//! When does a constraint begin to hold? Once the model has thought, for as long as it may.
//!
//! While it thinks, anything goes but the end of the answer; a budget that is used up forces the
//! text that ends the thoughts, token by token. A model that need not think may begin to where the
//! marker is one token; else it answers at once. Without a budget at all, thoughts that the prompt
//! has opened end before their first token.

use std::sync::Arc;

use messages::Thoughts;
use ops::constraint::{Grammar, Matcher, SharedGrammar};
use tokenizer::{EncodeOptions, Tokenizer};

/// A constraint behind thoughts.
pub(crate) struct Thinking {
    rules: Arc<Rules>,
    /// Whether the prompt has opened the thoughts, or they always come.
    is_open: bool,
    inner: Option<SharedGrammar>,
}

struct Rules {
    tokenizer: Arc<Tokenizer>,
    begin: Option<u32>,
    end: Vec<u8>,
    close: Vec<u32>,
    tokens_max: Option<u32>,
    /// Every token, and every token but those that end the answer.
    all: Vec<u32>,
    unended: Vec<u32>,
}

impl Thinking {
    pub(crate) fn new(
        tokenizer: &Arc<Tokenizer>,
        thoughts: &Thoughts,
        is_open: bool,
        inner: Option<SharedGrammar>,
    ) -> Self {
        let count = tokenizer.vocabulary_size();
        let mut all = vec![u32::MAX; count.div_ceil(32)];
        if let (Some(last), rest @ 1..) = (all.last_mut(), count % 32) {
            *last = (1 << rest) - 1;
        }
        let mut unended = all.clone();
        for &id in tokenizer.end_of_generation_ids() {
            if let Some(word) = unended.get_mut(id as usize / 32) {
                *word &= !(1 << (id % 32));
            }
        }
        let rules = Rules {
            tokenizer: Arc::clone(tokenizer),
            begin: tokenizer.token_id(&thoughts.begin),
            end: thoughts.end.as_bytes().to_vec(),
            close: within_text(tokenizer, &thoughts.close),
            tokens_max: thoughts.tokens_max,
            all,
            unended,
        };
        Self { rules: Arc::new(rules), is_open: is_open || thoughts.is_always, inner }
    }
}

/// The ids of a text that goes on from another: without the space that some tokenizers put before
/// a text of its own.
fn within_text(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    // A few words: never too long.
    let mut ids = tokenizer.encode(text, EncodeOptions::TEMPLATE).unwrap_or_default();
    let bytes = |id: u32| tokenizer.token_bytes(id).map_or(0, <[u8]>::len);
    let mut spare = ids.iter().map(|&id| bytes(id)).sum::<usize>().saturating_sub(text.len());
    while let Some(&first) = ids.first().filter(|&&first| (1..=spare).contains(&bytes(first))) {
        spare -= bytes(first);
        ids.remove(0);
    }
    ids
}

impl Grammar for Thinking {
    fn matcher(&self) -> Box<dyn Matcher> {
        let thoughts = State::Thoughts { recent: Vec::new(), tokens: 0 };
        let mut matcher = ThinkingMatcher {
            rules: Arc::clone(&self.rules),
            state: if self.is_open { thoughts } else { State::Before },
            inner: self.inner.as_ref().map(|grammar| grammar.0.matcher()),
            mask: Vec::new(),
        };
        // A budget of none is used up before the first.
        matcher.close_if_used_up();
        Box::new(matcher)
    }
}

struct ThinkingMatcher {
    rules: Arc<Rules>,
    state: State,
    /// `None`: any answer will do.
    inner: Option<Box<dyn Matcher>>,
    mask: Vec<u32>,
}

enum State {
    /// Thoughts may begin.
    Before,
    Thoughts {
        /// The end of what was thought: the marker may be cut anywhere.
        recent: Vec<u8>,
        tokens: u32,
    },
    /// So many tokens of the closing text are out.
    Closing(usize),
    Answer,
}

impl Matcher for ThinkingMatcher {
    fn allowed(&mut self) -> Result<&[u32], String> {
        let rules = &*self.rules;
        match (&self.state, &mut self.inner) {
            (State::Closing(next), _) => {
                self.mask = vec![0; rules.all.len()];
                let id = rules.close[*next];
                self.mask[id as usize / 32] |= 1 << (id % 32);
                Ok(&self.mask)
            }
            (State::Thoughts { .. }, Some(_)) => Ok(&rules.unended),
            (State::Before, Some(inner)) => {
                self.mask.clear();
                self.mask.extend_from_slice(inner.allowed()?);
                self.mask.resize(rules.all.len(), 0);
                if let Some(id) = rules.begin.filter(|_| rules.tokens_max != Some(0)) {
                    self.mask[id as usize / 32] |= 1 << (id % 32);
                }
                Ok(&self.mask)
            }
            (State::Answer, Some(inner)) => inner.allowed(),
            (_, None) => Ok(&rules.all),
        }
    }

    fn advance(&mut self, token: u32) {
        let rules = Arc::clone(&self.rules);
        match &mut self.state {
            State::Before if rules.begin == Some(token) => {
                self.state = State::Thoughts { recent: Vec::new(), tokens: 0 };
                self.close_if_used_up();
            }
            State::Before => {
                let bytes = rules.tokenizer.token_bytes(token).unwrap_or_default();
                // Without a constraint, white space may come before thoughts.
                if self.inner.is_some() || !bytes.trim_ascii().is_empty() {
                    self.answer(token);
                }
            }
            State::Thoughts { recent, tokens } => {
                *tokens += 1;
                recent.extend_from_slice(rules.tokenizer.token_bytes(token).unwrap_or_default());
                match find(recent, &rules.end) {
                    Some(at) => {
                        let rest = recent[at + rules.end.len()..].trim_ascii_start().to_vec();
                        self.state = State::Answer;
                        self.catch_up(&rest);
                    }
                    None => {
                        let kept = recent.len().min(rules.end.len() - 1);
                        recent.drain(..recent.len() - kept);
                        self.close_if_used_up();
                    }
                }
            }
            State::Closing(next) => {
                *next += 1;
                if *next == rules.close.len() {
                    self.state = State::Answer;
                }
            }
            State::Answer => self.answer(token),
        }
    }
}

impl ThinkingMatcher {
    fn answer(&mut self, token: u32) {
        self.state = State::Answer;
        if let Some(inner) = &mut self.inner {
            inner.advance(token);
        }
    }

    fn close_if_used_up(&mut self) {
        let State::Thoughts { tokens, .. } = self.state else { return };
        let is_used_up = self.rules.tokens_max.is_some_and(|most| tokens >= most);
        if is_used_up && !self.rules.close.is_empty() {
            self.state = State::Closing(0);
        }
    }

    /// A token that ended the thoughts and began the answer: what it says of the answer counts.
    fn catch_up(&mut self, rest: &[u8]) {
        let Some(inner) = &mut self.inner else { return };
        if rest.is_empty() {
            return;
        }
        // Any spelling will do: a grammar sees bytes. What cannot be spelled breaks the grammar.
        let ids = within_text(&self.rules.tokenizer, &String::from_utf8_lossy(rest));
        ids.into_iter().for_each(|id| inner.advance(id));
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len().max(1)).position(|window| window == part)
}
