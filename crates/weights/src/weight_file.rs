//! Which files make up a model, and where is the tensor of a given name?
//!
//! A model is one file or a split set `name-00001-of-00003.gguf`, each part naming its number and
//! the total in metadata (`split.no` from 0, `split.count`, `split.tensors.count`). Opening any
//! part opens the set; metadata is that of the first part. Or it is a folder (`folder/mod.rs`).

use std::ops::Range;
use std::path::{Path, PathBuf};

use ops::quant_format::QuantFormat;

use crate::error::Quoted;
use crate::file_part::FilePart;
use crate::folder::{self, Naming};
use crate::gguf::TensorInfo;
use crate::made_tensor::{MadeTensor, Piece};
use crate::metadata::Metadata;
use crate::{Flaw, WeightsError};

/// The files of one model, checked. `Send + Sync`: share it in an `Arc`, drop it when the weights
/// are repacked, and call `check_lengths` before trusting what was read.
#[derive(Debug)]
pub struct WeightFile {
    /// In order of their numbers; at least one.
    parts: Vec<FilePart>,
    metadata: Metadata,
    /// Tensors that no file holds as one.
    made: Vec<MadeTensor>,
    /// Part and place in the part, sorted by tensor name; the part behind the last is `made`.
    by_name: Box<[(u32, u32)]>,
    /// Of a model that is a folder.
    folder: Option<Folder>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    settings: Vec<u8>,
}

