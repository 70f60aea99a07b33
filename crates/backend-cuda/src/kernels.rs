//! Which functions does a model need? One of each kernel, and one set a weight form.

use std::collections::BTreeMap;
use std::sync::Arc;

use ops::kv_format::KvFormat;
use ops::paged_attention::Window;

use crate::driver::CudaError;
use crate::gpu::{Function, Gpu, Grid, Module};
use crate::images::{KernelTarget, image};
use crate::lowering::Plan;
use crate::packing::Form;

/// A kernel for few tokens: each block takes a few 16-row tiles, its 8 warps a slice of the columns
/// each.
#[derive(Clone, Copy)]
struct Few {
    name: &'static str,
    tokens_max: u32,
    /// 16-row tiles a block.
    tiles: u32,
    /// KB of inputs that each of 8 warps keeps in shared memory: 1 KB for 8 tokens of one chunk.
    input_kb: u32,
    /// Chunks of weights that each keeps there.
    chunks: u32,
    /// Where more tiles than these are multiplied, another kernel is faster.
    tiles_max: u32,
}

const ALL: u32 = u32::MAX;

/// In the order of preference. The first keeps more of each slice under way, at two blocks a
/// multiprocessor of an H100: faster where all blocks run at once.
const FEW: [Few; 5] = [
    Few {
        name: "linear_1x1_4",
        tokens_max: 8,
        tiles: 1,
        input_kb: 4 * 2,
        chunks: 0,
        tiles_max: 264,
    },
    Few { name: "linear_1x1", tokens_max: 8, tiles: 1, input_kb: 2 * 3, chunks: 0, tiles_max: ALL },
    Few {
        name: "linear_2x2",
        tokens_max: 16,
        tiles: 2,
        input_kb: 2 * 3,
        chunks: 2 * 3,
        tiles_max: ALL,
    },
    Few {
        name: "linear_4x4",
        tokens_max: 32,
        tiles: 4,
        input_kb: 4 * 3,
        chunks: 4 * 3,
        tiles_max: ALL,
    },
    Few {
        name: "linear_4x8",
        tokens_max: 64,
        tiles: 4,
        input_kb: 8 * 2,
        chunks: 4 * 2,
        tiles_max: ALL,
    },
];

impl Few {
    fn shared_bytes(&self, form: Form) -> u32 {
        8 * (self.input_kb * 1024 + self.chunks * form.chunk_bytes() as u32)
    }
}

/// Tiles of a block of the kernels for more tokens.
const BLOCK_TILES: u32 = 8;

/// The kernel for many tokens of what is not Hopper.
const WIDE_TOKENS: u32 = 64;

/// Its shared memory: stages of 8 KB of inputs and 8 chunks of weights, and 32 KB of totals, which
/// on a Turing are in registers.
fn wide_shared_bytes(form: Form, target: KernelTarget) -> u32 {
    let is_turing = target.is_turing();
    let stages = if form.bits == 16 || is_turing { 2 } else { 4 };
    let totals_bytes = if is_turing { 0 } else { 32 * 1024 };
    stages * (8 * 1024 + BLOCK_TILES * form.chunk_bytes() as u32) + totals_bytes
}

/// Hopper: up to so many tokens, whose inputs a block keeps beside rings of weights. It could take
/// 8, but with more than one the other kernels are faster, on an H200.
const STREAM_TOKENS: u32 = 1;

/// What it has of its own, for barriers.
const STATIC_BYTES: u32 = 1024;

/// Its shared memory: the rings of 16 warps and the sums of 4 tiles (`STREAM_INPUTS` of
/// `kernels/linear_stream.cuh`), then rows of inputs, 16 bytes apart. The rings' bytes twice: so a
/// block has a multiprocessor for itself. Where two fit, blocks of two products, the later of which
/// waits, are spread unevenly over the multiprocessors.
fn stream_shared_bytes(size: LinearSize) -> u32 {
    2 * 16 * 4608 + 4 * 8 * 512 + size.tokens * (128 * size.chunks + 16)
}

