//! How does a tape become passes? Each op is one pass or a few, with all its operands' places.
//!
//! Nothing here touches the device: a plan of memory needs its limits only.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use device::{Capacity, LoadError, Tape, WeightSource};
use ops::gated_linear::Activation;
use ops::low_rank::LowRank;

use ops::paged_attention::AttentionShape;
use ops::pool_rows::Pooling;
use ops::rotary::QueryGrowth;
use ops::{ActivationId, EmbedBy, HeadColumns, Op, Operand, RotaryId, Target, WeightId};

use crate::attention;
use crate::carried::{CarriedPass, CarriedRoom};
use crate::dispatch::Parameters;
use crate::experts::ExpertsPass;
use crate::packing::{Form, Sections, UNIT};
use crate::row_passes::RowsPass;
use crate::sizes::{Bounds, Place, Places};

/// Which tensors make a matrix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MatrixKey {
    /// One below the other.
    Stacked(Vec<WeightId>),
    /// Row by row in turn: a gate and an up.
    Alternating([WeightId; 2]),
}

impl MatrixKey {
    pub(crate) fn tensors(&self) -> &[WeightId] {
        match self {
            Self::Stacked(tensors) => tensors,
            Self::Alternating(tensors) => tensors,
        }
    }
}

/// A matrix of the device.
#[derive(Clone, Debug)]
pub(crate) struct MatrixPlan {
    pub(crate) key: MatrixKey,
    pub(crate) form: Form,
    pub(crate) cols: usize,
    /// What can be bound at once: first row and rows of each part.
    pub(crate) pieces: Vec<MatrixPiece>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct MatrixPiece {
    pub(crate) first: usize,
    pub(crate) rows: usize,
    pub(crate) sections: Sections,
}

impl MatrixPlan {
    pub(crate) fn units(&self) -> usize {
        self.cols.div_ceil(UNIT)
    }
}

/// Its place among the plan's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct MatrixIndex(pub(crate) usize);

/// Where rows of a product go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// The first row of the matrix that is not its.
    pub(crate) end: u32,
    pub(crate) output: Place,
    pub(crate) mode: PartMode,
    pub(crate) bias: Vector,
}

/// How matrix units, which read f16, have room for values that are larger: rounded values are some
/// of the value itself, see [`Lowering::rounding_of`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnitScales {
    /// Of rounded inputs, to be what they are.
    pub(crate) input: f32,
    /// Of gated outputs, before they are rounded.
    pub(crate) gated: f32,
}

/// As `kernels/outputs.wgsli` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartMode {
    Store = 0,
    Add = 1,
    GateSilu = 2,
    GateGelu = 3,
    GateClamped = 4,
}

/// The place of a small tensor among all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vector(pub(crate) u32);

impl Vector {
    pub(crate) const NONE: Self = Self(u32::MAX);
}

#[derive(Clone, Debug)]
pub(crate) enum Pass {
    Embed(EmbedPass),
    /// What works on each row by itself.
    Rows(RowsPass),
    Linear {
        matrix: MatrixIndex,
        input: Place,
        scales: UnitScales,
        parts: Vec<Part>,
    },
    HeadLinear(HeadLinearPass),
    Experts(ExpertsPass),
    Rotary(RotaryPass),
    Rotate {
        values: Place,
        head_dim: u32,
        rotary: RotaryId,
    },
    Attention {
        layer: u32,
        query: Place,
        shape: AttentionShape,
        sinks: Vector,
        output: Place,
        /// What it can do itself, see [`attention::join`].
        rotary: Option<RotaryPass>,
    },
    Select {
        input: Place,
        output: Place,
    },
    /// What goes from token to token of a sequence.
    Carried(CarriedPass),
    /// What tokens of one adapter get.
    LowRank(LowRankPass),
    Pool {
        input: Place,
        pooling: Pooling,
        output: Place,
    },
}

/// Rows of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbedPass {
    pub(crate) matrix: MatrixIndex,
    pub(crate) scale: f32,
    /// Which is a token's; `None`: that of its id.
    pub(crate) by: Option<EmbedBy>,
    pub(crate) adds: bool,
    pub(crate) output: Place,
}

