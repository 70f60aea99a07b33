//! Linear layers: `output[t, r] = sum over k of weight[r, k] * x[t, k]`, weights in 4 or 8 bits
//! (or plain floats), x as integers X per group of 32 (or f32): 8 bits, and as many below them in
//! groups of outliers (see `rows`).
//!
//! For a group g of 32 columns the integer `S = sum of code * X` is exact. In f32, for groups in
//! ascending order, high parts and low parts in a sum each, which are added in the end, and with
//! the same operations on every instruction set:
//!
//! - `acc = fma(bias, sum of x, acc)`, formats with a bias per group only;
//! - `acc = fma(scale, unit * f32(S), acc)`, S less `point * sum(X)` for the other formats.
//!
//! A result depends on its weights row and its own activations, and on nothing else: neither on the
//! batch, nor the tile, nor the threads, nor the instruction set.
//!
//! One token reads each weight byte once (memory-bound). A tile of 8 tokens costs 8 `vpdpbusd` a
//! token for 16 x 32 products (16 where it has low parts) and 3 float operations, which share its
//! port: 73 % of the peak is the roof. Each unpacked group of weights serves the whole tile.
//! Of more tokens, AVX-512 unpacks weights once for all tiles: `unpacked`.

use crate::arch::{Isa, Kernel};
use crate::packed::{
    AffineLayout, BLOCK_ROWS, CODES4_BYTES, Dense, Layout, PackedMatrix, RowBlocks, ScaleWidth,
    Spread,
};
use crate::rows::{GroupScale, PartPlaces, QuantizedView, Rows, TILE_MAX, TileSlice};
use crate::team::Worker;
use crate::unpacked::{BLOCKS_MAX, Shared, unpacks};
use crate::vector::Vector;
pub use ops::gated_linear::Activation;
use ops::gated_linear::{CLAMPED_MOST, CLAMPED_STEEPNESS};
use ops::quant_format::Zero;
use std::mem::MaybeUninit;
use std::ops::Range;

/// What the tokens bring: the form each matrix `wants_quantized` or not.
#[derive(Clone, Copy)]
pub struct LinearInput<'a> {
    /// `[tokens, cols]`, needed by block formats.
    pub quantized: Option<QuantizedView<'a>>,
    /// `[tokens, cols]`, needed by plain float formats.
    pub rows: Option<Rows<'a>>,
}

/// One matrix of a group that reads the same input.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub matrix: &'a PackedMatrix,
    /// `[rows of the matrix]`
    pub bias: Option<&'a [f32]>,
    /// `[tokens, rows of the matrix]`
    pub output: Rows<'a>,
    pub finish: Finish<'a>,
}

/// What becomes of a product.
#[derive(Clone, Copy)]
pub enum Finish<'a> {
    Store,
    /// `output += product` (the residual).
    Add,
    /// `output = activation(product) * (up x)`: `matrix` is the gate.
    Gated {
        up: &'a PackedMatrix,
        up_bias: Option<&'a [f32]>,
        activation: Activation,
    },
}

