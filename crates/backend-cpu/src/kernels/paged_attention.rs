//! Causal attention over the paged cache, all query heads of a kv head at once.
//!
//! FlashAttention-2 (arXiv 2307.08691) with these departures, which make a query's arithmetic
//! depend on its own position and context only, never on batch, tile or threads:
//! 1. the context is cut at multiples of 128 positions; each chunk has a maximum, a sum and a
//!    weighted sum of its own, and chunks are merged in ascending order, whether one task does
//!    all of them or each is a task of its own;
//! 2. within a chunk, scores are sums over the head's elements in ascending order, values are
//!    added in ascending order of position; positions outside a query's reach weigh exactly 0,
//!    and adding 0 changes nothing.
//!
//! Caches of floats are computed here in f32, caches of integers in `integer_attention`.
//!
//! Decode moves context * kv_heads * `KvFormat::token_head_bytes`, each read once for the whole
//! group of heads. A prompt's queries share keys and values in tiles of up to 64 query rows.

use device::{HeapError, HeapPool};

use crate::arch::{Isa, Kernel};
use crate::integer_attention::{self, IntegerSpace};
use crate::kv_cache::{CacheView, KEY_LANES};
use crate::memory::LargeBuffer;
use crate::rows::Rows;
use crate::team::Worker;
use crate::vector::Vector;
use ops::kv_format::KvFormat;
use std::ops::Range;

/// Positions with a maximum and a sum of their own.
pub(crate) const CHUNK: usize = 128;
/// Query rows (tokens x heads of the group) of a tile: 64 x 128 scores are 32 KB.
const TILE_ROWS: usize = 64;
/// Tokens of a tile: with more, the masked corner costs more than sharing saves.
const TILE_TOKENS: usize = 16;

/// What a layer computes.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are `scale * q . k`.
    pub scale: f32,
    /// A query at p sees positions above `p - window`, itself included.
    pub window: Option<u32>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// Which tokens ask, and where their sequences' blocks are.
#[derive(Clone, Copy)]
pub struct AttentionRows<'a> {
    /// Per token: its sequence.
    pub sequences: &'a [u32],
    /// Per token: its position; it sees 0 to itself.
    pub positions: &'a [u32],
    /// All sequences' block tables, one after another.
    pub tables: &'a [u32],
    /// Where each sequence's table starts in `tables`, and the end: `[sequences + 1]`.
    pub table_starts: &'a [u32],
}

/// Consecutive positions of one sequence.
#[derive(Clone, Copy, Debug)]
struct Tile {
    token: usize,
    tokens: usize,
    position: usize,
    chunks: usize,
    /// Chunks of the tiles before it.
    chunks_before: usize,
    /// Where its partial results start: tokens times chunks of the tiles before it.
    partial: usize,
}

/// How a step's queries are cut into tiles and tasks; made once a step, used by every layer with
/// the same heads.
#[derive(Default)]
pub struct AttentionPlan {
    tiles: Vec<Tile>,
    /// Chunks of all tiles together; 0 unless chunks are tasks of their own.
    chunks: usize,
}

/// Work space of attention: per member, and the partial results of split contexts.
pub struct AttentionScratch {
    buffer: LargeBuffer,
    member_floats: usize,
    members: usize,
    partial_floats: usize,
}

impl AttentionPlan {
    /// With room for steps of so many tokens: no such step takes memory.
    pub fn with_room(tokens: usize) -> Self {
        // A tile has a token at least.
        Self { tiles: Vec::with_capacity(tokens), ..Self::default() }
    }