/// Hopper: a cluster of 8 blocks, one a slice, for up to so many tokens.
const SPLIT: [(&str, u32); 4] = [
    ("linear_split_16", 16),
    ("linear_split_32", 32),
    ("linear_split_64", 64),
    ("linear_split_128", 128),
];
const CLUSTER: u32 = 8;

/// Shared memory of `linear_split`: `SplitLayout` of `kernels/linear_wide.cuh`, and 1 KB more.
fn split_shared_bytes(form: Form, tokens: u32) -> u32 {
    let stages = if tokens <= 64 { 8 } else { 4 };
    let slots = if form.bits == 16 { 4 } else { 8 };
    stages * tokens * 128 + 128 + slots * BLOCK_TILES * form.chunk_bytes() as u32 + 1024
}

/// Hopper: a pair of blocks for so many tokens at once, which share their inputs; takes all shared
/// memory.
const PAIRS: [Pair; 5] = [
    Pair { name: "linear_wide_32", tokens: 32, percent: 45 },
    Pair { name: "linear_wide_64", tokens: 64, percent: 60 },
    Pair { name: "linear_wide_128", tokens: 128, percent: 100 },
    Pair { name: "linear_wide_176", tokens: 176, percent: 121 },
    Pair { name: "linear_wide_192", tokens: 192, percent: 130 },
];
const PAIR_SHARED_BYTES: u32 = 227 * 1024;

struct Pair {
    name: &'static str,
    tokens: u32,
    /// What as many rows take, of what they take with 128 tokens, on an H200; 176 by its neighbors.
    percent: u32,
}

/// Which of [`PAIRS`] is done first on so many multiprocessors: more tokens at once cost least, but
/// where items are few, some pairs have one more than others, or none.
fn fastest_pair(size: LinearSize, multiprocessors: u32) -> usize {
    let rows = size.tiles.div_ceil(2 * BLOCK_TILES);
    let at_once = (multiprocessors / 2).max(1);
    let cost = |pair: &Pair| {
        let items = rows.saturating_mul(size.tokens.div_ceil(pair.tokens));
        items.div_ceil(at_once).saturating_mul(pair.percent)
    };
    // Of equals the one that reads weights least often.
    let costs = PAIRS.iter().map(cost).enumerate().rev();
    costs.min_by_key(|&(_, cost)| cost).map_or(0, |(index, _)| index)
}

/// Products of so many tiles are faster by pairs than by clusters, on an H200: with few tiles,
/// pairs leave most multiprocessors without work.
fn prefers_pairs(size: LinearSize) -> bool {
    match size.tokens {
        0..=64 => size.tiles >= 1024,
        65..=128 => size.tiles >= 320,
        _ => true,
    }
}

/// Products of rows that kernels read in whole tiles: inputs are as long.
pub(crate) const TOKENS_PADDED: u32 = 64;

/// What is to be multiplied.
#[derive(Clone, Copy)]
pub(crate) struct LinearSize {
    /// At most.
    pub(crate) tokens: u32,
    /// 16-row tiles of all parts.
    pub(crate) tiles: u32,
    /// Of 64 columns.
    pub(crate) chunks: u32,
}

/// How a linear is launched for so many tokens.
#[derive(Clone, Copy)]
pub(crate) struct LinearChoice {
    pub(crate) function: Function,
    pub(crate) launch: LinearLaunch,
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

/// What a kernel's blocks stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinearLaunch {
    /// One each for so many tiles.
    Tiles(u32),
    /// As many as fit take two tiles at a time in turn.
    Stream { blocks_max: u32 },
    /// One each for 64 tokens and 8 tiles.
    Wide,
    /// Eight each for 8 tiles, with copies of so many tokens.
    Clusters { tokens: u32 },
    /// As many as fit take pairs of 8 tiles and so many tokens in turn, with copies of half of
    /// them.
    Pairs { tokens: u32, blocks_max: u32 },
}

impl LinearLaunch {
    /// Tokens of the boxes that are copied, where the copy engine does it.
    pub(crate) fn box_tokens(self) -> Option<u32> {
        match self {
            Self::Tiles(_) | Self::Stream { .. } | Self::Wide => None,
            Self::Clusters { tokens } => Some(tokens),
            Self::Pairs { tokens, .. } => Some(tokens / 2),
        }
    }

