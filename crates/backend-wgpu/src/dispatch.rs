//! What is launched for a pass in a step? Kernels, their parameters and how many workgroups.

use device::{Rows, Tape};
use ops::paged_attention::Window;
use ops::rotary::Pairing;

use crate::kernels::{Kernel, LINEAR_ROWS, LINEAR_TOKENS};
use crate::lowering::{MatrixIndex, MatrixPlan, Part, PartMode, Pass, Plan, RotaryPass, Vector};
use crate::sizes::Place;
use crate::step_words::StepWords;

/// Which pieces are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bound {
    /// A part of a matrix.
    Matrix(MatrixIndex, usize),
    /// Keys and values of a layer.
    Layer(u32),
    /// Neither.
    Work,
}

/// One launch.
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) bound: Bound,
    pub(crate) parameters: Parameters,
    pub(crate) groups: [u32; 2],
}

/// Words as a kernel's `Params` lists them.
pub(crate) struct Parameters {
    words: [u32; 32],
    count: usize,
}

impl Parameters {
    fn new(words: &[u32]) -> Self {
        let mut parameters = Self { words: [0; 32], count: 0 };
        parameters.extend(words);
        parameters
    }

    fn extend(&mut self, words: &[u32]) {
        self.words[self.count..][..words.len()].copy_from_slice(words);
        self.count += words.len();
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(&self.words)
    }
}

/// Tokens from which products go by tiles.
const TILED_FROM: u32 = 17;

/// A step as its passes see it.
pub(crate) struct StepLaunches<'a> {
    pub(crate) tape: &'a Tape,
    pub(crate) plan: &'a Plan,
    pub(crate) step: &'a StepWords,
}