/// Multiplies the input by every matrix of `linears`; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the outputs or
/// writes the input meanwhile; outputs overlap neither each other nor the input.
///
/// # Panics
/// If shapes do not match or the form of input that a matrix wants is missing.
pub unsafe fn linear(
    worker: &Worker<'_>,
    isa: Isa,
    input: &LinearInput<'_>,
    linears: &[Linear<'_>],
) {
    let tokens = linears.first().map_or(0, |linear| linear.output.rows());
    for linear in linears {
        linear.check(input, tokens);
    }
    let plan = TaskPlan::new(isa, linears, tokens, worker.members());
    worker.for_each_near(plan.count(), |task| {
        let (tokens, blocks) = plan.task(task);
        let mut first = 0;
        for linear in linears {
            let range = first..first + linear.matrix.blocks();
            first = range.end;
            let from = blocks.start.max(range.start);
            let to = blocks.end.min(range.end);
            if from < to {
                let blocks = from - range.start..to - range.start;
                let near = near_tokens(isa, linear.matrix, tokens.len());
                for first in tokens.clone().step_by(near) {
                    let tokens = first..tokens.end.min(first + near);
                    // SAFETY: tasks partition tokens and blocks, so nobody else writes this part
                    // of the output; the rest is the caller's promise.
                    unsafe { linear.run(isa, input, tokens, blocks.clone()) };
                }
            }
        }
    });
}

/// Of a task's tokens those that its blocks pass by together: their integers and scales, 1.7 bytes
/// a value, stay in the first-level cache (40 of 48 KB). Not if that is less than two tiles:
/// weights then cost more. Unpacked weights stay there instead.
pub(crate) fn near_tokens(isa: Isa, matrix: &PackedMatrix, tokens: usize) -> usize {
    let fitting = (36 << 10) * 2 / (3 * matrix.cols().max(1)) / TILE_MAX * TILE_MAX;
    let unpacks = matrix.wants_quantized() && unpacks(isa, tokens);
    if fitting < 2 * TILE_MAX || unpacks { WAITING_MAX } else { fitting }
}

/// Tokens x row blocks, cut into tasks. All linears' blocks are numbered in one list.
struct TaskPlan {
    tokens: usize,
    token_step: usize,
    blocks: usize,
    block_step: usize,
}

impl TaskPlan {
    fn new(isa: Isa, linears: &[Linear<'_>], tokens: usize, members: usize) -> Self {
        let blocks: usize = linears.iter().map(|linear| linear.matrix.blocks()).sum();
        let cols = linears.iter().map(|linear| linear.matrix.cols()).max().unwrap_or(0);
        let unpacks = unpacks(isa, tokens);
        // Activations of a task, 1.7 bytes a value, should stay in a second-level cache of 1 MB
        // beside weights; a quarter of it will do where a tile reads weights as they are.
        let cache_bytes = if unpacks { 768 << 10 } else { 256 << 10 };
        let fitting = cache_bytes * 3 / (5 * cols.max(1)) / TILE_MAX * TILE_MAX;
        // With many tokens for each member, a member keeps to its own: it then reads all weights,
        // but no activations that another wrote.
        let own_min = if unpacks { 64 } else { 16 };
        let own = if tokens >= own_min * members { tokens.div_ceil(members) } else { tokens };
        let token_step = fitting.min(own.next_multiple_of(TILE_MAX)).clamp(TILE_MAX, WAITING_MAX);
        // 4 tasks a member even out what other programs take away.
        let wanted = (4 * members).div_ceil(tokens.div_ceil(token_step).max(1));
        let mut block_step = (blocks / wanted.max(1)).clamp(1, 16);
        if unpacks && block_step > BLOCKS_MAX {
            block_step -= block_step % BLOCKS_MAX;
        }
        Self { tokens, token_step, blocks, block_step }
    }

    fn count(&self) -> usize {
        self.tokens.div_ceil(self.token_step) * self.blocks.div_ceil(self.block_step)
    }

    /// The tokens and the blocks of a task; all blocks of one run of tokens come first.
    fn task(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let block_tasks = self.blocks.div_ceil(self.block_step);
        let token = task / block_tasks * self.token_step;
        let block = task % block_tasks * self.block_step;
        let tokens = token..self.tokens.min(token + self.token_step);
        (tokens, block..self.blocks.min(block + self.block_step))
    }
}

impl Linear<'_> {
    pub(crate) fn check(&self, input: &LinearInput<'_>, tokens: usize) {
        let (rows, cols) = (self.matrix.rows(), self.matrix.cols());
        let shape = (self.output.rows(), self.output.width());
        assert_eq!(shape, (tokens, rows), "output of {rows} rows");
        assert!(self.bias.is_none_or(|bias| bias.len() == rows), "a bias for {rows} rows");
        let up = match self.finish {
            Finish::Gated { up, up_bias, .. } => {
                assert_eq!((up.rows(), up.cols()), (rows, cols), "gate and up have one shape");
                assert!(up_bias.is_none_or(|bias| bias.len() == rows), "a bias for {rows} rows");
                up
            }
            Finish::Store | Finish::Add => self.matrix,
        };
        for matrix in [self.matrix, up] {
            let given = if matrix.wants_quantized() {
                input.quantized.map(|view| (view.rows(), view.width()))
            } else {
                input.rows.map(|rows| (rows.rows(), rows.width()))
            };
            assert_eq!(given, Some((tokens, cols)), "input in the form the matrix wants");
        }
    }

    /// # Safety
    /// As `linear`, for this part of the output.
    pub(crate) unsafe fn run(
        &self,
        isa: Isa,
        input: &LinearInput<'_>,
        tokens: Range<usize>,
        blocks: Range<usize>,
    ) {
        let (first, second) = match self.finish {
            Finish::Store => (Sink::Store, None),
            Finish::Add => (Sink::Add, None),
            Finish::Gated { up, up_bias, activation } => {
                (Sink::Store, Some((up, up_bias, Sink::Gate(activation))))
            }
        };
        let part = Part { input, output: self.output, bias: self.bias, tokens, blocks };
        // SAFETY: the caller's promise.
        unsafe { part.run(isa, self.matrix, first) };
        if let Some((up, bias, sink)) = second {
            let part = Part { bias, ..part };
            // SAFETY: the caller's promise.
            unsafe { part.run(isa, up, sink) };
        }
    }
}

#[derive(Clone, Copy)]
enum Sink {
    Store,
    Add,
    /// The output holds the gate's product; make it activation(gate) * this product.
    Gate(Activation),
}

/// A task's share of one linear.
struct Part<'a> {
    input: &'a LinearInput<'a>,
    output: Rows<'a>,
    bias: Option<&'a [f32]>,
    tokens: Range<usize>,
    blocks: Range<usize>,
}