    /// Blocks for parts of so many tiles each.
    pub(crate) fn blocks(self, tokens: u32, tiles: impl Iterator<Item = u32>) -> [u32; 2] {
        let count = |each: u32| tiles.map(|tiles| tiles.div_ceil(each)).sum::<u32>();
        match self {
            Self::Tiles(each) => [count(each), 1],
            Self::Stream { blocks_max } => [count(1).min(blocks_max), 1],
            Self::Wide => [tokens.div_ceil(WIDE_TOKENS), count(BLOCK_TILES)],
            Self::Clusters { .. } => [CLUSTER * count(BLOCK_TILES), 1],
            Self::Pairs { tokens: each, blocks_max } => {
                let pairs = count(BLOCK_TILES).div_ceil(2) * tokens.div_ceil(each);
                [(2 * pairs).min(blocks_max), 1]
            }
        }
    }
}

struct LinearSet {
    few: [Function; FEW.len()],
    many: Many,
}

/// Kernels for more tokens than a few.
enum Many {
    Hopper { stream: Function, split: [Function; SPLIT.len()], pairs: [Function; PAIRS.len()] },
    Other { wide: Function },
}

/// Products of experts: for up to 8, 16, 32 and 64 tokens of one; and gate and up, and down, for a
/// token alone.
pub(crate) struct ExpertsSet {
    few: [Function; 4],
    pub(crate) gate: Function,
    pub(crate) down: Function,
    /// Hopper's own: for up to 8 and 16 tokens of one, and for many.
    hopper: Option<HopperExperts>,
}

struct HopperExperts {
    stream: [Function; 2],
    wide: Function,
}

/// How the products of a stack are launched.
#[derive(Clone, Copy)]
pub(crate) struct StackChoice {
    pub(crate) function: Function,
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) launch: StackLaunch,
}

/// What blocks of threads stand for.
#[derive(Clone, Copy)]
pub(crate) enum StackLaunch {
    /// `across` of them an expert's tiles; at most so many at all share the items.
    Items { across: u32, blocks_max: u32 },
    /// As many as there are share all tiles of all items.
    Stream { blocks: u32 },
}

/// Shared memory of `experts_wide`: stages of 8 KB of inputs and 8 chunks of weights, 32 KB of
/// totals, and 1 KB to align the stages.
fn experts_wide_bytes(form: Form) -> u32 {
    let stages = if form.bits == 16 { 3 } else { 5 };
    stages * (8 * 1024 + 8 * form.chunk_bytes() as u32) + 33 * 1024
}

/// Up to so many tokens, whose few items are soon done, experts whose sums are cut are faster in
/// blocks of their own than in a stream, on an H200.
const STREAMED_WHOLE_MAX: u32 = 8;

/// Shared memory of `experts_stream`: the rings of 16 warps and their sums (`STREAM_INPUTS` of
/// `kernels/experts_stream.cuh`), then rows of inputs of 16 tokens, of two items or of one.
fn experts_stream_bytes(chunks: u32) -> u32 {
    16 * (9216 + 1024) + 16 * (128 * chunks + 64)
}

/// `WARP_BYTES` of `kernels/experts.cu`, of 8 warps.
fn experts_few_bytes(target: KernelTarget) -> u32 {
    8 * 1024 * if target.is_turing() { 6 } else { 8 }
}

/// `GATE_BYTES` of `kernels/experts.cu`.
fn gate_alone_bytes(target: KernelTarget) -> u32 {
    1024 * if target.is_turing() { 6 } else { 12 }
}

