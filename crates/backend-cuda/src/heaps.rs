//! Where does memory come from? Two pools: one of the device's, one of the process's that the
//! device copies from and to by itself.
//!
//! All is carved at load. Buffers of the device start as zeros, also where a pool gives a place out
//! again.

use std::sync::Arc;

use device::{
    HEAP_ALIGNMENT, HeapAllocator, HeapBlock, HeapMemory, HeapPool, HeapSettings, HeapSource,
    LoadError, MemoryKind, SharedAllocator, SystemAllocator,
};

use crate::gpu::{Address, Gpu, Stream};

/// Gives heaps of the device.
struct DeviceAllocator(Arc<Gpu>);

// SAFETY: the driver gives memory that is nobody else's until it is freed, and it was set to zeros.
unsafe impl HeapAllocator for DeviceAllocator {
    fn name(&self) -> &str {
        "cuda"
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::Device
    }

    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String> {
        let address = self.0.allocate(bytes).map_err(|error| error.to_string())?;
        Ok(HeapMemory { address: address.0 as usize, bytes, is_zeroed: true })
    }

    fn free(&self, memory: HeapMemory) {
        self.0.free(Address(memory.address as u64));
    }
}

/// Gives pinned heaps of the process.
struct PinnedAllocator(Arc<Gpu>);

// SAFETY: memory of the system's allocator, which is not moved nor written by the driver.
unsafe impl HeapAllocator for PinnedAllocator {
    fn name(&self) -> &str {
        "cuda pinned"
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::Pinned
    }

    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String> {
        // Whole pages are pinned, and none twice.
        let memory = SystemAllocator.allocate(bytes.next_multiple_of(HEAP_ALIGNMENT))?;
        let pinned = self.0.pin(&memory);
        if pinned.is_err() {
            SystemAllocator.free(memory);
        }
        pinned.map(|()| memory).map_err(|error| error.to_string())
    }

    fn free(&self, memory: HeapMemory) {
        self.0.unpin(&memory);
        SystemAllocator.free(memory);
    }
}

/// How a backend's heaps are made, and where those of the process come from; `None`: from the
/// driver, pinned.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeapOptions {
    pub(crate) settings: HeapSettings,
    pub(crate) host: Option<SharedAllocator>,
}

/// Of one program. Buffers live until it is dropped.
pub(crate) struct Heaps {
    pub(crate) device: HeapPool,
    pub(crate) host: HeapPool,
    blocks: Vec<Arc<HeapBlock>>,
}

impl Heaps {
    /// For buffers that take so many bytes of each kind together.
    pub(crate) fn open(
        gpu: &Arc<Gpu>,
        options: &HeapOptions,
        [device_bytes, host_bytes]: [u64; 2],
    ) -> Result<Self, LoadError> {
        // A heap of the device is written when it is made, and nothing is carved after load: there
        // is nothing to be made warm.
        let settings = HeapSettings { warm_up_bytes: Vec::new(), ..options.settings.clone() };
        // What is told and staged is small: no heaps of a size that is meant for weights.
        let of_host = HeapSettings { heap_bytes: None, ..settings.clone() };
        let pinned = || Arc::new(PinnedAllocator(Arc::clone(gpu))) as SharedAllocator;
        let host = options.host.clone().unwrap_or_else(pinned);
        let host = HeapSource { settings: of_host, allocator: host };
        let device = Arc::new(DeviceAllocator(Arc::clone(gpu)));
        let device = HeapSource { settings, allocator: device };
        Ok(Self {
            device: HeapPool::open(device, device_bytes as usize)?,
            host: HeapPool::open(host, host_bytes as usize)?,
            blocks: Vec::new(),
        })
    }

    /// Zeros on the device, there as long as the heaps are.
    pub(crate) fn carve(
        &mut self,
        stream: &Stream,
        what: &str,
        bytes: usize,
    ) -> Result<Address, LoadError> {
        let block = self.carve_shared(stream, what, bytes)?;
        let address = address(&block);
        self.blocks.push(block);
        Ok(address)
    }

    /// The same for somebody who may live longer.
    pub(crate) fn carve_shared(
        &self,
        stream: &Stream,
        what: &str,
        bytes: usize,
    ) -> Result<Arc<HeapBlock>, LoadError> {
        let block = self.device.carve(what, bytes)?;
        if bytes > 0 && !block.is_zeroed() {
            let zeroed = stream.zero(address(&block), bytes);
            zeroed.map_err(|error| LoadError(error.to_string()))?;
        }
        Ok(Arc::new(block))
    }

    /// Zeros in the process.
    pub(crate) fn carve_host(&self, what: &str, bytes: usize) -> Result<HeapBlock, LoadError> {
        Ok(self.host.carve(what, bytes)?)
    }
}

/// Of a block of the device.
pub(crate) fn address(block: &HeapBlock) -> Address {
    Address(block.address() as u64)
}
