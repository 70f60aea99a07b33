//! Where does device memory come from? Heaps are buffers of wgpu, found again by their addresses.
//!
//! A buffer that kernels read may not be written in the same dispatch: weights have heaps of their
//! own, and so has what a step is told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{
    HeapAllocator, HeapBlock, HeapMemory, HeapPool, HeapSettings, HeapSource, LoadError, MemoryKind,
};
use wgpu::{Buffer, BufferBinding, BufferUsages, ErrorFilter};

use crate::adapters::wait;
use crate::gpu::Gpu;

/// An address is the number of a heap, from 1 on, and an offset of so many bits: a terabyte.
const OFFSET_BITS: u32 = 40;

/// Bytes of a heap at most: what drivers give in one piece, and what a process gets back in one.
const HEAP_BYTES_MAX: u64 = 1 << 30;

/// Gives heaps of one device.
pub(crate) struct BufferAllocator {
    gpu: Arc<Gpu>,
    buffers: Mutex<Vec<Option<Buffer>>>,
}

impl BufferAllocator {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Arc<Self> {
        Arc::new(Self { gpu: Arc::clone(gpu), buffers: Mutex::default() })
    }

    fn buffers(&self) -> MutexGuard<'_, Vec<Option<Buffer>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn buffer(&self, address: usize) -> Buffer {
        let heap = (address >> OFFSET_BITS) - 1;
        self.buffers()[heap].clone().expect("invariant: a block's heap lives as long as the block")
    }
}

// SAFETY: a heap is a buffer that was made for the caller, and no other call gives its number;
// wgpu fills new buffers with zeros.
unsafe impl HeapAllocator for BufferAllocator {
    fn name(&self) -> &str {
        "wgpu"
    }

    fn kind(&self) -> MemoryKind {
        MemoryKind::Device
    }

    fn allocate(&self, bytes: usize) -> Result<HeapMemory, String> {
        let most = self.gpu.limits.max_buffer_size;
        if bytes as u64 > most {
            return Err(format!("{} has buffers of at most {most} bytes", self.gpu.facts.name));
        }
        let scope = self.gpu.device.push_error_scope(ErrorFilter::OutOfMemory);
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let buffer = self.gpu.buffer("heap", bytes as u64, usage);
        if let Some(error) = wait(scope.pop()) {
            return Err(format!("{}: {error}", self.gpu.facts.name));
        }
        let mut buffers = self.buffers();
        let free = buffers.iter().position(Option::is_none);
        let heap = free.unwrap_or_else(|| {
            buffers.push(None);
            buffers.len() - 1
        });
        buffers[heap] = Some(buffer);
        Ok(HeapMemory { address: (heap + 1) << OFFSET_BITS, bytes, is_zeroed: true })
    }

    fn free(&self, memory: HeapMemory) {
        if let Some(buffer) = self.buffers()[(memory.address >> OFFSET_BITS) - 1].take() {
            // At once, and not when the last bind group is gone.
            buffer.destroy();
        }
    }
}

/// A part of a heap.
pub(crate) struct Piece {
    pub(crate) buffer: Buffer,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    _block: HeapBlock,
}

impl Piece {
    pub(crate) fn binding(&self) -> BufferBinding<'_> {
        BufferBinding {
            buffer: &self.buffer,
            offset: self.offset,
            size: std::num::NonZeroU64::new(self.bytes),
        }
    }
}

/// The heaps of one kind of use.
pub(crate) struct Heaps {
    pub(crate) pool: HeapPool,
    allocator: Arc<BufferAllocator>,
}

impl Heaps {
    /// For pieces that take `planned_bytes` together.
    pub(crate) fn open(
        gpu: &Arc<Gpu>,
        settings: &HeapSettings,
        planned_bytes: u64,
    ) -> Result<Self, LoadError> {
        let allocator = BufferAllocator::new(gpu);
        let mut settings = settings.clone();
        let most = HEAP_BYTES_MAX.min(gpu.limits.max_buffer_size);
        if settings.heap_bytes.is_none() && planned_bytes > most {
            // Pieces may leave a rest at the end of each: one more is made where that happens.
            settings.heap_bytes = Some(most as usize / 256 * 256);
            settings.heaps = planned_bytes.div_ceil(most) as u32;
            settings.may_grow = true;
        }
        // Nothing is carved after load, so nothing is to be warm.
        settings.warm_up_bytes.clear();
        let source = HeapSource { settings, allocator: Arc::clone(&allocator) as _ };
        let pool = HeapPool::open(source, planned_bytes as usize)?;
        Ok(Self { pool, allocator })
    }

    pub(crate) fn carve(&self, what: &str, bytes: u64) -> Result<Piece, LoadError> {
        let block = self.pool.carve(what, bytes.max(256) as usize)?;
        let buffer = self.allocator.buffer(block.address());
        let offset = block.address() as u64 & ((1 << OFFSET_BITS) - 1);
        Ok(Piece { buffer, offset, bytes: bytes.max(256), _block: block })
    }

    /// What a piece takes of a heap.
    pub(crate) fn room(bytes: u64) -> u64 {
        HeapPool::room(bytes.max(256) as usize) as u64
    }
}
