//! How are ops run that later families brought? Those of gated delta nets with what the sequences
//! of a step carry; the others row by row with their references, for they are few values of a row.

use device::{LoadError, Tape};
use ops::{ActivationId, Op, RotaryId};

use crate::kernels::causal_conv::{CausalConv, TAPS_MAX, causal_conv};
use crate::kernels::gated_delta::{GatedDelta, gated_delta, scratch_floats};
use crate::kernels::rotary::RotaryStyle;
use crate::program::{Step, lock};
use crate::team::Worker;

/// Fails where a net has sizes that the kernels are not made for.
pub(crate) fn check(tape: &Tape) -> Result<(), LoadError> {
    for op in &tape.ops {
        let fits = match op {
            Op::CausalConv { values, taps, .. } => {
                let is_whole = tape.activation(*values).width.is_multiple_of(16);
                is_whole && (1..=TAPS_MAX).contains(&(*taps as usize))
            }
            Op::GatedDelta { shape, .. } => shape.value_dim.is_multiple_of(16),
            _ => true,
        };
        if !fits {
            return Err(LoadError(format!(
                "an op {} has sizes that are no multiples of 16, which this device needs: use \
                 --device reference",
                op.name()
            )));
        }
    }
    Ok(())
}

/// Floats that a member needs for any of them.
pub(crate) fn scratch_max(tape: &Tape) -> usize {
    let floats = tape.ops.iter().map(|op| match op {
        Op::GatedDelta { shape, .. } => scratch_floats(shape),
        _ => 0,
    });
    floats.max().unwrap_or(0)
}

impl Step<'_> {
    pub(crate) fn row_op(&self, worker: &Worker<'_>, op: &Op) {
        let (program, inputs) = (self.program, self.inputs);
        match *op {
            Op::CausalConv { values, weight, taps, carried } => {
                let values = self.rows(values);
                let sizes = [(taps as usize - 1) * values.width(), values.width()];
                let call = CausalConv {
                    values,
                    weight: program.stored.vector(weight),
                    taps: taps as usize,
                    carrying: program.states.carrying(inputs, carried, sizes),
                };
                // SAFETY: every member runs this same pass, and only the team touches the
                // program's buffers meanwhile.
                unsafe { causal_conv(worker, program.isa, &call) };
            }
            Op::GatedDelta { shape, inputs: from, rate, bias, carried, output } => {
                let kept = shape.mixed_width() + 2 * shape.heads;
                let sizes = [shape.state_elements() as usize, kept as usize];
                let call = GatedDelta {
                    shape,
                    mixed: self.rows(from.mixed),
                    decay: self.rows(from.decay),
                    strength: self.rows(from.strength),
                    rate: program.stored.vector(rate),
                    bias: program.stored.vector(bias),
                    carrying: program.states.carrying(inputs, carried, sizes),
                    output: self.rows(output),
                };
                let mut scratch = lock(&program.inner[worker.index()]);
                // SAFETY: as above; the scratch is this member's.
                unsafe { gated_delta(worker, program.isa, &call, &mut scratch) };
            }
            Op::GatedNorm { values, weight, epsilon, gate } => {
                let weight = program.stored.vector(weight);
                self.each_gated(worker, values, gate, |gate, values| {
                    ops::gated_norm::reference(weight, epsilon, gate, values);
                });
            }
            Op::SigmoidGate { values, gate } => {
                self.each_gated(worker, values, gate, ops::sigmoid_gate::reference);
            }
            Op::NormHeads { values, width, weight, epsilon } => {
                let weight = weight.map(|weight| program.stored.vector(weight));
                self.each_row(worker, values, |row| {
                    ops::norm_heads::reference(width as usize, weight, epsilon, row);
                });
            }
            Op::Rotate { values, head_dim, rotary } => {
                self.rotate(worker, values, head_dim as usize, rotary);
            }
            Op::Blend { values, other, scale } => {
                self.each_gated(worker, values, other, |other, values| {
                    ops::blend::reference(scale, other, values);
                });
            }
            Op::Scale { values, by } => {
                let by = program.stored.vector(by);
                self.each_row(worker, values, |row| ops::blend::scale(by, row));
            }
            _ => unreachable!("invariant: lowered as another pass"),
        }
    }

    /// Turns heads by the step's table.
    fn rotate(&self, worker: &Worker<'_>, values: ActivationId, head_dim: usize, rotary: RotaryId) {
        let turns = &self.program.buffers.turns[usize::from(rotary.0)];
        let (table, rows) = (self.table(turns), self.rows(values));
        let apart = match turns.style {
            RotaryStyle::HalfSplit => (1, turns.frequencies.len()),
            RotaryStyle::AdjacentPair => (2, 1),
        };
        worker.for_each(rows.rows(), |row| {
            // SAFETY: the table was written before the ops; each row is of the one member that
            // claimed it.
            let (cos, sin, row) =
                unsafe { (table.cos.row(row), table.sin.row(row), rows.row_mut(row)) };
            for head in row.chunks_exact_mut(head_dim) {
                for (pair, (cos, sin)) in cos.iter().zip(sin).enumerate() {
                    let (first, second) = (pair * apart.0, pair * apart.0 + apart.1);
                    let (a, b) = (head[first], head[second]);
                    head[first] = a * cos - b * sin;
                    head[second] = b * cos + a * sin;
                }
            }
        });
    }

    /// Changes every row in place, by its row of gates.
    fn each_gated(
        &self,
        worker: &Worker<'_>,
        values: ActivationId,
        gate: ActivationId,
        change: impl Fn(&[f32], &mut [f32]),
    ) {
        let (values, gate) = (self.rows(values), self.rows(gate));
        worker.for_each(values.rows(), |row| {
            // SAFETY: different buffers; nobody writes the one, and each row of the other is of
            // the one member that claimed it.
            let (gate, values) = unsafe { (gate.row(row), values.row_mut(row)) };
            change(gate, values);
        });
    }
}
