//! Which files make up a model, and where is the tensor of a given name?
//!
//! A model is one file or a split set `name-00001-of-00003.gguf`, each part naming its number and
//! the total in metadata (`split.no` from 0, `split.count`, `split.tensors.count`). Opening any
//! part opens the set; metadata is that of the first part.

use std::ops::Range;
use std::path::{Path, PathBuf};

use ops::quant_format::QuantFormat;

use crate::error::Quoted;
use crate::gguf::{GgufFile, TensorInfo};
use crate::metadata::Metadata;
use crate::{Flaw, WeightsError};

/// The files of one model, checked. `Send + Sync`: share it in an `Arc`, drop it when the weights
/// are repacked, and call `check_lengths` before trusting what was read.
#[derive(Debug)]
pub struct WeightFile {
    /// In order of their numbers; at least one.
    parts: Vec<GgufFile>,
    /// Part and place in the part, sorted by tensor name.
    by_name: Box<[(u32, u32)]>,
}

/// One tensor's stored bytes.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub format: QuantFormat,
    pub rows: usize,
    pub cols: usize,
    /// Fastest first: `[cols, rows, ...]`.
    pub dims: &'a [u64],
    /// `rows` times `format.row_bytes(cols)` bytes, at no particular alignment in memory.
    pub bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Bytes of one row.
    pub fn row(&self, index: usize) -> &'a [u8] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        let row_bytes = self.bytes.len() / self.rows;
        &self.bytes[index * row_bytes..][..row_bytes]
    }
}

impl WeightFile {
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let opened = GgufFile::open(path)?;
        let Some(own) = Split::read(&opened)? else { return Self::from_parts(vec![opened]) };
        let names = PartNames::of(path, own.count).ok_or_else(|| {
            mismatch(
                &opened,
                format!(
                    "it is part {} of {}, so its name must end in -{:05}-of-{:05}.gguf",
                    own.index + 1,
                    own.count,
                    own.index + 1,
                    own.count
                ),
            )
        })?;
        // All names first: a missing file is reported before gigabytes are mapped.
        for index in 0..own.count {
            let part_path = names.path(index);
            if !part_path.exists() {
                let (part, count) = (index + 1, own.count);
                return Err(WeightsError::PartMissing { path: part_path, part, count });
            }
        }
        let mut parts = Vec::new();
        for index in 0..own.count {
            let part = GgufFile::open(&names.path(index))?;
            own.check_sibling(&part, index)?;
            parts.push(part);
        }
        own.check_tensor_count(&parts)?;
        Self::from_parts(parts)
    }

    /// A model that is one file already in memory; `name` is what errors call it.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::from_parts(vec![GgufFile::from_bytes(name, bytes)?])
    }

    fn from_parts(parts: Vec<GgufFile>) -> Result<Self, WeightsError> {
        let mut by_name: Box<[(u32, u32)]> = (0..)
            .zip(&parts)
            .flat_map(|(part, file)| (0..).zip(file.tensors()).map(move |(place, _)| (part, place)))
            .collect();
        let name =
            |(part, place): (u32, u32)| parts[part as usize].tensors()[place as usize].name();
        by_name.sort_unstable_by_key(|index| (name(*index), *index));
        if let Some(pair) = by_name.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
            let problem = format!("tensor {} is in an earlier part, too", Quoted(name(pair[1])));
            return Err(mismatch(&parts[pair[1].0 as usize], problem));
        }
        Ok(WeightFile { parts, by_name })
    }

    /// The first part's path.
    pub fn path(&self) -> &Path {
        self.parts[0].path()
    }

    pub fn parts(&self) -> &[GgufFile] {
        &self.parts
    }

    pub fn is_split(&self) -> bool {
        self.parts.len() > 1
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(GgufFile::file_bytes).sum()
    }

    pub fn metadata(&self) -> &Metadata {
        self.parts[0].metadata()
    }

    /// All tensors, in file order, part by part.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.parts.iter().flat_map(GgufFile::tensors)
    }

    pub fn tensor_count(&self) -> usize {
        self.by_name.len()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor called `name`, or an error saying that it is missing or in what unsupported
    /// format it is stored.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightsError> {
        let missing = || WeightsError::TensorMissing { name: Quoted(name).to_string() };
        let (file, tensor) = self.find(name).ok_or_else(missing)?;
        let format = tensor.format()?;
        let bytes = file.tensor_bytes(tensor).expect("invariant: a format has a known size");
        let size = |count: u64| {
            // Only where usize is narrower than 64 bits can a mapped tensor fail this.
            let too_big = || format!("tensor {} is too big for this machine", Quoted(name));
            usize::try_from(count).map_err(|_| WeightsError::Damaged {
                path: file.path().to_owned(),
                flaw: Flaw { offset: tensor.offset(), problem: too_big() },
            })
        };
        let (rows, cols) = (size(tensor.rows())?, size(tensor.cols())?);
        Ok(TensorView { name: tensor.name(), format, rows, cols, dims: tensor.dims(), bytes })
    }

    /// Lets go of the pages of a tensor that was read and will not be again soon: they stay in the
    /// system's cache, and leave this process's memory.
    pub fn release(&self, name: &str) {
        if let Some((file, tensor)) = self.find(name) {
            file.release(tensor);
        }
    }

    /// Reads a tensor's bytes into `to`, past the map.
    ///
    /// # Errors
    /// [`WeightsError`] if there is no such tensor or the disk fails.
    pub fn read_into(&self, name: &str, to: &mut Vec<u8>) -> Result<(), WeightsError> {
        let bytes = self.tensor(name)?.bytes.len();
        let missing = || WeightsError::TensorMissing { name: Quoted(name).to_string() };
        let (file, tensor) = self.find(name).ok_or_else(missing)?;
        to.resize(bytes, 0);
        file.read_into(tensor, to)
    }

    /// Where a tensor's bytes are: part and range. `None` if there is no such tensor.
    pub(crate) fn place(&self, name: &str) -> Option<(usize, Range<usize>)> {
        let (file, tensor) = self.find(name)?;
        let part = self.parts.iter().position(|part| std::ptr::eq(part, file))?;
        Some((part, tensor.byte_range()?))
    }

    /// Fails if any file changed its length since it was opened: call when loading is done.
    pub fn check_lengths(&self) -> Result<(), WeightsError> {
        self.parts.iter().try_for_each(GgufFile::check_length)
    }

    fn find(&self, name: &str) -> Option<(&GgufFile, &TensorInfo)> {
        let at = |(part, place): (u32, u32)| {
            let file = &self.parts[part as usize];
            (file, &file.tensors()[place as usize])
        };
        let found = self.by_name.binary_search_by(|index| at(*index).1.name().cmp(name)).ok()?;
        Some(at(self.by_name[found]))
    }
}

