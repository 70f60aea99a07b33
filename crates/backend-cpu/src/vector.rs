//! What can one instruction set do with 16 lanes? The vocabulary every kernel is written in.
//!
//! A kernel is generic over `Vector`; `Isa::run` instantiates it once per instruction set. All
//! implementations compute the same bits: float operations are IEEE, `mul_add` is fused
//! everywhere, integer dot products are exact, and reductions use the tree written here.

use crate::arch::PairDots;
use crate::rows::{GroupScale, MAGIC};

/// 16 f32 lanes, and the integer dot product over 16 rows of weights.
///
/// # Safety of all methods
/// The instruction set of the implementing type is present (an `Isa` proves it), and pointers
/// are valid for the lanes or bytes named. No alignment is required.
pub(crate) trait Vector: Copy + PairDots {
    /// One k-group of 16 rows, unpacked: 8 quads of 4 codes a row, `[quad][row][4]` as u8.
    type Codes: Copy;
    /// 16 i32 lanes.
    type Ints: Copy;
    /// Tokens that one pass over unpacked weights serves: what the registers hold.
    const TOKENS: usize;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_f16(from: *const u16) -> Self;
    unsafe fn load_bf16(from: *const u16) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// Rounds to nearest even; a finite input beyond the range of f16 becomes an infinity.
    unsafe fn store_f16(self, to: *mut u16);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// `other` wherever the two do not compare (NaN), as x86 does.
    unsafe fn max(self, other: Self) -> Self;
    /// `other` wherever the two do not compare (NaN), as x86 does.
    unsafe fn min(self, other: Self) -> Self;
    /// `self * factor + addend`, one rounding.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn abs(self) -> Self;
    /// `self` times 2 to the integer held in the low bits of `power` (see `exp`).
    unsafe fn add_exponent(self, power: Self) -> Self;
    /// 0 in the lanes where `x < limit`, else `self`.
    unsafe fn zero_below(self, x: Self, limit: Self) -> Self;

    /// Rounds `self * inverse` (ties to even; within i8) to 16 bytes and returns their sum.
    unsafe fn quantize(self, inverse: f32, to: *mut i8) -> i32;
    /// Rounds `self * inverse` to X (ties to even), stores X = 128 * high + low as 16 bytes each
    /// and returns the sum of X.
    unsafe fn split_quantize(self, inverse: f32, high: *mut i8, low: *mut i8) -> i32;

    /// 256 bytes: in the j-th 64, low nibbles are quad 2j, high nibbles quad 2j + 1.
    unsafe fn unpack4(from: *const u8) -> Self::Codes;
    /// Adds to codes of 4 bits the bits above: `PLANES` x 8 quads x 8 bytes, a bit a code.
    unsafe fn add_planes<const PLANES: usize>(codes: Self::Codes, from: *const u8) -> Self::Codes;
    /// 512 bytes: 8 quads of 64.
    unsafe fn unpack8(from: *const u8) -> Self::Codes;
    /// Adds to `sums`, for 16 rows and `T` tokens, the sum over quads `FROM..TO` of code * x; each
    /// token's 32 x follow the ones before. `BITS` bounds the codes.
    unsafe fn dot<const BITS: u32, const FROM: usize, const TO: usize, const T: usize>(
        codes: &Self::Codes,
        x: *const i8,
        sums: &mut [Self::Ints; T],
    );
    unsafe fn zero_ints() -> Self::Ints;
    unsafe fn offset(ints: Self::Ints, by: i32) -> Self::Ints;
    unsafe fn to_float(ints: Self::Ints) -> Self;

