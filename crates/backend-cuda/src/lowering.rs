//! How does a tape become launches? Each op is one pass, with its operands' forms decided.
//!
//! An activation is kept in f32, or in f16 where products read it: what norms, attention and gates
//! give. Who reads one must know which (`Plan::check_kept`). Nothing here touches the device, so a
//! plan of memory needs none.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use device::{ActivationSpec, LoadError, Rows as RowKind, Segment, Tape, WeightSource, WeightView};
use ops::gated_linear::Activation;
use ops::kv_format::KvFormat;
use ops::paged_attention::{AttentionShape, Window};
use ops::rotary::QueryGrowth;
use ops::{ActivationId, EmbedBy, HeadNorms, LinearPart, Op, RotaryId, Target, WeightId};

use crate::adapters::rank_max;
use crate::arguments::{GATE_GELU, GATE_SILU, PARTS_MAX, ROTARIES_MAX};
use crate::experts::{ExpertsDownPass, ExpertsGatePass, ExpertsSizes, RoutePass};
use crate::latents::{CopyColumnsPass, HeadLinearPass, read_by_products};
use crate::packing::{CHUNK, Form, Rows, Source};
use crate::row_passes::{RowPass, halved};
use crate::step_inputs::{AttentionWork, TILE_QUERIES};

/// A matrix of the device: one tensor, or a gate and an up in alternating tiles; or a stack of
/// such, one below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MatrixKey {
    pub(crate) first: WeightId,
    pub(crate) up: Option<WeightId>,
    /// Of a stack.
    pub(crate) parts: Option<u32>,
}

impl MatrixKey {
    pub(crate) fn plain(weight: WeightId) -> Self {
        Self { first: weight, up: None, parts: None }
    }

    pub(crate) fn gated(gate: WeightId, up: WeightId) -> Self {
        Self { first: gate, up: Some(up), parts: None }
    }

    pub(crate) fn stacked(self, parts: u32) -> Self {
        Self { parts: Some(parts), ..self }
    }

