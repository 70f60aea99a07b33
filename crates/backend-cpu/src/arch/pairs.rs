//! What can one instruction set do with pairs of 16-bit integers? Attention's dot products.
//!
//! A register of pairs holds two consecutive integers in each of 16 lanes; one instruction
//! multiplies both by two others and adds the products to the lane's 32-bit sum. Sums of integers
//! are exact, so every instruction set computes the same bits in any order.

use super::portable::Portable;
use crate::vector::Vector;

/// Dot products of 16 lanes, two integers a lane at a time.
///
/// # Safety of all methods
/// As of [`Vector`].
pub(crate) trait PairDots: Sized {
    /// 16 lanes of two i16.
    type Pairs: Copy;
    /// 16 lanes of i32.
    type Sums: Copy;

    /// 64 bytes: `[16][2]` i16.
    unsafe fn pairs_16(from: *const u8) -> Self::Pairs;
    /// 32 bytes: `[16][2]` i8.
    unsafe fn pairs_8(from: *const u8) -> Self::Pairs;
    unsafe fn no_sums() -> Self::Sums;
    /// Per lane: `sum + pair[0] * x[0] + pair[1] * x[1]`, exact while it fits.
    unsafe fn add_products(sums: Self::Sums, pairs: Self::Pairs, x: *const i16) -> Self::Sums;
    /// The same for `R` times `P`: `sums[r][p]` gets `pairs[p]` and the two integers `r * stride`
    /// after `x`.
    #[inline(always)]
    unsafe fn add_tile<const R: usize, const P: usize>(
        sums: &mut [[Self::Sums; P]; R],
        pairs: &[Self::Pairs; P],
        x: *const i16,
        stride: usize,
    ) {
        for r in 0..R {
            for p in 0..P {
                // SAFETY: the caller's promise.
                sums[r][p] = unsafe { Self::add_products(sums[r][p], pairs[p], x.add(r * stride)) };
            }
        }
    }
    unsafe fn sums_to_float(sums: Self::Sums) -> Self;
    /// Rounds to 16 i16, ties to even; what does not fit or is not a number gives any integer.
    unsafe fn round_i16(self, to: *mut i16);
}

impl PairDots for Portable {
    type Pairs = [[i16; 2]; 16];
    type Sums = [i32; 16];

