//! How do many tokens share weights that are unpacked once? Three row blocks and 4 tokens at once.
//!
//! Codes become bytes and scales f32 in a buffer of the stack, for a run of groups that stays in
//! the first-level cache while all tokens pass by. Unpacking and conversions then cost nothing, and
//! one broadcast of activations serves three products, where the two loads of a cycle else are the
//! limit. What is left to the ports of multiplications for 16 rows, 32 columns and a token are 8
//! products and 2 float operations, 3 with a bias: 80 or 73 % of the peak are the roof.
//!
//! The sums begin at the bits of `MAGIC` (less what the zero point takes away), so that they end as
//! floats without a conversion. The bits are those of `Panel::products`.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::arch::{Isa, Kernel};
use crate::kernels::linear::{FinishTile, Panel, WAITING_MAX};
use crate::rows::{GroupScale, MAGIC, PartPlaces, QuantizedView, RowPlaces, Rows};
use crate::vector::Vector;

/// Groups of a run, at most: 3 blocks of 18 are 28 KB of codes and 4 KB of scales, 8 tokens of 18
/// are 8 KB.
const RUN_MAX: usize = 18;
/// Row blocks side by side: 12 sums and 12 products leave 8 registers.
pub(crate) const BLOCKS_MAX: usize = 3;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Tokens side by side.
const WIDTH: usize = 4;

/// Groups that are unpacked at once.
#[inline(always)]
fn run_groups(groups: usize) -> usize {
    groups.div_ceil(groups.div_ceil(RUN_MAX).max(1)).max(1)
}

/// With fewer tokens weights are unpacked for each tile.
const TOKENS_MIN: usize = 16;

/// Whether so many tokens share weights that are unpacked once.
pub(crate) fn unpacks(isa: Isa, tokens: usize) -> bool {
    struct Unpacks;
    impl Kernel for Unpacks {
        type Output = bool;
        unsafe fn run<V: Vector>(self) -> bool {
            V::UNPACKS
        }
    }
    // SAFETY: the kernel does nothing.
    tokens >= TOKENS_MIN && unsafe { isa.run(Unpacks) }
}

/// 16 rows' scales or biases.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Lanes([f32; 16]);

/// A run of groups of `R` row blocks.
struct Run<V: Vector> {
    /// `[group][R]`
    codes: [MaybeUninit<V::Codes>; BLOCKS_MAX * RUN_MAX],
    /// `[group][R][part]` of scales and biases.
    lanes: [MaybeUninit<[Lanes; 2]>; BLOCKS_MAX * RUN_MAX * 2],
    /// `[R][token]`: sums of the low parts of tokens that have any.
    lows: [MaybeUninit<Lanes>; BLOCKS_MAX * WAITING_MAX],
}

/// Tokens that share what is unpacked.
pub(crate) struct Shared<'a> {
    pub(crate) view: QuantizedView<'a>,
    pub(crate) tokens: Range<usize>,
    /// `[block][token]` of 16.
    pub(crate) products: *mut f32,
    /// Where finished products are.
    pub(crate) output: Rows<'a>,
    pub(crate) finish: &'a FinishTile<'a>,
}

impl Shared<'_> {
    /// Finishes the products of `blocks` with all tokens but the last, fewer than 4, and returns
    /// the first of those.
    ///
    /// # Safety
    /// `panel` gives whole row blocks with this layout and as many groups as the tokens have;
    /// there is room for the products; the instruction set of `V` is present.
    #[inline(always)]
    pub(crate) unsafe fn run<V: Vector, const BITS: u32, const POINT: bool, const HALF: bool>(
        &self,
        panel: impl Fn(usize) -> Panel,
        blocks: Range<usize>,
    ) -> usize {
        let mut end = self.tokens.start;
        while end < self.tokens.end && self.view.slice(end, WIDTH).width == WIDTH {
            end += WIDTH;
        }
        let mut run = Run::<V> {
            codes: [const { MaybeUninit::uninit() }; BLOCKS_MAX * RUN_MAX],
            lanes: [const { MaybeUninit::uninit() }; BLOCKS_MAX * RUN_MAX * 2],
            lows: [const { MaybeUninit::uninit() }; BLOCKS_MAX * WAITING_MAX],
        };
        let mut block = blocks.start;
        while block < blocks.end {
            let at = (block - blocks.start) * self.tokens.len();
            let next = (block + BLOCKS_MAX < blocks.end).then(|| panel(block + BLOCKS_MAX));
            macro_rules! blocks {
                ($count:literal) => {{
                    let mut panels = [panel(block); $count];
                    for (index, other) in panels.iter_mut().enumerate() {
                        *other = panel(block + index);
                    }
                    let part = Blocks::<$count> { shared: self, end, panels, next, block, at };
                    // SAFETY: the caller's promise.
                    unsafe { part.run::<V, BITS, POINT, HALF>(&mut run) };
                    block += $count;
                }};
            }
            match blocks.end - block {
                1 => blocks!(1),
                2 => blocks!(2),
                _ => blocks!(3),
            }
        }
        end
    }
}

