//! Whose memory are blocks in? Of whoever opens the tiers: they keep what they are given and ask
//! for room before they read.

use std::sync::Arc;

/// A block's bytes, which several may hold.
pub type BlockBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Room for blocks of one size.
pub trait BlockBuffers: Send + Sync {
    /// Lets `fill` write a block; gives it if `fill` said that it did. `Err` where there is no
    /// room: nothing was filled.
    ///
    /// # Errors
    /// [`NoRoom`].
    fn fill(&self, fill: &mut dyn FnMut(&mut [u8]) -> bool) -> Result<Option<BlockBytes>, NoRoom>;
}

/// All room for blocks is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// Buffers of the heap, for blocks of so many bytes.
#[derive(Clone, Copy, Debug)]
pub struct HeapBuffers(pub usize);

impl BlockBuffers for HeapBuffers {
    fn fill(&self, fill: &mut dyn FnMut(&mut [u8]) -> bool) -> Result<Option<BlockBytes>, NoRoom> {
        let mut bytes = vec![0; self.0];
        let is_filled = fill(&mut bytes);
        Ok(is_filled.then(|| Arc::new(bytes) as BlockBytes))
    }
}
