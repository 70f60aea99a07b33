//! How is a chunk of attention computed in integers? Exact sums of pairs, floats in between.
//!
//! Scores: queries become codes once a tile, so a score is an exact integer times the two scales.
//! Weights `e^(score - maximum)` times the values' scales become codes again, their largest one
//! the largest factor, and their sums with the values' codes are exact. A row's codes depend on
//! its own query, its reach and the cache alone. Rounding happens at the codes only: 13 bits for
//! 16-bit caches, 16 bits for the factors of 8-bit ones.
//!
//! One instruction multiplies two elements in each of 16 lanes: twice the rate of fused f32.

use crate::integers;
use crate::kernels::paged_attention::{CHUNK, Partial, Work};
use crate::kv_cache::KEY_LANES;
use crate::vector::Vector;
use ops::kv_format::KvFormat;
use std::ops::Range;

/// Groups of 16 positions in a chunk.
const GROUPS: usize = CHUNK / KEY_LANES;
/// Elements whose products are summed in 32 bits: see `KvFormat::largest_factor`.
const EXACT: usize = 128;

/// With fewer rows the cache streams from memory faster than pages' borders let the processor
/// foresee; with more its parts are used many times.
const FEW_ROWS: usize = 16;
/// Groups of keys that are asked for ahead: 6 KB of 16-bit codes of 64 elements.
const KEYS_AHEAD: usize = 3;

/// A member's work space.
#[derive(Clone, Copy)]
pub(crate) struct IntegerSpace {
    /// `[head_dim]`: a query that is being turned.
    query: *mut f32,
    /// `[rows][CHUNK]`
    scores: *mut f32,
    /// `[rows]`: a query's scale times the scale of scores.
    query_scales: *mut f32,
    /// `[rows]`: codes of weighted values times this are values.
    weight_scales: *mut f32,
    /// `[rows][CHUNK]`
    weights: *mut i16,
    /// `[rows][head_dim]`
    queries: *mut i16,
}

impl IntegerSpace {
    pub(crate) const fn floats(rows: usize, head_dim: usize) -> usize {
        head_dim + rows * CHUNK + 2 * rows + rows * CHUNK / 2 + rows * head_dim / 2
    }

    /// # Safety
    /// `floats(rows, head_dim)` floats at `start`.
    pub(crate) unsafe fn at(start: *mut f32, rows: usize, head_dim: usize) -> Self {
        // SAFETY: the caller's promise; the parts lie one after another.
        unsafe {
            let scores = start.add(head_dim);
            let query_scales = scores.add(rows * CHUNK);
            let weights = query_scales.add(2 * rows).cast::<i16>();
            Self {
                query: start,
                scores,
                query_scales,
                weight_scales: query_scales.add(rows),
                weights,
                queries: weights.add(rows * CHUNK),
            }
        }
    }
}

/// Keys, values and their scales of 16 positions.
#[derive(Clone, Copy)]
struct Group {
    keys: *const u8,
    values: *const u8,
    key_scales: *const f32,
    value_scales: *const f32,
}

/// A tile's chunk: groups `from..to` are those that some row sees.
struct Chunk<'a> {
    work: Work<'a>,
    space: IntegerSpace,
    out: Partial,
    groups: [Group; GROUPS],
    from: usize,
    to: usize,
    start: usize,
    format: KvFormat,
    /// The format's largest.
    factor: f32,
    /// Keys that are likely read next, if memory is the limit.
    next_keys: [*const u8; GROUPS],
    /// Whether the tile's queries are not yet codes.
    is_first: bool,
}

