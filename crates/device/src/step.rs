//! What changes from step to step? Token ids, rows, block tables, and slots that start afresh.

use std::fmt;
use std::sync::Arc;

use ops::ActivationId;
use ops::sample_rows::{SampleError, SampleParams, Sampled};

use crate::{BlockCopier, BlockLease, StagingBuffer, Tape};

/// What a program is built for; every buffer is sized from it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    pub step_tokens_max: u32,
    /// Slots, and so the most rows of a step.
    pub slots: u32,
    /// Proposed tokens of one step over all rows.
    pub proposed_tokens_max: u32,
    pub block_count: u32,
    pub block_tokens: u32,
    /// Places for states of sequences besides the slots' own; 0 where sequences carry none.
    pub states: u32,
}

impl Capacity {
    /// Most tokens of a step that may be sampled after: one a slot, and one for each proposal.
    pub fn sampled_tokens_max(&self) -> u32 {
        self.slots + self.proposed_tokens_max
    }
}

/// The inputs of one step, as ragged arrays. Reused from step to step.
#[derive(Debug, Default)]
pub struct StepInputs {
    pub step: u64,
    /// Which of its tape's segments a program computes ([`Tape::segments`]): a step is each of them
    /// once, in order, with the same inputs but for this and what is received.
    pub segment: usize,
    /// Done before anything else, those of one block in order. A block is copied out after the last
    /// step that used it and copied in before the first that reads it: beside the steps in flight
    /// where none of them names it, else by the step itself.
    pub copies: Vec<BlockCopy>,
    /// Applied before any row: a new sequence takes a slot.
    pub resets: Vec<SlotReset>,
    /// Loads before any row, saves behind all; in order.
    pub states: Vec<StateCopy>,
    /// Of what came from a ring: those that were computed.
    pub rows: Vec<RowInput>,
    /// `[sum of row lengths]`
    pub tokens: Vec<TokenInput>,
    /// Block tables of all rows, one after another.
    pub blocks: Vec<u32>,
    /// What another tape's program sent ([`StepOutputs::sent`]); empty for a tape that begins by
    /// itself.
    pub received: Vec<f32>,
    /// Also return the logits of every sampled row (development only: it copies a vocabulary).
    pub keep_logits: bool,
}

/// Bytes on their way between device and host: keys and values of a block, see
/// [`crate::BlockForm`], or a piece of a state, see [`crate::Program::state_bytes`].
#[derive(Debug)]
pub enum BlockCopy {
    /// Device to host: `bytes` comes back filled.
    Out {
        block: u32,
        bytes: StagingBuffer,
    },
    In {
        block: u32,
        bytes: HostBytes,
    },
    /// From the byte at `offset` of the state in a place on; what is behind its end is zeroed. By
    /// the step itself, before its loads and saves.
    StateOut {
        place: u32,
        offset: usize,
        bytes: StagingBuffer,
    },
    /// Into a slot that the step resets, whose next row begins at `position`. By the step itself,
    /// behind the resets.
    StateIn {
        slot: u32,
        position: u32,
        offset: usize,
        bytes: HostBytes,
    },
}

/// Bytes of the process that several may hold.
#[derive(Clone)]
pub struct HostBytes(pub Arc<dyn AsRef<[u8]> + Send + Sync>);

impl AsRef<[u8]> for HostBytes {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl fmt::Debug for HostBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.as_ref().len())
    }
}

impl BlockCopy {
    /// `None`: it is of a state.
    pub fn block(&self) -> Option<u32> {
        match self {
            Self::Out { block, .. } | Self::In { block, .. } => Some(*block),
            Self::StateOut { .. } | Self::StateIn { .. } => None,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Out { bytes, .. } | Self::StateOut { bytes, .. } => bytes.as_ref().len(),
            Self::In { bytes, .. } | Self::StateIn { bytes, .. } => bytes.as_ref().len(),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Out { .. } => "block out",
            Self::In { .. } => "block in",
            Self::StateOut { .. } => "state out",
            Self::StateIn { .. } => "state in",
        }
    }

