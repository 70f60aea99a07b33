//! NEON: 16 lanes are four registers. The dot product is `usmmla` where the machine has it, else
//! `sdot`, else widening byte multiply-adds.

use super::Kernel;
use crate::vector::Vector;
use core::arch::aarch64::*;
use half::f16;

/// `DOTS`: with which instructions, `WIDENING`, `DOT` or `MATRIX`.
#[derive(Clone, Copy)]
pub(super) struct Neon<const DOTS: u8>([float32x4_t; 4]);

/// Of every Armv8.
const WIDENING: u8 = 0;
/// The dot products of Armv8.2.
const DOT: u8 = 1;
/// The products of 2 x 8 and 8 x 2 bytes of Armv8.6, which multiply twice as many at once.
const MATRIX: u8 = 2;

/// # Safety
/// The machine has NEON; the kernel's own contract holds.
#[target_feature(enable = "neon")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the feature is enabled here; the rest is the caller's promise.
    unsafe { kernel.run::<Neon<WIDENING>>() }
}

/// # Safety
/// The machine has the features named; the kernel's own contract holds.
#[target_feature(enable = "neon,dotprod")]
pub(super) unsafe fn enter_dot<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { kernel.run::<Neon<DOT>>() }
}

/// # Safety
/// The machine has the features named; the kernel's own contract holds.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) unsafe fn enter_matrix<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { kernel.run::<Neon<MATRIX>>() }
}

macro_rules! isa {
    ($body:expr) => {{
        // SAFETY: the methods' contract (see `Vector`): features present, pointers valid.
        #[allow(unused_unsafe, reason = "some intrinsics are safe where their features are on")]
        unsafe {
            $body
        }
    }};
}

macro_rules! quarters {
    ($part:ident => $value:expr) => {
        isa!({
            let mut out = [vdupq_n_f32(0.0); 4];
            for $part in 0..4 {
                out[$part] = $value;
            }
            Neon(out)
        })
    };
}

/// The sum over quads of a nibble times x, for the 4 rows of each register.
///
/// An i16 lane is at most 8 * 15 * 127 = 15,240: exact.
#[inline(always)]
unsafe fn dot_nibbles(codes: &[int8x16_t], x: *const i8) -> int32x4_t {
    isa!({
        let mut low = vdupq_n_s16(0);
        let mut high = vdupq_n_s16(0);
        for (quad, codes) in codes.iter().enumerate() {
            let x = vdup_n_s32(x.add(4 * quad).cast::<i32>().read_unaligned());
            let x = vreinterpret_s8_s32(x);
            low = vmlal_s8(low, vget_low_s8(*codes), x);
            high = vmlal_s8(high, vget_high_s8(*codes), x);
        }
        vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))
    })
}

/// Adds to each lane the products of its 4 bytes. In assembly: the intrinsic is not stable yet.
///
/// # Safety
/// The machine has the feature named.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn sdot(mut sums: int32x4_t, codes: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: changes registers only.
    unsafe {
        core::arch::asm!(
            "sdot {sums:v}.4s, {codes:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums, codes = in(vreg) codes, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// A quad of a token's activations in all rows' lanes.
#[inline(always)]
unsafe fn broadcast(from: *const i8) -> int8x16_t {
    isa!(vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned())))
}

