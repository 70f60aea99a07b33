//! What would a smaller model say next? Its greedy answer is a guess at the large one's.
//!
//! The draft (<https://arxiv.org/abs/2211.17192>) has a KV cache of its own and runs on the engine
//! thread, between two steps of the large model: guesses are wanted only when nothing is planned
//! ahead. It reads what it has not read yet of a sequence, then says token after token; what it
//! wrote to its cache stays good as far as its guesses were right. Whatever goes wrong here ends
//! the guessing and nothing else.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use device::{
    Capacity, Fault, HeapPool, Program, RowInput, SlotReset, StepInputs, StepOutputs, TokenInput,
};
use messages::{ProposalCounts, SequenceId, TokenId};
use ops::sample_rows::SampleParams;
use speculation::{GUESSES_MAX, Proposer, Trust};

pub(crate) struct DraftModel {
    program: Box<dyn Program>,
    capacity: Capacity,
    context_tokens_max: u32,
    free_slots: Vec<u32>,
    free_blocks: Vec<u32>,
    readers: BTreeMap<SequenceId, Reader>,
    /// What a new sequence's guesses are trusted with.
    trust: Trust,
    /// Seconds of a step of one token, and of each token of a longer one.
    step_seconds: f64,
    token_seconds: f64,
    /// Set by the first fault: a broken device is not asked again.
    is_broken: bool,
    inputs: StepInputs,
    outputs: StepOutputs,
}

/// How far the draft has read one sequence.
struct Reader {
    tokens: Vec<TokenId>,
    /// Positions in the draft's cache: of `tokens`, then of `ahead`.
    computed: usize,
    /// Guesses at what follows `tokens`; all but the last may be in the cache.
    ahead: VecDeque<TokenId>,
    slot: Option<u32>,
    blocks: Vec<u32>,
    trust: Trust,
}

/// A draft of the same family is right in half to four fifths of all tokens.
const CHANCE: f64 = 0.6;
/// What a new measure counts in an average.
const WEIGHT: f64 = 0.1;

impl DraftModel {
    pub(crate) fn heap_pools(&self) -> Vec<HeapPool> {
        self.program.heap_pools()
    }

    /// `program` was built for `capacity` and reads texts of `context_tokens_max` tokens.
    pub(crate) fn new(
        program: Box<dyn Program>,
        capacity: Capacity,
        context_tokens_max: u32,
    ) -> Result<Self, Fault> {
        let mut draft = Self {
            program,
            capacity,
            context_tokens_max,
            free_slots: (0..capacity.slots).rev().collect(),
            free_blocks: (0..capacity.block_count).rev().collect(),
            readers: BTreeMap::new(),
            trust: Trust::new(CHANCE),
            step_seconds: 0.0,
            token_seconds: 0.0,
            is_broken: false,
            inputs: StepInputs::default(),
            outputs: StepOutputs::default(),
        };
        draft.measure()?;
        Ok(draft)
    }

    /// Times a few steps, so that the first guesses are weighed by what they will cost.
    fn measure(&mut self) -> Result<(), Fault> {
        let id = SequenceId(u64::MAX);
        self.begin(id, &[0; 17]);
        let mut guesses = Vec::new();
        for _ in 0..3 {
            self.try_guess(id, 4, &mut guesses)?;
            self.observe(id, 0);
        }
        self.end(id);
        Ok(())
    }

    fn try_guess(
        &mut self,
        id: SequenceId,
        count: usize,
        guesses: &mut Vec<TokenId>,
    ) -> Result<(), Fault> {
        if !self.make_room(id, count) {
            return Ok(());
        }
        let first = guesses.len();
        let made = self.readers.get(&id).into_iter().flat_map(|reader| &reader.ahead);
        guesses.extend(made.take(count));
        while guesses.len() - first < count {
            let Some(token) = self.step(id)? else { continue };
            guesses.push(token);
        }
        Ok(())
    }

    /// A slot and blocks for the sequence and `count` guesses; false when there are too few, or the
    /// text is too long for the draft.
    fn make_room(&mut self, id: SequenceId, count: usize) -> bool {
        let Some(reader) = self.readers.get_mut(&id) else { return false };
        let positions = reader.tokens.len() + count;
        let needed = positions.div_ceil(self.capacity.block_tokens as usize);
        let missing = needed.saturating_sub(reader.blocks.len());
        if positions > self.context_tokens_max as usize || missing > self.free_blocks.len() {
            return false;
        }
        if reader.slot.is_none() {
            let Some(slot) = self.free_slots.pop() else { return false };
            reader.slot = Some(slot);
            let (params, prompt, generated) = (SampleParams::default(), Vec::new(), Vec::new());
            self.inputs.resets.push(SlotReset { slot, params, prompt, generated, adapter: None });
        }
        let kept = self.free_blocks.len() - missing;
        reader.blocks.extend(self.free_blocks.drain(kept..));
        true
    }

