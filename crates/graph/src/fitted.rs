//! How does a layer attend whose heads are not those of the cache? They are fitted into them.
//!
//! All layers share one shape of pages. A layer of smaller heads leaves their ends empty, one of
//! fewer heads of keys repeats each; scores and what is attended stay what they are. Some layers
//! have no keys and values of their own and read those of an earlier one (Gemma 4; before it
//! <https://arxiv.org/abs/2405.12981>).

use device::Rows;
use ops::{ActivationId, HeadColumns, LinearPart, Op, Target};

use crate::blocks::{AttentionBlock, Lowering};
use crate::{Matrix, ShapeError};

/// Queries, and keys and values, of heads of their own size; each is normed alone, values without
/// a weight.
#[derive(Clone, Debug)]
pub struct FittedBlock {
    pub query: Matrix,
    pub query_norm: String,
    pub keys: FittedKeys,
    pub head_dim: u32,
    pub heads_kv: u32,
}

/// Where a layer's keys and values come from.
#[derive(Clone, Debug)]
pub enum FittedKeys {
    /// Values are what keys are before their norm, where they have no matrix.
    Own { key: Matrix, key_norm: String, value: Option<Matrix> },
    /// Those of the layer of this number.
    Of(u32),
}

/// Buffers of layers of one shape: as the layer has its heads, and as the cache has them. The ends
/// of the latter stay empty, so no other shape may write there.
#[derive(Clone, Copy)]
pub(crate) struct FittedBuffers {
    own: [ActivationId; 3],
    fitted: [ActivationId; 3],
    attended: [ActivationId; 2],
}

impl Lowering<'_> {
    /// Leaves what was attended in a buffer of the layer's own shape; returns it.
    pub(crate) fn fitted(
        &mut self,
        layer: u32,
        block: &AttentionBlock,
        own: &FittedBlock,
    ) -> Result<(ActivationId, u32), ShapeError> {
        let (heads, head_dim) = (self.decoder.heads, self.decoder.head_dim);
        let FittedBuffers { own: [query, key, value], fitted, attended } = self.fit_buffers(own);
        self.fitted_inputs(own, [query, key, value])?;
        let whole = |buffer, stride| HeadColumns { buffer, stride, first: 0, width: own.head_dim };
        let (input, output) = (whole(query, own.head_dim), whole(fitted[0], head_dim));
        self.builder.push(Op::CopyColumns { heads, input, output })?;
        let rotary = block.rotary.as_ref().map(|rotary| self.builder.rotary(rotary));
        let layer = match own.keys {
            FittedKeys::Own { .. } => {
                self.fit_keys(own, key, fitted[1])?;
                self.fit_keys(own, value, fitted[2])?;
                let [query, key, value] = fitted;
                let head_norms = None;
                self.builder.push(Op::RotaryAppend {
                    layer,
                    head_norms,
                    rotary,
                    growth: block.growth,
                    query,
                    key,
                    value,
                })?;
                layer
            }
            FittedKeys::Of(source) => {
                if let Some(rotary) = rotary {
                    self.builder.push(Op::Rotate { values: fitted[0], head_dim, rotary })?;
                }
                source
            }
        };
        let (query, shape, output) = (fitted[0], block.shape, attended[0]);
        self.builder.push(Op::PagedAttention { layer, query, shape, sinks: None, output })?;
        let (input, output) = (whole(attended[0], head_dim), whole(attended[1], own.head_dim));
        self.builder.push(Op::CopyColumns { heads, input, output })?;
        Ok((attended[1], heads * own.head_dim))
    }

    fn fitted_inputs(
        &mut self,
        own: &FittedBlock,
        [query, key, value]: [ActivationId; 3],
    ) -> Result<(), ShapeError> {
        let (width, heads, epsilon) =
            (self.decoder.width, self.decoder.heads, self.decoder.epsilon);
        let mut part = |matrix: &Matrix, heads: u32, buffer| {
            self.part(matrix, &None, [heads * own.head_dim, width], Target::Store(buffer))
        };
        let mut parts: Vec<LinearPart> = vec![part(&own.query, heads, query)];
        let mut norms = vec![(query, Some(&own.query_norm))];
        let mut repeats_keys = false;
        if let FittedKeys::Own { key: matrix, key_norm, value: values } = &own.keys {
            parts.push(part(matrix, own.heads_kv, key));
            parts.extend(values.as_ref().map(|matrix| part(matrix, own.heads_kv, value)));
            repeats_keys = values.is_none();
            norms.extend([(key, Some(key_norm)), (value, None)]);
        }
        self.builder.push(Op::Linear { input: self.input, parts })?;
        if repeats_keys {
            let of = |buffer| HeadColumns {
                buffer,
                stride: own.head_dim,
                first: 0,
                width: own.head_dim,
            };
            let (heads, input, output) = (own.heads_kv, of(key), of(value));
            self.builder.push(Op::CopyColumns { heads, input, output })?;
        }
        for (values, name) in norms {
            let weight = name.map(|name| self.builder.weight(name, 1, own.head_dim));
            let width = own.head_dim;
            self.builder.push(Op::NormHeads { values, width, weight, epsilon })?;
        }
        Ok(())
    }

    /// Each head of keys or values to as many of the cache as there are for it.
    fn fit_keys(
        &mut self,
        own: &FittedBlock,
        from: ActivationId,
        to: ActivationId,
    ) -> Result<(), ShapeError> {
        let head_dim = self.decoder.head_dim;
        let times = self.decoder.heads_kv / own.heads_kv;
        for time in 0..times {
            let width = own.head_dim;
            let input = HeadColumns { buffer: from, stride: width, first: 0, width };
            let (stride, first) = (times * head_dim, time * head_dim);
            let output = HeadColumns { buffer: to, stride, first, width };
            self.builder.push(Op::CopyColumns { heads: own.heads_kv, input, output })?;
        }
        Ok(())
    }

    fn fit_buffers(&mut self, own: &FittedBlock) -> FittedBuffers {
        let (heads, heads_kv, head_dim) =
            (self.decoder.heads, self.decoder.heads_kv, self.decoder.head_dim);
        let builder = &mut self.builder;
        let new = || {
            let mut buffer = |name, width| builder.activation(name, width, Rows::Tokens);
            let (query, kv) = (heads * own.head_dim, own.heads_kv * own.head_dim);
            FittedBuffers {
                own: [("own query", query), ("own key", kv), ("own value", kv)]
                    .map(|(name, width)| buffer(name, width)),
                fitted: [("query", heads), ("key", heads_kv), ("value", heads_kv)]
                    .map(|(name, heads)| buffer(name, heads * head_dim)),
                attended: [buffer("attended", heads * head_dim), buffer("own attended", query)],
            }
        };
        *self.fitted_buffers.entry((own.head_dim, own.heads_kv)).or_insert_with(new)
    }
}
