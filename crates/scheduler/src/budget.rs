//! How much of a step may running streams take, and how long may a sequence go without a row?

use messages::Limits;

use crate::STEPS_IN_FLIGHT_MAX;
use crate::queue::OVERDUE;
use crate::sequence::Sequence;

/// How much of a step prompts may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Tokens of prompts in a step in which streams have rows; none where it is 0.
    pub prompt_tokens_max: u32,
    /// In a step without streams; at least one.
    pub alone_tokens_max: u32,
}

impl Pace {
    /// Prompts are read as fast as the step allows.
    pub const FREE: Self = Self { prompt_tokens_max: u32::MAX, alone_tokens_max: u32::MAX };
}

/// Tokens of a step that streams leave to prompts while one waits: a block, so that a prompt moves
/// by whole blocks, but never more than half the step.
fn prompt_reserve(limits: &Limits) -> u32 {
    limits.block_tokens.min(limits.step_tokens_max / 2)
}

/// Rows of length 1 that one step may have.
pub(crate) fn single_rows_max(limits: &Limits, prompt_waits: bool) -> u32 {
    let reserve = if prompt_waits { prompt_reserve(limits) } else { 0 };
    let rows = limits.step_tokens_max - reserve;
    assert!(rows >= 1 && rows + reserve == limits.step_tokens_max, "a step has room for a stream");
    rows
}

/// Plans without a row after which a running sequence counts as one priority more urgent: few, for
/// it holds blocks, and many enough that priorities mean something.
const AGING_ROWS: u32 = 16;

/// How urgent it is that a running sequence gets a row.
pub(crate) fn urgency(sequence: &Sequence) -> u64 {
    let aged = sequence.plans_waited / AGING_ROWS;
    (sequence.priority as u64 + u64::from(aged)).min(OVERDUE)
}

/// Plans that may pass between two rows of a running sequence (`no_starvation`).
///
/// After `OVERDUE * AGING_ROWS` plans it comes before all others but those that waited longer. Of
/// streams one round serves all; of prompts each plan serves one. A stream that needs a block sits
/// out while others give theirs back, which takes `STEPS_IN_FLIGHT_MAX` plans each.
pub fn wait_plans_max(limits: &Limits) -> u32 {
    let aging = OVERDUE as u32 * AGING_ROWS;
    let round = limits.sequences_max.div_ceil(single_rows_max(limits, true));
    aging + round + (1 + STEPS_IN_FLIGHT_MAX as u32) * limits.sequences_max
}

/// Host memory the queues and tables may take, in bytes, for the line printed at start. A sequence
/// is allocated for its longest answer when it is added, so that steps allocate nothing.
pub fn host_bytes_max(limits: &Limits) -> u64 {
    let sequences = u64::from(limits.waiting_max) + 2 * u64::from(limits.sequences_max);
    let tokens = u64::from(limits.context_tokens_max);
    let blocks = tokens.div_ceil(u64::from(limits.block_tokens));
    // 4 bytes a token id and a block index.
    let sequence = size_of::<Sequence>() as u64 + 4 * tokens + 4 * blocks;
    sequences * sequence + u64::from(limits.block_count) * block_host_bytes(limits)
}

/// In the pool, a block has two list places, a place in a list and a count of holders of 4 bytes,
/// and a step of 8. In the prefix tree it has its tokens, a node of 28 bytes, at most two buckets,
/// a root and its name of 28, two values and a place of 52 for its eviction, four list places among
/// those behind its parent, a mark of 8 and at most two of evicted blocks.
fn block_host_bytes(limits: &Limits) -> u64 {
    24 + 4 * u64::from(limits.block_tokens) + 28 + 8 + 28 + 52 + 16 + 8 + 16
}
