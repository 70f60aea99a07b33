//! AVX2 with FMA: 16 lanes are two registers, `vpmaddubsw` is the dot product.

use super::Kernel;
use crate::vector::Vector;
use core::arch::x86_64::*;

#[derive(Clone, Copy)]
pub(super) struct Avx2([__m256; 2]);

/// # Safety
/// The machine has the features named; the kernel's own contract holds.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn enter<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the features are enabled here; the rest is the caller's promise.
    unsafe { kernel.run::<Avx2>() }
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

macro_rules! pairwise {
    ($function:ident($a:expr, $b:expr)) => {
        isa!(Avx2([$function($a.0[0], $b.0[0]), $function($a.0[1], $b.0[1])]))
    };
}

/// The sum over quads of 4-bit code * x, for 8 rows.
///
/// A `vpmaddubsw` lane is at most 2 * 15 * 127 = 3,810, and 8 of them 30,480 < 2^15: exact.
#[inline(always)]
unsafe fn dot_nibbles(codes: &[__m256i], x: *const i8) -> __m256i {
    isa!({
        let mut sums = _mm256_setzero_si256();
        for (quad, codes) in codes.iter().enumerate() {
            let x = _mm256_set1_epi32(x.add(4 * quad).cast::<i32>().read_unaligned());
            sums = _mm256_add_epi16(sums, _mm256_maddubs_epi16(*codes, x));
        }
        _mm256_madd_epi16(sums, _mm256_set1_epi16(1))
    })
}

