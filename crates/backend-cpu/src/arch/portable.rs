//! The slow twin of every instruction set: plain loops over 16 lanes.

use crate::vector::Vector;
use half::{bf16, f16};

#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 16]);

macro_rules! lanes {
    ($lane:ident => $value:expr) => {{
        let mut out = [0.0f32; 16];
        for ($lane, slot) in out.iter_mut().enumerate() {
            *slot = $value;
        }
        Portable(out)
    }};
}

/// Not inlined: where the target has no fused instruction each lane is a call, and copies of 16
/// calls in every kernel would multiply the time to compile them.
#[inline(never)]
fn fused(a: &[f32; 16], b: &[f32; 16], c: &[f32; 16]) -> [f32; 16] {
    let mut out = [0.0; 16];
    for (lane, out) in out.iter_mut().enumerate() {
        *out = a[lane].mul_add(b[lane], c[lane]);
    }
    out
}

/// Adds one token's exact sums.
#[inline(never)]
fn dot_token(codes: &[[u8; 64]], x: &[i8], sums: &mut [i32; 16]) {
    for (quad, codes) in codes.iter().enumerate() {
        for k in 0..4 {
            let value = i32::from(x[4 * quad + k]);
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum += i32::from(codes[4 * row + k]) * value;
            }
        }
    }
}

impl Vector for Portable {
    /// `[quad][row][4]`.
    type Codes = [[u8; 64]; 8];
    type Ints = [i32; 16];
    const TOKENS: usize = 1;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 16])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller promises 16 lanes.
        Portable(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(never)]
    unsafe fn load_f16(from: *const u16) -> Self {
        // SAFETY: the caller promises 16 lanes.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        lanes!(lane => f16::from_bits(bits[lane]).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: the caller promises 16 lanes.
        let bits = unsafe { from.cast::<[u16; 16]>().read_unaligned() };
        lanes!(lane => bf16::from_bits(bits[lane]).to_f32())
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller promises 16 lanes.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) };
    }
    #[inline(never)]
    unsafe fn store_f16(self, to: *mut u16) {
        let bits = self.0.map(|value| f16::from_f32(value).to_bits());
        // SAFETY: the caller promises 16 lanes.
        unsafe { to.cast::<[u16; 16]>().write_unaligned(bits) };
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        lanes!(lane => self.0[lane] + other.0[lane])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        lanes!(lane => self.0[lane] - other.0[lane])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        lanes!(lane => self.0[lane] * other.0[lane])
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        lanes!(lane => self.0[lane] / other.0[lane])
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        lanes!(lane => if self.0[lane] > other.0[lane] { self.0[lane] } else { other.0[lane] })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        lanes!(lane => if self.0[lane] < other.0[lane] { self.0[lane] } else { other.0[lane] })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Portable(fused(&self.0, &factor.0, &addend.0))
    }
    #[inline(always)]
    unsafe fn abs(self) -> Self {
        lanes!(lane => self.0[lane].abs())
    }
    #[inline(always)]
    unsafe fn add_exponent(self, power: Self) -> Self {
        let shifted =
            |lane: usize| self.0[lane].to_bits().wrapping_add(power.0[lane].to_bits() << 23);
        lanes!(lane => f32::from_bits(shifted(lane)))
    }
    #[inline(always)]
    unsafe fn zero_below(self, x: Self, limit: Self) -> Self {
        lanes!(lane => if x.0[lane] < limit.0[lane] { 0.0 } else { self.0[lane] })
    }

    #[inline(never)]
    unsafe fn quantize(self, inverse: f32, to: *mut i8) -> i32 {
        let x = self.0.map(|value| (value * inverse).round_ties_even() as i8);
        // SAFETY: the caller promises 16 bytes.
        unsafe { to.cast::<[i8; 16]>().write_unaligned(x) };
        x.iter().map(|&x| i32::from(x)).sum()
    }
    #[inline(never)]
    unsafe fn split_quantize(self, inverse: f32, high: *mut i8, low: *mut i8) -> i32 {
        let mut sum = 0i32;
        let (mut highs, mut lows) = ([0i8; 16], [0i8; 16]);
        for lane in 0..16 {
            let x = (self.0[lane] * inverse).round_ties_even() as i32;
            let upper = x.wrapping_add(64) >> 7;
            highs[lane] = upper as i8;
            lows[lane] = x.wrapping_sub(upper << 7) as i8;
            sum = sum.wrapping_add(x);
        }
        // SAFETY: the caller promises 16 bytes at `high`.
        unsafe { high.cast::<[i8; 16]>().write_unaligned(highs) };
        // SAFETY: the caller promises 16 bytes at `low`.
        unsafe { low.cast::<[i8; 16]>().write_unaligned(lows) };
        sum
    }

    #[inline(never)]
    unsafe fn unpack4(from: *const u8) -> Self::Codes {
        // SAFETY: the caller promises 256 bytes.
        let packed = unsafe { from.cast::<[[u8; 64]; 4]>().read_unaligned() };
        let mut codes = [[0; 64]; 8];
        for (pair, packed) in packed.iter().enumerate() {
            for (byte, packed) in packed.iter().enumerate() {
                codes[2 * pair][byte] = packed & 15;
                codes[2 * pair + 1][byte] = packed >> 4;
            }
        }
        codes
    }
    #[inline(always)]
    unsafe fn add_planes<const PLANES: usize>(
        mut codes: Self::Codes,
        from: *const u8,
    ) -> Self::Codes {
        for plane in 0..PLANES {
            // SAFETY: the caller promises 64 bytes a plane.
            let bits = unsafe { from.cast::<[[u8; 8]; 8]>().add(plane).read_unaligned() };
            for (codes, bits) in codes.iter_mut().zip(bits) {
                for (byte, code) in codes.iter_mut().enumerate() {
                    *code |= (bits[byte / 8] >> (byte % 8) & 1) << (4 + plane);
                }
            }
        }
        codes
    }
    #[inline(always)]
    unsafe fn unpack8(from: *const u8) -> Self::Codes {
        // SAFETY: the caller promises 512 bytes.
        unsafe { from.cast::<[[u8; 64]; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dot<const BITS: u32, const FROM: usize, const TO: usize, const T: usize>(
        codes: &Self::Codes,
        x: *const i8,
        sums: &mut [Self::Ints; T],
    ) {
        for (t, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller promises 32 bytes a token.
            let x = unsafe { x.cast::<[i8; 32]>().add(t).read_unaligned() };
            dot_token(&codes[FROM..TO], &x[4 * FROM..], sums);
        }
    }
    #[inline(always)]
    unsafe fn zero_ints() -> Self::Ints {
        [0; 16]
    }
    #[inline(always)]
    unsafe fn offset(ints: Self::Ints, by: i32) -> Self::Ints {
        ints.map(|value| value.wrapping_add(by))
    }
    #[inline(always)]
    unsafe fn to_float(ints: Self::Ints) -> Self {
        Portable(ints.map(|value| value as f32))
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
}
