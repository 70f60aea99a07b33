//! Where are repacked weights kept between two starts? In one file, beside the model or where the
//! settings say. What is wrong with that file costs time, never an answer: it is said and rebuilt.

use std::path::PathBuf;

use device::{PIECE_ALIGNMENT, PackedBytes, PackedKey, PackedStore};
use weights::{
    PackedFile, PackedFlaw, PackedIdentity, SourceIdentity, WeightFile, WeightsError, write_packed,
};

pub(crate) struct FileStore {
    path: PathBuf,
    source: SourceIdentity,
}

impl FileStore {
    /// # Errors
    /// [`WeightsError`] if the model file's time cannot be read.
    pub(crate) fn new(path: PathBuf, model: &WeightFile) -> Result<Self, WeightsError> {
        Ok(Self { path, source: SourceIdentity::of(model)? })
    }

    fn identity(&self, key: &PackedKey) -> PackedIdentity {
        PackedIdentity {
            source: self.source,
            layout: key.layout.clone(),
            plan: key.plan,
            data_bytes: key.bytes,
        }
    }
}

impl PackedStore for FileStore {
    fn find(&self, key: &PackedKey) -> Option<Box<dyn PackedBytes + '_>> {
        let path = self.path.display();
        match PackedFile::open(&self.path, &self.identity(key)) {
            Ok(file) => Some(Box::new(Kept { file, store: self })),
            Err(PackedFlaw::Absent) => {
                tracing::info!("there is no repack cache {path} yet: it is made now");
                None
            }
            Err(flaw) => {
                tracing::warn!("the repack cache {path} is not used, {flaw}; it is made anew");
                None
            }
        }
    }

    fn keep(&self, key: &PackedKey, pieces: &[&[u8]]) {
        let path = self.path.display();
        match write_packed(&self.path, &self.identity(key), pieces, PIECE_ALIGNMENT) {
            Ok(()) => tracing::info!("kept the repacked weights as {path}"),
            Err(error) => tracing::warn!(
                "the repack cache {path} cannot be written: {error}; the next start packs again"
            ),
        }
    }
}

struct Kept<'a> {
    file: PackedFile,
    store: &'a FileStore,
}

impl PackedBytes for Kept<'_> {
    fn chunk_bytes(&self) -> usize {
        self.file.chunk_bytes()
    }

    fn copy_chunk(&self, index: usize, to: &mut [u8]) -> bool {
        let is_good = self.file.copy_chunk(index, to);
        if !is_good {
            let path = self.store.path.display();
            tracing::warn!(
                "the repack cache {path} is not used, it is damaged: the checksum of its part \
                 {index} is wrong; it is made anew"
            );
        }
        is_good
    }
}