    /// Copies while steps run that do not name the block.
    pub(crate) fn run_beside(&mut self, copier: &dyn BlockCopier, lease: &BlockLease) {
        match self {
            Self::Out { bytes, .. } => copier.read_block(lease, bytes.bytes_mut()),
            Self::In { bytes, .. } => copier.write_block(lease, bytes.as_ref()),
            Self::StateOut { .. } | Self::StateIn { .. } => {
                unreachable!("invariant: states are copied by steps")
            }
        }
    }
}

/// What a sequence carries, on its way between its slot and a place where it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateCopy {
    /// The slot's next row begins where that state's last one ended.
    Load { place: u32, slot: u32 },
    /// Of a slot whose row has no guesses.
    Save { slot: u32, place: u32 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenInput {
    Known(u32),
    /// What was last sampled into the slot.
    Slot(u32),
}

/// Consecutive positions of one sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowInput {
    pub slot: u32,
    pub start: u32,
    pub length: u32,
    /// The row's table is `blocks[blocks_start..blocks_start + blocks_count]`.
    pub blocks_start: u32,
    pub blocks_count: u32,
    /// Sample after the last token that is not proposed, as the sequence's `n`th generated token.
    pub sample_index: Option<u32>,
    /// The row's last tokens that are guesses: after each that was sampled, sample again.
    pub proposed: u32,
}

/// A row that samples, as sampling sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampledRow<'a> {
    pub slot: u32,
    pub sample_index: u32,
    /// Its first row of logits; the others follow.
    pub place: usize,
    pub proposals: &'a [TokenInput],
}

