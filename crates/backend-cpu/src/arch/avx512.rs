//! AVX-512 with VNNI: 16 lanes are one register, `vpdpbusd` is the dot product.

use super::Kernel;
use crate::vector::Vector;
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

/// # Safety
/// The machine has the features named; the kernel's own contract holds.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { kernel.run::<Avx512>() }
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

/// A quad of the token's activations in all rows' lanes.
#[inline(always)]
unsafe fn broadcast(from: *const i8) -> __m512i {
    isa!(_mm512_set1_epi32(from.cast::<i32>().read_unaligned()))
}

/// One quad's instructions for the tokens listed: `vpdpbusd` with the token's 4 bytes broadcast
/// from memory.
macro_rules! quad {
    ($w:literal, $at:literal, $($t:literal: $sum:literal),*) => {
        concat!($(
            "vpdpbusd {", $sum, "}, {", $w, "}, dword ptr [{x} + 32*",
                $t, " + ", $at, "]{{1to16}}\n"
        ),*)
    };
}

/// One quad of 8 tokens.
macro_rules! quad8 {
    ($w:literal, $at:literal) => {
        quad!($w, $at, 0: "s0", 1: "s1", 2: "s2", 3: "s3", 4: "s4", 5: "s5", 6: "s6", 7: "s7")
    };
}

/// One quad of 4 tokens.
macro_rules! quad4 {
    ($w:literal, $at:literal) => {
        quad!($w, $at, 0: "s0", 1: "s1", 2: "s2", 3: "s3")
    };
}

/// 8 tokens: 8 chains of dependent instructions of 4 cycles, so one starts every cycle.
///
/// In assembly because the compiler moves all broadcasts to the front and spills them.
///
/// # Safety
/// 8 groups of 32 bytes at `x`; AVX-512 VNNI is present.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dot_8_tokens(codes: &[__m512i], x: *const i8, sums: &mut [__m512i]) {
    // SAFETY: reads the 8 groups at `x` and changes registers only.
    unsafe {
        core::arch::asm!(
            quad8!("w0", "0"),
            quad8!("w1", "4"),
            quad8!("w2", "8"),
            quad8!("w3", "12"),
            quad8!("w4", "16"),
            quad8!("w5", "20"),
            quad8!("w6", "24"),
            quad8!("w7", "28"),
            x = in(reg) x, w0 = in(zmm_reg) codes[0], w1 = in(zmm_reg) codes[1],
            w2 = in(zmm_reg) codes[2], w3 = in(zmm_reg) codes[3], w4 = in(zmm_reg) codes[4],
            w5 = in(zmm_reg) codes[5], w6 = in(zmm_reg) codes[6], w7 = in(zmm_reg) codes[7],
            s0 = inout(zmm_reg) sums[0], s1 = inout(zmm_reg) sums[1],
            s2 = inout(zmm_reg) sums[2], s3 = inout(zmm_reg) sums[3],
            s4 = inout(zmm_reg) sums[4], s5 = inout(zmm_reg) sums[5],
            s6 = inout(zmm_reg) sums[6], s7 = inout(zmm_reg) sums[7],
            options(readonly, nostack, preserves_flags, pure)
        );
    }
}

/// The same over a half group.
///
/// # Safety
/// 8 groups at `x`, 32 bytes apart; AVX-512 VNNI is present.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dot_8_tokens_half(codes: &[__m512i], x: *const i8, sums: &mut [__m512i]) {
    // SAFETY: reads the 8 groups at `x` and changes registers only.
    unsafe {
        core::arch::asm!(
            quad8!("w0", "0"),
            quad8!("w1", "4"),
            quad8!("w2", "8"),
            quad8!("w3", "12"),
            x = in(reg) x, w0 = in(zmm_reg) codes[0], w1 = in(zmm_reg) codes[1],
            w2 = in(zmm_reg) codes[2], w3 = in(zmm_reg) codes[3], s0 = inout(zmm_reg) sums[0],
            s1 = inout(zmm_reg) sums[1], s2 = inout(zmm_reg) sums[2],
            s3 = inout(zmm_reg) sums[3], s4 = inout(zmm_reg) sums[4],
            s5 = inout(zmm_reg) sums[5], s6 = inout(zmm_reg) sums[6],
            s7 = inout(zmm_reg) sums[7],
            options(readonly, nostack, preserves_flags, pure)
        );
    }
}