/// What a part says about the set it belongs to.
struct Split {
    /// From 0.
    index: u32,
    count: u32,
    tensor_count: Option<u64>,
}

impl Split {
    /// `None` for a file that is a whole model.
    fn read(file: &GgufFile) -> Result<Option<Self>, WeightsError> {
        let Some(count) = file.metadata().optional::<u32>("split.count")? else { return Ok(None) };
        if count <= 1 {
            return Ok(None);
        }
        let index = file.metadata().required::<u32>("split.no")?;
        let tensor_count = file.metadata().optional::<u64>("split.tensors.count")?;
        // The name has five digits; the format's own type for both is u16.
        if index >= count || count > 99_999 {
            let problem = format!("split.no is {index} (from 0), split.count is {count}");
            return Err(mismatch(file, problem));
        }
        Ok(Some(Split { index, count, tensor_count }))
    }

    fn check_sibling(&self, file: &GgufFile, index: u32) -> Result<(), WeightsError> {
        let problem = match Split::read(file)? {
            Some(other) if (other.index, other.count) == (index, self.count) => return Ok(()),
            Some(other) => format!(
                "it says it is part {} of {}, its name says {} of {}",
                other.index + 1,
                other.count,
                index + 1,
                self.count
            ),
            None => "it says it is a whole model, its name says it is a part".to_owned(),
        };
        Err(mismatch(file, problem))
    }

    fn check_tensor_count(&self, parts: &[GgufFile]) -> Result<(), WeightsError> {
        let found: u64 = parts.iter().map(|part| part.tensors().len() as u64).sum();
        match self.tensor_count {
            Some(expected) if expected != found => Err(mismatch(
                &parts[0],
                format!("together they have {found} tensors, split.tensors.count says {expected}"),
            )),
            _ => Ok(()),
        }
    }
}

/// The file names of a split set: a prefix and `-00001-of-00003.gguf`.
struct PartNames {
    prefix: PathBuf,
    count: u32,
}

impl PartNames {
    fn of(path: &Path, count: u32) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let stem = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
        let (prefix, number) = stem.split_at_checked(stem.len().checked_sub(5)?)?;
        let prefix = prefix.strip_suffix('-')?;
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| PartNames { prefix: path.with_file_name(prefix), count })
    }

    fn path(&self, index: u32) -> PathBuf {
        let mut path = self.prefix.clone().into_os_string();
        path.push(format!("-{:05}-of-{:05}.gguf", index + 1, self.count));
        path.into()
    }
}

fn mismatch(file: &GgufFile, problem: String) -> WeightsError {
    WeightsError::PartMismatch { path: file.path().to_owned(), problem }
}
