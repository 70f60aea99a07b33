//! What is launched for a pass in a step? Kernels, their parameters and how many workgroups.

use device::{Rows, Tape};
use ops::pool_rows::Pooling;
use ops::rotary::Pairing;
use ops::{EmbedBy, RotaryId};

use crate::attention::{self, GROUPS_ENOUGH};
use crate::experts::ExpertsPass;
use crate::kernels::{
    Kernel, LINEAR_ROWS, LINEAR_TOKENS, UNITS_ROWS, UNITS_TOKENS, UnitsTile, stream_tiles,
};
use crate::lowering::{
    EmbedPass, HeadLinearPass, LowRankPass, MatrixIndex, MatrixPlan, Part, Pass, PassSegment, Plan,
    RotaryPass, UnitScales, Vector,
};
use crate::packing::Form;
use crate::row_passes::{COLUMNS, at};
use crate::sizes::{CHOSEN_PARTS, Place};
use crate::step_words::StepWords;

/// Which pieces are bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Bound {
    /// A part of a matrix.
    Matrix(MatrixIndex, usize),
    /// Keys and values of a layer.
    Layer(u32),
    /// What an op carries from token to token.
    Carried(usize),
    /// None of these.
    Work,
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) bound: Bound,
    pub(crate) parameters: Parameters,
    pub(crate) groups: [u32; 3],
}

/// Words as a kernel's `Params` lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    words: [u32; 32],
    count: usize,
}

impl Parameters {
    pub(crate) fn new(words: &[u32]) -> Self {
        let mut parameters = Self { words: [0; 32], count: 0 };
        parameters.extend(words);
        parameters
    }

    pub(crate) fn extend(&mut self, words: &[u32]) {
        self.words[self.count..][..words.len()].copy_from_slice(words);
        self.count += words.len();
    }

    /// These, behind others.
    fn behind(&self, words: &[u32]) -> Self {
        let mut all = Self::new(words);
        all.extend(&self.words[..self.count]);
        all
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(&self.words)
    }
}

/// Tokens from which products go by tiles.
const TILED_FROM: u32 = 17;

/// The form of a kernel that takes all tokens at once, or most.
fn tokens_at_once([one, few, many]: [u32; 3], tokens: u32) -> u32 {
    [one, few].into_iter().find(|&most| tokens <= most).unwrap_or(many)
}

/// Workgroups of a product that streams its matrix at most, side by side: four for each of a large
/// card's 132 processors. Of more rows, each has several tiles, one after the other.
const STREAM_GROUPS: u32 = 528;