impl SampledRow<'_> {
    /// Whether sampling goes on after the `count`th sample (from 0): it was `token`, as proposed.
    pub fn goes_on(&self, count: usize, token: u32) -> bool {
        self.proposals.get(count) == Some(&TokenInput::Known(token))
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct SlotReset {
    pub slot: u32,
    pub params: SampleParams,
    pub prompt: Vec<u32>,
    pub generated: Vec<u32>,
    /// The number of the sequence's adapter; `None`: the model alone.
    pub adapter: Option<u32>,
}

/// What one step gives back: one entry for each row that samples, in row order, each followed by
/// one for every proposal of the row that was right. A slot has one row, so entries of one slot
/// are of one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutputs {
    pub step: u64,
    pub samples: Vec<SampleOutput>,
    /// `[tokens that may be sampled after, vocabulary]` if `keep_logits` was set, else empty.
    pub logits: Vec<f32>,
    /// `[samples, Tape::vector_width]` of a tape that gives vectors, whose sampled tokens mean
    /// nothing; else empty.
    pub vectors: Vec<f32>,
    /// Of a segment behind which another tape goes on, which samples nothing: `[tokens, width]` of
    /// each buffer, one after the other; else empty.
    pub sent: Vec<f32>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SampleOutput {
    pub slot: u32,
    /// A row that cannot be sampled is the trouble of its sequence, not of the step.
    pub sampled: Result<Sampled, SampleError>,
}

impl SampleOutput {
    /// Of a row that gave a vector: its token means nothing.
    pub fn of_vector(slot: u32) -> Self {
        Self { slot, sampled: Ok(Sampled { token: 0, logprob: None }) }
    }
}

impl StepOutputs {
    /// As [`StepInputs::reserve`]; logits are for development only.
    pub(crate) fn reserve(&mut self, capacity: &Capacity) {
        self.samples.reserve(capacity.sampled_tokens_max() as usize);
    }

    /// Empties the outputs for another step, keeping their memory.
    pub fn clear(&mut self, step: u64) {
        self.step = step;
        self.samples.clear();
        self.logits.clear();
        self.vectors.clear();
        self.sent.clear();
    }
}

impl StepInputs {
    /// With [`StepInputs::reserve`]d memory.
    pub fn with_room(capacity: &Capacity) -> Self {
        let mut inputs = Self::default();
        inputs.reserve(capacity);
        inputs
    }

    /// Makes room for the largest step at once, so that none later takes memory. Only block tables
    /// that share many blocks can be longer.
    pub(crate) fn reserve(&mut self, capacity: &Capacity) {
        self.rows.reserve(capacity.slots as usize);
        self.states.reserve(if capacity.states > 0 { 2 * capacity.slots as usize } else { 0 });
        self.tokens.reserve(capacity.step_tokens_max as usize);
        self.blocks.reserve(capacity.block_count as usize);
    }

    /// Empties the inputs for the next step, keeping their memory.
    pub fn clear(&mut self, step: u64) {
        self.step = step;
        self.segment = 0;
        self.copies.clear();
        self.resets.clear();
        self.states.clear();
        self.rows.clear();
        self.tokens.clear();
        self.blocks.clear();
        self.received.clear();
        self.keep_logits = false;
    }

    /// Indices (into the step's tokens) of the tokens that may be sampled after, in row order: the
    /// last that is not proposed, and each proposal.
    pub fn sampled_tokens(&self) -> impl Iterator<Item = u32> + '_ {
        let mut end = 0;
        self.rows.iter().flat_map(move |row| {
            end += row.length;
            let first = row.sample_index.map_or(end, |_| end - 1 - row.proposed);
            first..end
        })
    }

    /// The rows that sample, with the place of each one's first token among
    /// [`StepInputs::sampled_tokens`] and its proposals.
    pub fn sampled_rows(&self) -> impl Iterator<Item = SampledRow<'_>> + '_ {
        let (mut end, mut first) = (0, 0);
        self.rows.iter().filter_map(move |row| {
            end += row.length as usize;
            let sample_index = row.sample_index?;
            let proposals = &self.tokens[end - row.proposed as usize..end];
            let place = first;
            first += 1 + proposals.len();
            Some(SampledRow { slot: row.slot, sample_index, place, proposals })
        })
    }

    /// Each of the buffers that the step receives, with its rows.
    ///
    /// # Panics
    /// When other rows were sent: the tapes are not of one model.
    pub fn received_parts<'a>(
        &'a self,
        tape: &'a Tape,
        parts: &'a [ActivationId],
    ) -> impl Iterator<Item = (ActivationId, &'a [f32])> {
        let elements = |part| self.tokens.len() * tape.activation(part).width as usize;
        let all: usize = parts.iter().map(|&part| elements(part)).sum();
        assert_eq!(self.received.len(), all, "rows that another tape sent");
        let mut rest = self.received.as_slice();
        parts.iter().map(move |&part| {
            let own;
            (own, rest) = rest.split_at(elements(part));
            (part, own)
        })
    }

    /// Checks that the step is within what the program was built for.
    ///
    /// # Panics
    /// When it is not: the planner and the program disagree.
    pub fn audit(&self, capacity: &Capacity) {
        assert!(self.tokens.len() <= capacity.step_tokens_max as usize, "step has too many tokens");
        assert!(self.rows.len() <= capacity.slots as usize, "step has more rows than slots");
        let length: usize = self.rows.iter().map(|row| row.length as usize).sum();
        assert_eq!(length, self.tokens.len(), "rows and tokens disagree");
        for row in &self.rows {
            assert!(row.slot < capacity.slots, "slot {} does not exist", row.slot);
            let covered = u64::from(row.blocks_count) * u64::from(capacity.block_tokens);
            let end = u64::from(row.start) + u64::from(row.length);
            assert!(end <= covered, "row ends at {end}, its blocks cover {covered}");
            assert!(row.proposed < row.length, "a row is all guesses");
            assert!(row.proposed == 0 || row.sample_index.is_some(), "guesses nobody checks");
        }
        for copy in &self.states {
            let (StateCopy::Load { slot, place } | StateCopy::Save { slot, place }) = *copy;
            assert!(slot < capacity.slots && place < capacity.states, "{copy:?} has no place");
        }
        let proposed: u32 = self.rows.iter().map(|row| row.proposed).sum();
        assert!(proposed <= capacity.proposed_tokens_max, "step has too many proposals");
        let copied = self.copies.iter().filter_map(BlockCopy::block);
        let mut blocks = self.blocks.iter().copied().chain(copied);
        let known = blocks.all(|block| block < capacity.block_count);
        assert!(known, "a block outside the pool");
    }
}