/// 4 tokens: 4 chains keep one instruction starting every cycle.
///
/// # Safety
/// 4 groups of 32 bytes at `x`; AVX-512 VNNI is present.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn dot_4_tokens(codes: &[__m512i], x: *const i8, sums: &mut [__m512i]) {
    // SAFETY: reads the 4 groups at `x` and changes registers only.
    unsafe {
        core::arch::asm!(
            quad4!("w0", "0"),
            quad4!("w1", "4"),
            quad4!("w2", "8"),
            quad4!("w3", "12"),
            quad4!("w4", "16"),
            quad4!("w5", "20"),
            quad4!("w6", "24"),
            quad4!("w7", "28"),
            x = in(reg) x, w0 = in(zmm_reg) codes[0], w1 = in(zmm_reg) codes[1],
            w2 = in(zmm_reg) codes[2], w3 = in(zmm_reg) codes[3], w4 = in(zmm_reg) codes[4],
            w5 = in(zmm_reg) codes[5], w6 = in(zmm_reg) codes[6], w7 = in(zmm_reg) codes[7],
            s0 = inout(zmm_reg) sums[0], s1 = inout(zmm_reg) sums[1],
            s2 = inout(zmm_reg) sums[2], s3 = inout(zmm_reg) sums[3],
            options(readonly, nostack, preserves_flags, pure)
        );
    }
}

/// One token: even and odd quads run apart, or the chain would be the limit.
///
/// # Safety
/// A group of 32 bytes at `x`; AVX-512 VNNI is present.
#[inline(always)]
unsafe fn dot_token(codes: &[__m512i], x: *const i8, sum: __m512i) -> __m512i {
    isa!({
        let mut sums = [sum, _mm512_setzero_si512()];
        for quad in 0..codes.len() {
            let sum = &mut sums[quad % 2];
            *sum = _mm512_dpbusd_epi32(*sum, codes[quad], broadcast(x.add(4 * quad)));
        }
        _mm512_add_epi32(sums[0], sums[1])
    })
}