/// Products wait here for their finish: 128 vectors are 8 KB, a quarter of the first-level cache.
pub(crate) const WAITING_MAX: usize = 128;

/// `[block][token]` of 16 products.
type Waiting = [MaybeUninit<[f32; BLOCK_ROWS]>; BLOCKS_MAX * WAITING_MAX];

impl Part<'_> {
    /// # Safety
    /// As `linear`, for this part of the output.
    unsafe fn run(&self, isa: Isa, matrix: &PackedMatrix, sink: Sink) {
        let mut waiting = [const { MaybeUninit::uninit() }; BLOCKS_MAX * WAITING_MAX];
        let step = (WAITING_MAX / self.tokens.len()).max(1).next_multiple_of(BLOCKS_MAX);
        let step = step.min(matrix.blocks_at_once());
        for first in self.blocks.clone().step_by(step) {
            let blocks = first..self.blocks.end.min(first + step);
            let finish = |products: *const f32, tokens: Range<usize>, blocks: Range<usize>| {
                let finish = FinishPart { part: self, first, tokens, blocks, sink, products };
                // SAFETY: the caller's promise.
                unsafe { isa.run(finish) };
            };
            let rest = matrix.with_blocks(blocks.clone(), |panels| {
                // SAFETY: the caller's promise.
                unsafe { self.products(isa, panels, blocks.clone(), &mut waiting, &finish) }
            });
            finish(waiting.as_ptr().cast(), rest..self.tokens.end, blocks);
        }
    }

    /// Returns the first token that is not finished.
    ///
    /// # Safety
    /// As `linear`.
    unsafe fn products(
        &self,
        isa: Isa,
        panels: RowBlocks<'_>,
        blocks: Range<usize>,
        waiting: &mut Waiting,
        finish: &FinishTile<'_>,
    ) -> usize {
        let tokens = self.tokens.clone();
        let (unpacks, output) = (unpacks(isa, tokens.len()), self.output);
        macro_rules! affine {
            ($layout:expr, $(($bits:literal, $point:literal, $half:literal)),*) => {{
                let layout: AffineLayout = $layout;
                let view = self.input.quantized.expect("invariant: checked by Linear::check");
                let point = matches!(layout.zero, Zero::Point(_));
                let half = layout.spread == Spread::Half16;
                match (layout.bits, point, half) {
                    $(($bits, $point, $half) => {
                        let kernel = AffinePart::<$bits, $point, $half> {
                            panels, layout, view, unpacks, output, tokens, blocks, waiting, finish
                        };
                        // SAFETY: the caller's promise.
                        unsafe { isa.run(kernel) }
                    })*
                    _ => unreachable!("invariant: no format has such a layout"),
                }
            }};
        }
        match panels.layout {
            Layout::Affine(layout) => affine!(
                layout,
                (4, false, false),
                (4, true, false),
                (5, false, false),
                (5, true, false),
                (5, true, true),
                (8, false, false),
                (8, true, false),
                (8, true, true),
                (4, false, true),
                (4, true, true),
                (6, true, true)
            ),
            Layout::Dense(dense) => {
                let rows = self.input.rows.expect("invariant: checked by Linear::check");
                let first = tokens.start;
                let kernel = DensePart { panels, dense, rows, tokens, blocks, waiting };
                // SAFETY: the caller's promise.
                unsafe { isa.run(kernel) };
                first
            }
        }
    }
}