    #[inline(always)]
    unsafe fn pairs_16(from: *const u8) -> Self::Pairs {
        // SAFETY: the caller promises 64 bytes.
        unsafe { from.cast::<Self::Pairs>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn pairs_8(from: *const u8) -> Self::Pairs {
        // SAFETY: the caller promises 32 bytes.
        let bytes = unsafe { from.cast::<[[i8; 2]; 16]>().read_unaligned() };
        bytes.map(|pair| pair.map(i16::from))
    }
    #[inline(always)]
    unsafe fn no_sums() -> Self::Sums {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn add_products(mut sums: Self::Sums, pairs: Self::Pairs, x: *const i16) -> Self::Sums {
        // SAFETY: the caller promises two integers.
        let [a, b] = unsafe { x.cast::<[i16; 2]>().read_unaligned() }.map(i32::from);
        for (sum, pair) in sums.iter_mut().zip(pairs) {
            let products = i32::from(pair[0]) * a + i32::from(pair[1]) * b;
            *sum = sum.wrapping_add(products);
        }
        sums
    }
    #[inline(always)]
    unsafe fn sums_to_float(sums: Self::Sums) -> Self {
        let floats = sums.map(|sum| sum as f32);
        // SAFETY: 16 lanes.
        unsafe { Self::load(floats.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn round_i16(self, to: *mut i16) {
        let mut lanes = [0.0f32; 16];
        // SAFETY: 16 lanes there and here.
        unsafe {
            self.store(lanes.as_mut_ptr());
            to.cast::<[i16; 16]>().write_unaligned(lanes.map(|x| x.round_ties_even() as i16));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PairDots;
    use crate::arch::avx2::Avx2;
    use crate::arch::avx512::Avx512;
    use crate::vector::Vector;
    use core::arch::x86_64::*;

    macro_rules! isa {
        ($body:expr) => {{
            // SAFETY: the methods' contract: features present, pointers valid.
            #[allow(unused_unsafe, reason = "some intrinsics are safe where their features are on")]
            unsafe {
                $body
            }
        }};
    }

    /// In assembly because the compiler moves broadcasts to the front and spills them.
    ///
    /// # Safety
    /// Two i16 at `x`; AVX-512 VNNI is present.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn add_products_vnni(mut sums: __m512i, pairs: __m512i, x: *const i16) -> __m512i {
        // SAFETY: reads the 4 bytes at `x` and changes registers only.
        unsafe {
            core::arch::asm!(
                "vpdpwssd {sums}, {pairs}, dword ptr [{x}]{{1to16}}",
                sums = inout(zmm_reg) sums, pairs = in(zmm_reg) pairs, x = in(reg) x,
                options(readonly, nostack, preserves_flags, pure)
            );
        }
        sums
    }

    /// Two integers for several vectors of pairs, broadcast once: a cycle has two loads and two
    /// products, and a broadcast for each product leaves no load for the pairs.
    macro_rules! add_row {
        ($name:ident: $($p:literal $sum:ident $pair:ident),*) => {
            /// # Safety
            /// As `add_products_vnni`; the slices are as long as the name says.
            #[inline]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
            unsafe fn $name(sums: &mut [__m512i], pairs: &[__m512i], x: *const i16) {
                // Its type says how wide the register is.
                let _broadcast: __m512i;
                // SAFETY: reads the 4 bytes at `x` and changes registers only.
                unsafe {
                    core::arch::asm!(
                        "vpbroadcastd {x2}, dword ptr [{x}]",
                        $(concat!(
                            "vpdpwssd {", stringify!($sum), "}, {", stringify!($pair), "}, {x2}"
                        ),)*
                        x = in(reg) x, x2 = out(zmm_reg) _broadcast,
                        $($sum = inout(zmm_reg) sums[$p], $pair = in(zmm_reg) pairs[$p],)*
                        options(readonly, nostack, preserves_flags, pure)
                    );
                }
            }
        };
    }
    add_row!(add_row_2: 0 s0 w0, 1 s1 w1);
    add_row!(add_row_4: 0 s0 w0, 1 s1 w1, 2 s2 w2, 3 s3 w3);

    impl PairDots for Avx512 {
        type Pairs = __m512i;
        type Sums = __m512i;

        #[inline(always)]
        unsafe fn pairs_16(from: *const u8) -> Self::Pairs {
            isa!(_mm512_loadu_si512(from.cast()))
        }
        #[inline(always)]
        unsafe fn pairs_8(from: *const u8) -> Self::Pairs {
            isa!(_mm512_cvtepi8_epi16(_mm256_loadu_si256(from.cast())))
        }
        #[inline(always)]
        unsafe fn no_sums() -> Self::Sums {
            isa!(_mm512_setzero_si512())
        }
        #[inline(always)]
        unsafe fn add_products(sums: Self::Sums, pairs: Self::Pairs, x: *const i16) -> Self::Sums {
            isa!(add_products_vnni(sums, pairs, x))
        }
        #[inline(always)]
        unsafe fn add_tile<const R: usize, const P: usize>(
            sums: &mut [[Self::Sums; P]; R],
            pairs: &[Self::Pairs; P],
            x: *const i16,
            stride: usize,
        ) {
            for r in 0..R {
                isa!({
                    let x = x.add(r * stride);
                    match P {
                        2 => add_row_2(&mut sums[r], pairs, x),
                        4 => add_row_4(&mut sums[r], pairs, x),
                        _ => {
                            for p in 0..P {
                                sums[r][p] = add_products_vnni(sums[r][p], pairs[p], x);
                            }
                        }
                    }
                });
            }
        }
        #[inline(always)]
        unsafe fn sums_to_float(sums: Self::Sums) -> Self {
            isa!({
                let mut floats = [0.0f32; 16];
                _mm512_storeu_ps(floats.as_mut_ptr(), _mm512_cvtepi32_ps(sums));
                Self::load(floats.as_ptr())
            })
        }
        #[inline(always)]
        unsafe fn round_i16(self, to: *mut i16) {
            isa!({
                let mut lanes = [0.0f32; 16];
                self.store(lanes.as_mut_ptr());
                let whole = _mm512_cvtps_epi32(_mm512_loadu_ps(lanes.as_ptr()));
                _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(whole));
            });
        }
    }

    impl PairDots for Avx2 {
        type Pairs = [__m256i; 2];
        type Sums = [__m256i; 2];

        #[inline(always)]
        unsafe fn pairs_16(from: *const u8) -> Self::Pairs {
            isa!([_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())])
        }
        #[inline(always)]
        unsafe fn pairs_8(from: *const u8) -> Self::Pairs {
            isa!({
                let wide = |from: *const u8| _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast()));
                [wide(from), wide(from.add(16))]
            })
        }
        #[inline(always)]
        unsafe fn no_sums() -> Self::Sums {
            isa!([_mm256_setzero_si256(); 2])
        }
        #[inline(always)]
        unsafe fn add_products(sums: Self::Sums, pairs: Self::Pairs, x: *const i16) -> Self::Sums {
            isa!({
                let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
                let add =
                    |half: usize| _mm256_add_epi32(sums[half], _mm256_madd_epi16(pairs[half], x));
                [add(0), add(1)]
            })
        }
        #[inline(always)]
        unsafe fn sums_to_float(sums: Self::Sums) -> Self {
            isa!({
                let mut floats = [0.0f32; 16];
                _mm256_storeu_ps(floats.as_mut_ptr(), _mm256_cvtepi32_ps(sums[0]));
                _mm256_storeu_ps(floats.as_mut_ptr().add(8), _mm256_cvtepi32_ps(sums[1]));
                Self::load(floats.as_ptr())
            })
        }
        #[inline(always)]
        unsafe fn round_i16(self, to: *mut i16) {
            isa!({
                let mut lanes = [0.0f32; 16];
                self.store(lanes.as_mut_ptr());
                let low = _mm256_cvtps_epi32(_mm256_loadu_ps(lanes.as_ptr()));
                let high = _mm256_cvtps_epi32(_mm256_loadu_ps(lanes.as_ptr().add(8)));
                // Packing works within 128-bit halves: words come out as 0-3, 8-11, 4-7, 12-15.
                let words = _mm256_packs_epi32(low, high);
                let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
                _mm256_storeu_si256(to.cast(), words);
            });
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use super::PairDots;
    use crate::arch::neon::Neon;
    use crate::vector::Vector;
    use core::arch::aarch64::*;

    macro_rules! isa {
        ($body:expr) => {{
            // SAFETY: the methods' contract: NEON is present, pointers valid.
            #[allow(unused_unsafe, reason = "some intrinsics are safe where their features are on")]
            unsafe {
                $body
            }
        }};
    }

    impl<const DOTS: u8> PairDots for Neon<DOTS> {
        /// Lanes 0 to 7, then 8 to 15: first integers and second integers apart.
        type Pairs = [int16x8x2_t; 2];
        type Sums = [int32x4_t; 4];

        #[inline(always)]
        unsafe fn pairs_16(from: *const u8) -> Self::Pairs {
            isa!([vld2q_s16(from.cast()), vld2q_s16(from.cast::<i16>().add(16))])
        }
        #[inline(always)]
        unsafe fn pairs_8(from: *const u8) -> Self::Pairs {
            isa!({
                let wide = |bytes: int8x8x2_t| int16x8x2_t(vmovl_s8(bytes.0), vmovl_s8(bytes.1));
                [wide(vld2_s8(from.cast())), wide(vld2_s8(from.cast::<i8>().add(16)))]
            })
        }
        #[inline(always)]
        unsafe fn no_sums() -> Self::Sums {
            isa!([vdupq_n_s32(0); 4])
        }
        #[inline(always)]
        unsafe fn add_products(sums: Self::Sums, pairs: Self::Pairs, x: *const i16) -> Self::Sums {
            isa!({
                let [a, b] = x.cast::<[i16; 2]>().read_unaligned();
                let mut out = sums;
                for half in 0..2 {
                    let int16x8x2_t(first, second) = pairs[half];
                    let low = vmlal_n_s16(out[2 * half], vget_low_s16(first), a);
                    out[2 * half] = vmlal_n_s16(low, vget_low_s16(second), b);
                    let high = vmlal_n_s16(out[2 * half + 1], vget_high_s16(first), a);
                    out[2 * half + 1] = vmlal_n_s16(high, vget_high_s16(second), b);
                }
                out
            })
        }
        #[inline(always)]
        unsafe fn sums_to_float(sums: Self::Sums) -> Self {
            isa!({
                let mut floats = [0.0f32; 16];
                for part in 0..4 {
                    vst1q_f32(floats.as_mut_ptr().add(4 * part), vcvtq_f32_s32(sums[part]));
                }
                Self::load(floats.as_ptr())
            })
        }
        #[inline(always)]
        unsafe fn round_i16(self, to: *mut i16) {
            isa!({
                let mut lanes = [0.0f32; 16];
                self.store(lanes.as_mut_ptr());
                for part in 0..4 {
                    let whole = vcvtnq_s32_f32(vld1q_f32(lanes.as_ptr().add(4 * part)));
                    vst1_s16(to.add(4 * part), vqmovn_s32(whole));
                }
            });
        }
    }
}