pub(crate) struct Kernels {
    linears: BTreeMap<Form, LinearSet>,
    experts: BTreeMap<Form, ExpertsSet>,
    pub(crate) route: Function,
    /// For a few tokens, with their norm: Hopper's own.
    pub(crate) route_few: Option<Function>,
    pub(crate) route_many: Function,
    pub(crate) join_experts: Function,
    pub(crate) head_inputs: Function,
    pub(crate) copy_columns: Function,
    embed: BTreeMap<Form, Function>,
    pub(crate) rms_norm: Function,
    pub(crate) norm_floats: Function,
    pub(crate) rotary_append: Function,
    pub(crate) paged_attention: AttentionKernel,
    /// For the fewest tokens: Hopper's own, and not for all sizes of heads.
    pub(crate) paged_attention_team: Option<AttentionKernel>,
    /// For prompts, as above.
    pub(crate) paged_attention_wide: Option<AttentionKernel>,
    pub(crate) select_rows: Function,
    pub(crate) sample_rows: Function,
    pub(crate) soft_cap: Function,
    /// What only some models need.
    pub(crate) extras: BTreeMap<&'static str, Function>,
    /// Shared memory of the kernels for a few tokens of an expert.
    pub(crate) experts_few_bytes: u32,
    /// Of a warp of the kernel for a token alone.
    pub(crate) gate_alone_bytes: u32,
    shared_bytes_max: u32,
    target: KernelTarget,
    multiprocessors: u32,
}

impl Kernels {
    pub(crate) fn load(gpu: &Arc<Gpu>, plan: &Plan) -> Result<Self, CudaError> {
        let module = |name: &str| Module::load(gpu, &image(name, gpu.capability)?);
        let one = |name: &str, function: &str| module(name)?.function(function, 0);
        let mut sets = BTreeMap::new();
        for form in plan.linear_forms() {
            let module = module(&format!("linear-{}", form.name()))?;
            sets.insert(form, LinearSet::load(&module, form, gpu)?);
        }
        let mut experts = BTreeMap::new();
        for form in plan.stack_forms() {
            let module = module(&format!("experts-{}", form.name()))?;
            experts.insert(form, ExpertsSet::load(&module, form, gpu)?);
        }
        let extras = plan.extras().into_iter();
        let extras = extras.map(|(image, function)| Ok((function, one(image, function)?)));
        let extras = extras.collect::<Result<_, CudaError>>()?;
        let route = module("experts.route")?;
        let head_padded = plan.head_padded;
        let is_whole = plan.attention.window == Window::Whole;
        let (kind, rotary) = match (plan.kv_format, is_whole) {
            (KvFormat::Int8, _) => ("8bit-", "rotary-8bit"),
            (_, true) => ("whole-", "rotary"),
            (_, false) => ("", "rotary"),
        };
        let sizes = HeadSizes {
            padded: head_padded,
            bits: if plan.kv_format == KvFormat::Int8 { 8 } else { 16 },
        };
        let attention = module(&format!("paged_attention-{kind}{head_padded}"))?;
        Ok(Self {
            linears: sets,
            experts,
            route: route.function("experts_route", 0)?,
            route_few: if_hopper(gpu, || route.function("experts_route_few", 0))?,
            route_many: route.function("experts_route_many", 0)?,
            join_experts: one("experts.join", "experts_join")?,
            head_inputs: one("head_linear", "head_inputs")?,
            copy_columns: one("copy_columns", "copy_columns")?,
            embed: plan
                .table_forms()
                .into_iter()
                .map(|form| Ok((form, one(&format!("embed-{}", form.name()), "embed")?)))
                .collect::<Result<_, CudaError>>()?,
            rms_norm: one("rms_norm", "rms_norm")?,
            norm_floats: one("rms_norm.floats", "rms_norm_floats")?,
            rotary_append: one(rotary, "rotary_append")?,
            paged_attention: AttentionKernel::load(&attention, sizes, gpu)?,
            paged_attention_team: match is_whole {
                true => None,
                false => AttentionKernel::load_team(&attention, sizes, gpu)?,
            },
            paged_attention_wide: match is_whole {
                true => None,
                false => AttentionKernel::load_wide(&attention, sizes, gpu)?,
            },
            select_rows: one("select_rows", "select_rows")?,
            sample_rows: one("sample_rows", "sample_rows")?,
            soft_cap: one("soft_cap", "soft_cap")?,
            extras,
            experts_few_bytes: experts_few_bytes(gpu.target),
            gate_alone_bytes: gate_alone_bytes(gpu.target),
            shared_bytes_max: gpu.shared_bytes_max,
            target: gpu.target,
            multiprocessors: gpu.multiprocessors,
        })
    }