impl StepLaunches<'_> {
    /// Gives the launches of a pass to `launch`, in order.
    pub(crate) fn of(&self, pass: &Pass, launch: &mut dyn FnMut(Launch)) {
        match pass {
            Pass::Embed { matrix, scale, output } => self.embed(*matrix, *scale, *output, launch),
            Pass::RmsNorm { input, weight, epsilon, output, mode } => {
                let [from, from_stride] = at(*input);
                let [to, to_stride] = at(*output);
                let adds = u32::from(*mode == PartMode::Add);
                let words = [from, from_stride, to, to_stride, input.width, weight.0];
                let mut parameters = Parameters::new(&words);
                parameters.extend(&[epsilon.to_bits(), adds]);
                let groups = [self.rows(*input), 1];
                launch(Launch { kernel: Kernel::RmsNorm, bound: Bound::Work, parameters, groups });
            }
            Pass::Linear { matrix, input, parts } => self.linear(*matrix, *input, parts, launch),
            Pass::Rotary(pass) => launch(self.rotary(pass)),
            Pass::Attention { .. } => launch(self.attention(pass)),
            Pass::SoftCap { values, cap } => {
                let [first, stride] = at(*values);
                let parameters = Parameters::new(&[first, stride, values.width, cap.to_bits()]);
                let groups = [self.rows(*values), values.width.div_ceil(1024)];
                launch(Launch { kernel: Kernel::SoftCap, bound: Bound::Work, parameters, groups });
            }
            Pass::Select { input, output } => {
                let [from, from_stride] = at(*input);
                let [to, to_stride] = at(*output);
                let words = [from, from_stride, to, to_stride, input.width, self.step.picks];
                let parameters = Parameters::new(&words);
                let groups = [self.step.sampled, 1];
                let kernel = Kernel::SelectRows;
                launch(Launch { kernel, bound: Bound::Work, parameters, groups });
            }
            Pass::Sample { .. } => {}
        }
    }

    fn rows(&self, place: Place) -> u32 {
        match place.rows {
            Rows::Tokens => self.step.tokens,
            Rows::Sampled => self.step.sampled,
        }
    }

    fn embed(
        &self,
        matrix: MatrixIndex,
        scale: f32,
        output: Place,
        launch: &mut dyn FnMut(Launch),
    ) {
        let plan = &self.plan.matrices[matrix.0];
        for piece in 0..plan.pieces.len() {
            let mut parameters = Parameters::new(&matrix_words(plan, piece));
            let [to, stride] = at(output);
            parameters.extend(&[to, stride, output.width, scale.to_bits()]);
            let bound = Bound::Matrix(matrix, piece);
            let groups = [self.step.tokens, 1];
            launch(Launch { kernel: Kernel::Embed(plan.form), bound, parameters, groups });
        }
    }

    fn linear(
        &self,
        matrix: MatrixIndex,
        input: Place,
        parts: &[Part],
        launch: &mut dyn FnMut(Launch),
    ) {
        let plan = &self.plan.matrices[matrix.0];
        let tokens = self.rows(input);
        for (piece, shape) in plan.pieces.iter().enumerate() {
            let mut parameters = Parameters::new(&matrix_words(plan, piece));
            let [from, stride] = at(input);
            parameters.extend(&[from, stride, tokens]);
            for part in parts {
                let [to, stride] = at(part.output);
                parameters.extend(&[part.end, to, stride, part.mode as u32, part.bias.0]);
            }
            let rows = shape.rows as u32;
            let (kernel, groups) = if tokens >= TILED_FROM {
                (Kernel::LinearTiled(plan.form), [rows.div_ceil(32), tokens.div_ceil(32)])
            } else {
                let at_once = LINEAR_TOKENS.into_iter().find(|&most| tokens <= most);
                let at_once = at_once.unwrap_or(LINEAR_TOKENS[LINEAR_TOKENS.len() - 1]);
                let groups = [rows.div_ceil(LINEAR_ROWS), tokens.div_ceil(at_once)];
                (Kernel::Linear(plan.form, at_once), groups)
            };
            launch(Launch { kernel, bound: Bound::Matrix(matrix, piece), parameters, groups });
        }
    }

    fn rotary(&self, pass: &RotaryPass) -> Launch {
        let (tape, step) = (self.tape, self.step);
        let heads = pass.query.width / tape.head_dim;
        let heads_kv = tape.heads_kv;
        let mut parameters = Parameters::new(&at(pass.query));
        parameters.extend(&at(pass.key));
        parameters.extend(&at(pass.value));
        parameters.extend(&[heads, heads_kv, pass.query_norm.0, pass.key_norm.0]);
        let turns = pass.rotary.map_or(0, |id| step.turns[usize::from(id.0)]);
        let pairs = pass.rotary.map_or(0, |id| tape.rotary(id).dims / 2);
        let half_split = u32::from(pass.pairing == Pairing::HalfSplit);
        parameters.extend(&[pass.epsilon.to_bits(), turns, pairs, half_split]);
        Launch {
            kernel: Kernel::Rotary(tape.head_dim),
            bound: Bound::Layer(pass.layer),
            parameters,
            groups: [heads + 2 * heads_kv, step.tokens],
        }
    }

    fn attention(&self, pass: &Pass) -> Launch {
        let Pass::Attention { layer, query, shape, sinks, output } = pass else {
            unreachable!("invariant: asked of such a pass only")
        };
        let (window, whole) = match shape.window {
            Window::Full => (0, 0),
            Window::Sliding(tokens) => (tokens, 0),
            Window::Whole => (0, 1),
        };
        let mut parameters = Parameters::new(&at(*query));
        parameters.extend(&at(*output));
        let soft_cap = shape.soft_cap.unwrap_or(0.0);
        parameters.extend(&[shape.heads, shape.heads_kv, shape.scale.to_bits()]);
        parameters.extend(&[soft_cap.to_bits(), window, whole, sinks.0]);
        Launch {
            kernel: Kernel::PagedAttention(self.tape.head_dim),
            bound: Bound::Layer(*layer),
            parameters,
            groups: [shape.heads, self.step.tokens],
        }
    }
}

fn at(place: Place) -> [u32; 2] {
    [place.first, place.stride]
}

/// `Matrix` of `kernels/packed.wgsli`, and the part's first row.
fn matrix_words(plan: &MatrixPlan, piece: usize) -> [u32; 5] {
    let shape = &plan.pieces[piece];
    let (high, scales) = (shape.sections.high as u32, shape.sections.scales as u32);
    [plan.units() as u32, high, scales, shape.rows as u32, shape.first as u32]
}

impl Pass {
    /// All kernels that a pass may launch.
    pub(crate) fn kernels(&self, tape: &Tape, plan: &Plan) -> Vec<Kernel> {
        let form = |matrix: &MatrixIndex| plan.matrices[matrix.0].form;
        match self {
            Self::Embed { matrix, .. } => vec![Kernel::Embed(form(matrix))],
            Self::RmsNorm { .. } => vec![Kernel::RmsNorm],
            Self::Linear { matrix, .. } => {
                let few = LINEAR_TOKENS.map(|tokens| Kernel::Linear(form(matrix), tokens));
                few.into_iter().chain([Kernel::LinearTiled(form(matrix))]).collect()
            }
            Self::Rotary(_) => vec![Kernel::Rotary(tape.head_dim)],
            Self::Attention { .. } => vec![Kernel::PagedAttention(tape.head_dim)],
            Self::SoftCap { .. } => vec![Kernel::SoftCap],
            Self::Select { .. } => vec![Kernel::SelectRows],
            Self::Sample { .. } => Vec::new(),
        }
    }
}

const _: () = assert!(Vector::NONE.0 == u32::MAX, "NONE of kernels/prelude.wgsli");
