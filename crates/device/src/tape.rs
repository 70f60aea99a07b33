//! What does one step of a model consist of? A flat list of ops over named buffers.
//!
//! A tape is made once at load and holds for every step: each activation has one row a token (or a
//! sampled row), and only the number of rows changes from step to step.

use ops::paged_attention::PageShape;
use ops::rotary::Rotary;
use ops::{ActivationId, Op, WeightId};

use crate::{LoadError, WeightSource, WeightView};

#[derive(Clone, Debug, PartialEq)]
pub struct Tape {
    pub ops: Vec<Op>,
    pub activations: Vec<ActivationSpec>,
    pub weights: Vec<WeightSpec>,
    pub rotary: Rotary,
    pub layers: u32,
    pub heads_kv: u32,
    pub head_dim: u32,
    pub vocabulary: u32,
}

/// `[rows, width]` of f32 (or whatever the backend keeps it in).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActivationSpec {
    pub name: &'static str,
    pub width: u32,
    pub rows: Rows,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// One row for each token of the step.
    Tokens,
    /// One row for each row of the step that samples.
    Sampled,
}

/// `[rows, cols]`; a vector has one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// The tensor's name in the model's files.
    pub name: String,
    pub rows: u32,
    pub cols: u32,
}

impl Tape {
    pub fn activation(&self, id: ActivationId) -> &ActivationSpec {
        &self.activations[id.0 as usize]
    }

    pub fn weight(&self, id: WeightId) -> &WeightSpec {
        &self.weights[id.0 as usize]
    }

    /// Shape of each layer's pages with `block_tokens` positions a block.
    pub fn page_shape(&self, block_tokens: u32) -> PageShape {
        PageShape {
            heads_kv: self.heads_kv as usize,
            block_tokens: block_tokens as usize,
            head_dim: self.head_dim as usize,
        }
    }
}

impl Tape {
    /// The stored tensor of a weight, with the shape that the tape expects.
    ///
    /// # Errors
    /// [`LoadError`] when the tensor is missing or has another shape.
    pub fn stored<'a>(
        &self,
        id: WeightId,
        source: &'a dyn WeightSource,
    ) -> Result<WeightView<'a>, LoadError> {
        let spec = self.weight(id);
        let view = source.weight(&spec.name)?;
        if (view.rows, view.cols) == (spec.rows as usize, spec.cols as usize) {
            return Ok(view);
        }
        Err(LoadError(format!(
            "tensor {} has {} rows of {}, the model's settings need {} rows of {}: \
             the file's metadata and tensors disagree",
            spec.name, view.rows, view.cols, spec.rows, spec.cols
        )))
    }

    /// Lends the stored tensor of a weight, with the shape that the tape expects, to `take`.
    ///
    /// # Errors
    /// As [`Tape::stored`] and [`WeightSource::lend`].
    pub fn lend(
        &self,
        id: WeightId,
        source: &dyn WeightSource,
        take: &mut dyn FnMut(WeightView<'_>),
    ) -> Result<(), LoadError> {
        self.stored(id, source)?;
        source.lend(&self.weight(id).name, take)
    }
}
