//! How does a tape become a program of this backend? Packs weights, sizes buffers, lowers ops.
//!
//! Every matrix goes into one arena; a tensor that is used as a vector (norms, biases) is kept in
//! f32. An op is lowered to a [`Pass`]: the same op with its operands resolved and the form of its
//! input (integers or floats) decided.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use device::{
    Backend, Capacity, Ceilings, HeapPool, HeapSettings, HeapSource, LoadError, MemoryUse, Program,
    Rows as RowKind, Segment, SharedAllocator, Tape, WeightShape, WeightSource,
};
use ops::activate::Curve;
use ops::experts::Experts;
use ops::gated_linear::Activation;
use ops::kv_format::KvFormat;
use ops::linear::Sum;
use ops::low_rank::LowRank;
use ops::paged_attention::Window;
use ops::pool_rows::Pooling;
use ops::rotary::{Pairing, QueryGrowth, Rotary};
use ops::sample_rows::Scratch;
use ops::{
    ActivationId, EmbedBy, HeadColumns, HeadNorms, LinearPart, Op, RotaryId, Target, WeightId,
};

use crate::kernels::experts::ExpertsScratch;
use crate::kernels::paged_attention::{AttentionPlan, AttentionScratch, AttentionShape};
use crate::kernels::rotary::RotaryStyle;
use crate::kv_cache::CacheShape;
use crate::memory::{Arena, LargeBuffer, PageAllocator};
use crate::memory_plan::{self, BufferBytes, BufferNeeds};
use crate::packed::PackedMatrix;
use crate::program::CpuProgram;
use crate::rows::QuantizedRows;
use crate::states::States;
use crate::step::StepPlaces;
use crate::stored::{Packing, Stored};
use crate::{Isa, Team, ceilings, row_ops};

/// Most parts of one linear op: query, key, value and one to spare.
pub(crate) const PARTS_MAX: usize = 4;

/// The processor itself.
pub struct CpuBackend {
    isa: Isa,
    threads: usize,
    kv_format: KvFormat,
    heaps: HeapSource,
}

/// The settings asked for are not possible on this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("threads is {0}, it must be between 1 and 512")]
    Threads(usize),
    #[error("this machine cannot run the instruction set `{asked}`; it can run: {known}")]
    InstructionSet { asked: String, known: String },
}

impl CpuBackend {
    /// `None` takes as many threads as the process may use, and the best instruction set.
    ///
    /// # Errors
    /// [`OpenError`] naming the setting and what is possible.
    pub fn open(threads: Option<usize>, instruction_set: Option<&str>) -> Result<Self, OpenError> {
        let threads = threads.unwrap_or_else(Team::default_threads);
        if threads == 0 || threads > 512 {
            return Err(OpenError::Threads(threads));
        }
        let isa = match instruction_set {
            None => Isa::detect(),
            Some(name) => Isa::forced(name).ok_or_else(|| OpenError::InstructionSet {
                asked: name.chars().take(40).collect(),
                known: Isa::all().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
            })?,
        };
        let allocator = Arc::new(PageAllocator);
        let heaps = HeapSource { settings: HeapSettings::default(), allocator };
        Ok(Self { isa, threads, kv_format: KvFormat::default(), heaps })
    }

    /// The same with all memory of its programs out of heaps like these.
    #[must_use]
    pub fn with_heaps(self, settings: HeapSettings, allocator: Option<SharedAllocator>) -> Self {
        let allocator = allocator.unwrap_or_else(|| Arc::new(PageAllocator));
        Self { heaps: HeapSource { settings, allocator }, ..self }
    }

