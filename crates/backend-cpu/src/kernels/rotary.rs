//! Rotary positions, then keys and values into the paged cache.
//!
//! Su et al. 2021, <https://arxiv.org/abs/2104.09864>: pair i of a head turns by the angle
//! `position * frequency[i]`. Pairs are (i, i + half) or (2 i, 2 i + 1). An optional RMS norm per
//! head comes first (Qwen3, Gemma 3). One token is one task.
//!
//! The cache: blocks of `block_tokens` tokens, f16, per block `[kv_head][keys | values]` with
//! keys `[block_tokens / 16][head_dim][16 tokens]` (16 positions are one vector of scores) and
//! values `[block_tokens][head_dim]`.

use crate::arch::{Isa, Kernel};
use crate::kernels::rms_norm::sum_of_squares;
use crate::rows::Rows;
use crate::team::Worker;
use crate::vector::Vector;
use std::marker::PhantomData;

/// Positions whose keys lie together: one vector of scores.
pub(crate) const KEY_LANES: usize = 16;
/// The largest finite f16. Larger keys and values are cut to it: an infinity in the cache would
/// turn masked positions into NaN.
const F16_MAX: f32 = 65_504.0;

/// The shape of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// A multiple of 16.
    pub block_tokens: usize,
    pub kv_heads: usize,
    /// A multiple of 16.
    pub head_dim: usize,
}

impl CacheShape {
    /// f16 elements of one block of one layer, keys and values.
    pub const fn block_elements(self) -> usize {
        2 * self.block_tokens * self.kv_heads * self.head_dim
    }

    const fn is_valid(self) -> bool {
        self.block_tokens.is_multiple_of(KEY_LANES)
            && self.head_dim.is_multiple_of(KEY_LANES)
            && self.block_tokens > 0
            && self.head_dim > 0
    }
}

/// One layer's cache: `blocks` blocks of f16, which must start out zeroed (or finite).
#[derive(Clone, Copy)]
pub struct CacheView<'a> {
    start: *mut u16,
    blocks: usize,
    shape: CacheShape,
    owner: PhantomData<&'a u16>,
}

// SAFETY: plain bits; races are excluded by the contract of the kernels.
unsafe impl Send for CacheView<'_> {}
// SAFETY: as above.
unsafe impl Sync for CacheView<'_> {}

impl CacheView<'_> {
    /// # Safety
    /// For 'a, `start` is valid for `blocks * shape.block_elements()` f16, all of them finite, and
    /// only views touch them.
    ///
    /// # Panics
    /// If `block_tokens` or `head_dim` is not a multiple of 16.
    pub unsafe fn from_raw(start: *mut u16, blocks: usize, shape: CacheShape) -> Self {
        assert!(shape.is_valid(), "{shape:?}: tokens and head size are multiples of 16");
        Self { start, blocks, shape, owner: PhantomData }
    }

    pub fn shape(&self) -> CacheShape {
        self.shape
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    fn head(&self, block: usize, kv_head: usize) -> *mut u16 {
        assert!(block < self.blocks, "cache block {block} of {}", self.blocks);
        let CacheShape { block_tokens, head_dim, .. } = self.shape;
        let at = block * self.shape.block_elements() + 2 * kv_head * block_tokens * head_dim;
        debug_assert!(kv_head < self.shape.kv_heads, "kv head {kv_head}");
        // SAFETY: inside the memory promised to `from_raw`.
        unsafe { self.start.add(at) }
    }

    /// Keys of the 16 positions from `offset` (a multiple of 16) in a block: `[head_dim][16]`.
    #[inline(always)]
    pub(crate) fn keys(&self, block: usize, kv_head: usize, offset: usize) -> *mut u16 {
        // SAFETY: `offset` < `block_tokens`, whose keys are `block_tokens * head_dim` elements.
        unsafe { self.head(block, kv_head).add(offset * self.shape.head_dim) }
    }

    /// Values from `offset` on in a block: `[tokens][head_dim]`.
    #[inline(always)]
    pub(crate) fn values(&self, block: usize, kv_head: usize, offset: usize) -> *mut u16 {
        let CacheShape { block_tokens, head_dim, .. } = self.shape;
        // SAFETY: values follow the block's keys.
        unsafe { self.head(block, kv_head).add((block_tokens + offset) * head_dim) }
    }
}

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryStyle {
    /// (i, i + half): Hugging Face's Llama weights.
    HalfSplit,
    /// (2 i, 2 i + 1): the original Llama's, and GGUF's for `llama`.
    AdjacentPair,
}