/// Finishes some tokens' products with some blocks, which wait at a pointer: `[block][token]` of
/// the part's.
pub(crate) type FinishTile<'a> = dyn Fn(*const f32, Range<usize>, Range<usize>) + 'a;

/// Writes what waits to the output.
struct FinishPart<'a> {
    part: &'a Part<'a>,
    /// The block whose products come first.
    first: usize,
    tokens: Range<usize>,
    blocks: Range<usize>,
    sink: Sink,
    /// Those of `part.tokens` with the first block, then with the next.
    products: *const f32,
}

impl Kernel for FinishPart<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Part { output, bias, tokens: ref all, .. } = *self.part;
        for block in self.blocks {
            let row = block * BLOCK_ROWS;
            let rows = (output.width() - row).min(BLOCK_ROWS);
            let mut bias_lanes = [0.0; BLOCK_ROWS];
            if let Some(bias) = bias {
                bias_lanes[..rows].copy_from_slice(&bias[row..row + rows]);
            }
            for token in self.tokens.clone() {
                let at = (block - self.first) * all.len() + token - all.start;
                // SAFETY: 16 lanes, which `products` wrote for these blocks and tokens.
                let mut product = unsafe { V::load(self.products.add(BLOCK_ROWS * at)) };
                if bias.is_some() {
                    // SAFETY: 16 lanes.
                    product = unsafe { product.add(V::load(bias_lanes.as_ptr())) };
                }
                // SAFETY: the block begins inside the row, with `rows` values that belong to this
                // task.
                unsafe {
                    let output = output.pointer(token).add(row);
                    if rows == BLOCK_ROWS {
                        put(product, output, self.sink);
                    } else {
                        let mut ragged = [0.0f32; BLOCK_ROWS];
                        std::ptr::copy_nonoverlapping(output, ragged.as_mut_ptr(), rows);
                        put(product, ragged.as_mut_ptr(), self.sink);
                        std::ptr::copy_nonoverlapping(ragged.as_ptr(), output, rows);
                    }
                }
            }
        }
    }
}

/// # Safety
/// 16 values at `output`, not shared; the instruction set of `V` is present.
#[inline(always)]
unsafe fn put<V: Vector>(product: V, output: *mut f32, sink: Sink) {
    // SAFETY: the caller's promise.
    unsafe {
        match sink {
            Sink::Store => product.store(output),
            Sink::Add => V::load(output).add(product).store(output),
            Sink::Gate(activation) => {
                join(V::load(output), product, activation).store(output);
            }
        }
    }
}

