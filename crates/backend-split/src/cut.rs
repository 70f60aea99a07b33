//! Where can a tape be cut, and what are its two parts?
//!
//! A part keeps the weights, activations and rotations that its ops use, and counts layers and
//! states from its own first one on. Its ops are in runs, between which the other's are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use device::{LoadError, Rows, StateShape, Tape};
use ops::{ActivationId, Op, Operand, RotaryId, WeightId};

/// What of a model the first of two devices has; the second has all else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// So many layers, the first ones, with what comes before them.
    pub layers: u32,
    /// The experts of so many layers, counted from the first one, too.
    pub experts: u32,
}

/// The layers before which a tape can be cut: no layer behind reads keys and values of one before.
pub fn places(tape: &Tape) -> Vec<u32> {
    let layers = 1..tape.layer_starts.len() as u32;
    layers.filter(|&layer| pages(tape, layer).is_some()).collect()
}

/// The layers that have experts, by their number.
pub fn layers_with_experts(tape: &Tape) -> Vec<u32> {
    let is_experts = |op: &&Op| matches!(op, Op::Experts { .. });
    let at = tape.ops.iter().enumerate().filter(|(_, op)| is_experts(op));
    let layer = |at: usize| tape.layer_starts.partition_point(|&start| start as usize <= at);
    let mut layers: Vec<u32> = at.map(|(at, _)| layer(at).saturating_sub(1) as u32).collect();
    layers.dedup();
    layers
}

/// The first device's part of a tape, and the second's.
///
/// # Errors
/// [`LoadError`] where it cannot be cut there.
pub fn cut(tape: &Tape, share: Share) -> Result<[Tape; 2], LoadError> {
    let Share { layers, experts } = share;
    let Some(pages) = pages(tape, layers) else {
        let known: Vec<String> = places(tape).iter().map(u32::to_string).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(LoadError(format!(
            "the model cannot be cut before its layer {layers}: there is none before or behind, or \
             layers on both sides read the same keys and values; it can before {known}"
        )));
    };
    let at = start_of(tape, layers);
    let runs = runs(tape, at, start_of(tape, experts));
    if runs.iter().all(|run| run.part == 1) {
        let text = format!("none of the first {experts} layers of the model has experts");
        return Err(LoadError(text));
    }
    let crossing = crossing(tape, &runs)?;
    let [first_states, second_states] = states(tape, at);
    let [first_pages, second_pages] = pages;
    let part = |part: usize, pages, states| {
        let (mut ops, mut layer_starts) = (Vec::new(), Vec::new());
        let mut starts = tape.layer_starts.iter().peekable();
        for (index, run) in runs.iter().enumerate() {
            if run.part != part {
                continue;
            }
            if index > 0 {
                ops.push(Op::ReceiveRows { parts: crossing[index].clone() });
            }
            while starts.next_if(|&&start| (start as usize) < run.ops.start).is_some() {}
            while let Some(&start) = starts.next_if(|&&start| run.ops.contains(&(start as usize))) {
                layer_starts.push((ops.len() + start as usize - run.ops.start) as u32);
            }
            ops.extend_from_slice(&tape.ops[run.ops.clone()]);
            if let Some(sent) = crossing.get(index + 1) {
                ops.push(Op::SendRows { parts: sent.clone() });
            }
        }
        Part { ops, pages, states, layer_starts }.tape(tape)
    };
    Ok([part(0, first_pages, first_states), part(1, second_pages, second_states)])
}

/// Ops one behind the other that one part has.
struct Run {
    part: usize,
    ops: Range<usize>,
}

/// Where a layer's ops begin; behind all for one that there is not.
fn start_of(tape: &Tape, layer: u32) -> usize {
    match tape.layer_starts.get(layer as usize) {
        Some(_) if layer == 0 => 0,
        Some(start) => *start as usize,
        None => tape.ops.len(),
    }
}

/// The first part has all ops before `at`, and experts before `experts`.
fn runs(tape: &Tape, at: usize, experts: usize) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (index, op) in tape.ops.iter().enumerate() {
        let is_first = index < at || index < experts && matches!(op, Op::Experts { .. });
        let part = usize::from(!is_first);
        match runs.last_mut() {
            Some(run) if run.part == part => run.ops.end = index + 1,
            _ => runs.push(Run { part, ops: index..index + 1 }),
        }
    }
    runs
}

/// Some of a tape's ops, and which of its pages and states they use.
struct Part {
    ops: Vec<Op>,
    pages: Range<u32>,
    states: StateSpan,
    layer_starts: Vec<u32>,
}

/// Where a part's states are among those of the whole tape, and what is kept of its guesses.
#[derive(Clone, Copy)]
struct StateSpan {
    first: StateShape,
    shape: StateShape,
}

