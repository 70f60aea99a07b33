//! How does a mixture of experts run? Choices are sorted by expert, products made an expert at a
//! time, and joined by token: three passes, four launches at most, and the host sees none of it.

use device::{LoadError, Tape, WeightSource};
use ops::experts::{Experts, Routing, Scoring};
use ops::gated_linear::Activation;
use ops::{ActivationId, Target, WeightId};

use crate::arguments::{
    ADD, ExpertsArguments, GATE_CLAMPED, GATE_GELU, GATE_SILU, JoinArguments, NormedInput,
    RouteArguments, STORE,
};
use crate::driver::CudaError;
use crate::gpu::{Address, Function, Grid};
use crate::kernels::{StackChoice, StackLaunch};
use crate::lowering::{Kept, MatrixKey, PartMode, Pass, Plan, lacks};
use crate::packing::CHUNK;
use crate::program::{CudaProgram, Step};

/// Sizes of the largest mixture of a model.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExpertsSizes {
    experts: u32,
    used: u32,
    /// Elements between rows of what gates give.
    inner_stride: u32,
    width: u32,
}

/// What a token's choice of experts is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoutePass {
    pub(crate) input: ActivationId,
    router: WeightId,
    router_bias: Option<WeightId>,
    scores: ActivationId,
    routing: Routing,
    choice_bias: Option<WeightId>,
    weight_scales: Option<WeightId>,
}

/// Gate and up of the chosen experts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertsGatePass {
    pub(crate) input: ActivationId,
    pub(crate) matrix: MatrixKey,
    biases: Option<[WeightId; 2]>,
    gate: u32,
    used: u32,
}

/// Down of the chosen experts, and their sum.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertsDownPass {
    pub(crate) matrix: MatrixKey,
    bias: Option<WeightId>,
    used: u32,
    pub(crate) target: Target,
}

/// The limits of `kernels/experts.route.cu`: a lane's experts and groups are bits of a word.
const EXPERTS_MAX: u32 = 512;
const USED_MAX: u32 = 32;

impl Plan {
    pub(crate) fn experts(
        &mut self,
        tape: &Tape,
        source: &dyn WeightSource,
        (input, scores): (ActivationId, ActivationId),
        experts: &Experts,
        target: Target,
    ) -> Result<(), LoadError> {
        let routing = experts.routing;
        if routing.experts > EXPERTS_MAX || routing.used > USED_MAX || routing.groups > 32 {
            return Err(lacks("more than 512 experts, 32 at a time, or 32 groups of them"));
        }
        if self.kept[input.0 as usize] != Kept::Half {
            return Err(lacks("experts of what is not a norm's"));
        }
        let gate = MatrixKey::gated(experts.gate, experts.up).stacked(routing.experts);
        let gate = self.matrix(tape, source, gate)?;
        let down = MatrixKey::plain(experts.down).stacked(routing.experts);
        let down = self.matrix(tape, source, down)?;
        self.route_to(tape, (input, scores), experts)?;
        experts.biases.iter().flatten().for_each(|&id| self.vector(tape, id));
        let sizes = self.experts.get_or_insert_default();
        sizes.experts = sizes.experts.max(routing.experts);
        sizes.used = sizes.used.max(routing.used);
        sizes.inner_stride = sizes.inner_stride.max(experts.inner.next_multiple_of(CHUNK as u32));
        sizes.width = sizes.width.max(tape.activation(target.buffer()).width);
        self.passes.push(Pass::ExpertsGate(ExpertsGatePass {
            input,
            matrix: gate,
            biases: experts.biases.map(|[gate, up, _]| [gate, up]),
            gate: match experts.activation {
                Activation::Silu => GATE_SILU,
                Activation::GeluTanh => GATE_GELU,
                Activation::ClampedSilu => GATE_CLAMPED,
            },
            used: routing.used,
        }));
        self.passes.push(Pass::ExpertsDown(ExpertsDownPass {
            matrix: down,
            bias: experts.biases.map(|[_, _, down]| down),
            used: routing.used,
            target,
        }));
        Ok(())
    }

