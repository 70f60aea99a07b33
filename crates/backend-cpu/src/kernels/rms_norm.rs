//! RMS norm and quantization of rows: `y = x / sqrt(mean(x^2) + epsilon) * weight`, then y as
//! integers of 8 bits (15 in groups of outliers) for the linear layers that follow.
//!
//! Zhang & Sennrich 2019, <https://arxiv.org/abs/1910.07467>. One row is one task, so a row's
//! result depends on the row alone. Squares are summed in 16 lanes x 2, in f32.

use crate::arch::{Isa, Kernel};
use crate::rows::{
    GROUP, GroupScale, QuantizedView, RowPlaces, Rows, TILE_MAX, plain_max, step_of,
};
use crate::team::Worker;
use crate::vector::Vector;
use ops::linear::Sum;
use std::ops::Range;

/// Where rows come from and what is made of them.
#[derive(Clone, Copy)]
pub struct RowPass<'a> {
    /// `[rows, width]`
    pub input: Rows<'a>,
    /// Which input row each output row reads; `None` is one to one.
    pub picks: Option<&'a [u32]>,
    /// `None` leaves the values as they are.
    pub norm: Option<RmsNorm<'a>>,
    /// The values as f32, if wanted. May be the input itself when `picks` is `None`.
    pub output: Option<Rows<'a>>,
    /// Whether they replace the output or are added to it.
    pub sum: Sum,
    /// The values as integers, if wanted (the norm's, not a sum's); the width must then be a
    /// multiple of 32.
    pub quantized: Option<QuantizedView<'a>>,
}

#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// `[width]`
    pub weight: &'a [f32],
    pub epsilon: f32,
}

/// Norms and quantizes every row; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the outputs or
/// writes the input meanwhile.
///
/// # Panics
/// If shapes do not match.
pub unsafe fn row_pass(worker: &Worker<'_>, isa: Isa, pass: &RowPass<'_>) {
    let rows = pass.check();
    let tiles = rows.div_ceil(TILE_MAX);
    // A tile's rows share cache lines, so one member makes all of them. Where that would leave
    // members idle each makes some columns, having summed whole rows for itself. Not if rows are
    // written as floats: that may be in place, under the eyes of those who still sum.
    let groups = pass.input.width().div_ceil(GROUP);
    let alone = pass.output.is_some() || tiles >= 2 * worker.members();
    let parts = if alone { 1 } else { worker.members().min(groups) };
    // Floats alone share no line.
    let step = if pass.quantized.is_some() { TILE_MAX } else { 1 };
    worker.for_each_near(rows.div_ceil(step) * parts, |task| {
        let (first, part) = (task / parts * step, task % parts);
        let groups = groups * part / parts..groups * (part + 1) / parts;
        for row in first..rows.min(first + step) {
            // SAFETY: these columns of an output row belong to this task; the rest is the caller's
            // promise.
            unsafe { isa.run(OneRow { pass, row, groups: groups.clone() }) };
        }
    });
}

/// One row of a pass, for kernels that share their rows in another way.
///
/// # Safety
/// As `row_pass`, but that nobody else touches this row.
pub(crate) unsafe fn one_row(isa: Isa, pass: &RowPass<'_>, row: usize) {
    let groups = 0..pass.input.width().div_ceil(GROUP);
    // SAFETY: the caller's promise.
    unsafe { isa.run(OneRow { pass, row, groups }) };
}

impl RowPass<'_> {
    fn check(&self) -> usize {
        let width = self.input.width();
        let rows = self.picks.map_or(self.input.rows(), <[u32]>::len);
        assert!(
            self.norm.is_none_or(|norm| norm.weight.len() == width),
            "a norm weight for each of {width} columns"
        );
        if let Some(output) = self.output {
            assert_eq!((output.rows(), output.width()), (rows, width), "shape of the output");
        }
        if let Some(view) = self.quantized {
            assert_eq!((view.rows(), view.width()), (rows, width), "shape of the integers");
        }
        rows
    }
}

/// Some groups of 32 columns of a row.
struct OneRow<'a> {
    pass: &'a RowPass<'a>,
    row: usize,
    groups: Range<usize>,
}