    /// Computes the next of what is not in the cache; a guess once all known tokens are.
    fn step(&mut self, id: SequenceId) -> Result<Option<TokenId>, Fault> {
        let reader = self.readers.get_mut(&id).expect("invariant: it has room, so it is here");
        let known = reader.tokens.len() + reader.ahead.len();
        let length = (known - reader.computed).min(self.capacity.step_tokens_max as usize);
        let all = reader.tokens.iter().chain(&reader.ahead).skip(reader.computed);
        self.inputs.tokens.clear();
        self.inputs.tokens.extend(all.take(length).map(|&token| TokenInput::Known(token)));
        let samples = reader.computed + length == known;
        let slot = reader.slot.expect("invariant: a sequence with room has a slot");
        self.inputs.blocks.clone_from(&reader.blocks);
        self.inputs.rows.clear();
        self.inputs.rows.push(RowInput {
            slot,
            start: reader.computed as u32,
            length: length as u32,
            blocks_start: 0,
            blocks_count: reader.blocks.len() as u32,
            sample_index: samples.then_some(0),
            proposed: 0,
        });
        let start = Instant::now();
        self.program.run(&self.inputs, &mut self.outputs)?;
        let seconds = start.elapsed().as_secs_f64();
        self.inputs.resets.clear();
        self.inputs.step += 1;
        reader.computed += length;
        if length == 1 {
            average(&mut self.step_seconds, seconds);
        } else {
            average(&mut self.token_seconds, seconds / length as f64);
        }
        let Some(output) = self.outputs.samples.pop() else { return Ok(None) };
        let sampled = output.sampled.map_err(|error| Fault(error.to_string()))?;
        reader.ahead.push_back(sampled.token);
        Ok(Some(sampled.token))
    }
}

fn average(seconds: &mut f64, new: f64) {
    *seconds = if *seconds == 0.0 { new } else { *seconds + WEIGHT * (new - *seconds) };
}

impl Proposer for DraftModel {
    fn begin(&mut self, id: SequenceId, prompt: &[TokenId]) {
        self.trust.drift(CHANCE);
        let reader = Reader {
            tokens: prompt.to_vec(),
            computed: 0,
            ahead: VecDeque::new(),
            slot: None,
            blocks: Vec::new(),
            trust: Trust::new(self.trust.chance()),
        };
        self.readers.insert(id, reader);
    }

    fn observe(&mut self, id: SequenceId, token: TokenId) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        if reader.ahead.pop_front() != Some(token) {
            // From here on the cache holds another text.
            reader.ahead.clear();
            reader.computed = reader.computed.min(reader.tokens.len());
            reader.trust.drift(self.trust.chance());
        }
        reader.tokens.push(token);
    }

    fn checked(&mut self, id: SequenceId, counts: ProposalCounts) {
        let Some(reader) = self.readers.get_mut(&id) else { return };
        for trust in [&mut reader.trust, &mut self.trust] {
            (0..counts.accepted).for_each(|_| trust.note(true));
            // Those after the first wrong one were guessed after another text.
            if counts.rejected > 0 {
                trust.note(false);
            }
        }
    }

    fn end(&mut self, id: SequenceId) {
        if let Some(reader) = self.readers.remove(&id) {
            self.free_blocks.extend(reader.blocks);
            self.free_slots.extend(reader.slot);
        }
    }

    fn chances(&self, id: SequenceId, chances: &mut Vec<f64>) {
        let Some(reader) = self.readers.get(&id).filter(|_| !self.is_broken) else { return };
        let room = (self.context_tokens_max as usize).saturating_sub(reader.tokens.len());
        chances.extend(std::iter::repeat_n(reader.trust.chance(), room.min(GUESSES_MAX)));
    }

    fn entry_seconds(&self, id: SequenceId) -> f64 {
        let unread = |reader: &Reader| reader.tokens.len().saturating_sub(reader.computed + 1);
        self.token_seconds * self.readers.get(&id).map_or(0, unread) as f64
    }

    fn seconds(&self, count: usize) -> f64 {
        self.step_seconds * count as f64
    }

    fn guess(&mut self, id: SequenceId, count: usize, guesses: &mut Vec<TokenId>) {
        if let Err(fault) = self.try_guess(id, count, guesses) {
            tracing::error!(%fault, "the draft model failed and is not asked again");
            self.is_broken = true;
        }
    }
}
