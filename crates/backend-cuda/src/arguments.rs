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
    pub(crate) rotaries: u32,
    pub(crate) rows: Address,
    pub(crate) token_rows: Address,
    pub(crate) rotary: [EmbedRotary; ROTARIES_MAX],
    pub(crate) texts: Address,
    pub(crate) by: u32,
    pub(crate) from: u32,
    pub(crate) adds: u32,
}

/// `EmbedBy`.
pub(crate) const BY_TOKEN: u32 = 0;
pub(crate) const BY_POSITION: u32 = 1;
pub(crate) const BY_NOTHING: u32 = 2;
pub(crate) const BY_TEXT: u32 = 3;

/// Most ways of turning heads in one model.
pub(crate) const ROTARIES_MAX: usize = 4;

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct EmbedRotary {
    pub(crate) frequencies: Address,
    pub(crate) turns: Address,
    pub(crate) pairs: u32,
    pub(crate) factor: f32,
}

impl EmbedRotary {
    pub(crate) const NONE: Self =
        Self { frequencies: Address::NONE, turns: Address::NONE, pairs: 0, factor: 0.0 };
}

/// `kernels/embed.received.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ReceivedArguments {
    pub(crate) header: Address,
    pub(crate) sources: Address,
    pub(crate) slots_last: Address,
    pub(crate) tokens: Address,
    pub(crate) rows: Address,
    pub(crate) token_rows: Address,
    pub(crate) rotary: [EmbedRotary; ROTARIES_MAX],
    pub(crate) vocabulary: u32,
    pub(crate) rotaries: u32,
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
pub(crate) struct NormFloatsArguments {
    pub(crate) input: Address,
    pub(crate) weight: Address,
    pub(crate) output: Address,
    pub(crate) rows: Address,
    pub(crate) width: u32,
    pub(crate) epsilon: f32,
    pub(crate) adds: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SoftCapArguments {
    pub(crate) values: Address,
    pub(crate) rows: Address,
    pub(crate) width: u32,
    pub(crate) cap: f32,
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
/// Of experts only.
pub(crate) const GATE_CLAMPED: u32 = 4;

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
    pub(crate) normed: NormedInput,
}

/// Rows that the product norms itself.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NormedInput {
    pub(crate) rows: Address,
    pub(crate) weight: Address,
    pub(crate) width: u32,
    pub(crate) epsilon: f32,
}