/// Where a tensor comes from.
#[derive(Clone, Copy)]
enum Found<'a> {
    Stored(&'a FilePart, &'a TensorInfo),
    Made(&'a MadeTensor),
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

/// What is known of a tensor without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorShape {
    pub format: QuantFormat,
    pub rows: usize,
    pub cols: usize,
    /// `rows` times `format.row_bytes(cols)`.
    pub bytes: usize,
    /// Whether a file holds it as it is; if not, looking at it makes it.
    pub is_stored: bool,
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
        if let Some(folder) = folder::of(path) {
            return Self::open_folder(folder, Naming::Gguf);
        }
        let opened = FilePart::open(path)?;
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
            let part = FilePart::open(&names.path(index))?;
            own.check_sibling(&part, index)?;
            parts.push(part);
        }
        own.check_tensor_count(&parts)?;
        Self::from_parts(parts)
    }

    /// A model that is one file already in memory; `name` is what errors call it.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::from_parts(vec![FilePart::from_bytes(name, bytes)?])
    }

    pub(crate) fn open_folder(path: &Path, naming: Naming) -> Result<Self, WeightsError> {
        let folder::Opened { parts, metadata, made, settings } = folder::open(path, naming)?;
        let folder = Folder { path: path.to_owned(), settings };
        Self::new(parts, metadata, made, Some(folder))
    }

    fn from_parts(mut parts: Vec<FilePart>) -> Result<Self, WeightsError> {
        let metadata = parts[0].metadata().clone();
        let mut made = Vec::new();
        for (number, part) in parts.iter_mut().enumerate() {
            made.extend(gates_and_ups(number, part)?);
        }
        Self::new(parts, metadata, made, None)
    }

    fn new(
        parts: Vec<FilePart>,
        metadata: Metadata,
        made: Vec<MadeTensor>,
        folder: Option<Folder>,
    ) -> Result<Self, WeightsError> {
        let counts = parts.iter().map(|part| part.tensors().len()).chain([made.len()]);
        let mut by_name: Box<[(u32, u32)]> = (0..)
            .zip(counts)
            .flat_map(|(part, count)| (0..count as u32).map(move |place| (part, place)))
            .collect();
        let name = |(part, place): (u32, u32)| match parts.get(part as usize) {
            Some(file) => file.tensors()[place as usize].name(),
            None => made[place as usize].info().name(),
        };
        by_name.sort_unstable_by_key(|index| (name(*index), *index));
        if let Some(pair) = by_name.windows(2).find(|pair| name(pair[0]) == name(pair[1])) {
            let problem = format!("tensor {} is in them twice", Quoted(name(pair[1])));
            return Err(mismatch(&parts[pair[0].0 as usize % parts.len()], problem));
        }
        Ok(WeightFile { parts, metadata, made, by_name, folder })
    }

    /// The folder's path, or the first part's.
    pub fn path(&self) -> &Path {
        self.folder().unwrap_or_else(|| self.parts[0].path())
    }

    /// The folder that the model is, if it is one.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_ref().map(|folder| &*folder.path)
    }

    /// A file of the model's folder, such as its tokenizer; `None` if it is not there, or the model
    /// is no folder.
    ///
    /// # Errors
    /// [`WeightsError`] if it cannot be read or is longer than `bytes_max`.
    pub fn beside(&self, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, WeightsError> {
        let path = self.folder().map(|folder| folder.join(name)).filter(|path| path.exists());
        path.map(|path| folder::read_text(&path, bytes_max)).transpose()
    }

    /// What is beside the parts and decides what they mean.
    pub(crate) fn folder_settings(&self) -> &[u8] {
        self.folder.as_ref().map_or(&[], |folder| &folder.settings)
    }

    pub fn parts(&self) -> &[FilePart] {
        &self.parts
    }

    pub fn is_split(&self) -> bool {
        self.parts.len() > 1
    }

    /// Bytes of all files together.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(FilePart::file_bytes).sum()
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// All tensors, in file order, part by part, and those that are made behind.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.parts.iter().flat_map(FilePart::tensors).chain(self.made.iter().map(MadeTensor::info))
    }

    pub fn tensor_count(&self) -> usize {
        self.by_name.len()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// The tensor called `name`, or an error saying that it is missing or in what unsupported
    /// format it is stored. One that no file holds as one is made, and kept until the model is
    /// dropped: `read_into` is for those who look at a tensor once, `shape` for the rest.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, WeightsError> {
        let TensorShape { format, rows, cols, .. } = self.shape(name)?;
        let (info, bytes) = match self.required(name)? {
            Found::Stored(file, info) => {
                (info, file.tensor_bytes(info).expect("invariant: a format has a known size"))
            }
            Found::Made(tensor) => (tensor.info(), tensor.view(&self.parts)?),
        };
        Ok(TensorView { name: info.name(), format, rows, cols, dims: info.dims(), bytes })
    }

    /// The same without a look at its bytes.
    pub fn shape(&self, name: &str) -> Result<TensorShape, WeightsError> {
        let found = self.required(name)?;
        let info = found.info();
        let format = info.format()?;
        let size = |count: u64| {
            // Only where usize is narrower than 64 bits can a mapped tensor fail this.
            let too_big = || format!("tensor {} is too big for this machine", Quoted(name));
            usize::try_from(count).map_err(|_| WeightsError::Damaged {
                path: self.path().to_owned(),
                flaw: Flaw { offset: info.offset(), problem: too_big() },
            })
        };
        let bytes = info.bytes().expect("invariant: a format has a known size");
        Ok(TensorShape {
            format,
            rows: size(info.rows())?,
            cols: size(info.cols())?,
            bytes: size(bytes)?,
            is_stored: matches!(found, Found::Stored(..)),
        })
    }

    /// Lets go of the pages of a tensor that was read and will not be again soon: they stay in the
    /// system's cache, and leave this process's memory.
    pub fn release(&self, name: &str) {
        if let Some(Found::Stored(file, tensor)) = self.find(name) {
            file.release(tensor);
        }
    }

    /// Reads a tensor's bytes into `to`, past the map.
    ///
    /// # Errors
    /// [`WeightsError`] if there is no such tensor or the disk fails.
    pub fn read_into(&self, name: &str, to: &mut Vec<u8>) -> Result<(), WeightsError> {
        to.resize(self.shape(name)?.bytes, 0);
        match self.required(name)? {
            Found::Stored(file, tensor) => file.read_into(tensor, to),
            Found::Made(tensor) => tensor.write(&self.parts, to),
        }
    }

    /// Reads some bytes of a stored tensor from `start` on, past the map and nothing else: a fault
    /// in the map has the system read what is around, which is much more.
    ///
    /// # Errors
    /// [`WeightsError`] if no file stores such a tensor or the disk fails.
    ///
    /// # Panics
    /// If the tensor is not that long.
    pub fn read_sample(&self, name: &str, start: usize, to: &mut [u8]) -> Result<(), WeightsError> {
        let missing = || WeightsError::TensorMissing { name: self.own_name(name) };
        let (part, range) = self.place(name).ok_or_else(missing)?;
        let first = range.start + start;
        assert!(first + to.len() <= range.end, "{} bytes of {name} from {start}", to.len());
        self.parts[part].read_range(first..first + to.len(), to)
    }

    /// Where a tensor's bytes are: part and range. `None` if there is no such tensor.
    pub(crate) fn place(&self, name: &str) -> Option<(usize, Range<usize>)> {
        let Found::Stored(file, tensor) = self.find(name)? else { return None };
        let part = self.parts.iter().position(|part| std::ptr::eq(part, file))?;
        Some((part, tensor.byte_range()?))
    }

    /// Keeps others from writing to the files until this is dropped: what is cut off while it is
    /// mapped would end the process. False where the system cannot.
    pub fn hold(&self) -> bool {
        let held = self.parts.iter().filter(|part| part.hold());
        held.count() == self.parts.len()
    }

    /// Whether somebody waits to write to one of the files that are held: who still reads them has
    /// as long as the system gives (45 s by Linux's default).
    pub fn is_wanted(&self) -> bool {
        self.parts.iter().any(FilePart::is_wanted)
    }

    /// Fails if any file changed its length since it was opened: call when loading is done.
    pub fn check_lengths(&self) -> Result<(), WeightsError> {
        self.parts.iter().try_for_each(FilePart::check_length)
    }

    fn required(&self, name: &str) -> Result<Found<'_>, WeightsError> {
        self.find(name).ok_or_else(|| WeightsError::TensorMissing { name: self.own_name(name) })
    }

    /// What the files' owner knows a tensor by, safe to print.
    pub fn own_name(&self, name: &str) -> String {
        let own = self.folder.as_ref().and_then(|of| folder::own_name(&of.settings, name));
        Quoted(own.as_deref().unwrap_or(name)).to_string()
    }

    fn find(&self, name: &str) -> Option<Found<'_>> {
        let at = |(part, place): (u32, u32)| match self.parts.get(part as usize) {
            Some(file) => Found::Stored(file, &file.tensors()[place as usize]),
            None => Found::Made(&self.made[place as usize]),
        };
        let order = |index: &(u32, u32)| at(*index).info().name().cmp(name);
        let found = self.by_name.binary_search_by(order).ok()?;
        Some(at(self.by_name[found]))
    }
}