    /// Cuts the step's tokens. Allocates nothing once it has seen the largest step.
    ///
    /// # Panics
    /// If the arrays' lengths do not match.
    pub fn build(
        &mut self,
        rows: &AttentionRows<'_>,
        shape: &AttentionShape,
        scratch: &AttentionScratch,
    ) {
        let group = shape.heads / shape.kv_heads;
        assert_eq!(rows.sequences.len(), rows.positions.len(), "a position for each token");
        let limit = (TILE_ROWS / group).clamp(1, TILE_TOKENS);
        self.tiles.clear();
        for (token, (sequence, position)) in rows.sequences.iter().zip(rows.positions).enumerate() {
            let position = *position as usize;
            if let Some(tile) = self.tiles.last_mut() {
                let same = rows.sequences[tile.token] == *sequence;
                let next = tile.position + tile.tokens == position;
                if same && next && tile.tokens < limit {
                    tile.tokens += 1;
                    tile.chunks = position / CHUNK + 1;
                    continue;
                }
            }
            let chunks = position / CHUNK + 1;
            let (chunks_before, partial) = (0, 0);
            self.tiles.push(Tile { token, tokens: 1, position, chunks, chunks_before, partial });
        }
        self.split(shape, scratch);
    }

    /// Chunks become tasks where there would be too few tasks without.
    fn split(&mut self, shape: &AttentionShape, scratch: &AttentionScratch) {
        self.chunks = 0;
        let (mut partials, mut chunks_max) = (0, 0);
        for tile in &mut self.tiles {
            (tile.chunks_before, tile.partial) = (self.chunks, partials);
            self.chunks += tile.chunks;
            partials += tile.chunks * tile.tokens;
            chunks_max = chunks_max.max(tile.chunks);
        }
        let floats = partials * shape.heads * (shape.head_dim + 2);
        // Whole tiles are fair shares when the longest is small beside a member's part.
        let fair = chunks_max * 8 * scratch.members <= self.chunks * shape.kv_heads;
        if fair || chunks_max < 2 || floats > scratch.partial_floats {
            self.chunks = 0;
        }
    }
}

impl AttentionScratch {
    /// The memory it is made of.
    pub(crate) fn buffers(&self) -> [&LargeBuffer; 1] {
        [&self.buffer]
    }

    /// Work space for `members` threads. Split contexts need
    /// `context / 128 * heads * (head_dim + 2)` floats a sequence; room is made for a context of
    /// `context_max` positions (longer ones are not split, which only costs speed).
    ///
    /// # Errors
    /// When the system has no such memory.
    pub fn new(
        members: usize,
        shape: &AttentionShape,
        context_max: usize,
    ) -> std::io::Result<Self> {
        let buffer = LargeBuffer::zeroed(Self::bytes(members, shape, context_max))?;
        Ok(Self::of(buffer, members, shape, context_max))
    }

    /// The same out of a pool.
    ///
    /// # Errors
    /// When the pool has no room.
    pub fn carve(
        pool: &HeapPool,
        members: usize,
        shape: &AttentionShape,
        context_max: usize,
    ) -> Result<Self, HeapError> {
        let bytes = Self::bytes(members, shape, context_max);
        let buffer = LargeBuffer::carve(pool, "attention", bytes)?;
        Ok(Self::of(buffer, members, shape, context_max))
    }

    fn of(buffer: LargeBuffer, members: usize, shape: &AttentionShape, context_max: usize) -> Self {
        let (member_floats, partial_floats) = Self::floats(shape, context_max);
        Self { buffer, member_floats, members, partial_floats }
    }

    /// Bytes of a work space made by [`AttentionScratch::new`].
    pub fn bytes(members: usize, shape: &AttentionShape, context_max: usize) -> usize {
        let (member_floats, partial_floats) = Self::floats(shape, context_max);
        4 * (members * member_floats + partial_floats)
    }

    /// Of one member, and of the partial results that all share.
    fn floats(shape: &AttentionShape, context_max: usize) -> (usize, usize) {
        let rows = TILE_ROWS.max(shape.heads / shape.kv_heads);
        let member_floats = TileSpace::floats(rows, shape.head_dim).next_multiple_of(32);
        let chunks = context_max.div_ceil(CHUNK);
        // A tile's worth of tokens may be split: twice one token's need keeps small steps split.
        let partial_floats = 8 * chunks * shape.heads * (shape.head_dim + 2);
        (member_floats, partial_floats)
    }