    /// The kernel that reads a table.
    pub(crate) fn embed(&self, form: Form) -> Function {
        self.embed[&form]
    }

    /// The kernel for items of up to `item_tokens` of a step's tokens, of experts of so many tiles
    /// and chunks, whose sums are cut into `slices`; all give the same bits.
    pub(crate) fn stack(
        &self,
        form: Form,
        item_tokens: u32,
        tokens: u32,
        [tiles, chunks, slices]: [u32; 3],
    ) -> StackChoice {
        let set = self.experts(form);
        let most = self.multiprocessors;
        let stream_bytes = experts_stream_bytes(chunks);
        match &set.hopper {
            Some(hopper)
                if item_tokens <= 16
                    && (slices == 1 || tokens > STREAMED_WHOLE_MAX)
                    && stream_bytes <= self.shared_bytes_max - STATIC_BYTES =>
            {
                StackChoice {
                    function: hopper.stream[usize::from(item_tokens > 8)],
                    threads: 512,
                    shared_bytes: stream_bytes,
                    launch: StackLaunch::Stream { blocks: most },
                }
            }
            Some(hopper) if item_tokens == WIDE_TOKENS => StackChoice {
                function: hopper.wide,
                threads: 256,
                shared_bytes: experts_wide_bytes(form),
                launch: StackLaunch::Items {
                    across: tiles.div_ceil(BLOCK_TILES),
                    blocks_max: 2 * most,
                },
            },
            _ => StackChoice {
                function: set.few[(item_tokens / 8).ilog2() as usize],
                threads: 256,
                shared_bytes: self.experts_few_bytes,
                // 8 warps, each with a slice of a pair of tiles.
                launch: StackLaunch::Items {
                    across: tiles.div_ceil(2).div_ceil(8 / slices),
                    blocks_max: 8 * most,
                },
            },
        }
    }

    pub(crate) fn experts(&self, form: Form) -> &ExpertsSet {
        self.experts.get(&form).expect("invariant: loaded for every form of the model's stacks")
    }

    /// The kernel for a size; all give the same bits.
    pub(crate) fn linear(&self, form: Form, size: LinearSize) -> LinearChoice {
        let set = self.linears.get(&form).expect("invariant: loaded for every form of the model");
        let few = |tokens_max: u32| {
            let fits = |few: &Few| {
                size.tokens <= few.tokens_max.min(tokens_max)
                    && size.tiles <= few.tiles_max
                    && few.shared_bytes(form) <= self.shared_bytes_max
            };
            let index = FEW.iter().position(fits)?;
            Some(LinearChoice {
                function: set.few[index],
                launch: LinearLaunch::Tiles(FEW[index].tiles),
                threads: 256,
                shared_bytes: FEW[index].shared_bytes(form),
            })
        };
        match set.many {
            Many::Other { wide } => few(ALL).unwrap_or(LinearChoice {
                function: wide,
                launch: LinearLaunch::Wide,
                threads: 256,
                shared_bytes: wide_shared_bytes(form, self.target),
            }),
            Many::Hopper { stream, .. }
                if size.tokens <= STREAM_TOKENS
                    && stream_shared_bytes(size) <= self.shared_bytes_max - STATIC_BYTES =>
            {
                LinearChoice {
                    function: stream,
                    launch: LinearLaunch::Stream { blocks_max: self.multiprocessors },
                    threads: 512,
                    shared_bytes: stream_shared_bytes(size),
                }
            }
            Many::Hopper { split, pairs, .. } => few(16).unwrap_or_else(|| {
                let chosen = SPLIT.iter().position(|&(_, tokens)| size.tokens <= tokens);
                match chosen.filter(|_| !prefers_pairs(size)) {
                    Some(index) => LinearChoice {
                        function: split[index],
                        launch: LinearLaunch::Clusters { tokens: SPLIT[index].1 },
                        threads: 288,
                        shared_bytes: split_shared_bytes(form, SPLIT[index].1),
                    },
                    None => {
                        let index = fastest_pair(size, self.multiprocessors);
                        let blocks_max = self.multiprocessors / 2 * 2;
                        let tokens = PAIRS[index].tokens;
                        LinearChoice {
                            function: pairs[index],
                            launch: LinearLaunch::Pairs { tokens, blocks_max },
                            threads: 384,
                            shared_bytes: PAIR_SHARED_BYTES,
                        }
                    }
                }
            }),
        }
    }
}

