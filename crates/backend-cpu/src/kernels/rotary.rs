//! Rotary positions, then keys and values into the paged cache.
//!
//! Su et al. 2021, <https://arxiv.org/abs/2104.09864>: pair i of a head turns by the angle
//! `position * frequency[i]`. Pairs are (i, i + half) or (2 i, 2 i + 1). An optional RMS norm per
//! head comes first (Qwen3, Gemma 3). A token's result depends on the token alone.
//! The cache's layout is written in `kv_cache`.

use crate::arch::{Isa, Kernel};
use crate::integers;
use crate::kernels::rms_norm::sum_of_squares;
use crate::kv_cache::{CacheShape, CacheView, KEY_LANES};
use crate::rows::Rows;
use crate::team::Worker;
use crate::vector::Vector;
use ops::kv_format::KvFormat;
use ops::rotary::QueryGrowth;
use std::ops::Range;

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
    /// How queries grow, and each token's position.
    pub growth: Option<(QueryGrowth, &'a [u32])>,
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
    worker.for_each_near(positions.len(), |token| {
        // SAFETY: the rows are this task's.
        let cos = unsafe { table.cos.row_mut(token) };
        // SAFETY: as above.
        let sin = unsafe { table.sin.row_mut(token) };
        for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(frequencies) {
            let angle = f64::from(positions[token] as f32 * frequency);
            *cos = angle.cos() as f32 * factor;
            *sin = angle.sin() as f32 * factor;
        }
    });
}

/// Norms, turns and appends; done when the next phase begins.
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
    let step = (tokens / (4 * worker.members())).clamp(1, KEY_LANES);
    worker.for_each_near(tokens.div_ceil(step), |task| {
        let tokens = call.task_start(task * step)..call.task_start((task + 1) * step);
        // SAFETY: each token belongs to one task; the rest is the caller's promise.
        unsafe { isa.run(SomeTokens { call, tokens }) };
    });
}

impl RotaryAppend<'_> {
    /// The first token from `token` on whose keys share no cache line with those of the token
    /// before it: two members would take the line from each other at every position.
    fn task_start(&self, token: usize) -> usize {
        let slots = self.slots;
        let shares = |token: usize| {
            !(slots[token] as usize).is_multiple_of(KEY_LANES)
                && slots[token - 1].wrapping_add(1) == slots[token]
        };
        let mut start = token.min(slots.len());
        while start > 0 && start < slots.len() && shares(start) {
            start += 1;
        }
        start
    }

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
        if let Some((_, positions)) = self.growth {
            assert_eq!(positions.len(), tokens, "a position for each token");
        }
        if let Some(norm) = self.head_norm {
            assert_eq!((norm.query.len(), norm.key.len()), (head_dim, head_dim), "head norms");
        }
    }
}

struct SomeTokens<'a> {
    call: &'a RotaryAppend<'a>,
    tokens: Range<usize>,
}

impl Kernel for SomeTokens<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { call, tokens } = self;
        let mut token = tokens.start;
        while token < tokens.end {
            let slot = call.slots[token];
            let is_pair = slot.is_multiple_of(2)
                && token + 1 < tokens.end
                && call.slots[token + 1] == slot + 1
                && call.cache.shape().format.has_scales();
            // SAFETY: the tokens and their slots are this task's; the instruction set is present.
            unsafe {
                if is_pair {
                    append::<V, 2>(call, token);
                } else {
                    append::<V, 1>(call, token);
                }
            }
            token += 1 + usize::from(is_pair);
        }
    }
}

