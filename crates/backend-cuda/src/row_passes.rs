//! Which passes take rows one by one, beside products and attention? What only some families have,
//! and the halves that products read of what is kept in f32.
//!
//! Their kernels are loaded where a model has them.

use device::{LoadError, Tape};
use ops::gated_delta::{DeltaShape, HeadSharing};
use ops::pool_rows::Pooling;
use ops::rotary::Pairing;
use ops::{ActivationId, Carried, DeltaInputs, Op, RotaryId, WeightId};

use crate::adapters::LowRankPass;
use crate::arguments::{
    CausalConvArguments, GatedDeltaArguments, GatedNormArguments, HalveArguments,
    LayerNormArguments, NormHeadsArguments, PoolArguments, ReceivedArguments, RotateArguments,
    SigmoidGateArguments,
};
use crate::driver::CudaError;
use crate::each::EachPass;
use crate::gpu::{Address, Grid};
use crate::lowering::{Kept, Pass, Plan, lacks};
use crate::program::Step;
use crate::states::CarriedPlace;
use crate::step_inputs::at;

#[derive(Clone, Debug)]
pub(crate) enum RowPass {
    Halve {
        input: ActivationId,
        output: ActivationId,
    },
    CausalConv {
        values: ActivationId,
        weight: WeightId,
        taps: u32,
        carried: Carried,
    },
    GatedDelta(DeltaPass),
    GatedNorm {
        values: ActivationId,
        weight: WeightId,
        epsilon: f32,
        gate: ActivationId,
    },
    SigmoidGate {
        values: ActivationId,
        gate: ActivationId,
    },
    NormHeads {
        values: ActivationId,
        width: u32,
        weight: Option<WeightId>,
        epsilon: f32,
    },
    LayerNorm {
        values: ActivationId,
        weight: WeightId,
        bias: WeightId,
        epsilon: f32,
    },
    Rotate {
        values: ActivationId,
        head_dim: u32,
        rotary: RotaryId,
    },
    Each(EachPass),
    LowRank(LowRankPass),
    Pool {
        input: ActivationId,
        pooling: Pooling,
        output: ActivationId,
    },
    /// What is worked out of tokens where none is looked up.
    Received,
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
            Self::NormHeads { .. } => &[("norm_heads", "norm_heads")],
            Self::LayerNorm { .. } => &[("layer_norm", "layer_norm")],
            Self::Rotate { .. } => &[("rotary.rotate", "rotary_rotate")],
            Self::Each(_) => &[("activate", "activate")],
            Self::LowRank(_) => &[("low_rank", "low_rank_down"), ("low_rank", "low_rank_up")],
            Self::Pool { .. } => &[("pool_rows", "pool_rows")],
            Self::Received => &[("embed.received", "embed_received")],
        }
    }

    /// What must be kept in f32, of what it reads and writes.
    pub(crate) fn floats(&self) -> Vec<ActivationId> {
        match self {
            Self::Halve { input, .. } => vec![*input],
            Self::CausalConv { values, .. }
            | Self::NormHeads { values, .. }
            | Self::LayerNorm { values, .. }
            | Self::Rotate { values, .. } => vec![*values],
            Self::GatedDelta(DeltaPass {
                inputs: DeltaInputs { mixed, decay, strength },
                output,
                ..
            }) => vec![*mixed, *decay, *strength, *output],
            Self::GatedNorm { values, gate, .. } => vec![*values, *gate],
            Self::SigmoidGate { gate, .. } => vec![*gate],
            Self::Each(_) | Self::LowRank(_) | Self::Pool { .. } | Self::Received => Vec::new(),
        }
    }

    pub(crate) fn reads(&self, id: ActivationId) -> bool {
        match self {
            Self::Halve { input, .. } | Self::Pool { input, .. } => *input == id,
            Self::CausalConv { values, .. }
            | Self::NormHeads { values, .. }
            | Self::LayerNorm { values, .. }
            | Self::Rotate { values, .. } => *values == id,
            Self::Each(pass) => pass.reads(id),
            Self::LowRank(pass) => pass.reads(id),
            Self::GatedDelta(DeltaPass {
                inputs: DeltaInputs { mixed, decay, strength }, ..
            }) => [mixed, decay, strength].contains(&&id),
            Self::GatedNorm { values, gate, .. } | Self::SigmoidGate { values, gate } => {
                [values, gate].contains(&&id)
            }
            Self::Received => false,
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
            Op::NormHeads { values, width, weight, epsilon } => {
                weight.iter().for_each(|&weight| self.vector(tape, weight));
                RowPass::NormHeads { values, width, weight, epsilon }
            }
            Op::LayerNorm { values, weight, bias, epsilon } => {
                self.vector(tape, weight);
                self.vector(tape, bias);
                RowPass::LayerNorm { values, weight, bias, epsilon }
            }
            Op::Rotate { values, head_dim, rotary } => RowPass::Rotate { values, head_dim, rotary },
            Op::PoolRows { input, pooling, output } => {
                if self.kept[input.0 as usize] == Kept::GatedHalf {
                    return Err(lacks("vectors of gated values"));
                }
                self.pooled = self.pooled.max(tape.activation(output).width);
                RowPass::Pool { input, pooling, output }
            }
            Op::Activate { .. } | Op::Blend { .. } | Op::Scale { .. } | Op::Gate { .. } => {
                RowPass::Each(self.each_pass(tape, op)?)
            }
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
                self.causal_conv(values, (weight, taps), carried)
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
            RowPass::NormHeads { values, width, weight, epsilon } => {
                self.norm_heads(values, width, weight, epsilon)
            }
            RowPass::LayerNorm { values, weight, bias, epsilon } => {
                self.layer_norm(values, [weight, bias], epsilon)
            }
            RowPass::Rotate { values, head_dim, rotary } => self.rotate(values, head_dim, rotary),
            RowPass::Each(ref pass) => self.each(pass),
            RowPass::LowRank(ref pass) => self.low_rank(pass),
            RowPass::Pool { input, pooling, output } => self.pool(input, pooling, output),
            RowPass::Received => self.received(),
        }
    }

    fn received(&self) -> Result<(), CudaError> {
        let (program, layout) = (self.program, self.layout);
        let arguments = ReceivedArguments {
            header: self.base,
            sources: at(self.base, layout.sources),
            slots_last: program.work.slots_last,
            tokens: program.work.tokens,
            rows: at(self.base, layout.rows),
            token_rows: at(self.base, layout.token_rows),
            rotary: self.rotaries(),
            vocabulary: program.tape.vocabulary,
            rotaries: program.tape.rotaries.len() as u32,
        };
        self.launch_extra("embed_received", [self.tokens.max(1), 1], 256, &arguments)
    }

    fn causal_conv(
        &self,
        values: ActivationId,
        (weight, taps): (WeightId, u32),
        carried: Carried,
    ) -> Result<(), CudaError> {
        let program = self.program;
        let CarriedPlace { states, guesses, state_stride, guess_stride, guesses_max } =
            program.states.place(carried);
        let channels = self.width(values);
        let arguments = CausalConvArguments {
            header: self.base,
            rows: at(self.base, self.layout.rows),
            carried: at(self.base, self.layout.carried),
            values: program.activation(values),
            weight: program.stored.vectors[&weight],
            states,
            guesses,
            state_stride,
            guess_stride,
            guesses_max,
            channels,
            taps,
        };
        let blocks = [self.step_rows.max(1), channels.div_ceil(256)];
        self.launch_extra("causal_conv", blocks, 256, &arguments)
    }

    fn norm_heads(
        &self,
        values: ActivationId,
        width: u32,
        weight: Option<WeightId>,
        epsilon: f32,
    ) -> Result<(), CudaError> {
        let program = self.program;
        let heads = self.width(values) / width;
        let arguments = NormHeadsArguments {
            rows: self.count(values),
            values: program.activation(values),
            weight: weight.map_or(Address::NONE, |weight| program.stored.vectors[&weight]),
            heads,
            width,
            epsilon,
        };
        self.launch_extra("norm_heads", [self.rows(values).max(1), heads], 128, &arguments)
    }

    fn layer_norm(
        &self,
        values: ActivationId,
        [weight, bias]: [WeightId; 2],
        epsilon: f32,
    ) -> Result<(), CudaError> {
        let program = self.program;
        let arguments = LayerNormArguments {
            rows: self.count(values),
            values: program.activation(values),
            weight: program.stored.vectors[&weight],
            bias: program.stored.vectors[&bias],
            width: self.width(values),
            epsilon,
        };
        self.launch_extra("layer_norm", [self.rows(values).max(1), 1], 256, &arguments)
    }

    fn rotate(
        &self,
        values: ActivationId,
        head_dim: u32,
        rotary: RotaryId,
    ) -> Result<(), CudaError> {
        let program = self.program;
        let turned = program.tape.rotary(rotary);
        let arguments = RotateArguments {
            tokens: self.token_count(),
            values: program.activation(values),
            turns: program.work.turns[usize::from(rotary.0)],
            heads: self.width(values) / head_dim,
            head_dim,
            pairs: turned.dims / 2,
            half_split: u32::from(turned.pairing == Pairing::HalfSplit),
        };
        self.launch_extra("rotary_rotate", [self.tokens.max(1), 1], 256, &arguments)
    }

    fn pool(
        &self,
        input: ActivationId,
        pooling: Pooling,
        output: ActivationId,
    ) -> Result<(), CudaError> {
        let (program, width) = (self.program, self.width(output));
        let arguments = PoolArguments {
            header: self.base,
            rows: at(self.base, self.layout.rows),
            carried: at(self.base, self.layout.carried),
            input: program.activation(input),
            kept: program.work.pooled,
            output: program.activation(output),
            input_stride: self.stride(input),
            width,
            pooling: match pooling {
                Pooling::First => 0,
                Pooling::Last => 1,
                Pooling::Mean => 2,
            },
            is_half: u32::from(program.plan.kept[input.0 as usize] != Kept::Float),
        };
        let blocks = [self.step_rows.max(1), width.div_ceil(256)];
        self.launch_extra("pool_rows", blocks, 256, &arguments)
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
    pub(crate) fn by_values<A: Copy>(
        &self,
        name: &'static str,
        rows_of: ActivationId,
        arguments: &A,
    ) -> Result<(), CudaError> {
        let across = self.width(rows_of).div_ceil(BLOCK_VALUES);
        self.launch_extra(name, [self.rows(rows_of).max(1), across], 256, arguments)
    }

    pub(crate) fn launch_extra<A: Copy>(
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
