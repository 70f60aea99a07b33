//! How is memory touched before steps need it? By a thread of its own, beside the steps: the system
//! makes each page zero when it is first written, and a step that had to wait for that would be
//! slower than those before it.
//!
//! What every step writes is touched at once. Of the cache a lead is: blocks are used in the order
//! of their numbers, so steps tell how far they are, and what nobody comes to stays the system's.
//!
//! The system is asked to do it (`MADV_POPULATE_WRITE`), not the bytes: so nothing that a step
//! writes meanwhile is disturbed. Where it does not know how (Linux before 5.14, other systems),
//! pages are touched by the steps as they come to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crate::LargeBuffer;

/// Asked for at once: a millisecond or two, after which the thread may be told to stop.
const CHUNK_BYTES: usize = 8 << 20;
/// Of the cache, touched beyond what steps have come to: 2,700 tokens of a model of 135M
/// parameters, 512 of one of 8B, which prompts take longer to read than the system to make zero.
const LEAD_BYTES: usize = 64 << 20;

/// A cache's blocks: each is a page in every layer.
#[derive(Clone, Copy)]
pub(crate) struct CachePages {
    pub(crate) start: usize,
    pub(crate) layers: usize,
    pub(crate) blocks: usize,
    pub(crate) page_bytes: usize,
}

/// Ends with its thread. Whoever owns the buffers drops this first.
pub(crate) struct Warming {
    shared: Arc<Shared>,
    lead: usize,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: AtomicBool,
    /// Blocks to be touched.
    wanted: AtomicUsize,
}

impl Warming {
    /// Begins to touch up to `bytes`: of `buffers`, in their order, then of the cache's blocks.
    /// `None` if there is nothing to do or no thread to do it.
    pub(crate) fn start<'a>(
        buffers: impl Iterator<Item = &'a LargeBuffer>,
        cache: CachePages,
        bytes: u64,
    ) -> Option<Self> {
        let mut left = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut ranges = Vec::new();
        for buffer in buffers {
            let length = buffer.len().min(left);
            left -= length;
            if length > 0 {
                ranges.push((buffer.pointer() as usize, length));
            }
        }
        let block_bytes = (cache.layers * cache.page_bytes).max(1);
        let blocks = cache.blocks.min(left / block_bytes);
        if ranges.is_empty() && blocks == 0 {
            return None;
        }
        let lead = (LEAD_BYTES / block_bytes).max(1);
        let shared = Shared { stop: AtomicBool::new(false), wanted: AtomicUsize::new(lead) };
        let shared = Arc::new(shared);
        let work = Work { shared: Arc::clone(&shared), ranges, cache, blocks };
        let thread = std::thread::Builder::new().name("pelton-warm".to_owned());
        let thread = Some(thread.spawn(move || work.run()).ok()?);
        Some(Self { shared, lead, thread })
    }

    /// A step uses blocks below `end`.
    pub(crate) fn come_to(&self, end: usize) {
        let wanted = self.shared.wanted.load(Ordering::Relaxed);
        // Half of a lead at a time: most steps wake nobody.
        if end + self.lead / 2 >= wanted {
            self.shared.wanted.store(end + self.lead, Ordering::Release);
            if let Some(thread) = &self.thread {
                thread.thread().unpark();
            }
        }
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// What the thread does.
struct Work {
    shared: Arc<Shared>,
    ranges: Vec<(usize, usize)>,
    cache: CachePages,
    /// As many of the cache's are touched at most.
    blocks: usize,
}

impl Work {
    fn run(&self) {
        give_way(19);
        if !self.ranges.iter().all(|&(address, length)| self.touch(address, length)) {
            return;
        }
        let CachePages { start, layers, blocks, page_bytes } = self.cache;
        let mut touched = 0;
        while touched < self.blocks && !self.shared.stop.load(Ordering::Acquire) {
            let end = self.shared.wanted.load(Ordering::Acquire).min(self.blocks);
            if end <= touched {
                std::thread::park();
                continue;
            }
            for layer in 0..layers {
                let address = start + (layer * blocks + touched) * page_bytes;
                if !self.touch(address, (end - touched) * page_bytes) {
                    return;
                }
            }
            touched = end;
        }
    }

    /// Whether to go on.
    fn touch(&self, address: usize, length: usize) -> bool {
        (0..length).step_by(CHUNK_BYTES).all(|start| {
            !self.shared.stop.load(Ordering::Acquire)
                && populate(address + start, CHUNK_BYTES.min(length - start))
        })
    }
}

/// Steps go first: this thread takes what they leave of the cores. At the priority of the others it
/// held the first prompts of a process to half their speed. Of 19 the share is a hundredth of a
/// step's, of 10 a tenth.
#[cfg(target_os = "linux")]
pub(crate) fn give_way(nice: i32) {
    // Linux knows priorities of threads, by the number of the thread. Refused, it changes nothing.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), nice);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn give_way(_nice: i32) {}

/// Whether the system did it.
#[cfg(target_os = "linux")]
fn populate(address: usize, length: usize) -> bool {
    // Whole pages: those at the ends belong to the same mapping, or are refused.
    let start = address / 4096 * 4096;
    let length = (address + length).next_multiple_of(4096) - start;
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the pages are those of a `LargeBuffer` that lives until this thread has ended (the
    // owner drops `Warming` first); the advice changes none of their bytes.
    let done =
        unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxPopulateWrite) };
    done.is_ok()
}

/// Has the pages of bytes made that will be read next, all at once: where they are those of a file,
/// that is much less work than one fault for each few of them. What cannot be read is found out by
/// whoever reads it.
#[cfg(target_os = "linux")]
pub(crate) fn fetch(bytes: &[u8]) {
    let range = bytes.as_ptr_range();
    let start = range.start as usize / 4096 * 4096;
    let length = range.end as usize - start;
    let start = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: the advice changes no byte, and names pages of bytes that are borrowed.
    let _ = unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxPopulateRead) };
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn fetch(_bytes: &[u8]) {}

