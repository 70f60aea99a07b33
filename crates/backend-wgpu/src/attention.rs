//! Which kernel attends, and to what? By matrix units where heads are of a size that they take.
//!
//! Units take 16 queries at once: tokens that are beside one another in a row of the step, with the
//! heads that share keys. A row's tiles are listed in the step's words.

use device::{Capacity, StepInputs, Tape};
use ops::paged_attention::{AttentionShape, Window};
use ops::{Op, Operand};

use crate::dispatch::{Bound, Launch, Parameters, StepLaunches};
use crate::kernels::Kernel;
use crate::lowering::{Pass, Plan};
use crate::row_passes::at;
use crate::sizes::BLOCK_TOKENS;

/// Queries of a tile.
const QUERIES: u32 = 16;
/// Workgroups that fill a large card.
pub(crate) const GROUPS_ENOUGH: u32 = 96;

/// Sizes of heads whose outputs a lane can have in registers.
const BY_UNITS: [u32; 2] = [64, 128];

/// Where heads are turned by their positions, and keys and values go to their pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Turning {
    Before,
    /// In the kernel that attends, where each row has one token: one launch less.
    Here,
}

/// What becomes of the sums of a block of positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sums {
    Added,
    /// They are left in memory for [`Kernel::AttentionAdd`]: several workgroups share a context.
    ByBlocks,
}

/// Blocks that a workgroup has at once: `PARTS` of `kernels/paged_attention.units.wgsl`.
const PARTS: u32 = 8;
const TURN_TOKENS: u32 = PARTS * BLOCK_TOKENS;
/// Turns from which sharing them pays for another launch.
const SHARED_FROM: u32 = 4;
/// Workgroups that a context is shared by: some more than a large card runs at once would do
/// nothing but read the queries again.
const SHARED_BY: u32 = 2 * GROUPS_ENOUGH;
/// Of all blocks of a step, 64 MiB.
const PARTIALS_MAX: u64 = 1 << 24;

/// Elements of a block's sums of one query, `KEPT` of the kernels.
fn kept_elements(head_dim: u32) -> u32 {
    head_dim + 8
}

/// All that attend by matrix units with heads of one size.
fn kernels_of(head_dim: u32) -> impl Iterator<Item = Kernel> {
    let ways = [Turning::Before, Turning::Here]
        .into_iter()
        .flat_map(|turning| [Sums::Added, Sums::ByBlocks].map(|sums| (turning, sums)));
    let by_units = ways.map(move |(turning, sums)| Kernel::AttentionUnits(head_dim, turning, sums));
    by_units.chain([Kernel::AttentionAdd(head_dim)])
}

/// All that attend by matrix units.
pub(crate) fn every_kernel() -> impl Iterator<Item = Kernel> {
    BY_UNITS.into_iter().flat_map(kernels_of)
}

/// Room for the sums of blocks, of the longest context or of as many as there may be.
pub(crate) fn partial_elements(tape: &Tape, capacity: &Capacity) -> u64 {
    if !BY_UNITS.contains(&tape.head_dim) {
        return 0;
    }
    let blocks = capacity.block_count.next_multiple_of(PARTS) + PARTS;
    let of_block = tape.ops.iter().filter_map(|op| match op {
        Op::PagedAttention { shape, .. } => Some(block_elements(shape, tape.head_dim)),
        _ => None,
    });
    (u64::from(blocks) * of_block.max().unwrap_or(0)).min(PARTIALS_MAX)
}

/// Elements of a token's sums of one block.
fn block_elements(shape: &AttentionShape, head_dim: u32) -> u64 {
    let [heads, _] = tile_of(shape);
    let across = (shape.heads / shape.heads_kv).div_ceil(heads);
    u64::from(shape.heads_kv * across * heads * kept_elements(head_dim))
}

