//! Which operations are there? A closed list: an operation is data, and a backend matches on it.

use crate::activate::Curve;
use crate::experts::Experts;
use crate::gated_delta::DeltaShape;
use crate::gated_linear::Activation;
use crate::low_rank::LowRank;
use crate::paged_attention::AttentionShape;
use crate::pool_rows::Pooling;
use crate::rotary::QueryGrowth;

/// A buffer of one row a token (or a sampled row), named in the tape's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActivationId(pub u16);

/// A weight tensor, named in the tape's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub u32);

/// A rotation, named in the tape's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RotaryId(pub u16);

/// One command of a tape.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `output[t] = scale * table[token[t]]`. See [`crate::embed`].
    Embed { table: WeightId, scale: f32, output: ActivationId },
    /// `output[t] += table[row of t]`. See [`EmbedBy`].
    EmbedMore { table: WeightId, by: EmbedBy, output: ActivationId },
    /// Norms rows in place. See [`crate::layer_norm`].
    LayerNorm { values: ActivationId, weight: WeightId, bias: WeightId, epsilon: f32 },
    /// `values = curve(values)`. See [`crate::activate`].
    Activate { values: ActivationId, curve: Curve },
    /// `input / rms(input) * weight`, stored or added. See [`crate::rms_norm`].
    RmsNorm { input: ActivationId, weight: WeightId, epsilon: f32, target: Target },
    /// Several products of one input: `output = input W^T + bias`. See [`crate::linear`].
    Linear { input: ActivationId, parts: Vec<LinearPart> },
    /// `output = activation(input G^T) * (input U^T)`. See [`crate::gated_linear`].
    GatedLinear {
        input: ActivationId,
        gate: WeightId,
        up: WeightId,
        activation: Activation,
        output: ActivationId,
    },
    /// `output = activation(gate) * up`, of finished products. See [`crate::gated_linear`].
    Gate { gate: ActivationId, up: ActivationId, activation: Activation, output: ActivationId },
    /// Adds what a token's adapter adds to a product of `input`; by the adapters' numbers. See
    /// [`crate::low_rank`].
    AddLowRank { input: ActivationId, adapters: Vec<Option<LowRank>>, output: ActivationId },
    /// A mixture of experts, chosen by a router's `[tokens, experts]` scores. See
    /// [`crate::experts`].
    Experts { input: ActivationId, scores: ActivationId, experts: Experts, target: Target },
    /// Columns of each head by a matrix of its own. See [`crate::head_linear`].
    HeadLinear { heads: u32, input: HeadColumns, weight: WeightId, output: HeadColumns },
    /// Columns of each head to another place. See [`crate::copy_columns`].
    CopyColumns { heads: u32, input: HeadColumns, output: HeadColumns },
    /// Norms the heads of queries and keys in place (where the model has such norms), rotates them
    /// by their positions (where the layer has positions), lets queries grow (where the model
    /// does), then writes keys and values to the layer's pages. See [`crate::rotary`].
    RotaryAppend {
        layer: u32,
        head_norms: Option<HeadNorms>,
        rotary: Option<RotaryId>,
        growth: Option<QueryGrowth>,
        query: ActivationId,
        key: ActivationId,
        value: ActivationId,
    },
    /// Each query over its sequence's pages. See [`crate::paged_attention`].
    PagedAttention {
        layer: u32,
        query: ActivationId,
        shape: AttentionShape,
        /// `[heads]`
        sinks: Option<WeightId>,
        output: ActivationId,
    },
    /// Causal convolution and SiLU in place, `weight: [channels, taps]`. See
    /// [`crate::causal_conv`].
    CausalConv { values: ActivationId, weight: WeightId, taps: u32, carried: Carried },
    /// Each head's matrix fades, is corrected and read. See [`crate::gated_delta`].
    GatedDelta {
        shape: DeltaShape,
        inputs: DeltaInputs,
        /// `[heads]` each, see [`crate::gated_delta::Gates`].
        rate: WeightId,
        bias: WeightId,
        carried: Carried,
        output: ActivationId,
    },
    /// Norms heads in place, times SiLU of a gate. See [`crate::gated_norm`].
    GatedNorm { values: ActivationId, weight: WeightId, epsilon: f32, gate: ActivationId },
    /// `values = values * sigmoid(gate)`. See [`crate::sigmoid_gate`].
    SigmoidGate { values: ActivationId, gate: ActivationId },
    /// Norms heads in place, with a weight or without. See [`crate::norm_heads`].
    NormHeads { values: ActivationId, width: u32, weight: Option<WeightId>, epsilon: f32 },
    /// Turns heads by their positions in place. See [`crate::rotary`].
    Rotate { values: ActivationId, head_dim: u32, rotary: RotaryId },
    /// `values = scale * (values + other)`. See [`crate::blend`].
    Blend { values: ActivationId, other: ActivationId, scale: f32 },
    /// `values = by * values`, `by: [1]`. See [`crate::blend`].
    Scale { values: ActivationId, by: WeightId },
    /// `values = cap * tanh(values / cap)`. See [`crate::soft_cap`].
    SoftCap { values: ActivationId, cap: f32 },
    /// Keeps the rows that are sampled. See [`crate::select_rows`].
    SelectRows { input: ActivationId, output: ActivationId },
    /// Logits to the next token of each slot. See [`crate::sample_rows`].
    SampleRows { logits: ActivationId },
    /// Each text's rows to the one that stands for it, where the text ends. See
    /// [`crate::pool_rows`].
    PoolRows { input: ActivationId, pooling: Pooling, output: ActivationId },
    /// Hands out the rows of texts that end, as they are: a vector each, of these side by side.
    GiveRows { parts: Vec<ActivationId> },
    /// Goes on where another tape ended or paused: its tokens' rows come from there, one buffer
    /// after the other.
    ReceiveRows { parts: Vec<ActivationId> },
    /// Ends or pauses a tape that another goes on from: hands out its tokens' rows, as they are
    /// received.
    SendRows { parts: Vec<ActivationId> },
}