impl Vector for Avx512 {
    type Codes = [__m512i; 8];
    type Ints = __m512i;
    const TOKENS: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        isa!(Avx512(_mm512_set1_ps(value)))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        isa!(Avx512(_mm512_loadu_ps(from)))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        isa!(Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        isa!({
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        isa!(_mm512_storeu_ps(to, self.0));
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        isa!({
            let bits = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0);
            _mm256_storeu_si256(to.cast(), bits);
        });
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        isa!(Avx512(_mm512_add_ps(self.0, other.0)))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        isa!(Avx512(_mm512_sub_ps(self.0, other.0)))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        isa!(Avx512(_mm512_mul_ps(self.0, other.0)))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        isa!(Avx512(_mm512_div_ps(self.0, other.0)))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        isa!(Avx512(_mm512_max_ps(self.0, other.0)))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        isa!(Avx512(_mm512_min_ps(self.0, other.0)))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        isa!(Avx512(_mm512_fmadd_ps(self.0, factor.0, addend.0)))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        isa!(Avx512(_mm512_abs_ps(self.0)))
    }
    #[inline(always)]
    unsafe fn add_exponent(self, power: Self) -> Self {
        isa!({
            let shifted = _mm512_slli_epi32::<23>(_mm512_castps_si512(power.0));
            Avx512(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), shifted)))
        })
    }
    #[inline(always)]
    unsafe fn zero_below(self, x: Self, limit: Self) -> Self {
        isa!({
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x.0, limit.0);
            Avx512(_mm512_mask_mov_ps(self.0, below, _mm512_setzero_ps()))
        })
    }

    #[inline(always)]
    unsafe fn quantize(self, inverse: f32, to: *mut i8) -> i32 {
        isa!({
            let x = _mm512_cvtps_epi32(_mm512_mul_ps(self.0, _mm512_set1_ps(inverse)));
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(x));
            _mm512_reduce_add_epi32(x)
        })
    }
    #[inline(always)]
    unsafe fn split_quantize(self, inverse: f32, high: *mut i8, low: *mut i8) -> i32 {
        isa!({
            let x = _mm512_cvtps_epi32(_mm512_mul_ps(self.0, _mm512_set1_ps(inverse)));
            let upper = _mm512_srai_epi32::<7>(_mm512_add_epi32(x, _mm512_set1_epi32(64)));
            let lower = _mm512_sub_epi32(x, _mm512_slli_epi32::<7>(upper));
            _mm_storeu_si128(high.cast(), _mm512_cvtepi32_epi8(upper));
            _mm_storeu_si128(low.cast(), _mm512_cvtepi32_epi8(lower));
            _mm512_reduce_add_epi32(x)
        })
    }

    #[inline(always)]
    unsafe fn unpack4(from: *const u8) -> Self::Codes {
        isa!({
            let mask = _mm512_set1_epi8(15);
            let mut codes = [_mm512_setzero_si512(); 8];
            for pair in 0..4 {
                let packed = _mm512_loadu_si512(from.add(64 * pair).cast());
                codes[2 * pair] = _mm512_and_si512(packed, mask);
                codes[2 * pair + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(packed), mask);
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
            for plane in 0..PLANES {
                let bit = _mm512_set1_epi8(16 << plane);
                for (quad, codes) in codes.iter_mut().enumerate() {
                    let mask = from.add(64 * plane + 8 * quad).cast::<u64>().read_unaligned();
                    *codes = _mm512_mask_add_epi8(*codes, mask, *codes, bit);
                }
            }
            codes
        })
    }
    #[inline(always)]
    unsafe fn unpack8(from: *const u8) -> Self::Codes {
        isa!({
            let mut codes = [_mm512_setzero_si512(); 8];
            for (quad, codes) in codes.iter_mut().enumerate() {
                *codes = _mm512_loadu_si512(from.add(64 * quad).cast());
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
        isa!({
            let x = x.add(4 * FROM);
            match (T, TO - FROM) {
                (8, 8) => dot_8_tokens(codes, x, sums),
                (8, 4) => dot_8_tokens_half(&codes[FROM..TO], x, sums),
                (4, 8) => dot_4_tokens(codes, x, sums),
                _ => {
                    for (t, sum) in sums.iter_mut().enumerate() {
                        *sum = dot_token(&codes[FROM..TO], x.add(32 * t), *sum);
                    }
                }
            }
        });
    }
    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        isa!(_mm512_setzero_si512())
    }
    #[inline(always)]
    unsafe fn shift_left(ints: Self::Ints, power: u32) -> Self::Ints {
        isa!(_mm512_sll_epi32(ints, _mm_cvtsi32_si128(power as i32)))
    }
    #[inline(always)]
    unsafe fn offset(ints: Self::Ints, by: i32) -> Self::Ints {
        isa!(_mm512_add_epi32(ints, _mm512_set1_epi32(by)))
    }
    #[inline(always)]
    unsafe fn to_float(ints: Self::Ints) -> Self {
        isa!(Avx512(_mm512_cvtepi32_ps(ints)))
    }
    #[inline(always)]
    unsafe fn reduce_add(self) -> f32 {
        isa!({
            let (low, high) = (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            let eight = _mm256_add_ps(low, high);
            let (low, high) = (_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let four = _mm_add_ps(low, high);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }
    /// `vmaxps` too gives its second operand where the two do not compare.
    #[inline(always)]
    unsafe fn reduce_max(self) -> f32 {
        isa!({
            let (low, high) = (_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            let eight = _mm256_max_ps(low, high);
            let (low, high) = (_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let four = _mm_max_ps(low, high);
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        isa!(_mm_prefetch::<_MM_HINT_T0>(from.cast()));
    }
}
