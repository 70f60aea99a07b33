//! Which passes take rows one by one, beside products and attention? What only some families have,
//! and the halves that products read of what is kept in f32.
//!
//! Their kernels are loaded where a model has them.

use device::{LoadError, Tape};
use ops::gated_delta::{DeltaShape, HeadSharing};
use ops::{ActivationId, Carried, DeltaInputs, Op, WeightId};

use crate::arguments::{
    CausalConvArguments, GatedDeltaArguments, GatedNormArguments, HalveArguments,
    SigmoidGateArguments,
};
use crate::driver::CudaError;
use crate::gpu::Grid;
use crate::lowering::{Kept, Pass, Plan, lacks};
use crate::program::Step;
use crate::states::CarriedPlace;
use crate::step_inputs::at;

#[derive(Clone, Debug)]
pub(crate) enum RowPass {
    Halve { input: ActivationId, output: ActivationId },
    CausalConv { values: ActivationId, weight: WeightId, taps: u32, carried: Carried },
    GatedDelta(DeltaPass),
    GatedNorm { values: ActivationId, weight: WeightId, epsilon: f32, gate: ActivationId },
    SigmoidGate { values: ActivationId, gate: ActivationId },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct DeltaPass {
    shape: DeltaShape,
    inputs: DeltaInputs,
    rate: WeightId,
    bias: WeightId,
    carried: Carried,
    output: ActivationId,
}

/// `TAPS_MAX` of `kernels/causal_conv.cu`.
const TAPS_MAX: u32 = 16;
/// `WARP_KEYS` and `WARPS_MAX` of `kernels/gated_delta.cu`.
const WARP_KEYS: u32 = 32;
const DELTA_KEYS_MAX: u32 = 8 * WARP_KEYS;
/// Values of a row that a block takes, in kernels that do so.
const BLOCK_VALUES: u32 = 1024;

impl RowPass {
    /// Its functions, with the images that hold them.
    pub(crate) fn functions(&self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Halve { .. } => &[("linear.halve", "linear_halve")],
            Self::CausalConv { .. } => &[("causal_conv", "causal_conv")],
            Self::GatedDelta(_) => {
                &[("gated_delta", "gated_delta"), ("gated_delta", "gated_delta_keep")]
            }
            Self::GatedNorm { .. } => &[("gated_norm", "gated_norm")],
            Self::SigmoidGate { .. } => &[("sigmoid_gate", "sigmoid_gate")],
        }
    }

    pub(crate) fn reads(&self, id: ActivationId) -> bool {
        match self {
            Self::Halve { input, .. } => *input == id,
            Self::CausalConv { values, .. } => *values == id,
            Self::GatedDelta(DeltaPass {
                inputs: DeltaInputs { mixed, decay, strength }, ..
            }) => [mixed, decay, strength].contains(&&id),
            Self::GatedNorm { values, gate, .. } | Self::SigmoidGate { values, gate } => {
                [values, gate].contains(&&id)
            }
        }
    }
}

/// Activations that products read and other ops than norms, attention and gates give: each has a
/// copy in f16, behind the tape's own.
pub(crate) fn halved(tape: &Tape, kept: &[Kept]) -> Vec<ActivationId> {
    let read = tape.ops.iter().filter_map(|op| match op {
        Op::Linear { input, .. } | Op::GatedLinear { input, .. } => Some(*input),
        _ => None,
    });
    let mut halved: Vec<_> = read.filter(|id| kept[id.0 as usize] == Kept::Float).collect();
    halved.sort_unstable();
    halved.dedup();
    halved
}

impl Plan {
    pub(crate) fn lower_row_op(&mut self, tape: &Tape, op: &Op) -> Result<(), LoadError> {
        let pass = match *op {
            Op::CausalConv { values, weight, taps, carried } => {
                if taps > TAPS_MAX {
                    return Err(lacks("convolutions of more than 16 taps"));
                }
                self.vector(tape, weight);
                RowPass::CausalConv { values, weight, taps, carried }
            }
            Op::GatedDelta { shape, inputs, rate, bias, carried, output } => {
                if shape.key_dim > DELTA_KEYS_MAX {
                    return Err(lacks("gated delta nets of more than 256 keys"));
                }
                self.vector(tape, rate);
                self.vector(tape, bias);
                let pass = DeltaPass { shape, inputs, rate, bias, carried, output };
                RowPass::GatedDelta(pass)
            }
            Op::GatedNorm { values, weight, epsilon, gate } => {
                self.vector(tape, weight);
                RowPass::GatedNorm { values, weight, epsilon, gate }
            }
            Op::SigmoidGate { values, gate } => RowPass::SigmoidGate { values, gate },
            _ => unreachable!("invariant: told apart by whoever lowers"),
        };
        self.passes.push(Pass::Row(pass));
        Ok(())
    }

