//! What does one step of a model consist of? A flat list of ops over named buffers.
//!
//! A tape is made once at load and holds for every step: each activation has one row a token (or a
//! sampled row), and only the number of rows changes from step to step.

use std::ops::Range;

use ops::paged_attention::PageShape;
use ops::pool_rows::Pooling;
use ops::rotary::Rotary;
use ops::{ActivationId, Op, RotaryId, WeightId};

use crate::{LoadError, WeightShape, WeightSource, WeightView};

#[derive(Clone, Debug, PartialEq)]
pub struct Tape {
    pub ops: Vec<Op>,
    pub activations: Vec<ActivationSpec>,
    /// In the order in which they are loaded.
    pub weights: Vec<WeightSpec>,
    /// Each once, however many layers use it.
    pub rotaries: Vec<Rotary>,
    pub layers: u32,
    pub heads_kv: u32,
    pub head_dim: u32,
    pub vocabulary: u32,
    pub state: StateShape,
    /// The first op of each of the model's layers: where a tape may be cut.
    pub layer_starts: Vec<u32>,
}

/// What a tape computes before another goes on, or from there on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub ops: Range<usize>,
    /// What it receives of each token, in its order.
    pub received: Vec<ActivationId>,
    /// What it hands out of each token; `None`: no other goes on.
    pub sent: Option<Vec<ActivationId>>,
}

/// What a sequence carries from token to token besides keys and values, in elements of f32; none
/// in most models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateShape {
    pub elements: u32,
    /// Kept of each guess until it is known which were right.
    pub guess_elements: u32,
}

impl StateShape {
    pub fn is_empty(&self) -> bool {
        self.elements == 0
    }
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
    /// Where the weight is some rows of its tensor only; `None`: it is all of it.
    pub part: Option<RowPart>,
}

/// A weight's place in a tensor that holds several, one below the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPart {
    pub first: u32,
    /// Rows of the tensor.
    pub of: u32,
}

impl WeightSpec {
    /// Rows of the tensor that holds the weight.
    pub fn stored_rows(&self) -> u32 {
        self.part.map_or(self.rows, |part| part.of)
    }

    /// The weight's own rows of its tensor.
    fn cut<'a>(&self, view: WeightView<'a>) -> WeightView<'a> {
        let Some(part) = self.part else { return view };
        let row_bytes = view.bytes.len() / view.rows;
        let (first, rows) = (part.first as usize, self.rows as usize);
        let bytes = &view.bytes[first * row_bytes..(first + rows) * row_bytes];
        WeightView { rows, bytes, ..view }
    }
}

impl Tape {
    pub fn activation(&self, id: ActivationId) -> &ActivationSpec {
        &self.activations[id.0 as usize]
    }

    pub fn weight(&self, id: WeightId) -> &WeightSpec {
        &self.weights[id.0 as usize]
    }

    pub fn rotary(&self, id: RotaryId) -> &Rotary {
        &self.rotaries[usize::from(id.0)]
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
    /// How long the vectors are that it gives; `None`: it samples tokens.
    pub fn vector_width(&self) -> Option<u32> {
        let Some(Op::GiveRows { parts }) = self.ops.last() else { return None };
        Some(parts.iter().map(|&part| self.activation(part).width).sum())
    }

    /// The turns that it takes with another's, in order: one where it is a whole model.
    pub fn segments(&self) -> Vec<Segment> {
        let is_end = |op: &Op| matches!(op, Op::SendRows { .. });
        let mut end = 0;
        let parts = self.ops.split_inclusive(is_end).map(|ops| {
            let start = end;
            end += ops.len();
            let received = match ops.first() {
                Some(Op::ReceiveRows { parts }) => parts.clone(),
                _ => Vec::new(),
            };
            let sent = match ops.last() {
                Some(Op::SendRows { parts }) => Some(parts.clone()),
                _ => None,
            };
            Segment { ops: start..end, received, sent }
        });
        parts.collect()
    }

    /// The width of what is pooled and how, where anything is.
    pub fn pooled(&self) -> Option<(u32, Pooling)> {
        self.ops.iter().find_map(|op| match op {
            Op::PoolRows { input, pooling, .. } => Some((self.activation(*input).width, *pooling)),
            _ => None,
        })
    }

    /// The stored tensor of a weight, with the shape that the tape expects.
    ///
    /// # Errors
    /// [`LoadError`] when the tensor is missing or has another shape.
    pub fn stored<'a>(
        &self,
        id: WeightId,
        source: &'a dyn WeightSource,
    ) -> Result<WeightView<'a>, LoadError> {
        self.shape(id, source)?;
        let spec = self.weight(id);
        Ok(spec.cut(source.weight(&spec.name)?))
    }

    /// The shape of a weight's stored tensor, which is the one that the tape expects.
    ///
    /// # Errors
    /// As [`Tape::stored`].
    pub fn shape(&self, id: WeightId, source: &dyn WeightSource) -> Result<WeightShape, LoadError> {
        let spec = self.weight(id);
        let shape = source.shape(&spec.name)?;
        let rows = spec.stored_rows();
        if (shape.rows, shape.cols) == (rows as usize, spec.cols as usize) {
            let bytes = shape.bytes / shape.rows * spec.rows as usize;
            return Ok(WeightShape { rows: spec.rows as usize, bytes, ..shape });
        }
        Err(LoadError(format!(
            "tensor {} has {} rows of {}, the model's settings need {rows} rows of {}: \
             the file's metadata and tensors disagree",
            source.own_name(&spec.name),
            shape.rows,
            shape.cols,
            spec.cols
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
        self.shape(id, source)?;
        let spec = self.weight(id);
        source.lend(&spec.name, &mut |view| take(spec.cut(view)))
    }
}