    fn member(&self, index: usize) -> *mut f32 {
        assert!(index < self.members, "member {index} of {}", self.members);
        // SAFETY: the buffer starts with `members * member_floats` floats.
        unsafe { self.buffer.pointer().cast::<f32>().add(index * self.member_floats) }
    }

    fn partials(&self) -> *mut f32 {
        // SAFETY: the partial results follow the members' spaces.
        unsafe { self.buffer.pointer().cast::<f32>().add(self.members * self.member_floats) }
    }
}

/// One layer's attention.
#[derive(Clone, Copy)]
pub struct PagedAttention<'a> {
    pub shape: AttentionShape,
    /// `[heads]`: one more score a head, of a position without a value.
    pub sinks: Option<&'a [f32]>,
    /// `[tokens, heads * head_dim]`
    pub query: Rows<'a>,
    pub cache: CacheView<'a>,
    pub rows: AttentionRows<'a>,
    pub plan: &'a AttentionPlan,
    pub scratch: &'a AttentionScratch,
    /// `[tokens, heads * head_dim]`
    pub output: Rows<'a>,
}

/// Computes attention of every token; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the output or
/// the scratch or writes the queries or the cache meanwhile; `plan` was built for these rows and
/// this shape.
///
/// # Panics
/// If shapes do not match or a block table is too short.
pub unsafe fn paged_attention(worker: &Worker<'_>, isa: Isa, call: &PagedAttention<'_>) {
    call.check(worker.members());
    let kv_heads = call.shape.kv_heads;
    let member = worker.index();
    let tiles = call.plan.tiles.len();
    if call.plan.chunks == 0 {
        // The last tiles of a prompt see the most: they go first.
        worker.for_each(tiles * kv_heads, |task| {
            let tile = tiles - 1 - task / kv_heads;
            let work = Work { call, tile, kv_head: task % kv_heads, member };
            let space = work.space();
            // SAFETY: each (tile, kv head) belongs to one task; the rest is the caller's promise.
            unsafe {
                work.clear(space.merged);
                let chunks = work.first_chunk()..work.tile().chunks;
                for chunk in chunks.clone() {
                    let next = (chunk + 1 < chunks.end).then_some((work, chunk + 1));
                    let is_first = chunk == chunks.start;
                    isa.run(OneChunk { work, chunk, is_first, next, out: space.chunk });
                    isa.run(MergeChunk { work, chunk: space.chunk });
                }
                isa.run(FinishTile(work));
            }
        });
        return;
    }
    // Heads within a chunk and chunks of a tile follow each other: they do in memory too.
    let chunk_task = |task: usize| {
        let tile =
            call.plan.tiles.partition_point(|tile| tile.chunks_before <= task / kv_heads) - 1;
        let work = Work { call, tile, kv_head: task % kv_heads, member };
        (work, task / kv_heads - call.plan.tiles[tile].chunks_before)
    };
    let tasks = call.plan.chunks * kv_heads;
    worker.for_each_near(tasks, |task| {
        let (work, chunk) = chunk_task(task);
        if chunk >= work.first_chunk() {
            let next = (task + 1 < tasks).then(|| chunk_task(task + 1));
            let out = work.partial(chunk);
            // SAFETY: each (tile, chunk, kv head) belongs to one task.
            unsafe { isa.run(OneChunk { work, chunk, is_first: true, next, out }) };
        }
    });
    worker.for_each(tiles * kv_heads, |task| {
        let work = Work { call, tile: task / kv_heads, kv_head: task % kv_heads, member };
        // SAFETY: the chunks are complete since the phase before; each output belongs to one task.
        unsafe {
            work.clear(work.space().merged);
            for chunk in work.first_chunk()..work.tile().chunks {
                isa.run(MergeChunk { work, chunk: work.partial(chunk) });
            }
            isa.run(FinishTile(work));
        }
    });
}

