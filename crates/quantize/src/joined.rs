//! How does a folder hold in one matrix what a GGUF file holds in two?
//!
//! Behind a latent, DeepSeek V2's folders have each head's keys and, below them, its values; files
//! have both apart, and keys turned over. Before a gated delta net, Qwen3-Next's have each head's
//! queries, keys, values and gates; files have all heads' gates apart, and of the others one kind
//! below the other.
//!
//! Source: `conversion/deepseek.py` and `conversion/qwen.py` of llama.cpp, read backwards.

use ops::quant_format::QuantFormat;
use weights::{Holds, Part, TensorInfo, WeightFile};

use crate::QuantizeError;
use crate::encoding::Stored;

/// A matrix of two tensors.
pub(crate) struct Joined {
    parts: [Source; 2],
    /// Fastest first.
    pub(crate) dims: [u64; 2],
    kind: Kind,
}

struct Source {
    name: String,
    format: QuantFormat,
    cols: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    /// Rows of a head's keys.
    Latent { heads: usize, keys: usize },
    /// Rows of a head's keys, and of the values that share them.
    Nets { heads: usize, keys: usize, values: usize },
}

impl Joined {
    /// `None`: these are no two parts of one matrix.
    pub(crate) fn of(parts: [(&TensorInfo, Holds); 2], heads_key: u64) -> Option<Self> {
        let find = |wanted| parts.iter().find(|part| part.1 == Holds::Part(wanted));
        let pair = |first, second| Some((find(first)?.0, find(second)?.0));
        let ((first, second), dims, kind) =
            if let Some((keys, values)) = pair(Part::Keys, Part::Values) {
                let (&[plain, latent, heads], &[latent_too, value, heads_too]) =
                    (keys.dims(), values.dims())
                else {
                    return None;
                };
                let fits = latent == latent_too && heads == heads_too;
                let rows = plain.checked_add(value)?.checked_mul(heads).filter(|_| fits)?;
                let kind = Kind::Latent { heads: heads as usize, keys: plain as usize };
                ((keys, values), [latent, rows], kind)
            } else {
                let (mixed, gates) = pair(Part::Mixed, Part::Gates)?;
                let (&[cols, all], &[cols_too, values]) = (mixed.dims(), gates.dims()) else {
                    return None;
                };
                let keys = all.checked_sub(values).filter(|_| cols == cols_too)?;
                let divides = heads_key > 0
                    && keys.is_multiple_of(2 * heads_key)
                    && values.is_multiple_of(heads_key);
                let rows = all.checked_add(values).filter(|_| divides)?;
                let [heads, keys, values] = [heads_key, keys / 2 / heads_key, values / heads_key]
                    .map(|count| count as usize);
                ((mixed, gates), [cols, rows], Kind::Nets { heads, keys, values })
            };
        let source = |info: &TensorInfo| {
            let (name, cols) = (info.name().to_owned(), info.cols() as usize);
            Some(Source { name, format: info.format().ok()?, cols })
        };
        Some(Self { parts: [source(first)?, source(second)?], dims, kind })
    }

    /// All rows, in F32.
    pub(crate) fn read_into(
        &self,
        file: &WeightFile,
        to: &mut Vec<u8>,
    ) -> Result<(), QuantizeError> {
        let mut parts = [Vec::new(), Vec::new()];
        for (Source { name, format, cols }, values) in self.parts.iter().zip(&mut parts) {
            let (format, cols) = (*format, *cols);
            file.read_into(name, to)?;
            let stored = Stored { format, cols, bytes: to };
            values.resize(stored.rows() * cols, 0.0);
            for (row, values) in values.chunks_exact_mut(cols).enumerate() {
                stored.row(row, values);
            }
        }
        to.clear();
        let [first, second] = &parts;
        let mut add = |values: &[f32]| to.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        let cols = self.dims[0] as usize;
        match self.kind {
            Kind::Latent { heads, keys } => {
                let of_head = |part: &[f32]| part.len() / heads;
                let values = second.chunks_exact(of_head(second));
                for (turned, values) in first.chunks_exact(of_head(first)).zip(values) {
                    for key in 0..keys {
                        let row: Vec<f32> =
                            turned.iter().skip(key).step_by(keys).copied().collect();
                        add(&row);
                    }
                    add(values);
                }
            }
            Kind::Nets { heads, keys, values } => {
                for head in 0..heads {
                    let rows = |first: usize, count: usize| first * cols..(first + count) * cols;
                    add(&first[rows(head * keys, keys)]);
                    add(&first[rows((heads + head) * keys, keys)]);
                    add(&first[rows(2 * heads * keys + head * values, values)]);
                    add(&second[rows(head * values, values)]);
                }
            }
        }
        Ok(())
    }
}