/// The turns of every token of the step, shared by all layers.
#[derive(Clone, Copy)]
pub struct RotaryTable<'a> {
    /// `[tokens, rotated elements / 2]`
    pub cos: Rows<'a>,
    /// `[tokens, rotated elements / 2]`
    pub sin: Rows<'a>,
    pub style: RotaryStyle,
}

/// RMS norm of each head before it turns.
#[derive(Clone, Copy)]
pub struct HeadNorm<'a> {
    /// `[head_dim]`
    pub query: &'a [f32],
    /// `[head_dim]`
    pub key: &'a [f32],
    pub epsilon: f32,
}

/// One layer's queries, keys and values on their way to attention.
#[derive(Clone, Copy)]
pub struct RotaryAppend<'a> {
    /// `[tokens, heads * head_dim]`, turned in place.
    pub query: Rows<'a>,
    /// `[tokens, kv_heads * head_dim]`, turned in place, then appended.
    pub key: Rows<'a>,
    /// `[tokens, kv_heads * head_dim]`
    pub value: Rows<'a>,
    /// `None` for layers without positions.
    pub table: Option<RotaryTable<'a>>,
    pub head_norm: Option<HeadNorm<'a>>,
    /// Per token: `block * block_tokens + offset`, all different.
    pub slots: &'a [u32],
    pub cache: CacheView<'a>,
}

/// Fills a step's table: `cos = factor * cos(position * frequency)`, the same with sin. The
/// angle is an f32 product, as in the published implementations; its cosine is taken in f64.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the table.
///
/// # Panics
/// If shapes do not match.
pub unsafe fn rotary_table(
    worker: &Worker<'_>,
    positions: &[u32],
    frequencies: &[f32],
    factor: f32,
    table: &RotaryTable<'_>,
) {
    let shape = (positions.len(), frequencies.len());
    assert_eq!((table.cos.rows(), table.cos.width()), shape, "shape of the table");
    assert_eq!((table.sin.rows(), table.sin.width()), shape, "shape of the table");
    for token in worker.share(positions.len()) {
        // SAFETY: the rows belong to this member's share.
        let cos = unsafe { table.cos.row_mut(token) };
        // SAFETY: as above.
        let sin = unsafe { table.sin.row_mut(token) };
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
            let angle = f64::from(positions[token] as f32 * frequency);
            *cos = angle.cos() as f32 * factor;
            *sin = angle.sin() as f32 * factor;
        }
    }
    worker.barrier();
}

/// Norms, turns and appends; ends with a barrier.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the rows or
/// the slots meanwhile.
///
/// # Panics
/// If shapes do not match or a slot lies outside the cache.
pub unsafe fn rotary_append(worker: &Worker<'_>, isa: Isa, call: &RotaryAppend<'_>) {
    call.check();
    let tokens = call.slots.len();
    let step = (tokens / (4 * worker.members())).clamp(1, 8);
    worker.for_each(tokens.div_ceil(step), |task| {
        for token in task * step..tokens.min(task * step + step) {
            // SAFETY: each token belongs to one task; the rest is the caller's promise.
            unsafe { isa.run(OneToken { call, token }) };
        }
    });
}

impl RotaryAppend<'_> {
    fn check(&self) {
        let CacheShape { kv_heads, head_dim, .. } = self.cache.shape();
        let tokens = self.slots.len();
        let kv = (tokens, kv_heads * head_dim);
        assert_eq!((self.key.rows(), self.key.width()), kv, "shape of the keys");
        assert_eq!((self.value.rows(), self.value.width()), kv, "shape of the values");
        assert_eq!(self.query.rows(), tokens, "rows of the queries");
        assert!(self.query.width().is_multiple_of(head_dim), "queries are whole heads");
        if let Some(table) = self.table {
            let shape = (table.cos.rows(), table.cos.width());
            assert_eq!(shape, (table.sin.rows(), table.sin.width()), "cos and sin");
            assert!(shape.0 == tokens && 2 * shape.1 <= head_dim, "shape of the table");
        }
        if let Some(norm) = self.head_norm {
            assert_eq!((norm.query.len(), norm.key.len()), (head_dim, head_dim), "head norms");
        }
    }
}

