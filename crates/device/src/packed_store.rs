//! Where may a backend keep its own form of a model's weights between two starts?
//!
//! The backend says what it would keep as a [`PackedKey`]: whatever decides the meaning of the
//! bytes. The store finds bytes kept under an equal key for the same model file, or none. They are
//! copied out chunk by chunk and checked in the copy, so that what was checked is what is used; or,
//! where the store's owner trusts whoever may write to its files, checked and used where they lie.

use std::ops::Range;
use std::sync::Arc;

/// What kept bytes must agree on to be of use. Any difference makes them worthless.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedKey {
    /// Backend, version of its layout, instruction set: short, without control characters.
    pub layout: String,
    /// A digest of every tensor's name, format, shape and place, in order.
    pub plan: u64,
    /// Length of all pieces together, each padded to [`PIECE_ALIGNMENT`].
    pub bytes: u64,
}

/// One cache line, which is what kernels want their operands to start at.
pub const PIECE_ALIGNMENT: usize = 64;

/// Keeps one model's packed weights.
pub trait PackedStore: Sync {
    /// What was kept under `key` for this model, or `None` if there is nothing that fits.
    fn find(&self, key: &PackedKey) -> Option<Arc<dyn PackedBytes>>;

    /// Keeps `pieces`, one after another, each padded with zeros to [`PIECE_ALIGNMENT`]. Where that
    /// fails the next start packs again, so there is nothing to return.
    fn keep(&self, key: &PackedKey, pieces: &[&[u8]]);
}

/// Bytes found under a key, not believed yet.
pub trait PackedBytes: Send + Sync {
    /// Bytes of each chunk but the last, which may be shorter.
    fn chunk_bytes(&self) -> usize;

    /// Copies a chunk and checks the copy; false if it is not what was kept.
    fn copy_chunk(&self, index: usize, to: &mut [u8]) -> bool;

    /// All of them where they lie, for as long as this lives; `None`: they are to be copied.
    fn in_place(&self) -> Option<&[u8]>;

    /// Checks a chunk where it lies; false if it is not what was kept.
    fn check_chunk(&self, index: usize) -> bool;

    /// These bytes of [`PackedBytes::in_place`] will hardly be read again and need not be in
    /// memory.
    fn release(&self, range: Range<usize>);
}

/// A digest of words and numbers, for [`PackedKey::plan`]: FNV-1a with 64 bits.
#[derive(Clone, Copy, Debug)]
pub struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds bytes and their number, so that no two lists of parts are alike.
    pub fn add(&mut self, part: &[u8]) {
        for byte in part.iter().copied().chain((part.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub fn value(self) -> u64 {
        self.0
    }
}