impl Part {
    fn tape(mut self, whole: &Tape) -> Tape {
        let mut activations = BTreeMap::<ActivationId, ActivationId>::new();
        let mut weights = BTreeMap::<WeightId, WeightId>::new();
        let mut rotaries = BTreeMap::<RotaryId, RotaryId>::new();
        each_operand(&mut self.ops, |operand| match operand {
            Operand::Read(id) | Operand::Store(id) | Operand::Change(id) => {
                activations.insert(*id, *id);
            }
            Operand::ReadColumns(_, columns) | Operand::StoreColumns(_, columns) => {
                activations.insert(columns.buffer, columns.buffer);
            }
            Operand::Weight(id) => {
                weights.insert(*id, *id);
            }
            Operand::Rotary(id) => {
                rotaries.insert(*id, *id);
            }
            Operand::Layer(_) | Operand::Carried(_) => {}
        });
        // In the order of the whole tape's tables.
        (0..).zip(activations.values_mut()).for_each(|(new, id)| *id = ActivationId(new));
        (0..).zip(weights.values_mut()).for_each(|(new, id)| *id = WeightId(new));
        (0..).zip(rotaries.values_mut()).for_each(|(new, id)| *id = RotaryId(new));
        each_operand(&mut self.ops, |operand| match operand {
            Operand::Read(id) | Operand::Store(id) | Operand::Change(id) => *id = activations[id],
            Operand::ReadColumns(_, columns) | Operand::StoreColumns(_, columns) => {
                columns.buffer = activations[&columns.buffer];
            }
            Operand::Weight(id) => *id = weights[id],
            Operand::Rotary(id) => *id = rotaries[id],
            Operand::Layer(layer) => *layer -= self.pages.start,
            Operand::Carried(carried) => {
                carried.state -= self.states.first.elements;
                carried.guess -= self.states.first.guess_elements;
            }
        });
        Tape {
            ops: self.ops,
            activations: activations.keys().map(|&id| whole.activation(id).clone()).collect(),
            weights: weights.keys().map(|&id| whole.weight(id).clone()).collect(),
            rotaries: rotaries.keys().map(|&id| whole.rotary(id).clone()).collect(),
            layers: self.pages.len() as u32,
            state: self.states.shape,
            layer_starts: self.layer_starts,
            ..*whole
        }
    }
}

fn each_operand(ops: &mut [Op], mut visit: impl FnMut(Operand<'_>)) {
    ops.iter_mut().for_each(|op| op.operands(&mut visit));
}

/// The pages of the two parts; `None` where one reads the other's.
fn pages(tape: &Tape, layer: u32) -> Option<[Range<u32>; 2]> {
    if layer == 0 {
        return Some([0..0, 0..tape.layers]);
    }
    let at = *tape.layer_starts.get(layer as usize)? as usize;
    let used = |ops: &[Op]| {
        let mut used = BTreeSet::new();
        each_operand(&mut ops.to_vec(), |operand| {
            if let Operand::Layer(layer) = operand {
                used.insert(*layer);
            }
        });
        used
    };
    let (before, behind) = (used(&tape.ops[..at]), used(&tape.ops[at..]));
    let middle = before.last().map_or(0, |last| last + 1);
    let is_apart = behind.first().is_none_or(|first| *first >= middle);
    is_apart.then_some([0..middle, middle..tape.layers])
}

/// The states of the two parts: they are in the order of the ops that carry them.
fn states(tape: &Tape, at: usize) -> [StateSpan; 2] {
    let mut middle = tape.state;
    each_operand(&mut tape.ops[at..].to_vec(), |operand| {
        if let Operand::Carried(carried) = operand {
            middle.elements = middle.elements.min(carried.state);
            middle.guess_elements = middle.guess_elements.min(carried.guess);
        }
    });
    let rest = StateShape {
        elements: tape.state.elements - middle.elements,
        guess_elements: tape.state.guess_elements - middle.guess_elements,
    };
    let none = StateShape::default();
    [StateSpan { first: none, shape: middle }, StateSpan { first: middle, shape: rest }]
}

/// Who has the latest of an activation's columns, a bit a part; `None`: they were never stored, and
/// are zeros on every device, as the ends of heads stay that are smaller than the cache's.
type Holders = Vec<Option<u8>>;

/// What each run receives: activations that it reads before it writes them and that its part has
/// not, column by column, for some ops write a part of a row.
fn crossing(tape: &Tape, runs: &[Run]) -> Result<Vec<Vec<ActivationId>>, LoadError> {
    let none = |width: u32| vec![None; width as usize];
    let mut all: Vec<Holders> = tape.activations.iter().map(|spec| none(spec.width)).collect();
    let mut crossing = Vec::new();
    for run in runs {
        let own = 1u8 << run.part;
        let before = all.clone();
        let mut lacking = BTreeSet::new();
        let mut read = |holders: &[Option<u8>], id: ActivationId| {
            if holders.iter().flatten().any(|who| who & own == 0) {
                lacking.insert(id);
            }
        };
        each_operand(&mut tape.ops[run.ops.clone()].to_vec(), |operand| match operand {
            Operand::Read(id) => read(&all[usize::from(id.0)], *id),
            Operand::Change(id) => {
                let holders = &mut all[usize::from(id.0)];
                read(holders, *id);
                holders.iter_mut().flatten().for_each(|who| *who = own);
            }
            Operand::Store(id) => all[usize::from(id.0)].fill(Some(own)),
            Operand::ReadColumns(heads, columns) => {
                let holders = &all[usize::from(columns.buffer.0)];
                (0..heads).for_each(|head| read(&holders[columns.range(head)], columns.buffer));
            }
            Operand::StoreColumns(heads, columns) => {
                let holders = &mut all[usize::from(columns.buffer.0)];
                (0..heads).for_each(|head| holders[columns.range(head)].fill(Some(own)));
            }
            _ => {}
        });
        for &id in &lacking {
            let spec = tape.activation(id);
            assert!(spec.rows == Rows::Tokens, "layers end before rows are picked");
            // Rows go over whole.
            if before[usize::from(id.0)].iter().flatten().any(|&who| who == own) {
                let text = format!("two devices would each have a part of `{}`", spec.name);
                return Err(LoadError(text));
            }
            let received = &mut all[usize::from(id.0)];
            received.iter_mut().flatten().for_each(|who| *who |= own);
        }
        crossing.push(lacking.into_iter().collect());
    }
    Ok(crossing)
}