/// The dot product by `sdot`. Codes of 8 bits are read as signed ones, 128 less than they are, and
/// 128 times the sum of x is added.
///
/// # Safety
/// As `Vector::dot`; the machine has the dot product instructions.
#[inline(always)]
unsafe fn dot_signed<const BITS: u32, const FROM: usize, const TO: usize, const T: usize>(
    codes: &[[uint8x16_t; 8]; 4],
    x: *const i8,
    sums: &mut [[int32x4_t; 4]; T],
) {
    isa!({
        let flip = vdupq_n_u8(if BITS == 8 { 128 } else { 0 });
        for (t, sums) in sums.iter_mut().enumerate() {
            let x = x.add(32 * t + 4 * FROM);
            if BITS == 8 {
                let mut total = vdupq_n_s32(0);
                for quad in 0..TO - FROM {
                    total = sdot(total, vdupq_n_s8(1), broadcast(x.add(4 * quad)));
                }
                for sum in sums.iter_mut() {
                    *sum = vaddq_s32(*sum, vshlq_n_s32::<7>(total));
                }
            }
            for quad in 0..TO - FROM {
                let x = broadcast(x.add(4 * quad));
                for (sum, codes) in sums.iter_mut().zip(codes) {
                    let codes = vreinterpretq_s8_u8(veorq_u8(codes[FROM + quad], flip));
                    *sum = sdot(*sum, codes, x);
                }
            }
        }
    });
}

