//! How fast could a device serve a model at best? The work of a step over the device's ceilings.
//!
//! A step must read each weight once, in the bits in which the file stores it, and the keys and
//! values of every sequence; and it must do each multiply-add once, in 8-bit integers where the
//! device has them. Whichever takes longer is the roof. Attention's products are left out: they
//! are few beside the rest up to some thousand tokens, so the roof is a little too high there.

use device::{Ceilings, LoadError, Rows, Tape, WeightSource};
use ops::{ActivationId, LinearPart, Op, WeightId};

use crate::loading::open_backend;
use crate::{EngineError, EngineOptions};

/// The set read to find the ceiling is no larger than this: it is far beyond any cache.
const READ_SET_BYTES_MAX: u64 = 1 << 30;

/// What a step of a model must read and compute, on any device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepWork {
    /// Bytes of all matrices that take part in products, as the file stores them.
    pub weights_bytes: u64,
    /// Multiply-adds for each token.
    pub token_products: u64,
    /// Multiply-adds for each sampled row: the head.
    pub sampled_products: u64,
    /// Keys and values of one position.
    pub kv_bytes_per_token: u64,
}

impl StepWork {
    pub(crate) fn of(
        tape: &Tape,
        source: &dyn WeightSource,
        kv_bytes_per_token: u64,
    ) -> Result<Self, LoadError> {
        let mut work = Self { kv_bytes_per_token, ..Self::default() };
        let mut read: Vec<WeightId> = Vec::new();
        for Product { input, weight, share: (used, of) } in products(tape) {
            let view = tape.shape(weight, source)?;
            let count = (view.rows as u64).saturating_mul(view.cols as u64) / of * used;
            match tape.activation(input).rows {
                Rows::Tokens => work.token_products += count,
                Rows::Sampled => work.sampled_products += count,
            }
            if !read.contains(&weight) {
                read.push(weight);
                work.weights_bytes += view.bytes as u64 / of * used;
            }
        }
        Ok(work)
    }

    /// Tokens a second of a step in which each of `sequences` takes one token and reads the keys
    /// and values of `context` positions.
    pub fn decode_roof(&self, ceilings: &Ceilings, sequences: u64, context: u64) -> Roofline {
        let kv_bytes = self.kv_bytes_per_token as f64 * (sequences * context) as f64;
        let products = (sequences * (self.token_products + self.sampled_products)) as f64;
        Roofline::of(ceilings, sequences, self.weights_bytes as f64 + kv_bytes, products)
    }

    /// Tokens a second of `sequences` prompts of `tokens`, if the weights were read only once.
    pub fn prefill_roof(&self, ceilings: &Ceilings, sequences: u64, tokens: u64) -> Roofline {
        let all = sequences * tokens;
        let products = all * self.token_products + sequences * self.sampled_products;
        let kv_bytes = self.kv_bytes_per_token * all;
        Roofline::of(ceilings, all, (self.weights_bytes + kv_bytes) as f64, products as f64)
    }
}

/// The best rate, and what holds it there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Roofline {
    pub tokens_per_second: f64,
    pub bound: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    Reading,
    Computing,
}

impl Roofline {
    fn of(ceilings: &Ceilings, tokens: u64, bytes: f64, products: f64) -> Self {
        let ops_per_second =
            ceilings.integer_ops_per_second.unwrap_or(ceilings.float_ops_per_second);
        let reading = bytes / ceilings.read_bytes_per_second;
        let computing = 2.0 * products / ops_per_second;
        let bound = if reading >= computing { Bound::Reading } else { Bound::Computing };
        Self { tokens_per_second: tokens as f64 / reading.max(computing), bound }
    }
}

/// What the device of these options can do at best, reading a set as large as a step of `work`
/// does; `None` where the device has no loops for it. Takes some seconds of the whole device.
///
/// # Errors
/// [`EngineError::Option`] as [`crate::Engine::load`].
pub fn ceilings(options: &EngineOptions, work: &StepWork) -> Result<Option<Ceilings>, EngineError> {
    let backend = open_backend(options)?;
    let bytes = work.weights_bytes.clamp(1, READ_SET_BYTES_MAX);
    Ok(backend.ceilings(bytes as usize))
}