/// One adapter of a product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LowRankPass {
    pub(crate) adapter: u32,
    pub(crate) input: Place,
    pub(crate) down: Vector,
    pub(crate) inner: Place,
    pub(crate) rank: u32,
    pub(crate) up: Vector,
    pub(crate) scale: f32,
    pub(crate) output: Place,
}

/// Heads' columns, each by a matrix of its own.
#[derive(Clone, Debug)]
pub(crate) struct HeadLinearPass {
    pub(crate) matrix: MatrixIndex,
    /// What [`crate::kernels::Kernel::HeadLinear`] is told, behind the matrix.
    pub(crate) parameters: Parameters,
}

/// What a layer does to its heads before it attends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RotaryPass {
    pub(crate) layer: u32,
    pub(crate) query: Place,
    pub(crate) key: Place,
    pub(crate) value: Place,
    pub(crate) query_norm: Vector,
    pub(crate) key_norm: Vector,
    pub(crate) epsilon: f32,
    pub(crate) rotary: Option<RotaryId>,
    pub(crate) growth: Option<QueryGrowth>,
    /// The attention behind it can do the same.
    pub(crate) is_joined: bool,
}

/// A tape, lowered.
pub(crate) struct Plan {
    pub(crate) passes: Vec<Pass>,
    pub(crate) matrices: Vec<MatrixPlan>,
    /// Small tensors in their order, each with its place.
    pub(crate) vectors: BTreeMap<WeightId, Vector>,
    /// Elements of all of them.
    pub(crate) vector_elements: u32,
    pub(crate) places: Places,
    /// What ops keep of each slot.
    pub(crate) carried: Vec<CarriedRoom>,
    pub(crate) bounds: Bounds,
    pub(crate) segments: Vec<PassSegment>,
}

/// What is computed at once of a tape that takes turns with another's.
#[derive(Default)]
pub(crate) struct PassSegment {
    pub(crate) passes: Range<usize>,
    /// What it begins with that another device computed.
    pub(crate) received: Vec<ActivationId>,
    pub(crate) received_at: Vec<Place>,
    /// What comes back of it, rows of each: logits, parts of vectors, or what another device goes
    /// on with.
    pub(crate) given: Vec<Place>,
    pub(crate) is_sent: bool,
}

/// Of gated values: a power of two, which loses nothing but the smallest of f16.
const GATED_SCALE: f32 = 1.0 / 16.0;

/// Matrices that one launch can have.
const PARTS_MAX: usize = 4;

impl Plan {
    pub(crate) fn new(
        tape: &Tape,
        source: &dyn WeightSource,
        capacity: &Capacity,
        bounds: Bounds,
    ) -> Result<Self, LoadError> {
        let places = Places::new(tape, capacity, &bounds);
        bounds.check(tape, capacity, &places)?;
        let mut lowering = Lowering {
            tape,
            source,
            capacity,
            indices: BTreeMap::new(),
            gated: gated_only(tape),
            plan: Self {
                passes: Vec::new(),
                matrices: Vec::new(),
                vectors: BTreeMap::new(),
                vector_elements: 0,
                places,
                carried: Vec::new(),
                bounds,
                segments: vec![PassSegment::default()],
            },
        };
        for op in &tape.ops {
            lowering.lower(op)?;
            lowering.end_segment(op);
        }
        // Behind what is sent last there is none.
        lowering.plan.segments.truncate(tape.segments().len());
        attention::join(tape, &mut lowering.plan.passes);
        bounds.check_vectors(&lowering.plan)?;
        Ok(lowering.plan)
    }
}

/// What gates give, and no other op writes: the largest values of a model.
fn gated_only(tape: &Tape) -> BTreeSet<ActivationId> {
    let (mut gated, mut others) = (BTreeSet::new(), BTreeSet::new());
    for op in &tape.ops {
        let is_gate = matches!(op, Op::GatedLinear { .. } | Op::Gate { .. });
        let written = if is_gate { &mut gated } else { &mut others };
        op.clone().operands(&mut |operand| match operand {
            Operand::Store(id) | Operand::Change(id) => drop(written.insert(*id)),
            Operand::StoreColumns(_, columns) => drop(written.insert(columns.buffer)),
            _ => {}
        });
    }
    gated.difference(&others).copied().collect()
}

