//! Causal convolution of channels over their sequence's last tokens, then SiLU, in place.
//!
//! Every token's row is read and written once, and each slot's last inputs once a step. A task is
//! some channels of one row; it takes the row's tokens one after another, so a token's result does
//! not depend on how its prompt was cut.

use crate::arch::{Isa, Kernel};
use crate::rows::Rows;
use crate::states::{CarriedRow, Carrying};
use crate::team::Worker;
use crate::vector::Vector;

/// Channels of a task: with 4 taps 8 KB of weights.
const TASK_CHANNELS: usize = 512;
/// More than any model's.
pub(crate) const TAPS_MAX: usize = 16;

pub(crate) struct CausalConv<'a> {
    /// `[tokens, channels]`
    pub(crate) values: Rows<'a>,
    /// `[channels, taps]`
    pub(crate) weight: &'a [f32],
    pub(crate) taps: usize,
    pub(crate) carrying: Carrying<'a>,
}

/// Convolves every row; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the values or
/// the states.
///
/// # Panics
/// If shapes do not match.
pub(crate) unsafe fn causal_conv(worker: &Worker<'_>, isa: Isa, call: &CausalConv<'_>) {
    let channels = call.values.width();
    assert!(channels.is_multiple_of(16), "whole vectors of channels");
    assert!((1..=TAPS_MAX).contains(&call.taps), "{} taps", call.taps);
    assert_eq!(call.weight.len(), channels * call.taps, "a weight for each tap");
    let parts = channels.div_ceil(TASK_CHANNELS);
    worker.for_each(call.carrying.rows() * parts, |task| {
        let from = task % parts * TASK_CHANNELS;
        let to = channels.min(from + TASK_CHANNELS);
        let row = call.carrying.row(task / parts);
        // SAFETY: these channels of the row are this task's; the rest is the caller's promise.
        unsafe { isa.run(SomeChannels { call, row, from, to }) };
    });
}

struct SomeChannels<'a> {
    call: &'a CausalConv<'a>,
    row: CarriedRow,
    from: usize,
    to: usize,
}

impl Kernel for SomeChannels<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { call, row, from, to } = self;
        let (channels, taps) = (call.values.width(), call.taps);
        for channel in (from..to).step_by(16) {
            // SAFETY: 16 channels of every row, tail and guess; they are this task's.
            unsafe {
                let mut window = Window::<V>::load(row.state.add(channel), channels, taps);
                let mut weights = [[0.0f32; 16]; TAPS_MAX];
                for lane in 0..16 {
                    for tap in 0..taps {
                        weights[tap][lane] = call.weight[(channel + lane) * taps + tap];
                    }
                }
                for guess in 0..row.right {
                    window.push(V::load(row.kept(guess).add(channel)));
                }
                for token in row.first..row.certain {
                    let values = call.values.pointer(token).add(channel);
                    window.push(V::load(values));
                    window.sum(&weights).store(values);
                }
                window.store(row.state.add(channel), channels);
                for (guess, token) in (row.certain..row.end).enumerate() {
                    let values = call.values.pointer(token).add(channel);
                    let input = V::load(values);
                    input.store(row.kept(guess).add(channel));
                    window.push(input);
                    window.sum(&weights).store(values);
                }
            }
        }
    }
}

/// The last inputs of 16 channels, the oldest first.
struct Window<V> {
    inputs: [V; TAPS_MAX],
    taps: usize,
}

impl<V: Vector> Window<V> {
    /// # Safety
    /// `taps - 1` rows of `channels`; the instruction set of `V` is present.
    #[inline(always)]
    unsafe fn load(tail: *const f32, channels: usize, taps: usize) -> Self {
        // SAFETY: the caller's promise. The newest is pushed before it is read.
        unsafe {
            let mut inputs = [V::splat(0.0); TAPS_MAX];
            for tap in 1..taps {
                inputs[tap] = V::load(tail.add((tap - 1) * channels));
            }
            Self { inputs, taps }
        }
    }

    #[inline(always)]
    fn push(&mut self, input: V) {
        for tap in 1..self.taps {
            self.inputs[tap - 1] = self.inputs[tap];
        }
        self.inputs[self.taps - 1] = input;
    }

    /// # Safety
    /// The instruction set of `V` is present.
    #[inline(always)]
    unsafe fn sum(&self, weights: &[[f32; 16]; TAPS_MAX]) -> V {
        // SAFETY: 16 weights of each tap.
        unsafe {
            let mut sum = self.inputs[0].mul(V::load(weights[0].as_ptr()));
            for tap in 1..self.taps {
                sum = self.inputs[tap].mul_add(V::load(weights[tap].as_ptr()), sum);
            }
            sum.mul(sum.sigmoid())
        }
    }

    /// # Safety
    /// As `load`.
    #[inline(always)]
    unsafe fn store(&self, tail: *mut f32, channels: usize) {
        for tap in 1..self.taps {
            // SAFETY: the caller's promise.
            unsafe { self.inputs[tap].store(tail.add((tap - 1) * channels)) };
        }
    }
}