    /// That are one below the other.
    pub(crate) fn parts(self) -> u32 {
        self.parts.unwrap_or(1)
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct MatrixShape {
    pub(crate) form: Form,
    pub(crate) tiles: u32,
    pub(crate) chunks: u32,
    /// Of the output.
    pub(crate) rows: u32,
}

impl MatrixShape {
    pub(crate) fn bytes(&self) -> usize {
        self.tiles as usize * self.chunks as usize * self.form.chunk_bytes()
    }
}

/// One product of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) matrix: MatrixKey,
    pub(crate) bias: Option<WeightId>,
    pub(crate) output: ActivationId,
    pub(crate) mode: PartMode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartMode {
    Store,
    Add,
    /// A code of the kernels.
    Gate(u32),
}

#[derive(Clone, Debug)]
pub(crate) enum Pass {
    Embed(EmbedPass),
    Norm { input: ActivationId, weight: WeightId, epsilon: f32, output: ActivationId },
    NormFloats { input: ActivationId, weight: WeightId, epsilon: f32, target: Target },
    Linear { input: ActivationId, form: Form, parts: Vec<Part> },
    RotaryAppend(RotaryPass),
    Attention(AttentionPass),
    SoftCap { values: ActivationId, cap: f32 },
    Route(RoutePass),
    ExpertsGate(ExpertsGatePass),
    ExpertsDown(ExpertsDownPass),
    HeadLinear(HeadLinearPass),
    CopyColumns(CopyColumnsPass),
    Row(RowPass),
    Select { input: ActivationId, output: ActivationId },
    Sample { logits: ActivationId },
    Send(Vec<ActivationId>),
}

/// What is computed at once of a tape that takes turns with another's.
#[derive(Clone, Debug)]
pub(crate) struct PassSegment {
    pub(crate) passes: Range<usize>,
    /// What it begins with, and what it ends with, where another device computes what is before or
    /// behind.
    pub(crate) received: Vec<ActivationId>,
    pub(crate) sent: Option<Vec<ActivationId>>,
}

impl Pass {
    /// Whether it reads this activation, of those that norms give.
    fn reads(&self, id: ActivationId) -> bool {
        match self {
            Self::Norm { input, .. }
            | Self::NormFloats { input, .. }
            | Self::Linear { input, .. }
            | Self::Select { input, .. } => *input == id,
            Self::RotaryAppend(pass) => [pass.query, pass.key, pass.value].contains(&id),
            Self::Route(pass) => pass.input == id,
            Self::ExpertsGate(pass) => pass.input == id,
            Self::HeadLinear(pass) => pass.input.buffer == id,
            Self::CopyColumns(pass) => pass.input.buffer == id,
            Self::Row(pass) => pass.reads(id),
            Self::SoftCap { values, .. } => *values == id,
            Self::Sample { logits } => *logits == id,
            Self::Send(parts) => parts.contains(&id),
            Self::Embed(_) | Self::Attention(_) | Self::ExpertsDown(_) => false,
        }
    }
}

/// What passes read and write, by how it must be kept. Those that take either are in neither list,
/// and those that are checked when they are lowered.
impl Pass {
    fn floats(&self) -> Vec<ActivationId> {
        match self {
            Self::Embed(pass) => vec![pass.output],
            Self::Norm { input, .. } => vec![*input],
            Self::NormFloats { input, target, .. } => vec![*input, target.buffer()],
            Self::Linear { parts, .. } => {
                let is_plain = |part: &&Part| !matches!(part.mode, PartMode::Gate(_));
                parts.iter().filter(is_plain).map(|part| part.output).collect()
            }
            Self::RotaryAppend(pass) => vec![pass.query, pass.key, pass.value],
            Self::SoftCap { values, .. } => vec![*values],
            Self::ExpertsDown(pass) => vec![pass.target.buffer()],
            Self::Select { input, output } => vec![*input, *output],
            Self::Sample { logits } => vec![*logits],
            Self::Row(pass) => pass.floats(),
            Self::Attention(_)
            | Self::Route(_)
            | Self::ExpertsGate(_)
            | Self::HeadLinear(_)
            | Self::CopyColumns(_)
            | Self::Send(_) => Vec::new(),
        }
    }

    fn halves(&self) -> Vec<ActivationId> {
        match self {
            Self::Norm { output, .. } => vec![*output],
            Self::Attention(pass) => vec![pass.output],
            Self::Route(pass) => vec![pass.input],
            Self::ExpertsGate(pass) => vec![pass.input],
            Self::Row(RowPass::Halve { output, .. }) => vec![*output],
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionPass {
    pub(crate) layer: u32,
    pub(crate) shape: AttentionShape,
    pub(crate) sinks: Option<WeightId>,
    pub(crate) output: ActivationId,
}

/// Rows of a table, stored or added.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbedPass {
    pub(crate) matrix: MatrixKey,
    pub(crate) scale: f32,
    /// `None`: a token's own, stored.
    pub(crate) by: Option<EmbedBy>,
    pub(crate) output: ActivationId,
}

/// What a layer does to its heads before it attends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RotaryPass {
    pub(crate) layer: u32,
    pub(crate) head_norms: Option<HeadNorms>,
    pub(crate) rotary: Option<RotaryId>,
    pub(crate) growth: Option<QueryGrowth>,
    pub(crate) query: ActivationId,
    pub(crate) key: ActivationId,
    pub(crate) value: ActivationId,
    /// Keys and values are an earlier layer's.
    pub(crate) is_query_alone: bool,
}

/// How an activation is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Float,
    /// In f16, rows padded to whole chunks.
    Half,
    /// In f16, a sixteenth of its value.
    GatedHalf,
}

/// A tape, lowered.
pub(crate) struct Plan {
    pub(crate) passes: Vec<Pass>,
    /// For each pass the norm that it can do itself, if it is a product.
    pub(crate) norms: Vec<Option<usize>>,
    pub(crate) matrices: BTreeMap<MatrixKey, MatrixShape>,
    pub(crate) vectors: BTreeMap<WeightId, u32>,
    pub(crate) kept: Vec<Kept>,
    /// Of whose activations the last of the tape are the halves.
    pub(crate) halved: Vec<ActivationId>,
    pub(crate) experts: Option<ExpertsSizes>,
    /// What is handed out, of a tape that gives vectors.
    pub(crate) given: Vec<ActivationId>,
    pub(crate) segments: Vec<PassSegment>,
    /// What ends the first of two texts in a row, where they are told apart.
    pub(crate) separator: Option<u32>,
    /// Elements of a row that is pooled, at most.
    pub(crate) pooled: u32,
    /// Of adapters, and how many tables of them there are.
    pub(crate) rank_max: u32,
    pub(crate) tables: usize,
    /// Whose queries the last rotary pass left for attention.
    ready_query: Option<ActivationId>,
    pub(crate) kv_format: KvFormat,
    /// Elements of a token's inputs of products of heads, at most.
    pub(crate) head_inputs: u32,
    pub(crate) attention: AttentionWork,
    pub(crate) heads: u32,
    /// That are stored.
    pub(crate) heads_kv: u32,
    /// `head_dim` as the kernels are made for.
    pub(crate) head_padded: u32,
}

/// Head sizes that attention is compiled for.
const HEADS_PADDED: [u32; 6] = [32, 64, 96, 128, 256, 576];

impl Plan {
    pub(crate) fn new(
        tape: &Tape,
        source: &dyn WeightSource,
        kv_format: KvFormat,
    ) -> Result<Self, LoadError> {
        let is_kept = matches!(kv_format, KvFormat::F16 | KvFormat::Int8);
        assert!(is_kept, "{} is refused when the device is opened", kv_format.name());
        if tape.rotaries.len() > ROTARIES_MAX {
            return Err(lacks("more than four kinds of positions"));
        }
        let shape = attention_shape(tape)?;
        let padded = HEADS_PADDED.into_iter().find(|&padded| padded >= tape.head_dim);
        let head_padded = padded.ok_or_else(|| {
            LoadError(format!(
                "heads of {} elements, this device has kernels up to 576",
                tape.head_dim
            ))
        })?;
        if sees_whole(tape)? && (head_padded > 128 || kv_format == KvFormat::Int8) {
            return Err(lacks("encoders of heads of more than 128, or with keys in 8 bits"));
        }
        // A tile takes up to 16 heads that share a key: more are several groups.
        let shared = shape.heads / shape.heads_kv;
        let group = (1..=TILE_QUERIES).rev().find(|&group| shared.is_multiple_of(group));
        let group = group.unwrap_or(1);
        let mut kept = kept(tape);
        let halved = halved(tape, &kept);
        // In rows of whole chunks, too.
        let halves_first = kept.len() - halved.len();
        kept[halves_first..].fill(Kept::Half);
        let mut plan = Self {
            passes: Vec::new(),
            norms: Vec::new(),
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
            halved,
            kept,
            experts: None,
            given: Vec::new(),
            segments: Vec::new(),
            separator: None,
            pooled: 0,
            rank_max: rank_max(tape),
            tables: 0,
            ready_query: None,
            kv_format,
            head_inputs: 0,
            attention: AttentionWork {
                group,
                heads_kv: shape.heads / group,
                window: widest_window(tape),
            },
            heads: shape.heads,
            heads_kv: shape.heads_kv,
            head_padded,
        };
        for Segment { ops, received, sent } in tape.segments() {
            let start = plan.passes.len();
            for op in &tape.ops[ops] {
                plan.lower(tape, source, op)?;
            }
            let passes = start..plan.passes.len();
            plan.segments.push(PassSegment { passes, received, sent });
        }
        plan.norms = norms_of_products(&plan.passes);
        plan.check_kept()?;
        Ok(plan)
    }

    /// Kernels take what they read and write for what it is: nothing on the device would tell.
    fn check_kept(&self) -> Result<(), LoadError> {
        let is = |id: ActivationId, kept| self.kept[id.0 as usize] == kept;
        let mut floats = self.passes.iter().flat_map(Pass::floats);
        let mut halves = self.passes.iter().flat_map(Pass::halves);
        match floats.all(|id| is(id, Kept::Float)) && halves.all(|id| is(id, Kept::Half)) {
            true => Ok(()),
            false => Err(lacks("values that are read in f32 and in f16")),
        }
    }

    fn lower(&mut self, tape: &Tape, source: &dyn WeightSource, op: &Op) -> Result<(), LoadError> {
        match op {
            Op::Embed { table, scale, output } => {
                let matrix = self.matrix(tape, source, MatrixKey::plain(*table))?;
                let pass = EmbedPass { matrix, scale: *scale, by: None, output: *output };
                self.passes.push(Pass::Embed(pass));
            }
            &Op::RmsNorm { input, weight, epsilon, target } => {
                self.vector(tape, weight);
                self.passes.push(match target {
                    Target::Store(output) if self.kept[output.0 as usize] == Kept::Half => {
                        Pass::Norm { input, weight, epsilon, output }
                    }
                    target => Pass::NormFloats { input, weight, epsilon, target },
                });
            }
            Op::Linear { input, parts } => {
                let lowered = parts.iter().map(|part| self.part(tape, source, part));
                let lowered = lowered.collect::<Result<_, _>>()?;
                self.linear(tape, *input, lowered)?;
            }
            Op::GatedLinear { input, gate, up, activation, output } => {
                let matrix = self.matrix(tape, source, MatrixKey::gated(*gate, *up))?;
                let mode = PartMode::Gate(gate_code(*activation)?);
                let part = Part { matrix, bias: None, output: *output, mode };
                self.linear(tape, *input, vec![part])?;
            }
            &Op::HeadLinear { heads, input, weight, output } => {
                self.head_linear(tape, source, (heads, weight), input, output)?;
            }
            &Op::CopyColumns { heads, input, output } => self.copy_columns(heads, input, output)?,
            Op::Experts { input, scores, experts, target } => {
                self.experts(tape, source, (*input, *scores), experts, *target)?;
            }
            Op::RotaryAppend { .. } => self.rotary_append(tape, op),
            &Op::SoftCap { values, cap } => self.passes.push(Pass::SoftCap { values, cap }),
            Op::PagedAttention { .. } => self.attention(tape, op),
            Op::SelectRows { input, output } => {
                self.passes.push(Pass::Select { input: *input, output: *output });
            }
            Op::SampleRows { logits } => self.passes.push(Pass::Sample { logits: *logits }),
            Op::GiveRows { parts } => self.given.clone_from(parts),
            Op::ReceiveRows { parts } => self.receive(parts)?,
            Op::SendRows { parts } => self.send(parts)?,
            Op::AddLowRank { input, adapters, output } => {
                self.add_low_rank(tape, *input, adapters, *output)?;
            }
            &Op::EmbedMore { table, by, output } => {
                let matrix = self.matrix(tape, source, MatrixKey::plain(table))?;
                if let EmbedBy::Text { separator } = by {
                    self.separator = Some(separator);
                }
                let pass = EmbedPass { matrix, scale: 1.0, by: Some(by), output };
                self.passes.push(Pass::Embed(pass));
            }
            Op::CausalConv { .. }
            | Op::GatedDelta { .. }
            | Op::GatedNorm { .. }
            | Op::SigmoidGate { .. }
            | Op::NormHeads { .. }
            | Op::Rotate { .. }
            | Op::Blend { .. }
            | Op::Scale { .. }
            | Op::PoolRows { .. }
            | Op::Gate { .. }
            | Op::LayerNorm { .. }
            | Op::Activate { .. } => self.lower_row_op(tape, op)?,
        }
        Ok(())
    }

    fn part(
        &mut self,
        tape: &Tape,
        source: &dyn WeightSource,
        part: &LinearPart,
    ) -> Result<Part, LoadError> {
        let matrix = self.matrix(tape, source, MatrixKey::plain(part.weight))?;
        part.bias.iter().for_each(|&bias| self.vector(tape, bias));
        let mode = match part.target {
            Target::Store(_) => PartMode::Store,
            Target::AddTo(_) => PartMode::Add,
        };
        Ok(Part { matrix, bias: part.bias, output: part.target.buffer(), mode })
    }

    fn receive(&mut self, parts: &[ActivationId]) -> Result<(), LoadError> {
        self.check_crossing(parts)?;
        // Of a tape that begins by itself, embedding has done that.
        if self.segments.is_empty() {
            self.passes.push(Pass::Row(RowPass::Received));
        }
        Ok(())
    }

    fn send(&mut self, parts: &[ActivationId]) -> Result<(), LoadError> {
        self.check_crossing(parts)?;
        // It launches nothing, but reads: what crosses must be there, and not as norms of products.
        self.passes.push(Pass::Send(parts.to_vec()));
        Ok(())
    }

    /// Rows go from device to device in f32.
    fn check_crossing(&self, parts: &[ActivationId]) -> Result<(), LoadError> {
        match parts.iter().any(|part| self.kept[part.0 as usize] == Kept::GatedHalf) {
            true => Err(lacks("layers that hand over gated values, where it is cut")),
            false => Ok(()),
        }
    }

    fn attention(&mut self, tape: &Tape, op: &Op) {
        let &Op::PagedAttention { layer, query, shape, sinks, output } = op else { return };
        if self.ready_query.take() != Some(query) {
            let (key, value, is_query_alone) = (query, query, true);
            let (head_norms, rotary, growth) = (None, None, None);
            let pass =
                RotaryPass { layer, head_norms, rotary, growth, query, key, value, is_query_alone };
            self.passes.push(Pass::RotaryAppend(pass));
        }
        sinks.iter().for_each(|&sinks| self.vector(tape, sinks));
        self.passes.push(Pass::Attention(AttentionPass { layer, shape, sinks, output }));
    }

    fn rotary_append(&mut self, tape: &Tape, op: &Op) {
        let &Op::RotaryAppend { layer, head_norms, rotary, growth, query, key, value } = op else {
            return;
        };
        if let Some(norms) = head_norms {
            self.vector(tape, norms.query);
            self.vector(tape, norms.key);
        }
        let is_query_alone = false;
        let pass =
            RotaryPass { layer, head_norms, rotary, growth, query, key, value, is_query_alone };
        self.ready_query = Some(query);
        self.passes.push(Pass::RotaryAppend(pass));
    }

    /// One launch for the parts of each form.
    fn linear(
        &mut self,
        tape: &Tape,
        input: ActivationId,
        parts: Vec<Part>,
    ) -> Result<(), LoadError> {
        let input = self.halves(tape, input);
        let mut forms: Vec<(Form, Vec<Part>)> = Vec::new();
        for part in parts {
            let form = self.matrices[&part.matrix].form;
            match forms.iter_mut().find(|(known, list)| *known == form && list.len() < PARTS_MAX) {
                Some((_, list)) => list.push(part),
                None => forms.push((form, vec![part])),
            }
        }
        self.passes.extend(forms.into_iter().map(|(form, parts)| Pass::Linear {
            input,
            form,
            parts,
        }));
        Ok(())
    }

    pub(crate) fn matrix(
        &mut self,
        tape: &Tape,
        source: &dyn WeightSource,
        key: MatrixKey,
    ) -> Result<MatrixKey, LoadError> {
        let rows = rows(tape, source, key)?;
        let weight = tape.weight(key.first);
        let count = |count: usize| {
            u32::try_from(count)
                .map_err(|_| LoadError(format!("tensor {} is too large", weight.name)))
        };
        let shape = MatrixShape {
            form: rows.form(),
            tiles: count(rows.tiles())?,
            chunks: count(rows.chunks())?,
            rows: weight.rows,
        };
        self.matrices.insert(key, shape);
        Ok(key)
    }

    pub(crate) fn vector(&mut self, tape: &Tape, id: WeightId) {
        let spec = tape.weight(id);
        self.vectors.insert(id, spec.rows * spec.cols);
    }

    /// Elements between rows of an activation.
    pub(crate) fn stride(&self, tape: &Tape, id: ActivationId) -> usize {
        let width = tape.activation(id).width as usize;
        match self.kept[id.0 as usize] {
            Kept::Float => width,
            Kept::Half | Kept::GatedHalf => width.next_multiple_of(CHUNK),
        }
    }

    /// Forms of all matrices that are multiplied.
    pub(crate) fn linear_forms(&self) -> BTreeSet<Form> {
        let linears = self.passes.iter().filter_map(|pass| match pass {
            Pass::Linear { form, .. } => Some(*form),
            _ => None,
        });
        linears.collect()
    }

    /// Forms of all stacks of matrices.
    pub(crate) fn stack_forms(&self) -> BTreeSet<Form> {
        let stacks = self.passes.iter().filter_map(|pass| match pass {
            Pass::ExpertsGate(pass) => Some(pass.matrix),
            Pass::ExpertsDown(pass) => Some(pass.matrix),
            Pass::HeadLinear(pass) => Some(pass.matrix),
            _ => None,
        });
        stacks.map(|matrix| self.matrices[&matrix].form).collect()
    }

    /// Functions that only some models need, with the images that hold them.
    pub(crate) fn extras(&self) -> BTreeSet<(&'static str, &'static str)> {
        let of_rows = self.passes.iter().filter_map(|pass| match pass {
            Pass::Row(pass) => Some(pass.functions()),
            _ => None,
        });
        of_rows.flatten().copied().collect()
    }

    /// Forms of all tables.
    pub(crate) fn table_forms(&self) -> BTreeSet<Form> {
        let tables = self.passes.iter().filter_map(|pass| match pass {
            Pass::Embed(pass) => Some(self.matrices[&pass.matrix].form),
            _ => None,
        });
        tables.collect()
    }
}

/// Products right behind a norm whose output only they read: nothing has changed the norm's own
/// input before the last of them has read it.
fn norms_of_products(passes: &[Pass]) -> Vec<Option<usize>> {
    let mut found = vec![None; passes.len()];
    for (index, pass) in passes.iter().enumerate() {
        let Pass::Norm { input: residual, output, .. } = pass else { continue };
        let behind = &passes[index + 1..];
        let is_own = |pass: &&Pass| match pass {
            Pass::Linear { input, parts, .. } => {
                input == output && parts.iter().all(|part| part.output != *residual)
            }
            _ => false,
        };
        let own = behind.iter().take_while(is_own).count();
        let is_next =
            |pass: &&Pass| matches!(pass, Pass::Norm { output: next, .. } if next == output);
        let mut later = behind[own..].iter().take_while(|pass| !is_next(pass));
        if !later.any(|pass| pass.reads(*output)) {
            found[index + 1..][..own].fill(Some(index));
        }
    }
    found
}

/// A gate, as `kernels/linear.cu` names it.
fn gate_code(activation: Activation) -> Result<u32, LoadError> {
    match activation {
        Activation::Silu => Ok(GATE_SILU),
        Activation::GeluTanh => Ok(GATE_GELU),
        Activation::ClampedSilu => Err(lacks("clamped gates")),
    }
}

/// A matrix's tensors, as they are stored.
pub(crate) fn rows<'a>(
    tape: &Tape,
    source: &'a dyn WeightSource,
    key: MatrixKey,
) -> Result<Rows<'a>, LoadError> {
    let stored = |id| -> Result<Source<'a>, LoadError> {
        let WeightView { format, rows, cols, bytes } = tape.stored(id, source)?;
        Ok(Source { format, rows, cols, bytes })
    };
    Ok(Rows {
        first: stored(key.first)?,
        up: key.up.map(stored).transpose()?,
        parts: key.parts.map(|parts| parts as usize),
    })
}

