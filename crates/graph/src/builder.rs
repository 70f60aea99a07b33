//! Do the ops fit together? Declares buffers and weights; checks every op's shapes as it comes.

use std::collections::HashMap;

use device::{ActivationSpec, RowPart, Rows, StateShape, Tape, WeightSpec};
use ops::experts::{Experts, Routing};
use ops::gated_delta::DeltaShape;
use ops::rotary::Rotary;
use ops::{ActivationId, Carried, DeltaInputs, HeadColumns, LinearPart, Op, RotaryId, WeightId};

/// An op that does not fit its operands: a bug in a block, or sizes that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op} does not fit: {what}")]
pub struct ShapeError {
    pub op: &'static str,
    pub what: String,
}

#[derive(Default)]
pub struct Builder {
    ops: Vec<Op>,
    activations: Vec<ActivationSpec>,
    weights: Vec<WeightSpec>,
    /// By name and first row.
    known: HashMap<(String, u32), WeightId>,
    rotaries: Vec<Rotary>,
    state: StateShape,
    layer_starts: Vec<u32>,
}

impl Builder {
    pub fn activation(&mut self, name: &'static str, width: u32, rows: Rows) -> ActivationId {
        self.activations.push(ActivationSpec { name, width, rows });
        ActivationId(u16::try_from(self.activations.len() - 1).expect("invariant: few buffers"))
    }

    /// A tensor of `[rows, cols]`; the same name again is the same weight.
    pub fn weight(&mut self, name: &str, rows: u32, cols: u32) -> WeightId {
        self.weight_part(name, rows, cols, None)
    }

    /// Some rows of a tensor, or all of it.
    pub fn weight_part(
        &mut self,
        name: &str,
        rows: u32,
        cols: u32,
        part: Option<RowPart>,
    ) -> WeightId {
        let key = (name.to_owned(), part.map_or(0, |part| part.first));
        *self.known.entry(key).or_insert_with(|| {
            self.weights.push(WeightSpec { name: name.to_owned(), rows, cols, part });
            let index = self.weights.len() - 1;
            WeightId(u32::try_from(index).expect("invariant: fewer weights than 2^32"))
        })
    }

    /// A rotation; an equal one is the same.
    pub fn rotary(&mut self, rotary: &Rotary) -> RotaryId {
        let known = self.rotaries.iter().position(|known| known == rotary);
        let index = known.unwrap_or_else(|| {
            self.rotaries.push(rotary.clone());
            self.rotaries.len() - 1
        });
        RotaryId(u16::try_from(index).expect("invariant: fewer rotations than layers"))
    }

    /// Room for what an op carries from token to token, and for what it keeps of each guess.
    ///
    /// # Errors
    /// [`ShapeError`] where a state would have more elements than are counted.
    pub fn carry(&mut self, elements: u32, guess_elements: u32) -> Result<Carried, ShapeError> {
        let StateShape { elements: state, guess_elements: guess } = self.state;
        let sum = state.checked_add(elements).zip(guess.checked_add(guess_elements));
        let (elements, guess_elements) = sum.ok_or_else(|| ShapeError {
            op: "gated_delta",
            what: "a state of 2^32 elements and more".to_owned(),
        })?;
        self.state = StateShape { elements, guess_elements };
        Ok(Carried { state, guess })
    }

    /// What is pushed from here on is the next layer's.
    pub fn begin_layer(&mut self) {
        let start = u32::try_from(self.ops.len()).expect("invariant: fewer ops than 2^32");
        self.layer_starts.push(start);
    }

    /// Adds an op.
    ///
    /// # Errors
    /// [`ShapeError`] naming the operand whose width does not fit.
    pub fn push(&mut self, op: Op) -> Result<(), ShapeError> {
        match self.misfit(&op) {
            Some(what) => Err(ShapeError { op: op.name(), what }),
            None => {
                self.ops.push(op);
                Ok(())
            }
        }
    }

    pub fn finish(self, layers: u32, heads_kv: u32, head_dim: u32) -> Tape {
        let vocabulary = match self.ops.last() {
            Some(Op::SampleRows { logits }) => self.width(*logits),
            _ => self.embedded(),
        };
        Tape {
            ops: self.ops,
            activations: self.activations,
            weights: self.weights,
            rotaries: self.rotaries,
            layers,
            heads_kv,
            head_dim,
            vocabulary,
            state: self.state,
            layer_starts: self.layer_starts,
        }
    }

    /// Rows of the table that tokens are looked up in.
    fn embedded(&self) -> u32 {
        let table = self.ops.iter().find_map(|op| match op {
            Op::Embed { table, .. } => Some(&self.weights[table.0 as usize]),
            _ => None,
        });
        table.map_or(0, |table| table.rows)
    }