impl PagedAttention<'_> {
    fn check(&self, members: usize) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads, {kv_heads} kv");
        let cache = self.cache.shape();
        assert_eq!((cache.kv_heads, cache.head_dim), (kv_heads, head_dim), "shape of the cache");
        let shape = (self.rows.positions.len(), heads * head_dim);
        assert_eq!((self.query.rows(), self.query.width()), shape, "shape of the queries");
        assert_eq!((self.output.rows(), self.output.width()), shape, "shape of the output");
        assert!(members <= self.scratch.members, "scratch for {} members", self.scratch.members);
        assert!(self.sinks.is_none_or(|sinks| sinks.len() == heads), "a sink for each head");
        let planned: usize = self.plan.tiles.iter().map(|tile| tile.tokens).sum();
        assert_eq!(planned, shape.0, "the plan belongs to these rows");
    }
}

/// A tile and a kv head, on one member.
#[derive(Clone, Copy)]
pub(crate) struct Work<'a> {
    pub(crate) call: &'a PagedAttention<'a>,
    tile: usize,
    pub(crate) kv_head: usize,
    member: usize,
}

struct OneChunk<'a> {
    work: Work<'a>,
    chunk: usize,
    /// Whether this member computed no chunk of this tile and head just before.
    is_first: bool,
    /// What this member most likely computes next.
    next: Option<(Work<'a>, usize)>,
    out: Partial,
}

struct MergeChunk<'a> {
    work: Work<'a>,
    chunk: Partial,
}

struct FinishTile<'a>(Work<'a>);

/// Maximum, sum and weighted sum of values of each row of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Partial {
    /// `[rows]`
    pub(crate) largest: *mut f32,
    /// `[rows]`
    pub(crate) sum: *mut f32,
    /// `[rows][head_dim]`
    pub(crate) values: *mut f32,
}

impl Partial {
    /// # Safety
    /// `rows * (head_dim + 2)` floats at `start`.
    unsafe fn at(start: *mut f32, rows: usize) -> Self {
        // SAFETY: the caller's promise.
        unsafe { Self { largest: start, sum: start.add(rows), values: start.add(2 * rows) } }
    }
}

/// A member's work space.
#[derive(Clone, Copy)]
struct TileSpace {
    /// 16 positions' keys or values as f32.
    block: *mut f32,
    /// `[rows][CHUNK]`
    scores: *mut f32,
    chunk: Partial,
    merged: Partial,
    integers: IntegerSpace,
}

impl TileSpace {
    const fn floats(rows: usize, head_dim: usize) -> usize {
        let floats = KEY_LANES * head_dim + rows * CHUNK + 2 * rows * (head_dim + 2);
        floats + IntegerSpace::floats(rows, head_dim)
    }

    /// # Safety
    /// `floats(rows, head_dim)` floats at `start`.
    unsafe fn at(start: *mut f32, rows: usize, head_dim: usize) -> Self {
        // SAFETY: the caller's promise; the parts lie one after another.
        unsafe {
            let scores = start.add(KEY_LANES * head_dim);
            let chunk = scores.add(rows * CHUNK);
            let merged = chunk.add(rows * (head_dim + 2));
            let integers = merged.add(rows * (head_dim + 2));
            Self {
                block: start,
                scores,
                chunk: Partial::at(chunk, rows),
                merged: Partial::at(merged, rows),
                integers: IntegerSpace::at(integers, rows, head_dim),
            }
        }
    }
}

impl Kernel for OneChunk<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { work, chunk, is_first, next, out } = self;
        let space = work.space();
        // SAFETY: the member's own space; `out` is this task's.
        unsafe {
            match work.call.cache.shape().format {
                KvFormat::F16 => work.chunk::<V, HALF>(chunk, space, out),
                KvFormat::Bf16 => work.chunk::<V, BRAIN>(chunk, space, out),
                KvFormat::Int16 | KvFormat::Int8 => {
                    let space = space.integers;
                    integer_attention::chunk::<V>(work, chunk, is_first, next, space, out);
                }
            }
        }
    }
}