/// Blocks of threads that attend together (`kernels/paged_attention_team.cuh`).
pub(crate) const TEAM: u32 = 4;

/// A kernel of `kernels/paged_attention.cu`, or of the files behind it.
#[derive(Clone, Copy)]
pub(crate) struct AttentionKernel {
    pub(crate) function: Function,
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    /// Of threads: as many as run at once.
    pub(crate) blocks: u32,
}

/// `HEAD` and `KV_BITS` of the kernels.
#[derive(Clone, Copy)]
struct HeadSizes {
    padded: u32,
    bits: u32,
}

impl HeadSizes {
    /// `STAGED_BYTES`: keys and values of 64 positions, and what codes of two pages stand for.
    fn staged_bytes(self) -> u32 {
        2 * 64 * self.padded * self.bits / 8 + if self.bits == 8 { 2 * 2 * 32 * 4 } else { 0 }
    }
}

impl AttentionKernel {
    fn load(module: &Module, sizes: HeadSizes, gpu: &Gpu) -> Result<Self, CudaError> {
        // `WARPS` of the kernels.
        let warps = match (sizes.padded, gpu.target.is_turing()) {
            (257.., true) => 1,
            (257.., false) | (129.., true) => 2,
            _ => 4,
        };
        // For each warp a state, 16 rows of HEAD + 8 floats, and its stage.
        let state_bytes = warps * 16 * 4 * (sizes.padded + 8);
        let staged_bytes = state_bytes + warps * sizes.staged_bytes();
        let is_staged = sizes.padded * sizes.bits <= 2048 && staged_bytes <= gpu.shared_bytes_max;
        let (name, shared_bytes) = match is_staged {
            true => ("paged_attention", staged_bytes),
            false => ("paged_attention_direct", state_bytes),
        };
        let at_once = (gpu.shared_bytes_max / (shared_bytes + 1024)).clamp(1, 3);
        Ok(Self {
            function: module.function(name, shared_bytes)?,
            threads: 32 * warps,
            shared_bytes,
            blocks: at_once * gpu.multiprocessors,
        })
    }

    fn load_team(module: &Module, sizes: HeadSizes, gpu: &Gpu) -> Result<Option<Self>, CudaError> {
        if !gpu.target.is_hopper() || sizes.padded > 128 || sizes.bits == 8 {
            return Ok(None);
        }
        // For each of 4 warps two states, and 64 positions of keys and values.
        let shared_bytes = 4 * (2 * 16 * 4 * (sizes.padded + 8) + 2 * 2 * 64 * sizes.padded);
        let function = module.function("paged_attention_team", shared_bytes)?;
        let grid = Grid { blocks: [TEAM, 1], threads: 128, shared_bytes };
        let teams = gpu.clusters_at_once(function, grid)?;
        let kernel = Self { function, threads: grid.threads, shared_bytes, blocks: TEAM * teams };
        Ok((teams > 0).then_some(kernel))
    }