    fn width(&self, id: ActivationId) -> u32 {
        self.activations[id.0 as usize].width
    }

    fn misfit(&self, op: &Op) -> Option<String> {
        match op {
            Op::Embed { table, output, .. } | Op::EmbedMore { table, output, .. } => {
                self.cols_fit(*table, *output)
            }
            Op::LayerNorm { values, weight, bias, .. } => {
                self.cols_fit(*weight, *values).or_else(|| self.cols_fit(*bias, *values))
            }
            Op::RmsNorm { input, weight, target, .. } => {
                self.cols_fit(*weight, *input).or_else(|| self.cols_fit(*weight, target.buffer()))
            }
            Op::Linear { input, parts } => {
                parts.iter().find_map(|part| self.part_misfit(*input, part))
            }
            Op::GatedLinear { input, gate, up, output, .. } => self
                .cols_fit(*gate, *input)
                .or_else(|| self.cols_fit(*up, *input))
                .or_else(|| self.rows_fit(*gate, *output))
                .or_else(|| self.rows_fit(*up, *output)),
            Op::Experts { input, scores, experts, target } => {
                self.experts_misfit(*input, *scores, experts, target.buffer())
            }
            Op::HeadLinear { heads, input, weight, output } => {
                let weight = &self.weights[weight.0 as usize];
                let rows = heads.saturating_mul(output.width);
                let fits = (weight.rows, weight.cols) == (rows, input.width);
                let misfit = || format!("{} is not {rows} x {}", weight.name, input.width);
                self.columns_misfit(*heads, &[*input, *output]).or((!fits).then(misfit))
            }
            Op::CopyColumns { heads, input, output } => (input.width != output.width)
                .then(|| "input and output differ in width".to_owned())
                .or_else(|| self.columns_misfit(*heads, &[*input, *output])),
            Op::RotaryAppend { key, value, head_norms, .. } => {
                let cols = |id: WeightId| self.weights[id.0 as usize].cols;
                let differ = head_norms.is_some_and(|norms| cols(norms.query) != cols(norms.key));
                let wider = self.width(*key) != self.width(*value);
                (wider || differ).then(|| "keys differ in width from values or queries".to_owned())
            }
            Op::PagedAttention { query, shape, sinks, output, .. } => {
                let width = shape.heads * shape.head_dim;
                let fits = self.width(*query) == width && self.width(*output) == width;
                let cols = |id: WeightId| self.weights[id.0 as usize].cols;
                let one_each = sinks.is_none_or(|sinks| cols(sinks) == shape.heads);
                (!fits || !one_each)
                    .then(|| format!("{width} elements in heads, not in query, output or sinks"))
            }
            Op::CausalConv { .. }
            | Op::GatedDelta { .. }
            | Op::GatedNorm { .. }
            | Op::SigmoidGate { .. }
            | Op::NormHeads { .. }
            | Op::Rotate { .. }
            | Op::Blend { .. }
            | Op::Scale { .. } => self.later_misfit(op),
            Op::SelectRows { input, output } | Op::PoolRows { input, output, .. } => {
                (self.width(*input) != self.width(*output))
                    .then(|| "input and output differ in width".to_owned())
            }
            Op::SoftCap { .. }
            | Op::Activate { .. }
            | Op::SampleRows { .. }
            | Op::GiveRows { .. }
            | Op::ReceiveRows { .. }
            | Op::SendRows { .. }
            // Made of a finished tape.
            | Op::Gate { .. }
            | Op::AddLowRank { .. } => None,
        }
    }

    /// Of the ops that later families brought.
    fn later_misfit(&self, op: &Op) -> Option<String> {
        match op {
            Op::CausalConv { values, weight, taps, .. } => {
                let (weight, width) = (&self.weights[weight.0 as usize], self.width(*values));
                ((weight.rows, weight.cols) != (width, *taps))
                    .then(|| format!("{} is not {width} x {taps}", weight.name))
            }
            Op::GatedDelta { shape, inputs, rate, bias, output, .. } => {
                self.delta_misfit(shape, inputs, [*rate, *bias], *output)
            }
            Op::GatedNorm { values, weight, gate, .. } => {
                let cols = self.weights[weight.0 as usize].cols;
                let width = self.width(*values);
                let fits = width == self.width(*gate) && width.is_multiple_of(cols);
                (!fits).then(|| format!("values and gates are no heads of {cols}"))
            }
            Op::SigmoidGate { values, gate } => {
                let fits = self.width(*values).is_multiple_of(self.width(*gate));
                (!fits).then(|| "values are no multiple of gates".to_owned())
            }
            Op::NormHeads { values, width, weight, .. } => {
                let fits = self.width(*values).is_multiple_of(*width)
                    && weight.is_none_or(|id| self.weights[id.0 as usize].cols == *width);
                (!fits).then(|| format!("values or weight are no heads of {width}"))
            }
            Op::Rotate { values, head_dim, .. } => {
                let fits = self.width(*values).is_multiple_of(*head_dim);
                (!fits).then(|| format!("values are no heads of {head_dim}"))
            }
            Op::Blend { values, other, .. } => {
                let fits = self.width(*values) == self.width(*other);
                (!fits).then(|| "the two differ in width".to_owned())
            }
            Op::Scale { by, .. } => {
                let by = &self.weights[by.0 as usize];
                ((by.rows, by.cols) != (1, 1)).then(|| format!("{} is not 1 x 1", by.name))
            }
            _ => None,
        }
    }