/// The tape with room for the halves of what products read.
pub(crate) fn with_halves(tape: &Tape) -> Tape {
    let mut tape = tape.clone();
    for id in halved(&tape, &kept(&tape)) {
        let halves = ActivationSpec { name: "halves", ..*tape.activation(id) };
        tape.activations.push(halves);
    }
    tape
}

/// Of a tape with its halves or without.
fn kept(tape: &Tape) -> Vec<Kept> {
    let mut kept = vec![Kept::Float; tape.activations.len()];
    // Norms read f32: what is normed again stays so.
    let normed: BTreeSet<ActivationId> = tape.ops.iter().filter_map(norm_input).collect();
    for op in &tape.ops {
        match op {
            Op::RmsNorm { target: Target::Store(output), .. } if !normed.contains(output) => {
                kept[output.0 as usize] = Kept::Half;
            }
            Op::PagedAttention { output, .. } => kept[output.0 as usize] = Kept::Half,
            Op::GatedLinear { output, .. } | Op::Gate { output, .. } => {
                kept[output.0 as usize] = Kept::GatedHalf;
            }
            Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::Linear { .. }
            | Op::HeadLinear { .. }
            | Op::CopyColumns { .. }
            | Op::CausalConv { .. }
            | Op::GatedDelta { .. }
            | Op::GatedNorm { .. }
            | Op::SigmoidGate { .. }
            | Op::NormHeads { .. }
            | Op::Rotate { .. }
            | Op::Blend { .. }
            | Op::Scale { .. }
            | Op::Experts { .. }
            | Op::RotaryAppend { .. }
            | Op::SoftCap { .. }
            | Op::SelectRows { .. }
            | Op::SampleRows { .. }
            | Op::PoolRows { .. }
            | Op::GiveRows { .. }
            | Op::ReceiveRows { .. }
            | Op::SendRows { .. }
            | Op::AddLowRank { .. }
            | Op::EmbedMore { .. }
            | Op::LayerNorm { .. }
            | Op::Activate { .. } => {}
        }
    }
    for buffer in read_by_products(tape) {
        kept[buffer.0 as usize] = Kept::Half;
    }
    kept
}