impl Vector for Avx2 {
    /// `[rows 0..8 | 8..16][quad]`.
    type Codes = [[__m256i; 8]; 2];
    type Ints = [__m256i; 2];
    const TOKENS: usize = 4;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        isa!(Avx2([_mm256_set1_ps(value); 2]))
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        isa!(Avx2([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self {
        isa!(Avx2([
            _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast())),
        ]))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        isa!({
            let low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            let high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8).cast()));
            Avx2([
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)),
            ])
        })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        isa!({
            _mm256_storeu_ps(to, self.0[0]);
            _mm256_storeu_ps(to.add(8), self.0[1]);
        });
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16) {
        isa!({
            let low = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0[0]);
            let high = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0[1]);
            _mm_storeu_si128(to.cast(), low);
            _mm_storeu_si128(to.add(8).cast(), high);
        });
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        pairwise!(_mm256_add_ps(self, other))
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        pairwise!(_mm256_sub_ps(self, other))
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        pairwise!(_mm256_mul_ps(self, other))
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        pairwise!(_mm256_div_ps(self, other))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        pairwise!(_mm256_max_ps(self, other))
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        pairwise!(_mm256_min_ps(self, other))
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        isa!(Avx2([
            _mm256_fmadd_ps(self.0[0], factor.0[0], addend.0[0]),
            _mm256_fmadd_ps(self.0[1], factor.0[1], addend.0[1]),
        ]))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        isa!({
            let sign = _mm256_set1_ps(-0.0);
            Avx2([_mm256_andnot_ps(sign, self.0[0]), _mm256_andnot_ps(sign, self.0[1])])
        })
    }
    #[inline(always)]
    unsafe fn add_exponent(self, power: Self) -> Self {
        isa!({
            let mut out = self.0;
            for (out, power) in out.iter_mut().zip(power.0) {
                let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(power));
                *out = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(*out), shifted));
            }
            Avx2(out)
        })
    }
    #[inline(always)]
    unsafe fn zero_below(self, x: Self, limit: Self) -> Self {
        isa!({
            let low = _mm256_cmp_ps::<_CMP_LT_OQ>(x.0[0], limit.0[0]);
            let high = _mm256_cmp_ps::<_CMP_LT_OQ>(x.0[1], limit.0[1]);
            Avx2([_mm256_andnot_ps(low, self.0[0]), _mm256_andnot_ps(high, self.0[1])])
        })
    }

    #[inline(always)]
    unsafe fn quantize(self, inverse: f32, to: *mut i8) -> i32 {
        isa!({
            let inverse = _mm256_set1_ps(inverse);
            let x = [
                _mm256_cvtps_epi32(_mm256_mul_ps(self.0[0], inverse)),
                _mm256_cvtps_epi32(_mm256_mul_ps(self.0[1], inverse)),
            ];
            store_bytes(x, to);
            let mut lanes = [0i32; 8];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(x[0], x[1]));
            lanes.iter().sum()
        })
    }
    #[inline(always)]
    unsafe fn split_quantize(self, inverse: f32, high: *mut i8, low: *mut i8) -> i32 {
        isa!({
            let mut sums = _mm256_setzero_si256();
            let mut uppers = [_mm256_setzero_si256(); 2];
            let mut lowers = uppers;
            for half in 0..2 {
                let scaled = _mm256_mul_ps(self.0[half], _mm256_set1_ps(inverse));
                let x = _mm256_cvtps_epi32(scaled);
                let upper = _mm256_srai_epi32::<7>(_mm256_add_epi32(x, _mm256_set1_epi32(64)));
                uppers[half] = upper;
                lowers[half] = _mm256_sub_epi32(x, _mm256_slli_epi32::<7>(upper));
                sums = _mm256_add_epi32(sums, x);
            }
            store_bytes(uppers, high);
            store_bytes(lowers, low);
            let mut lanes = [0i32; 8];
            _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sums);
            lanes.iter().fold(0, |sum: i32, lane| sum.wrapping_add(*lane))
        })
    }

    #[inline(always)]
    unsafe fn unpack4(from: *const u8) -> Self::Codes {
        isa!({
            let mask = _mm256_set1_epi8(15);
            let mut codes = [[_mm256_setzero_si256(); 8]; 2];
            for pair in 0..4 {
                for half in 0..2 {
                    let packed = _mm256_loadu_si256(from.add(64 * pair + 32 * half).cast());
                    let shifted = _mm256_srli_epi16::<4>(packed);
                    codes[half][2 * pair] = _mm256_and_si256(packed, mask);
                    codes[half][2 * pair + 1] = _mm256_and_si256(shifted, mask);
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
            // Byte i of 32 looks at bit i % 8 of byte i / 8 of 4.
            let source = _mm256_set_epi64x(
                0x0303_0303_0303_0303,
                0x0202_0202_0202_0202,
                0x0101_0101_0101_0101,
                0,
            );
            let bits = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            for plane in 0..PLANES {
                let bit = _mm256_set1_epi8(16 << plane);
                for quad in 0..8 {
                    for half in 0..2 {
                        let at = from.add(64 * plane + 8 * quad + 4 * half);
                        let word = _mm256_set1_epi32(at.cast::<i32>().read_unaligned());
                        let spread = _mm256_and_si256(_mm256_shuffle_epi8(word, source), bits);
                        let set = _mm256_and_si256(_mm256_cmpeq_epi8(spread, bits), bit);
                        codes[half][quad] = _mm256_or_si256(codes[half][quad], set);
                    }
                }
            }
            codes
        })
    }
    #[inline(always)]
    unsafe fn unpack8(from: *const u8) -> Self::Codes {
        isa!({
            let mut codes = [[_mm256_setzero_si256(); 8]; 2];
            for quad in 0..8 {
                for half in 0..2 {
                    codes[half][quad] = _mm256_loadu_si256(from.add(64 * quad + 32 * half).cast());
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
        isa!({
            for half in 0..2 {
                let codes = &codes[half][FROM..TO];
                if BITS == 4 {
                    for t in 0..T {
                        let dot = dot_nibbles(codes, x.add(32 * t + 4 * FROM));
                        sums[t][half] = _mm256_add_epi32(sums[t][half], dot);
                    }
                } else {
                    // 8-bit codes as two nibbles: code = 16 * upper + lower.
                    let mask = _mm256_set1_epi8(15);
                    let mut lower = [_mm256_setzero_si256(); 8];
                    let mut upper = [_mm256_setzero_si256(); 8];
                    for (quad, codes) in codes.iter().enumerate() {
                        lower[quad] = _mm256_and_si256(*codes, mask);
                        upper[quad] = _mm256_and_si256(_mm256_srli_epi16::<4>(*codes), mask);
                    }
                    for t in 0..T {
                        let x = x.add(32 * t + 4 * FROM);
                        let high = _mm256_slli_epi32::<4>(dot_nibbles(&upper[..TO - FROM], x));
                        let dot = _mm256_add_epi32(high, dot_nibbles(&lower[..TO - FROM], x));
                        sums[t][half] = _mm256_add_epi32(sums[t][half], dot);
                    }
                }
            }
        });
    }
    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        isa!([_mm256_setzero_si256(); 2])
    }
    #[inline(always)]
    unsafe fn offset(ints: Self::Ints, by: i32) -> Self::Ints {
        isa!({
            let by = _mm256_set1_epi32(by);
            [_mm256_add_epi32(ints[0], by), _mm256_add_epi32(ints[1], by)]
        })
    }
    #[inline(always)]
    unsafe fn to_float(ints: Self::Ints) -> Self {
        isa!(Avx2([_mm256_cvtepi32_ps(ints[0]), _mm256_cvtepi32_ps(ints[1])]))
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        isa!(_mm_prefetch::<_MM_HINT_T0>(from.cast()));
    }
}

/// Narrows 16 i32 (each within i8) to bytes, in order.
#[inline(always)]
unsafe fn store_bytes(from: [__m256i; 2], to: *mut i8) {
    isa!({
        // Packing works within 128-bit halves: words come out as 0-3, 8-11, 4-7, 12-15.
        let words = _mm256_packs_epi32(from[0], from[1]);
        let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
        let low = _mm256_castsi256_si128(words);
        let high = _mm256_extracti128_si256::<1>(words);
        _mm_storeu_si128(to.cast(), _mm_packs_epi16(low, high));
    });
}
