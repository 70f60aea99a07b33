//! How does a constraint become masks of one vocabulary? Compiled on a thread with a stack of its
//! own, within bounds of size and time, and remembered.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use messages::{Constraint, Thoughts};
use ops::constraint::SharedGrammar;
use tokenizer::Tokenizer;
use toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use crate::follower::{Compiled, Ends, brief};
use crate::numbers::{Digits, EndingNumbers};
use crate::sources;
use crate::thinking::Thinking;

/// Each is a lexer's automaton and a parser's tables: some MB at most, mostly below one.
const REMEMBERED_MAX: usize = 32;
/// Enough for the deepest texts that are let through; only what is used is taken.
const STACK_BYTES: usize = 256 << 20;
/// Thousandfold what usual schemas take.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(5);
/// At once: what takes longer than it may cannot be broken off, and is only no longer waited for.
const COMPILING_MAX: u32 = 2;

/// Why there is no grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    #[error("the {kind} cannot be followed: {why}")]
    Invalid { kind: &'static str, why: String },
    #[error("other constraints are still being compiled; try again later")]
    Busy,
    #[error("{0}")]
    Vocabulary(String),
}

/// The constraints of one vocabulary.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Made for the first constraint: who never asks for one pays nothing.
    vocabulary: Mutex<Option<Result<Arc<Vocabulary>, ConstraintError>>>,
    /// The latest at the back.
    remembered: Mutex<VecDeque<(Constraint, SharedGrammar)>>,
    compiling: Arc<AtomicU32>,
}

struct Vocabulary {
    factory: ParserFactory,
    ends: Arc<Ends>,
    digits: Arc<Digits>,
    tokenizer: Arc<Tokenizer>,
}

impl Grammars {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self {
            tokenizer,
            vocabulary: Mutex::default(),
            remembered: Mutex::default(),
            compiling: Arc::default(),
        }
    }

    /// Compiles a constraint, or remembers it. May take seconds.
    ///
    /// # Errors
    /// [`ConstraintError`] with what is wrong.
    pub fn compile(&self, constraint: &Constraint) -> Result<SharedGrammar, ConstraintError> {
        if let Some(grammar) = self.recall(constraint) {
            return Ok(grammar);
        }
        let grammar = self.compile_beside(self.vocabulary()?, constraint)?;
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() == REMEMBERED_MAX {
            remembered.pop_front();
        }
        remembered.push_back((constraint.clone(), grammar.clone()));
        Ok(grammar)
    }

    /// The constraint, if any, from the end of the model's thoughts on. `prompt_end`: the last
    /// characters of the prompt, which may have opened them, or ended them already.
    pub fn behind_thoughts(
        &self,
        thoughts: &Thoughts,
        prompt_end: &str,
        inner: Option<SharedGrammar>,
    ) -> Option<SharedGrammar> {
        let ends_with = |marker: &str| prompt_end.trim_end().ends_with(marker);
        if thoughts.tokens_max == Some(0) && ends_with(&thoughts.end) {
            return inner;
        }
        let is_open = ends_with(&thoughts.begin);
        let thinking = Thinking::new(&self.tokenizer, thoughts, is_open, inner);
        Some(SharedGrammar(Arc::new(thinking)))
    }

    fn vocabulary(&self) -> Result<Arc<Vocabulary>, ConstraintError> {
        let mut made = self.vocabulary.lock().unwrap_or_else(PoisonError::into_inner);
        made.get_or_insert_with(|| Vocabulary::new(&self.tokenizer)).clone()
    }

    fn recall(&self, constraint: &Constraint) -> Option<SharedGrammar> {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let place = remembered.iter().position(|(known, _)| known == constraint)?;
        let found = remembered.remove(place)?;
        let grammar = found.1.clone();
        remembered.push_back(found);
        Some(grammar)
    }

    fn compile_beside(
        &self,
        vocabulary: Arc<Vocabulary>,
        constraint: &Constraint,
    ) -> Result<SharedGrammar, ConstraintError> {
        let running = Running::enter(&self.compiling).ok_or(ConstraintError::Busy)?;
        let (kind, constraint) = (constraint.kind(), constraint.clone());
        let (sender, compiled) = mpsc::channel();
        let compile = move || {
            let result = vocabulary.compile(&constraint);
            drop(running);
            // Nobody listens where it took too long.
            let _ = sender.send(result);
        };
        std::thread::Builder::new()
            .name("pelton-grammar".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(compile)
            .map_err(|error| ConstraintError::Vocabulary(format!("no thread: {error}")))?;
        match compiled.recv_timeout(COMPILE_TIME_MAX) {
            Ok(result) => result.map_err(|why| ConstraintError::Invalid { kind, why }),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let seconds = COMPILE_TIME_MAX.as_secs();
                let why = format!("it takes more than {seconds} s to compile; make it simpler");
                Err(ConstraintError::Invalid { kind, why })
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                let why = "compiling it broke".to_owned();
                Err(ConstraintError::Invalid { kind, why })
            }
        }
    }
}