fn norm_input(op: &Op) -> Option<ActivationId> {
    match op {
        Op::RmsNorm { input, .. } => Some(*input),
        _ => None,
    }
}

fn shapes(tape: &Tape) -> impl Iterator<Item = &AttentionShape> {
    tape.ops.iter().filter_map(|op| match op {
        Op::PagedAttention { shape, .. } => Some(shape),
        _ => None,
    })
}

/// What this device has no kernel for.
pub(crate) fn lacks(what: &str) -> LoadError {
    LoadError(format!(
        "the model has {what}, for which this device has no kernel: use --device cpu"
    ))
}

/// That of all layers; of a tape without any, one that nobody asks for.
fn attention_shape(tape: &Tape) -> Result<AttentionShape, LoadError> {
    let none = AttentionShape {
        heads: tape.heads_kv,
        heads_kv: tape.heads_kv,
        head_dim: tape.head_dim,
        scale: 1.0,
        soft_cap: None,
        window: Window::Full,
    };
    let first = shapes(tape).next().copied().unwrap_or(none);
    let sizes = |shape: &AttentionShape| (shape.heads, shape.heads_kv, shape.head_dim);
    if shapes(tape).all(|shape| sizes(shape) == sizes(&first)) && first.head_dim == tape.head_dim {
        return Ok(first);
    }
    Err(LoadError("layers differ in their heads: this device has no such layout".to_owned()))
}