    /// Choosing makes the product that gives the scores itself, in f32, and stands where it stood:
    /// right before the experts, or before a norm of theirs alone, with which what the router reads
    /// is gone.
    fn route_to(
        &mut self,
        tape: &Tape,
        (input, scores): (ActivationId, ActivationId),
        experts: &Experts,
    ) -> Result<(), LoadError> {
        let norm = self.passes.pop_if(|pass| match pass {
            Pass::Norm { output, .. } => *output == input,
            _ => false,
        });
        let (input, part) = match self.passes.pop() {
            Some(Pass::Linear { input, parts, .. }) => match parts[..] {
                [part] if part.output == scores && part.mode == PartMode::Store => (input, part),
                _ => return Err(lacks("experts whose router's product is one of several")),
            },
            _ => return Err(lacks("experts that are not chosen by a product right before them")),
        };
        self.matrices.remove(&part.matrix);
        let (router, router_bias) = (part.matrix.first, part.bias);
        let &Experts { routing, choice_bias, weight_scales, .. } = experts;
        let vectors = [Some(router), choice_bias, weight_scales];
        vectors.into_iter().flatten().for_each(|id| self.vector(tape, id));
        let pass =
            RoutePass { input, router, router_bias, scores, routing, choice_bias, weight_scales };
        self.passes.push(Pass::Route(pass));
        self.passes.extend(norm);
        Ok(())
    }
}

/// Where the passes leave what the next ones read.
#[derive(Clone, Copy)]
pub(crate) struct ExpertsWork {
    chosen: Address,
    factors: Address,
    entries: Address,
    items: Address,
    item_count: Address,
    counts: Address,
    finished: Address,
    group_finished: Address,
    /// Of an expert's list of choices.
    capacity: u32,
    gated: Address,
    joined: Address,
}

impl ExpertsWork {
    pub(crate) fn lay_out(
        sizes: &ExpertsSizes,
        tokens: usize,
        take: &mut dyn FnMut(usize) -> Result<Address, LoadError>,
    ) -> Result<Self, LoadError> {
        let choices = tokens * sizes.used as usize;
        let most = [64, 128, 512, tokens as u32].map(|tokens| sizes.items_max(tokens));
        Ok(Self {
            chosen: take(4 * choices)?,
            factors: take(4 * choices)?,
            entries: take(4 * sizes.experts as usize * tokens)?,
            items: take(16 * most.into_iter().max().unwrap_or(0) as usize)?,
            item_count: take(4)?,
            counts: take(4 * sizes.experts as usize)?,
            finished: take(4)?,
            group_finished: take(4 * tokens)?,
            capacity: tokens as u32,
            gated: take(2 * choices * sizes.inner_stride as usize)?,
            joined: take(4 * choices * sizes.width as usize)?,
        })
    }
}

/// An item's tokens at most, in steps of so many: larger ones read weights less often, smaller ones
/// leave more room for weights on their way. How choices are cut changes no result.
fn item_tokens(tokens: u32) -> u32 {
    match tokens {
        0..=64 => 8,
        65..=128 => 16,
        129..=512 => 32,
        _ => 64,
    }
}

impl ExpertsSizes {
    /// Each expert's last item may be a partial one.
    fn items_max(&self, tokens: u32) -> u32 {
        let choices = tokens * self.used;
        choices.min(self.experts + choices / item_tokens(tokens))
    }
}

/// Into how many sums the chunks of a row are cut: by the width alone, so that a token's result is
/// the same in every step. Enough for a token alone to keep the memory busy.
fn slices(chunks: u32) -> u32 {
    match chunks {
        0..=15 => 1,
        16..=31 => 2,
        32..=63 => 4,
        _ => 8,
    }
}

/// Steps up to this many tokens take the kernels for a token alone.
const ALONE_TOKENS_MAX: u32 = 1;
/// For more tokens, a cluster for each is slower than a kernel that reads the router for several,
/// on an H100.
const ROUTED_FEW_MAX: u32 = 16;
/// `ROUTERS` of `kernels/experts.route.cu`.
const ROUTERS: u32 = 8;
/// `PARTS_MAX` of `kernels/experts.cu`.
const PARTS_MAX: u32 = 128;

impl CudaProgram {
    /// As [`crate::Profiled::expert_items`].
    pub(crate) fn expert_items(&self) -> Result<Option<u32>, CudaError> {
        let Some(work) = &self.work.experts else { return Ok(None) };
        let mut bytes = [0; 4];
        self.stream.copy_out(&mut bytes, work.item_count)?;
        Ok(Some(u32::from_le_bytes(bytes)))
    }
}

