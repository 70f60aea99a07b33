//! What is in a model file? Named tensors and metadata, read where they lie, never trusted.
//!
//! Invariants:
//! - Nothing a file claims (a count, a length, an offset, a product of sizes) is used before it is
//!   checked against the bytes that are there, so memory allocated while opening stays within a
//!   small multiple of the file and no content of a file can panic or read outside it.
//! - A tensor that is handed out lies inside its file and overlaps no other.
//! - Files are only read. The map of a file is the one unsafe island (`mapped_file.rs`).
//! - Errors name the file, the byte or the key or the tensor, and what to do.
//!
//! Read in this order: `open` here, `weight_file.rs` (the files of one model), `gguf/mod.rs` (one
//! GGUF file), `metadata.rs` (typed values by key), `gguf/builder.rs` (writing GGUF),
//! `read_ahead.rs` (tensors read from disk before they are asked for), `packed_file.rs` (the cache
//! of repacked weights).

#![deny(unsafe_code)]

mod error;
pub mod gguf;
mod mapped_file;
mod metadata;
mod packed_file;
mod read_ahead;
mod recognize;
mod weight_file;

use std::path::Path;

pub use error::{Flaw, WeightsError};
pub use gguf::{BuildError, GgufBuilder, GgufFile, TensorInfo, TensorType};
pub use metadata::{Array, FromValue, Metadata, StringArray, Value};
pub use packed_file::{PackedFile, PackedFlaw, PackedIdentity, SourceIdentity, write_packed};
pub use read_ahead::{ReadAhead, ReadAheadCounts, ReadAheadSettings};
pub use weight_file::{TensorView, WeightFile};

/// Opens a model, whatever it was given: today a `.gguf` file, whole or any part of a split set.
///
/// Archives, pickles, safetensors, folders and other things are refused with a text that says
/// what they are and what is supported.
pub fn open(path: impl AsRef<Path>) -> Result<WeightFile, WeightsError> {
    WeightFile::open(path.as_ref())
}