/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
pub(crate) unsafe fn join<V: Vector>(x: V, up: V, activation: Activation) -> V {
    // SAFETY: the caller's promise; no memory is touched.
    unsafe {
        match activation {
            Activation::Silu => x.mul(x.sigmoid()).mul(up),
            Activation::GeluTanh => {
                // 0.5 (1 + tanh u) = sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3).
                let cubic = x.mul(x).mul_add(V::splat(0.044_715), V::splat(1.0));
                let twice = V::splat(1.595_769_2).mul(x).mul(cubic);
                x.mul(twice.sigmoid()).mul(up)
            }
            Activation::ClampedSilu => {
                // In this order a NaN passes through.
                let most = V::splat(CLAMPED_MOST);
                let (x, up) = (most.min(x), most.min(V::splat(-CLAMPED_MOST).max(up)));
                let sigmoid = x.mul(V::splat(CLAMPED_STEEPNESS)).sigmoid();
                x.mul(sigmoid).mul(up.add(V::splat(1.0)))
            }
        }
    }
}

struct AffinePart<'a, const BITS: u32, const POINT: bool, const HALF: bool> {
    panels: RowBlocks<'a>,
    layout: AffineLayout,
    view: QuantizedView<'a>,
    tokens: Range<usize>,
    blocks: Range<usize>,
    unpacks: bool,
    output: Rows<'a>,
    waiting: &'a mut Waiting,
    finish: &'a FinishTile<'a>,
}

impl<const BITS: u32, const POINT: bool, const HALF: bool> Kernel
    for AffinePart<'_, BITS, POINT, HALF>
{
    /// The first token that is not finished.
    type Output = usize;

    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> usize {
        let point = match self.layout.zero {
            Zero::Point(point) => i32::from(point),
            Zero::PerGroup => 0,
        };
        let first_panel = Panel {
            first: true,
            start: std::ptr::null(),
            groups: self.view.groups(),
            group_bytes: self.layout.group_bytes(),
            codes_bytes: self.layout.codes_bytes(),
            scale: self.layout.scale,
            point,
        };
        let panel = |block| Panel { start: self.panels.block(block).as_ptr(), ..first_panel };
        let mut rest = self.tokens.start;
        if self.unpacks {
            let shared = Shared {
                view: self.view,
                tokens: self.tokens.clone(),
                products: self.waiting.as_mut_ptr().cast(),
                output: self.output,
                finish: self.finish,
            };
            // SAFETY: panels are whole row blocks, there is room for the products of each; the
            // instruction set is the caller's promise.
            rest = unsafe { shared.run::<V, BITS, POINT, HALF>(panel, self.blocks.clone()) };
        }
        for (index, block) in self.blocks.enumerate() {
            let mut panel = panel(block);
            let mut token = rest;
            while token < self.tokens.end {
                let slice = self.view.slice(token, V::TOKENS);
                let at = index * self.tokens.len() + token - self.tokens.start;
                macro_rules! pass {
                    ($width:literal) => {
                        // SAFETY: the panel is a whole row block, the slice has this width; the
                        // instruction set is the caller's promise.
                        unsafe {
                            let products = panel.products::<V, BITS, POINT, HALF, $width>(slice);
                            for (product, waiting) in products.iter().zip(&mut self.waiting[at..]) {
                                product.store(waiting.as_mut_ptr().cast());
                            }
                        }
                    };
                }
                // The constant lets the compiler drop the widths this set never uses.
                if V::TOKENS >= 8 && slice.width == 8 {
                    pass!(8);
                } else if V::TOKENS >= 4 && slice.width == 4 {
                    pass!(4);
                } else if V::TOKENS >= 2 && slice.width == 2 {
                    pass!(2);
                } else {
                    pass!(1);
                }
                token += slice.width;
                panel.first = false;
            }
        }
        rest
    }
}