/// `T` tokens: one, or two whose codes lie side by side in the cache.
///
/// # Safety
/// The tokens' rows and slots belong to the caller; the instruction set of `V` is present.
#[inline(always)]
unsafe fn append<V: Vector, const T: usize>(call: &RotaryAppend<'_>, token: usize) {
    let CacheShape { block_tokens, head_dim, kv_heads, format } = call.cache.shape();
    for token in token..token + T {
        // SAFETY: the token's rows, of whole heads, belong to the caller.
        unsafe {
            turn::<V>(call, call.query, call.head_norm.map(|norm| norm.query), token);
            if let Some((growth, positions)) = call.growth {
                grow::<V>(call.query, token, growth.at(positions[token]));
            }
            turn::<V>(call, call.key, call.head_norm.map(|norm| norm.key), token);
            if format == KvFormat::Int8 {
                for kv_head in 0..kv_heads {
                    let head = call.key.pointer(token).add(kv_head * head_dim);
                    integers::spread::<V>(head, head_dim);
                }
            }
        }
    }
    let slot = call.slots[token] as usize;
    let (block, offset) = (slot / block_tokens, slot % block_tokens);
    for kv_head in 0..kv_heads {
        let place = Place { cache: call.cache, block, kv_head, offset };
        // SAFETY: rows of `kv_heads` heads that nobody writes now; the slots are the caller's.
        unsafe {
            let head = |rows: Rows<'_>, token: usize| rows.pointer(token).add(kv_head * head_dim);
            let mut keys = [std::ptr::null(); T];
            let mut values = keys;
            for t in 0..T {
                keys[t] = head(call.key, token + t).cast_const();
                values[t] = head(call.value, token + t).cast_const();
            }
            match format {
                KvFormat::F16 | KvFormat::Bf16 => {
                    let slice = |from| std::slice::from_raw_parts(from, head_dim);
                    append_floats::<V>(slice(keys[0]), slice(values[0]), place);
                }
                KvFormat::Int16 => append_codes::<V, i16, T>(keys, values, place),
                KvFormat::Int8 => append_codes::<V, i8, T>(keys, values, place),
            }
        }
    }
}