/// Of so many heads with the same keys, how many a workgroup takes where there is enough to do.
fn heads_together(head_dim: u32, sharing: u32) -> u32 {
    if head_dim > 576 {
        return 1;
    }
    [4, 3, 2].into_iter().find(|&together| sharing.is_multiple_of(together)).unwrap_or(1)
}

/// How a tile's queries are shared out: heads that share keys, and tokens.
fn tile_of(shape: &AttentionShape) -> [u32; 2] {
    let heads = (shape.heads / shape.heads_kv).min(QUERIES);
    [heads, QUERIES / heads]
}

/// Which sizes of tiles a tape needs, in tokens.
pub(crate) fn tile_sizes(tape: &Tape) -> Vec<u32> {
    let tokens = tape.ops.iter().filter_map(|op| match op {
        Op::PagedAttention { shape, .. } => Some(tile_of(shape)[1]),
        _ => None,
    });
    let mut sizes: Vec<u32> = tokens.collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// A step's tiles of one size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiles {
    /// Tokens of each at most.
    pub(crate) tokens: u32,
    /// Where their list begins in the step's words.
    pub(crate) start: u32,
    pub(crate) count: u32,
}

impl Tiles {
    /// Lists them behind all other words: the first token of each, and how many it has.
    pub(crate) fn list(&mut self, inputs: &StepInputs, words: &mut Vec<u32>) {
        self.start = words.len() as u32;
        let mut begin = 0;
        for row in &inputs.rows {
            for first in (0..row.length).step_by(self.tokens as usize) {
                words.extend([begin + first, self.tokens.min(row.length - first)]);
            }
            begin += row.length;
        }
        self.count = (words.len() as u32 - self.start) / 2;
    }
}

/// All kernels that may attend with these heads.
pub(crate) fn kernels(shape: &AttentionShape, tape: &Tape, plan: &Plan) -> Vec<Kernel> {
    if by_units(tape, plan) {
        return kernels_of(tape.head_dim).collect();
    }
    let together = heads_together(tape.head_dim, shape.heads / shape.heads_kv);
    [1, together].map(|heads| Kernel::PagedAttention(tape.head_dim, heads)).to_vec()
}

fn by_units(tape: &Tape, plan: &Plan) -> bool {
    plan.bounds.attends_by_units && BY_UNITS.contains(&tape.head_dim)
}

/// Attention that comes right behind the turning of its heads, which nobody else reads, may do
/// both.
pub(crate) fn join(tape: &Tape, passes: &mut [Pass]) {
    for index in 1..passes.len() {
        let (before, after) = passes.split_at_mut(index);
        let (Some(Pass::Rotary(turning)), Pass::Attention { layer, query, rotary, .. }) =
            (before.last_mut(), &mut after[0])
        else {
            continue;
        };
        if turning.layer == *layer && turning.query == *query && is_read_once(tape, turning.layer) {
            turning.is_joined = true;
            *rotary = Some(*turning);
        }
    }
}

/// Whether nothing but its attention reads a layer's queries once they are turned.
fn is_read_once(tape: &Tape, layer: u32) -> bool {
    let turned = tape.ops.iter().find_map(|op| match op {
        Op::RotaryAppend { layer: own, query, .. } if *own == layer => Some(*query),
        _ => None,
    });
    tape.ops.iter().all(|op| {
        let mut is_read = false;
        op.clone().operands(&mut |operand| match operand {
            Operand::Read(id) | Operand::Change(id) => is_read |= Some(*id) == turned,
            Operand::ReadColumns(_, columns) => is_read |= Some(columns.buffer) == turned,
            _ => {}
        });
        !is_read || matches!(op, Op::RotaryAppend { .. } | Op::PagedAttention { .. })
    })
}