/// One matrix product of a step.
struct Product {
    input: ActivationId,
    weight: WeightId,
    /// Of the weight that a token passes: so many of so many parts. At best all tokens of a step
    /// pass the same.
    share: (u64, u64),
}

impl Product {
    fn of(input: ActivationId, weight: WeightId, share: (u64, u64)) -> Self {
        Self { input, weight, share }
    }
}

fn products(tape: &Tape) -> impl Iterator<Item = Product> {
    tape.ops.iter().flat_map(|op| match op {
        Op::Linear { input, parts } => {
            let whole = |part: &LinearPart| Product::of(*input, part.weight, (1, 1));
            parts.iter().map(whole).collect::<Vec<_>>()
        }
        Op::GatedLinear { input, gate, up, .. } => {
            [*gate, *up].map(|weight| Product::of(*input, weight, (1, 1))).into()
        }
        Op::Experts { input, experts, .. } => {
            let share = (experts.routing.used.into(), experts.routing.experts.into());
            let weights = [experts.gate, experts.up, experts.down];
            weights.map(|weight| Product::of(*input, weight, share)).into()
        }
        Op::HeadLinear { input, weight, .. } => {
            vec![Product::of(input.buffer, *weight, (1, 1))]
        }
        Op::Embed { .. }
        | Op::CopyColumns { .. }
        | Op::CausalConv { .. }
        | Op::GatedDelta { .. }
        | Op::GatedNorm { .. }
        | Op::SigmoidGate { .. }
        | Op::NormHeads { .. }
        | Op::Rotate { .. }
        | Op::Blend { .. }
        | Op::Scale { .. }
        | Op::RmsNorm { .. }
        | Op::RotaryAppend { .. }
        | Op::PagedAttention { .. }
        | Op::SoftCap { .. }
        | Op::SelectRows { .. }
        | Op::SampleRows { .. }
        | Op::PoolRows { .. }
        | Op::GiveRows { .. }
        | Op::ReceiveRows { .. }
        | Op::SendRows { .. }
        | Op::Gate { .. }
        | Op::AddLowRank { .. }
        | Op::EmbedMore { .. }
        | Op::LayerNorm { .. }
        | Op::Activate { .. } => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Ceilings = Ceilings {
        read_set_bytes: 1000,
        read_bytes_per_second: 1000.0,
        float_ops_per_second: 10.0,
        integer_ops_per_second: Some(2000.0),
        bfloat_ops_per_second: None,
    };
    const WORK: StepWork = StepWork {
        weights_bytes: 100,
        token_products: 15,
        sampled_products: 5,
        kv_bytes_per_token: 1,
    };

    #[test]
    fn the_slower_of_reading_and_computing_is_the_roof() {
        // 100 + 1 * 100 bytes take 0.2 s, 2 * 20 operations 0.02 s.
        let one = WORK.decode_roof(&CEILINGS, 1, 100);
        assert_eq!(one, Roofline { tokens_per_second: 5.0, bound: Bound::Reading });
        // 100 + 10 * 0 bytes take 0.1 s, 2 * 10 * 20 operations 0.2 s.
        let ten = WORK.decode_roof(&CEILINGS, 10, 0);
        assert_eq!(ten, Roofline { tokens_per_second: 50.0, bound: Bound::Computing });
        // 100 + 9 * 1 bytes take 0.109 s, 2 * (9 * 15 + 5) operations 0.14 s.
        let prompt = WORK.prefill_roof(&CEILINGS, 1, 9);
        assert_eq!(prompt.bound, Bound::Computing);
        assert!((prompt.tokens_per_second - 9.0 / 0.14).abs() < 1e-9);
        // Without an integer dot product, floats are the ceiling.
        let floats = Ceilings { integer_ops_per_second: None, ..CEILINGS };
        assert_eq!(WORK.decode_roof(&floats, 1, 0).tokens_per_second, 10.0 / 40.0);
    }
}