/// One of the constraints that are being compiled.
struct Running(Arc<AtomicU32>);

impl Running {
    fn enter(count: &Arc<AtomicU32>) -> Option<Self> {
        let entered = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < COMPILING_MAX).then_some(count + 1)
        });
        entered.is_ok().then(|| Self(Arc::clone(count)))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Vocabulary {
    fn new(tokenizer: &Arc<Tokenizer>) -> Result<Arc<Self>, ConstraintError> {
        let refuse = |why: &str| Err(ConstraintError::Vocabulary(why.to_owned()));
        let ids = tokenizer.end_of_generation_ids().to_vec();
        let Some(&end) = ids.first() else {
            return refuse("the model names no token that ends an answer: no constraint can hold");
        };
        let count = tokenizer.vocabulary_size() as u32;
        if ids.iter().any(|&id| id >= count) {
            return refuse("a token that ends answers is outside the model's vocabulary");
        }
        // What is no text has no bytes: no grammar can allow it.
        let bytes = |id: u32| match tokenizer.token_bytes(id) {
            Some(bytes) if !tokenizer.is_control(id) && !ids.contains(&id) => bytes.to_vec(),
            _ => Vec::new(),
        };
        let words: Vec<Vec<u8>> = (0..count).map(bytes).collect();
        let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(&ids);
        let mask = end_mask(&ids, count);
        // Which tokens spell a text is the model's choice: none is forced.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let capabilities = InferenceCapabilities::default();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| ConstraintError::Vocabulary(brief(&error)))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let (ends, digits) = (Arc::new(Ends { ids, mask }), Arc::new(Digits::new(tokenizer)));
        Ok(Arc::new(Self { factory, ends, digits, tokenizer: Arc::clone(tokenizer) }))
    }

    fn compile(&self, constraint: &Constraint) -> Result<SharedGrammar, String> {
        let control =
            |text: &str| self.tokenizer.token_id(text).filter(|&id| self.tokenizer.is_control(id));
        let source = sources::source(constraint, &control)?;
        // The library checks what it is told by assertions, too.
        let parser = std::panic::AssertUnwindSafe(|| self.factory.create_parser(source));
        let parser = llguidance::panic_utils::catch_unwind(parser).map_err(|e| brief(&e))?;
        let mut matcher = llguidance::Matcher::new(Ok(parser));
        // An answer must be possible at all.
        matcher.compute_mask_or_eos().map_err(|error| brief(&error))?;
        let (start, ends) = (Mutex::new(matcher), Arc::clone(&self.ends));
        let inner = Compiled { start, ends };
        Ok(SharedGrammar(match constraint {
            Constraint::JsonObject | Constraint::JsonSchema(_) => {
                Arc::new(EndingNumbers { inner, digits: Arc::clone(&self.digits) })
            }
            Constraint::Regex(_)
            | Constraint::Choice(_)
            | Constraint::Grammar(_)
            | Constraint::Calls { .. } => Arc::new(inner),
        }))
    }
}

fn end_mask(ids: &[u32], count: u32) -> SimpleVob {
    let mut mask = SimpleVob::alloc(count as usize);
    ids.iter().for_each(|&id| mask.allow_token(id));
    mask
}

/// The library's own, where they keep one sequence below some tens of MB and one mask below some
/// tens of milliseconds.
fn limits() -> ParserLimits {
    ParserLimits {
        max_grammar_size: 100_000,
        // Four for each property that may be left out, of as many as a text has room for.
        max_items_in_row: 20_000,
        // At 20 in a microsecond.
        step_max_items: 400_000,
        // At 1 to 2 KB each.
        max_lexer_states: 20_000,
        // Errors name the rule, not the answer so far.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}
