//! How are packed weights kept for the next start, and taken back? As one run of bytes, all
//! matrices in their order, each on a cache line: the arena as it lies in memory.
//!
//! Taken back, the bytes are checked where they lie and used there at once; `moving` then copies
//! them into the arena's large pages behind the steps, so decode is soon as fast as after packing.
//! Where they may not be looked at in place they are copied first and checked in the copy: the slow
//! twin. Sizes come from the model file and never from the kept bytes, and the kernels accept any
//! codes and scales: wrong bytes could only make wrong numbers.

use std::sync::atomic::{AtomicBool, Ordering};

use device::{Digest, PIECE_ALIGNMENT, PackedBytes, PackedKey};
use ops::quant_format::QuantFormat;

use crate::memory::Arena;
use crate::packed::PackedMatrix;
use crate::{Isa, Team};

/// Goes up whenever `packed.rs` lays out the same weights otherwise: what was kept before is then
/// stale.
const LAYOUT_VERSION: u32 = 1;

const _: () = assert!(
    Arena::piece_bytes(1) == PIECE_ALIGNMENT,
    "kept pieces follow each other as those of the arena do"
);

/// Gathers what the meaning of the kept bytes hangs on.
pub(crate) struct KeyBuilder {
    plan: Digest,
    bytes: u64,
}

impl KeyBuilder {
    pub(crate) fn new() -> Self {
        Self { plan: Digest::default(), bytes: 0 }
    }

    /// Adds a matrix that takes `piece_bytes` of the arena.
    pub(crate) fn add(
        &mut self,
        name: &str,
        format: QuantFormat,
        rows: usize,
        cols: usize,
        piece_bytes: usize,
    ) {
        self.plan.add(name.as_bytes());
        self.plan.add(format.name().as_bytes());
        for number in [rows, cols, piece_bytes] {
            self.plan.add(&(number as u64).to_le_bytes());
        }
        self.bytes += piece_bytes as u64;
    }

    pub(crate) fn finish(self, isa: Isa) -> PackedKey {
        PackedKey {
            layout: format!("cpu {LAYOUT_VERSION} {}", isa.name()),
            plan: self.plan.value(),
            bytes: self.bytes,
        }
    }
}

/// Fills the arena with kept bytes, by the whole team; false if any of them is not what was kept,
/// and the arena's contents are then worthless.
pub(crate) fn take_back(arena: &mut Arena, kept: &dyn PackedBytes, team: &Team) -> bool {
    let all_good = AtomicBool::new(true);
    arena.fill(kept.chunk_bytes(), team, &|index, chunk| {
        if all_good.load(Ordering::Relaxed) && !kept.copy_chunk(index, chunk) {
            all_good.store(false, Ordering::Relaxed);
        }
    });
    all_good.into_inner()
}

/// Checks all kept bytes where they lie, by the whole team.
pub(crate) fn check(kept: &dyn PackedBytes, bytes: usize, team: &Team) -> bool {
    let all_good = AtomicBool::new(true);
    team.run(&|worker| {
        worker.for_each(bytes.div_ceil(kept.chunk_bytes()), |index| {
            if all_good.load(Ordering::Relaxed) && !kept.check_chunk(index) {
                all_good.store(false, Ordering::Relaxed);
            }
        });
    });
    all_good.into_inner()
}

/// The matrices as they are kept.
pub(crate) fn pieces<'a>(matrices: impl Iterator<Item = &'a PackedMatrix>) -> Vec<&'a [u8]> {
    matrices.map(PackedMatrix::packed).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    struct Counting {
        broken: Option<usize>,
    }

    impl PackedBytes for Counting {
        fn chunk_bytes(&self) -> usize {
            1000
        }

        fn copy_chunk(&self, index: usize, to: &mut [u8]) -> bool {
            to.fill(index as u8 + 1);
            self.broken != Some(index)
        }

        fn in_place(&self) -> Option<&[u8]> {
            None
        }

        fn check_chunk(&self, index: usize) -> bool {
            self.broken != Some(index)
        }

        fn release(&self, _: std::ops::Range<usize>) {}
    }

    #[test]
    fn every_byte_is_taken_back_by_whoever_is_free() {
        for members in [1, 3] {
            let team = Team::new(members).unwrap();
            let mut arena = Arena::new(64 * 100).unwrap();
            assert!(take_back(&mut arena, &Counting { broken: None }, &team));
            let mut seen = Vec::new();
            arena.fill(6400, &Team::new(1).unwrap(), &|_, all| {
                // Nobody else looks: one chunk, one member.
                assert_eq!(all.len(), 6400);
                for (at, byte) in all.iter().enumerate() {
                    assert_eq!(usize::from(*byte), at / 1000 + 1);
                }
            });
            seen.push(take_back(&mut arena, &Counting { broken: Some(6) }, &team));
            assert_eq!(seen, [false]);
            assert!(check(&Counting { broken: None }, 6400, &team));
            assert!(!check(&Counting { broken: Some(6) }, 6400, &team));
        }
    }

    #[test]
    fn anything_that_moves_a_byte_is_another_key() {
        let isa = Isa::all()[0];
        let key = |parts: &[(&str, QuantFormat, usize, usize)]| {
            let mut builder = KeyBuilder::new();
            for &(name, format, rows, cols) in parts {
                let bytes = PackedMatrix::packed_bytes(format, rows, cols).unwrap();
                builder.add(name, format, rows, cols, Arena::piece_bytes(bytes));
            }
            builder.finish(isa)
        };
        let (a, b) = (("a", QuantFormat::Q4_1, 16, 64), ("b", QuantFormat::Q4_1, 64, 16));
        let (a, b) = (a, (b.0, b.1, 16, 64));
        let first = key(&[a, b]);
        assert_eq!(first, key(&[a, b]));
        assert_eq!(first.bytes, 2 * 2 * 320);
        for other in [
            key(&[b, a]),
            key(&[a]),
            key(&[a, ("b", QuantFormat::Q4_0, 16, 64)]),
            key(&[a, ("b", QuantFormat::Q4_1, 32, 32)]),
            key(&[("ab", a.1, a.2, a.3), ("", b.1, b.2, b.3)]),
        ] {
            assert_ne!(first.plan, other.plan);
        }
        for isa in Isa::all() {
            assert!(KeyBuilder::new().finish(isa).layout.ends_with(isa.name()));
        }
    }
}
