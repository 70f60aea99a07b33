//! Rotary positions, then keys and values into the paged cache.
//!
//! Su et al. 2021, <https://arxiv.org/abs/2104.09864>: pair i of a head turns by the angle
//! `position * frequency[i]`. Pairs are (i, i + half) or (2 i, 2 i + 1). An optional RMS norm per
//! head comes first (Qwen3, Gemma 3). One token is one task.
//! The cache's layout is written in `kv_cache`.

use crate::arch::{Isa, Kernel};
use crate::integers;
use crate::kernels::rms_norm::sum_of_squares;
use crate::kv_cache::{CacheShape, CacheView, KEY_LANES};
use crate::rows::Rows;
use crate::team::Worker;
use crate::vector::Vector;
use ops::kv_format::KvFormat;

/// The largest finite f16. Larger keys and values are cut to it: an infinity in the cache would
/// turn masked positions into NaN.
const F16_MAX: f32 = 65_504.0;

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
            let place = Place { cache: call.cache, block, kv_head, offset };
            // SAFETY: the slot is this task's; both have `head_dim` elements.
            unsafe {
                match call.cache.shape().format {
                    KvFormat::F16 | KvFormat::Bf16 => append_floats::<V>(key, value, place),
                    KvFormat::Int16 => append_codes::<V, i16>(key, value, place),
                    KvFormat::Int8 => {
                        integers::spread::<V>(key.as_mut_ptr(), head_dim);
                        append_codes::<V, i8>(key, value, place);
                    }
                }
            }
        }
    }
}

/// A token's place in the cache.
#[derive(Clone, Copy)]
struct Place<'a> {
    cache: CacheView<'a>,
    block: usize,
    kv_head: usize,
    offset: usize,
}

/// # Safety
/// The place is this task's; the instruction set of `V` is present.
#[inline(always)]
unsafe fn append_floats<V: Vector>(key: &[f32], value: &[f32], place: Place<'_>) {
    let Place { cache, block, kv_head, offset } = place;
    let keys = cache.keys(block, kv_head, offset / KEY_LANES * KEY_LANES).cast::<u16>();
    let values = cache.values(block, kv_head, offset).cast::<u16>();
    let half = cache.shape().format == KvFormat::F16;
    for part in (0..key.len()).step_by(16) {
        let (mut key_bits, mut value_bits) = ([0u16; 16], [0u16; 16]);
        // SAFETY: 16 of `head_dim` elements, a multiple of 16; the slot is this task's.
        unsafe {
            if half {
                narrow::<V>(key.as_ptr().add(part)).store_f16(key_bits.as_mut_ptr());
                narrow::<V>(value.as_ptr().add(part)).store_f16(value_bits.as_mut_ptr());
            } else {
                key_bits = std::array::from_fn(|lane| brain_float(key[part + lane]));
                value_bits = std::array::from_fn(|lane| brain_float(value[part + lane]));
            }
            values.add(part).cast::<[u16; 16]>().write_unaligned(value_bits);
        }
        for (lane, bits) in key_bits.into_iter().enumerate() {
            let at = (part + lane) * KEY_LANES + offset % KEY_LANES;
            // SAFETY: inside the 16 positions' keys; this lane is this task's.
            unsafe { *keys.add(at) = bits };
        }
    }
}

/// Cut to the largest finite bf16 but for a NaN, which must stay visible: an infinity in the cache
/// would turn masked positions into NaN.
fn brain_float(value: f32) -> u16 {
    half::bf16::from_f32(value.clamp(-3.389_531_4e38, 3.389_531_4e38)).to_bits()
}

/// `C` is the type of codes in the cache.
///
/// # Safety
/// The place is this task's; the instruction set of `V` is present.
#[inline(always)]
unsafe fn append_codes<V: Vector, C: Code>(key: &[f32], value: &[f32], place: Place<'_>) {
    let Place { cache, block, kv_head, offset } = place;
    let CacheShape { head_dim, format, .. } = cache.shape();
    let (lane, odd) = (offset % KEY_LANES, offset % 2);
    let keys = cache.keys(block, kv_head, offset - lane).cast::<C>();
    let values = cache.values(block, kv_head, offset - odd).cast::<C>();
    // SAFETY: `head_dim` elements, a multiple of 16; the slot, its lane and scales are this task's.
    unsafe {
        let of_key = integers::scale::<V>(key.as_ptr(), head_dim, format.largest_code());
        let of_value = integers::scale::<V>(value.as_ptr(), head_dim, format.largest_code());
        // A value that is no number shows in the scores, which nothing rounds away.
        let visible = if of_value.scale.is_nan() { f32::NAN } else { of_key.scale };
        *cache.key_scales(block, kv_head, offset) = visible;
        *cache.value_scales(block, kv_head, offset) = of_value.scale;
        for part in (0..head_dim).step_by(16) {
            let (mut key_codes, mut value_codes) = ([0i16; 16], [0i16; 16]);
            let scaled = |from: &[f32], by: f32| V::load(from.as_ptr().add(part)).mul(V::splat(by));
            scaled(key, of_key.inverse).round_i16(key_codes.as_mut_ptr());
            scaled(value, of_value.inverse).round_i16(value_codes.as_mut_ptr());
            for d in 0..16 {
                let pair = (part + d) / 2 * KEY_LANES + lane;
                *keys.add(2 * pair + d % 2) = C::narrow(key_codes[d]);
                *values.add(2 * (part + d) + odd) = C::narrow(value_codes[d]);
            }
        }
    }
}

/// An integer of the cache.
trait Code: Copy {
    fn narrow(code: i16) -> Self;
}

impl Code for i16 {
    #[inline(always)]
    fn narrow(code: i16) -> Self {
        code
    }
}

impl Code for i8 {
    #[inline(always)]
    fn narrow(code: i16) -> Self {
        code as Self
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
