//! Where can a tape be cut, and what are its two parts?
//!
//! A part keeps the weights, activations and rotations that its ops use, and counts layers and
//! states from its own first one on.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use device::{LoadError, Rows, StateShape, Tape};
use ops::{ActivationId, Op, Operand, RotaryId, WeightId};

/// The layers before which a tape can be cut: no layer behind reads keys and values of one before.
pub fn places(tape: &Tape) -> Vec<u32> {
    let layers = 1..tape.layer_starts.len() as u32;
    layers.filter(|&layer| pages(tape, layer).is_some()).collect()
}

/// The tape up to a layer of the model, and from that on.
///
/// # Errors
/// [`LoadError`] where it cannot be cut there.
pub fn cut(tape: &Tape, layer: u32) -> Result<[Tape; 2], LoadError> {
    let Some(pages) = pages(tape, layer) else {
        let known: Vec<String> = places(tape).iter().map(u32::to_string).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(LoadError(format!(
            "the model cannot be cut before its layer {layer}: there is none before or behind, or \
             layers on both sides read the same keys and values; it can before {known}"
        )));
    };
    let at = tape.layer_starts[layer as usize];
    let sent = crossing(tape, at as usize);
    let (before, behind) = tape.ops.split_at(at as usize);
    let states = states(tape, at as usize);
    let [first_pages, second_pages] = pages;
    let [first_states, second_states] = states;
    let (first_starts, second_starts) = tape.layer_starts.split_at(layer as usize);

    let send = Op::SendRows { parts: sent.clone() };
    let first = Part {
        ops: before.iter().cloned().chain([send]).collect(),
        pages: first_pages,
        states: first_states,
        layer_starts: first_starts.to_vec(),
    };
    let receive = Op::ReceiveRows { parts: sent };
    let second = Part {
        ops: std::iter::once(receive).chain(behind.iter().cloned()).collect(),
        pages: second_pages,
        states: second_states,
        layer_starts: second_starts.iter().map(|start| start - at + 1).collect(),
    };
    Ok([first.tape(tape), second.tape(tape)])
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
    let start = tape.layer_starts.get(layer as usize).filter(|_| layer > 0)?;
    let at = *start as usize;
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

/// Activations that are read from op `at` on before they are written again, and were written
/// before: column by column, for some ops write a part of a row.
fn crossing(tape: &Tape, at: usize) -> Vec<ActivationId> {
    let none = || tape.activations.iter().map(|spec| vec![false; spec.width as usize]);
    let (mut before, mut behind): (Vec<_>, Vec<_>) = (none().collect(), none().collect());
    let mut crossing = BTreeSet::new();
    let (first, second) = tape.ops.split_at(at);
    each_operand(&mut first.to_vec(), |operand| mark(&operand, &mut before));
    each_operand(&mut second.to_vec(), |operand| {
        let is_sent = |id: &ActivationId, column: usize| {
            let id = usize::from(id.0);
            before[id][column] && !behind[id][column]
        };
        let read = match &operand {
            Operand::Read(id) | Operand::Change(id) => {
                let columns = 0..before[usize::from(id.0)].len();
                columns.clone().any(|column| is_sent(id, column)).then_some(**id)
            }
            Operand::ReadColumns(heads, columns) => {
                let mut read = (0..*heads).flat_map(|head| columns.range(head));
                read.any(|column| is_sent(&columns.buffer, column)).then_some(columns.buffer)
            }
            _ => None,
        };
        crossing.extend(read);
        mark(&operand, &mut behind);
    });
    let is_token = |id: &ActivationId| tape.activation(*id).rows == Rows::Tokens;
    assert!(crossing.iter().all(is_token), "layers end before rows are picked");
    crossing.into_iter().collect()
}

/// Notes what is written. Columns that are changed and never stored are zeros on every device and
/// stay so: the ends of heads that are smaller than the cache's.
fn mark(operand: &Operand<'_>, written: &mut [Vec<bool>]) {
    match operand {
        Operand::Store(id) => written[usize::from(id.0)].fill(true),
        Operand::StoreColumns(heads, columns) => {
            let own = &mut written[usize::from(columns.buffer.0)];
            (0..*heads).for_each(|head| own[columns.range(head)].fill(true));
        }
        _ => {}
    }
}
