//! How do weights that are read where they are kept come into the heap? Behind steps: a thread
//! copies matrix after matrix, and the next step takes over those that are copied.
//!
//! So a start waits for no copy, and steps soon read large pages, which no other process can change
//! or cut off. The kept bytes leave this process's memory as they are copied; a step that still
//! reads them there gets them from the system's cache once more. The same bytes in both places:
//! nothing a step computes depends on how far this is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use device::PackedBytes;
use ops::WeightId;

use crate::memory::ArenaPiece;
use crate::warming::give_way;

/// Copied at once: a millisecond, after which the thread may be told to stop.
const PART_BYTES: usize = 4 << 20;

/// Where a matrix is kept, and where it goes.
pub(crate) struct Move {
    pub(crate) id: WeightId,
    pub(crate) offset: usize,
    pub(crate) to: ArenaPiece,
}

/// Ends with its thread.
pub(crate) struct Moving {
    progress: Arc<Progress>,
    /// Of matrices that were not taken over yet, in their order.
    pieces: VecDeque<(WeightId, ArenaPiece)>,
    taken: usize,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Progress {
    copied: AtomicUsize,
    stop: AtomicBool,
}

impl Moving {
    /// Begins to copy; `None` if there is no thread to do it, and the weights stay where they are.
    pub(crate) fn start(kept: Arc<dyn PackedBytes>, moves: Vec<Move>) -> Option<Self> {
        let progress = Arc::new(Progress::default());
        let places: Vec<_> = moves
            .iter()
            .map(|item| (item.offset, item.to.pointer() as usize, item.to.len()))
            .collect();
        let pieces = moves.into_iter().map(|item| (item.id, item.to)).collect();
        let told = Arc::clone(&progress);
        let copy = move || {
            give_way();
            for (offset, to, length) in places {
                if !copy(kept.as_ref(), offset, to, length, &told.stop) {
                    return;
                }
                told.copied.fetch_add(1, Ordering::Release);
                kept.release(offset..offset + length);
            }
        };
        let thread = std::thread::Builder::new().name("pelton-move".to_owned()).spawn(copy).ok()?;
        Some(Self { progress, pieces, taken: 0, thread: Some(thread) })
    }

    /// The next matrix's bytes in the heap, if they are there and were not taken yet.
    pub(crate) fn take(&mut self) -> Option<(WeightId, ArenaPiece)> {
        if self.taken == self.progress.copied.load(Ordering::Acquire) {
            return None;
        }
        self.taken += 1;
        self.pieces.pop_front()
    }

    /// Whether every matrix was taken.
    pub(crate) fn is_over(&self) -> bool {
        self.pieces.is_empty()
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.progress.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// False when it was told to stop.
fn copy(
    kept: &dyn PackedBytes,
    offset: usize,
    to: usize,
    length: usize,
    stop: &AtomicBool,
) -> bool {
    let bytes = kept.in_place().expect("invariant: only what lies in place is moved");
    for start in (0..length).step_by(PART_BYTES) {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        let part = &bytes[offset + start..offset + length.min(start + PART_BYTES)];
        let to = std::ptr::with_exposed_provenance_mut::<u8>(to + start);
        // SAFETY: inside a piece that `Moving` holds until this thread has ended or has counted it
        // as copied; until then nobody else reads or writes it.
        let to = unsafe { std::slice::from_raw_parts_mut(to, part.len()) };
        to.copy_from_slice(part);
    }
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::ops::Range;
    use std::sync::Mutex;

    use super::*;
    use crate::Arena;

    struct Kept {
        bytes: Vec<u8>,
        released: Mutex<Vec<Range<usize>>>,
    }

    impl PackedBytes for Kept {
        fn chunk_bytes(&self) -> usize {
            unreachable!("nothing is checked here")
        }

        fn copy_chunk(&self, _: usize, _: &mut [u8]) -> bool {
            unreachable!("nothing is checked here")
        }

        fn in_place(&self) -> Option<&[u8]> {
            Some(&self.bytes)
        }

        fn check_chunk(&self, _: usize) -> bool {
            unreachable!("nothing is checked here")
        }

        fn release(&self, range: Range<usize>) {
            self.released.lock().unwrap().push(range);
        }
    }

    fn moving() -> (Arc<Kept>, Moving) {
        let bytes = (0..PART_BYTES + 192).map(|at| (at % 251) as u8).collect();
        let kept = Arc::new(Kept { bytes, released: Mutex::default() });
        let arena = Arena::new(kept.bytes.len()).unwrap();
        let sizes = [64, PART_BYTES + 64, 64];
        let mut offset = 0;
        let mut moves = Vec::new();
        for bytes in sizes {
            let id = WeightId(moves.len() as u32);
            moves.push(Move { id, offset, to: arena.take(bytes).unwrap() });
            offset += bytes;
        }
        let moving = Moving::start(Arc::clone(&kept) as Arc<dyn PackedBytes>, moves).unwrap();
        (kept, moving)
    }

    #[test]
    fn each_matrix_is_taken_once_and_in_order() {
        let (kept, mut moving) = moving();
        let (mut seen, mut ids) = (Vec::new(), Vec::new());
        while !moving.is_over() {
            let Some((id, piece)) = moving.take() else {
                std::thread::yield_now();
                continue;
            };
            ids.push(id.0);
            // SAFETY: it was copied, and nobody writes it any more.
            let bytes = unsafe { std::slice::from_raw_parts(piece.pointer(), piece.len()) };
            seen.extend_from_slice(bytes);
        }
        assert!(seen == kept.bytes);
        assert_eq!(ids, [0, 1, 2]);
        assert!(moving.take().is_none());
        moving.thread.take().unwrap().join().unwrap();
        let ends: Vec<_> = kept.released.lock().unwrap().iter().map(|range| range.end).collect();
        assert_eq!(ends, [64, PART_BYTES + 128, PART_BYTES + 192]);
    }

    #[test]
    fn it_ends_when_it_is_no_longer_wanted() {
        drop(moving());
    }
}
