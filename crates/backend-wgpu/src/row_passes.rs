//! What do ops do that work on each row by itself? One launch with the same words in every step.

use device::{LoadError, Rows};
use ops::activate::Curve;
use ops::gated_linear::Activation;
use ops::{ActivationId, HeadColumns, Op, Target, WeightId};

use crate::dispatch::Parameters;
use crate::kernels::Kernel;
use crate::lowering::{Lowering, Pass, Vector, gate_mode};
use crate::sizes::Place;

/// A launch of a workgroup for each row, or of some.
#[derive(Clone, Debug)]
pub(crate) struct RowsPass {
    pub(crate) kernel: Kernel,
    pub(crate) parameters: Parameters,
    pub(crate) rows: Rows,
    /// Workgroups of a row.
    pub(crate) across: u32,
}

/// As `kernels/activate.wgsl` numbers them.
#[derive(Clone, Copy)]
enum Mode {
    SoftCap = 0,
    Gelu = 1,
    GeluTanh = 2,
    Relu = 3,
    Tanh = 4,
    SigmoidGate = 5,
    Blend = 6,
    Scale = 7,
    Join = 16,
}

/// Columns of a workgroup of the kernels `activate`, `experts.combine` and `select_rows`.
pub(crate) const COLUMNS: u32 = 1024;

/// What [`Kernel::Elementwise`] is told.
struct Elementwise {
    values: Place,
    other: [u32; 2],
    output: Place,
    mode: u32,
    number: f32,
    each: u32,
    /// What outputs are multiplied by before they are rounded.
    rounding: f32,
}

impl Lowering<'_> {
    /// The pass of such an op; `None` for another one.
    pub(crate) fn rows_pass(&mut self, op: &Op) -> Result<Option<Pass>, LoadError> {
        let pass = match op {
            Op::RmsNorm { input, weight, epsilon, target } => {
                let [input, output] = [self.place(*input), self.place(target.buffer())];
                let norm = Norm { input, output, width: input.width, epsilon: *epsilon };
                let adds = matches!(target, Target::AddTo(_));
                norm.pass(self.vector(*weight)?, adds, NO_GATE)
            }
            Op::NormHeads { values, width, weight, epsilon } => {
                let values = self.place(*values);
                let norm = Norm { input: values, output: values, width: *width, epsilon: *epsilon };
                norm.pass(self.optional(*weight)?, false, NO_GATE)
            }
            Op::GatedNorm { values, weight, epsilon, gate } => {
                let [values, gate] = [self.place(*values), self.place(*gate)];
                let width = self.elements(*weight)?;
                let norm = Norm { input: values, output: values, width, epsilon: *epsilon };
                norm.pass(self.vector(*weight)?, false, at(gate))
            }
            Op::LayerNorm { values, weight, bias, epsilon } => {
                let values = self.place(*values);
                let [first, stride] = at(values);
                let vectors = [self.vector(*weight)?.0, self.vector(*bias)?.0];
                let mut parameters = Parameters::new(&[first, stride, values.width]);
                parameters.extend(&vectors);
                parameters.extend(&[epsilon.to_bits()]);
                RowsPass { kernel: Kernel::LayerNorm, parameters, rows: values.rows, across: 1 }
            }
            Op::CopyColumns { heads, input, output } => self.copy_columns(*heads, input, output),
            _ => return Ok(self.elementwise(op)?.map(|elementwise| elementwise.pass())),
        };
        Ok(Some(Pass::Rows(pass)))
    }

    pub(crate) fn copy_columns(
        &self,
        heads: u32,
        input: &HeadColumns,
        output: &HeadColumns,
    ) -> RowsPass {
        let mut parameters = Parameters::new(&[]);
        for columns in [input, output] {
            parameters.extend(&self.head_columns(columns));
        }
        parameters.extend(&[heads, input.width]);
        let rows = self.place(output.buffer).rows;
        RowsPass { kernel: Kernel::CopyColumns, parameters, rows, across: 1 }
    }

    /// Place of the first head's first column, and how far rows and heads are apart.
    pub(crate) fn head_columns(&self, columns: &HeadColumns) -> [u32; 3] {
        let [first, stride] = at(self.place(columns.buffer));
        [first + columns.first, stride, columns.stride]
    }

    fn elementwise(&mut self, op: &Op) -> Result<Option<Elementwise>, LoadError> {
        let in_place = |lowering: &Self, values: ActivationId, mode: Mode| {
            let values = lowering.place(values);
            let mode = mode as u32;
            Elementwise {
                values,
                other: [0; 2],
                output: values,
                mode,
                number: 0.0,
                each: 1,
                rounding: 1.0,
            }
        };
        Ok(Some(match op {
            Op::SoftCap { values, cap } => {
                Elementwise { number: *cap, ..in_place(self, *values, Mode::SoftCap) }
            }
            Op::Activate { values, curve } => in_place(self, *values, curve_mode(*curve)),
            Op::SigmoidGate { values, gate } => {
                let gate = self.place(*gate);
                let each = self.place(*values).width / gate.width;
                Elementwise { other: at(gate), each, ..in_place(self, *values, Mode::SigmoidGate) }
            }
            Op::Blend { values, other, scale } => {
                let other = at(self.place(*other));
                Elementwise { other, number: *scale, ..in_place(self, *values, Mode::Blend) }
            }
            Op::Scale { values, by } => {
                let other = [self.vector(*by)?.0, 0];
                Elementwise { other, ..in_place(self, *values, Mode::Scale) }
            }
            Op::Gate { gate, up, activation, output } => {
                let rounding = self.rounding_of(*output);
                let (other, output) = (at(self.place(*up)), self.place(*output));
                let mode = join_mode(*activation);
                Elementwise { other, output, mode, rounding, ..in_place(self, *gate, Mode::Join) }
            }
            _ => return Ok(None),
        }))
    }

    /// Elements of a small tensor.
    fn elements(&self, weight: WeightId) -> Result<u32, LoadError> {
        let shape = self.tape.shape(weight, self.source)?;
        Ok((shape.rows * shape.cols) as u32)
    }
}

/// Instead of a gate's place.
const NO_GATE: [u32; 2] = [Vector::NONE.0, 0];

struct Norm {
    input: Place,
    output: Place,
    /// Of a head.
    width: u32,
    epsilon: f32,
}

impl Norm {
    fn pass(&self, weight: Vector, adds: bool, gate: [u32; 2]) -> RowsPass {
        let mut parameters = Parameters::new(&at(self.input));
        parameters.extend(&at(self.output));
        parameters.extend(&[self.width, weight.0, self.epsilon.to_bits(), u32::from(adds)]);
        parameters.extend(&gate);
        let across = self.input.width / self.width;
        RowsPass { kernel: Kernel::RmsNorm, parameters, rows: self.input.rows, across }
    }
}

impl Elementwise {
    fn pass(&self) -> Pass {
        let mut parameters = Parameters::new(&at(self.values));
        parameters.extend(&self.other);
        parameters.extend(&at(self.output));
        parameters.extend(&[self.output.width, self.mode, self.number.to_bits(), self.each]);
        parameters.extend(&[self.rounding.to_bits()]);
        let across = self.output.width.div_ceil(COLUMNS);
        let rows = self.output.rows;
        Pass::Rows(RowsPass { kernel: Kernel::Elementwise, parameters, rows, across })
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

fn join_mode(activation: Activation) -> u32 {
    Mode::Join as u32 + gate_mode(activation) as u32
}

/// Where rows begin, and how far they are apart.
pub(crate) fn at(place: Place) -> [u32; 2] {
    [place.first, place.stride]
}
