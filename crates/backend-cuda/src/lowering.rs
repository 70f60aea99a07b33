//! How does a tape become launches? Each op is one pass, with its operands' forms decided.
//!
//! An activation is kept in f32, or in f16 where products read it: what norms, attention and gates
//! give. Nothing here touches the device, so a plan of memory needs none.

use std::collections::BTreeMap;

use device::{LoadError, Rows as RowKind, Tape, WeightSource, WeightView};
use ops::gated_linear::Activation;
use ops::paged_attention::{AttentionShape, Window};
use ops::{ActivationId, Op, Target, WeightId};

use crate::arguments::{GATE_GELU, GATE_SILU, PARTS_MAX};
use crate::packing::{CHUNK, Form, Rows, Source};
use crate::step_inputs::{AttentionWork, TILE_QUERIES};

/// A matrix of the device: one tensor, or a gate and an up in alternating tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MatrixKey {
    Plain(WeightId),
    Gated(WeightId, WeightId),
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
    Embed { matrix: MatrixKey, scale: f32, output: ActivationId },
    Norm { input: ActivationId, weight: WeightId, epsilon: f32, output: ActivationId },
    Linear { input: ActivationId, form: Form, parts: Vec<Part> },
    RotaryAppend { layer: u32, query: ActivationId, key: ActivationId, value: ActivationId },
    Attention { layer: u32, shape: AttentionShape, output: ActivationId },
    Select { input: ActivationId, output: ActivationId },
    Sample { logits: ActivationId },
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
    pub(crate) matrices: BTreeMap<MatrixKey, MatrixShape>,
    pub(crate) vectors: BTreeMap<WeightId, u32>,
    pub(crate) kept: Vec<Kept>,
    pub(crate) attention: AttentionWork,
    pub(crate) heads: u32,
    /// `head_dim` as the kernels are made for.
    pub(crate) head_padded: u32,
}

/// Head sizes that attention is compiled for.
const HEADS_PADDED: [u32; 5] = [32, 64, 96, 128, 256];

impl Plan {
    pub(crate) fn new(tape: &Tape, source: &dyn WeightSource) -> Result<Self, LoadError> {
        one_rotary(tape)?;
        let shape = attention_shape(tape)?;
        let padded = HEADS_PADDED.into_iter().find(|&padded| padded >= tape.head_dim);
        let head_padded = padded.ok_or_else(|| {
            LoadError(format!(
                "heads of {} elements, this device has kernels up to 256",
                tape.head_dim
            ))
        })?;
        let group = shape.heads / shape.heads_kv;
        if group > TILE_QUERIES {
            let text = format!("{group} heads share a key, this device has kernels for up to 16");
            return Err(LoadError(text));
        }
        let mut plan = Self {
            passes: Vec::new(),
            matrices: BTreeMap::new(),
            vectors: BTreeMap::new(),
            kept: kept(tape),
            attention: AttentionWork {
                group,
                heads_kv: shape.heads_kv,
                window: shape.window,
                may_split: one_window(tape),
            },
            heads: shape.heads,
            head_padded,
        };
        for op in &tape.ops {
            plan.lower(tape, source, op)?;
        }
        Ok(plan)
    }