    /// What a product reads: the activation, or its halves, which are made for it.
    pub(crate) fn halves(&mut self, tape: &Tape, input: ActivationId) -> ActivationId {
        if self.kept[input.0 as usize] != Kept::Float {
            return input;
        }
        let place = self.halved.iter().position(|id| *id == input);
        let place = place.expect("invariant: found when the plan was begun");
        let first = tape.activations.len() - self.halved.len();
        let output = ActivationId((first + place) as u16);
        self.passes.push(Pass::Row(RowPass::Halve { input, output }));
        output
    }
}

impl Step<'_> {
    pub(crate) fn row_pass(&self, pass: &RowPass) -> Result<(), CudaError> {
        let program = self.program;
        match *pass {
            RowPass::Halve { input, output } => {
                let arguments = HalveArguments {
                    rows: self.count(input),
                    input: program.activation(input),
                    output: program.activation(output),
                    width: self.width(input),
                    output_stride: self.stride(output),
                };
                self.by_values("linear_halve", input, &arguments)
            }
            RowPass::CausalConv { values, weight, taps, carried } => {
                let place = program.states.place(carried);
                let channels = self.width(values);
                let arguments = CausalConvArguments {
                    header: self.base,
                    rows: at(self.base, self.layout.rows),
                    carried: at(self.base, self.layout.carried),
                    values: program.activation(values),
                    weight: program.stored.vectors[&weight],
                    states: place.states,
                    guesses: place.guesses,
                    state_stride: place.state_stride,
                    guess_stride: place.guess_stride,
                    guesses_max: place.guesses_max,
                    channels,
                    taps,
                };
                let blocks = [self.step_rows.max(1), channels.div_ceil(256)];
                self.launch_extra("causal_conv", blocks, 256, &arguments)
            }
            RowPass::GatedDelta(ref pass) => self.gated_delta(pass),
            RowPass::GatedNorm { values, weight, epsilon, gate } => {
                let width = program.plan.vectors[&weight];
                let heads = self.width(values) / width;
                let arguments = GatedNormArguments {
                    rows: self.count(values),
                    values: program.activation(values),
                    gate: program.activation(gate),
                    weight: program.stored.vectors[&weight],
                    heads,
                    width,
                    epsilon,
                };
                let blocks = [self.rows(values).max(1), heads.div_ceil(8)];
                self.launch_extra("gated_norm", blocks, 256, &arguments)
            }
            RowPass::SigmoidGate { values, gate } => {
                let arguments = SigmoidGateArguments {
                    rows: self.count(values),
                    values: program.activation(values),
                    gate: program.activation(gate),
                    stride: self.stride(values),
                    width: self.width(values),
                    gates: self.width(gate),
                    // A sixteenth of a value has the same gate.
                    is_half: u32::from(program.plan.kept[values.0 as usize] != Kept::Float),
                };
                self.by_values("sigmoid_gate", values, &arguments)
            }
        }
    }

    fn gated_delta(&self, pass: &DeltaPass) -> Result<(), CudaError> {
        let program = self.program;
        let &DeltaPass { shape, inputs, rate, bias, carried, output } = pass;
        let CarriedPlace { states, guesses, state_stride, guess_stride, guesses_max } =
            program.states.place(carried);
        let arguments = GatedDeltaArguments {
            header: self.base,
            rows: at(self.base, self.layout.rows),
            carried: at(self.base, self.layout.carried),
            mixed: program.activation(inputs.mixed),
            decay: program.activation(inputs.decay),
            strength: program.activation(inputs.strength),
            rate: program.stored.vectors[&rate],
            bias: program.stored.vectors[&bias],
            output: program.activation(output),
            states,
            guesses,
            state_stride,
            guess_stride,
            guesses_max,
            heads: shape.heads,
            heads_key: shape.heads_key,
            key_dim: shape.key_dim,
            value_dim: shape.value_dim,
            is_grouped: match shape.sharing {
                HeadSharing::Grouped => 1,
                HeadSharing::Tiled => 0,
            },
        };
        let rows = self.step_rows.max(1);
        let blocks = [rows, shape.heads * shape.value_dim.div_ceil(32)];
        let threads = 32 * shape.key_dim.div_ceil(WARP_KEYS);
        self.launch_extra("gated_delta", blocks, threads, &arguments)?;
        if guesses_max == 0 {
            return Ok(());
        }
        self.launch_extra("gated_delta_keep", [rows, 1], 256, &arguments)
    }

    /// Blocks for so many values of a row each.
    fn by_values<A: Copy>(
        &self,
        name: &'static str,
        rows_of: ActivationId,
        arguments: &A,
    ) -> Result<(), CudaError> {
        let across = self.width(rows_of).div_ceil(BLOCK_VALUES);
        self.launch_extra(name, [self.rows(rows_of).max(1), across], 256, arguments)
    }

    fn launch_extra<A: Copy>(
        &self,
        name: &'static str,
        blocks: [u32; 2],
        threads: u32,
        arguments: &A,
    ) -> Result<(), CudaError> {
        let function = self.program.kernels.extras[name];
        self.spread(function, Grid { blocks, threads, shared_bytes: 0 }, arguments)
    }
}