impl Kernel for OneRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let pass = self.pass;
        let source = pass.picks.map_or(self.row, |picks| picks[self.row] as usize);
        assert!(source < pass.input.rows(), "row {source} of {}", pass.input.rows());
        let input = pass.input.pointer(source).cast_const();
        let width = pass.input.width();
        // Not by `map`: a closure that is not inlined would be compiled without the set's features.
        let mut factor = None;
        if let Some(norm) = pass.norm {
            // SAFETY: `width` values at `input`, unwritten by the caller's promise.
            let squares = unsafe { sum_of_squares::<V>(input, width) };
            factor = Some((norm, 1.0 / (squares / width as f32 + norm.epsilon).sqrt()));
        }
        let mut places = None;
        if let Some(view) = pass.quantized {
            let (weight, by) = match factor {
                Some((norm, factor)) => (Some(norm.weight), Some(factor)),
                None => (None, None),
            };
            // SAFETY: `width` values at `input`, unwritten by the caller's promise.
            let sum = unsafe { sum_of_magnitudes::<V>(input, width, weight) };
            let sum = by.map_or(sum, |by| sum * by);
            places = Some((view.row_places(self.row), plain_max(sum, width)));
        }
        let output = pass.output.map(|output| output.pointer(self.row));
        for index in self.groups {
            let column = index * GROUP;
            let by = factor.map(|(norm, factor)| (&norm.weight[column..], factor));
            // SAFETY: columns from `column` on are inside the row; a tail is copied out of it.
            unsafe {
                let from = input.add(column);
                let [a, b] = if width - column >= GROUP {
                    load_group::<V>(from, by)
                } else {
                    tail_group::<V>(from, by, width - column)
                };
                if let Some(output) = output {
                    let to = output.add(column);
                    let mut group = [a, b];
                    if pass.sum == Sum::Add {
                        let before = if width - column >= GROUP {
                            load_group::<V>(to, None)
                        } else {
                            tail_group::<V>(to, None, width - column)
                        };
                        group = [before[0].add(a), before[1].add(b)];
                    }
                    store_group(group, to, width - column);
                }
                if let Some((places, plain_max)) = places {
                    quantize_group([a, b], plain_max, places, index);
                }
            }
        }
    }
}

/// 32 values, times the weights and the factor of a norm.
///
/// # Safety
/// 32 values at `from`; the instruction set of `V` is present.
#[inline(always)]
unsafe fn load_group<V: Vector>(from: *const f32, by: Option<(&[f32], f32)>) -> [V; 2] {
    // SAFETY: the caller's promise; the slice of weights is checked.
    unsafe {
        let (mut a, mut b) = (V::load(from), V::load(from.add(16)));
        if let Some((weights, factor)) = by {
            let weights = weights[..GROUP].as_ptr();
            a = a.mul(V::splat(factor)).mul(V::load(weights));
            b = b.mul(V::splat(factor)).mul(V::load(weights.add(16)));
        }
        [a, b]
    }
}

/// The same where fewer than 32 are left, with zeros behind.
///
/// # Safety
/// `count` values at `from`; the instruction set of `V` is present.
#[inline(always)]
unsafe fn tail_group<V: Vector>(
    from: *const f32,
    by: Option<(&[f32], f32)>,
    count: usize,
) -> [V; 2] {
    let (mut values, mut weights) = ([0.0f32; GROUP], [0.0f32; GROUP]);
    // SAFETY: `count` values there, 32 here.
    unsafe { std::ptr::copy_nonoverlapping(from, values.as_mut_ptr(), count) };
    let mut factor = None;
    if let Some((all, by)) = by {
        weights[..count].copy_from_slice(&all[..count]);
        factor = Some((&weights[..], by));
    }
    // SAFETY: whole groups.
    unsafe { load_group::<V>(values.as_ptr(), factor) }
}

