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
//! Read in this order: `open` here, `weight_file.rs` (the files of one model), `file_part.rs` (one
//! of them), `gguf/mod.rs` (GGUF), `safetensors.rs`, `folder/mod.rs` (a folder told in the words of
//! GGUF), `made_tensor.rs` and `conversion.rs` (tensors that no file holds as one), `metadata.rs`
//! (typed values by key), `gguf/builder.rs` (writing GGUF), `read_ahead.rs` (tensors read from disk
//! before they are asked for), `direct_read.rs` (and past the system's cache), `page_cache.rs`
//! (what is in that cache), `packed_file.rs` (the cache of repacked weights).

#![deny(unsafe_code)]

mod conversion;
mod direct_read;
mod error;
mod file_part;
mod folder;
pub mod gguf;
mod made_tensor;
mod mapped_file;
mod metadata;
mod nearest;
mod packed_file;
mod page_cache;
mod read_ahead;
mod recognize;
mod safetensors;
mod weight_file;

use std::path::Path;

pub use direct_read::DirectReads;
pub use error::{Flaw, WeightsError};
pub use file_part::FilePart;
pub use folder::{
    Adapter, AdapterMatrix, AdapterPart, FolderName, Holds, Part, folder_name, own_key,
};
pub use gguf::{BuildError, GgufBuilder, TensorInfo, TensorType};
pub use metadata::{Array, FromValue, Metadata, StringArray, Value};
pub use nearest::nearest_name;
pub use packed_file::{PackedFile, PackedFlaw, PackedIdentity, SourceIdentity, write_packed};
pub use page_cache::{CacheFilling, is_mostly_cached};
pub use read_ahead::{ReadAhead, ReadAheadCounts, ReadAheadSettings};
pub use weight_file::{TensorShape, TensorView, WeightFile};

/// Opens a model, whatever it was given: a `.gguf` file, whole or any part of a split set, or a
/// folder with `config.json` and `.safetensors` files.
///
/// Archives, pickles, other folders and other things are refused with a text that says
/// what they are and what is supported.
pub fn open(path: impl AsRef<Path>) -> Result<WeightFile, WeightsError> {
    WeightFile::open(path.as_ref())
}

/// Opens a folder with its tensors under their own names, as they are stored, but for experts:
/// their matrices are stacked and called as MLX calls them. For those who write another folder.
///
/// # Errors
/// As `open`; and when `path` is no folder.
pub fn open_under_own_names(path: impl AsRef<Path>) -> Result<WeightFile, WeightsError> {
    let path = path.as_ref();
    match folder::of(path) {
        Some(folder) => WeightFile::open_folder(folder, folder::Naming::Own),
        None => Err(WeightsError::NotSupported {
            path: path.to_owned(),
            found: "no folder of a model".to_owned(),
        }),
    }
}
