//! Which files of a folder hold the weights? Those that the index names; where it is missing or
//! names others than are there, all that look like shards.
//!
//! An index outlives its shards: people merge, split and quantize models and leave the old one
//! beside the new files. What is in the files is what counts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::texts;
use crate::WeightsError;
use crate::mapped_file::MappedFile;
use crate::recognize::describe_foreign;
use crate::safetensors::{self, RawTensor};

const INDEX: &str = "model.safetensors.index.json";
const INDEX_BYTES_MAX: u64 = 64 << 20;
/// At 5 GB each, more than any model.
const SHARDS_MAX: usize = 10_000;

pub(super) struct Shard {
    pub(super) file: MappedFile,
    pub(super) tensors: Vec<RawTensor>,
    pub(super) data_start: usize,
}

/// All shards in the order of their names.
pub(super) fn open(folder: &Path) -> Result<Vec<Shard>, WeightsError> {
    let there = list(folder)?;
    if let Some(index) = read_index(folder)
        && index.files.iter().all(|name| there.contains(name))
    {
        let shards = open_all(folder, &index.files)?;
        let found = shards.iter().flat_map(|shard| &shard.tensors);
        let found: BTreeSet<&str> = found.map(|tensor| tensor.name.as_str()).collect();
        if index.tensors.iter().all(|name| found.contains(name.as_str())) {
            return Ok(shards);
        }
    }
    // Beside shards there may be the same weights in another layout.
    let is_shard = |name: &&String| name.starts_with("model");
    let mut names: BTreeSet<String> = there.iter().filter(is_shard).cloned().collect();
    if names.is_empty() {
        names = there;
    }
    if names.is_empty() {
        let problem = "there are no .safetensors files in it: is the download complete?".to_owned();
        return Err(WeightsError::Folder { path: folder.to_owned(), problem });
    }
    let shards = open_all(folder, &names)?;
    check_numbers(folder, &names)?;
    Ok(shards)
}

struct Index {
    files: BTreeSet<String>,
    tensors: BTreeSet<String>,
}

/// `None` if there is none or it is of no use; then the files themselves tell.
fn read_index(folder: &Path) -> Option<Index> {
    let text = texts::read(&folder.join(INDEX), INDEX_BYTES_MAX).ok()?;
    let json: Json = serde_json::from_slice(&text).ok()?;
    let map = json.get("weight_map")?.as_object()?;
    let files: Option<BTreeSet<String>> =
        map.values().map(|name| name.as_str().map(str::to_owned)).collect();
    let files = files.filter(|files| !files.is_empty())?;
    Some(Index { files, tensors: map.keys().cloned().collect() })
}

/// Names of all safetensors files of the folder itself.
fn list(folder: &Path) -> Result<BTreeSet<String>, WeightsError> {
    let io = |reason| WeightsError::Io { action: "list", path: folder.to_owned(), reason };
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(".safetensors") && !name.starts_with('.') {
            names.insert(name.to_owned());
        }
        if names.len() > SHARDS_MAX {
            let problem = format!("more than {SHARDS_MAX} .safetensors files are in it");
            return Err(WeightsError::Folder { path: folder.to_owned(), problem });
        }
    }
    Ok(names)
}

fn open_all(folder: &Path, names: &BTreeSet<String>) -> Result<Vec<Shard>, WeightsError> {
    names.iter().map(|name| open_one(folder.join(name))).collect()
}

pub(super) fn open_one(path: PathBuf) -> Result<Shard, WeightsError> {
    let file = MappedFile::open(&path)?;
    let bytes = file.bytes();
    if !safetensors::is_safetensors(bytes) {
        let found = describe_foreign(bytes);
        let problem = format!("it is no safetensors file but {found}");
        return Err(WeightsError::Folder { path, problem });
    }
    match safetensors::parse(bytes) {
        Ok((tensors, data_start)) => Ok(Shard { file, tensors, data_start }),
        Err(flaw) => Err(WeightsError::Damaged { path, flaw }),
    }
}

/// Names of the form `model-00001-of-00003.safetensors` say how many there should be.
fn check_numbers(folder: &Path, names: &BTreeSet<String>) -> Result<(), WeightsError> {
    for name in names {
        let Some((stem, count)) = name.strip_suffix(".safetensors").and_then(parts) else {
            continue;
        };
        for part in 1..=count {
            let sibling = format!("{stem}-{part:05}-of-{count:05}.safetensors");
            if !names.contains(&sibling) {
                let path = folder.join(sibling);
                return Err(WeightsError::PartMissing { path, part, count });
            }
        }
    }
    Ok(())
}

fn parts(stem: &str) -> Option<(&str, u32)> {
    let (stem, count) = stem.rsplit_once("-of-")?;
    let (stem, number) = stem.rsplit_once('-')?;
    let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (is_number(number) && is_number(count)).then(|| Some((stem, count.parse().ok()?)))?
}