/// Whether queries see all of their text.
pub(crate) fn sees_whole(tape: &Tape) -> Result<bool, LoadError> {
    let whole = shapes(tape).filter(|shape| shape.window == Window::Whole).count();
    match whole == 0 || whole == shapes(tape).count() {
        true => Ok(whole > 0),
        false => Err(lacks("layers that see all of a text and others that do not")),
    }
}

/// The work list of attention is shared by all layers: it is of the one that sees most.
fn widest_window(tape: &Tape) -> Window {
    let tokens = |shape: &AttentionShape| match shape.window {
        Window::Full | Window::Whole => None,
        Window::Sliding(tokens) => Some(tokens),
    };
    if shapes(tape).any(|shape| shape.window == Window::Whole) {
        return Window::Whole;
    }
    let windows: Option<Vec<u32>> = shapes(tape).map(tokens).collect();
    let widest = windows.and_then(|windows| windows.into_iter().max());
    widest.map_or(Window::Full, Window::Sliding)
}

/// Rows of an activation at most.
pub(crate) fn rows_max(kind: RowKind, capacity: &device::Capacity) -> usize {
    match kind {
        RowKind::Tokens => capacity.step_tokens_max as usize,
        RowKind::Sampled => capacity.sampled_tokens_max() as usize,
    }
}
