//! How are ops of gated delta nets run? With what the sequences of a step carry.

use device::{LoadError, Tape};
use ops::{ActivationId, Op};

use crate::kernels::causal_conv::{CausalConv, TAPS_MAX, causal_conv};
use crate::kernels::gated_delta::{GatedDelta, gated_delta, scratch_floats};
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
    pub(crate) fn carried(&self, worker: &Worker<'_>, op: &Op) {
        let (program, inputs) = (self.program, self.inputs);
        match *op {
            Op::CausalConv { values, weight, taps, carried } => {
                let call = CausalConv {
                    values: self.rows(values),
                    weight: program.stored.vector(weight),
                    taps: taps as usize,
                    carrying: program.states.carrying(inputs, carried),
                };
                // SAFETY: every member runs this same pass, and only the team touches the
                // program's buffers meanwhile.
                unsafe { causal_conv(worker, program.isa, &call) };
            }
            Op::GatedDelta { shape, inputs: from, rate, bias, carried, output } => {
                let call = GatedDelta {
                    shape,
                    mixed: self.rows(from.mixed),
                    decay: self.rows(from.decay),
                    strength: self.rows(from.strength),
                    rate: program.stored.vector(rate),
                    bias: program.stored.vector(bias),
                    carrying: program.states.carrying(inputs, carried),
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
            _ => unreachable!("invariant: lowered as another pass"),
        }
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
