//! How do blocks leave the device and come back beside steps? On streams of their own, all layers
//! in one go.

use std::sync::{Arc, Mutex, PoisonError};

use device::{BlockCopier, BlockLease, HeapBlock};

use crate::driver::CudaError;
use crate::gpu::{Address, Gpu, Stream};

/// Where blocks lie: a page of each in every layer's part of the cache.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) layers: Vec<Address>,
    /// Of one layer's keys and values of a block.
    pub(crate) page_bytes: usize,
}

impl Pages {
    fn page(&self, layer: usize, block: u32) -> Address {
        self.layers[layer].plus(block as usize * self.page_bytes)
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.layers.len() * self.page_bytes
    }

    /// Waits until a block is in `bytes`.
    pub(crate) fn read(
        &self,
        stream: &Stream,
        block: u32,
        bytes: &mut [u8],
    ) -> Result<(), CudaError> {
        assert_eq!(bytes.len(), self.block_bytes(), "a block of another form");
        stream.gpu.enter()?;
        for (layer, bytes) in bytes.chunks_exact_mut(self.page_bytes).enumerate() {
            stream.begin_copy_out(bytes, self.page(layer, block))?;
        }
        stream.wait()
    }

    /// Waits until `bytes` are in a block.
    pub(crate) fn write(&self, stream: &Stream, block: u32, bytes: &[u8]) -> Result<(), CudaError> {
        assert_eq!(bytes.len(), self.block_bytes(), "a block of another form");
        stream.gpu.enter()?;
        for (layer, bytes) in bytes.chunks_exact(self.page_bytes).enumerate() {
            stream.copy_in(self.page(layer, block), bytes)?;
        }
        stream.wait()
    }
}

/// Copies blocks of a program beside its steps.
pub(crate) struct Copier {
    gpu: Arc<Gpu>,
    pages: Pages,
    /// That nobody uses now: as many as there are lanes, once all have copied.
    streams: Mutex<Vec<Stream>>,
    /// The memory of the pages.
    _owner: Vec<Arc<HeapBlock>>,
}

impl Copier {
    pub(crate) fn new(gpu: &Arc<Gpu>, pages: Pages, owner: Vec<Arc<HeapBlock>>) -> Self {
        Self { gpu: Arc::clone(gpu), pages, streams: Mutex::default(), _owner: owner }
    }

    fn with_stream(&self, copy: impl FnOnce(&Stream) -> Result<(), CudaError>) {
        let free = self.streams.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let stream = free.map_or_else(|| Stream::new(&self.gpu), Ok);
        let copied = stream.and_then(|stream| {
            copy(&stream)?;
            self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            Ok(())
        });
        // The step that waits for it ends with this as its fault.
        copied.unwrap_or_else(|error| panic!("a block could not be copied: {error}"));
    }
}

impl BlockCopier for Copier {
    fn read_block(&self, lease: &BlockLease, bytes: &mut [u8]) {
        self.with_stream(|stream| self.pages.read(stream, lease.block(), bytes));
    }

    fn write_block(&self, lease: &BlockLease, bytes: &[u8]) {
        self.with_stream(|stream| self.pages.write(stream, lease.block(), bytes));
    }
}