/// Which row of a table is added to a token's embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EmbedBy {
    /// That of its position, counted from this row on.
    Position { from: u32 },
    /// The first: all tokens are of the first of the texts that a model tells apart.
    First,
    /// The second behind the first of these tokens in its row, which ends the first text; the
    /// first before.
    Text { separator: u32 },
}

impl EmbedBy {
    /// `before` are the tokens of the row before this one.
    pub fn row(self, position: u32, before: &[u32]) -> usize {
        match self {
            Self::Text { separator } => usize::from(before.contains(&separator)),
            Self::Position { from } => (from + position) as usize,
            Self::First => 0,
        }
    }
}

/// One weight of a [`Op::Linear`] and what becomes of its product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearPart {
    /// `[output width, input width]`
    pub weight: WeightId,
    /// `[output width]`
    pub bias: Option<WeightId>,
    pub target: Target,
}

/// What a token gives to a gated delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaInputs {
    /// Queries, keys and values, `[mixed width]`.
    pub mixed: ActivationId,
    /// `[heads]` each.
    pub decay: ActivationId,
    pub strength: ActivationId,
}

/// Where an op keeps what a sequence carries from token to token: its first element of a slot's
/// state, and of what is kept of each guess until it is known to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    pub state: u32,
    pub guess: u32,
}

/// Some columns of each head of a buffer: head `h` has those from `h * stride + first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadColumns {
    pub buffer: ActivationId,
    pub stride: u32,
    pub first: u32,
    pub width: u32,
}

impl HeadColumns {
    pub fn range(&self, head: u32) -> std::ops::Range<usize> {
        let start = (head * self.stride + self.first) as usize;
        start..start + self.width as usize
    }
}

/// RMS norms of each head alone: `[head_dim]` each. Qwen 3, <https://arxiv.org/abs/2505.09388>;
/// Gemma 3, <https://arxiv.org/abs/2503.19786>.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadNorms {
    pub query: WeightId,
    pub key: WeightId,
    pub epsilon: f32,
}

/// Where a product goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Store(ActivationId),
    /// Added to what is there: the residual stream.
    AddTo(ActivationId),
}

impl Target {
    pub fn buffer(self) -> ActivationId {
        match self {
            Self::Store(buffer) | Self::AddTo(buffer) => buffer,
        }
    }
}

impl Op {
    /// The op's name in errors and traces.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::EmbedMore { .. } => "embed_more",
            Self::LayerNorm { .. } => "layer_norm",
            Self::Activate { .. } => "activate",
            Self::RmsNorm { .. } => "rms_norm",
            Self::Linear { .. } => "linear",
            Self::GatedLinear { .. } => "gated_linear",
            Self::Gate { .. } => "gate",
            Self::AddLowRank { .. } => "add_low_rank",
            Self::Experts { .. } => "experts",
            Self::HeadLinear { .. } => "head_linear",
            Self::CopyColumns { .. } => "copy_columns",
            Self::RotaryAppend { .. } => "rotary_append",
            Self::PagedAttention { .. } => "paged_attention",
            Self::NormHeads { .. } => "norm_heads",
            Self::Rotate { .. } => "rotate",
            Self::Blend { .. } => "blend",
            Self::Scale { .. } => "scale",
            Self::CausalConv { .. } => "causal_conv",
            Self::GatedDelta { .. } => "gated_delta",
            Self::GatedNorm { .. } => "gated_norm",
            Self::SigmoidGate { .. } => "sigmoid_gate",
            Self::SoftCap { .. } => "soft_cap",
            Self::SelectRows { .. } => "select_rows",
            Self::SampleRows { .. } => "sample_rows",
            Self::PoolRows { .. } => "pool_rows",
            Self::GiveRows { .. } => "give_rows",
            Self::ReceiveRows { .. } => "receive_rows",
            Self::SendRows { .. } => "send_rows",
        }
    }
}