/// Maximum, sum and weighted values over the positions of one chunk. Unless it `is_first`, the
/// call before it in this space was of the same tile and head.
///
/// # Safety
/// `space` and `out` are this member's; the cache holds integers and the sequence's blocks; the
/// instruction set of `V` is present.
#[inline(always)]
pub(crate) unsafe fn chunk<V: Vector>(
    work: Work<'_>,
    chunk: usize,
    is_first: bool,
    next: Option<(Work<'_>, usize)>,
    space: IntegerSpace,
    out: Partial,
) {
    let span = work.span(chunk);
    let (from, to) = (span.start / KEY_LANES, span.end / KEY_LANES);
    let none = std::ptr::null();
    let mut next_keys = [none; GROUPS];
    if let (Some((next, chunk)), true) = (next, work.rows() <= FEW_ROWS) {
        let span = next.span(chunk);
        for at in span.start / KEY_LANES..span.end / KEY_LANES {
            let (block, offset) = next.place(chunk * CHUNK + at * KEY_LANES);
            next_keys[at] = next.call.cache.keys(block, next.kv_head, offset);
        }
    }
    let empty =
        Group { keys: none, values: none, key_scales: none.cast(), value_scales: none.cast() };
    let mut groups = [empty; GROUPS];
    let (start, cache, kv_head) = (chunk * CHUNK, &work.call.cache, work.kv_head);
    for (group, at) in groups[from..to].iter_mut().zip(from..) {
        let (block, offset) = work.place(start + at * KEY_LANES);
        *group = Group {
            keys: cache.keys(block, kv_head, offset),
            values: cache.values(block, kv_head, offset),
            key_scales: cache.key_scales(block, kv_head, offset),
            value_scales: cache.value_scales(block, kv_head, offset),
        };
    }
    let format = cache.shape().format;
    let factor = format.largest_factor();
    let chunk =
        Chunk { work, space, out, groups, from, to, start, format, factor, next_keys, is_first };
    // SAFETY: the caller's promise.
    unsafe {
        match format {
            KvFormat::Int8 => chunk.run::<V, 1>(),
            _ => chunk.run::<V, 2>(),
        }
    }
}

/// # Safety
/// A vector of pairs of `BYTES`-byte codes at `from`; the instruction set of `V` is present.
#[inline(always)]
unsafe fn pairs<V: Vector, const BYTES: usize>(from: *const u8) -> V::Pairs {
    // SAFETY: the caller's promise.
    unsafe { if BYTES == 1 { V::pairs_8(from) } else { V::pairs_16(from) } }
}

/// Makes the call for every row below `$rows`, for up to `$most` consecutive ones at once.
macro_rules! by_rows {
    ($rows:expr, |$row:ident, $count:ident| $call:expr, $most:expr) => {{
        let rows = $rows;
        let mut $row = 0;
        while $row < rows {
            macro_rules! take {
                ($n:literal) => {{
                    const $count: usize = $n;
                    $call;
                    $row += $n;
                }};
            }
            match (rows - $row).min($most) {
                1 => take!(1),
                2 => take!(2),
                3 => take!(3),
                4 | 5 => take!(4),
                6 | 7 => take!(6),
                _ => take!(8),
            }
        }
    }};
}

impl Chunk<'_> {
    /// # Safety
    /// As `chunk`, for codes of `BYTES` bytes.
    #[inline(always)]
    unsafe fn run<V: Vector, const BYTES: usize>(&self) {
        let rows = self.work.rows();
        // What registers hold: 32 of 16 lanes, 32 of 4 or 16 of 8; the slow twin takes one row.
        let (most, wide) = match V::TOKENS {
            1 => (1, false),
            2..8 => (3, false),
            _ => (8, true),
        };
        // SAFETY: the caller's promise; rows and groups are those of the tile.
        unsafe {
            if self.is_first {
                for row in 0..rows {
                    self.quantize_query::<V>(row);
                }
            }
            by_rows!(
                rows,
                |row, R| match (wide, R) {
                    (true, ..=6) => self.score_rows::<V, BYTES, R, 4>(row),
                    (true, _) => self.score_rows::<V, BYTES, R, 2>(row),
                    _ => self.score_rows::<V, BYTES, R, 1>(row),
                },
                most
            );
            self.weigh_all::<V>();
            let head_dim = self.work.call.shape.head_dim;
            let mut d = 0;
            while d < head_dim {
                if wide && head_dim - d >= 64 {
                    by_rows!(rows, |row, R| self.values::<V, BYTES, R, 4>(row, d), 6);
                    d += 64;
                } else if most > 1 && head_dim - d >= 32 {
                    by_rows!(rows, |row, R| self.values::<V, BYTES, R, 2>(row, d), 3);
                    d += 32;
                } else {
                    by_rows!(rows, |row, R| self.values::<V, BYTES, R, 1>(row, d), most);
                    d += 16;
                }
            }
        }
    }

    /// Asks for what comes after this group: keys some groups on, and this group's values.
    ///
    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn prefetch<V: Vector, const BYTES: usize>(&self, group: usize) {
        let bytes = KEY_LANES * self.work.call.shape.head_dim * BYTES;
        let ahead = if group == self.from { group + 1..group + KEYS_AHEAD } else { 0..0 };
        for keys in ahead.chain([group + KEYS_AHEAD]).take_while(|&keys| keys < self.to) {
            for at in (0..bytes).step_by(64) {
                // SAFETY: any address may be asked for.
                unsafe { V::prefetch(self.groups[keys].keys.wrapping_add(at)) };
            }
        }
        for at in (0..bytes).step_by(64) {
            // SAFETY: as above.
            unsafe { V::prefetch(self.groups[group].values.wrapping_add(at)) };
        }
    }

    /// # Safety
    /// As `chunk`.
    #[inline(always)]
    unsafe fn quantize_query<V: Vector>(&self, row: usize) {
        let shape = &self.work.call.shape;
        let head_dim = shape.head_dim;
        let mut query = self.work.query(row);
        let mut scale = shape.scale;
        // SAFETY: the row's query and its codes have `head_dim` elements each.
        unsafe {
            if self.format == KvFormat::Int8 {
                std::ptr::copy_nonoverlapping(query, self.space.query, head_dim);
                scale /= integers::spread::<V>(self.space.query, head_dim) as f32;
                query = self.space.query;
            }
            let found = integers::scale::<V>(query, head_dim, self.factor);
            *self.space.query_scales.add(row) = found.scale * scale;
            let codes = self.space.queries.add(row * head_dim);
            for d in (0..head_dim).step_by(16) {
                V::load(query.add(d)).mul(V::splat(found.inverse)).round_i16(codes.add(d));
            }
        }
    }

    /// Scores of `R` rows, `G` groups of positions at a time.
    ///
    /// # Safety
    /// As `chunk`; rows `row..row + R` are the tile's.
    #[inline(always)]
    unsafe fn score_rows<V: Vector, const BYTES: usize, const R: usize, const G: usize>(
        &self,
        row: usize,
    ) {
        let asks = row == 0 && self.work.rows() <= FEW_ROWS;
        let mut group = self.from;
        // SAFETY: the caller's promise.
        unsafe {
            while group < self.to {
                let count = if self.to - group >= G { G } else { 1 };
                for asked in group..group + count {
                    if asks {
                        self.prefetch::<V, BYTES>(asked);
                    }
                }
                if count == G {
                    self.scores::<V, BYTES, R, G>(row, group);
                } else {
                    self.scores::<V, BYTES, R, 1>(row, group);
                }
                group += count;
            }
        }
    }

    /// Scores of `R` rows against `G` times 16 positions.
    ///
    /// # Safety
    /// As `chunk`; rows `row..row + R` are the tile's, groups `group..group + G` are seen.
    #[inline(always)]
    unsafe fn scores<V: Vector, const BYTES: usize, const R: usize, const G: usize>(
        &self,
        row: usize,
        group: usize,
    ) {
        let shape = &self.work.call.shape;
        let head_dim = shape.head_dim;
        let mut groups = [self.groups[group]; G];
        groups.copy_from_slice(&self.groups[group..group + G]);
        // SAFETY: `head_dim / 2` vectors of keys, `head_dim` codes a query, 16 scores a row.
        unsafe {
            let queries = self.space.queries.add(row * head_dim).cast_const();
            let mut totals = [[V::splat(0.0); G]; R];
            for first in (0..head_dim).step_by(EXACT) {
                let mut sums = [[V::no_sums(); G]; R];
                for d in (first..head_dim.min(first + EXACT)).step_by(2) {
                    let at = d * KEY_LANES * BYTES;
                    let mut keys = [pairs::<V, BYTES>(groups[0].keys.add(at)); G];
                    for g in 1..G {
                        keys[g] = pairs::<V, BYTES>(groups[g].keys.add(at));
                    }
                    V::add_tile(&mut sums, &keys, queries.add(d), head_dim);
                }
                for r in 0..R {
                    for g in 0..G {
                        totals[r][g] = totals[r][g].add(V::sums_to_float(sums[r][g]));
                    }
                }
            }
            // Not by value: such an iterator keeps its array in memory, and loads then wait for
            // stores of another size.
            for g in 0..G {
                let key_scales = V::load(groups[g].key_scales);
                for r in 0..R {
                    let query_scale = V::splat(*self.space.query_scales.add(row + r));
                    let score = totals[r][g].mul(key_scales).mul(query_scale);
                    let score = match shape.soft_cap {
                        Some(cap) => score.soft_cap(cap),
                        None => score,
                    };
                    score.store(self.space.scores.add((row + r) * CHUNK + (group + g) * KEY_LANES));
                }
            }
        }
    }

    /// Turns scores into codes of weights. One thing for all rows, then the next, for within a row
    /// each waits for the one before.
    ///
    /// # Safety
    /// As `chunk`.
    #[inline(always)]
    unsafe fn weigh_all<V: Vector>(&self) {
        let (rows, group) = (self.work.rows(), self.work.group());
        // SAFETY: the caller's promise; all rows are the tile's.
        unsafe {
            for first in (0..rows).step_by(group) {
                let seen = self.work.seen(first, self.start);
                for row in first..first + group {
                    self.find_largest::<V>(row, &seen);
                }
            }
            for first in (0..rows).step_by(group) {
                let is_whole = self.work.seen(first, self.start) == (0..CHUNK);
                for row in first..first + group {
                    match is_whole {
                        true => self.weigh::<V, true>(row),
                        false => self.weigh::<V, false>(row),
                    }
                }
            }
            for row in 0..rows {
                self.round_weights::<V>(row);
            }
        }
    }

    /// Hides what a row does not see, and finds its largest score.
    ///
    /// # Safety
    /// As `chunk`; the row is the tile's and sees `seen`.
    #[inline(always)]
    unsafe fn find_largest<V: Vector>(&self, row: usize, seen: &Range<usize>) {
        let span = self.from * KEY_LANES..self.to * KEY_LANES;
        // SAFETY: offsets stay inside the row's scores.
        unsafe {
            let scores = self.space.scores.add(row * CHUNK);
            let before = span.start..seen.start.min(span.end);
            for offset in before.chain(seen.end.max(span.start)..span.end) {
                *scores.add(offset) = f32::NEG_INFINITY;
            }
            let mut largest = V::splat(f32::NEG_INFINITY);
            for offset in span.step_by(KEY_LANES) {
                largest = largest.max(V::load(scores.add(offset)));
            }
            *self.out.largest.add(row) = largest.reduce_max();
        }
    }

    /// Turns a row's scores into `e^(score - largest)` times the values' scales, and finds the
    /// largest of them. A row that sees the `WHOLE` chunk has nothing to hide, and needs two thirds
    /// of the work.
    ///
    /// # Safety
    /// As `chunk`; the row is the tile's and its largest score is found.
    #[inline(always)]
    unsafe fn weigh<V: Vector, const WHOLE: bool>(&self, row: usize) {
        let groups = if WHOLE { 0..GROUPS } else { self.from..self.to };
        // SAFETY: offsets stay inside the row's scores.
        unsafe {
            let scores = self.space.scores.add(row * CHUNK);
            let largest = *self.out.largest.add(row);
            // A row that sees nothing here must not compute infinity - infinity.
            let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            let (mut sum, mut largest_weight) = (V::splat(0.0), V::splat(0.0));
            for group in groups {
                let at = scores.add(group * KEY_LANES);
                let below = V::load(at).sub(V::splat(shift));
                let scale = V::load(self.groups[group].value_scales);
                let weight = if WHOLE {
                    let weight = below.exp_bounded();
                    sum = sum.add(weight);
                    weight.mul(scale)
                } else {
                    let weight = below.exp_negative();
                    sum = sum.add(weight);
                    // An unseen position's scale may be anything.
                    weight.mul(scale).zero_below(below, V::splat(V::LOWEST))
                };
                largest_weight = weight.max(largest_weight);
                weight.store(at);
            }
            *self.out.sum.add(row) = sum.reduce_add();
            *self.space.weight_scales.add(row) = largest_weight.reduce_max();
        }
    }

    /// Turns a row's weights into codes, and the largest weight into their scale.
    ///
    /// # Safety
    /// As `chunk`; the row is the tile's and has its weights.
    #[inline(always)]
    unsafe fn round_weights<V: Vector>(&self, row: usize) {
        // SAFETY: offsets stay inside the row's weights and codes.
        unsafe {
            let weights = self.space.scores.add(row * CHUNK).cast_const();
            let scale = self.space.weight_scales.add(row);
            let (largest, factor) = (*scale, self.factor);
            let inverse = if largest > 0.0 { factor / largest } else { 0.0 };
            *scale = largest / factor;
            let codes = self.space.weights.add(row * CHUNK);
            for at in (self.from * KEY_LANES..self.to * KEY_LANES).step_by(KEY_LANES) {
                V::load(weights.add(at)).mul(V::splat(inverse)).round_i16(codes.add(at));
            }
        }
    }

    /// Weighted values of `R` rows, `16 * PARTS` elements from `d` on.
    ///
    /// # Safety
    /// As `chunk`; rows `row..row + R` are the tile's.
    #[inline(always)]
    unsafe fn values<V: Vector, const BYTES: usize, const R: usize, const PARTS: usize>(
        &self,
        row: usize,
        d: usize,
    ) {
        let head_dim = self.work.call.shape.head_dim;
        // SAFETY: 16 positions' values are 8 rows of `head_dim` pairs; codes and output are rows'.
        unsafe {
            let weights = self.space.weights.add(row * CHUNK).cast_const();
            let mut sums = [[V::no_sums(); PARTS]; R];
            // Of two positions' values, and of 16 positions' keys the share that goes with them.
            let bytes = 2 * head_dim * BYTES;
            for group in self.from..self.to {
                let mut values = self.groups[group].values.add(2 * d * BYTES);
                let mut weights = weights.add(group * KEY_LANES);
                let mut next_keys = self.next_keys[group];
                let asks = row == 0 && d == 0 && !next_keys.is_null();
                for _ in 0..KEY_LANES / 2 {
                    if asks {
                        for at in (0..bytes).step_by(64) {
                            V::prefetch(next_keys.wrapping_add(at));
                        }
                        next_keys = next_keys.wrapping_add(bytes);
                    }
                    let mut parts = [pairs::<V, BYTES>(values); PARTS];
                    for part in 1..PARTS {
                        parts[part] = pairs::<V, BYTES>(values.add(32 * part * BYTES));
                    }
                    V::add_tile(&mut sums, &parts, weights, CHUNK);
                    (values, weights) = (values.wrapping_add(bytes), weights.wrapping_add(2));
                }
            }
            for r in 0..R {
                let scale = V::splat(*self.space.weight_scales.add(row + r));
                for part in 0..PARTS {
                    let at = self.out.values.add((row + r) * head_dim + d + 16 * part);
                    V::sums_to_float(sums[r][part]).mul(scale).store(at);
                }
            }
        }
    }
}
