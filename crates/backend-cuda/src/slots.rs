//! What does sampling know of a sequence, and what does it give back?

use device::{Fault, HeapBlock, OwnCopies, SampleOutput, SlotReset, StepInputs, StepOutputs};
use ops::sample_rows::{Logprob, SampleError, SampleParams, Sampled};

use crate::arguments::{
    BANNED, HAS_BANS, HAS_BIAS, HAS_GRAMMAR, HAS_PENALTIES, NO_REPORT, NOT_FINITE, NOT_SAMPLED,
    TOP_MAX,
};
use crate::driver::CudaError;
use crate::gpu::{Address, Stream};
use crate::grammars::Constrained;
use crate::memory::{self, SLOT_PARAMS_BYTES, Work};

/// A slot's parameters as `SlotParams` of `kernels/sample_rows.cu`.
fn words(params: &SampleParams, flags: u32) -> [u8; SLOT_PARAMS_BYTES] {
    let seed = params.seed.to_le_bytes();
    let half = |at: usize| u32::from_le_bytes([seed[at], seed[at + 1], seed[at + 2], seed[at + 3]]);
    let words = [
        params.temperature.to_bits(),
        params.top_p.to_bits(),
        params.min_p.to_bits(),
        params.repetition_penalty.to_bits(),
        params.presence_penalty.to_bits(),
        params.frequency_penalty.to_bits(),
        params.top_k,
        params.banned_until,
        half(0),
        half(4),
        flags,
        params.logprobs.map_or(NO_REPORT, |count| count.min(TOP_MAX as u32)),
    ];
    let mut bytes = [0; SLOT_PARAMS_BYTES];
    for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    bytes
}

/// Which slots are set and report, as the host must know it.
pub(crate) struct Slots {
    /// `None`: never set. Else how many tokens are reported of each choice.
    reports: Vec<Option<Option<u32>>>,
    vocabulary: usize,
    /// Reused for marks and biases of one slot.
    row: Vec<u8>,
    /// Of the slots whose answers follow a grammar.
    pub(crate) matchers: Vec<Option<Constrained>>,
    adapters: Vec<Option<u32>>,
}

impl Slots {
    pub(crate) fn new(slots: usize, vocabulary: usize) -> Self {
        let matchers = (0..slots).map(|_| None).collect();
        let (reports, adapters) = (vec![None; slots], vec![None; slots]);
        Self { reports, vocabulary, row: vec![0; 4 * vocabulary], matchers, adapters }
    }

    pub(crate) fn is_constrained(&self, slot: u32) -> bool {
        self.matchers[slot as usize].is_some()
    }

    /// The adapter of a slot's sequence.
    pub(crate) fn adapter(&self, slot: u32) -> Option<u32> {
        self.adapters[slot as usize]
    }

    pub(crate) fn is_set(&self, slot: u32) -> bool {
        self.reports[slot as usize].is_some()
    }

    /// Puts a new sequence into its slot, on the device.
    pub(crate) fn reset(
        &mut self,
        stream: &Stream,
        work: &Work,
        reset: &SlotReset,
    ) -> Result<(), CudaError> {
        let params = &reset.params;
        let slot = reset.slot as usize;
        let has_penalties = params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0;
        let mut flags = 0;
        if has_penalties {
            flags |= HAS_PENALTIES;
        }
        if !params.bias.is_empty() {
            flags |= HAS_BIAS;
        }
        if !params.banned.is_empty() {
            flags |= HAS_BANS;
        }
        self.matchers[slot] = Constrained::new(reset);
        if self.matchers[slot].is_some() {
            flags |= HAS_GRAMMAR;
        }
        let at = |table: Address, bytes: usize| table.plus(slot * bytes);
        stream.copy_in(at(work.slot_params, SLOT_PARAMS_BYTES), &words(params, flags))?;
        let last = reset.generated.last().copied().unwrap_or(0);
        stream.copy_in(at(work.slots_last, 4), &last.to_le_bytes())?;
        let row_bytes = 4 * self.vocabulary;
        if flags & (HAS_PENALTIES | HAS_BANS) != 0 {
            self.mark(reset, has_penalties);
            stream.copy_in(at(work.marks, row_bytes), &self.row)?;
        }
        if flags & HAS_BIAS != 0 {
            self.row.fill(0);
            let places = self.row.as_chunks_mut::<4>().0;
            for &(token, bias) in &params.bias {
                let sum = f32::from_le_bytes(places[token as usize]) + bias;
                places[token as usize] = sum.to_le_bytes();
            }
            stream.copy_in(at(work.bias, row_bytes), &self.row)?;
        }
        self.adapters[slot] = reset.adapter;
        self.reports[slot] = Some(params.logprobs);
        Ok(())
    }

