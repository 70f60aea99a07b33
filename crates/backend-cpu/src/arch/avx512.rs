//! AVX-512 with VNNI: 16 lanes are one register, `vpdpbusd` is the dot product.

use super::Kernel;
use crate::rows::GroupScale;
use crate::vector::Vector;
use core::arch::x86_64::*;
use std::mem::offset_of;

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

/// In assembly because the compiler takes the value from the register it was stored from, over a
/// port of products.
///
/// # Safety
/// An integer at `from`; AVX-512 is present.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_ints(from: *const i32) -> __m512i {
    let ints: __m512i;
    // SAFETY: reads the 4 bytes at `from` and changes a register only.
    unsafe {
        core::arch::asm!(
            "vpbroadcastd {ints}, dword ptr [{from}]",
            ints = out(zmm_reg) ints, from = in(reg) from,
            options(readonly, nostack, preserves_flags, pure)
        );
    }
    ints
}

/// One quad of 4 tokens and the row blocks listed: a broadcast serves them all.
macro_rules! quad_blocks {
    ($quad:literal, $($block:literal $w:ident $s0:ident $s1:ident $s2:ident $s3:ident),*) => {
        concat!(
            $(
                "vmovdqa64 {", stringify!($w), "}, [{codes} + 512*", $block, " + 64*", $quad,
                "]\n",
            )*
            "vpbroadcastd {x0}, dword ptr [{x} + 4*", $quad, "]\n",
            $("vpdpbusd {", stringify!($s0), "}, {", stringify!($w), "}, {x0}\n",)*
            "vpbroadcastd {x0}, dword ptr [{x} + 32 + 4*", $quad, "]\n",
            $("vpdpbusd {", stringify!($s1), "}, {", stringify!($w), "}, {x0}\n",)*
            "vpbroadcastd {x0}, dword ptr [{x} + 64 + 4*", $quad, "]\n",
            $("vpdpbusd {", stringify!($s2), "}, {", stringify!($w), "}, {x0}\n",)*
            "vpbroadcastd {x0}, dword ptr [{x} + 96 + 4*", $quad, "]\n",
            $("vpdpbusd {", stringify!($s3), "}, {", stringify!($w), "}, {x0}\n",)*
        )
    };
}

/// The first four quads of 4 tokens and the row blocks listed.
macro_rules! four_quads {
    ($($blocks:tt)*) => {
        concat!(
            quad_blocks!(0, $($blocks)*),
            quad_blocks!(1, $($blocks)*),
            quad_blocks!(2, $($blocks)*),
            quad_blocks!(3, $($blocks)*),
        )
    };
}

/// The last four.
macro_rules! more_quads {
    ($($blocks:tt)*) => {
        concat!(
            quad_blocks!(4, $($blocks)*),
            quad_blocks!(5, $($blocks)*),
            quad_blocks!(6, $($blocks)*),
            quad_blocks!(7, $($blocks)*),
        )
    };
}

macro_rules! dot_blocks {
    (
        $name:ident, $half:ident,
        $($r:literal $w:ident $s0:ident $s1:ident $s2:ident $s3:ident),*
    ) => {
        dot_blocks!(
            $name,
            (
                four_quads!($($r $w $s0 $s1 $s2 $s3),*),
                more_quads!($($r $w $s0 $s1 $s2 $s3),*)
            ),
            $($r $w $s0 $s1 $s2 $s3),*
        );
        dot_blocks!(
            $half,
            (four_quads!($($r $w $s0 $s1 $s2 $s3),*)),
            $($r $w $s0 $s1 $s2 $s3),*
        );
    };
    (
        $name:ident, ($($lines:expr),*),
        $($r:literal $w:ident $s0:ident $s1:ident $s2:ident $s3:ident),*
    ) => {
        /// 4 tokens and the row blocks of the name, from the quad at `codes` and `x` on.
        ///
        /// # Safety
        /// As many blocks, 512 bytes apart, of the quads' codes, 64-aligned, and the quads of 4
        /// tokens, 32 bytes apart; AVX-512 VNNI is present.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn $name(codes: *const u8, x: *const i8, sums: &mut [[__m512i; 4]]) {
            // Their types say how wide the registers are.
            let _x0: __m512i;
            $(let $w: __m512i;)*
            // SAFETY: reads what is promised at `codes` and `x`, changes registers only.
            unsafe {
                core::arch::asm!(
                    $($lines,)*
                    codes = in(reg) codes, x = in(reg) x, x0 = out(zmm_reg) _x0,
                    $(
                        $w = out(zmm_reg) $w,
                        $s0 = inout(zmm_reg) sums[$r][0], $s1 = inout(zmm_reg) sums[$r][1],
                        $s2 = inout(zmm_reg) sums[$r][2], $s3 = inout(zmm_reg) sums[$r][3],
                    )*
                    options(readonly, nostack, preserves_flags, pure)
                );
            }
            $(_ = $w;)*
        }
    };
}
dot_blocks!(dot_1_block, half_1_block, 0 w0 s0 s1 s2 s3);
dot_blocks!(dot_2_blocks, half_2_blocks, 0 w0 s0 s1 s2 s3, 1 w1 s4 s5 s6 s7);
dot_blocks!(
    dot_3_blocks, half_3_blocks,
    0 w0 s0 s1 s2 s3, 1 w1 s4 s5 s6 s7, 2 w2 s8 s9 s10 s11
);