impl StepLaunches<'_> {
    /// Whether the kernel that attends turns heads as well.
    pub(crate) fn turns_in_attention(&self) -> bool {
        by_units(self.tape, self.plan) && self.step.tokens == self.step.rows
    }

    pub(crate) fn attention(&self, pass: &Pass, launch: &mut dyn FnMut(Launch)) {
        let Pass::Attention { layer, query, shape, sinks, output, rotary } = pass else {
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
        let (head_dim, sharing) = (self.tape.head_dim, shape.heads / shape.heads_kv);
        let bound = Bound::Layer(*layer);
        if by_units(self.tape, self.plan) {
            let [heads, tokens] = tile_of(shape);
            let across = sharing.div_ceil(heads);
            let tiles = self.step.tiles_of(tokens);
            let shared = self.shared(shape, tiles);
            let of_tiles = [tiles.start, heads, across];
            parameters.extend(&of_tiles);
            parameters.extend(&[shared.partials, shared.blocks, shared.turns_each]);
            let turned_here = rotary.as_ref().filter(|_| self.turns_in_attention());
            if let Some(rotary) = turned_here {
                parameters.extend(&at(rotary.key));
                parameters.extend(&at(rotary.value));
                parameters.extend(&self.turning_words(rotary));
            }
            let turning = if turned_here.is_some() { Turning::Here } else { Turning::Before };
            let groups = [shape.heads_kv * across, tiles.count, shared.groups];
            let kernel = Kernel::AttentionUnits(head_dim, turning, shared.sums);
            launch(Launch { kernel, bound, parameters, groups });
            if shared.sums == Sums::ByBlocks {
                let mut parameters = Parameters::new(&at(*output));
                parameters.extend(&[shape.heads, shape.heads_kv, window, whole, sinks.0]);
                parameters.extend(&of_tiles);
                parameters.extend(&[shared.partials, shared.blocks]);
                let (kernel, groups) =
                    (Kernel::AttentionAdd(head_dim), [shape.heads, tiles.count, 1]);
                launch(Launch { kernel, bound, parameters, groups });
            }
            return;
        }
        let mut at_once = heads_together(head_dim, sharing);
        if shape.heads / at_once * self.step.tokens < GROUPS_ENOUGH {
            at_once = 1;
        }
        let groups = [shape.heads / at_once, self.step.tokens, 1];
        launch(Launch {
            kernel: Kernel::PagedAttention(head_dim, at_once),
            bound,
            parameters,
            groups,
        });
    }

    /// Whether several workgroups have a context: where rows have one token each, of long contexts,
    /// and are few.
    fn shared(&self, shape: &AttentionShape, tiles: Tiles) -> Shared {
        let all = (self.step.positions_most / TURN_TOKENS) + 1;
        let turns = match shape.window {
            // It may begin and end within a turn.
            Window::Sliding(tokens) => all.min(tokens / TURN_TOKENS + 2),
            Window::Full | Window::Whole => all,
        };
        let alone = Shared { sums: Sums::Added, partials: 0, blocks: 0, turns_each: 0, groups: 1 };
        let Some(partials) = self.plan.places.partials else { return alone };
        let [heads, _] = tile_of(shape);
        let across = (shape.heads / shape.heads_kv).div_ceil(heads);
        let without = shape.heads_kv * across * tiles.count;
        let turns_each = (turns * without).div_ceil(SHARED_BY);
        let blocks = turns * PARTS;
        let room = u64::from(tiles.count * blocks) * block_elements(shape, self.tape.head_dim);
        let is_shared = self.step.tokens == self.step.rows
            && turns >= SHARED_FROM
            && turns_each < turns
            && room <= u64::from(partials.width);
        if !is_shared {
            return alone;
        }
        let groups = turns.div_ceil(turns_each);
        Shared { sums: Sums::ByBlocks, partials: partials.first, blocks, turns_each, groups }
    }
}

/// How workgroups share the contexts of a step.
struct Shared {
    sums: Sums,
    /// Where blocks' sums are, and of how many blocks of a tile.
    partials: u32,
    blocks: u32,
    turns_each: u32,
    /// That share one context.
    groups: u32,
}
