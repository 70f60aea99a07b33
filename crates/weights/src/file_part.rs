//! What is one of the files that make up a model? Its bytes, mapped, and the tensors in them.
//!
//! A GGUF file says itself what its tensors mean and brings the metadata; a safetensors file has
//! names and shapes only, and the folder around it tells the rest (`folder/mod.rs`).

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::WeightsError;
use crate::gguf::{self, MAGIC, TensorInfo};
use crate::mapped_file::MappedFile;
use crate::metadata::Metadata;
use crate::recognize::describe_foreign;

/// One file, opened and checked. Several may make up a model: see `WeightFile`.
#[derive(Debug)]
pub struct FilePart {
    storage: Storage,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Where the first tensor's data begins, in bytes.
    data_start: usize,
}

#[derive(Debug)]
enum Storage {
    Mapped(MappedFile),
    /// Bytes that were never a file: tests, models that arrive over a pipe.
    Heap {
        name: PathBuf,
        bytes: Vec<u8>,
    },
}

impl FilePart {
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        Self::from_storage(Storage::Mapped(MappedFile::open(path)?))
    }

    /// Reads a file that is already in memory; `name` is what errors call it.
    pub fn from_bytes(name: impl Into<PathBuf>, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::from_storage(Storage::Heap { name: name.into(), bytes })
    }

    fn from_storage(storage: Storage) -> Result<Self, WeightsError> {
        let bytes = storage.bytes();
        let path = || storage.path().to_owned();
        // A cut inside the four letters is a truncated GGUF, not a foreign file.
        if !MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]) || bytes.is_empty() {
            let found = describe_foreign(bytes).to_owned();
            return Err(WeightsError::NotSupported { path: path(), found });
        }
        match gguf::parse(bytes) {
            Ok((metadata, tensors)) => {
                let starts = tensors.iter().filter_map(|tensor| Some(tensor.byte_range()?.start));
                let data_start = starts.min().unwrap_or(bytes.len());
                Ok(FilePart { storage, metadata, tensors, data_start })
            }
            Err(flaw) => Err(WeightsError::Damaged { path: path(), flaw }),
        }
    }

    /// A safetensors file that was read already; `tensors` lie in it as they are.
    pub(crate) fn of_folder(file: MappedFile, tensors: Vec<TensorInfo>, data_start: usize) -> Self {
        let storage = Storage::Mapped(file);
        FilePart { storage, metadata: Metadata::default(), tensors, data_start }
    }

    pub fn path(&self) -> &Path {
        self.storage.path()
    }

    pub fn file_bytes(&self) -> u64 {
        self.storage.bytes().len() as u64
    }

    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// In file order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// Tensors that are to be told in other words.
    pub(crate) fn take_tensors(&mut self, is: impl Fn(&TensorInfo) -> bool) -> Vec<TensorInfo> {
        let (taken, kept) = std::mem::take(&mut self.tensors).into_iter().partition(|t| is(t));
        self.tensors = kept;
        taken
    }

    /// Everything before the tensors' data.
    pub(crate) fn head_bytes(&self) -> &[u8] {
        &self.storage.bytes()[..self.data_start]
    }

    /// The stored bytes of one of this file's tensors; `None` if its type, hence size, is unknown.
    pub(crate) fn tensor_bytes(&self, tensor: &TensorInfo) -> Option<&[u8]> {
        let range = tensor.byte_range()?;
        Some(self.storage.bytes().get(range).expect("invariant: ranges were checked at opening"))
    }

    /// The file on disk, if it is one, opened once more.
    pub(crate) fn reopen(&self) -> Option<Result<std::fs::File, WeightsError>> {
        match &self.storage {
            Storage::Mapped(file) => Some(file.reopen()),
            Storage::Heap { .. } => None,
        }
    }

    /// Reads a tensor past the map; `to` is as long as it is.
    pub(crate) fn read_into(&self, tensor: &TensorInfo, to: &mut [u8]) -> Result<(), WeightsError> {
        self.read_range(tensor.byte_range().unwrap_or_default(), to)
    }

    /// Reads a range of the file past the map; `to` is as long as it is.
    pub(crate) fn read_range(
        &self,
        range: Range<usize>,
        to: &mut [u8],
    ) -> Result<(), WeightsError> {
        match &self.storage {
            Storage::Mapped(file) => file.read_at(to, range.start as u64),
            Storage::Heap { bytes, .. } => {
                to.copy_from_slice(&bytes[range]);
                Ok(())
            }
        }
    }

    /// Lets go of a tensor's pages: it will not be read again soon.
    pub(crate) fn release(&self, tensor: &TensorInfo) {
        if let (Storage::Mapped(file), Some(range)) = (&self.storage, tensor.byte_range()) {
            file.release(range);
        }
    }

    /// Keeps others from writing to the file until this is dropped; false where the system cannot.
    pub(crate) fn hold(&self) -> bool {
        match &self.storage {
            Storage::Mapped(file) => file.hold(),
            Storage::Heap { .. } => true,
        }
    }

    /// Whether somebody waits to write to the file while it is held.
    pub(crate) fn is_wanted(&self) -> bool {
        matches!(&self.storage, Storage::Mapped(file) if file.is_wanted())
    }

    /// Fails if the file changed its length since it was opened.
    pub fn check_length(&self) -> Result<(), WeightsError> {
        match &self.storage {
            Storage::Mapped(file) => file.check_length(),
            Storage::Heap { .. } => Ok(()),
        }
    }
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(file) => file.bytes(),
            Storage::Heap { bytes, .. } => bytes,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Storage::Mapped(file) => file.path(),
            Storage::Heap { name, .. } => name,
        }
    }
}