/// The first token's place in the cache.
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
/// `head_dim` keys and values of each token; the places of `T` tokens from `place` on are this
/// task's; of two, the first has an even offset; the instruction set of `V` is present.
#[inline(always)]
unsafe fn append_codes<V: Vector, C: Code, const T: usize>(
    key: [*const f32; T],
    value: [*const f32; T],
    place: Place<'_>,
) {
    let Place { cache, block, kv_head, offset } = place;
    let CacheShape { head_dim, format, .. } = cache.shape();
    let (lane, odd) = (offset % KEY_LANES, offset % 2);
    let keys = cache.keys(block, kv_head, offset - lane).cast::<C>();
    let values = cache.values(block, kv_head, offset - odd).cast::<C>();
    // SAFETY: `head_dim` elements, a multiple of 16; slots, their lanes and scales are this task's.
    unsafe {
        let (mut of_key, mut of_value) = ([0.0f32; T], [0.0f32; T]);
        for t in 0..T {
            let key = integers::scale::<V>(key[t], head_dim, format.largest_code());
            let value = integers::scale::<V>(value[t], head_dim, format.largest_code());
            // A value that is no number shows in the scores, which nothing rounds away.
            let visible = if value.scale.is_nan() { f32::NAN } else { key.scale };
            *cache.key_scales(block, kv_head, offset + t) = visible;
            *cache.value_scales(block, kv_head, offset + t) = value.scale;
            (of_key[t], of_value[t]) = (key.inverse, value.inverse);
        }
        for part in (0..head_dim).step_by(16) {
            let (mut key_codes, mut value_codes) = ([[0i16; 16]; T], [[0i16; 16]; T]);
            for t in 0..T {
                let key = V::load(key[t].add(part)).mul(V::splat(of_key[t]));
                let value = V::load(value[t].add(part)).mul(V::splat(of_value[t]));
                key.round_i16(key_codes[t].as_mut_ptr());
                value.round_i16(value_codes[t].as_mut_ptr());
            }
            for pair in 0..8 {
                let to = keys.add(2 * ((part / 2 + pair) * KEY_LANES + lane));
                let codes: [[C; 2]; T] = std::array::from_fn(|t| {
                    [C::narrow(key_codes[t][2 * pair]), C::narrow(key_codes[t][2 * pair + 1])]
                });
                to.cast::<[[C; 2]; T]>().write_unaligned(codes);
            }
            for d in 0..16 {
                let codes: [C; T] = std::array::from_fn(|t| C::narrow(value_codes[t][d]));
                let to = values.add(2 * (part + d) + odd);
                to.cast::<[C; T]>().write_unaligned(codes);
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

/// Norms and turns every head of a token's row.
///
/// Loops count and address by hand: an iterator that is not inlined would be compiled without the
/// set's features and called for every pair.
///
/// # Safety
/// The row is the caller's, of whole heads, and nobody writes the table; the instruction set of
/// `V` is present.
#[inline(always)]
unsafe fn turn<V: Vector>(
    call: &RotaryAppend<'_>,
    rows: Rows<'_>,
    weight: Option<&[f32]>,
    token: usize,
) {
    let head_dim = call.cache.shape().head_dim;
    let (row, width) = (rows.pointer(token), rows.width());
    if let (Some(norm), Some(weight)) = (call.head_norm, weight) {
        for head in (0..width).step_by(head_dim) {
            // SAFETY: a head of the row, a multiple of 16 elements; as many weights.
            unsafe {
                let head = row.add(head);
                let squares = sum_of_squares::<V>(head, head_dim);
                let factor = V::splat(1.0 / (squares / head_dim as f32 + norm.epsilon).sqrt());
                for at in (0..head_dim).step_by(16) {
                    let weight = V::load(weight.as_ptr().add(at));
                    V::load(head.add(at)).mul(factor).mul(weight).store(head.add(at));
                }
            }
        }
    }
    let Some(table) = call.table else { return };
    let half = table.cos.width();
    let (cos, sin) = (table.cos.pointer(token), table.sin.pointer(token));
    // Elements whose turns fill whole vectors; the rest goes one by one.
    let (step, apart) = match table.style {
        RotaryStyle::HalfSplit => (16, half),
        RotaryStyle::AdjacentPair => (8, 1),
    };
    let whole = half / step * step;
    // SAFETY: `2 * half` elements of every head, `half` turns.
    unsafe {
        for at in (0..whole).step_by(step) {
            match table.style {
                RotaryStyle::HalfSplit => {
                    let (cos, sin) = (V::load(cos.add(at)), V::load(sin.add(at)));
                    for head in (0..width).step_by(head_dim) {
                        let first = row.add(head + at);
                        let second = first.add(half);
                        let (a, b) = (V::load(first), V::load(second));
                        a.mul(cos).sub(b.mul(sin)).store(first);
                        b.mul(cos).add(a.mul(sin)).store(second);
                    }
                }
                RotaryStyle::AdjacentPair => {
                    let cos = each_twice::<V>(cos.add(at), 1.0);
                    let sin = each_twice::<V>(sin.add(at), -1.0);
                    for head in (0..width).step_by(head_dim) {
                        let pairs = row.add(head + 2 * at);
                        let x = V::load(pairs);
                        x.mul(cos).add(swapped(x).mul(sin)).store(pairs);
                    }
                }
            }
        }
        for at in whole..half {
            let (cos, sin) = (*cos.add(at), *sin.add(at));
            for head in (0..width).step_by(head_dim) {
                let first = row.add(head + if apart == 1 { 2 * at } else { at });
                let second = first.add(apart);
                let (a, b) = (*first, *second);
                *first = a * cos - b * sin;
                *second = b * cos + a * sin;
            }
        }
    }
}

/// Multiplies a token's row.
///
/// # Safety
/// The row is the caller's, of a multiple of 16 elements; the instruction set of `V` is present.
#[inline(always)]
unsafe fn grow<V: Vector>(rows: Rows<'_>, token: usize, factor: f32) {
    let row = rows.pointer(token);
    for at in (0..rows.width()).step_by(16) {
        // SAFETY: the caller's promise.
        unsafe { V::load(row.add(at)).mul(V::splat(factor)).store(row.add(at)) };
    }
}

/// 8 values, each in two lanes, the first of them times `sign`.
///
/// # Safety
/// 8 values at `from`; the instruction set of `V` is present.
#[inline(always)]
unsafe fn each_twice<V: Vector>(from: *const f32, sign: f32) -> V {
    let mut lanes = [0.0f32; 16];
    // SAFETY: the caller's promise.
    unsafe {
        for pair in 0..8 {
            lanes[2 * pair] = *from.add(pair) * sign;
            lanes[2 * pair + 1] = *from.add(pair);
        }
        V::load(lanes.as_ptr())
    }
}

/// Each lane's neighbor in its pair.
///
/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn swapped<V: Vector>(x: V) -> V {
    let (mut lanes, mut partners) = ([0.0f32; 16], [0.0f32; 16]);
    // SAFETY: 16 lanes each.
    unsafe {
        x.store(lanes.as_mut_ptr());
        for lane in 0..16 {
            partners[lane] = lanes[lane ^ 1];
        }
        V::load(partners.as_ptr())
    }
}