impl Kernel for MergeChunk<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the member's own space; the chunk is complete.
        unsafe { self.work.merge::<V>(self.chunk, self.work.space().merged) };
    }
}

impl Kernel for FinishTile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: the member's own space; the output is this task's.
        unsafe { self.0.finish::<V>(self.0.space().merged) };
    }
}

/// Keys and values read as f32.
const WIDE: u8 = 0;
/// As f16.
const HALF: u8 = 1;
/// As bf16.
const BRAIN: u8 = 2;

/// # Safety
/// 16 elements of the form `FORM` at element `at` of `from`; the instruction set is present.
#[inline(always)]
unsafe fn load<V: Vector, const FORM: u8>(from: *const u16, at: usize) -> V {
    // SAFETY: the caller's promise.
    unsafe {
        match FORM {
            HALF => V::load_f16(from.add(at)),
            BRAIN => V::load_bf16(from.add(at)),
            _ => V::load(from.cast::<f32>().add(at)),
        }
    }
}

impl Work<'_> {
    #[inline(always)]
    fn tile(&self) -> Tile {
        self.call.plan.tiles[self.tile]
    }

    #[inline(always)]
    pub(crate) fn group(&self) -> usize {
        self.call.shape.heads / self.call.shape.kv_heads
    }

    #[inline(always)]
    pub(crate) fn rows(&self) -> usize {
        self.tile().tokens * self.group()
    }

    fn space(&self) -> TileSpace {
        let head_dim = self.call.shape.head_dim;
        let start = self.call.scratch.member(self.member);
        // SAFETY: a tile has at most as many rows as the member's space was made for.
        unsafe { TileSpace::at(start, self.rows(), head_dim) }
    }

    /// Where a chunk's result is kept for merging.
    fn partial(&self, chunk: usize) -> Partial {
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.call.shape;
        let within = (chunk * kv_heads + self.kv_head) * self.rows();
        let row = self.tile().partial * heads + within;
        // SAFETY: `AttentionPlan::split` checked that all partial results fit.
        unsafe {
            let start = self.call.scratch.partials().add(row * (head_dim + 2));
            Partial::at(start, self.rows())
        }
    }

    /// The first position a token of the tile sees.
    #[inline(always)]
    fn reach_start(&self, token: usize) -> usize {
        let position = self.tile().position + token;
        self.call.shape.window.map_or(0, |window| (position + 1).saturating_sub(window as usize))
    }

    fn first_chunk(&self) -> usize {
        self.reach_start(0) / CHUNK
    }

    /// The offsets in a chunk that some row of the tile sees, in whole vectors.
    #[inline(always)]
    pub(crate) fn span(&self, chunk: usize) -> Range<usize> {
        let tile = self.tile();
        let (start, end) = (chunk * CHUNK, tile.position + tile.tokens);
        let from = self.reach_start(0).saturating_sub(start) / KEY_LANES * KEY_LANES;
        from..(end - start).min(CHUNK).next_multiple_of(KEY_LANES)
    }

    /// The offsets in the chunk from `start` on that a row sees.
    #[inline(always)]
    pub(crate) fn seen(&self, row: usize, start: usize) -> Range<usize> {
        let token = row / self.group();
        let end = (self.tile().position + token + 1).saturating_sub(start).min(CHUNK);
        self.reach_start(token).saturating_sub(start).min(end)..end
    }

    /// The rows' element 0 of row `row`: token-major, then the heads of the group.
    #[inline(always)]
    pub(crate) fn query(&self, row: usize) -> *const f32 {
        let head = self.kv_head * self.group() + row % self.group();
        let token = self.tile().token + row / self.group();
        // SAFETY: the head lies inside the token's row.
        unsafe { self.call.query.pointer(token).add(head * self.call.shape.head_dim) }
    }

    /// # Safety
    /// `partial` holds this tile's rows and is not shared.
    unsafe fn clear(&self, partial: Partial) {
        for row in 0..self.rows() {
            // SAFETY: the caller's promise.
            unsafe {
                *partial.largest.add(row) = f32::NEG_INFINITY;
                *partial.sum.add(row) = 0.0;
            }
        }
        let floats = self.rows() * self.call.shape.head_dim;
        // SAFETY: the caller's promise.
        unsafe { std::ptr::write_bytes(partial.values, 0, floats) };
    }

    /// Maximum, sum and weighted values over the positions of one chunk.
    ///
    /// # Safety
    /// `space` and `out` are this member's; the instruction set of `V` is present.
    #[inline(always)]
    unsafe fn chunk<V: Vector, const FORM: u8>(
        &self,
        chunk: usize,
        space: TileSpace,
        out: Partial,
    ) {
        let start = chunk * CHUNK;
        let Range { start: from, end: to } = self.span(chunk);
        // SAFETY: the caller's promise; positions of the tile have blocks in the table.
        unsafe {
            for offset in (from..to).step_by(KEY_LANES) {
                self.scores::<V, FORM>(self.place(start + offset), offset, space);
            }
            for row in 0..self.rows() {
                self.weigh::<V>(row, start, from..to, space.scores.add(row * CHUNK), out);
            }
            let floats = self.rows() * self.call.shape.head_dim;
            std::ptr::write_bytes(out.values, 0, floats);
            for offset in (from..to).step_by(KEY_LANES) {
                self.values::<V, FORM>(self.place(start + offset), offset, space, out.values);
            }
        }
    }

    /// The block of a position and the offset in it.
    #[inline(always)]
    pub(crate) fn place(&self, position: usize) -> (usize, usize) {
        let rows = &self.call.rows;
        let sequence = rows.sequences[self.tile().token] as usize;
        let block_tokens = self.call.cache.shape().block_tokens;
        let table = rows.table_starts[sequence] as usize..rows.table_starts[sequence + 1] as usize;
        (rows.tables[table][position / block_tokens] as usize, position % block_tokens)
    }

    /// Scores of all rows against 16 positions.
    ///
    /// # Safety
    /// As `chunk`.
    #[inline(always)]
    unsafe fn scores<V: Vector, const FORM: u8>(
        &self,
        place: (usize, usize),
        offset: usize,
        space: TileSpace,
    ) {
        let rows = self.rows();
        let head_dim = self.call.shape.head_dim;
        let keys = self.call.cache.keys(place.0, self.kv_head, place.1).cast_const().cast();
        // SAFETY: 16 positions' keys are `head_dim * 16` elements; the space is this member's.
        unsafe {
            let wide = space.block;
            if rows > 4 {
                for d in 0..head_dim {
                    load::<V, FORM>(keys, KEY_LANES * d).store(wide.add(KEY_LANES * d));
                }
            }
            let mut row = 0;
            while row < rows {
                let scores = space.scores.add(row * CHUNK + offset);
                macro_rules! rows {
                    ($count:literal) => {{
                        if rows > 4 || $count > 4 {
                            self.score_rows::<V, $count, WIDE>(row, wide.cast(), scores);
                        } else {
                            self.score_rows::<V, $count, FORM>(row, keys, scores);
                        }
                        row += $count;
                    }};
                }
                match rows - row {
                    _ if V::TOKENS == 1 => rows!(1),
                    1 | 2 => rows!(1),
                    3 => rows!(3),
                    4..=7 => rows!(4),
                    _ if V::TOKENS < 8 => rows!(4),
                    _ => rows!(8),
                }
            }
        }
    }

    /// # Safety
    /// As `chunk`; `keys` are of the form `FORM`.
    #[inline(always)]
    unsafe fn score_rows<V: Vector, const R: usize, const FORM: u8>(
        &self,
        row: usize,
        keys: *const u16,
        scores: *mut f32,
    ) {
        let mut queries = [self.query(row); R];
        for (r, query) in queries.iter_mut().enumerate() {
            *query = self.query(row + r);
        }
        // SAFETY: `head_dim` vectors of keys, `head_dim` elements a query, 16 scores a row.
        unsafe {
            let mut sums = [V::splat(0.0); R];
            for d in 0..self.call.shape.head_dim {
                let key = load::<V, FORM>(keys, KEY_LANES * d);
                for r in 0..R {
                    sums[r] = key.mul_add(V::splat(*queries[r].add(d)), sums[r]);
                }
            }
            let scale = V::splat(self.call.shape.scale);
            for r in 0..R {
                let mut score = sums[r].mul(scale);
                if let Some(cap) = self.call.shape.soft_cap {
                    score = score.soft_cap(cap);
                }
                score.store(scores.add(r * CHUNK));
            }
        }
    }

    /// Turns a row's scores into weights `e^(score - maximum)`, 0 outside the row's reach.
    ///
    /// # Safety
    /// As `chunk`; `scores` are the row's.
    #[inline(always)]
    unsafe fn weigh<V: Vector>(
        &self,
        row: usize,
        start: usize,
        span: Range<usize>,
        scores: *mut f32,
        out: Partial,
    ) {
        let Range { start: begin, end } = self.seen(row, start);
        // SAFETY: offsets stay inside the row's scores.
        unsafe {
            for offset in (span.start..begin.min(span.end)).chain(end.max(span.start)..span.end) {
                *scores.add(offset) = f32::NEG_INFINITY;
            }
            let mut largest = V::splat(f32::NEG_INFINITY);
            for offset in span.clone().step_by(KEY_LANES) {
                largest = largest.max(V::load(scores.add(offset)));
            }
            let largest = largest.reduce_max();
            // A row that sees nothing here must not compute infinity - infinity.
            let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            let mut sum = V::splat(0.0);
            for offset in span.step_by(KEY_LANES) {
                let weight = V::load(scores.add(offset)).sub(V::splat(shift)).exp();
                weight.store(scores.add(offset));
                sum = sum.add(weight);
            }
            *out.largest.add(row) = largest;
            *out.sum.add(row) = sum.reduce_add();
        }
    }

    /// Adds 16 positions' weighted values to all rows.
    ///
    /// # Safety
    /// As `chunk`.
    #[inline(always)]
    unsafe fn values<V: Vector, const FORM: u8>(
        &self,
        place: (usize, usize),
        offset: usize,
        space: TileSpace,
        out: *mut f32,
    ) {
        let rows = self.rows();
        let head_dim = self.call.shape.head_dim;
        let values = self.call.cache.values(place.0, self.kv_head, place.1).cast_const().cast();
        // SAFETY: 16 positions' values are `16 * head_dim` elements; the space is this member's.
        unsafe {
            let wide = space.block;
            if rows > 4 {
                for at in (0..KEY_LANES * head_dim).step_by(16) {
                    load::<V, FORM>(values, at).store(wide.add(at));
                }
            }
            let mut row = 0;
            while row < rows {
                let weights = space.scores.add(row * CHUNK + offset).cast_const();
                let out = out.add(row * head_dim);
                macro_rules! rows {
                    ($count:literal) => {{
                        if rows > 4 {
                            self.value_rows::<V, $count, WIDE>(weights, wide.cast(), out);
                        } else {
                            self.value_rows::<V, $count, FORM>(weights, values, out);
                        }
                        row += $count;
                    }};
                }
                match rows - row {
                    _ if V::TOKENS == 1 => rows!(1),
                    1 | 2 => rows!(1),
                    3 => rows!(3),
                    _ => rows!(4),
                }
            }
        }
    }

    /// # Safety
    /// As `chunk`; `values` are of the form `FORM`.
    #[inline(always)]
    unsafe fn value_rows<V: Vector, const R: usize, const FORM: u8>(
        &self,
        weights: *const f32,
        values: *const u16,
        out: *mut f32,
    ) {
        let head_dim = self.call.shape.head_dim;
        let mut d = 0;
        // SAFETY: elements `d..d + 16 * parts` are inside the head.
        unsafe {
            while d < head_dim {
                if head_dim - d >= 64 {
                    self.value_part::<V, R, 4, FORM>(weights, values, out, d);
                    d += 64;
                } else {
                    self.value_part::<V, R, 1, FORM>(weights, values, out, d);
                    d += 16;
                }
            }
        }
    }

    /// # Safety
    /// As `value_rows`, for `16 * PARTS` elements from `d` on.
    #[inline(always)]
    unsafe fn value_part<V: Vector, const R: usize, const PARTS: usize, const FORM: u8>(
        &self,
        weights: *const f32,
        values: *const u16,
        out: *mut f32,
        d: usize,
    ) {
        let head_dim = self.call.shape.head_dim;
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[V::splat(0.0); PARTS]; R];
            for r in 0..R {
                for part in 0..PARTS {
                    sums[r][part] = V::load(out.add(r * head_dim + d + 16 * part));
                }
            }
            for position in 0..KEY_LANES {
                let mut value = [V::splat(0.0); PARTS];
                for (part, value) in value.iter_mut().enumerate() {
                    let at = position * head_dim + d + 16 * part;
                    *value = load::<V, FORM>(values, at);
                }
                for r in 0..R {
                    let weight = V::splat(*weights.add(r * CHUNK + position));
                    for part in 0..PARTS {
                        sums[r][part] = value[part].mul_add(weight, sums[r][part]);
                    }
                }
            }
            for r in 0..R {
                for part in 0..PARTS {
                    sums[r][part].store(out.add(r * head_dim + d + 16 * part));
                }
            }
        }
    }

    /// Adds a chunk to what was merged before.
    ///
    /// # Safety
    /// Both hold this tile's rows; `merged` is this member's; the instruction set is present.
    #[inline(always)]
    unsafe fn merge<V: Vector>(&self, chunk: Partial, merged: Partial) {
        let head_dim = self.call.shape.head_dim;
        // SAFETY: the caller's promise.
        unsafe {
            for row in 0..self.rows() {
                let (before, new) = (*merged.largest.add(row), *chunk.largest.add(row));
                if new == f32::NEG_INFINITY {
                    continue;
                }
                let largest = if before > new { before } else { new };
                // One of the two factors is e^0.
                let (one, smaller) = (V::splat(1.0), V::splat(before.min(new) - largest).exp());
                let (old_factor, new_factor) =
                    if before > new { (one, smaller) } else { (smaller, one) };
                let sum = V::splat(*chunk.sum.add(row)).mul(new_factor);
                let sum = V::splat(*merged.sum.add(row)).mul_add(old_factor, sum);
                let mut lanes = [0.0; 16];
                sum.store(lanes.as_mut_ptr());
                *merged.sum.add(row) = lanes[0];
                *merged.largest.add(row) = largest;
                for d in (0..head_dim).step_by(16) {
                    let at = row * head_dim + d;
                    let new = V::load(chunk.values.add(at)).mul(new_factor);
                    let before = V::load(merged.values.add(at));
                    before.mul_add(old_factor, new).store(merged.values.add(at));
                }
            }
        }
    }

    /// Writes `values / sum` to the output.
    ///
    /// # Safety
    /// As `merge`; the output rows of this tile and kv head are this task's.
    #[inline(always)]
    unsafe fn finish<V: Vector>(&self, merged: Partial) {
        let head_dim = self.call.shape.head_dim;
        for row in 0..self.rows() {
            let head = self.kv_head * self.group() + row % self.group();
            let token = self.tile().token + row / self.group();
            // SAFETY: the head lies inside the token's output row.
            unsafe {
                let output = self.call.output.pointer(token).add(head * head_dim);
                let mut sum = V::splat(*merged.sum.add(row));
                if let Some(sinks) = self.call.sinks {
                    let above = sinks[head] - *merged.largest.add(row);
                    sum = sum.add(V::splat(above).exp());
                }
                for d in (0..head_dim).step_by(16) {
                    V::load(merged.values.add(row * head_dim + d)).div(sum).store(output.add(d));
                }
            }
        }
    }
}