    fn delta_misfit(
        &self,
        shape: &DeltaShape,
        inputs: &DeltaInputs,
        vectors: [WeightId; 2],
        output: ActivationId,
    ) -> Option<String> {
        let widths = [inputs.mixed, inputs.decay, inputs.strength, output].map(|id| self.width(id));
        let wanted = [shape.mixed_width(), shape.heads, shape.heads, shape.value_width()];
        let one_each = vectors.iter().all(|id| self.weights[id.0 as usize].cols == shape.heads);
        (widths != wanted || !one_each).then(|| format!("{shape:?} of {widths:?} columns"))
    }

    fn columns_misfit(&self, heads: u32, columns: &[HeadColumns]) -> Option<String> {
        let is_inside = |columns: &&HeadColumns| {
            let inside = columns.first.saturating_add(columns.width) <= columns.stride;
            inside && heads.saturating_mul(columns.stride) <= self.width(columns.buffer)
        };
        let outside = columns.iter().find(|columns| !is_inside(columns))?;
        Some(format!("{heads} heads of {} columns are not in their buffer", outside.stride))
    }

    fn experts_misfit(
        &self,
        input: ActivationId,
        scores: ActivationId,
        experts: &Experts,
        output: ActivationId,
    ) -> Option<String> {
        let Routing { experts: count, used, groups, groups_used, .. } = experts.routing;
        let (width, inner) = (self.width(input), experts.inner);
        let is_shaped = |id: WeightId, shape: (u32, u32)| {
            let weight = &self.weights[id.0 as usize];
            (weight.rows, weight.cols) == shape
        };
        let stacked = |rows: u32| rows.saturating_mul(count);
        let biases = |[gate, up, down]: [WeightId; 3]| {
            [(gate, inner), (up, inner), (down, width)].map(|(id, cols)| (id, (count, cols)))
        };
        let shapes = [
            (experts.gate, (stacked(inner), width)),
            (experts.up, (stacked(inner), width)),
            (experts.down, (stacked(width), inner)),
        ];
        let learned = [experts.choice_bias, experts.weight_scales];
        let learned = learned.into_iter().flatten().map(|vector| (vector, (1, count)));
        let all = shapes.into_iter().chain(experts.biases.into_iter().flat_map(biases));
        let misshapen = all.chain(learned).find(|&(id, shape)| !is_shaped(id, shape));
        if let Some((id, (rows, cols))) = misshapen {
            return Some(format!("{} is not {rows} x {cols}", self.weights[id.0 as usize].name));
        }
        let sized = groups > 0 && groups_used > 0 && groups_used <= groups && groups <= 128;
        let open = if sized { count / groups * groups_used } else { 0 };
        let fits = sized && count.is_multiple_of(groups) && used > 0 && used <= open;
        let widths = self.width(scores) == count && self.width(output) == width;
        (!fits || !widths).then(|| format!("{used} of {count} experts in {groups} groups"))
    }

    fn part_misfit(&self, input: ActivationId, part: &LinearPart) -> Option<String> {
        let output = part.target.buffer();
        self.cols_fit(part.weight, input)
            .or_else(|| self.rows_fit(part.weight, output))
            .or_else(|| part.bias.and_then(|bias| self.cols_fit(bias, output)))
    }

    fn cols_fit(&self, weight: WeightId, activation: ActivationId) -> Option<String> {
        let weight = &self.weights[weight.0 as usize];
        let width = self.width(activation);
        (weight.cols != width)
            .then(|| format!("{} has {} columns for width {width}", weight.name, weight.cols))
    }

    fn rows_fit(&self, weight: WeightId, activation: ActivationId) -> Option<String> {
        let weight = &self.weights[weight.0 as usize];
        let width = self.width(activation);
        (weight.rows != width)
            .then(|| format!("{} has {} rows for width {width}", weight.name, weight.rows))
    }
}
