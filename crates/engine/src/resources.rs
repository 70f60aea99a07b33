//! What do the resource systems hold and do? One report of a model's heaps, copies and ring.

use std::path::Path;
use std::sync::Arc;

use device::{
    BlitStatistics, HeapPool, HeapSettings, HeapSource, HeapStatistics, PartClock, RingStatistics,
    SharedAllocator, StagingBuffer, StagingRing, StagingStatistics, SystemAllocator,
};
use kv_tiers::{BlockBuffers, BlockBytes, NoRoom, TierSettings};

use crate::{EngineError, EngineOptions};

/// Opens the shared library at `path` as the source of heaps.
///
/// # Errors
/// [`EngineError::Option`] naming the file and what is wrong with it.
pub fn open_allocator(path: &Path) -> Result<SharedAllocator, EngineError> {
    // Its code runs in this process: should that end here, the last line says whose it was.
    tracing::info!("opening the allocator {}", path.display());
    heap_library::open(path)
        .map_err(|error| EngineError::Option(format!("heap_pool.allocator: {error}")))
}

/// Of all heaps of a model, its copies and its steps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceStatus {
    pub heap_pool: HeapStatistics,
    pub blit_queue: BlitStatistics,
    pub staging: StagingStatistics,
    pub command_ring: RingStatistics,
    /// Of models that are on several devices.
    pub parts: Vec<PartStatus>,
}

/// What one device of several has done of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct PartStatus {
    pub device: String,
    /// Layers that it has.
    pub layers: u32,
    pub run_seconds: f64,
}

impl PartStatus {
    pub(crate) fn of(clock: &PartClock) -> Self {
        let (device, layers) = (clock.name().to_owned(), clock.layers());
        Self { device, layers, run_seconds: clock.time().as_secs_f64() }
    }
}

impl ResourceStatus {
    /// What stays of a model that has gone: what it counted. All it carved was freed.
    pub(crate) fn counters(self) -> Self {
        let Self { heap_pool: heaps, blit_queue: blit, staging, command_ring: ring, parts } = self;
        Self {
            heap_pool: HeapStatistics {
                carved_total: heaps.carved_total,
                freed_total: heaps.carved_total,
                exhaustions_total: heaps.exhaustions_total,
                allocations_total: heaps.allocations_total,
                ..HeapStatistics::default()
            },
            blit_queue: BlitStatistics { lanes: 0, ops_in_flight: 0, ..blit },
            staging: StagingStatistics {
                taken_total: staging.taken_total,
                exhaustions_total: staging.exhaustions_total,
                ..StagingStatistics::default()
            },
            command_ring: RingStatistics { depth: 0, steps_in_flight: 0, steps_stuck: 0, ..ring },
            parts: parts.into_iter().map(|part| PartStatus { layers: 0, ..part }).collect(),
        }
    }

    /// Adds those of another model: counters and sizes; a largest piece stays the largest.
    pub(crate) fn add(&mut self, other: &Self) {
        let Self { heap_pool, blit_queue, staging, command_ring, parts } = other;
        for part in parts {
            match self.parts.iter_mut().find(|known| known.device == part.device) {
                Some(known) => {
                    known.layers += part.layers;
                    known.run_seconds += part.run_seconds;
                }
                None => self.parts.push(part.clone()),
            }
        }
        add_heaps(&mut self.heap_pool, heap_pool);
        self.blit_queue.add(blit_queue);
        let own = &mut self.staging;
        own.buffers += staging.buffers;
        own.buffers_free += staging.buffers_free;
        own.buffer_bytes = own.buffer_bytes.max(staging.buffer_bytes);
        own.taken_total += staging.taken_total;
        own.exhaustions_total += staging.exhaustions_total;
        let own = &mut self.command_ring;
        own.depth = own.depth.max(command_ring.depth);
        own.steps_in_flight += command_ring.steps_in_flight;
        own.steps_total += command_ring.steps_total;
        own.run_seconds += command_ring.run_seconds;
        own.idle_seconds += command_ring.idle_seconds;
        own.queued_seconds += command_ring.queued_seconds;
        own.planning_seconds += command_ring.planning_seconds;
        own.timeouts_total += command_ring.timeouts_total;
        own.steps_stuck += command_ring.steps_stuck;
    }
}