    /// Whether codes are unpacked once for many tokens (see `unpacked`), not for each tile.
    const UNPACKS: bool = false;
    /// `dot` for 4 tokens and `R` row blocks, whose codes lie one after another.
    #[inline(always)]
    unsafe fn dot_blocks<const BITS: u32, const FROM: usize, const TO: usize, const R: usize>(
        codes: *const Self::Codes,
        x: *const i8,
        sums: &mut [[Self::Ints; 4]; R],
    ) {
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { Self::dot::<BITS, FROM, TO, 4>(&*codes.add(r), x, sums) };
        }
    }
    /// The value in all lanes.
    #[inline(always)]
    unsafe fn ints(from: *const i32) -> Self::Ints {
        // SAFETY: the caller's promise.
        unsafe { Self::offset(Self::zero_ints(), *from) }
    }
    /// Adds to 4 tokens' products with `R` row blocks what a group makes of them: the total times
    /// the bias (unless it is a zero point that the sums know), then the scale times the value,
    /// which is the unit times the float of the sum less the bits of `MAGIC`. A block's scales and
    /// biases are 16 f32 each, 64 f32 from one block to the next, 64-aligned.
    #[inline(always)]
    unsafe fn add_blocks<const POINT: bool, const R: usize>(
        products: &mut [[Self; 4]; R],
        sums: &[[Self::Ints; 4]; R],
        lanes: *const f32,
        x: *const GroupScale,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            for r in 0..R {
                let (scale, bias) =
                    (Self::load(lanes.add(64 * r)), Self::load(lanes.add(64 * r + 16)));
                for t in 0..4 {
                    let x = &*x.add(t);
                    let product = &mut products[r][t];
                    if !POINT {
                        *product = bias.mul_add(Self::splat(x.total), *product);
                    }
                    *product = scale.mul_add(Self::to_value(sums[r][t], x), *product);
                }
            }
        }
    }
    /// `dot` for one token and `R` row blocks, whose codes lie one after another.
    #[inline(always)]
    unsafe fn dot_token<const BITS: u32, const FROM: usize, const TO: usize, const R: usize>(
        codes: *const Self::Codes,
        x: *const i8,
        sums: &mut [Self::Ints; R],
    ) {
        for (r, sum) in sums.iter_mut().enumerate() {
            let mut one = [*sum];
            // SAFETY: the caller's promise.
            unsafe { Self::dot::<BITS, FROM, TO, 1>(&*codes.add(r), x, &mut one) };
            *sum = one[0];
        }
    }
    /// The unit times the float of the sum less the bits of `MAGIC`.
    #[inline(always)]
    unsafe fn to_value(sum: Self::Ints, x: &GroupScale) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let ints = Self::offset(sum, -(MAGIC.to_bits() as i32));
            Self::to_float(ints).mul(Self::splat(x.unit))
        }
    }
    /// Which of the first 64 bytes, of `count` at `from`, are not 0.
    #[inline(always)]
    unsafe fn nonzero_bytes(from: *const u8, count: usize) -> u64 {
        let mut mask = 0;
        for at in 0..count.min(64) {
            // SAFETY: the caller's promise.
            mask |= u64::from(unsafe { *from.add(at) } != 0) << at;
        }
        mask
    }

    /// Asks for the cache line at `from`, which may be any address.
    unsafe fn prefetch(from: *const u8);

    /// Whether `words` is faster than a row's words one after another.
    const GATHERS: bool = false;

    /// The word at `from` and those of the 15 rows behind it, `row_bytes` long each.
    ///
    /// # Safety
    /// There are four bytes at each place; the instruction set is present.
    #[inline(always)]
    unsafe fn words(from: *const u8, row_bytes: usize) -> [u32; 16] {
        // SAFETY: the caller's promise.
        std::array::from_fn(|row| unsafe {
            from.add(row * row_bytes).cast::<u32>().read_unaligned()
        })
    }
    /// The same, but no nearer than the second-level cache.
    #[inline(always)]
    unsafe fn prefetch_second(from: *const u8) {
        // SAFETY: the caller's promise.
        unsafe { Self::prefetch(from) };
    }
    /// The same for a line that will be written.
    #[inline(always)]
    unsafe fn prefetch_write(to: *const u8) {
        // SAFETY: the caller's promise.
        unsafe { Self::prefetch(to) };
    }

    /// The lanes' sum by halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array holds 16 lanes; the instruction set is the caller's promise.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut width = 8;
        while width > 0 {
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        let mut lanes = [0.0f32; 16];
        // SAFETY: the array holds 16 lanes; the instruction set is the caller's promise.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let mut width = 8;
        while width > 0 {
            for lane in 0..width {
                let (a, b) = (lanes[lane], lanes[lane + width]);
                lanes[lane] = if a > b { a } else { b };
            }
            width /= 2;
        }
        lanes[0]
    }

    /// `e^self`, within 2 ulp in [-87, 88]; 0 below -87.3, e^88 above 88.
    ///
    /// Cody and Waite's reduction by multiples of ln 2, then the degree-5 tail of Cephes' `expf`
    /// (Moshier). Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        const MAGIC: f32 = 12_582_912.0;
        const LOWEST: f32 = -87.3;
        const TAIL: [f32; 6] =
            [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5];
        // SAFETY: no memory is touched; the instruction set is the caller's promise.
        unsafe {
            let lowest = Self::splat(LOWEST);
            // In this order a NaN passes through.
            let x = Self::splat(88.0).min(lowest.max(self));
            let power = x.mul_add(Self::splat(std::f32::consts::LOG2_E), Self::splat(MAGIC));
            let n = power.sub(Self::splat(MAGIC));
            // ln 2 in two parts; the first has 9 trailing zero bits, so n * part is exact.
            let r = n.mul_add(Self::splat(-0.693_359_4), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            let mut y = Self::splat(TAIL[0]);
            for coefficient in &TAIL[1..] {
                y = y.mul_add(r, Self::splat(*coefficient));
            }
            let y = y.mul_add(r.mul(r), r.add(Self::splat(1.0)));
            y.add_exponent(power).zero_below(self, lowest)
        }
    }

    /// Where `exp_negative` gives 0.
    const LOWEST: f32 = -80.0;

    /// `e^self` for `self <= 0`, within 3e-6 of it, exactly 1 at 0, and 0 below `LOWEST`: for
    /// weights that are rounded afterwards.
    #[inline(always)]
    unsafe fn exp_negative(self) -> Self {
        // SAFETY: no memory is touched; the instruction set is the caller's promise.
        unsafe { self.exp_bounded().zero_below(self, Self::splat(Self::LOWEST)) }
    }

    /// `exp_negative`, but `e^LOWEST` below `LOWEST`. 2 to a fraction is a polynomial of degree 4.
    #[inline(always)]
    unsafe fn exp_bounded(self) -> Self {
        const MAGIC: f32 = 12_582_912.0;
        const TAIL: [f32; 4] = [9.582_848e-3, 5.590_643_7e-2, 0.240_240_99, 0.693_124_2];
        // SAFETY: no memory is touched; the instruction set is the caller's promise.
        unsafe {
            let (lowest, log2) = (Self::splat(Self::LOWEST), Self::splat(std::f32::consts::LOG2_E));
            // In this order a NaN passes through.
            let x = lowest.max(self);
            let power = x.mul_add(log2, Self::splat(MAGIC));
            let r = x.mul_add(log2, Self::splat(MAGIC).sub(power));
            let mut y = Self::splat(TAIL[0]);
            for coefficient in &TAIL[1..] {
                y = y.mul_add(r, Self::splat(*coefficient));
            }
            y.mul_add(r, Self::splat(1.0)).add_exponent(power)
        }
    }

    /// `cap * tanh(self / cap)`.
    #[inline(always)]
    unsafe fn soft_cap(self, cap: f32) -> Self {
        // SAFETY: no memory is touched; the instruction set is the caller's promise.
        unsafe {
            // tanh(y) = 2 sigmoid(2 y) - 1.
            let s = self.mul(Self::splat(2.0 / cap)).sigmoid();
            s.mul_add(Self::splat(2.0 * cap), Self::splat(-cap))
        }
    }

    /// `1 / (1 + e^-self)`.
    #[inline(always)]
    unsafe fn sigmoid(self) -> Self {
        // SAFETY: no memory is touched; the instruction set is the caller's promise.
        unsafe {
            let one = Self::splat(1.0);
            one.div(one.add(Self::splat(0.0).sub(self).exp()))
        }
    }
}
