//! Where are a layer's keys and values? Paged blocks in one of the formats of `KvFormat`.
//!
//! A block holds `[kv_head][keys | values | scales]`. Floats: keys
//! `[block_tokens / 16][head_dim][16 tokens]`, so that 16 positions are one vector of scores, and
//! values `[block_tokens][head_dim]`. Integers lie in pairs, as the dot products want them: keys
//! `[block_tokens / 16][head_dim / 2][16 tokens][2]`, values `[block_tokens / 2][head_dim][2]`,
//! then one f32 scale a token for keys and one for values.

use std::marker::PhantomData;

use ops::kv_format::KvFormat;

/// Positions whose keys lie together: one vector of scores.
pub(crate) const KEY_LANES: usize = 16;

/// The shape of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// A multiple of 16.
    pub block_tokens: usize,
    pub kv_heads: usize,
    /// A multiple of 16.
    pub head_dim: usize,
    pub format: KvFormat,
}

impl CacheShape {
    /// Bytes of one block of one layer: keys, values and scales.
    pub const fn block_bytes(self) -> usize {
        self.kv_heads * self.head_bytes()
    }

    const fn head_bytes(self) -> usize {
        self.block_tokens * self.format.token_head_bytes(self.head_dim)
    }

    /// Bytes of a head's keys of one block, without scales; as many hold its values.
    const fn side_bytes(self) -> usize {
        self.block_tokens * self.head_dim * self.format.element_bytes()
    }

    const fn is_valid(self) -> bool {
        self.block_tokens.is_multiple_of(KEY_LANES)
            && self.head_dim.is_multiple_of(KEY_LANES)
            && self.block_tokens > 0
            && self.head_dim > 0
    }
}

/// One layer's cache: blocks that must start out zeroed (or finite).
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    start: *mut u8,
    blocks: usize,
    shape: CacheShape,
    owner: PhantomData<&'a u8>,
}

// SAFETY: plain bits; races are excluded by the contract of the kernels.
unsafe impl Send for CacheView<'_> {}
// SAFETY: as above.
unsafe impl Sync for CacheView<'_> {}

impl CacheView<'_> {
    /// # Safety
    /// For 'a, `start` is valid for `blocks * shape.block_bytes()` bytes and aligned to 4, what is
    /// stored there is finite, and only views touch it.
    ///
    /// # Panics
    /// If `block_tokens` or `head_dim` is not a multiple of 16.
    pub unsafe fn from_raw(start: *mut u8, blocks: usize, shape: CacheShape) -> Self {
        assert!(shape.is_valid(), "{shape:?}: tokens and head size are multiples of 16");
        assert!(start.addr().is_multiple_of(4), "a cache is aligned to 4 bytes");
        Self { start, blocks, shape, owner: PhantomData }
    }

    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    #[inline(always)]
    fn head(&self, block: usize, kv_head: usize) -> *mut u8 {
        assert!(block < self.blocks, "cache block {block} of {}", self.blocks);
        debug_assert!(kv_head < self.shape.kv_heads, "kv head {kv_head}");
        let at = block * self.shape.block_bytes() + kv_head * self.shape.head_bytes();
        // SAFETY: inside the memory promised to `from_raw`.
        unsafe { self.start.add(at) }
    }

    /// Keys of the 16 positions from `offset` (a multiple of 16) in a block.
    #[inline(always)]
    pub(crate) fn keys(&self, block: usize, kv_head: usize, offset: usize) -> *mut u8 {
        let at = offset * self.shape.head_dim * self.shape.format.element_bytes();
        // SAFETY: `offset` < `block_tokens`, whose keys are `side_bytes` bytes.
        unsafe { self.head(block, kv_head).add(at) }
    }

    /// Values from `offset` (even for integers) on in a block.
    #[inline(always)]
    pub(crate) fn values(&self, block: usize, kv_head: usize, offset: usize) -> *mut u8 {
        // SAFETY: values follow the block's keys.
        unsafe { self.keys(block, kv_head, offset).add(self.shape.side_bytes()) }
    }

    /// Scales of keys from `offset` on in a block, one a position; integer formats only.
    #[inline(always)]
    pub(crate) fn key_scales(&self, block: usize, kv_head: usize, offset: usize) -> *mut f32 {
        debug_assert!(self.shape.format.has_scales(), "scales of {:?}", self.shape.format);
        // SAFETY: scales follow keys and values; both are whole multiples of 4 bytes.
        unsafe {
            let scales = self.head(block, kv_head).add(2 * self.shape.side_bytes());
            scales.cast::<f32>().add(offset)
        }
    }

    /// Scales of values from `offset` on in a block, one a position; integer formats only.
    #[inline(always)]
    pub(crate) fn value_scales(&self, block: usize, kv_head: usize, offset: usize) -> *mut f32 {
        // SAFETY: they follow the scales of the block's keys.
        unsafe { self.key_scales(block, kv_head, offset).add(self.shape.block_tokens) }
    }
}
