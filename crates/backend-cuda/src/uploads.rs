//! How do weights reach the device? Packed by all cores, and copied meanwhile by the lanes of a
//! queue, each through pinned buffers of its own.
//!
//! With the queue switched off, whoever packs copies, too: the slow twin.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{BlitEvent, BlitQueue, BlitSettings, BlitStatistics, HeapBlock, HeapPool, LoadError};

use crate::driver::CudaError;
use crate::gpu::{Address, Gpu, Stream};
use crate::heaps::Heaps;

/// Bytes of a buffer at most: a quarter of a millisecond of the bus, so that copying into one and
/// out of the other overlap soon.
const BUFFER_BYTES_MAX: usize = 8 << 20;
const LANE_BUFFERS: usize = 2;

/// Packed weights on their way.
pub(crate) struct Uploads {
    lanes: Vec<Arc<Mutex<Lane>>>,
    /// `None`: there is one lane, and whoever packs runs it.
    queue: Option<BlitQueue>,
    events: VecDeque<BlitEvent>,
    next: usize,
}

/// One is filled while the device reads the other.
struct Lane {
    buffers: [Buffer; LANE_BUFFERS],
    /// What went wrong first.
    failed: Option<CudaError>,
}

struct Buffer {
    bytes: HeapBlock,
    /// Of the copies out of it.
    stream: Stream,
}

fn lanes(settings: &BlitSettings) -> usize {
    if settings.enabled { settings.concurrent_ops_max } else { 1 }
}

fn buffer_bytes(settings: &BlitSettings) -> usize {
    let each = settings.staging_bytes / (lanes(settings) * LANE_BUFFERS);
    each.clamp(1 << 16, BUFFER_BYTES_MAX)
}

impl Uploads {
    /// What the buffers of all lanes take of the process's pinned memory.
    pub(crate) fn staging_bytes(settings: &BlitSettings) -> usize {
        lanes(settings) * LANE_BUFFERS * HeapPool::room(buffer_bytes(settings))
    }

    pub(crate) fn start(
        gpu: &Arc<Gpu>,
        heaps: &Heaps,
        settings: &BlitSettings,
    ) -> Result<Self, LoadError> {
        let refused = |error: CudaError| LoadError(error.to_string());
        // Given back when all weights are there.
        let pool = HeapPool::open(heaps.host.source().clone(), Self::staging_bytes(settings))?;
        let bytes = buffer_bytes(settings);
        let buffer = || -> Result<Buffer, LoadError> {
            let bytes = pool.carve("staging", bytes)?;
            Ok(Buffer { bytes, stream: Stream::new(gpu).map_err(refused)? })
        };
        let lane = |_| {
            let buffers = [buffer()?, buffer()?];
            Ok(Arc::new(Mutex::new(Lane { buffers, failed: None })))
        };
        let queue = settings.enabled.then(|| BlitQueue::start(settings, None)).transpose();
        Ok(Self {
            lanes: (0..lanes(settings)).map(lane).collect::<Result<_, LoadError>>()?,
            queue: queue.map_err(|fault| LoadError(fault.to_string()))?,
            events: VecDeque::new(),
            next: 0,
        })
    }

    /// Copies to the device, now or soon. Waits where each lane has enough to do, so that little is
    /// packed and not copied.
    pub(crate) fn send(&mut self, to: Address, bytes: Vec<u8>) -> Result<(), LoadError> {
        let lane = &self.lanes[self.next];
        self.next = (self.next + 1) % self.lanes.len();
        match &self.queue {
            None => lock(lane).copy(to, &bytes),
            Some(queue) => {
                let (lane, count) = (Arc::clone(lane), bytes.len() as u64);
                let event = queue.run("weights", count, move || lock(&lane).copy(to, &bytes));
                self.events.push_back(event);
                if self.events.len() > self.lanes.len() {
                    self.wait_for_one()?;
                }
            }
        }
        self.check()
    }

    fn wait_for_one(&mut self) -> Result<(), LoadError> {
        let Some(event) = self.events.pop_front() else { return Ok(()) };
        event.wait().map_err(|fault| LoadError(fault.to_string()))
    }

    fn check(&self) -> Result<(), LoadError> {
        let failed = self.lanes.iter().find_map(|lane| lock(lane).failed.clone());
        failed.map_or(Ok(()), |error| Err(LoadError(error.to_string())))
    }

    /// Waits for all copies; what they were like.
    pub(crate) fn finish(mut self) -> Result<BlitStatistics, LoadError> {
        while !self.events.is_empty() {
            self.wait_for_one()?;
        }
        self.check()?;
        Ok(self.queue.as_ref().map(BlitQueue::statistics).unwrap_or_default())
    }
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    fn copy(&mut self, to: Address, bytes: &[u8]) {
        if let Err(error) = self.try_copy(to, bytes) {
            self.failed.get_or_insert(error);
        }
    }

    /// Ends when the device has all of it.
    fn try_copy(&mut self, to: Address, bytes: &[u8]) -> Result<(), CudaError> {
        let size = self.buffers[0].bytes.len();
        for (index, part) in bytes.chunks(size).enumerate() {
            let Buffer { bytes, stream } = &mut self.buffers[index % LANE_BUFFERS];
            stream.gpu.enter()?;
            // The copy before has left the buffer.
            stream.wait()?;
            let staged = &mut bytes.bytes_mut()[..part.len()];
            staged.copy_from_slice(part);
            stream.copy_in(to.plus(index * size), staged)?;
        }
        self.buffers.iter().try_for_each(|buffer| buffer.stream.wait())
    }
}