/// Tensors of GGUF files that hold the gates and, below them, the ups of each expert (Gemma 4), as
/// the two stacks that families read.
fn gates_and_ups(number: usize, part: &mut FilePart) -> Result<Vec<MadeTensor>, WeightsError> {
    const STEM: &str = ".ffn_gate_up_exps.weight";
    let mut made = Vec::new();
    for tensor in part.take_tensors(|tensor| tensor.name().ends_with(STEM)) {
        let layer = tensor.name().trim_end_matches(STEM);
        let names = ["gate", "up"].map(|kind| format!("{layer}.ffn_{kind}_exps.weight"));
        let range = tensor.byte_range().unwrap_or_default();
        let piece = Piece { part: number, range };
        let halves = MadeTensor::halves(names, &piece, tensor.format()?, tensor.dims());
        made.extend(halves.ok_or_else(|| {
            let name = Quoted(tensor.name());
            let problem =
                format!("tensor {name} is {:?}, must be of two matrices an expert", tensor.dims());
            let flaw = Flaw { offset: tensor.offset(), problem };
            WeightsError::Damaged { path: part.path().to_owned(), flaw }
        })?);
    }
    Ok(made)
}

impl<'a> Found<'a> {
    fn info(self) -> &'a TensorInfo {
        match self {
            Found::Stored(_, info) => info,
            Found::Made(tensor) => tensor.info(),
        }
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
    fn read(file: &FilePart) -> Result<Option<Self>, WeightsError> {
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

    fn check_sibling(&self, file: &FilePart, index: u32) -> Result<(), WeightsError> {
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

    fn check_tensor_count(&self, parts: &[FilePart]) -> Result<(), WeightsError> {
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

fn mismatch(file: &FilePart, problem: String) -> WeightsError {
    WeightsError::PartMismatch { path: file.path().to_owned(), problem }
}