    fn load_wide(module: &Module, sizes: HeadSizes, gpu: &Gpu) -> Result<Option<Self>, CudaError> {
        if !gpu.target.is_hopper() || !matches!(sizes.padded, 64 | 128) {
            return Ok(None);
        }
        // `WIDE_STAGES` and `CODE_STAGES` of the kernel; what is in f16 there.
        let (stages, code_stages) = match (sizes.bits, sizes.padded) {
            (8, 64) => (4, 3),
            (8, _) => (3, 3),
            (_, 64) => (6, 0),
            _ => (4, 0),
        };
        let scales_bytes = if sizes.bits == 8 { stages * 2 * 2 * 32 * 4 } else { 0 };
        // Stages, totals of 128 rows, stages of codes with what they stand for, and barriers.
        let shared_bytes = stages * 2 * 2 * 64 * sizes.padded
            + 128 * 4 * sizes.padded
            + scales_bytes
            + code_stages * sizes.staged_bytes()
            + 128;
        Ok(Some(Self {
            function: module.function("paged_attention_wide", shared_bytes)?,
            threads: 384,
            shared_bytes,
            blocks: gpu.multiprocessors,
        }))
    }
}

impl ExpertsSet {
    fn load(module: &Module, form: Form, gpu: &Gpu) -> Result<Self, CudaError> {
        let few_bytes = experts_few_bytes(gpu.target);
        let few = ["experts_8", "experts_16", "experts_32", "experts_64"];
        Ok(Self {
            few: all(few.map(|name| module.function(name, few_bytes)))?,
            gate: module.function("experts_gate_alone", 8 * gate_alone_bytes(gpu.target))?,
            down: module.function("experts_down", few_bytes)?,
            hopper: if_hopper(gpu, || HopperExperts::load(module, form, gpu))?,
        })
    }
}

impl HopperExperts {
    fn load(module: &Module, form: Form, gpu: &Gpu) -> Result<Self, CudaError> {
        let stream = ["experts_stream_8", "experts_stream_16"];
        let stream_bytes = gpu.shared_bytes_max - STATIC_BYTES;
        Ok(Self {
            stream: all(stream.map(|name| module.function(name, stream_bytes)))?,
            wide: module.function("experts_wide", experts_wide_bytes(form))?,
        })
    }
}

impl LinearSet {
    fn load(module: &Module, form: Form, gpu: &Gpu) -> Result<Self, CudaError> {
        // One that needs more than this device has is never chosen.
        let few = FEW
            .map(|few| module.function(few.name, few.shared_bytes(form).min(gpu.shared_bytes_max)));
        let many = if gpu.target.is_hopper() {
            let split = SPLIT.map(|(name, tokens)| {
                module.function(name, split_shared_bytes(form, tokens).min(gpu.shared_bytes_max))
            });
            Many::Hopper {
                stream: module.function("linear_stream", gpu.shared_bytes_max - STATIC_BYTES)?,
                split: all(split)?,
                pairs: all(PAIRS.map(|pair| module.function(pair.name, PAIR_SHARED_BYTES)))?,
            }
        } else {
            let bytes = wide_shared_bytes(form, gpu.target);
            Many::Other { wide: module.function("linear_wide_64", bytes)? }
        };
        Ok(Self { few: all(few)?, many })
    }
}

/// What only the kernels for Hopper have.
fn if_hopper<T>(
    gpu: &Gpu,
    load: impl FnOnce() -> Result<T, CudaError>,
) -> Result<Option<T>, CudaError> {
    gpu.target.is_hopper().then(load).transpose()
}

/// The functions, or the first error.
fn all<const N: usize>(
    found: [Result<Function, CudaError>; N],
) -> Result<[Function; N], CudaError> {
    let list = found.into_iter().collect::<Result<Vec<_>, _>>()?;
    Ok(list.try_into().unwrap_or_else(|_| unreachable!("invariant: as many as there were")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_take_as_many_tokens_as_keep_all_busy() {
        // Rows and tokens, and how many tokens an item of the fastest has.
        for (rows, tokens, expected) in [
            (28_672, 2048, 192),
            (28_672, 64, 64),
            (28_672, 32, 32),
            (6144, 2048, 192),
            // 176 items of 192 tokens are no more rounds of 66 than 192 of 176.
            (4096, 2048, 176),
            // 32 items of 128 would leave half of 66 pairs idle.
            (4096, 256, 64),
            (128_256, 256, 128),
        ] {
            let size = LinearSize { tokens, tiles: rows / 16, chunks: 64 };
            assert_eq!(PAIRS[fastest_pair(size, 132)].tokens, expected, "{rows} x {tokens}");
        }
    }
}
