//! How is memory touched before steps need it? By a thread of its own, beside the steps: the system
//! makes each page zero when it is first written, and a step that had to wait for that would be
//! slower than those before it.
//!
//! The system is asked to do it (`MADV_POPULATE_WRITE`), not the bytes: so nothing that a step
//! writes meanwhile is disturbed. Where it does not know how (Linux before 5.14, other systems),
//! pages are touched by the steps as they come to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::LargeBuffer;

/// Asked for at once: a millisecond or two, after which the thread may be told to stop.
const CHUNK_BYTES: usize = 8 << 20;

/// Ends with its thread. Whoever owns the buffers drops this first.
pub(crate) struct Warming {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Warming {
    /// Begins to touch up to `bytes` of `buffers`, in their order; `None` if there is nothing to do
    /// or no thread to do it.
    pub(crate) fn start<'a>(
        buffers: impl Iterator<Item = &'a LargeBuffer>,
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
        if ranges.is_empty() {
            return None;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("pelton-warm".to_owned());
        let touch = move || {
            give_way();
            let chunks = ranges.iter().flat_map(|&(address, length)| {
                let starts = (0..length).step_by(CHUNK_BYTES);
                starts.map(move |start| (address + start, CHUNK_BYTES.min(length - start)))
            });
            for (address, length) in chunks {
                if stopped.load(Ordering::Relaxed) || !populate(address, length) {
                    break;
                }
            }
        };
        let thread = Some(thread.spawn(touch).ok()?);
        Some(Self { stop, thread })
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Steps go first: this thread takes what they leave of the cores. At the priority of the others it
/// held the first prompts of a process to half their speed.
#[cfg(target_os = "linux")]
pub(crate) fn give_way() {
    // Linux knows priorities of threads, by the number of the thread. Refused, it changes nothing.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn give_way() {}

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

    /// KiB of this mapping that are in memory.
    fn resident_kb(address: usize) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().unwrap_or_default().split_once('-');
            let parse = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(s, e)| (parse(s), parse(e))) {
                inside = (start..end).contains(&address);
            } else if let Some(rest) = line.strip_prefix("Rss:").filter(|_| inside) {
                return rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            }
        }
        0
    }

    #[test]
    fn as_much_as_asked_for_is_touched_and_no_byte_changed() {
        let mut buffer = LargeBuffer::zeroed(64 << 20).expect("memory");
        buffer.bytes_mut()[5] = 7;
        let address = buffer.pointer() as usize;
        let mut warming = Warming::start([&buffer].into_iter(), 16 << 20).expect("a thread");
        warming.thread.take().map(JoinHandle::join);
        let resident = resident_kb(address + (4 << 20));
        // Before Linux 5.14 nothing is.
        assert!(resident <= 4 << 10 || (16 << 10..=20 << 10).contains(&resident), "{resident}");
        assert_eq!((buffer.bytes_mut()[5], buffer.bytes_mut()[8 << 20]), (7, 0));
        assert!(Warming::start([&buffer].into_iter(), 0).is_none());
    }

    #[test]
    fn it_ends_when_it_is_no_longer_wanted() {
        let buffer = LargeBuffer::zeroed(1 << 30).expect("memory");
        drop(Warming::start([&buffer].into_iter(), 1 << 30));
    }
}