/// `R` row blocks and all tokens up to `end`.
struct Blocks<'a, const R: usize> {
    shared: &'a Shared<'a>,
    end: usize,
    panels: [Panel; R],
    /// The first of those that come next.
    next: Option<Panel>,
    /// The first of these.
    block: usize,
    /// The first product's place.
    at: usize,
}

impl<const R: usize> Blocks<'_, R> {
    /// # Safety
    /// As `Shared::run`, as are the others.
    #[inline(always)]
    unsafe fn run<V: Vector, const BITS: u32, const POINT: bool, const HALF: bool>(
        &self,
        run: &mut Run<V>,
    ) {
        let groups = self.panels[0].groups;
        let tiles = (self.end - self.shared.tokens.start) / WIDTH;
        let mut have_lows = [[false; WIDTH]; WAITING_MAX / WIDTH];
        let lows = run.lows.as_mut_ptr().cast::<f32>();
        for first in (0..groups).step_by(run_groups(groups)) {
            let range = first..groups.min(first + run_groups(groups));
            let is_last = range.end == groups;
            // SAFETY: the caller's promise; a run has `RUN_MAX` groups at most.
            unsafe {
                self.unpack::<V, BITS, POINT, HALF>(range.clone(), run);
                let mut ahead = self.ahead(range.end, tiles);
                for index in 0..tiles {
                    let token = self.shared.tokens.start + index * WIDTH;
                    let places = self.shared.view.row_places(token);
                    let tile = Tile {
                        blocks: self,
                        groups: range.len(),
                        places: places.after(first),
                        products: self.products(token),
                        lows: lows.wrapping_add(16 * index * WIDTH),
                        stride: 16 * self.shared.tokens.len(),
                    };
                    ahead.ask::<V>();
                    if is_last {
                        self.ask_for_output::<V>(token);
                    }
                    tile.high::<V, BITS, POINT, HALF>(run, first == 0);
                    tile.low::<V, BITS, POINT, HALF>(run, &mut have_lows[index]);
                    if is_last {
                        tile.join::<V>(&have_lows[index]);
                        let blocks = self.block..self.block + R;
                        (self.shared.finish)(self.shared.products, token..token + WIDTH, blocks);
                    }
                }
            }
        }
    }

    /// The weights of the run behind `group`, a share for each of `tiles` tiles.
    #[inline(always)]
    fn ahead(&self, group: usize, tiles: usize) -> Ahead<R> {
        let mut starts = [std::ptr::null(); R];
        let mut bytes = 0;
        for (r, start) in starts.iter_mut().enumerate() {
            let panel = &self.panels[r];
            if group < panel.groups {
                *start = panel.group(group);
                bytes = run_groups(panel.groups) * panel.group_bytes;
            } else if let Some(next) = &self.next {
                *start = next.group(r * panel.groups);
                bytes = run_groups(panel.groups) * panel.group_bytes;
            }
        }
        Ahead { starts, share: bytes.div_ceil(tiles.max(1)).next_multiple_of(LINE) }
    }

    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn ask_for_output<V: Vector>(&self, token: usize) {
        for t in 0..WIDTH {
            let row = self.shared.output.pointer(token + t).wrapping_add(16 * self.block);
            for r in 0..R {
                // SAFETY: any address may be asked for.
                unsafe { V::prefetch_write(row.wrapping_add(16 * r).cast()) };
            }
        }
    }

    /// Where the products of the first block with a token are.
    fn products(&self, token: usize) -> *mut f32 {
        let at = self.at + token - self.shared.tokens.start;
        self.shared.products.wrapping_add(16 * at)
    }

    /// # Safety
    /// The groups are the panels', no more than `RUN_MAX`.
    #[inline(always)]
    unsafe fn unpack<V: Vector, const BITS: u32, const POINT: bool, const HALF: bool>(
        &self,
        groups: Range<usize>,
        run: &mut Run<V>,
    ) {
        for (index, group) in groups.enumerate() {
            for (r, panel) in self.panels.iter().enumerate() {
                let (from, at) = (panel.group(group), index * R + r);
                // SAFETY: the caller's promise.
                unsafe {
                    run.codes[at].write(Panel::unpack::<V, BITS>(from));
                    for part in 0..=usize::from(HALF) {
                        let lanes = if HALF {
                            panel.lanes::<V, POINT, 2>(from, part)
                        } else {
                            panel.lanes::<V, POINT, 1>(from, part)
                        };
                        let to = run.lanes[2 * at + part].as_mut_ptr().cast::<f32>();
                        lanes[0].store(to);
                        lanes[1].store(to.add(16));
                    }
                }
            }
        }
    }
}