    fn lower(&mut self, tape: &Tape, source: &dyn WeightSource, op: &Op) -> Result<(), LoadError> {
        match op {
            Op::Embed { table, scale, output } => {
                let matrix = self.matrix(tape, source, MatrixKey::Plain(*table))?;
                self.passes.push(Pass::Embed { matrix, scale: *scale, output: *output });
            }
            Op::RmsNorm { target: Target::AddTo(_), .. } => {
                return Err(lacks("norms behind blocks"));
            }
            Op::RmsNorm { input, weight, epsilon, target: Target::Store(output) } => {
                self.vector(tape, *weight);
                let (input, weight, epsilon, output) = (*input, *weight, *epsilon, *output);
                self.passes.push(Pass::Norm { input, weight, epsilon, output });
            }
            Op::Linear { input, parts } => {
                let mut lowered = Vec::new();
                for part in parts {
                    let matrix = self.matrix(tape, source, MatrixKey::Plain(part.weight))?;
                    part.bias.iter().for_each(|&bias| self.vector(tape, bias));
                    let mode = match part.target {
                        Target::Store(_) => PartMode::Store,
                        Target::AddTo(_) => PartMode::Add,
                    };
                    let (bias, output) = (part.bias, part.target.buffer());
                    lowered.push(Part { matrix, bias, output, mode });
                }
                self.linear(tape, *input, lowered)?;
            }
            Op::GatedLinear { input, gate, up, activation, output } => {
                let matrix = self.matrix(tape, source, MatrixKey::Gated(*gate, *up))?;
                let mode = PartMode::Gate(match activation {
                    Activation::Silu => GATE_SILU,
                    Activation::GeluTanh => GATE_GELU,
                    Activation::ClampedSilu => return Err(lacks("clamped gates")),
                });
                self.linear(
                    tape,
                    *input,
                    vec![Part { matrix, bias: None, output: *output, mode }],
                )?;
            }
            Op::HeadLinear { .. } | Op::CopyColumns { .. } => {
                return Err(lacks("latent attention"));
            }
            Op::Experts { .. } => return Err(lacks("a mixture of experts")),
            Op::RotaryAppend { head_norms: Some(_), .. } => return Err(lacks("norms of heads")),
            Op::RotaryAppend { layer, query, key, value, .. } => {
                let (layer, query, key, value) = (*layer, *query, *key, *value);
                self.passes.push(Pass::RotaryAppend { layer, query, key, value });
            }
            Op::PagedAttention { sinks: Some(_), .. } => return Err(lacks("attention sinks")),
            Op::SoftCap { .. } => return Err(lacks("capped logits")),
            Op::PagedAttention { layer, shape, output, .. } => {
                self.passes.push(Pass::Attention { layer: *layer, shape: *shape, output: *output });
            }
            Op::SelectRows { input, output } => {
                self.passes.push(Pass::Select { input: *input, output: *output });
            }
            Op::SampleRows { logits } => self.passes.push(Pass::Sample { logits: *logits }),
            Op::PoolRows { .. } | Op::GiveRows { .. } => return Err(lacks("vectors of texts")),
            Op::Gate { .. } | Op::AddLowRank { .. } => return Err(lacks("adapters")),
            Op::EmbedMore { .. } | Op::LayerNorm { .. } | Op::Activate { .. } => {
                return Err(lacks("encoders"));
            }
        }
        Ok(())
    }

