//! Which kernel attends, and to what? By matrix units where heads are of a size that they take.
//!
//! Units take 16 queries at once: tokens that are beside one another in a row of the step, with the
//! heads that share keys. A row's tiles are listed in the step's words.

use device::{StepInputs, Tape};
use ops::paged_attention::{AttentionShape, Window};
use ops::{Op, Operand};

use crate::dispatch::{Bound, Launch, Parameters, StepLaunches};
use crate::kernels::Kernel;
use crate::lowering::{Pass, Plan};
use crate::row_passes::at;

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

/// All that attend by matrix units.
pub(crate) fn every_kernel() -> impl Iterator<Item = Kernel> {
    let of = |head_dim| [Turning::Before, Turning::Here].map(|turning| (head_dim, turning));
    BY_UNITS.into_iter().flat_map(of).map(|(dim, turning)| Kernel::AttentionUnits(dim, turning))
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
        let by_units = |turning| Kernel::AttentionUnits(tape.head_dim, turning);
        return [Turning::Before, Turning::Here].map(by_units).to_vec();
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

    pub(crate) fn attention(&self, pass: &Pass) -> Launch {
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
            parameters.extend(&[tiles.start, heads, across]);
            let turned_here = rotary.as_ref().filter(|_| self.turns_in_attention());
            if let Some(rotary) = turned_here {
                parameters.extend(&at(rotary.key));
                parameters.extend(&at(rotary.value));
                parameters.extend(&self.turning_words(rotary));
            }
            let turning = if turned_here.is_some() { Turning::Here } else { Turning::Before };
            let groups = [shape.heads_kv * across, tiles.count, 1];
            let kernel = Kernel::AttentionUnits(head_dim, turning);
            return Launch { kernel, bound, parameters, groups };
        }
        let mut at_once = heads_together(head_dim, sharing);
        if shape.heads / at_once * self.step.tokens < GROUPS_ENOUGH {
            at_once = 1;
        }
        let groups = [shape.heads / at_once, self.step.tokens, 1];
        Launch { kernel: Kernel::PagedAttention(head_dim, at_once), bound, parameters, groups }
    }
}