/// How far ahead weights are asked for: at 60 GB/s a core 130 ns, the latency of memory. On Zen 5
/// one token's linears on one thread take 2.96 ms with 2 KB, 2.74 with 4, 2.40 with 8 and with 16.
/// Several row blocks side by side were slower at every distance (3.0 to 5.5 ms): each is a short
/// stream that the hardware has to find anew.
const PREFETCH_BYTES: usize = 8 << 10;

/// Sums of the low parts of `T` tokens, in memory: which of them there are is known at run time
/// only.
struct Lows<const T: usize> {
    lanes: [MaybeUninit<[f32; BLOCK_ROWS]>; T],
    /// Whether there are any: else nothing is in the lanes.
    are_any: bool,
}

/// One row block of an affine matrix.
#[derive(Clone, Copy)]
pub(crate) struct Panel {
    start: *const u8,
    /// Whether this is the first tile to read it: the others find it in the cache.
    first: bool,
    pub(crate) groups: usize,
    pub(crate) group_bytes: usize,
    codes_bytes: usize,
    scale: ScaleWidth,
    pub(crate) point: i32,
}

impl Panel {
    /// High parts are added group by group, low parts likewise, and then both: few groups have any.
    ///
    /// # Safety
    /// The panel is a whole row block with this layout; `slice` has `T` tokens and as many groups;
    /// the instruction set of `V` is present.
    #[inline(always)]
    unsafe fn products<
        V: Vector,
        const BITS: u32,
        const POINT: bool,
        const HALF: bool,
        const T: usize,
    >(
        &self,
        slice: TileSlice,
    ) -> [V; T] {
        let tile = slice.places;
        // SAFETY: all addresses stay inside the panel and the tile (prefetches may leave them).
        unsafe {
            let mut products = [V::splat(0.0); T];
            let mut lows =
                Lows::<T> { lanes: [const { MaybeUninit::uninit() }; T], are_any: false };
            for group in 0..self.groups {
                let from = self.group(group);
                if self.first {
                    self.prefetch::<V, BITS>(from);
                }
                let weights = Self::unpack::<V, BITS>(from);
                let at = group * tile.step;
                self.add::<V, BITS, POINT, HALF, T>(
                    from,
                    &weights,
                    tile.high.at(at),
                    &mut products,
                );
                let marks = tile.outliers.add(at).cast::<[u8; T]>().read();
                if marks != [0; T] {
                    self.add_low::<V, BITS, POINT, HALF, T>(
                        from,
                        &weights,
                        marks,
                        tile.low.at(at),
                        &mut lows,
                    );
                }
            }
            if lows.are_any {
                for t in 0..T {
                    products[t] = products[t].add(V::load(lows.lanes[t].as_ptr().cast()));
                }
            }
            products
        }
    }

    /// Adds the low parts of those tokens of a group that have any.
    ///
    /// # Safety
    /// As `products`; `from` is a group of the panel, `weights` its codes, `low` the tile's parts.
    #[inline(always)]
    unsafe fn add_low<
        V: Vector,
        const BITS: u32,
        const POINT: bool,
        const HALF: bool,
        const T: usize,
    >(
        &self,
        from: *const u8,
        weights: &V::Codes,
        marks: [u8; T],
        low: PartPlaces,
        lows: &mut Lows<T>,
    ) {
        // SAFETY: lanes are stored before they are loaded; the rest is the caller's promise.
        unsafe {
            if !lows.are_any {
                for lanes in &mut lows.lanes {
                    V::splat(0.0).store(lanes.as_mut_ptr().cast());
                }
                lows.are_any = true;
            }
            for t in 0..T {
                if marks[t] != 0 {
                    let lanes = lows.lanes[t].as_mut_ptr().cast();
                    let mut one = [V::load(lanes)];
                    self.add::<V, BITS, POINT, HALF, 1>(from, weights, low.at(t), &mut one);
                    one[0].store(lanes);
                }
            }
        }
    }