struct OneToken<'a> {
    call: &'a RotaryAppend<'a>,
    token: usize,
}

impl Kernel for OneToken<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { call, token } = self;
        let CacheShape { block_tokens, head_dim, .. } = call.cache.shape();
        // SAFETY: the token's rows belong to this task.
        let query = unsafe { call.query.row_mut(token) };
        // SAFETY: as above.
        let key = unsafe { call.key.row_mut(token) };
        // SAFETY: as above; nobody writes values in this phase.
        let value = unsafe { call.value.row(token) };
        for head in query.chunks_exact_mut(head_dim) {
            // SAFETY: the instruction set is present.
            unsafe { turn::<V>(head, call, call.head_norm.map(|norm| norm.query), token) };
        }
        let slot = call.slots[token] as usize;
        let (block, offset) = (slot / block_tokens, slot % block_tokens);
        let heads = key.chunks_exact_mut(head_dim).zip(value.chunks_exact(head_dim));
        for (kv_head, (key, value)) in heads.enumerate() {
            // SAFETY: the instruction set is present.
            unsafe { turn::<V>(key, call, call.head_norm.map(|norm| norm.key), token) };
            let keys = call.cache.keys(block, kv_head, offset / KEY_LANES * KEY_LANES);
            let values = call.cache.values(block, kv_head, offset);
            for part in (0..head_dim).step_by(16) {
                let mut bits = [0u16; 16];
                // SAFETY: 16 of `head_dim` values, a multiple of 16; the slot is this task's.
                unsafe {
                    narrow::<V>(value.as_ptr().add(part)).store_f16(values.add(part));
                    narrow::<V>(key.as_ptr().add(part)).store_f16(bits.as_mut_ptr());
                }
                for (lane, bits) in bits.into_iter().enumerate() {
                    let at = (part + lane) * KEY_LANES + offset % KEY_LANES;
                    // SAFETY: inside the 16 positions' keys; this lane is this task's.
                    unsafe { *keys.add(at) = bits };
                }
            }
        }
    }
}

/// # Safety
/// 16 values at `from`; the instruction set of `V` is present.
#[inline(always)]
unsafe fn narrow<V: Vector>(from: *const f32) -> V {
    // SAFETY: the caller's promise. Written so that a NaN passes: it must stay visible.
    unsafe { V::splat(F16_MAX).min(V::splat(-F16_MAX).max(V::load(from))) }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn turn<V: Vector>(
    head: &mut [f32],
    call: &RotaryAppend<'_>,
    weight: Option<&[f32]>,
    token: usize,
) {
    if let (Some(norm), Some(weight)) = (call.head_norm, weight) {
        // SAFETY: the slice's own length.
        let squares = unsafe { sum_of_squares::<V>(head.as_ptr(), head.len()) };
        let factor = 1.0 / (squares / head.len() as f32 + norm.epsilon).sqrt();
        for (value, weight) in head.iter_mut().zip(weight) {
            *value = *value * factor * weight;
        }
    }
    let Some(table) = call.table else { return };
    // SAFETY: nobody writes the table in this phase.
    let (cos, sin) = unsafe { (table.cos.row(token), table.sin.row(token)) };
    let half = cos.len();
    match table.style {
        RotaryStyle::HalfSplit => {
            let (first, second) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (a, b) = (first[i], second[i]);
                first[i] = a * cos[i] - b * sin[i];
                second[i] = b * cos[i] + a * sin[i];
            }
        }
        RotaryStyle::AdjacentPair => {
            for i in 0..half {
                let (a, b) = (head[2 * i], head[2 * i + 1]);
                head[2 * i] = a * cos[i] - b * sin[i];
                head[2 * i + 1] = b * cos[i] + a * sin[i];
            }
        }
    }
}
