//! How do samples follow a grammar? The host knows what may come next before a step begins, for it
//! has read what the last one sampled, and sends a bit for each token.
//!
//! Behind a guess it knows that only once the guess was found right: those places are sampled one
//! after the other, each by a launch of its own.

use device::{SampledRow, SlotReset, StepInputs, TokenInput};
use ops::ActivationId;
use ops::constraint::Matcher;

use crate::arguments::NOT_FINITE;
use crate::driver::CudaError;
use crate::gpu::Address;
use crate::lowering::Pass;
use crate::program::CudaProgram;
use crate::step_inputs::{HEADER_WORDS, SAMPLED_ROWS_WORD, SAMPLED_WORD, at};

/// Where a slot's answer is in its grammar.
pub(crate) struct Constrained {
    matcher: Box<dyn Matcher>,
    /// Why it cannot go on.
    pub(crate) failed: Option<String>,
    /// Places that were sampled in this step.
    pub(crate) sampled: usize,
}

impl Constrained {
    /// `None` where the answer is free.
    pub(crate) fn new(reset: &SlotReset) -> Option<Self> {
        let mut matcher = reset.params.grammar.as_ref()?.0.matcher();
        reset.generated.iter().for_each(|&token| matcher.advance(token));
        Some(Self { matcher, failed: None, sampled: 0 })
    }

    /// What may come next, in so many words; all, when nothing can: the sample is not used then.
    fn allowed(&mut self, words: usize) -> Vec<u8> {
        match self.matcher.allowed() {
            Ok(allowed) => {
                let beyond = std::iter::repeat(&0);
                allowed.iter().chain(beyond).take(words).flat_map(|w| w.to_le_bytes()).collect()
            }
            Err(text) => {
                self.failed = Some(text);
                vec![0xff; 4 * words]
            }
        }
    }
}

/// A constrained row, and the place at which it is.
struct Follower<'a> {
    row: SampledRow<'a>,
    at: usize,
}

impl CudaProgram {
    /// Sends what may come first in the step's constrained rows.
    pub(crate) fn send_allowed(&mut self, inputs: &StepInputs) -> Result<(), CudaError> {
        // A free row's has none to send.
        inputs.sampled_rows().try_for_each(|row| self.send_allowed_of(row.slot))
    }

    fn send_allowed_of(&mut self, slot: u32) -> Result<(), CudaError> {
        let words = self.tape.vocabulary.div_ceil(32) as usize;
        let Some(constrained) = &mut self.slots.matchers[slot as usize] else { return Ok(()) };
        let bytes = constrained.allowed(words);
        self.stream.copy_in(self.work.allowed.plus(slot as usize * 4 * words), &bytes)
    }

    /// Tells matchers what was sampled, and checks the guesses of constrained rows.
    pub(crate) fn follow_grammars(
        &mut self,
        inputs: &StepInputs,
        is_small: bool,
    ) -> Result<(), CudaError> {
        let rows = inputs.sampled_rows().filter(|row| self.slots.is_constrained(row.slot));
        let mut followers: Vec<Follower<'_>> = rows.map(|row| Follower { row, at: 0 }).collect();
        while !followers.is_empty() {
            let places = followers.iter().map(|one| one.row.place + one.at + 1).max().unwrap_or(0);
            let mut tokens = vec![0; 4 * places];
            self.stream.copy_out(&mut tokens, self.work.sampled.tokens())?;
            let tokens = tokens.as_chunks::<4>().0;
            followers.retain_mut(|one| {
                let token = u32::from_le_bytes(tokens[one.row.place + one.at]);
                self.slots.follow(one, token)
            });
            if followers.is_empty() {
                break;
            }
            for one in &followers {
                self.send_allowed_of(one.row.slot)?;
            }
            self.sample_again(inputs, is_small, &followers)?;
        }
        Ok(())
    }

    /// Samples from the followers' places.
    fn sample_again(
        &self,
        inputs: &StepInputs,
        is_small: bool,
        followers: &[Follower<'_>],
    ) -> Result<(), CudaError> {
        let mut words = vec![0; HEADER_WORDS];
        words[SAMPLED_WORD] = inputs.sampled_tokens().count() as u32;
        words[SAMPLED_ROWS_WORD] = followers.len() as u32;
        for Follower { row, at } in followers {
            let place = (row.place + at) as u32;
            words.extend([row.slot, row.sample_index + *at as u32, place, 0, 0, 0, 0, 0]);
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let header = self.work.again;
        self.stream.copy_in(header, &bytes)?;
        let lists: [Address; 2] = [header, at(header, HEADER_WORDS)];
        let step = self.step(inputs, is_small);
        step.sample_rows(self.logits(), lists, followers.len() as u32)
    }

    fn logits(&self) -> ActivationId {
        let logits = self.plan.passes.iter().find_map(|pass| match pass {
            Pass::Sample { logits } => Some(*logits),
            _ => None,
        });
        logits.expect("invariant: a program that samples has logits")
    }
}

impl crate::slots::Slots {
    /// Takes a sampled token into account; whether the row goes on to its next place.
    fn follow(&mut self, one: &mut Follower<'_>, token: u32) -> bool {
        let Some(constrained) = &mut self.matchers[one.row.slot as usize] else { return false };
        constrained.sampled = one.at + 1;
        if token >= NOT_FINITE || constrained.failed.is_some() {
            return false;
        }
        constrained.matcher.advance(token);
        let goes_on = one.row.proposals.get(one.at) == Some(&TokenInput::Known(token));
        one.at += 1;
        goes_on
    }
}
