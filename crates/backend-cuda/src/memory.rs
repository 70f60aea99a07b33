//! Where does everything lie on the device? In a buffer each: weights, keys and values, the rest.
//!
//! The sizes are worked out before anything is taken, by the same list that hands out the buffers.

use device::{BlitSettings, Capacity, HeapPool, LoadError, MemoryUse, Tape};
use ops::kv_format::KvFormat;

use crate::adapters::PART_BYTES;
use crate::arguments::TOP_MAX;
use crate::experts::ExpertsWork;
use crate::gpu::Address;
use crate::kernels::TOKENS_PADDED;
use crate::lowering::{Kept, Pass, PassSegment, Plan, rows_max};
use crate::states::States;
use crate::step_inputs::{PARTIAL_STATES_MAX, StepLayout};
use crate::uploads::Uploads;

/// Positions of a page: one block of the scheduler.
pub(crate) const PAGE_TOKENS: usize = 32;
/// Bytes of a slot's sampling parameters: `SlotParams` of `kernels/sample_rows.cu`.
pub(crate) const SLOT_PARAMS_BYTES: usize = 48;

/// Steps up to this many tokens are recorded launches.
pub(crate) const RECORDED_TOKENS_MAX: usize = 64;

/// Everything a step writes, but for keys and values.
#[derive(Clone)]
pub(crate) struct Work {
    /// In the order of the tape's table.
    pub(crate) activations: Vec<Address>,
    pub(crate) query_halves: Address,
    /// Cosine and sine of each pair of a head, for each token; one for each of the tape's rotaries.
    pub(crate) turns: Vec<Address>,
    /// The step's table, as recorded launches and as others find it.
    pub(crate) small_step: Address,
    pub(crate) large_step: Address,
    pub(crate) tokens: Address,
    pub(crate) experts: Option<ExpertsWork>,
    /// What products of heads read.
    pub(crate) head_inputs: Address,
    /// What adapters' first matrices give: `[tokens, rank]`.
    pub(crate) low_rank: Address,
    /// What pooling keeps of slots between steps.
    pub(crate) pooled: Address,
    pub(crate) partials: Address,
    pub(crate) counters: Address,
    pub(crate) slots_last: Address,
    pub(crate) slot_params: Address,
    pub(crate) marks: Address,
    pub(crate) bias: Address,
    /// What grammars allow, a bit a token.
    pub(crate) allowed: Address,
    /// A header and rows to sample from once more, as in the step's table.
    pub(crate) again: Address,
    pub(crate) sampled: Sampled,
}

/// What sampling gives back, in one piece.
#[derive(Clone, Copy)]
pub(crate) struct Sampled {
    pub(crate) base: Address,
    pub(crate) places: usize,
}

impl Sampled {
    pub(crate) fn tokens(&self) -> Address {
        self.base
    }

    pub(crate) fn logprobs(&self) -> Address {
        self.base.plus(4 * self.places)
    }

    pub(crate) fn top_ids(&self) -> Address {
        self.base.plus(8 * self.places)
    }

    pub(crate) fn top_logprobs(&self) -> Address {
        self.base.plus((8 + 4 * TOP_MAX) * self.places)
    }

    pub(crate) fn bytes(places: usize) -> usize {
        (8 + 8 * TOP_MAX) * places
    }
}

pub(crate) struct Layouts {
    pub(crate) small: StepLayout,
    pub(crate) large: StepLayout,
}

impl Layouts {
    pub(crate) fn new(capacity: &Capacity) -> Self {
        let most = capacity.step_tokens_max as usize;
        let small = most.min(RECORDED_TOKENS_MAX);
        Self {
            small: StepLayout::new(capacity, small, false),
            large: StepLayout::new(capacity, most, true),
        }
    }
}

/// Gives out the pieces of [`Work`] in one order, from a heap or only to count them.
pub(crate) fn lay_out(
    tape: &Tape,
    plan: &Plan,
    capacity: &Capacity,
    layouts: &Layouts,
    take: &mut dyn FnMut(usize) -> Result<Address, LoadError>,
) -> Result<Work, LoadError> {
    let tokens = capacity.step_tokens_max as usize;
    let slots = capacity.slots as usize;
    let places = capacity.sampled_tokens_max() as usize;
    let vocabulary = tape.vocabulary as usize;
    let logits = plan.passes.iter().find_map(|pass| match pass {
        Pass::Sample { logits } => Some(logits.0 as usize),
        _ => None,
    });
    let mut activations = Vec::new();
    for (index, spec) in tape.activations.iter().enumerate() {
        let id = ops::ActivationId(index as u16);
        let rows = rows_max(spec.rows, capacity);
        let bytes = match plan.kept[index] {
            // Logits are kept twice: as they were, where a changed row is reported on.
            Kept::Float if logits == Some(index) => 2 * 4 * rows * plan.stride(tape, id),
            Kept::Float => 4 * rows * plan.stride(tape, id),
            // Products read whole tiles of tokens.
            Kept::Half | Kept::GatedHalf => {
                2 * rows.next_multiple_of(TOKENS_PADDED as usize) * plan.stride(tape, id)
            }
        };
        activations.push(take(bytes)?);
    }
    let state_bytes = 4 * (plan.head_padded as usize + 2);
    let heads_kv = plan.attention.heads_kv as usize;
    Ok(Work {
        activations,
        query_halves: take(2 * tokens * (plan.heads * plan.head_padded) as usize)?,
        turns: tape
            .rotaries
            .iter()
            .map(|rotary| take(8 * tokens * (rotary.dims as usize / 2).max(1)))
            .collect::<Result<_, _>>()?,
        small_step: take(4 * layouts.small.end)?,
        large_step: take(4 * layouts.large.end)?,
        tokens: take(4 * tokens)?,
        experts: plan
            .experts
            .map(|sizes| ExpertsWork::lay_out(&sizes, tokens, take))
            .transpose()?,
        head_inputs: take(2 * tokens * plan.head_inputs as usize)?,
        low_rank: take(4 * tokens * plan.rank_max as usize)?,
        pooled: take(4 * slots * plan.pooled as usize)?,
        partials: take(PARTIAL_STATES_MAX * state_bytes)?,
        counters: take(4 * tokens * heads_kv)?,
        slots_last: take(4 * slots)?,
        slot_params: take(SLOT_PARAMS_BYTES * slots)?,
        marks: take(4 * slots * vocabulary)?,
        bias: take(4 * slots * vocabulary)?,
        allowed: take(4 * slots * vocabulary.div_ceil(32))?,
        again: take(4 * 8 * (1 + slots))?,
        sampled: Sampled { base: take(Sampled::bytes(places))?, places },
    })
}