/// The statistics of several pools as those of one.
pub(crate) fn heap_statistics(pools: &[HeapPool]) -> HeapStatistics {
    let mut sum = HeapStatistics::default();
    pools.iter().for_each(|pool| add_heaps(&mut sum, &pool.statistics()));
    sum
}

fn add_heaps(own: &mut HeapStatistics, other: &HeapStatistics) {
    own.heaps += other.heaps;
    own.reserved_bytes += other.reserved_bytes;
    own.used_bytes += other.used_bytes;
    own.peak_used_bytes += other.peak_used_bytes;
    own.largest_free_bytes = own.largest_free_bytes.max(other.largest_free_bytes);
    own.free_bytes += other.free_bytes;
    own.carved_total += other.carved_total;
    own.freed_total += other.freed_total;
    own.exhaustions_total += other.exhaustions_total;
    own.allocations_total += other.allocations_total;
    for class in &other.classes {
        let place = own.classes.binary_search_by_key(&class.bytes, |known| known.bytes);
        match place {
            Err(place) => own.classes.insert(place, *class),
            Ok(place) => {
                let known = &mut own.classes[place];
                known.used_blocks += class.used_blocks;
                known.used_bytes += class.used_bytes;
                known.free_spans += class.free_spans;
                known.free_bytes += class.free_bytes;
            }
        }
    }
}

/// Blocks that wait for the disk or for the requests they were read for; `Tiers` has no more.
const MOVING_BYTES_MAX: usize = 320 << 20;

/// How many buffers the tiers of a model get: as many as memory may keep, and some for what is on
/// its way to and from disk. Without a disk nothing is on its way for long: what leaves the device
/// takes the place of what memory has had longest. The device's own blocks are as many as can be
/// on their way at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TierBuffers {
    count: usize,
    block_bytes: usize,
}

impl TierBuffers {
    pub(crate) fn new(
        options: &EngineOptions,
        kept: &TierSettings,
        block_bytes: usize,
        block_count: u32,
    ) -> Self {
        let room = HeapPool::room(block_bytes.max(1));
        let ram_bytes = usize::try_from(kept.ram_bytes).unwrap_or(usize::MAX / 2);
        let moving_bytes = options.blit_queue.staging_bytes.min(MOVING_BYTES_MAX);
        let moving = match kept.disk_bytes {
            0 => 0,
            _ => (moving_bytes / room).clamp(1, (block_count as usize).max(1)),
        };
        Self { count: ram_bytes / room + moving, block_bytes }
    }

    /// What they take of memory once each was used.
    pub(crate) fn bytes(self) -> u64 {
        (self.count as u64).saturating_mul(HeapPool::room(self.block_bytes) as u64)
    }
}

/// Buffers for blocks between the device and the tiers, and for those that memory keeps; `None`
/// for none. They are of the same kind of heap as the device's, where the process can touch that.
///
/// # Errors
/// [`EngineError::Device`] where there is no such memory.
pub(crate) fn staging(
    options: &EngineOptions,
    buffers: TierBuffers,
    pools: &[HeapPool],
) -> Result<Option<StagingRing>, EngineError> {
    let TierBuffers { count: buffers, block_bytes } = buffers;
    if buffers == 0 {
        return Ok(None);
    }
    let settings = HeapSettings {
        heap_bytes: Some(buffers.saturating_mul(HeapPool::room(block_bytes))),
        heaps: 1,
        warm_up_bytes: Vec::new(),
        may_grow: false,
        ..options.heap_pool.clone()
    };
    let of_device = pools.iter().map(|pool| &pool.source().allocator);
    let shared = of_device.clone().find(|allocator| allocator.kind().is_host()).cloned();
    let allocator = shared.unwrap_or_else(|| Arc::new(SystemAllocator) as SharedAllocator);
    let pool = HeapPool::open(HeapSource { settings, allocator }, 0)
        .map_err(|error| EngineError::Device(error.into()))?;
    Ok(Some(StagingRing::new(pool, block_bytes, buffers)))
}

/// The ring as the tiers see it.
pub(crate) struct StagedBlocks(pub(crate) StagingRing);

impl BlockBuffers for StagedBlocks {
    fn fill(&self, fill: &mut dyn FnMut(&mut [u8]) -> bool) -> Result<Option<BlockBytes>, NoRoom> {
        let mut buffer: StagingBuffer = self.0.take().ok_or(NoRoom)?;
        let is_filled = fill(buffer.bytes_mut());
        Ok(is_filled.then(|| Arc::new(buffer) as BlockBytes))
    }
}
