//! How do weights that are read where they are kept, or as the model file has them, come into the
//! heap? Behind steps: a thread copies or packs matrix after matrix, and the next step takes over
//! those that are done.
//!
//! So a start waits for none of it (on a virtual machine the host may take its time for fresh
//! memory: 0.3 GB/s were measured), and steps soon read large pages, which no other process can
//! change or cut off. The mapped bytes leave this process's memory as they are done; a step that
//! still reads them there gets them from the system's cache once more. The same packed bytes either
//! way: nothing a step computes depends on how far this is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use device::{PackedBytes, StoredBytes, WeightShape};
use ops::WeightId;

use crate::memory::ArenaPiece;
use crate::packed::{MatrixSource, PackedMatrix};
use crate::warming::give_way;

/// Copied at once: a millisecond, after which the thread may be told to stop.
const PART_BYTES: usize = 4 << 20;
/// With no second step in this time it begins all the same.
const FIRST_STEP_WITHIN: Duration = Duration::from_secs(2);

/// A matrix, and where it goes.
pub(crate) struct Move {
    pub(crate) id: WeightId,
    pub(crate) from: From,
    pub(crate) to: ArenaPiece,
}

/// Where a matrix is.
pub(crate) enum From {
    /// Packed, from this byte on.
    Kept(Arc<dyn PackedBytes>, usize),
    /// As the model file has it.
    Stored(Arc<dyn StoredBytes>, WeightShape),
}

/// Ends with its thread.
pub(crate) struct Moving {
    progress: Arc<Progress>,
    /// Of matrices that were not taken over yet, in their order.
    pieces: VecDeque<(WeightId, ArenaPiece)>,
    taken: usize,
    thread: Option<JoinHandle<()>>,
    /// Any of what is packed from the model file.
    stored: Option<Arc<dyn StoredBytes>>,
}

#[derive(Default)]
struct Progress {
    copied: AtomicUsize,
    steps: AtomicUsize,
    stop: AtomicBool,
}

impl Moving {
    /// Begins to copy; `None` if there is no thread to do it, and the weights stay where they are.
    pub(crate) fn start(moves: Vec<Move>) -> Option<Self> {
        let progress = Arc::new(Progress::default());
        let (mut places, mut pieces) = (Vec::new(), VecDeque::new());
        let mut stored = None;
        for Move { id, from, to } in moves {
            if let From::Stored(bytes, _) = &from {
                stored = Some(Arc::clone(bytes));
            }
            places.push((from, to.part(0, to.len())));
            pieces.push_back((id, to));
        }
        let told = Arc::clone(&progress);
        let copy = move || {
            // What is kept is nearly as fast where it is; what each step packs for itself is not.
            let is_kept = places.iter().all(|(from, _)| matches!(from, From::Kept(..)));
            give_way(if is_kept { 19 } else { 10 });
            told.let_first_step_pass();
            for (from, to) in places {
                let bytes = to.len();
                if !from.fill(to, &told.stop) {
                    return;
                }
                told.copied.fetch_add(1, Ordering::Release);
                from.release(bytes);
            }
        };
        let thread = std::thread::Builder::new().name("pelton-move".to_owned()).spawn(copy).ok()?;
        Some(Self { progress, pieces, stored, taken: 0, thread: Some(thread) })
    }

    /// A step begins.
    pub(crate) fn begin_step(&self) {
        self.progress.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// The next matrix's bytes in the heap, if they are there and were not taken yet.
    pub(crate) fn take(&mut self) -> Option<(WeightId, ArenaPiece)> {
        if self.taken == self.progress.copied.load(Ordering::Acquire) {
            return None;
        }
        self.taken += 1;
        self.pieces.pop_front()
    }

    /// Whether the step must wait for the rest: somebody waits to write to the model file, and who
    /// reads a file that is then cut off ends the process.
    pub(crate) fn is_urgent(&self) -> bool {
        let works = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        works && self.stored.as_ref().is_some_and(|stored| stored.are_wanted())
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

impl Progress {
    /// Whoever waits for a start waits for its first token, which needs memory and the disk, too.
    fn let_first_step_pass(&self) {
        let begun = Instant::now();
        while begun.elapsed() < FIRST_STEP_WITHIN
            && self.steps.load(Ordering::Relaxed) < 2
            && !self.stop.load(Ordering::Relaxed)
        {
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl From {
    /// False when it was told to stop.
    fn fill(&self, to: ArenaPiece, stop: &AtomicBool) -> bool {
        match self {
            Self::Kept(kept, offset) => {
                copy(kept.as_ref(), *offset, to.pointer() as usize, to.len(), stop)
            }
            Self::Stored(stored, shape) => {
                let WeightShape { format, rows, cols, .. } = *shape;
                let source = MatrixSource { format, rows, cols, bytes: stored.bytes() };
                let goes_on = || !stop.load(Ordering::Relaxed);
                PackedMatrix::pack_alone(&source, to, goes_on)
                    .expect("invariant: `PackedMatrix::stored` saw the same shape")
            }
        }
    }

    fn release(&self, bytes: usize) {
        match self {
            Self::Kept(kept, offset) => kept.release(*offset..offset + bytes),
            Self::Stored(stored, _) => stored.release(),
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
            let from = From::Kept(Arc::clone(&kept) as Arc<dyn PackedBytes>, offset);
            moves.push(Move { id, from, to: arena.take(bytes).unwrap() });
            offset += bytes;
        }
        let moving = Moving::start(moves).unwrap();
        (kept, moving)
    }

    #[test]
    fn each_matrix_is_taken_once_and_in_order() {
        let (kept, mut moving) = moving();
        moving.begin_step();
        moving.begin_step();
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
