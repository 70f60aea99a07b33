//! How fast could this processor be at best? Bytes read and operations done a second by loops that
//! do nothing else: the roofs that the kernels are measured against.
//!
//! A roof is the best of several passes, because whatever else runs can only lower it. Reading is
//! measured over a set of the size that a step really reads: what lies in a cache is faster.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::arch::Kernel;
use crate::memory::LargeBuffer;
use crate::vector::Vector;
use crate::{Isa, Team};

/// Rows of lanes read side by side: each is a stream of its own for the prefetchers.
const STREAMS: usize = 4;
/// Lanes of one cache line.
const LINE_LANES: usize = 16;
/// Dependent chains: more than the latency of any multiply-add here (5 cycles) times two a cycle.
const CHAINS: usize = 12;
/// Rounds over all chains between two looks at the clock: 12 * 20,000 operations take about 100 us.
const ROUNDS: usize = 20_000;

/// Bytes a second that all members of `team` together read from a set of `bytes`, each its share
/// over and over. Passes go on for `patience`, at least three.
///
/// # Errors
/// When the system has no such memory.
pub fn read_bytes_per_second(
    team: &Team,
    isa: Isa,
    bytes: usize,
    patience: Duration,
) -> std::io::Result<f64> {
    let line_bytes = 4 * LINE_LANES;
    let member_lines = (bytes / line_bytes / team.members()).next_multiple_of(STREAMS);
    let share_bytes = member_lines * line_bytes;
    let buffer = LargeBuffer::zeroed(share_bytes * team.members())?;
    // Small sets are read several times a pass, or the way there and back would be measured.
    let repeats = (4 << 20) / share_bytes.max(1) + 1;
    let touch = |index: usize| {
        // SAFETY: each member writes its own share; the buffer holds one for each.
        unsafe { buffer.pointer().add(index * share_bytes).write_bytes(1, share_bytes) };
    };
    team.run_on_all(&|worker| touch(worker.index()));
    let seconds = best_seconds(patience, || {
        team.run_on_all(&|worker| {
            // SAFETY: inside the buffer, whose bytes nobody writes any more.
            let share = unsafe { buffer.pointer().add(worker.index() * share_bytes) };
            for _ in 0..repeats {
                let read = Read { from: black_box(share).cast(), lines: member_lines };
                // SAFETY: the share holds that many lines.
                black_box(unsafe { isa.run(read) });
            }
        });
    });
    Ok((share_bytes * team.members() * repeats) as f64 / seconds)
}

/// Floating-point operations a second (a multiply-add is two) in f32.
pub fn float_ops_per_second(team: &Team, isa: Isa, patience: Duration) -> f64 {
    let seconds = best_seconds(patience, || {
        // SAFETY: the kernel touches no memory.
        team.run_on_all(&|_| _ = black_box(unsafe { isa.run(MultiplyAdd) }));
    });
    (team.members() * ROUNDS * CHAINS * 16 * 2) as f64 / seconds
}

/// 8-bit integer operations a second (a multiply-add is two) of the dot product instruction, or
/// `None` where `isa` has none that is measured here.
pub fn integer_ops_per_second(team: &Team, isa: Isa, patience: Duration) -> Option<f64> {
    let dot = dots::integer(isa)?;
    Some(dot_ops_per_second(team, dot, patience))
}

/// bfloat16 operations a second (a multiply-add is two) of the dot product instruction, or `None`
/// where this processor has none.
pub fn bfloat_ops_per_second(team: &Team, isa: Isa, patience: Duration) -> Option<f64> {
    let dot = dots::bfloat(isa)?;
    Some(dot_ops_per_second(team, dot, patience))
}

/// A loop of `ROUNDS * CHAINS` dot instructions.
#[derive(Clone, Copy)]
struct Dot {
    products_per_instruction: usize,
    /// # Safety
    /// Whoever made the value found the instruction present.
    run: unsafe fn(),
}

fn dot_ops_per_second(team: &Team, dot: Dot, patience: Duration) -> f64 {
    let seconds = best_seconds(patience, || {
        // SAFETY: a `Dot` is made only where its instruction is present.
        team.run_on_all(&|_| unsafe { (dot.run)() });
    });
    (team.members() * ROUNDS * CHAINS * dot.products_per_instruction * 2) as f64 / seconds
}

fn best_seconds(patience: Duration, mut pass: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    let mut passes = 0;
    while passes < 3 || start.elapsed() < patience {
        let begin = Instant::now();
        pass();
        best = best.min(begin.elapsed().as_secs_f64());
        passes += 1;
    }
    best
}

