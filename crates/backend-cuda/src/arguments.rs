//! What do kernels take? One struct each, laid out as in its file of `kernels/`.

use crate::gpu::{Address, TensorMap};

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct EmbedArguments {
    pub(crate) header: Address,
    pub(crate) sources: Address,
    pub(crate) slots_last: Address,
    pub(crate) tokens: Address,
    pub(crate) weights: Address,
    pub(crate) output: Address,
    pub(crate) tiles: u32,
    pub(crate) chunks: u32,
    pub(crate) width: u32,
    pub(crate) vocabulary: u32,
    pub(crate) scale: f32,
    pub(crate) pairs: u32,
    pub(crate) factor: f32,
    pub(crate) rows: Address,
    pub(crate) token_rows: Address,
    pub(crate) frequencies: Address,
    pub(crate) turns: Address,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NormArguments {
    pub(crate) input: Address,
    pub(crate) weight: Address,
    pub(crate) output: Address,
    pub(crate) rows: Address,
    pub(crate) width: u32,
    pub(crate) output_stride: u32,
    pub(crate) epsilon: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SelectArguments {
    pub(crate) header: Address,
    pub(crate) picks: Address,
    pub(crate) input: Address,
    pub(crate) output: Address,
    pub(crate) width: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LinearPart {
    pub(crate) weights: Address,
    pub(crate) bias: Address,
    pub(crate) output: Address,
    pub(crate) rows: u32,
    pub(crate) tiles: u32,
    pub(crate) output_stride: u32,
    pub(crate) mode: u32,
}

impl LinearPart {
    pub(crate) const NONE: Self = Self {
        weights: Address::NONE,
        bias: Address::NONE,
        output: Address::NONE,
        rows: 0,
        tiles: 0,
        output_stride: 0,
        mode: 0,
    };
}

/// `LinearMode`.
pub(crate) const STORE: u32 = 0;
pub(crate) const ADD: u32 = 1;
pub(crate) const GATE_SILU: u32 = 2;
pub(crate) const GATE_GELU: u32 = 3;

/// Most parts of one launch: query, key, value and one to spare.
pub(crate) const PARTS_MAX: usize = 4;

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LinearArguments {
    pub(crate) map: TensorMap,
    pub(crate) input: Address,
    pub(crate) tokens: Address,
    pub(crate) input_stride: u32,
    pub(crate) chunks: u32,
    pub(crate) parts: u32,
    pub(crate) input_scale: f32,
    pub(crate) part: [LinearPart; PARTS_MAX],
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RotaryArguments {
    pub(crate) header: Address,
    pub(crate) rows: Address,
    pub(crate) token_rows: Address,
    pub(crate) blocks: Address,
    pub(crate) query: Address,
    pub(crate) key: Address,
    pub(crate) value: Address,
    pub(crate) query_output: Address,
    pub(crate) pages: Address,
    pub(crate) turns: Address,
    pub(crate) heads: u32,
    pub(crate) heads_kv: u32,
    pub(crate) head_dim: u32,
    pub(crate) head_padded: u32,
    pub(crate) dims: u32,
    pub(crate) half_split: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct AttentionArguments {
    pub(crate) header: Address,
    pub(crate) rows: Address,
    pub(crate) blocks: Address,
    pub(crate) tiles: Address,
    pub(crate) items: Address,
    pub(crate) query: Address,
    pub(crate) pages: Address,
    pub(crate) partials: Address,
    pub(crate) counters: Address,
    pub(crate) output: Address,
    pub(crate) heads: u32,
    pub(crate) heads_kv: u32,
    pub(crate) head_dim: u32,
    pub(crate) output_stride: u32,
    pub(crate) window: u32,
    pub(crate) scale: f32,
    pub(crate) soft_cap: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SampleArguments {
    pub(crate) header: Address,
    pub(crate) rows: Address,
    pub(crate) sources: Address,
    pub(crate) params: Address,
    pub(crate) marks: Address,
    pub(crate) bias: Address,
    pub(crate) slots_last: Address,
    pub(crate) logits: Address,
    pub(crate) tokens: Address,
    pub(crate) logprobs: Address,
    pub(crate) top_ids: Address,
    pub(crate) top_logprobs: Address,
    pub(crate) vocabulary: u32,
}

/// What is reported of one place at most; the API's bound on `top_logprobs`.
pub(crate) const TOP_MAX: usize = 20;
/// Instead of a token: an earlier guess of the row was wrong; the logits are no numbers.
pub(crate) const NOT_SAMPLED: u32 = u32::MAX;
pub(crate) const NOT_FINITE: u32 = u32::MAX - 1;
/// `logprobs` of a slot that reports nothing.
pub(crate) const NO_REPORT: u32 = u32::MAX;

pub(crate) const HAS_PENALTIES: u32 = 1;
pub(crate) const HAS_BIAS: u32 = 2;
pub(crate) const HAS_BANS: u32 = 4;
/// A mark's bit of a token that may not be sampled yet.
pub(crate) const BANNED: u32 = 1 << 31;