impl NormedInput {
    pub(crate) const NONE: Self =
        Self { rows: Address::NONE, weight: Address::NONE, width: 0, epsilon: 0.0 };
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RouteArguments {
    pub(crate) tokens: Address,
    pub(crate) input: Address,
    pub(crate) router: Address,
    pub(crate) router_bias: Address,
    pub(crate) choice_bias: Address,
    pub(crate) weight_scales: Address,
    pub(crate) scores: Address,
    pub(crate) chosen: Address,
    pub(crate) factors: Address,
    pub(crate) entries: Address,
    pub(crate) items: Address,
    pub(crate) item_count: Address,
    pub(crate) counts: Address,
    pub(crate) finished: Address,
    pub(crate) group_finished: Address,
    pub(crate) input_stride: u32,
    pub(crate) width: u32,
    pub(crate) experts: u32,
    pub(crate) used: u32,
    pub(crate) scoring: u32,
    pub(crate) groups: u32,
    pub(crate) groups_used: u32,
    pub(crate) scale: f32,
    pub(crate) sharpness: f32,
    pub(crate) item_tokens: u32,
    pub(crate) capacity: u32,
    pub(crate) normed: NormedInput,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExpertsArguments {
    pub(crate) input: Address,
    pub(crate) weights: Address,
    pub(crate) bias: Address,
    pub(crate) bias_up: Address,
    pub(crate) output: Address,
    pub(crate) items: Address,
    pub(crate) item_count: Address,
    pub(crate) entries: Address,
    pub(crate) tokens: Address,
    pub(crate) chosen: Address,
    pub(crate) factors: Address,
    pub(crate) input_stride: u32,
    pub(crate) output_stride: u32,
    pub(crate) chunks: u32,
    pub(crate) slices: u32,
    pub(crate) tiles: u32,
    pub(crate) tiles_all: u32,
    pub(crate) rows: u32,
    pub(crate) used: u32,
    pub(crate) mode: u32,
    pub(crate) input_scale: f32,
    pub(crate) head_stride: u32,
    pub(crate) is_half: u32,
}

impl ExpertsArguments {
    pub(crate) const NONE: Self = Self {
        input: Address::NONE,
        weights: Address::NONE,
        bias: Address::NONE,
        bias_up: Address::NONE,
        output: Address::NONE,
        items: Address::NONE,
        item_count: Address::NONE,
        entries: Address::NONE,
        tokens: Address::NONE,
        chosen: Address::NONE,
        factors: Address::NONE,
        input_stride: 0,
        output_stride: 0,
        chunks: 0,
        slices: 0,
        tiles: 0,
        tiles_all: 0,
        rows: 0,
        used: 0,
        mode: STORE,
        input_scale: 1.0,
        head_stride: 0,
        is_half: 0,
    };
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct HeadInputsArguments {
    pub(crate) tokens: Address,
    pub(crate) input: Address,
    pub(crate) output: Address,
    pub(crate) row_stride: u32,
    pub(crate) head_stride: u32,
    pub(crate) first: u32,
    pub(crate) width: u32,
    pub(crate) heads: u32,
    pub(crate) padded: u32,
    pub(crate) is_half: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct CopyColumnsArguments {
    pub(crate) tokens: Address,
    pub(crate) input: Address,
    pub(crate) output: Address,
    pub(crate) input_row: u32,
    pub(crate) input_head: u32,
    pub(crate) input_first: u32,
    pub(crate) output_row: u32,
    pub(crate) output_head: u32,
    pub(crate) output_first: u32,
    pub(crate) heads: u32,
    pub(crate) width: u32,
    pub(crate) is_half: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct JoinArguments {
    pub(crate) tokens: Address,
    pub(crate) values: Address,
    pub(crate) factors: Address,
    pub(crate) output: Address,
    pub(crate) used: u32,
    pub(crate) width: u32,
    pub(crate) output_stride: u32,
    pub(crate) adds: u32,
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
    pub(crate) query_norm: Address,
    pub(crate) key_norm: Address,
    pub(crate) heads: u32,
    pub(crate) heads_kv: u32,
    pub(crate) head_dim: u32,
    pub(crate) head_padded: u32,
    pub(crate) dims: u32,
    pub(crate) half_split: u32,
    pub(crate) epsilon: f32,
    pub(crate) growth: f32,
    pub(crate) growth_every: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct AttentionArguments {
    pub(crate) header: Address,
    pub(crate) rows: Address,
    pub(crate) blocks: Address,
    pub(crate) tiles: Address,
    pub(crate) items: Address,
    pub(crate) wide_items: Address,
    pub(crate) query: Address,
    pub(crate) pages: Address,
    pub(crate) partials: Address,
    pub(crate) counters: Address,
    pub(crate) output: Address,
    pub(crate) sinks: Address,
    pub(crate) heads: u32,
    pub(crate) heads_kv: u32,
    pub(crate) heads_stored: u32,
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
    pub(crate) allowed: Address,
    pub(crate) vocabulary: u32,
    pub(crate) allowed_words: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct HalveArguments {
    pub(crate) rows: Address,
    pub(crate) input: Address,
    pub(crate) output: Address,
    pub(crate) width: u32,
    pub(crate) output_stride: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SigmoidGateArguments {
    pub(crate) rows: Address,
    pub(crate) values: Address,
    pub(crate) gate: Address,
    pub(crate) stride: u32,
    pub(crate) width: u32,
    pub(crate) gates: u32,
    pub(crate) is_half: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct GatedNormArguments {
    pub(crate) rows: Address,
    pub(crate) values: Address,
    pub(crate) gate: Address,
    pub(crate) weight: Address,
    pub(crate) heads: u32,
    pub(crate) width: u32,
    pub(crate) epsilon: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct CausalConvArguments {
    pub(crate) header: Address,
    pub(crate) rows: Address,
    pub(crate) carried: Address,
    pub(crate) values: Address,
    pub(crate) weight: Address,
    pub(crate) states: Address,
    pub(crate) guesses: Address,
    pub(crate) state_stride: u32,
    pub(crate) guess_stride: u32,
    pub(crate) guesses_max: u32,
    pub(crate) channels: u32,
    pub(crate) taps: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct GatedDeltaArguments {
    pub(crate) header: Address,
    pub(crate) rows: Address,
    pub(crate) carried: Address,
    pub(crate) mixed: Address,
    pub(crate) decay: Address,
    pub(crate) strength: Address,
    pub(crate) rate: Address,
    pub(crate) bias: Address,
    pub(crate) output: Address,
    pub(crate) states: Address,
    pub(crate) guesses: Address,
    pub(crate) state_stride: u32,
    pub(crate) guess_stride: u32,
    pub(crate) guesses_max: u32,
    pub(crate) heads: u32,
    pub(crate) heads_key: u32,
    pub(crate) key_dim: u32,
    pub(crate) value_dim: u32,
    pub(crate) is_grouped: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ActivateArguments {
    pub(crate) rows: Address,
    pub(crate) values: Address,
    pub(crate) other: Address,
    pub(crate) output: Address,
    pub(crate) width: u32,
    pub(crate) output_stride: u32,
    pub(crate) mode: u32,
    pub(crate) number: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct NormHeadsArguments {
    pub(crate) rows: Address,
    pub(crate) values: Address,
    pub(crate) weight: Address,
    pub(crate) heads: u32,
    pub(crate) width: u32,
    pub(crate) epsilon: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LayerNormArguments {
    pub(crate) rows: Address,
    pub(crate) values: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) width: u32,
    pub(crate) epsilon: f32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RotateArguments {
    pub(crate) tokens: Address,
    pub(crate) values: Address,
    pub(crate) turns: Address,
    pub(crate) heads: u32,
    pub(crate) head_dim: u32,
    pub(crate) pairs: u32,
    pub(crate) half_split: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct PoolArguments {
    pub(crate) header: Address,
    pub(crate) rows: Address,
    pub(crate) carried: Address,
    pub(crate) input: Address,
    pub(crate) kept: Address,
    pub(crate) output: Address,
    pub(crate) input_stride: u32,
    pub(crate) width: u32,
    pub(crate) pooling: u32,
    pub(crate) is_half: u32,
}

#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct LowRankArguments {
    pub(crate) tokens: Address,
    pub(crate) adapters: Address,
    pub(crate) parts: Address,
    pub(crate) input: Address,
    pub(crate) inner: Address,
    pub(crate) output: Address,
    pub(crate) input_stride: u32,
    pub(crate) width: u32,
    pub(crate) output_stride: u32,
    pub(crate) output_width: u32,
    pub(crate) rank_max: u32,
    pub(crate) is_half: u32,
    pub(crate) input_scale: f32,
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
pub(crate) const HAS_GRAMMAR: u32 = 8;
/// A mark's bit of a token that may not be sampled yet.
pub(crate) const BANNED: u32 = 1 << 31;