    #[inline(always)]
    pub(crate) fn group(&self, group: usize) -> *const u8 {
        self.start.wrapping_add(group * self.group_bytes)
    }

    /// # Safety
    /// A group of the panel at `from`; the instruction set of `V` is present.
    #[inline(always)]
    pub(crate) unsafe fn unpack<V: Vector, const BITS: u32>(from: *const u8) -> V::Codes {
        // SAFETY: the caller's promise.
        unsafe {
            match BITS {
                4 => V::unpack4(from),
                5 => V::add_planes::<1>(V::unpack4(from), from.add(CODES4_BYTES)),
                6 => V::add_planes::<2>(V::unpack4(from), from.add(CODES4_BYTES)),
                _ => V::unpack8(from),
            }
        }
    }

    /// Asks for what the loop reads `PREFETCH_BYTES` from here: the hardware's own prefetch stops
    /// at each 4 KB.
    ///
    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn prefetch<V: Vector, const BITS: u32>(&self, from: *const u8) {
        let lines = match BITS {
            4 => 5,
            5 => 6,
            6 => 8,
            _ => 9,
        };
        for line in 0..lines {
            // SAFETY: a prefetch may name any address.
            unsafe { V::prefetch(from.wrapping_add(PREFETCH_BYTES + 64 * line)) };
        }
    }

    /// Adds the products of a group, of `T` tokens' parts.
    ///
    /// # Safety
    /// As `products`; `from` is a group of the panel, `weights` its codes.
    #[inline(always)]
    unsafe fn add<
        V: Vector,
        const BITS: u32,
        const POINT: bool,
        const HALF: bool,
        const T: usize,
    >(
        &self,
        from: *const u8,
        weights: &V::Codes,
        x: PartPlaces,
        products: &mut [V; T],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [V::zero_ints(); T];
            if HALF {
                V::dot::<BITS, 0, 4, T>(weights, x.codes, &mut sums);
                self.accumulate::<V, POINT, 2, T>(from, 0, sums, x, products);
                let mut sums = [V::zero_ints(); T];
                V::dot::<BITS, 4, 8, T>(weights, x.codes, &mut sums);
                self.accumulate::<V, POINT, 2, T>(from, 1, sums, x, products);
            } else {
                V::dot::<BITS, 0, 8, T>(weights, x.codes, &mut sums);
                self.accumulate::<V, POINT, 1, T>(from, 0, sums, x, products);
            }
        }
    }

    /// # Safety
    /// As `products`; `from` is a group of the panel, `x` the tile's and `sums` their products.
    #[inline(always)]
    unsafe fn accumulate<V: Vector, const POINT: bool, const PARTS: usize, const T: usize>(
        &self,
        from: *const u8,
        part: usize,
        sums: [V::Ints; T],
        x: PartPlaces,
        products: &mut [V; T],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let [scale, bias] = self.lanes::<V, POINT, PARTS>(from, part);
            for t in 0..T {
                let x = &*x.scales.add(t);
                products[t] =
                    self.add_sum::<V, POINT, PARTS>(products[t], sums[t], [scale, bias], x, part);
            }
        }
    }

    /// Adds what 16 rows make of one token's group (or half of it): `sum` are the products of the
    /// codes.
    ///
    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    pub(crate) unsafe fn add_sum<V: Vector, const POINT: bool, const PARTS: usize>(
        &self,
        product: V,
        sum: V::Ints,
        [scale, bias]: [V; 2],
        x: &GroupScale,
        part: usize,
    ) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            let (mut ints, mut product) = (sum, product);
            if POINT {
                // Of a row that is not finite any sum may come; its unit is no number either.
                ints = V::offset(ints, self.point.wrapping_mul(x.sum(PARTS, part).wrapping_neg()));
            } else {
                product = bias.mul_add(V::splat(x.total(PARTS, part)), product);
            }
            scale.mul_add(V::to_float(ints).mul(V::splat(x.unit)), product)
        }
    }

    /// Scales and biases of a group, or of half of it; without biases the scales twice.
    ///
    /// # Safety
    /// A group of the panel at `from`; the instruction set of `V` is present.
    #[inline(always)]
    pub(crate) unsafe fn lanes<V: Vector, const POINT: bool, const PARTS: usize>(
        &self,
        from: *const u8,
        part: usize,
    ) -> [V; 2] {
        // SAFETY: the group holds `PARTS` scale vectors after its codes and, without a point, as
        // many bias vectors after those.
        let lanes = |index: usize| unsafe {
            let from = from.add(self.codes_bytes);
            match self.scale {
                ScaleWidth::F16 => V::load_f16(from.add(index * 2 * BLOCK_ROWS).cast()),
                ScaleWidth::F32 => V::load(from.add(index * 4 * BLOCK_ROWS).cast()),
            }
        };
        let scale = lanes(part);
        [scale, if POINT { scale } else { lanes(PARTS + part) }]
    }
}

