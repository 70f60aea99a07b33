//! Who quantized the weights of a folder, and which tensors are a weight's parts?
//!
//! `config.json` says who; each has a file: `mlx.rs`, and `published.rs` for what is published
//! beside the original weights.

use std::collections::HashMap;

use ops::quant_format::QuantFormat;

use super::config::Config;
use super::mlx;
use super::published::Published;
use super::shards::Shard;
use crate::made_tensor::{Piece, Recipe};
use crate::safetensors::RawTensor;

/// All tensors of a folder, by name.
pub(super) struct Everything<'a> {
    shards: &'a [Shard],
    by_name: HashMap<&'a str, Found<'a>>,
}

/// A tensor, and in which file it is.
#[derive(Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) part: usize,
    pub(super) tensor: &'a RawTensor,
}

/// A quantized weight, put together.
pub(super) struct Quantized {
    pub(super) format: QuantFormat,
    /// Fastest first.
    pub(super) dims: Vec<u64>,
    pub(super) recipe: Recipe,
}

/// What a tensor is.
pub(super) enum Claim {
    Plain,
    /// Read together with a weight.
    Beside,
    /// These weights, under the names that they have where they are not quantized.
    Weights(Vec<(String, Quantized)>),
}

pub(super) enum Method<'a> {
    Mlx(mlx::Quantization<'a>),
    Published(Published),
}

impl<'a> Everything<'a> {
    pub(super) fn of(shards: &'a [Shard]) -> Self {
        let tensors = shards.iter().enumerate().flat_map(|(part, shard)| {
            let found = move |tensor: &'a RawTensor| (tensor.name.as_str(), Found { part, tensor });
            shard.tensors.iter().map(found)
        });
        Self { shards, by_name: tensors.collect() }
    }

    pub(super) fn get(&self, path: &str, suffix: &str) -> Option<Found<'a>> {
        self.by_name.get(format!("{path}{suffix}").as_str()).copied()
    }

    /// What is stored, in its file.
    pub(super) fn bytes(&self, found: Found<'a>) -> &'a [u8] {
        &self.shards[found.part].file.bytes()[found.tensor.range.clone()]
    }
}

impl Found<'_> {
    pub(super) fn piece(&self) -> Piece {
        Piece { part: self.part, range: self.tensor.range.clone() }
    }
}

impl<'a> Method<'a> {
    /// `None` for a model of plain floats.
    ///
    /// # Errors
    /// When nobody known quantized the weights, or in a way that is not read.
    pub(super) fn read(config: &Config<'a>) -> Result<Option<Self>, String> {
        for key in ["quantization", "quantization_config", "compression_config"] {
            let Some(all) = config.object(key)? else { continue };
            return Ok(Some(match all.text("quant_method")? {
                None => Method::Mlx(mlx::Quantization::read(all)?),
                Some(method) => Method::Published(Published::read(method, &all)?),
            }));
        }
        Ok(None)
    }

    pub(super) fn claim(
        &self,
        everything: &Everything<'_>,
        found: Found<'_>,
    ) -> Result<Claim, String> {
        match self {
            Method::Mlx(quantization) => quantization.claim(everything, found),
            Method::Published(published) => published.claim(everything, found),
        }
    }
}