/// Adds up `lines` cache lines, in `STREAMS` parts side by side.
struct Read {
    from: *const f32,
    lines: usize,
}

impl Kernel for Read {
    type Output = f32;

    /// # Safety
    /// `lines` lines at `from`, a multiple of `STREAMS`.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        let part = self.lines / STREAMS;
        // SAFETY: line `stream * part + line` is below `lines`; the set is the caller's promise.
        unsafe {
            let mut sums = [V::splat(0.0); STREAMS];
            for line in 0..part {
                for (stream, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(V::load(self.from.add((stream * part + line) * LINE_LANES)));
                }
            }
            sums.into_iter().fold(0.0, |total, sum| total + sum.reduce_add())
        }
    }
}

struct MultiplyAdd;

impl Kernel for MultiplyAdd {
    type Output = f32;

    /// # Safety
    /// None beyond the trait's.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) -> f32 {
        // SAFETY: no memory is touched; the set is the caller's promise.
        unsafe {
            // A contraction: sums stay near 2, far from infinities and denormals.
            let (factor, addend) = (V::splat(black_box(0.5)), V::splat(black_box(1.0)));
            let mut sums = [V::splat(black_box(1.0)); CHAINS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = sum.mul_add(factor, addend);
                }
            }
            sums.into_iter().fold(0.0, |total, sum| total + sum.reduce_add())
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod dots {
    use super::{CHAINS, Dot, ROUNDS};
    use crate::Isa;
    use core::arch::x86_64::*;
    use std::hint::black_box;

    pub(super) fn integer(isa: Isa) -> Option<Dot> {
        match isa.name() {
            "avx512-vnni" => Some(Dot { products_per_instruction: 64, run: vnni }),
            "avx2" => Some(Dot { products_per_instruction: 32, run: maddubs }),
            _ => None,
        }
    }

    pub(super) fn bfloat(isa: Isa) -> Option<Dot> {
        let present = isa.name() == "avx512-vnni" && is_x86_feature_detected!("avx512bf16");
        present.then_some(Dot { products_per_instruction: 32, run: bf16 })
    }

    /// # Safety
    /// AVX-512 VNNI is present.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn vnni() {
        let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(-2)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }

    /// Two instructions widen and add what VNNI does in one.
    ///
    /// # Safety
    /// AVX2 is present.
    #[target_feature(enable = "avx2")]
    unsafe fn maddubs() {
        let (a, b) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(-2)));
        let ones = _mm256_set1_epi16(1);
        let mut sums = [_mm256_setzero_si256(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                // The input depends on the sum, or the product would leave the loop.
                let pairs = _mm256_maddubs_epi16(_mm256_xor_si256(a, *sum), b);
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
            }
        }
        black_box(sums);
    }

    /// # Safety
    /// AVX-512 BF16 is present.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn bf16() {
        let one = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0), _mm512_set1_ps(black_box(1.0)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, one, one);
            }
        }
        black_box(sums);
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod dots {
    use super::Dot;
    use crate::Isa;

    pub(super) fn integer(_: Isa) -> Option<Dot> {
        None
    }

    pub(super) fn bfloat(_: Isa) -> Option<Dot> {
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn reads_every_line_once() {
        for isa in Isa::all() {
            let values: Vec<f32> = (0..8 * LINE_LANES).map(|i| i as f32).collect();
            let read = Read { from: values.as_ptr(), lines: 8 };
            // SAFETY: the vector holds 8 lines.
            let sum = unsafe { isa.run(read) };
            assert_eq!(sum, values.iter().sum::<f32>(), "{}", isa.name());
        }
    }

    /// Within what any processor can do: a loop that the compiler removed would be beyond it.
    #[test]
    fn roofs_are_neither_zero_nor_endless() {
        let team = Team::new(1).unwrap();
        let patience = Duration::from_millis(1);
        for isa in Isa::all() {
            let rates = [
                Some(read_bytes_per_second(&team, isa, 1 << 20, patience).unwrap()),
                Some(float_ops_per_second(&team, isa, patience)),
                integer_ops_per_second(&team, isa, patience),
                bfloat_ops_per_second(&team, isa, patience),
            ];
            for (index, rate) in rates.into_iter().enumerate() {
                let Some(rate) = rate else { continue };
                assert!((1e7..4e12).contains(&rate), "{} {index}: {rate}", isa.name());
            }
        }
    }
}
