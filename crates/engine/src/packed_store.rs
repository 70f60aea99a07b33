//! Where are repacked weights kept between two starts? In one file, beside the model or where the
//! settings say. What is wrong with that file costs time, never an answer: it is said and rebuilt.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use device::{PIECE_ALIGNMENT, PackedBytes, PackedKey, PackedStore};
use weights::{
    PackedFile, PackedFlaw, PackedIdentity, SourceIdentity, WeightFile, WeightsError, write_packed,
};

pub(crate) struct FileStore {
    path: PathBuf,
    source: SourceIdentity,
    /// Whether the file may be looked at where it is mapped.
    in_place: bool,
}

impl FileStore {
    /// # Errors
    /// [`WeightsError`] if the model file's time cannot be read.
    pub(crate) fn new(
        path: PathBuf,
        model: &WeightFile,
        in_place: bool,
    ) -> Result<Self, WeightsError> {
        Ok(Self { path, source: SourceIdentity::of(model)?, in_place })
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
    fn find(&self, key: &PackedKey) -> Option<Arc<dyn PackedBytes>> {
        let path = self.path.display();
        match PackedFile::open(&self.path, &self.identity(key)) {
            Ok(file) => {
                if self.in_place && !file.hold() {
                    tracing::debug!("{path} is not kept from being written to");
                }
                Some(Arc::new(Kept { file, path: self.path.clone(), in_place: self.in_place }))
            }
            Err(PackedFlaw::Absent) => {
                tracing::info!("there is no repack cache {path} yet: it is made now");
                None
            }
            Err(flaw) => {
                tracing::warn!(
                    "the repack cache {path} is not used, {flaw}; weights are packed anew"
                );
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

struct Kept {
    file: PackedFile,
    path: PathBuf,
    in_place: bool,
}

impl Kept {
    /// Says it where a chunk is wrong.
    fn told(&self, index: usize, is_good: bool) -> bool {
        if !is_good {
            let path = self.path.display();
            tracing::warn!(
                "the repack cache {path} is not used, it is damaged: the checksum of its part \
                 {index} is wrong; it is made anew"
            );
        }
        is_good
    }
}

impl PackedBytes for Kept {
    fn chunk_bytes(&self) -> usize {
        self.file.chunk_bytes()
    }

    fn copy_chunk(&self, index: usize, to: &mut [u8]) -> bool {
        self.told(index, self.file.copy_chunk(index, to))
    }

    fn in_place(&self) -> Option<&[u8]> {
        self.in_place.then(|| self.file.data())
    }

    fn check_chunk(&self, index: usize) -> bool {
        self.told(index, self.file.check_chunk(index))
    }

    fn release(&self, range: Range<usize>) {
        self.file.release(range);
    }
}