pub(crate) struct Lowering<'a> {
    pub(crate) tape: &'a Tape,
    pub(crate) source: &'a dyn WeightSource,
    pub(crate) capacity: &'a Capacity,
    indices: BTreeMap<MatrixKey, MatrixIndex>,
    gated: BTreeSet<ActivationId>,
    pub(crate) plan: Plan,
}

impl Lowering<'_> {
    fn lower(&mut self, op: &Op) -> Result<(), LoadError> {
        if let Some(pass) = self.rows_pass(op)? {
            self.plan.passes.push(pass);
            return Ok(());
        }
        let pass = match op {
            Op::Embed { table, scale, output } => self.embed(*table, *scale, None, *output)?,
            Op::EmbedMore { table, by, output } => self.embed(*table, 1.0, Some(*by), *output)?,
            Op::Linear { input, parts } => return self.linear(*input, parts),
            Op::GatedLinear { input, gate, up, activation, output } => Pass::Linear {
                matrix: self.arranged_matrix(MatrixKey::Alternating([*gate, *up]))?,
                input: self.place(*input),
                scales: self.unit_scales(*input, self.rounding_of(*output)),
                parts: vec![Part {
                    end: 2 * self.tape.weight(*gate).rows,
                    output: self.place(*output),
                    mode: gate_mode(*activation),
                    bias: Vector::NONE,
                }],
            },
            Op::HeadLinear { heads, input, weight, output } => {
                self.head_linear(*heads, input, *weight, output)?
            }
            Op::Experts { input, scores, experts, target } => {
                return self.experts(*input, *scores, experts, *target);
            }
            Op::RotaryAppend { .. } => self.rotary(op)?,
            &Op::Rotate { values, head_dim, rotary } => {
                Pass::Rotate { values: self.place(values), head_dim, rotary }
            }
            Op::PagedAttention { layer, query, shape, sinks, output } => Pass::Attention {
                layer: *layer,
                query: self.place(*query),
                shape: *shape,
                sinks: self.optional(*sinks)?,
                output: self.place(*output),
                rotary: None,
            },
            Op::CausalConv { .. } => self.causal_conv(op)?,
            Op::GatedDelta { .. } => return self.gated_delta(op),
            Op::SelectRows { input, output } => {
                Pass::Select { input: self.place(*input), output: self.place(*output) }
            }
            Op::AddLowRank { input, adapters, output } => {
                return self.low_rank(*input, adapters, *output);
            }
            Op::PoolRows { input, pooling, output } => Pass::Pool {
                input: self.place(*input),
                pooling: *pooling,
                output: self.place(*output),
            },
            Op::ReceiveRows { .. }
            | Op::SampleRows { .. }
            | Op::GiveRows { .. }
            | Op::SendRows { .. } => {
                self.edge(op);
                return Ok(());
            }
            other => {
                return Err(LoadError(format!(
                    "the wgpu device has no kernel of `{}` yet: run this model on another device",
                    other.name()
                )));
            }
        };
        self.plan.passes.push(pass);
        Ok(())
    }

    fn segment(&mut self) -> &mut PassSegment {
        self.plan.segments.last_mut().expect("invariant: made with one")
    }

    /// The passes so far are those of the last segment; behind what is sent another begins.
    fn end_segment(&mut self, op: &Op) {
        let end = self.plan.passes.len();
        self.segment().passes.end = end;
        if matches!(op, Op::SendRows { .. }) {
            self.segment().is_sent = true;
            let next = PassSegment { passes: end..end, ..PassSegment::default() };
            self.plan.segments.push(next);
        }
    }

    /// What comes from the process, and what goes there.
    fn edge(&mut self, op: &Op) {
        match op {
            Op::ReceiveRows { parts } => self.receive(parts),
            Op::SampleRows { logits } => {
                let given = vec![self.place(*logits)];
                self.segment().given = given;
            }
            Op::GiveRows { parts } | Op::SendRows { parts } => {
                let given = parts.iter().map(|&part| self.place(part)).collect();
                self.segment().given = given;
            }
            _ => unreachable!("invariant: asked of such ops only"),
        }
    }

    /// Rows are written from the process. Where products read activations rounded, each is stored
    /// once more in its place, which rounds it.
    fn receive(&mut self, parts: &[ActivationId]) {
        let received_at = parts.iter().map(|&part| self.place(part)).collect();
        self.segment().received = parts.to_vec();
        self.segment().received_at = received_at;
        if !self.plan.bounds.has_units {
            return;
        }
        for &buffer in parts {
            let width = self.place(buffer).width;
            let all = HeadColumns { buffer, stride: width, first: 0, width };
            let pass = self.copy_columns(1, &all, &all);
            self.plan.passes.push(Pass::Rows(pass));
        }
    }

    fn embed(
        &mut self,
        table: WeightId,
        scale: f32,
        by: Option<EmbedBy>,
        output: ActivationId,
    ) -> Result<Pass, LoadError> {
        // The head may be the same table.
        let matrix = self.arranged_matrix(MatrixKey::Stacked(vec![table]))?;
        let (adds, output) = (by.is_some(), self.place(output));
        Ok(Pass::Embed(EmbedPass { matrix, scale, by, adds, output }))
    }

    /// A pass for each adapter: few of them are in a step, and the others' are not launched.
    fn low_rank(
        &mut self,
        input: ActivationId,
        adapters: &[Option<LowRank>],
        output: ActivationId,
    ) -> Result<(), LoadError> {
        let inner = self.plan.places.low_rank.expect("invariant: room where there are adapters");
        for (adapter, part) in (0..).zip(adapters) {
            let Some(part) = part else { continue };
            let pass = LowRankPass {
                adapter,
                input: self.place(input),
                down: self.vector(part.down)?,
                inner,
                rank: self.tape.weight(part.down).rows,
                up: self.vector(part.up)?,
                scale: part.scale,
                output: self.place(output),
            };
            self.plan.passes.push(Pass::LowRank(pass));
        }
        Ok(())
    }

    fn head_linear(
        &mut self,
        heads: u32,
        input: &HeadColumns,
        weight: WeightId,
        output: &HeadColumns,
    ) -> Result<Pass, LoadError> {
        let matrix = self.matrix(MatrixKey::Stacked(vec![weight]))?;
        debug_assert_eq!(self.tape.weight(weight).rows, heads * output.width);
        let mut parameters = Parameters::new(&self.head_columns(input));
        parameters.extend(&[input.width]);
        parameters.extend(&self.head_columns(output));
        parameters.extend(&[output.width]);
        Ok(Pass::HeadLinear(HeadLinearPass { matrix, parameters }))
    }

    fn rotary(&mut self, op: &Op) -> Result<Pass, LoadError> {
        let Op::RotaryAppend { layer, head_norms, rotary, growth, query, key, value } = op else {
            unreachable!("invariant: `lower` asks for this op only")
        };
        let norms = head_norms.as_ref();
        Ok(Pass::Rotary(RotaryPass {
            layer: *layer,
            query: self.place(*query),
            key: self.place(*key),
            value: self.place(*value),
            query_norm: self.optional(norms.map(|norms| norms.query))?,
            key_norm: self.optional(norms.map(|norms| norms.key))?,
            epsilon: norms.map_or(0.0, |norms| norms.epsilon),
            rotary: *rotary,
            growth: *growth,
            is_joined: false,
        }))
    }

    /// A pass for the parts of each form.
    fn linear(&mut self, input: ActivationId, parts: &[ops::LinearPart]) -> Result<(), LoadError> {
        let mut forms: Vec<(Form, Vec<&ops::LinearPart>)> = Vec::new();
        for part in parts {
            let form = Form::of(self.tape.shape(part.weight, self.source)?.format);
            match forms.iter_mut().find(|(known, list)| *known == form && list.len() < PARTS_MAX) {
                Some((_, list)) => list.push(part),
                None => forms.push((form, vec![part])),
            }
        }
        for (_, list) in forms {
            let tensors = list.iter().map(|part| part.weight).collect();
            let matrix = self.arranged_matrix(MatrixKey::Stacked(tensors))?;
            let (mut end, mut lowered) = (0, Vec::new());
            for part in list {
                end += self.tape.weight(part.weight).rows;
                let output = self.place(part.target.buffer());
                let bias = self.optional(part.bias)?;
                lowered.push(Part { end, output, mode: mode_of(part.target), bias });
            }
            let scales = self.unit_scales(input, 1.0);
            let input = self.place(input);
            self.plan.passes.push(Pass::Linear { matrix, input, scales, parts: lowered });
        }
        Ok(())
    }

    /// A matrix for kernels that read it unit by unit.
    pub(crate) fn matrix(&mut self, key: MatrixKey) -> Result<MatrixIndex, LoadError> {
        self.matrix_in(key, false)
    }

    /// A matrix for products of all tokens, in the order that is best for those.
    fn arranged_matrix(&mut self, key: MatrixKey) -> Result<MatrixIndex, LoadError> {
        self.matrix_in(key, self.plan.bounds.has_fragments)
    }

    fn matrix_in(&mut self, key: MatrixKey, arranged: bool) -> Result<MatrixIndex, LoadError> {
        if let Some(&index) = self.indices.get(&key) {
            return Ok(index);
        }
        let mut forms = Vec::new();
        let (mut rows, mut cols) = (0, 0);
        for &tensor in key.tensors() {
            let shape = self.tape.shape(tensor, self.source)?;
            forms.push(Form::of(shape.format));
            rows += shape.rows;
            cols = shape.cols;
        }
        // A gate and an up of different forms are both kept in one that holds either.
        let is_one = forms.iter().all(|form| *form == forms[0]);
        let form = if is_one { forms[0] } else { Form::F16 };
        let form = if arranged { form.arranged(cols.div_ceil(UNIT)) } else { form };
        let name = &self.tape.weight(key.tensors()[0]).name;
        let pieces = self.plan.bounds.pieces(form, rows, cols.div_ceil(UNIT), name)?;
        let index = MatrixIndex(self.plan.matrices.len());
        self.plan.matrices.push(MatrixPlan { key: key.clone(), form, cols, pieces });
        self.indices.insert(key, index);
        Ok(index)
    }

    pub(crate) fn vector(&mut self, id: WeightId) -> Result<Vector, LoadError> {
        if let Some(&known) = self.plan.vectors.get(&id) {
            return Ok(known);
        }
        let shape = self.tape.shape(id, self.source)?;
        let vector = Vector(self.plan.vector_elements);
        self.plan.vector_elements += (shape.rows * shape.cols).next_multiple_of(4) as u32;
        self.plan.vectors.insert(id, vector);
        Ok(vector)
    }

    pub(crate) fn optional(&mut self, id: Option<WeightId>) -> Result<Vector, LoadError> {
        id.map_or(Ok(Vector::NONE), |id| self.vector(id))
    }

    /// What an activation is multiplied by before it is rounded. A gate times an up can be larger
    /// than the 65,504 that f16 has, so a sixteenth of it is kept, as `backend-cuda` does.
    pub(crate) fn rounding_of(&self, id: ActivationId) -> f32 {
        if self.gated.contains(&id) { GATED_SCALE } else { 1.0 }
    }

    fn unit_scales(&self, input: ActivationId, gated: f32) -> UnitScales {
        UnitScales { input: 1.0 / self.rounding_of(input), gated }
    }

    pub(crate) fn place(&self, id: ActivationId) -> Place {
        self.plan.places.activations[usize::from(id.0)]
    }
}

pub(crate) fn mode_of(target: Target) -> PartMode {
    match target {
        Target::Store(_) => PartMode::Store,
        Target::AddTo(_) => PartMode::Add,
    }
}

pub(crate) fn gate_mode(activation: Activation) -> PartMode {
    match activation {
        Activation::Silu => PartMode::GateSilu,
        Activation::GeluTanh => PartMode::GateGelu,
        Activation::ClampedSilu => PartMode::GateClamped,
    }
}