impl Step<'_> {
    /// The kernel that chooses for a few tokens, and makes the rows that a norm would.
    fn route_few(&self) -> Option<Function> {
        self.program.kernels.route_few.filter(|_| self.tokens <= ROUTED_FEW_MAX)
    }

    /// Whether the choice behind this norm does it, and leaves it for the others who read it.
    pub(crate) fn choice_norms(&self, norm: usize) -> bool {
        let passes = &self.program.plan.passes;
        match (&passes[norm], passes.get(norm + 1)) {
            (Pass::Norm { output, .. }, Some(Pass::Route(route))) => {
                *output == route.input && self.route_few().is_some()
            }
            _ => false,
        }
    }

    fn normed_by_choice(&self, index: usize) -> NormedInput {
        match index.checked_sub(1).filter(|&norm| self.choice_norms(norm)) {
            Some(norm) => self.normed_input(norm),
            None => NormedInput::NONE,
        }
    }

    pub(crate) fn route(&self, index: usize, pass: &RoutePass) -> Result<(), CudaError> {
        let (program, work) = (self.program, self.experts_work());
        let Routing { experts, used, scoring, groups, groups_used, scale, sharpness } =
            pass.routing;
        let vector = |id: WeightId| program.stored.vectors[&id];
        let arguments = RouteArguments {
            tokens: self.token_count(),
            input: program.activation(pass.input),
            router: vector(pass.router),
            router_bias: pass.router_bias.map_or(Address::NONE, vector),
            choice_bias: pass.choice_bias.map_or(Address::NONE, vector),
            weight_scales: pass.weight_scales.map_or(Address::NONE, vector),
            scores: program.activation(pass.scores),
            chosen: work.chosen,
            factors: work.factors,
            entries: work.entries,
            items: work.items,
            item_count: work.item_count,
            counts: work.counts,
            finished: work.finished,
            group_finished: work.group_finished,
            input_stride: program.plan.stride(&program.tape, pass.input) as u32,
            width: program.tape.activation(pass.input).width,
            experts,
            used,
            scoring: match scoring {
                Scoring::Softmax => 0,
                Scoring::SoftmaxNormed => 1,
                Scoring::SoftmaxOfChosen => 2,
                Scoring::Sigmoid => 3,
                Scoring::SigmoidNormed => 4,
            },
            groups,
            groups_used,
            scale,
            sharpness,
            item_tokens: item_tokens(self.tokens),
            capacity: work.capacity,
            normed: self.normed_by_choice(index),
        };
        if let Some(function) = self.route_few() {
            let shared_bytes = 2 * arguments.width.next_multiple_of(8);
            let blocks = [ROUTERS, self.tokens.max(1)];
            return self.spread(function, Grid { blocks, threads: 512, shared_bytes }, &arguments);
        }
        // Tokens of a group and rows of a warp, of which a block has 8.
        let (function, group, rows) = match self.tokens {
            0..=64 => (program.kernels.route, 2, 1),
            _ => (program.kernels.route_many, 8, 4),
        };
        let blocks = [experts.div_ceil(8 * rows), self.tokens.div_ceil(group).max(1)];
        self.spread(function, Grid { blocks, threads: 256, shared_bytes: 0 }, &arguments)
    }

    pub(crate) fn experts_gate(&self, pass: &ExpertsGatePass) -> Result<(), CudaError> {
        let (program, work) = (self.program, self.experts_work());
        let bias = |index: usize| pass.biases.map(|ids| program.stored.vectors[&ids[index]]);
        let arguments = ExpertsArguments {
            input: program.activation(pass.input),
            bias: bias(0).unwrap_or(Address::NONE),
            bias_up: bias(1).unwrap_or(Address::NONE),
            output: work.gated,
            input_stride: program.plan.stride(&program.tape, pass.input) as u32,
            output_stride: self.sizes().inner_stride,
            mode: pass.gate,
            input_scale: 1.0,
            ..self.chosen(pass.matrix, pass.used)
        };
        if self.tokens <= ALONE_TOKENS_MAX {
            let form = program.plan.matrices[&pass.matrix].form;
            let warps = arguments.slices.max(4);
            let pairs = arguments.tiles.div_ceil(2);
            let grid = Grid {
                blocks: [pairs.div_ceil(warps / arguments.slices), pass.used],
                threads: 32 * warps,
                shared_bytes: warps * program.kernels.gate_alone_bytes,
            };
            return self.spread(program.kernels.experts(form).gate, grid, &arguments);
        }
        self.by_items(pass.matrix, self.sizes().items_max(self.tokens), &arguments)
    }

    pub(crate) fn experts_down(&self, pass: &ExpertsDownPass) -> Result<(), CudaError> {
        let (program, work) = (self.program, self.experts_work());
        let output = pass.target.buffer();
        let output_stride = program.plan.stride(&program.tape, output) as u32;
        let mode = match pass.target {
            Target::Store(_) => STORE,
            Target::AddTo(_) => ADD,
        };
        let arguments = ExpertsArguments {
            input: work.gated,
            bias: pass.bias.map_or(Address::NONE, |id| program.stored.vectors[&id]),
            output: program.activation(output),
            input_stride: self.sizes().inner_stride,
            output_stride,
            mode,
            // Gated values are kept as a sixteenth.
            input_scale: 16.0,
            ..self.chosen(pass.matrix, pass.used)
        };
        let parts = pass.used * arguments.slices;
        if self.tokens <= ALONE_TOKENS_MAX && parts <= PARTS_MAX {
            let blocks = [arguments.tiles, 1];
            let shared_bytes = program.kernels.experts_few_bytes;
            let grid = Grid { blocks, threads: 256, shared_bytes };
            let form = program.plan.matrices[&pass.matrix].form;
            return self.spread(program.kernels.experts(form).down, grid, &arguments);
        }
        let width = program.tape.activation(output).width;
        let products = ExpertsArguments {
            output: work.joined,
            output_stride: width,
            mode: STORE,
            ..arguments
        };
        self.by_items(pass.matrix, self.sizes().items_max(self.tokens), &products)?;
        let join = JoinArguments {
            tokens: arguments.tokens,
            values: work.joined,
            factors: work.factors,
            output: arguments.output,
            used: pass.used,
            width,
            output_stride,
            adds: u32::from(mode == ADD),
        };
        // A block takes 1,024 columns.
        let blocks = [self.tokens.max(1), width.div_ceil(1024)];
        self.spread(
            program.kernels.join_experts,
            Grid { blocks, threads: 256, shared_bytes: 0 },
            &join,
        )
    }

    /// What is the same for gate and down.
    fn chosen(&self, matrix: MatrixKey, used: u32) -> ExpertsArguments {
        let work = self.experts_work();
        ExpertsArguments {
            items: work.items,
            item_count: work.item_count,
            entries: work.entries,
            chosen: work.chosen,
            factors: work.factors,
            ..self.stack(matrix, used)
        }
    }

    /// What is the same for all stacks of matrices, of which each token goes to `used`.
    pub(crate) fn stack(&self, matrix: MatrixKey, used: u32) -> ExpertsArguments {
        let program = self.program;
        let shape = &program.plan.matrices[&matrix];
        ExpertsArguments {
            weights: program.stored.matrices[&matrix],
            tokens: self.token_count(),
            chunks: shape.chunks,
            slices: slices(shape.chunks),
            tiles: shape.tiles / matrix.parts(),
            tiles_all: shape.tiles,
            rows: shape.rows / matrix.parts(),
            used,
            ..ExpertsArguments::NONE
        }
    }

    /// Blocks for the items that there may be, or as many as keep the device busy: they take turns.
    pub(crate) fn by_items(
        &self,
        matrix: MatrixKey,
        items_max: u32,
        arguments: &ExpertsArguments,
    ) -> Result<(), CudaError> {
        let program = self.program;
        let form = program.plan.matrices[&matrix].form;
        let sizes = [arguments.tiles, arguments.chunks, arguments.slices];
        let StackChoice { function, threads, shared_bytes, launch } =
            program.kernels.stack(form, item_tokens(self.tokens), self.tokens, sizes);
        let blocks = match launch {
            // No more than fit: one more would be a wave of its own.
            StackLaunch::Items { across, blocks_max } => {
                [across, items_max.min(blocks_max / across).max(1)]
            }
            StackLaunch::Stream { blocks } => [blocks, 1],
        };
        self.spread(function, Grid { blocks, threads, shared_bytes }, arguments)
    }

    fn experts_work(&self) -> &ExpertsWork {
        self.program.work.experts.as_ref().expect("invariant: laid out for models with experts")
    }

    fn sizes(&self) -> &ExpertsSizes {
        self.program.plan.experts.as_ref().expect("invariant: known of models with experts")
    }
}
