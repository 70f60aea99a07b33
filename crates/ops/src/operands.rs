//! What does an op name, and what does it do with it? One list for whoever renames, moves or drops
//! what a tape consists of.

use crate::{
    ActivationId, Carried, HeadColumns, HeadNorms, LinearPart, Op, RotaryId, Target, WeightId,
};

/// One thing that an op names.
#[derive(Debug)]
pub enum Operand<'a> {
    Read(&'a mut ActivationId),
    /// All of it is written, whatever was there.
    Store(&'a mut ActivationId),
    /// It is read, and written in place.
    Change(&'a mut ActivationId),
    /// These columns of so many heads are read.
    ReadColumns(u32, &'a mut HeadColumns),
    /// They are written, whatever was there.
    StoreColumns(u32, &'a mut HeadColumns),
    Weight(&'a mut WeightId),
    Rotary(&'a mut RotaryId),
    /// Of keys and values.
    Layer(&'a mut u32),
    Carried(&'a mut Carried),
}

use Operand::{Change, Read, ReadColumns, Store, StoreColumns, Weight};

type Visit<'a> = dyn FnMut(Operand<'_>) + 'a;

impl Op {
    /// Shows every operand to `visit`, what is read before what is stored.
    pub fn operands(&mut self, visit: &mut Visit<'_>) {
        match self {
            Self::Embed { table, output, .. } => {
                visit(Weight(table));
                visit(Store(output));
            }
            Self::EmbedMore { table, output, .. } => {
                visit(Weight(table));
                visit(Change(output));
            }
            Self::RmsNorm { input, weight, target, .. } => {
                visit(Read(input));
                visit(Weight(weight));
                visit(into(target));
            }
            Self::Linear { input, parts } => {
                visit(Read(input));
                for LinearPart { weight, bias, target } in parts {
                    visit(Weight(weight));
                    bias.iter_mut().for_each(|bias| visit(Weight(bias)));
                    visit(into(target));
                }
            }
            Self::GatedLinear { input, gate, up, output, .. } => {
                visit(Read(input));
                [gate, up].into_iter().for_each(|weight| visit(Weight(weight)));
                visit(Store(output));
            }
            Self::Gate { gate, up, output, .. } => {
                [gate, up].into_iter().for_each(|input| visit(Read(input)));
                visit(Store(output));
            }
            Self::AddLowRank { input, adapters, output } => {
                visit(Read(input));
                for adapter in adapters.iter_mut().flatten() {
                    visit(Weight(&mut adapter.down));
                    visit(Weight(&mut adapter.up));
                }
                visit(Change(output));
            }
            Self::SelectRows { input, output } | Self::PoolRows { input, output, .. } => {
                visit(Read(input));
                visit(Store(output));
            }
            Self::SampleRows { logits } => visit(Read(logits)),
            Self::GiveRows { parts } | Self::SendRows { parts } => {
                parts.iter_mut().for_each(|part| visit(Read(part)));
            }
            Self::ReceiveRows { parts } => parts.iter_mut().for_each(|part| visit(Store(part))),
            Self::LayerNorm { .. }
            | Self::Activate { .. }
            | Self::GatedNorm { .. }
            | Self::SigmoidGate { .. }
            | Self::NormHeads { .. }
            | Self::Rotate { .. }
            | Self::Blend { .. }
            | Self::Scale { .. }
            | Self::SoftCap { .. } => self.changed(visit),
            Self::Experts { .. }
            | Self::HeadLinear { .. }
            | Self::CopyColumns { .. }
            | Self::RotaryAppend { .. }
            | Self::PagedAttention { .. }
            | Self::CausalConv { .. }
            | Self::GatedDelta { .. } => self.mixed(visit),
        }
    }

    /// Of ops that change rows in place.
    fn changed(&mut self, visit: &mut Visit<'_>) {
        match self {
            Self::LayerNorm { values, weight, bias, .. } => {
                [weight, bias].into_iter().for_each(|weight| visit(Weight(weight)));
                visit(Change(values));
            }
            Self::Activate { values, .. } | Self::SoftCap { values, .. } => visit(Change(values)),
            Self::GatedNorm { values, weight, gate, .. } => {
                visit(Read(gate));
                visit(Weight(weight));
                visit(Change(values));
            }
            Self::SigmoidGate { values, gate } => {
                visit(Read(gate));
                visit(Change(values));
            }
            Self::NormHeads { values, weight, .. } => {
                weight.iter_mut().for_each(|weight| visit(Weight(weight)));
                visit(Change(values));
            }
            Self::Rotate { values, rotary, .. } => {
                visit(Operand::Rotary(rotary));
                visit(Change(values));
            }
            Self::Blend { values, other, .. } => {
                visit(Read(other));
                visit(Change(values));
            }
            Self::Scale { values, by } => {
                visit(Weight(by));
                visit(Change(values));
            }
            _ => unreachable!("invariant: asked of such ops only"),
        }
    }

    /// Of experts, heads, and what goes from token to token.
    fn mixed(&mut self, visit: &mut Visit<'_>) {
        match self {
            Self::Experts { input, scores, experts, target } => {
                [input, scores].into_iter().for_each(|input| visit(Read(input)));
                let weights = [&mut experts.gate, &mut experts.up, &mut experts.down];
                let vectors = experts.choice_bias.iter_mut().chain(&mut experts.weight_scales);
                let vectors = vectors.chain(experts.biases.iter_mut().flatten());
                weights.into_iter().chain(vectors).for_each(|weight| visit(Weight(weight)));
                visit(into(target));
            }
            Self::HeadLinear { heads, input, weight, output } => {
                visit(ReadColumns(*heads, input));
                visit(Weight(weight));
                visit(StoreColumns(*heads, output));
            }
            Self::CopyColumns { heads, input, output } => {
                visit(ReadColumns(*heads, input));
                visit(StoreColumns(*heads, output));
            }
            Self::RotaryAppend { layer, head_norms, rotary, query, key, value, .. } => {
                visit(Operand::Layer(layer));
                if let Some(HeadNorms { query, key, .. }) = head_norms {
                    [query, key].into_iter().for_each(|weight| visit(Weight(weight)));
                }
                rotary.iter_mut().for_each(|rotary| visit(Operand::Rotary(rotary)));
                visit(Read(value));
                [query, key].into_iter().for_each(|values| visit(Change(values)));
            }
            Self::PagedAttention { layer, query, sinks, output, .. } => {
                visit(Operand::Layer(layer));
                visit(Read(query));
                sinks.iter_mut().for_each(|sinks| visit(Weight(sinks)));
                visit(Store(output));
            }
            Self::CausalConv { values, weight, carried, .. } => {
                visit(Weight(weight));
                visit(Operand::Carried(carried));
                visit(Change(values));
            }
            Self::GatedDelta { inputs, rate, bias, carried, output, .. } => {
                let from = [&mut inputs.mixed, &mut inputs.decay, &mut inputs.strength];
                from.into_iter().for_each(|input| visit(Read(input)));
                [rate, bias].into_iter().for_each(|weight| visit(Weight(weight)));
                visit(Operand::Carried(carried));
                visit(Store(output));
            }
            _ => unreachable!("invariant: asked of such ops only"),
        }
    }
}

fn into(target: &mut Target) -> Operand<'_> {
    match target {
        Target::Store(output) => Store(output),
        Target::AddTo(output) => Change(output),
    }
}