const _: () = assert!(
    offset_of!(GroupScale, unit) == 0
        && offset_of!(GroupScale, magic) == 4
        && offset_of!(GroupScale, total) == 8
        && size_of::<GroupScale>() == 20
);

/// Sums of one token and the row blocks listed become values, which are added.
macro_rules! add_token {
    ($t:literal, $($bias:ident $w:ident $product:ident $sum:ident),*) => {
        concat!(
            "vbroadcastss {x0}, dword ptr [{x} + 20*", $t, "]\n",
            $(
                "vfmadd213ps {", stringify!($sum), "}, {x0}, dword ptr [{x} + 4 + 20*", $t,
                "]{{1to16}}\n",
            )*
            $(add_token!(bias $t $bias $product),)*
            $(
                "vfmadd231ps {", stringify!($product), "}, {", stringify!($w), "}, {",
                stringify!($sum), "}\n",
            )*
        )
    };
    (bias $t:literal none $product:ident) => { "" };
    (bias $t:literal $bias:ident $product:ident) => {
        concat!(
            "vfmadd231ps {", stringify!($product), "}, {", stringify!($bias),
            "}, dword ptr [{x} + 8 + 20*", $t, "]{{1to16}}\n",
        )
    };
}

macro_rules! add_blocks {
    (
        $name:ident, $biased:ident,
        $(
            $r:literal $bias:ident $w:ident
            $p0:ident $s0:ident $p1:ident $s1:ident $p2:ident $s2:ident $p3:ident $s3:ident
        ),*
    ) => {
        /// What the name says, without biases.
        ///
        /// In assembly because the compiler keeps broadcasts for the next block and spills them.
        ///
        /// # Safety
        /// 4 scales at `x`, as many pairs of scales and biases, 256 bytes apart and 64-aligned, at
        /// `lanes`; AVX-512 is present.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn $name(
            products: &mut [[Avx512; 4]],
            sums: &[[__m512i; 4]],
            lanes: *const f32,
            x: *const GroupScale,
        ) {
            // Its type says how wide the register is.
            let _x0: __m512i;
            // SAFETY: reads what is promised at `lanes` and `x`, changes registers only.
            unsafe {
                core::arch::asm!(
                    add_token!(0, $(none $w $p0 $s0),*),
                    add_token!(1, $(none $w $p1 $s1),*),
                    add_token!(2, $(none $w $p2 $s2),*),
                    add_token!(3, $(none $w $p3 $s3),*),
                    x = in(reg) x, x0 = out(zmm_reg) _x0,
                    $(
                        $w = in(zmm_reg) _mm512_load_ps(lanes.add(64 * $r)),
                        $s0 = inout(zmm_reg) sums[$r][0] => _,
                        $s1 = inout(zmm_reg) sums[$r][1] => _,
                        $s2 = inout(zmm_reg) sums[$r][2] => _,
                        $s3 = inout(zmm_reg) sums[$r][3] => _,
                        $p0 = inout(zmm_reg) products[$r][0].0,
                        $p1 = inout(zmm_reg) products[$r][1].0,
                        $p2 = inout(zmm_reg) products[$r][2].0,
                        $p3 = inout(zmm_reg) products[$r][3].0,
                    )*
                    options(readonly, nostack, preserves_flags, pure)
                );
            }
        }

        /// What the name says.
        ///
        /// # Safety
        /// As without biases.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
        unsafe fn $biased(
            products: &mut [[Avx512; 4]],
            sums: &[[__m512i; 4]],
            lanes: *const f32,
            x: *const GroupScale,
        ) {
            // Its type says how wide the register is.
            let _x0: __m512i;
            // SAFETY: reads what is promised at `lanes` and `x`, changes registers only.
            unsafe {
                core::arch::asm!(
                    add_token!(0, $($bias $w $p0 $s0),*),
                    add_token!(1, $($bias $w $p1 $s1),*),
                    add_token!(2, $($bias $w $p2 $s2),*),
                    add_token!(3, $($bias $w $p3 $s3),*),
                    x = in(reg) x, x0 = out(zmm_reg) _x0,
                    $(
                        $w = in(zmm_reg) _mm512_load_ps(lanes.add(64 * $r)),
                        $bias = in(zmm_reg) _mm512_load_ps(lanes.add(64 * $r + 16)),
                        $s0 = inout(zmm_reg) sums[$r][0] => _,
                        $s1 = inout(zmm_reg) sums[$r][1] => _,
                        $s2 = inout(zmm_reg) sums[$r][2] => _,
                        $s3 = inout(zmm_reg) sums[$r][3] => _,
                        $p0 = inout(zmm_reg) products[$r][0].0,
                        $p1 = inout(zmm_reg) products[$r][1].0,
                        $p2 = inout(zmm_reg) products[$r][2].0,
                        $p3 = inout(zmm_reg) products[$r][3].0,
                    )*
                    options(readonly, nostack, preserves_flags, pure)
                );
            }
        }
    };
}
add_blocks!(add_1_block, add_1_biased, 0 b0 w0 p0 s0 p1 s1 p2 s2 p3 s3);
add_blocks!(
    add_2_blocks, add_2_biased,
    0 b0 w0 p0 s0 p1 s1 p2 s2 p3 s3, 1 b1 w1 p4 s4 p5 s5 p6 s6 p7 s7
);
add_blocks!(
    add_3_blocks, add_3_biased,
    0 b0 w0 p0 s0 p1 s1 p2 s2 p3 s3, 1 b1 w1 p4 s4 p5 s5 p6 s6 p7 s7,
    2 b2 w2 p8 s8 p9 s9 p10 s10 p11 s11
);

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
    const GATHERS: bool = true;

    #[inline(always)]
    unsafe fn words(from: *const u8, row_bytes: usize) -> [u32; 16] {
        isa!({
            let rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            let places = _mm512_mullo_epi32(rows, _mm512_set1_epi32(row_bytes as i32));
            std::mem::transmute::<__m512i, [u32; 16]>(_mm512_i32gather_epi32::<1>(
                places,
                from.cast(),
            ))
        })
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
    unsafe fn offset(ints: Self::Ints, by: i32) -> Self::Ints {
        isa!(_mm512_add_epi32(ints, _mm512_set1_epi32(by)))
    }
    #[inline(always)]
    unsafe fn to_float(ints: Self::Ints) -> Self {
        isa!(Avx512(_mm512_cvtepi32_ps(ints)))
    }
    const UNPACKS: bool = true;
    #[inline(always)]
    unsafe fn dot_blocks<const BITS: u32, const FROM: usize, const TO: usize, const R: usize>(
        codes: *const Self::Codes,
        x: *const i8,
        sums: &mut [[Self::Ints; 4]; R],
    ) {
        isa!({
            let (codes, x) = (codes.cast::<u8>().add(64 * FROM), x.add(4 * FROM));
            match (TO - FROM, R) {
                (8, 1) => dot_1_block(codes, x, sums),
                (8, 2) => dot_2_blocks(codes, x, sums),
                (8, _) => dot_3_blocks(codes, x, sums),
                (_, 1) => half_1_block(codes, x, sums),
                (_, 2) => half_2_blocks(codes, x, sums),
                _ => half_3_blocks(codes, x, sums),
            }
        });
    }
    #[inline(always)]
    unsafe fn ints(from: *const i32) -> Self::Ints {
        isa!(load_ints(from))
    }
    #[inline(always)]
    unsafe fn dot_token<const BITS: u32, const FROM: usize, const TO: usize, const R: usize>(
        codes: *const Self::Codes,
        x: *const i8,
        sums: &mut [Self::Ints; R],
    ) {
        isa!({
            for quad in FROM..TO {
                let x = broadcast(x.add(4 * quad));
                for r in 0..R {
                    sums[r] = _mm512_dpbusd_epi32(sums[r], (*codes.add(r))[quad], x);
                }
            }
        });
    }
    #[inline(always)]
    unsafe fn to_value(sum: Self::Ints, x: &GroupScale) -> Self {
        let sum = Avx512(isa!(_mm512_castsi512_ps(sum)));
        isa!(sum.mul_add(Self::splat(x.unit), Self::splat(x.magic)))
    }
    #[inline(always)]
    unsafe fn nonzero_bytes(from: *const u8, count: usize) -> u64 {
        isa!({
            let wanted = u64::MAX >> 64usize.saturating_sub(count);
            let bytes = _mm512_maskz_loadu_epi8(wanted, from.cast());
            _mm512_test_epi8_mask(bytes, bytes)
        })
    }
    #[inline(always)]
    unsafe fn add_blocks<const POINT: bool, const R: usize>(
        products: &mut [[Self; 4]; R],
        sums: &[[Self::Ints; 4]; R],
        lanes: *const f32,
        x: *const GroupScale,
    ) {
        isa!(match (POINT, R) {
            (true, 1) => add_1_block(products, sums, lanes, x),
            (true, 2) => add_2_blocks(products, sums, lanes, x),
            (true, _) => add_3_blocks(products, sums, lanes, x),
            (false, 1) => add_1_biased(products, sums, lanes, x),
            (false, 2) => add_2_biased(products, sums, lanes, x),
            (false, _) => add_3_biased(products, sums, lanes, x),
        });
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
    #[inline(always)]
    unsafe fn prefetch_second(from: *const u8) {
        isa!(_mm_prefetch::<_MM_HINT_T1>(from.cast()));
    }
    #[inline(always)]
    unsafe fn prefetch_write(to: *const u8) {
        isa!(_mm_prefetch::<_MM_HINT_ET0>(to.cast()));
    }
}