/// Bytes of one layer's keys and values of one block.
pub(crate) fn page_bytes(plan: &Plan) -> usize {
    let (heads, padded) = (plan.heads_kv as usize, plan.head_padded as usize);
    match plan.kv_format {
        // Codes, then a scale for each position's.
        KvFormat::Int8 => heads * 2 * PAGE_TOKENS * (padded + 4),
        KvFormat::F16 | KvFormat::Bf16 | KvFormat::Int16 => 2 * 2 * PAGE_TOKENS * heads * padded,
    }
}

/// Of one layer's keys and values, of all blocks.
pub(crate) fn layer_bytes(plan: &Plan, capacity: &Capacity) -> usize {
    HeapPool::room(capacity.block_count as usize * page_bytes(plan))
}

/// Of keys and values, and of what sequences carry besides.
pub(crate) fn kv_bytes(tape: &Tape, plan: &Plan, capacity: &Capacity) -> usize {
    tape.layers as usize * layer_bytes(plan, capacity) + States::room(tape.state, capacity)
}

/// Bytes of the weights' heap; with them, the frequencies of rotary positions.
pub(crate) fn weights_bytes(tape: &Tape, plan: &Plan) -> usize {
    let matrices: usize = plan.matrices.values().map(|shape| HeapPool::room(shape.bytes())).sum();
    let vectors: usize =
        plan.vectors.values().map(|&width| HeapPool::room(4 * width as usize)).sum();
    let frequencies: usize =
        tape.rotaries.iter().map(|rotary| HeapPool::room(2 * rotary.dims as usize)).sum();
    let tables: usize =
        plan.low_ranks().map(|pass| HeapPool::room(PART_BYTES * pass.adapters.len())).sum();
    matrices + vectors + frequencies + tables
}

/// What [`lay_out`] takes in all.
pub(crate) fn work_bytes(tape: &Tape, plan: &Plan, capacity: &Capacity) -> usize {
    let mut bytes = 0;
    let mut count = |piece| {
        bytes += HeapPool::room(piece);
        Ok(Address::NONE)
    };
    let laid = lay_out(tape, plan, capacity, &Layouts::new(capacity), &mut count);
    assert!(laid.is_ok(), "counting takes nothing");
    bytes
}

/// What a step is told and what it gives back, in the process.
pub(crate) fn told_bytes(tape: &Tape, plan: &Plan, capacity: &Capacity) -> [usize; 2] {
    let Layouts { small, large } = Layouts::new(capacity);
    let places = capacity.sampled_tokens_max() as usize;
    let width = |id: &ops::ActivationId| tape.activation(*id).width as usize;
    let given: usize = plan.given.iter().map(width).sum();
    let sent = |segment: &PassSegment| -> usize {
        segment.sent.iter().flatten().map(|&id| row_bytes(tape, plan, id)).sum()
    };
    let sent = plan.segments.iter().map(sent).max().unwrap_or(0);
    let sent = sent * capacity.step_tokens_max as usize;
    [
        4 * small.end.max(large.end) + received_bytes(tape, plan, capacity),
        Sampled::bytes(places).max(4 * places * given).max(sent),
    ]
}

/// Of the rows that another device computed, in the process.
pub(crate) fn received_bytes(tape: &Tape, plan: &Plan, capacity: &Capacity) -> usize {
    let received = |segment: &PassSegment| -> usize {
        segment.received.iter().map(|&id| row_bytes(tape, plan, id)).sum()
    };
    let most = plan.segments.iter().map(received).max().unwrap_or(0);
    capacity.step_tokens_max as usize * most
}

/// Of a token's row of an activation, as it is kept.
pub(crate) fn row_bytes(tape: &Tape, plan: &Plan, id: ops::ActivationId) -> usize {
    let element = if plan.kept[id.0 as usize] == Kept::Float { 4 } else { 2 };
    element * plan.stride(tape, id)
}

pub(crate) fn memory_use(
    tape: &Tape,
    plan: &Plan,
    capacity: &Capacity,
    copies: &BlitSettings,
) -> MemoryUse {
    MemoryUse {
        weights_bytes: weights_bytes(tape, plan) as u64,
        kv_bytes: kv_bytes(tape, plan, capacity) as u64,
        activations_bytes: work_bytes(tape, plan, capacity) as u64,
        // In the process, as are the few matrices that are packed and not copied yet.
        staging_bytes: Uploads::staging_bytes(copies) as u64,
        host_bytes: 0,
    }
}