    /// How often each token was seen, plus one; and which are banned.
    fn mark(&mut self, reset: &SlotReset, has_penalties: bool) {
        self.row.fill(0);
        let places = self.row.as_chunks_mut::<4>().0;
        let mut change = |token: u32, by: &dyn Fn(u32) -> u32| {
            let place = &mut places[token as usize];
            *place = by(u32::from_le_bytes(*place)).to_le_bytes();
        };
        if has_penalties {
            reset.prompt.iter().for_each(|&token| change(token, &|mark| mark.max(1)));
            reset.generated.iter().for_each(|&token| change(token, &|mark| mark.max(1) + 1));
        }
        reset.params.banned.iter().for_each(|&token| change(token, &|mark| mark | BANNED));
    }

    /// Fetches what was sampled and puts it in words.
    pub(crate) fn read(
        &self,
        stream: &Stream,
        work: &Work,
        (pinned, copied): (&mut HeapBlock, &OwnCopies),
        inputs: &StepInputs,
        outputs: &mut StepOutputs,
    ) -> Result<(), Fault> {
        let failed = |error: CudaError| Fault(error.to_string());
        let places = inputs.sampled_rows().map(|row| row.place + 1 + row.proposals.len()).max();
        let Some(places) = places else { return stream.wait().map_err(failed) };
        let reports = inputs
            .sampled_rows()
            .any(|row| self.reports[row.slot as usize].is_some_and(|reports| reports.is_some()));
        let stride = work.sampled.places;
        let count = if reports { memory::Sampled::bytes(stride) } else { 4 * places };
        let bytes = &mut pinned.bytes_mut()[..count];
        stream.copy_out(bytes, work.sampled.base).map_err(failed)?;
        copied.count(count);
        let words = pinned.bytes().as_chunks::<4>().0;
        let word = |at: usize| u32::from_le_bytes(words[at]);
        let float = |at: usize| f32::from_le_bytes(words[at]);
        for row in inputs.sampled_rows() {
            let slot = row.slot;
            let constrained = self.matchers[slot as usize].as_ref();
            let most = constrained.map_or(usize::MAX, |constrained| constrained.sampled);
            for place in (row.place..=row.place + row.proposals.len()).take(most) {
                let token = word(place);
                let is_last = place + 1 == row.place.saturating_add(most);
                let failed = constrained.and_then(|it| it.failed.clone()).filter(|_| is_last);
                let sampled = match (failed, token) {
                    (Some(text), _) => Err(SampleError::Constraint(text)),
                    (None, NOT_SAMPLED) => break,
                    (None, NOT_FINITE) => Err(SampleError::NotFinite),
                    (None, _) => Ok(Sampled {
                        token,
                        logprob: self.reports[slot as usize].flatten().map(|count| {
                            let count = (count as usize).min(TOP_MAX).min(self.vocabulary);
                            let (ids, values) = (2 * stride, (2 + TOP_MAX) * stride);
                            let first = place * TOP_MAX;
                            let top =
                                (first..first + count).map(|i| (word(ids + i), float(values + i)));
                            Logprob { chosen: float(stride + place), top: top.collect() }
                        }),
                    }),
                };
                outputs.samples.push(SampleOutput { slot, sampled });
            }
        }
        Ok(())
    }
}
