//! Where is one sequence in its grammar?

use std::sync::{Arc, Mutex, PoisonError};

use ops::constraint::{Grammar, Matcher};
use toktrie::SimpleVob;

/// A compiled constraint; never advanced itself.
pub(crate) struct Compiled {
    pub(crate) start: Mutex<llguidance::Matcher>,
    pub(crate) ends: Arc<Ends>,
}

/// The tokens after which an answer is complete.
pub(crate) struct Ends {
    pub(crate) ids: Vec<u32>,
    pub(crate) mask: SimpleVob,
}

impl Grammar for Compiled {
    fn matcher(&self) -> Box<dyn Matcher> {
        let start = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        // Deep: caches that sequences shared would fill up, and one would feel another.
        let matcher = start.deep_clone();
        let (ends, mask) = (Arc::clone(&self.ends), SimpleVob::new());
        Box::new(Follower { matcher, ends, mask, has_ended: false })
    }
}

struct Follower {
    matcher: llguidance::Matcher,
    ends: Arc<Ends>,
    mask: SimpleVob,
    /// An end token was taken: a step planned ahead may still ask what comes next.
    has_ended: bool,
}

impl Matcher for Follower {
    fn allowed(&mut self) -> Result<&[u32], String> {
        if self.has_ended {
            return Ok(self.ends.mask.as_slice());
        }
        self.mask = self.matcher.compute_mask_or_eos().map_err(|error| brief(&error))?;
        Ok(self.mask.as_slice())
    }

    fn advance(&mut self, token: u32) {
        if self.has_ended || self.ends.ids.contains(&token) {
            self.has_ended = true;
            return;
        }
        // The library keeps the error: the next mask is it.
        let _ = self.matcher.consume_token(token);
    }
}

/// The library's words for what a caller can mend, and ours.
const WORDS: &[(&str, &str)] = &[
    ("NoExtensionBias", "no text can follow it"),
    ("coerce_one_of", "of `oneOf` or `enum` more than one may hold, or none can: write `anyOf`"),
    ("Current row has", "it offers too many ways to go on: make it smaller"),
    ("too many expressions constructed", "it takes too many states: make it simpler"),
];

/// The first line of the library's text; a panic's backtrace is for nobody. Where that line only
/// announces the cause, as that of an expression does, the cause follows.
pub(crate) fn brief(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    if let Some((_, ours)) = WORDS.iter().find(|(theirs, _)| text.contains(theirs)) {
        return (*ours).to_owned();
    }
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("no reason");
    let cause = lines.find_map(|line| line.strip_prefix("error: "));
    let cause = cause.filter(|_| first.ends_with(':')).map(|cause| format!(" {cause}"));
    let line = first.chars().chain(cause.iter().flat_map(|cause| cause.chars()));
    line.filter(|char| !char.is_control()).take(300).collect()
}