/// Adds to the four lanes the products of two rows of 8 codes with two tokens' 8 x: row 0 with
/// both, then row 1. In assembly: the intrinsic is not stable yet.
///
/// # Safety
/// The machine has the feature named.
#[inline]
#[target_feature(enable = "neon,i8mm")]
unsafe fn usmmla(mut sums: int32x4_t, codes: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: changes registers only.
    unsafe {
        core::arch::asm!(
            "usmmla {sums:v}.4s, {codes:v}.16b, {x:v}.16b",
            sums = inout(vreg) sums, codes = in(vreg) codes, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sums
}

/// Two quads of 4 rows as 2 x 8 codes: those of the first two rows, and those of the others.
#[inline(always)]
unsafe fn row_pairs(first: uint8x16_t, second: uint8x16_t) -> [uint8x16_t; 2] {
    isa!({
        let (first, second) = (vreinterpretq_u32_u8(first), vreinterpretq_u32_u8(second));
        let low = vreinterpretq_u8_u32(vzip1q_u32(first, second));
        [low, vreinterpretq_u8_u32(vzip2q_u32(first, second))]
    })
}

/// The dot products by `usmmla`, two tokens at a time (a token alone takes both places).
///
/// # Safety
/// As `Vector::dot`; the machine has the matrix instructions.
#[inline(always)]
unsafe fn dot_matrix<const FROM: usize, const TO: usize, const T: usize>(
    codes: &[[uint8x16_t; 8]; 4],
    x: *const i8,
    sums: &mut [[int32x4_t; 4]; T],
) {
    isa!({
        for part in 0..4 {
            let codes = &codes[part];
            let mut pairs = [[vdupq_n_u8(0); 2]; 4];
            for quad in (FROM..TO).step_by(2) {
                pairs[quad / 2] = row_pairs(codes[quad], codes[quad + 1]);
            }
            for t in (0..T).step_by(2) {
                let other = (t + 1).min(T - 1);
                let mut of_rows = [vdupq_n_s32(0); 2];
                for quad in (FROM..TO).step_by(2) {
                    let one = vld1_s8(x.add(32 * t + 4 * quad));
                    let x = vcombine_s8(one, vld1_s8(x.add(32 * other + 4 * quad)));
                    of_rows[0] = usmmla(of_rows[0], pairs[quad / 2][0], x);
                    of_rows[1] = usmmla(of_rows[1], pairs[quad / 2][1], x);
                }
                let [first, second] = of_rows;
                sums[t][part] = vaddq_s32(sums[t][part], vuzp1q_s32(first, second));
                if other > t {
                    let products = vuzp2q_s32(first, second);
                    sums[other][part] = vaddq_s32(sums[other][part], products);
                }
            }
        }
    });
}

impl<const DOTS: u8> Vector for Neon<DOTS> {
    /// `[rows 0..4 | 4..8 | 8..12 | 12..16][quad]`.
    type Codes = [[uint8x16_t; 8]; 4];
    type Ints = [int32x4_t; 4];
    const TOKENS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        isa!(Neon([vdupq_n_f32(value); 4]))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        quarters!(part => vld1q_f32(from.add(4 * part)))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        isa!({
            let bits = from.cast::<[u16; 16]>().read_unaligned();
            let mut lanes = [0.0f32; 16];
            for (lane, bits) in lanes.iter_mut().zip(bits) {
                *lane = f16::from_bits(bits).to_f32();
            }
            Self::load(lanes.as_ptr())
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        quarters!(part => {
            vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(from.add(4 * part))))
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        isa!({
            for part in 0..4 {
                vst1q_f32(to.add(4 * part), self.0[part]);
            }
        });
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        isa!({
            let mut lanes = [0.0f32; 16];
            self.store(lanes.as_mut_ptr());
            let bits = lanes.map(|value| f16::from_f32(value).to_bits());
            to.cast::<[u16; 16]>().write_unaligned(bits);
        });
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        quarters!(part => vaddq_f32(self.0[part], other.0[part]))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        quarters!(part => vsubq_f32(self.0[part], other.0[part]))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        quarters!(part => vmulq_f32(self.0[part], other.0[part]))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        quarters!(part => vdivq_f32(self.0[part], other.0[part]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        quarters!(part => {
            let wins = vcgtq_f32(self.0[part], other.0[part]);
            vbslq_f32(wins, self.0[part], other.0[part])
        })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        quarters!(part => {
            let wins = vcltq_f32(self.0[part], other.0[part]);
            vbslq_f32(wins, self.0[part], other.0[part])
        })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        quarters!(part => vfmaq_f32(addend.0[part], self.0[part], factor.0[part]))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        quarters!(part => vabsq_f32(self.0[part]))
    }
    #[inline(always)]
    unsafe fn add_exponent(self, power: Self) -> Self {
        quarters!(part => {
            let shifted = vshlq_n_s32::<23>(vreinterpretq_s32_f32(power.0[part]));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(self.0[part]), shifted))
        })
    }
    #[inline(always)]
    unsafe fn zero_below(self, x: Self, limit: Self) -> Self {
        quarters!(part => {
            let below = vcltq_f32(x.0[part], limit.0[part]);
            vbslq_f32(below, vdupq_n_f32(0.0), self.0[part])
        })
    }

    #[inline(always)]
    unsafe fn quantize(self, inverse: f32, to: *mut i8) -> i32 {
        isa!({
            let mut lanes = [0i32; 16];
            for part in 0..4 {
                let x = vcvtnq_s32_f32(vmulq_n_f32(self.0[part], inverse));
                vst1q_s32(lanes.as_mut_ptr().add(4 * part), x);
            }
            to.cast::<[i8; 16]>().write_unaligned(lanes.map(|x| x as i8));
            lanes.iter().fold(0, |sum: i32, lane| sum.wrapping_add(*lane))
        })
    }
    #[inline(always)]
    unsafe fn split_quantize(self, inverse: f32, high: *mut i8, low: *mut i8) -> i32 {
        isa!({
            let mut lanes = [0i32; 16];
            for part in 0..4 {
                let x = vcvtnq_s32_f32(vmulq_n_f32(self.0[part], inverse));
                vst1q_s32(lanes.as_mut_ptr().add(4 * part), x);
            }
            let upper = lanes.map(|x| x.wrapping_add(64) >> 7);
            let mut lower = [0i8; 16];
            for (lower, (x, upper)) in lower.iter_mut().zip(lanes.iter().zip(upper)) {
                *lower = x.wrapping_sub(upper << 7) as i8;
            }
            high.cast::<[i8; 16]>().write_unaligned(upper.map(|upper| upper as i8));
            low.cast::<[i8; 16]>().write_unaligned(lower);
            lanes.iter().fold(0, |sum: i32, lane| sum.wrapping_add(*lane))
        })
    }

    #[inline(always)]
    unsafe fn unpack4(from: *const u8) -> Self::Codes {
        isa!({
            let mut codes = [[vdupq_n_u8(0); 8]; 4];
            for pair in 0..4 {
                for (part, codes) in codes.iter_mut().enumerate() {
                    let packed = vld1q_u8(from.add(64 * pair + 16 * part));
                    codes[2 * pair] = vandq_u8(packed, vdupq_n_u8(15));
                    codes[2 * pair + 1] = vshrq_n_u8::<4>(packed);
                }
            }
            codes
        })
    }
    #[inline(always)]
    unsafe fn add_planes<const PLANES: usize>(
        mut codes: Self::Codes,
        from: *const u8,
    ) -> Self::Codes {
        isa!({
            let bits = vcreate_u8(0x8040_2010_0804_0201);
            let bits = vcombine_u8(bits, bits);
            for plane in 0..PLANES {
                let bit = vdupq_n_u8(16 << plane);
                for quad in 0..8 {
                    for (part, codes) in codes.iter_mut().enumerate() {
                        let at = from.add(64 * plane + 8 * quad + 2 * part);
                        let spread = vcombine_u8(vdup_n_u8(*at), vdup_n_u8(*at.add(1)));
                        let set = vandq_u8(vtstq_u8(spread, bits), bit);
                        codes[quad] = vorrq_u8(codes[quad], set);
                    }
                }
            }
            codes
        })
    }
    #[inline(always)]
    unsafe fn unpack8(from: *const u8) -> Self::Codes {
        isa!({
            let mut codes = [[vdupq_n_u8(0); 8]; 4];
            for quad in 0..8 {
                for (part, codes) in codes.iter_mut().enumerate() {
                    codes[quad] = vld1q_u8(from.add(64 * quad + 16 * part));
                }
            }
            codes
        })
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const FROM: usize, const TO: usize, const T: usize>(
        codes: &Self::Codes,
        x: *const i8,
        sums: &mut [Self::Ints; T],
    ) {
        if DOTS == MATRIX && T > 1 {
            // SAFETY: the caller's promise; `enter_matrix` alone makes this type.
            return unsafe { dot_matrix::<FROM, TO, T>(codes, x, sums) };
        }
        if DOTS != WIDENING {
            // SAFETY: the caller's promise; `enter_dot` and `enter_matrix` alone make these types,
            // and whoever has the one feature has the other.
            return unsafe { dot_signed::<BITS, FROM, TO, T>(codes, x, sums) };
        }
        isa!({
            for part in 0..4 {
                // 8-bit codes as two nibbles: code = 16 * upper + lower.
                let mut lower = [vdupq_n_s8(0); 8];
                let mut upper = [vdupq_n_s8(0); 8];
                for quad in FROM..TO {
                    let codes = codes[part][quad];
                    lower[quad] = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(15)));
                    upper[quad] = vreinterpretq_s8_u8(vshrq_n_u8::<4>(codes));
                }
                for t in 0..T {
                    let x = x.add(32 * t + 4 * FROM);
                    let mut sum = vaddq_s32(sums[t][part], dot_nibbles(&lower[FROM..TO], x));
                    if BITS > 4 {
                        let high = dot_nibbles(&upper[FROM..TO], x);
                        sum = vaddq_s32(vshlq_n_s32::<4>(high), sum);
                    }
                    sums[t][part] = sum;
                }
            }
        });
    }
    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        isa!([vdupq_n_s32(0); 4])
    }
    #[inline(always)]
    unsafe fn offset(ints: Self::Ints, by: i32) -> Self::Ints {
        isa!({
            let mut out = ints;
            for part in &mut out {
                *part = vaddq_s32(*part, vdupq_n_s32(by));
            }
            out
        })
    }
    #[inline(always)]
    unsafe fn to_float(ints: Self::Ints) -> Self {
        quarters!(part => vcvtq_f32_s32(ints[part]))
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: any address may be asked for; nothing else happens.
        unsafe {
            core::arch::asm!(
                "prfm pldl1keep, [{from}]", from = in(reg) from,
                options(readonly, nostack, preserves_flags)
            );
        }
    }
}