/// Weights that are asked for while others are multiplied.
struct Ahead<const R: usize> {
    /// Where the blocks' next lines are; nowhere if nothing comes.
    starts: [*const u8; R],
    /// Bytes of a block that are asked for at a time.
    share: usize,
}

impl<const R: usize> Ahead<R> {
    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn ask<V: Vector>(&mut self) {
        for start in &mut self.starts {
            for at in (0..self.share).step_by(LINE) {
                // SAFETY: any address may be asked for.
                unsafe { V::prefetch_second(start.wrapping_add(at)) };
            }
            *start = start.wrapping_add(self.share);
        }
    }
}

/// `R` row blocks and 4 tokens.
struct Tile<'a, const R: usize> {
    blocks: &'a Blocks<'a, R>,
    groups: usize,
    places: RowPlaces,
    /// The first block's, and the sums of its low parts.
    products: *mut f32,
    lows: *mut f32,
    /// From a block's to the next block's.
    stride: usize,
}

impl<const R: usize> Tile<'_, R> {
    #[inline(always)]
    fn product(&self, r: usize, t: usize) -> *mut f32 {
        self.products.wrapping_add(r * self.stride + 16 * t)
    }

    #[inline(always)]
    fn low_sum(&self, r: usize, t: usize) -> *mut f32 {
        self.lows.wrapping_add(r * self.stride + 16 * t)
    }

    /// Adds the sums of low parts to the products, of those tokens that have any.
    ///
    /// # Safety
    /// As `high`; all groups are added.
    #[inline(always)]
    unsafe fn join<V: Vector>(&self, have_lows: &[bool; WIDTH]) {
        for t in (0..WIDTH).filter(|&t| have_lows[t]) {
            for r in 0..R {
                // SAFETY: the caller's promise.
                unsafe {
                    let product = V::load(self.product(r, t));
                    product.add(V::load(self.low_sum(r, t))).store(self.product(r, t));
                }
            }
        }
    }

    /// Adds the high parts to what is there, or to nothing.
    ///
    /// # Safety
    /// `run` holds the groups; the instruction set of `V` is present.
    #[inline(always)]
    unsafe fn high<V: Vector, const BITS: u32, const POINT: bool, const HALF: bool>(
        &self,
        run: &Run<V>,
        is_first: bool,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut products = [[V::splat(0.0); WIDTH]; R];
            if !is_first {
                for r in 0..R {
                    for t in 0..WIDTH {
                        products[r][t] = V::load(self.product(r, t));
                    }
                }
            }
            for group in 0..self.groups {
                let x = self.places.high.at(group * self.places.step);
                if HALF {
                    self.part::<V, BITS, POINT, 0, 4, 2>(run, group, 0, x, &mut products);
                    self.part::<V, BITS, POINT, 4, 8, 2>(run, group, 1, x, &mut products);
                } else {
                    self.part::<V, BITS, POINT, 0, 8, 1>(run, group, 0, x, &mut products);
                }
            }
            for r in 0..R {
                for t in 0..WIDTH {
                    products[r][t].store(self.product(r, t));
                }
            }
        }
    }

    /// # Safety
    /// As `high`.
    #[inline(always)]
    unsafe fn part<
        V: Vector,
        const BITS: u32,
        const POINT: bool,
        const FROM: usize,
        const TO: usize,
        const PARTS: usize,
    >(
        &self,
        run: &Run<V>,
        group: usize,
        part: usize,
        x: PartPlaces,
        products: &mut [[V; WIDTH]; R],
    ) {
        let point = self.blocks.panels[0].point;
        // SAFETY: the caller's promise; 4 tokens' scales follow one another.
        unsafe {
            let mut starts = [MAGIC.to_bits() as i32; WIDTH];
            if POINT {
                for t in 0..WIDTH {
                    let sum = (*x.scales.add(t)).sum(PARTS, part);
                    let start = starts[t].wrapping_sub(point.wrapping_mul(sum));
                    // Volatile, or the compiler puts a vector together, on a port of products.
                    std::ptr::write_volatile(&raw mut starts[t], start);
                }
            }
            let mut sums = [[V::zero_ints(); WIDTH]; R];
            for t in 0..WIDTH {
                // All are the same where there is no point.
                let start = V::ints(&raw const starts[if POINT { t } else { 0 }]);
                for r in 0..R {
                    sums[r][t] = start;
                }
            }
            let at = group * R;
            V::dot_blocks::<BITS, FROM, TO, R>(run.codes[at].as_ptr(), x.codes, &mut sums);
            let lanes = run.lanes[2 * at + part].as_ptr().cast::<f32>();
            if PARTS == 1 {
                V::add_blocks::<POINT, R>(products, &sums, lanes, x.scales);
            } else {
                // Their totals are those of the whole group.
                let mut scales = x.scales.cast::<[GroupScale; WIDTH]>().read();
                for scale in &mut scales {
                    scale.total = scale.total(PARTS, part);
                }
                V::add_blocks::<POINT, R>(products, &sums, lanes, scales.as_ptr());
            }
        }
    }

    /// Adds the low parts of the groups that have any.
    ///
    /// # Safety
    /// As `high`, which was called before.
    #[inline(always)]
    unsafe fn low<V: Vector, const BITS: u32, const POINT: bool, const HALF: bool>(
        &self,
        run: &Run<V>,
        have_lows: &mut [bool; WIDTH],
    ) {
        let places = &self.places;
        let count = places.marks::<WIDTH>(self.groups);
        for first in (0..count).step_by(64) {
            // SAFETY: the caller's promise.
            unsafe {
                let marks = places.outliers.add(first);
                let mut mask = V::nonzero_bytes(marks, count - first) & places.ours::<WIDTH>();
                while mask != 0 {
                    let at = first + mask.trailing_zeros() as usize;
                    mask &= mask - 1;
                    let (group, t) = places.marked(at);
                    let x = places.low.at(at);
                    if !have_lows[t] {
                        have_lows[t] = true;
                        for r in 0..R {
                            V::splat(0.0).store(self.low_sum(r, t));
                        }
                    }
                    if HALF {
                        self.low_part::<V, BITS, POINT, 0, 4, 2>(run, group, 0, x, t);
                        self.low_part::<V, BITS, POINT, 4, 8, 2>(run, group, 1, x, t);
                    } else {
                        self.low_part::<V, BITS, POINT, 0, 8, 1>(run, group, 0, x, t);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As `low`.
    #[inline(always)]
    unsafe fn low_part<
        V: Vector,
        const BITS: u32,
        const POINT: bool,
        const FROM: usize,
        const TO: usize,
        const PARTS: usize,
    >(
        &self,
        run: &Run<V>,
        group: usize,
        part: usize,
        x: PartPlaces,
        t: usize,
    ) {
        let point = self.blocks.panels[0].point;
        // SAFETY: the caller's promise.
        unsafe {
            let scale = &*x.scales;
            let mut start = MAGIC.to_bits() as i32;
            if POINT {
                start = start.wrapping_sub(point.wrapping_mul(scale.sum(PARTS, part)));
            }
            let mut sums = [V::ints(&raw const start); R];
            let codes = run.codes[group * R].as_ptr();
            V::dot_token::<BITS, FROM, TO, R>(codes, x.codes, &mut sums);
            for r in 0..R {
                let lanes = run.lanes[2 * (group * R + r) + part].as_ptr().cast::<f32>();
                let mut low = V::load(self.low_sum(r, t));
                if !POINT {
                    let bias = V::load(lanes.add(16));
                    low = bias.mul_add(V::splat(scale.total(PARTS, part)), low);
                }
                let value = V::to_value(sums[r], scale);
                V::load(lanes).mul_add(value, low).store(self.low_sum(r, t));
            }
        }
    }
}