/// The tiles in which matrix units multiply so many rows and tokens; `None`: without.
fn units_tile(rows: u32, tokens: u32) -> Option<UnitsTile> {
    let is_enough = |tile: UnitsTile| {
        let [across, down] = tile.size();
        rows.div_ceil(across) * tokens.div_ceil(down) >= GROUPS_ENOUGH
    };
    if tokens > 64 && is_enough(UnitsTile::Large) {
        return Some(UnitsTile::Large);
    }
    let is_few = tokens <= 16 || tokens <= 64 && !is_enough(UnitsTile::Small);
    (!is_few).then_some(UnitsTile::Small)
}

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
            Pass::Embed(pass) => self.embed(pass, launch),
            Pass::Rows(pass) => {
                let groups = [self.count(pass.rows), pass.across, 1];
                let parameters = pass.parameters.clone();
                launch(Launch { kernel: pass.kernel, bound: Bound::Work, parameters, groups });
            }
            Pass::Linear { matrix, input, scales, parts } => {
                self.linear(*matrix, (*input, *scales), parts, launch);
            }
            Pass::Rotary(pass) if pass.is_joined && self.turns_in_attention() => {}
            Pass::Rotary(pass) => launch(self.rotary(pass)),
            Pass::Attention { .. } => self.attention(pass, launch),
            Pass::HeadLinear(pass) => self.head_linear(pass, launch),
            Pass::Experts(pass) => self.experts(pass, launch),
            Pass::Rotate { values, head_dim, rotary } => {
                launch(self.rotate(*values, *head_dim, *rotary));
            }
            Pass::Select { input, output } => {
                let [from, from_stride] = at(*input);
                let [to, to_stride] = at(*output);
                let words = [from, from_stride, to, to_stride, input.width, self.step.picks];
                let parameters = Parameters::new(&words);
                let groups = [self.step.sampled, input.width.div_ceil(COLUMNS), 1];
                let kernel = Kernel::SelectRows;
                launch(Launch { kernel, bound: Bound::Work, parameters, groups });
            }
            Pass::Carried(pass) => launch(pass.launch(self.step.rows, self.step.carried)),
            Pass::LowRank(pass) => self.low_rank(pass, launch),
            Pass::Pool { input, pooling, output } => {
                launch(self.pool(*input, *pooling, *output));
            }
        }
    }

    /// Behind all passes, the largest of each row of logits.
    pub(crate) fn largest(&self, segment: &PassSegment, launch: &mut dyn FnMut(Launch)) {
        let ([logits], Some(chosen)) = (segment.given.as_slice(), self.plan.places.chosen) else {
            unreachable!("invariant: asked where there are logits only")
        };
        let mut parameters = Parameters::new(&at(*logits));
        let each = logits.width.div_ceil(4 * CHOSEN_PARTS) * 4;
        parameters.extend(&[logits.width, each, chosen.first]);
        let groups = [self.step.sampled, CHOSEN_PARTS, 1];
        launch(Launch { kernel: Kernel::Largest, bound: Bound::Work, parameters, groups });
    }

    fn rows(&self, place: Place) -> u32 {
        self.count(place.rows)
    }

    fn count(&self, rows: Rows) -> u32 {
        match rows {
            Rows::Tokens => self.step.tokens,
            Rows::Sampled => self.step.sampled,
        }
    }

    fn embed(&self, pass: &EmbedPass, launch: &mut dyn FnMut(Launch)) {
        let plan = &self.plan.matrices[pass.matrix.0];
        let by = match pass.by {
            None => [0, 0],
            Some(EmbedBy::Position { from }) => [1, from],
            Some(EmbedBy::First) => [2, 0],
            Some(EmbedBy::Text { .. }) => [3, self.step.texts],
        };
        for piece in 0..plan.pieces.len() {
            let mut parameters = Parameters::new(&matrix_words(plan, piece));
            parameters.extend(&at(pass.output));
            let adds = u32::from(pass.adds);
            parameters.extend(&[pass.output.width, pass.scale.to_bits(), adds]);
            parameters.extend(&by);
            let bound = Bound::Matrix(pass.matrix, piece);
            let groups = [self.step.tokens, 1, 1];
            launch(Launch { kernel: Kernel::Embed(plan.form), bound, parameters, groups });
        }
    }

    fn low_rank(&self, pass: &LowRankPass, launch: &mut dyn FnMut(Launch)) {
        if !self.step.has_adapter(pass.adapter) {
            return;
        }
        let (tokens, list) = (self.step.tokens, [pass.adapter, self.step.adapters]);
        let mut down = Parameters::new(&at(pass.input));
        down.extend(&[pass.input.width, pass.down.0]);
        down.extend(&at(pass.inner));
        down.extend(&list);
        let mut up = Parameters::new(&at(pass.inner));
        up.extend(&[pass.rank, pass.up.0]);
        up.extend(&at(pass.output));
        up.extend(&[pass.output.width, pass.scale.to_bits()]);
        up.extend(&list);
        let columns = pass.output.width.div_ceil(256);
        for (kernel, parameters, across) in
            [(Kernel::LowRankDown, down, pass.rank), (Kernel::LowRankUp, up, columns)]
        {
            let groups = [tokens, across, 1];
            launch(Launch { kernel, bound: Bound::Work, parameters, groups });
        }
    }

    fn pool(&self, input: Place, pooling: Pooling, output: Place) -> Launch {
        let kept = self.plan.places.kept.expect("invariant: room where texts are pooled");
        let pooling = match pooling {
            Pooling::First => 0,
            Pooling::Last => 1,
            Pooling::Mean => 2,
        };
        let mut parameters = Parameters::new(&at(input));
        parameters.extend(&at(kept));
        parameters.extend(&at(output));
        parameters.extend(&[input.width, pooling, self.step.pools]);
        let groups = [self.step.rows, input.width.div_ceil(64), 1];
        Launch { kernel: Kernel::PoolRows, bound: Bound::Work, parameters, groups }
    }

    fn linear(
        &self,
        matrix: MatrixIndex,
        (input, scales): (Place, UnitScales),
        parts: &[Part],
        launch: &mut dyn FnMut(Launch),
    ) {
        let plan = &self.plan.matrices[matrix.0];
        let tokens = self.rows(input);
        for (piece, shape) in plan.pieces.iter().enumerate() {
            let mut parameters = Parameters::new(&matrix_words(plan, piece));
            let [from, stride] = at(input);
            parameters.extend(&[from, stride, tokens]);
            parameters.extend(&[scales.input.to_bits(), scales.gated.to_bits()]);
            for part in parts {
                let [to, stride] = at(part.output);
                parameters.extend(&[part.end, to, stride, part.mode as u32, part.bias.0]);
            }
            let (kernel, groups) = self.product(plan.form, shape.rows as u32, tokens);
            launch(Launch { kernel, bound: Bound::Matrix(matrix, piece), parameters, groups });
        }
    }

    /// Which kernel multiplies: all have the same order of sums, so it may depend on the step.
    fn product(&self, form: Form, rows: u32, tokens: u32) -> (Kernel, [u32; 3]) {
        let cover = |[across, down]: [u32; 2]| [rows.div_ceil(across), tokens.div_ceil(down), 1];
        if form.is_arranged() {
            if let Some(tile) = units_tile(rows, tokens) {
                return (Kernel::LinearUnitsTiled(form, tile), cover(tile.size()));
            }
            let at_once = tokens_at_once(UNITS_TOKENS, tokens);
            let [across, down, _] = cover([16 * stream_tiles(at_once), at_once]);
            let groups = [across.min(STREAM_GROUPS), down, 1];
            return (Kernel::LinearStream(form, at_once), groups);
        }
        if self.plan.bounds.has_units && form.fits_units() {
            return match units_tile(rows, tokens) {
                None => {
                    let at_once = tokens_at_once(UNITS_TOKENS, tokens);
                    (Kernel::LinearUnits(form, at_once), cover([UNITS_ROWS, 16]))
                }
                Some(tile) => (Kernel::LinearUnitsTiled(form, tile), cover(tile.size())),
            };
        }
        if tokens >= TILED_FROM {
            return (Kernel::LinearTiled(form), cover([32; 2]));
        }
        let at_once = tokens_at_once(LINEAR_TOKENS, tokens);
        (Kernel::Linear(form, at_once), cover([LINEAR_ROWS, at_once]))
    }

    fn head_linear(&self, pass: &HeadLinearPass, launch: &mut dyn FnMut(Launch)) {
        let plan = &self.plan.matrices[pass.matrix.0];
        for (piece, shape) in plan.pieces.iter().enumerate() {
            launch(Launch {
                kernel: Kernel::HeadLinear(plan.form),
                bound: Bound::Matrix(pass.matrix, piece),
                parameters: pass.parameters.behind(&matrix_words(plan, piece)),
                groups: [(shape.rows as u32).div_ceil(LINEAR_ROWS), self.step.tokens, 1],
            });
        }
    }

    /// Each part of a matrix for all choices: a workgroup leaves experts of other parts alone.
    fn experts(&self, pass: &ExpertsPass, launch: &mut dyn FnMut(Launch)) {
        let plan = &self.plan.matrices[pass.matrix.0];
        for piece in 0..plan.pieces.len() {
            launch(Launch {
                kernel: Kernel::Experts(plan.form),
                bound: Bound::Matrix(pass.matrix, piece),
                parameters: pass.parameters.behind(&matrix_words(plan, piece)),
                groups: [pass.rows.div_ceil(LINEAR_ROWS), self.step.tokens, pass.used],
            });
        }
    }

    fn rotate(&self, values: Place, head_dim: u32, rotary: RotaryId) -> Launch {
        let (pairs, half_split) = self.turns(rotary);
        let mut parameters = Parameters::new(&at(values));
        parameters.extend(&[values.width / head_dim, head_dim]);
        parameters.extend(&[self.step.turns[usize::from(rotary.0)], pairs, half_split]);
        let groups = [self.step.tokens, 1, 1];
        Launch { kernel: Kernel::Rotate, bound: Bound::Work, parameters, groups }
    }

    /// Pairs of a head that turn, and whether halves are the pairs.
    fn turns(&self, rotary: RotaryId) -> (u32, u32) {
        let rotary = self.tape.rotary(rotary);
        (rotary.dims / 2, u32::from(rotary.pairing == Pairing::HalfSplit))
    }

    /// Norms of heads, and how they are turned.
    pub(crate) fn turning_words(&self, pass: &RotaryPass) -> [u32; 8] {
        let turns = pass.rotary.map_or(0, |id| self.step.turns[usize::from(id.0)]);
        let (pairs, half_split) = pass.rotary.map_or((0, 0), |id| self.turns(id));
        let (factor, every) = pass.growth.map_or((0.0, 1), |growth| (growth.factor, growth.every));
        let norms = [pass.query_norm.0, pass.key_norm.0, pass.epsilon.to_bits()];
        let [query, key, epsilon] = norms;
        [query, key, epsilon, turns, pairs, half_split, factor.to_bits(), every]
    }

    fn rotary(&self, pass: &RotaryPass) -> Launch {
        let (tape, step) = (self.tape, self.step);
        let heads = pass.query.width / tape.head_dim;
        let heads_kv = tape.heads_kv;
        let mut parameters = Parameters::new(&at(pass.query));
        parameters.extend(&at(pass.key));
        parameters.extend(&at(pass.value));
        parameters.extend(&[heads, heads_kv]);
        parameters.extend(&self.turning_words(pass));
        Launch {
            kernel: Kernel::Rotary(tape.head_dim),
            bound: Bound::Layer(pass.layer),
            parameters,
            groups: [heads + 2 * heads_kv, step.tokens, 1],
        }
    }
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
            Self::Embed(pass) => vec![Kernel::Embed(form(&pass.matrix))],
            Self::Rows(pass) => vec![pass.kernel],
            Self::Linear { matrix, .. } => linear_kernels(form(matrix), plan.bounds.has_units),
            Self::Rotary(_) => vec![Kernel::Rotary(tape.head_dim)],
            Self::Attention { shape, .. } => attention::kernels(shape, tape, plan),
            Self::HeadLinear(pass) => vec![Kernel::HeadLinear(form(&pass.matrix))],
            Self::Experts(pass) => vec![Kernel::Experts(form(&pass.matrix))],
            Self::Rotate { .. } => vec![Kernel::Rotate],
            Self::Select { .. } => vec![Kernel::SelectRows],
            Self::Carried(pass) => vec![pass.kernel, Kernel::CarriedCopy],
            Self::LowRank(_) => vec![Kernel::LowRankDown, Kernel::LowRankUp],
            Self::Pool { .. } => vec![Kernel::PoolRows],
        }
    }
}

fn linear_kernels(form: Form, has_units: bool) -> Vec<Kernel> {
    if has_units && form.fits_units() {
        let tiles = [UnitsTile::Small, UnitsTile::Large];
        let tiled = tiles.map(|tile| Kernel::LinearUnitsTiled(form, tile));
        if form.is_arranged() {
            let stream = UNITS_TOKENS.map(|tokens| Kernel::LinearStream(form, tokens));
            return stream.into_iter().chain(tiled).collect();
        }
        let few = UNITS_TOKENS.map(|tokens| Kernel::LinearUnits(form, tokens));
        return few.into_iter().chain(tiled).collect();
    }
    let few = LINEAR_TOKENS.map(|tokens| Kernel::Linear(form, tokens));
    few.into_iter().chain([Kernel::LinearTiled(form)]).collect()
}

const _: () = assert!(Vector::NONE.0 == u32::MAX, "NONE of kernels/prelude.wgsli");
