//! How does a step go through both parts? By turns: from the rows of one the other goes on.
//!
//! A block's bytes are the first part's, then the second's, and so are a state's.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use device::{
    BlockCopier, BlockCopy, BlockForm, BlockLease, Capacity, Fault, HeapPool, HostBytes, MemoryUse,
    OwnCopies, PartClock, Program, SlotReset, StepInputs, StepOutputs, TokenInput,
};
use ops::sample_rows::SampleParams;

use crate::backend::sum;

pub(crate) struct SplitProgram {
    parts: [Part; 2],
    /// Which of them have memory of their own.
    own: [bool; 2],
    /// What was last sampled into each slot; `None`: it was never set.
    last: Vec<Option<u32>>,
    capacity: Capacity,
    sent: StepOutputs,
    /// Turns of both parts.
    turns: usize,
}

struct Part {
    program: Box<dyn Program>,
    /// A step as this part sees it.
    inputs: StepInputs,
    /// Its bytes of a block, and of a state.
    block: Range<usize>,
    state: Range<usize>,
    clock: PartClock,
}

impl SplitProgram {
    pub(crate) fn new(
        programs: [(Box<dyn Program>, usize); 2],
        names: [String; 2],
        layers: [u32; 2],
        own: [bool; 2],
        capacity: &Capacity,
    ) -> Self {
        let (mut block, mut state) = (0, 0);
        let turns = programs.iter().map(|(_, turns)| turns).sum();
        let mut parts = programs.into_iter().zip(names).zip(layers);
        let mut part = || {
            let (((program, _), name), layers) = parts.next().expect("invariant: two of each");
            let (block_bytes, state_bytes) =
                (program.block_form().bytes, program.state_bytes().unwrap_or(0));
            let part = Part {
                inputs: StepInputs::with_room(capacity),
                block: block..block + block_bytes,
                state: state..state + state_bytes,
                clock: PartClock::new(name, layers),
                program,
            };
            (block, state) = (part.block.end, part.state.end);
            part
        };
        Self {
            parts: [part(), part()],
            own,
            last: vec![None; capacity.slots as usize],
            capacity: *capacity,
            sent: StepOutputs::default(),
            turns,
        }
    }

    /// Tokens as the first part can know them: it samples none.
    fn known(&self, token: TokenInput) -> Result<TokenInput, Fault> {
        let TokenInput::Slot(slot) = token else { return Ok(token) };
        let last = self.last[slot as usize];
        let last = last.ok_or_else(|| Fault(format!("slot {slot} was read before it was set")))?;
        Ok(TokenInput::Known(last))
    }
}

impl Part {
    /// What both parts are told alike, and of states this one's bytes.
    fn fill(&mut self, step: &StepInputs) {
        let inputs = &mut self.inputs;
        inputs.clear(step.step);
        inputs.copies.extend(step.copies.iter().filter_map(|copy| of_state(copy, &self.state)));
        inputs.states.extend_from_slice(&step.states);
        inputs.rows.extend_from_slice(&step.rows);
        inputs.blocks.extend_from_slice(&step.blocks);
        inputs.keep_logits = step.keep_logits;
    }

    fn run(&mut self, outputs: &mut StepOutputs) -> Result<(), Fault> {
        let started = Instant::now();
        let result = self.program.run(&self.inputs, outputs);
        self.clock.add(started.elapsed());
        result.map_err(|Fault(text)| Fault(format!("the part on {}: {text}", self.clock.name())))
    }
}

impl Program for SplitProgram {
    fn run(&mut self, inputs: &StepInputs, outputs: &mut StepOutputs) -> Result<(), Fault> {
        inputs.audit(&self.capacity);
        outputs.clear(inputs.step);
        for reset in &inputs.resets {
            self.last[reset.slot as usize] = Some(reset.generated.last().copied().unwrap_or(0));
        }
        self.parts.iter_mut().for_each(|part| part.fill(inputs));
        for reset in &inputs.resets {
            let (params, prompt, generated) = (SampleParams::default(), Vec::new(), Vec::new());
            let SlotReset { slot, adapter, .. } = *reset;
            let plain = SlotReset { slot, params, prompt, generated, adapter };
            self.parts[0].inputs.resets.push(plain);
            self.parts[1].inputs.resets.push(reset.clone());
        }
        for &token in &inputs.tokens {
            let known = self.known(token)?;
            self.parts[0].inputs.tokens.push(known);
        }
        self.parts[1].inputs.tokens.extend_from_slice(&inputs.tokens);

        self.sent.clear(inputs.step);
        // The second has the last one.
        for turn in 0..self.turns {
            let part = &mut self.parts[(self.turns - turn) % 2];
            std::mem::swap(&mut part.inputs.received, &mut self.sent.sent);
            let is_last = turn + 1 == self.turns;
            part.run(if is_last { &mut *outputs } else { &mut self.sent })?;
            part.inputs.segment += 1;
        }
        for sample in &outputs.samples {
            if let Ok(sampled) = &sample.sampled {
                self.last[sample.slot as usize] = Some(sampled.token);
            }
        }
        Ok(())
    }

