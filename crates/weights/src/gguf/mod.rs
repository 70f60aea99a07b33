//! What is in one GGUF file? Header, metadata, tensor list and tensor data, little-endian.
//!
//! Layout: `GGUF`, u32 version, u64 tensor count, u64 key count; keys with typed values; tensor
//! infos (name, dimensions with the fastest first, type, offset); padding to the alignment; data.
//! Version 3 and version 2 (the same but for the big-endian variant) are read.
//!
//! Invariants of a file that was opened: every tensor's offset is aligned; every tensor whose type
//! is known lies inside the file; no two overlap. Overlap is refused because no writer shares
//! bytes between tensors, while a hostile file could point 200,000 tensors at the same gigabyte
//! and have the loader copy it as often.
//!
//! Read in this order: this file, `tensor_info.rs`, `value.rs`, `cursor.rs`, `builder.rs`.
//! Source: `docs/gguf.md` of ggml.

mod builder;
mod cursor;
mod tensor_info;
mod tensor_type;
mod value;

pub use builder::{BuildError, GgufBuilder};
pub use tensor_info::TensorInfo;
pub use tensor_type::TensorType;

use crate::Flaw;
use crate::error::Quoted;
use crate::metadata::{FromValue, Metadata};
use cursor::Cursor;

pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// Where tensor data is padded to unless the file says otherwise, in bytes.
const ALIGNMENT_DEFAULT: usize = 32;
/// Largest alignment accepted: a huge page, the largest unit anyone could want to map.
const ALIGNMENT_MAX: u64 = 2 << 20;
/// The largest models have about 60 tensors a layer set, 2,000 in all; 100 times that is enough.
const TENSORS_MAX: u64 = 200_000;
/// Models have 20 to 60 keys.
const KEYS_MAX: u64 = 1_000_000;
/// Names of keys and tensors; the format's own limits are 65,535 bytes for keys, 64 for tensors.
const NAME_BYTES_MAX: usize = 64 << 10;

/// Metadata and tensors of a file's bytes, checked.
pub(crate) fn parse(bytes: &[u8]) -> Result<(Metadata, Vec<TensorInfo>), Flaw> {
    let mut cursor = Cursor::new(bytes);
    cursor.take(MAGIC.len(), format_args!("the magic number"))?;
    check_version(&mut cursor)?;
    let (tensor_count, key_count) = read_counts(&mut cursor)?;
    let metadata = read_metadata(&mut cursor, key_count)?;
    let alignment = read_alignment(&metadata, cursor.offset())?;
    let mut tensors = Vec::with_capacity(tensor_count);
    for index in 0..tensor_count {
        tensors.push(TensorInfo::read(&mut cursor, index)?);
    }
    tensor_info::check_names_unique(&tensors)?;
    tensor_info::place_in_file(&mut tensors, cursor.offset(), alignment, bytes.len())?;
    Ok((metadata, tensors))
}

fn check_version(cursor: &mut Cursor<'_>) -> Result<(), Flaw> {
    let start = cursor.offset();
    let version = cursor.u32(format_args!("the version"))?;
    let problem = match version {
        2 | 3 => return Ok(()),
        1 => "version 1 of GGUF (August 2023) is not read: convert the model again".to_owned(),
        _ if version.swap_bytes() <= 3 && version != 0 => {
            "a big-endian GGUF file is not read: get the little-endian one".to_owned()
        }
        _ => format!("version {version} of GGUF is not known; known are 2 and 3"),
    };
    Err(Flaw::new(start, problem))
}

/// The tensor and key counts, each limited by what can fit behind them.
fn read_counts(cursor: &mut Cursor<'_>) -> Result<(usize, usize), Flaw> {
    let start = cursor.offset();
    let tensor_count = cursor.count(TensorInfo::BYTES_MIN, format_args!("the tensor count"))?;
    // Key length, one letter, value type, value.
    let key_bytes_min = 8 + 1 + 4 + value::VALUE_BYTES_MIN;
    let key_count = cursor.count(key_bytes_min, format_args!("the key count"))?;
    let limits = [("tensors", tensor_count, TENSORS_MAX), ("keys", key_count, KEYS_MAX)];
    for (name, count, limit) in limits {
        if count as u64 > limit {
            return Err(Flaw::new(
                start,
                format!("{count} {name} are more than the limit {limit}"),
            ));
        }
    }
    Ok((tensor_count, key_count))
}

fn read_metadata(cursor: &mut Cursor<'_>, key_count: usize) -> Result<Metadata, Flaw> {
    let section_start = cursor.offset();
    let mut entries = Vec::with_capacity(key_count);
    for index in 0..key_count {
        let start = cursor.offset();
        let key = cursor.text(NAME_BYTES_MAX, format_args!("the name of key {index}"))?;
        if key.is_empty() {
            return Err(Flaw::new(start, format!("the name of key {index} is empty")));
        }
        let value = value::read_value(cursor, key)?;
        entries.push((key.into(), value));
    }
    Metadata::from_entries(entries)
        .map_err(|key| Flaw::new(section_start, format!("key {} is given twice", Quoted(&key))))
}

fn read_alignment(metadata: &Metadata, offset: usize) -> Result<usize, Flaw> {
    const KEY: &str = "general.alignment";
    let Some(value) = metadata.get(KEY) else { return Ok(ALIGNMENT_DEFAULT) };
    match u64::from_value(value) {
        Some(alignment) if alignment.is_power_of_two() && alignment <= ALIGNMENT_MAX => {
            Ok(usize::try_from(alignment).expect("invariant: at most 2 MiB"))
        }
        _ => {
            let problem =
                format!("key {KEY} holds {value}, must be a power of two up to {ALIGNMENT_MAX}");
            Err(Flaw::new(offset, problem))
        }
    }
}

/// For messages about a tensor.
fn tensor_named(name: &str) -> String {
    format!("tensor {}", Quoted(name))
}
