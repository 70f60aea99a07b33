//! How does a model become one of fewer bits, in a file that others read?
//!
//! A GGUF file or a folder becomes a GGUF file of the types and mixes that llama.cpp makes, or a
//! folder as MLX-LM makes it. Tensors are read, made and written one after the other, so memory
//! holds the largest one twice; their rows are shared by threads.
//!
//! Invariants:
//! - Output is there whole or not at all.
//! - What was lost is measured on what was written, tensor by tensor.
//!
//! Read in this order: this file, `plan.rs` (what becomes what), `gguf_file.rs` with
//! `gguf_vocabulary.rs` and `head_order.rs`, `mlx_folder.rs` with `gguf_source.rs`, `joined.rs`,
//! `folder_settings.rs` and `folder_gemma4.rs` (reading and writing), `encoding.rs`, then
//! `blocks.rs`, `rounding.rs` and `affine.rs` (the arithmetic), `partial.rs`.

#![forbid(unsafe_code)]

mod affine;
mod blocks;
mod encoding;
mod folder_gemma4;
mod folder_settings;
mod gguf_file;
mod gguf_source;
mod gguf_vocabulary;
mod head_order;
mod joined;
mod mlx_folder;
mod partial;
mod plan;
mod rounding;

use std::io;
use std::path::PathBuf;

pub use affine::encode_affine_row;
pub use blocks::{FORMATS, encode_row};
pub use encoding::Loss;
pub use gguf_file::{GgufChoices, to_gguf};
pub use mlx_folder::{MlxChoices, MlxException, to_mlx};
pub use ops::quant_format::QuantFormat;
pub use plan::{Exception, GGUF_RECIPES, GgufRecipe, MlxRecipe};

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub tensor: &'a str,
    /// Of the source's bytes.
    pub done_bytes: u64,
    pub total_bytes: u64,
}

/// What was made.
#[derive(Clone, Debug, Default)]
pub struct Report {
    pub tensors: Vec<Made>,
    pub source_bytes: u64,
    pub bytes: u64,
}

/// What became of one tensor.
#[derive(Clone, Debug)]
pub struct Made {
    pub name: String,
    pub from: &'static str,
    pub to: &'static str,
    pub weights: u64,
    pub bytes: u64,
    pub loss: Loss,
}

impl Report {
    /// Of all tensors together.
    pub fn loss(&self) -> Loss {
        let mut all = Loss::default();
        self.tensors.iter().for_each(|tensor| all.add(tensor.loss));
        all
    }
}

/// Why a model is not quantized.
#[derive(Debug, thiserror::Error)]
pub enum QuantizeError {
    #[error(transparent)]
    Source(#[from] weights::WeightsError),
    #[error("{what} {found} is not known; known are {known}")]
    Unknown { what: &'static str, found: String, known: String },
    #[error("{} is there already; give another place, or remove it", path.display())]
    Exists { path: PathBuf },
    #[error("{} is no name for a file", path.display())]
    Place { path: PathBuf },
    #[error("tensor {name} has a weight that is not a number, or too large for {to}")]
    NotFinite { name: String, to: &'static str },
    #[error("tensor {name} would have to become {to}, which {problem}")]
    Impossible { name: String, to: String, problem: String },
    #[error("{}: {problem}", path.display())]
    Settings { path: PathBuf, problem: String },
    #[error("no tensor matches the pattern {pattern}; `pelton show --tensors` lists their names")]
    Unmatched { pattern: String },
    #[error("cannot write {}: {reason}", path.display())]
    Write { path: PathBuf, reason: io::Error },
    #[error(transparent)]
    Build(#[from] weights::BuildError),
}

/// Exceptions that say something of no tensor are mistakes.
fn check_exceptions<T>(exceptions: &[Exception<T>], names: &[&str]) -> Result<(), QuantizeError> {
    let unused = exceptions.iter().find(|e| !names.iter().any(|n| plan::matches(&e.pattern, n)));
    match unused {
        None => Ok(()),
        Some(e) => Err(QuantizeError::Unmatched { pattern: e.pattern.clone() }),
    }
}