struct DensePart<'a> {
    panels: RowBlocks<'a>,
    dense: Dense,
    rows: Rows<'a>,
    tokens: Range<usize>,
    blocks: Range<usize>,
    waiting: &'a mut Waiting,
}

impl Kernel for DensePart<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(mut self) {
        let mut at = 0;
        for block in self.blocks.clone() {
            let panel = self.panels.block(block).as_ptr();
            let mut token = self.tokens.start;
            while token < self.tokens.end {
                let left = self.tokens.end - token;
                // SAFETY: a whole row block, tokens of the input; the rest is the caller's promise.
                let width = unsafe {
                    if V::TOKENS >= 8 && left >= 8 {
                        self.pass::<V, 8>(panel, token, at)
                    } else if V::TOKENS >= 4 && left >= 4 {
                        self.pass::<V, 4>(panel, token, at)
                    } else {
                        self.pass::<V, 1>(panel, token, at)
                    }
                };
                token += width;
                at += width;
            }
        }
    }
}

impl DensePart<'_> {
    /// # Safety
    /// As `products`.
    #[inline(always)]
    unsafe fn pass<V: Vector, const T: usize>(
        &mut self,
        panel: *const u8,
        first: usize,
        at: usize,
    ) -> usize {
        // SAFETY: the caller's promise.
        let products = unsafe { self.products::<V, T>(panel, first) };
        for (product, waiting) in products.iter().zip(&mut self.waiting[at..]) {
            // SAFETY: 16 lanes.
            unsafe { product.store(waiting.as_mut_ptr().cast()) };
        }
        T
    }

    /// Even and odd columns are summed apart, then added: the same for every tile.
    ///
    /// # Safety
    /// `panel` is a whole row block, tokens `first..first + T` exist, the instruction set of `V`
    /// is present.
    #[inline(always)]
    unsafe fn products<V: Vector, const T: usize>(&self, panel: *const u8, first: usize) -> [V; T] {
        let rows = &self.rows;
        let cols = self.panels.cols;
        let mut x = [rows.pointer(first).cast_const(); T];
        for (t, x) in x.iter_mut().enumerate() {
            *x = rows.pointer(first + t);
        }
        // SAFETY: columns stay below `cols`.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; T];
            for column in 0..cols {
                let from = panel.add(column * BLOCK_ROWS * self.dense.bytes());
                let weights = match self.dense {
                    Dense::F32 => V::load(from.cast()),
                    Dense::F16 => V::load_f16(from.cast()),
                    Dense::Bf16 => V::load_bf16(from.cast()),
                };
                for t in 0..T {
                    let sum = &mut sums[t][column % 2];
                    *sum = weights.mul_add(V::splat(*x[t].add(column)), *sum);
                }
            }
            let mut products = [V::splat(0.0); T];
            for t in 0..T {
                products[t] = sums[t][0].add(sums[t][1]);
            }
            products
        }
    }
}