#[cfg(not(target_os = "linux"))]
fn populate(_address: usize, _length: usize) -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// KiB of the buffer that are in memory. Not of its mapping: those of other tests may join it.
    fn resident_kb(buffer: &LargeBuffer) -> usize {
        use std::os::unix::fs::FileExt;
        let map = std::fs::File::open("/proc/self/pagemap").expect("a map of pages");
        let mut entries = vec![0; buffer.len() / 4096 * 8];
        let start = buffer.pointer() as u64 / 4096 * 8;
        map.read_exact_at(&mut entries, start).expect("an entry for each page");
        // The highest bit of each: whether it is there.
        4 * entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count()
    }

    fn pages(buffer: &LargeBuffer, layers: usize, page_bytes: usize) -> CachePages {
        let start = buffer.pointer() as usize;
        CachePages { start, layers, blocks: buffer.len() / layers / page_bytes, page_bytes }
    }

    #[test]
    fn as_much_as_asked_for_is_touched_and_no_byte_changed() {
        let mut buffer = LargeBuffer::zeroed(64 << 20).expect("memory");
        buffer.bytes_mut()[5] = 7;
        let none = CachePages { blocks: 0, ..pages(&buffer, 1, 1 << 20) };
        let mut warming = Warming::start([&buffer].into_iter(), none, 16 << 20).expect("a thread");
        warming.thread.take().map(JoinHandle::join);
        let resident = resident_kb(&buffer);
        // Before Linux 5.14 nothing is.
        assert!(resident <= 4 << 10 || (16 << 10..=20 << 10).contains(&resident), "{resident}");
        assert_eq!((buffer.bytes_mut()[5], buffer.bytes_mut()[8 << 20]), (7, 0));
        assert!(Warming::start([&buffer].into_iter(), none, 0).is_none());
    }

    /// Two layers of 256 blocks of 512 KB: a lead of 64 is touched, then another behind what steps
    /// have come to, and all there is in the end.
    #[test]
    fn a_lead_of_the_cache_is_touched_as_steps_come_to_it() {
        let buffer = LargeBuffer::zeroed(256 << 20).expect("memory");
        let cache = pages(&buffer, 2, 512 << 10);
        let warming = Warming::start(std::iter::empty(), cache, 256 << 20).expect("a thread");
        let resident_mb = || resident_kb(&buffer) >> 10;
        let wait_for = |least: usize| {
            while resident_mb() < least {
                assert!(!warming.thread.as_ref().expect("a thread").is_finished(), "it goes on");
                std::thread::yield_now();
            }
        };
        let probe = LargeBuffer::zeroed(4 << 20).expect("memory");
        if !populate(probe.pointer() as usize, 4096) {
            return; // Before Linux 5.14 nothing is touched.
        }
        wait_for(64);
        // 97 are wanted when steps come to the 33rd.
        warming.come_to(31);
        warming.come_to(33);
        wait_for(96);
        assert!(resident_mb() <= 104, "{} MB: no more than the lead", resident_mb());
        warming.come_to(255);
        let thread = warming.thread.as_ref().expect("a thread");
        while !thread.is_finished() {
            std::thread::yield_now();
        }
        assert!(resident_mb() >= 255, "all of it");
    }

    #[test]
    fn it_ends_when_it_is_no_longer_wanted() {
        let buffer = LargeBuffer::zeroed(1 << 30).expect("memory");
        let cache = pages(&buffer, 4, 1 << 20);
        drop(Warming::start([&buffer].into_iter(), cache, 1 << 30));
        // Where it waits for steps, too.
        drop(Warming::start(std::iter::empty(), cache, 1 << 30));
    }
}