    fn block_form(&self) -> BlockForm {
        let [first, second] = self.parts.each_ref().map(|part| part.program.block_form());
        BlockForm {
            name: format!("{} + {}", first.name, second.name),
            bytes: first.bytes + second.bytes,
        }
    }

    fn read_block(&mut self, block: u32, bytes: &mut [u8]) {
        for Part { program, block: own, .. } in &mut self.parts {
            program.read_block(block, &mut bytes[own.clone()]);
        }
    }

    fn write_block(&mut self, block: u32, bytes: &[u8]) {
        for Part { program, block: own, .. } in &mut self.parts {
            program.write_block(block, &bytes[own.clone()]);
        }
    }

    fn state_bytes(&self) -> Option<usize> {
        let bytes = self.parts[1].state.end;
        (bytes > 0).then_some(bytes)
    }

    fn read_state(&mut self, place: u32, offset: usize, bytes: &mut [u8]) {
        bytes.fill(0);
        for Part { program, state, .. } in &mut self.parts {
            let Some(own) = overlap(state, offset, bytes.len()) else { continue };
            let to = &mut bytes[own.start - offset..own.end - offset];
            program.read_state(place, own.start - state.start, to);
        }
    }

    fn copier(&self) -> Option<Arc<dyn BlockCopier>> {
        let [first, second] = &self.parts;
        let of = |part: &Part| Some((part.program.copier()?, part.block.clone()));
        Some(Arc::new(SplitCopier([of(first)?, of(second)?])))
    }

    fn memory(&self) -> MemoryUse {
        sum(self.parts.each_ref().map(|part| part.program.memory()), self.own)
    }

    fn warm(&mut self, bytes: u64) {
        self.parts.iter_mut().for_each(|part| part.program.warm(bytes));
    }

    /// They tell how long each part takes, too.
    fn gains_from_first_steps(&self) -> bool {
        true
    }

    fn heap_pools(&self) -> Vec<HeapPool> {
        self.parts.iter().flat_map(|part| part.program.heap_pools()).collect()
    }

    /// Of the second part; the first is the processor, which copies nothing.
    fn own_copies(&self) -> OwnCopies {
        self.parts[1].program.own_copies()
    }

    fn clocks(&self) -> Vec<PartClock> {
        self.parts.iter().map(|part| part.clock.clone()).collect()
    }
}

/// Bytes of `own` among so many from `offset` on.
fn overlap(own: &Range<usize>, offset: usize, bytes: usize) -> Option<Range<usize>> {
    let (start, end) = (own.start.max(offset), own.end.min(offset + bytes));
    (start < end).then_some(start..end)
}

/// What a copy brings of a part's own bytes of a state; blocks are copied before a step is run.
fn of_state(copy: &BlockCopy, own: &Range<usize>) -> Option<BlockCopy> {
    let BlockCopy::StateIn { slot, position, offset, bytes } = copy else { return None };
    let range = overlap(own, *offset, bytes.as_ref().len())?;
    let bytes = Piece { bytes: bytes.clone(), range: range.start - offset..range.end - offset };
    Some(BlockCopy::StateIn {
        slot: *slot,
        position: *position,
        offset: range.start - own.start,
        bytes: HostBytes(Arc::new(bytes)),
    })
}

/// Some of the bytes that others hold.
struct Piece {
    bytes: HostBytes,
    range: Range<usize>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes.as_ref()[self.range.clone()]
    }
}

struct SplitCopier([(Arc<dyn BlockCopier>, Range<usize>); 2]);

impl BlockCopier for SplitCopier {
    fn read_block(&self, lease: &BlockLease, bytes: &mut [u8]) {
        for (copier, own) in &self.0 {
            copier.read_block(lease, &mut bytes[own.clone()]);
        }
    }

    fn write_block(&self, lease: &BlockLease, bytes: &[u8]) {
        for (copier, own) in &self.0 {
            copier.write_block(lease, &bytes[own.clone()]);
        }
    }
}
