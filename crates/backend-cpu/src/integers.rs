//! How do a head's elements become integers? Codes of at most 16 bits and one scale.
//!
//! A vector that holds an infinity or no number gets a scale that is not a number, so that what
//! is computed from it is visibly wrong and never a plausible answer.

use crate::vector::Vector;

/// Below this largest element a vector counts as 0: the inverse of its scale would overflow.
const NOTHING: f32 = 1e-30;

/// What turns elements into codes and back.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    /// Codes times this are elements.
    pub(crate) scale: f32,
    /// Elements times this, rounded, are codes.
    pub(crate) inverse: f32,
}

/// The scale that makes the largest of `count` elements, a multiple of 16, `code`.
///
/// # Safety
/// `count` f32 at `from`; the instruction set of `V` is present.
#[inline(always)]
pub(crate) unsafe fn scale<V: Vector>(from: *const f32, count: usize, code: f32) -> Scale {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut largest, mut probe) = (V::splat(0.0), V::splat(0.0));
        for at in (0..count).step_by(16) {
            let x = V::load(from.add(at));
            largest = largest.max(x.abs());
            // 0, or not a number where x is infinite or none.
            probe = probe.add(x.sub(x));
        }
        let (largest, probe) = (largest.reduce_max(), probe.reduce_add());
        if probe.is_nan() {
            return Scale { scale: f32::NAN, inverse: 0.0 };
        }
        if largest < NOTHING {
            return Scale { scale: 0.0, inverse: 0.0 };
        }
        Scale { scale: largest / code, inverse: code / largest }
    }
}

/// Multiplies `count` elements, a multiple of 16, by Hadamard matrices of the largest power of two
/// that divides `count`; returns that size. Dot products of two vectors so turned are that many
/// times as large.
///
/// # Safety
/// `count` f32 at `row`, nobody else's; the instruction set of `V` is present.
#[inline(always)]
pub(crate) unsafe fn spread<V: Vector>(row: *mut f32, count: usize) -> usize {
    let size = 1 << count.trailing_zeros();
    // SAFETY: the caller's promise.
    unsafe {
        for at in (0..count).step_by(16) {
            let x = spread_lanes::<V, 1>(V::load(row.add(at)));
            let x = spread_lanes::<V, 4>(spread_lanes::<V, 2>(x));
            spread_lanes::<V, 8>(x).store(row.add(at));
        }
        let mut width = 16;
        while width < size {
            for first in (0..count).step_by(2 * width) {
                for at in (first..first + width).step_by(16) {
                    let (a, b) = (V::load(row.add(at)), V::load(row.add(at + width)));
                    a.add(b).store(row.add(at));
                    a.sub(b).store(row.add(at + width));
                }
            }
            width *= 2;
        }
    }
    size
}

/// Sums and differences of lanes that are `WIDTH` apart.
///
/// # Safety
/// The instruction set of `V` is present.
#[inline(always)]
unsafe fn spread_lanes<V: Vector, const WIDTH: usize>(x: V) -> V {
    let mut lanes = [0.0f32; 16];
    let (mut partner, mut sign) = ([0.0f32; 16], [1.0f32; 16]);
    // SAFETY: 16 lanes each.
    unsafe {
        x.store(lanes.as_mut_ptr());
        for lane in 0..16 {
            partner[lane] = lanes[lane ^ WIDTH];
            if lane & WIDTH != 0 {
                sign[lane] = -1.0;
            }
        }
        x.mul_add(V::load(sign.as_ptr()), V::load(partner.as_ptr()))
    }
}
