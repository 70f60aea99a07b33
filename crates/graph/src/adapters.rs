//! How do adapters come into a tape? Behind each product that some adapt, what they add to it.
//!
//! A tape without adapters stays as it is. A gated pair whose parts are adapted is taken apart, for
//! the adapters add to what the gate is made of.

use std::collections::BTreeMap;

use device::{ActivationSpec, Rows, Tape, WeightSpec};
use ops::gated_linear::Activation;
use ops::low_rank::LowRank;
use ops::{ActivationId, LinearPart, Op, Target, WeightId};

use crate::ShapeError;

/// What one adapter adds to one tensor of the model; names of its own tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapted {
    /// `[rank, input width]`
    pub down: String,
    /// `[rows of the tensor, rank]`
    pub up: String,
    pub rank: u32,
    pub scale: f32,
}

/// By the names of the tensors that it adapts.
pub type Adapter = BTreeMap<String, Adapted>;

/// The tape with these adapters, by their numbers.
///
/// # Errors
/// [`ShapeError`] naming a tensor that cannot be adapted, or is not in the tape.
pub fn adapt(tape: Tape, adapters: &[Adapter]) -> Result<Tape, ShapeError> {
    let mut adapting = Adapting { adapters, found: BTreeMap::new(), parts: BTreeMap::new(), tape };
    let ops = std::mem::take(&mut adapting.tape.ops);
    let mut starts = std::mem::take(&mut adapting.tape.layer_starts).into_iter().peekable();
    for (index, op) in (0..).zip(ops) {
        if starts.next_if_eq(&index).is_some() {
            let start = adapting.tape.ops.len();
            let start = u32::try_from(start).expect("invariant: fewer ops than 2^32");
            adapting.tape.layer_starts.push(start);
        }
        adapting.add(op)?;
    }
    adapting.finish()
}

struct Adapting<'a> {
    adapters: &'a [Adapter],
    /// Tensors that a product was found of.
    found: BTreeMap<String, ()>,
    /// Buffers for gates and ups that were taken apart, by width.
    parts: BTreeMap<u32, [ActivationId; 2]>,
    tape: Tape,
}

impl Adapting<'_> {
    fn add(&mut self, op: Op) -> Result<(), ShapeError> {
        match op {
            Op::Linear { input, parts } => self.linear(input, parts),
            Op::GatedLinear { input, gate, up, activation, output }
                if self.is_adapted(gate) || self.is_adapted(up) =>
            {
                self.gated(input, [gate, up], activation, output)
            }
            op => {
                self.tape.ops.push(op);
                Ok(())
            }
        }
    }

    fn linear(&mut self, input: ActivationId, parts: Vec<LinearPart>) -> Result<(), ShapeError> {
        self.tape.ops.push(Op::Linear { input, parts: parts.clone() });
        for part in parts {
            self.add_low_rank(input, part.weight, part.target.buffer())?;
        }
        Ok(())
    }

    fn gated(
        &mut self,
        input: ActivationId,
        weights: [WeightId; 2],
        activation: Activation,
        output: ActivationId,
    ) -> Result<(), ShapeError> {
        let width = self.tape.activation(output).width;
        let tape = &mut self.tape;
        let [gate, up] = *self.parts.entry(width).or_insert_with(|| {
            ["gate", "up"].map(|name| {
                let spec = ActivationSpec { name, width, rows: Rows::Tokens };
                tape.activations.push(spec);
                let index = tape.activations.len() - 1;
                ActivationId(u16::try_from(index).expect("invariant: few buffers"))
            })
        });
        let part =
            |(weight, buffer)| LinearPart { weight, bias: None, target: Target::Store(buffer) };
        let parts = weights.into_iter().zip([gate, up]).map(part).collect();
        self.linear(input, parts)?;
        self.tape.ops.push(Op::Gate { gate, up, activation, output });
        Ok(())
    }

    fn is_adapted(&self, weight: WeightId) -> bool {
        let name = &self.tape.weight(weight).name;
        self.adapters.iter().any(|adapter| adapter.contains_key(name))
    }

    fn add_low_rank(
        &mut self,
        input: ActivationId,
        weight: WeightId,
        output: ActivationId,
    ) -> Result<(), ShapeError> {
        if !self.is_adapted(weight) {
            return Ok(());
        }
        let base = self.tape.weight(weight).clone();
        self.found.insert(base.name.clone(), ());
        let adapters = self.adapters;
        let of_adapter = |adapter: &Adapter| {
            let Adapted { down, up, rank, scale } = adapter.get(&base.name)?.clone();
            let down = WeightSpec { name: down, rows: rank, cols: base.cols, part: None };
            let up = WeightSpec { name: up, rows: base.rows, cols: rank, part: base.part };
            let (down, up) = (self.weight(down), self.weight(up));
            Some(LowRank { down, up, scale })
        };
        let adapters = adapters.iter().map(of_adapter).collect();
        self.tape.ops.push(Op::AddLowRank { input, adapters, output });
        Ok(())
    }

    /// A tensor of several parts is read through one `down`.
    fn weight(&mut self, spec: WeightSpec) -> WeightId {
        let weights = &mut self.tape.weights;
        let known = weights.iter().position(|known| *known == spec);
        let index = known.unwrap_or_else(|| {
            weights.push(spec);
            weights.len() - 1
        });
        WeightId(u32::try_from(index).expect("invariant: fewer weights than 2^32"))
    }

    fn finish(self) -> Result<Tape, ShapeError> {
        let names = self.adapters.iter().flat_map(BTreeMap::keys);
        match names.into_iter().find(|name| !self.found.contains_key(*name)) {
            None => Ok(self.tape),
            Some(name) => Err(ShapeError {
                op: "low_rank",
                what: format!("{name} is no matrix of this model that can be adapted"),
            }),
        }
    }
}