/// # Safety
/// `count` values at `to` (32 are enough), not shared; the instruction set of `V` is present.
#[inline(always)]
unsafe fn store_group<V: Vector>(group: [V; 2], to: *mut f32, count: usize) {
    let mut ragged = [0.0f32; GROUP];
    let target = if count >= GROUP { to } else { ragged.as_mut_ptr() };
    // SAFETY: 32 values there or here.
    unsafe {
        group[0].store(target);
        group[1].store(target.add(16));
        if count < GROUP {
            std::ptr::copy_nonoverlapping(target, to, count);
        }
    }
}

/// # Safety
/// `width` values at `input`; the instruction set of `V` is present.
#[inline(always)]
pub(crate) unsafe fn sum_of_squares<V: Vector>(input: *const f32, width: usize) -> f32 {
    // SAFETY: loads stay below `width`; the tail is copied.
    unsafe {
        let mut sums = [V::splat(0.0); 2];
        let mut column = 0;
        while column + GROUP <= width {
            let (a, b) = (V::load(input.add(column)), V::load(input.add(column + 16)));
            sums = [a.mul_add(a, sums[0]), b.mul_add(b, sums[1])];
            column += GROUP;
        }
        if column < width {
            let mut tail = [0.0f32; GROUP];
            std::ptr::copy_nonoverlapping(input.add(column), tail.as_mut_ptr(), width - column);
            let (a, b) = (V::load(tail.as_ptr()), V::load(tail.as_ptr().add(16)));
            sums = [a.mul_add(a, sums[0]), b.mul_add(b, sums[1])];
        }
        sums[0].add(sums[1]).reduce_add()
    }
}

/// The sum of `|x * weight|` over a row of whole groups (a quantized row is no other).
///
/// # Safety
/// `width` values at `input`; the instruction set of `V` is present.
#[inline(always)]
unsafe fn sum_of_magnitudes<V: Vector>(
    input: *const f32,
    width: usize,
    weight: Option<&[f32]>,
) -> f32 {
    // SAFETY: loads stay below `width`, of the row and of the weight, which has its width.
    unsafe {
        let mut sums = [V::splat(0.0); 2];
        for column in (0..width / GROUP * GROUP).step_by(16) {
            let mut x = V::load(input.add(column));
            if let Some(weight) = weight {
                x = x.mul(V::load(weight.as_ptr().add(column)));
            }
            let sum = &mut sums[column / 16 % 2];
            *sum = sum.add(x.abs());
        }
        sums[0].add(sums[1]).reduce_add()
    }
}

/// # Safety
/// `places` is a row with more than `index` groups, not shared; the instruction set is present.
#[inline(always)]
unsafe fn quantize_group<V: Vector>(
    [a, b]: [V; 2],
    plain_max: f32,
    places: RowPlaces,
    index: usize,
) {
    let at = index * places.step;
    // SAFETY: the group's parts, mark and scale are the caller's promise.
    unsafe {
        let largest = a.abs().max(b.abs()).reduce_max();
        let (step, inverse) = step_of(largest);
        let (high, low) = (places.high.at(at), places.low.at(at));
        let outlier = largest > plain_max;
        places.outliers.add(at).write(u8::from(outlier));
        let sums = if outlier {
            let inverse = 128.0 * inverse;
            let first = a.split_quantize(inverse, high.codes, low.codes);
            let second = b.split_quantize(inverse, high.codes.add(16), low.codes.add(16));
            let sums = [sum_of_codes(high.codes), sum_of_codes(high.codes.add(16))];
            let low_sum = |x: i32, high: i32| x.wrapping_sub(128 * high);
            let low_sums = [low_sum(first, sums[0]), low_sum(second, sums[1])];
            low.scales.write(GroupScale::new(step / 128.0, low_sums));
            sums
        } else {
            [a.quantize(inverse, high.codes), b.quantize(inverse, high.codes.add(16))]
        };
        high.scales.write(GroupScale::new(step, sums));
    }
}

/// # Safety
/// 16 codes at `from`.
#[inline(always)]
unsafe fn sum_of_codes(from: *const i8) -> i32 {
    // SAFETY: the caller's promise; an array of bytes needs no alignment.
    let codes = unsafe { from.cast::<[i8; 16]>().read() };
    codes.into_iter().map(i32::from).sum()
}
