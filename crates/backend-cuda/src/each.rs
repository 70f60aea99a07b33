//! What is done to each value alone? Curves, sums, scales, and gates with what they gate.

use device::{LoadError, Tape};
use ops::activate::Curve;
use ops::gated_linear::Activation;
use ops::{ActivationId, Op, WeightId};

use crate::arguments::ActivateArguments;
use crate::driver::CudaError;
use crate::gpu::Address;
use crate::lowering::{Kept, Plan, lacks};
use crate::program::Step;

/// One launch of `kernels/activate.cu`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EachPass {
    values: ActivationId,
    other: Other,
    output: ActivationId,
    mode: Mode,
    number: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    None,
    Rows(ActivationId),
    One(WeightId),
}

/// As the kernel numbers them.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Gelu = 0,
    GeluTanh = 1,
    Relu = 2,
    Tanh = 3,
    Blend = 4,
    Scale = 5,
    JoinSilu = 6,
    JoinGelu = 7,
}

impl EachPass {
    pub(crate) fn reads(&self, id: ActivationId) -> bool {
        self.values == id || self.other == Other::Rows(id)
    }
}

impl Plan {
    pub(crate) fn each_pass(&mut self, tape: &Tape, op: &Op) -> Result<EachPass, LoadError> {
        let in_place = |values, mode| {
            let (other, output) = (Other::None, values);
            EachPass { values, other, output, mode, number: 0.0 }
        };
        let pass = match *op {
            Op::Activate { values, curve } => in_place(values, curve_mode(curve)),
            Op::Blend { values, other, scale } => {
                let other = Other::Rows(other);
                EachPass { other, number: scale, ..in_place(values, Mode::Blend) }
            }
            Op::Scale { values, by } => {
                self.vector(tape, by);
                EachPass { other: Other::One(by), ..in_place(values, Mode::Scale) }
            }
            Op::Gate { gate, up, activation, output } => {
                let mode = match activation {
                    Activation::Silu => Mode::JoinSilu,
                    Activation::GeluTanh => Mode::JoinGelu,
                    Activation::ClampedSilu => return Err(lacks("clamped gates")),
                };
                EachPass { other: Other::Rows(up), output, ..in_place(gate, mode) }
            }
            _ => unreachable!("invariant: told apart by whoever lowers"),
        };
        let is_float = |id: ActivationId| self.kept[id.0 as usize] == Kept::Float;
        let others = match pass.other {
            Other::Rows(id) => is_float(id),
            Other::None | Other::One(_) => true,
        };
        match is_float(pass.values) && others {
            true => Ok(pass),
            false => Err(lacks("curves of what is kept in f16")),
        }
    }
}

fn curve_mode(curve: Curve) -> Mode {
    match curve {
        Curve::Gelu => Mode::Gelu,
        Curve::GeluTanh => Mode::GeluTanh,
        Curve::Relu => Mode::Relu,
        Curve::Tanh => Mode::Tanh,
    }
}

impl Step<'_> {
    pub(crate) fn each(&self, pass: &EachPass) -> Result<(), CudaError> {
        let program = self.program;
        let &EachPass { values, other, output, mode, number } = pass;
        let arguments = ActivateArguments {
            rows: self.count(values),
            values: program.activation(values),
            other: match other {
                Other::None => Address::NONE,
                Other::Rows(id) => program.activation(id),
                Other::One(id) => program.stored.vectors[&id],
            },
            output: program.activation(output),
            width: self.width(values),
            output_stride: self.stride(output),
            mode: mode as u32,
            number,
        };
        self.by_values("activate", values, &arguments)
    }
}