    /// The same with keys and values kept in `format`.
    #[must_use]
    pub fn with_kv_format(self, format: KvFormat) -> Self {
        Self { kv_format: format, ..self }
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &str {
        "cpu"
    }

    fn follows_grammars(&self) -> bool {
        true
    }

    fn copies_states(&self) -> bool {
        true
    }

    fn load(
        &self,
        tape: Tape,
        weights: &dyn WeightSource,
        capacity: Capacity,
    ) -> Result<Box<dyn Program>, LoadError> {
        let team = Team::new(self.threads)
            .map_err(|error| LoadError(format!("threads cannot be started: {error}")))?;
        row_ops::check(&tape)?;
        let plan = memory_plan::plan(&tape, weights, &capacity, self.threads, self.kv_format)?;
        let pool = HeapPool::open(self.heaps.clone(), plan.room)?;
        let packing = Packing { tape: &tape, source: weights, team: &team, isa: self.isa };
        let stored = packing.pack(&plan, &pool)?;
        let (passes, segments) = lower(&tape, &stored)?;
        let buffers = Buffers::new(&tape, &stored, &capacity, self, &pool)?;
        let states = States::carve(&pool, tape.state, &capacity)?;
        let slots = (0..capacity.slots).map(|_| Mutex::default()).collect();
        // At their largest from the start, so that no step takes memory.
        let scratch = || Mutex::new(Scratch::for_vocabulary(tape.vocabulary as usize));
        let scratch = (0..self.threads).map(|_| scratch()).collect();
        let inner = rank_max(&tape).max(row_ops::scratch_max(&tape));
        let samples_max = 1 + capacity.proposed_tokens_max as usize;
        let sampled = || Mutex::new(Vec::with_capacity(samples_max));
        let sampled = (0..capacity.slots).map(|_| sampled()).collect();
        Ok(Box::new(CpuProgram {
            warming: None,
            isa: self.isa,
            team,
            pool,
            passes,
            stored,
            buffers,
            capacity,
            vocabulary: tape.vocabulary as usize,
            places: StepPlaces::new(&capacity),
            states,
            plan: AttentionPlan::with_room(capacity.step_tokens_max as usize),
            slots,
            scratch,
            sampled,
            adapters: vec![None; capacity.slots as usize],
            inner: (0..self.threads).map(|_| Mutex::new(Vec::with_capacity(inner))).collect(),
            sees_whole: sees_whole(&tape),
            gives: match tape.ops.last() {
                Some(Op::GiveRows { parts }) => Some(parts.clone()),
                _ => None,
            },
            segments,
        }))
    }

    fn memory(
        &self,
        tape: &Tape,
        weights: &dyn WeightSource,
        capacity: &Capacity,
    ) -> Result<MemoryUse, LoadError> {
        row_ops::check(tape)?;
        let plan = memory_plan::plan(tape, weights, capacity, self.threads, self.kv_format)?;
        Ok(plan.memory)
    }

    fn read_bytes_per_second(&self) -> Option<f64> {
        let team = Team::new(self.threads).ok()?;
        let patience = Duration::from_millis(50);
        ceilings::read_bytes_per_second(&team, self.isa, READ_SET_BYTES, patience).ok()
    }

    fn ceilings(&self, read_bytes: usize) -> Option<Ceilings> {
        let team = Team::new(self.threads).ok()?;
        let (team, isa) = (&team, self.isa);
        let patience = Duration::from_millis(500);
        let read = ceilings::read_bytes_per_second(team, isa, read_bytes, 2 * patience).ok()?;
        Some(Ceilings {
            read_set_bytes: read_bytes as u64,
            read_bytes_per_second: read,
            float_ops_per_second: ceilings::float_ops_per_second(team, isa, patience),
            integer_ops_per_second: ceilings::integer_ops_per_second(team, isa, patience),
            bfloat_ops_per_second: ceilings::bfloat_ops_per_second(team, isa, patience),
        })
    }
}

/// As large as what a part of a model reads for a token, and beyond any cache.
const READ_SET_BYTES: usize = 256 << 20;

/// Whether tokens see the whole text.
fn sees_whole(tape: &Tape) -> bool {
    tape.ops.iter().any(|op| match op {
        Op::PagedAttention { shape, .. } => shape.window == Window::Whole,
        _ => false,
    })
}

/// Of all adapters.
fn rank_max(tape: &Tape) -> usize {
    let adapters = tape.ops.iter().flat_map(|op| match op {
        Op::AddLowRank { adapters, .. } => adapters.as_slice(),
        _ => &[],
    });
    let ranks = adapters.flatten().map(|part| tape.weight(part.down).rows as usize);
    ranks.max().unwrap_or(0)
}

/// The mixtures of experts of a tape.
pub(crate) fn mixtures(tape: &Tape) -> impl Iterator<Item = &Experts> {
    tape.ops.iter().filter_map(|op| match op {
        Op::Experts { experts, .. } => Some(experts),
        _ => None,
    })
}

/// Takes the matrices of experts apart.
pub(crate) fn unstack(
    tape: &Tape,
    matrices: &mut BTreeMap<WeightId, PackedMatrix>,
) -> Result<BTreeMap<WeightId, Vec<PackedMatrix>>, LoadError> {
    let mut stacks = BTreeMap::new();
    for (id, count) in stacked(tape) {
        let Some(stack) = matrices.remove(&id) else { continue };
        let matrices = stack.unstack(count as usize);
        stacks.insert(id, matrices.ok_or_else(|| ragged_stack(tape, id))?);
    }
    Ok(stacks)
}

/// Weights that are several matrices, one below the other, and how many.
pub(crate) fn stacked(tape: &Tape) -> impl Iterator<Item = (WeightId, u32)> {
    tape.ops.iter().flat_map(|op| match op {
        Op::Experts { experts, .. } => {
            let count = experts.routing.experts;
            vec![(experts.gate, count), (experts.up, count), (experts.down, count)]
        }
        Op::HeadLinear { heads, weight, .. } => vec![(*weight, *heads)],
        _ => Vec::new(),
    })
}

pub(crate) fn ragged_stack(tape: &Tape, id: WeightId) -> LoadError {
    LoadError(format!(
        "tensor {} has {} rows, of several matrices; this device needs a multiple of 16 in each: \
         use --device reference",
        tape.weight(id).name,
        tape.weight(id).rows
    ))
}

/// Which weights are read as matrices and which as vectors.
pub(crate) fn uses(tape: &Tape) -> (Vec<WeightId>, Vec<WeightId>) {
    let (mut matrices, mut vectors) = (Vec::new(), Vec::new());
    for op in &tape.ops {
        match op {
            Op::Embed { table, .. } | Op::EmbedMore { table, .. } => matrices.push(*table),
            Op::LayerNorm { weight, bias, .. } => vectors.extend([*weight, *bias]),
            Op::RmsNorm { weight, .. } => vectors.push(*weight),
            Op::Linear { parts, .. } => {
                matrices.extend(parts.iter().map(|part| part.weight));
                vectors.extend(parts.iter().filter_map(|part| part.bias));
            }
            Op::GatedLinear { gate, up, .. } => matrices.extend([*gate, *up]),
            Op::Experts { experts, .. } => {
                matrices.extend([experts.gate, experts.up, experts.down]);
                vectors.extend(experts.biases.iter().flatten());
                vectors.extend(experts.choice_bias.iter().chain(&experts.weight_scales));
            }
            Op::HeadLinear { weight, .. } => matrices.push(*weight),
            Op::AddLowRank { adapters, .. } => {
                vectors.extend(adapters.iter().flatten().flat_map(|part| [part.down, part.up]));
            }
            Op::RotaryAppend { head_norms, .. } => {
                vectors.extend(head_norms.iter().flat_map(|norms| [norms.query, norms.key]));
            }
            Op::PagedAttention { sinks, .. } => vectors.extend(sinks),
            Op::CausalConv { weight, .. } | Op::GatedNorm { weight, .. } => vectors.push(*weight),
            Op::GatedDelta { rate, bias, .. } => vectors.extend([*rate, *bias]),
            Op::NormHeads { weight, .. } => vectors.extend(weight),
            Op::Scale { by, .. } => vectors.push(*by),
            Op::SigmoidGate { .. }
            | Op::Rotate { .. }
            | Op::Blend { .. }
            | Op::CopyColumns { .. }
            | Op::SoftCap { .. }
            | Op::SelectRows { .. }
            | Op::SampleRows { .. }
            | Op::PoolRows { .. }
            | Op::GiveRows { .. }
            | Op::ReceiveRows { .. }
            | Op::SendRows { .. }
            | Op::Gate { .. }
            | Op::Activate { .. } => {}
        }
    }
    for list in [&mut matrices, &mut vectors] {
        list.sort_unstable();
        list.dedup();
    }
    (matrices, vectors)
}

pub(crate) fn packed_piece_bytes(
    tape: &Tape,
    id: WeightId,
    view: &WeightShape,
) -> Result<usize, LoadError> {
    let bytes = PackedMatrix::packed_bytes(view.format, view.rows, view.cols);
    bytes.map(Arena::piece_bytes).ok_or_else(|| {
        LoadError(format!(
            "tensor {} ({} x {} {}) cannot be packed: this device needs a number of columns that \
             is a multiple of 32",
            tape.weight(id).name,
            view.rows,
            view.cols,
            view.format.name()
        ))
    })
}

/// An op with everything about it decided that does not change from step to step.
pub(crate) enum Pass {
    Embed {
        table: WeightId,
        scale: f32,
        output: ActivationId,
    },
    EmbedMore {
        table: WeightId,
        by: EmbedBy,
        output: ActivationId,
    },
    LayerNorm {
        values: ActivationId,
        weight: WeightId,
        bias: WeightId,
        epsilon: f32,
    },
    Activate {
        values: ActivationId,
        curve: Curve,
    },
    /// Norm (or none) of rows, to floats, to integers, or both.
    Rows {
        input: ActivationId,
        norm: Option<(WeightId, f32)>,
        output: Option<ActivationId>,
        /// Whether the output is stored or added.
        sum: Sum,
        quantize: bool,
        pick_sampled: bool,
    },
    Linear {
        input: ActivationId,
        forms: Forms,
        parts: Vec<LinearPart>,
    },
    Gated {
        input: ActivationId,
        forms: Forms,
        gate: WeightId,
        up: WeightId,
        activation: Activation,
        output: ActivationId,
    },
    Gate {
        gate: ActivationId,
        up: ActivationId,
        activation: Activation,
        output: ActivationId,
    },
    LowRank {
        input: ActivationId,
        /// By the adapters' numbers.
        adapters: Vec<Option<LowRank>>,
        output: ActivationId,
    },
    HeadLinear {
        heads: u32,
        input: HeadColumns,
        weight: WeightId,
        output: HeadColumns,
    },
    CopyColumns {
        heads: u32,
        input: HeadColumns,
        output: HeadColumns,
    },
    Experts {
        input: ActivationId,
        scores: ActivationId,
        experts: Experts,
        output: ActivationId,
        sum: Sum,
    },
    RotaryAppend {
        layer: u32,
        head_norms: Option<HeadNorms>,
        rotary: Option<RotaryId>,
        growth: Option<QueryGrowth>,
        query: ActivationId,
        key: ActivationId,
        value: ActivationId,
    },
    Attention {
        layer: u32,
        query: ActivationId,
        shape: AttentionShape,
        sinks: Option<WeightId>,
        output: ActivationId,
    },
    /// One of `row_ops.rs`.
    AsItIs(Op),
    SoftCap {
        values: ActivationId,
        cap: f32,
    },
    Sample {
        logits: ActivationId,
    },
    Pool {
        input: ActivationId,
        pooling: Pooling,
        output: ActivationId,
    },
}

/// What is computed at once of a tape that takes turns with another's.
pub(crate) struct PassSegment {
    pub(crate) passes: Range<usize>,
    /// What each token brings from another program.
    pub(crate) received: Vec<ActivationId>,
    /// What another program goes on with; it samples.
    pub(crate) sent: Option<Vec<ActivationId>>,
}

impl PassSegment {
    /// Of all passes, in order; `starts` are their first ones.
    fn all(segments: Vec<Segment>, starts: &[usize], end: usize) -> Vec<Self> {
        let ends = starts.iter().skip(1).copied().chain([end]);
        let ranges = starts.iter().zip(ends).map(|(&start, end)| start..end);
        let of = |(Segment { received, sent, .. }, passes)| Self { passes, received, sent };
        segments.into_iter().zip(ranges).map(of).collect()
    }
}

/// In which forms an input is read.
#[derive(Clone, Copy)]
pub(crate) struct Forms {
    pub(crate) integers: bool,
    pub(crate) floats: bool,
}

/// All passes, and those of each segment.
fn lower(tape: &Tape, stored: &Stored) -> Result<(Vec<Pass>, Vec<PassSegment>), LoadError> {
    let (mut passes, mut starts) = (Vec::new(), Vec::new());
    let segments = tape.segments();
    // The activation whose integers the shared buffer holds.
    let mut quantized: Option<ActivationId> = None;
    for (index, op) in tape.ops.iter().enumerate() {
        if segments.iter().any(|segment| segment.ops.start == index) {
            starts.push(passes.len());
        }
        match op {
            &Op::LayerNorm { values, weight, bias, epsilon } => {
                quantized = None;
                passes.push(Pass::LayerNorm { values, weight, bias, epsilon });
            }
            Op::RmsNorm { .. } => {
                let (pass, integers) = norm(op, &tape.ops[index + 1..], stored);
                quantized = integers;
                passes.push(pass);
            }
            Op::Linear { input, parts } => {
                check_parts(parts)?;
                let forms = forms_of(parts.iter().map(|part| part.weight), stored);
                quantize_if_needed(&mut passes, &mut quantized, *input, forms);
                passes.push(Pass::Linear { input: *input, forms, parts: parts.clone() });
            }
            &Op::GatedLinear { input, gate, up, activation, output } => {
                let forms = forms_of([gate, up].into_iter(), stored);
                quantize_if_needed(&mut passes, &mut quantized, input, forms);
                passes.push(Pass::Gated { input, forms, gate, up, activation, output });
            }
            &Op::Experts { input, scores, experts, target } => {
                quantized = None;
                let (output, sum) = (target.buffer(), sum_of(target));
                passes.push(Pass::Experts { input, scores, experts, output, sum });
            }
            &Op::HeadLinear { heads, input, weight, output } => {
                quantized = None;
                passes.push(Pass::HeadLinear { heads, input, weight, output });
            }
            &Op::PagedAttention { layer, query, ref shape, sinks, output } => {
                let shape = attention_shape(shape)?;
                passes.push(Pass::Attention { layer, query, shape, sinks, output });
            }
            Op::Embed { .. }
            | Op::EmbedMore { .. }
            | Op::Activate { .. }
            | Op::Gate { .. }
            | Op::AddLowRank { .. }
            | Op::CopyColumns { .. }
            | Op::RotaryAppend { .. }
            | Op::CausalConv { .. }
            | Op::GatedDelta { .. }
            | Op::GatedNorm { .. }
            | Op::SigmoidGate { .. }
            | Op::NormHeads { .. }
            | Op::Rotate { .. }
            | Op::Blend { .. }
            | Op::Scale { .. }
            | Op::SoftCap { .. }
            | Op::SelectRows { .. }
            | Op::SampleRows { .. }
            | Op::PoolRows { .. }
            | Op::GiveRows { .. }
            | Op::ReceiveRows { .. }
            | Op::SendRows { .. } => passes.extend(as_it_is(op)),
        }
    }
    let segments = PassSegment::all(segments, &starts, passes.len());
    Ok((passes, segments))
}

/// A norm in the forms that those behind it read, and the activation that it leaves as integers.
fn norm(op: &Op, behind: &[Op], stored: &Stored) -> (Pass, Option<ActivationId>) {
    let &Op::RmsNorm { input, weight, epsilon, target } = op else {
        unreachable!("invariant: the caller matched it")
    };
    let output = target.buffer();
    let forms = match target {
        Target::Store(_) => forms_wanted(behind, output, stored),
        Target::AddTo(_) => Forms { integers: false, floats: true },
    };
    let pass = Pass::Rows {
        input,
        norm: Some((weight, epsilon)),
        output: forms.floats.then_some(output),
        sum: sum_of(target),
        quantize: forms.integers,
        pick_sampled: false,
    };
    (pass, forms.integers.then_some(output))
}

fn check_parts(parts: &[LinearPart]) -> Result<(), LoadError> {
    if parts.len() <= PARTS_MAX {
        return Ok(());
    }
    let text = format!("a linear op of {} parts, at most {PARTS_MAX}", parts.len());
    Err(LoadError(text))
}

/// The pass of an op about which nothing is to be decided.
fn as_it_is(op: &Op) -> Option<Pass> {
    Some(match op {
        &Op::Embed { table, scale, output } => Pass::Embed { table, scale, output },
        &Op::EmbedMore { table, by, output } => Pass::EmbedMore { table, by, output },
        &Op::Activate { values, curve } => Pass::Activate { values, curve },
        &Op::Gate { gate, up, activation, output } => Pass::Gate { gate, up, activation, output },
        Op::AddLowRank { input, adapters, output } => {
            Pass::LowRank { input: *input, adapters: adapters.clone(), output: *output }
        }
        &Op::CopyColumns { heads, input, output } => Pass::CopyColumns { heads, input, output },
        &Op::RotaryAppend { layer, head_norms, rotary, growth, query, key, value } => {
            Pass::RotaryAppend { layer, head_norms, rotary, growth, query, key, value }
        }
        Op::CausalConv { .. }
        | Op::GatedDelta { .. }
        | Op::GatedNorm { .. }
        | Op::SigmoidGate { .. }
        | Op::NormHeads { .. }
        | Op::Rotate { .. }
        | Op::Blend { .. }
        | Op::Scale { .. } => Pass::AsItIs(op.clone()),
        &Op::SoftCap { values, cap } => Pass::SoftCap { values, cap },
        &Op::SelectRows { input, output } => picked(input, output),
        Op::SampleRows { logits } => Pass::Sample { logits: *logits },
        &Op::PoolRows { input, pooling, output } => Pass::Pool { input, pooling, output },
        // Rows are written before the passes of a step, and read behind them.
        Op::GiveRows { .. } | Op::ReceiveRows { .. } | Op::SendRows { .. } => return None,
        Op::LayerNorm { .. }
        | Op::RmsNorm { .. }
        | Op::Linear { .. }
        | Op::GatedLinear { .. }
        | Op::Experts { .. }
        | Op::HeadLinear { .. }
        | Op::PagedAttention { .. } => unreachable!("lowered by itself"),
    })
}

/// The rows that are sampled.
fn picked(input: ActivationId, output: ActivationId) -> Pass {
    let (norm, output, sum) = (None, Some(output), Sum::Store);
    Pass::Rows { input, norm, output, sum, quantize: false, pick_sampled: true }
}

fn quantize_if_needed(
    passes: &mut Vec<Pass>,
    quantized: &mut Option<ActivationId>,
    input: ActivationId,
    forms: Forms,
) {
    if forms.integers && *quantized != Some(input) {
        let (output, norm, sum, pick_sampled) = (None, None, Sum::Store, false);
        passes.push(Pass::Rows { input, norm, output, sum, quantize: true, pick_sampled });
    }
    // Its buffer may be written again before the next reader: integers are good for one op.
    *quantized = None;
}

fn forms_of(weights: impl Iterator<Item = WeightId>, stored: &Stored) -> Forms {
    let mut forms = Forms { integers: false, floats: false };
    for weight in weights {
        if stored.matrix(weight).wants_quantized() {
            forms.integers = true;
        } else {
            forms.floats = true;
        }
    }
    forms
}

/// The forms in which a norm is to give its output, by the ops that follow: what the next op reads,
/// and floats where others read it too.
fn forms_wanted(ops: &[Op], buffer: ActivationId, stored: &Stored) -> Forms {
    let wanted = ops.first().and_then(|next| reader_forms(next, buffer, stored));
    let mut forms = wanted.unwrap_or(Forms { integers: false, floats: true });
    for op in ops.iter().skip(1) {
        if matches!(op, Op::RmsNorm { target: Target::Store(target), .. } if *target == buffer) {
            break;
        }
        forms.floats |= reader_forms(op, buffer, stored).is_some();
    }
    forms
}

fn reader_forms(op: &Op, buffer: ActivationId, stored: &Stored) -> Option<Forms> {
    match op {
        Op::Linear { input, parts } if *input == buffer => {
            Some(forms_of(parts.iter().map(|part| part.weight), stored))
        }
        Op::GatedLinear { input, gate, up, .. } if *input == buffer => {
            Some(forms_of([*gate, *up].into_iter(), stored))
        }
        Op::Experts { input, .. } | Op::AddLowRank { input, .. } if *input == buffer => {
            Some(Forms { integers: false, floats: true })
        }
        Op::SendRows { parts } if parts.contains(&buffer) => {
            Some(Forms { integers: false, floats: true })
        }
        _ => None,
    }
}

pub(crate) fn attention_shape(
    shape: &ops::paged_attention::AttentionShape,
) -> Result<AttentionShape, LoadError> {
    if !shape.head_dim.is_multiple_of(16) {
        return Err(LoadError(format!(
            "heads have {} elements; this device needs a multiple of 16: use --device reference",
            shape.head_dim
        )));
    }
    Ok(AttentionShape {
        heads: shape.heads as usize,
        kv_heads: shape.heads_kv as usize,
        head_dim: shape.head_dim as usize,
        scale: shape.scale,
        window: match shape.window {
            Window::Full | Window::Whole => None,
            Window::Sliding(tokens) => Some(tokens),
        },
        soft_cap: shape.soft_cap,
    })
}

/// Everything a step writes, sized for the largest one.
pub(crate) struct Buffers {
    activations: Vec<ActivationBuffer>,
    pub(crate) quantized: QuantizedRows,
    /// Of each rotation of the tape.
    pub(crate) turns: Vec<Turns>,
    /// Shared with whoever copies blocks.
    pub(crate) cache: Arc<LargeBuffer>,
    pub(crate) cache_shape: CacheShape,
    pub(crate) attention: AttentionScratch,
    pub(crate) experts: Option<ExpertsScratch>,
    pub(crate) attention_shape: AttentionShape,
    /// `[slots, width]`, where texts are pooled.
    pub(crate) pooled: Option<LargeBuffer>,
    pub(crate) bytes: u64,
}

/// One rotation: what it turns by, and the step's table of turns.
pub(crate) struct Turns {
    pub(crate) frequencies: Vec<f32>,
    pub(crate) factor: f32,
    pub(crate) style: RotaryStyle,
    pub(crate) cosines: LargeBuffer,
    pub(crate) sines: LargeBuffer,
}

impl Turns {
    fn carve(rotary: &Rotary, bytes: usize, pool: &HeapPool) -> Result<Self, LoadError> {
        Ok(Self {
            frequencies: rotary.inverse_frequencies(),
            factor: rotary.attention_factor(),
            style: match rotary.pairing {
                Pairing::Adjacent => RotaryStyle::AdjacentPair,
                Pairing::HalfSplit => RotaryStyle::HalfSplit,
            },
            cosines: LargeBuffer::carve(pool, "activations", bytes)?,
            sines: LargeBuffer::carve(pool, "activations", bytes)?,
        })
    }
}

pub(crate) struct ActivationBuffer {
    pub(crate) memory: LargeBuffer,
    pub(crate) width: usize,
    pub(crate) rows: RowKind,
}

impl Buffers {
    fn new(
        tape: &Tape,
        stored: &Stored,
        capacity: &Capacity,
        backend: &CpuBackend,
        pool: &HeapPool,
    ) -> Result<Self, LoadError> {
        let carve = |what, bytes| LargeBuffer::carve(pool, what, bytes);
        let attention_shape = memory_plan::attention_shape_of(tape)?;
        let width_max = stored.matrices.values().map(PackedMatrix::cols).max().unwrap_or(0);
        let needs = BufferNeeds {
            members: backend.threads,
            width_max,
            attention: attention_shape,
            kv_format: backend.kv_format,
        };
        let sizes = BufferBytes::new(tape, capacity, &needs);
        let mut activations = Vec::new();
        for (spec, &size) in tape.activations.iter().zip(&sizes.activations) {
            let memory = carve("activations", size)?;
            let (width, rows) = (spec.width as usize, spec.rows);
            activations.push(ActivationBuffer { memory, width, rows });
        }
        let turns = tape.rotaries.iter().zip(&sizes.turns);
        let turns = turns.map(|(rotary, &bytes)| Turns::carve(rotary, bytes, pool));
        let tokens = capacity.step_tokens_max as usize;
        let experts = memory_plan::experts_sizes(tape);
        let experts = experts.map(|sizes| ExpertsScratch::carve(pool, sizes, tokens));
        let context = capacity.block_count as usize * capacity.block_tokens as usize;
        Ok(Self {
            activations,
            quantized: QuantizedRows::carve(pool, tokens, width_max)?,
            turns: turns.collect::<Result<_, _>>()?,
            cache: Arc::new(carve("KV cache", sizes.cache)?),
            cache_shape: memory_plan::cache_shape(tape, capacity, backend.kv_format),
            experts: experts.transpose()?,
            pooled: (sizes.pooled > 0).then(|| carve("activations", sizes.pooled)).transpose()?,
            attention: AttentionScratch::carve(pool, backend.threads, &attention_shape, context)?,
            attention_shape,
            bytes: sizes.working(),
        })
    }

    /// What steps write, in the order in which they will.
    pub(crate) fn written(&self) -> impl Iterator<Item = &LargeBuffer> {
        let activations = self.activations.iter().map(|buffer| &buffer.memory);
        let turns = self.turns.iter().flat_map(|turns| [&turns.cosines, &turns.sines]);
        let rest = self.quantized.buffers().into_iter().chain(self.attention.buffers());
        let experts = self.experts.iter().flat_map(ExpertsScratch::buffers);
        activations.chain(turns).chain(rest).chain(experts)
    }

    pub(crate) fn activation(&self, id: ActivationId) -> &ActivationBuffer {
        &self.activations[id.0 as usize]
    }
}

/// Where a product goes, as the kernels name it.
pub(crate) fn sum_of(target: Target) -> Sum {
    if is_added(target) { Sum::Add } else { Sum::Store }
}

pub(crate) fn is_added(target: Target) -> bool {
    matches!(target, Target::AddTo(_))
}