    /// One launch for the parts of each form.
    fn linear(
        &mut self,
        tape: &Tape,
        input: ActivationId,
        parts: Vec<Part>,
    ) -> Result<(), LoadError> {
        if self.kept[input.0 as usize] == Kept::Float {
            let text = format!(
                "a product of `{}`, which this device keeps in f32: only what norms, attention and \
                 gates give can be multiplied",
                tape.activation(input).name
            );
            return Err(LoadError(text));
        }
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

    fn matrix(
        &mut self,
        tape: &Tape,
        source: &dyn WeightSource,
        key: MatrixKey,
    ) -> Result<MatrixKey, LoadError> {
        let rows = rows(tape, source, key)?;
        let (MatrixKey::Plain(id) | MatrixKey::Gated(id, _)) = key;
        let count = |count: usize| {
            u32::try_from(count)
                .map_err(|_| LoadError(format!("tensor {} is too large", tape.weight(id).name)))
        };
        let shape = MatrixShape {
            form: rows.form(),
            tiles: count(rows.tiles())?,
            chunks: count(rows.chunks())?,
            rows: tape.weight(id).rows,
        };
        self.matrices.insert(key, shape);
        Ok(key)
    }

    fn vector(&mut self, tape: &Tape, id: WeightId) {
        self.vectors.insert(id, tape.weight(id).cols);
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
    pub(crate) fn linear_forms(&self) -> Vec<Form> {
        let mut forms: Vec<Form> = self
            .passes
            .iter()
            .filter_map(|pass| match pass {
                Pass::Linear { form, .. } => Some(*form),
                _ => None,
            })
            .collect();
        forms.sort_unstable();
        forms.dedup();
        forms
    }

    /// The embedding's form.
    pub(crate) fn table_form(&self) -> Result<Form, LoadError> {
        let table = self.passes.iter().find_map(|pass| match pass {
            Pass::Embed { matrix, .. } => Some(self.matrices[matrix].form),
            _ => None,
        });
        table.ok_or_else(|| LoadError("the model has no embedding".to_owned()))
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
    Ok(match key {
        MatrixKey::Plain(id) => Rows::Plain(stored(id)?),
        MatrixKey::Gated(gate, up) => Rows::Gated { gate: stored(gate)?, up: stored(up)? },
    })
}

fn kept(tape: &Tape) -> Vec<Kept> {
    let mut kept = vec![Kept::Float; tape.activations.len()];
    for op in &tape.ops {
        match op {
            Op::RmsNorm { target: Target::Store(output), .. }
            | Op::PagedAttention { output, .. } => {
                kept[output.0 as usize] = Kept::Half;
            }
            Op::GatedLinear { output, .. } => kept[output.0 as usize] = Kept::GatedHalf,
            Op::Embed { .. }
            | Op::RmsNorm { .. }
            | Op::Linear { .. }
            | Op::HeadLinear { .. }
            | Op::CopyColumns { .. }
            | Op::Experts { .. }
            | Op::RotaryAppend { .. }
            | Op::SoftCap { .. }
            | Op::SelectRows { .. }
            | Op::SampleRows { .. }
            | Op::PoolRows { .. }
            | Op::GiveRows { .. }
            | Op::Gate { .. }
            | Op::AddLowRank { .. }
            | Op::EmbedMore { .. }
            | Op::LayerNorm { .. }
            | Op::Activate { .. } => {}
        }
    }
    kept
}

fn shapes(tape: &Tape) -> impl Iterator<Item = &AttentionShape> {
    tape.ops.iter().filter_map(|op| match op {
        Op::PagedAttention { shape, .. } => Some(shape),
        _ => None,
    })
}

/// What this device has no kernel for.
fn lacks(what: &str) -> LoadError {
    LoadError(format!(
        "the model has {what}, for which this device has no kernel: use --device cpu"
    ))
}

/// The table of turns is made once a step, and holds for all layers.
fn one_rotary(tape: &Tape) -> Result<(), LoadError> {
    let turns = |op: &Op| !matches!(op, Op::RotaryAppend { rotary: None, .. });
    if tape.rotaries.len() == 1 && tape.ops.iter().all(turns) {
        return Ok(());
    }
    Err(lacks("layers that differ in their positions"))
}

fn attention_shape(tape: &Tape) -> Result<AttentionShape, LoadError> {
    let first = shapes(tape).next();
    let first = *first.ok_or_else(|| LoadError("the model has no attention layers".to_owned()))?;
    let sizes = |shape: &AttentionShape| (shape.heads, shape.heads_kv, shape.head_dim);
    if shapes(tape).all(|shape| sizes(shape) == sizes(&first)) && first.head_dim == tape.head_dim {
        return Ok(first);
    }
    Err(LoadError("layers differ in their heads: this device has no such layout".to_owned()))
}

/// The work list of attention is shared by all layers; it can be cut only if all see the same.
fn one_window(tape: &Tape) -> bool {
    let windows: Vec<Window> = shapes(tape).map(|shape| shape.window).collect();
    windows.windows(2).all(|pair| pair[0] == pair[1])
}

/// Rows of an activation at most.
pub(crate) fn rows_max(kind: RowKind, capacity: &device::Capacity) -> usize {
    match kind {
        RowKind::Tokens => capacity.step_tokens_max as usize,
        RowKind::Sampled => capacity.sampled_tokens_max() as usize,
    }
}
