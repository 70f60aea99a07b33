//! Gated delta rule: every token lets its head's matrix fade, corrects it and reads it.
//!
//! A task is a head of a row, which takes the row's tokens one after another: a token's result does
//! not depend on how its prompt was cut. Each token reads and writes the matrix twice; of 128 x 128
//! that is 64 KB, which stays in the second-level cache from token to token.

use ops::gated_delta::{DeltaShape, Gates, LENGTH_EPSILON};

use crate::arch::{Isa, Kernel};
use crate::kernels::rms_norm::sum_of_squares;
use crate::rows::Rows;
use crate::states::{CarriedRow, Carrying};
use crate::team::Worker;
use crate::vector::Vector;

pub(crate) struct GatedDelta<'a> {
    pub(crate) shape: DeltaShape,
    /// `[tokens, mixed width]`
    pub(crate) mixed: Rows<'a>,
    /// `[tokens, heads]` each.
    pub(crate) decay: Rows<'a>,
    pub(crate) strength: Rows<'a>,
    /// `[heads]` each.
    pub(crate) rate: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) carrying: Carrying<'a>,
    /// `[tokens, value width]`
    pub(crate) output: Rows<'a>,
}

/// Floats that a member needs: a key, a query, and a matrix for what may be wrong.
pub(crate) fn scratch_floats(shape: &DeltaShape) -> usize {
    let (keys, values) = (shape.key_dim as usize, shape.value_dim as usize);
    keys * (2 + values)
}

/// Takes every row through its heads; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments but for its own scratch; nobody else
/// touches the rows or the states.
///
/// # Panics
/// If shapes do not match.
pub(crate) unsafe fn gated_delta(
    worker: &Worker<'_>,
    isa: Isa,
    call: &GatedDelta<'_>,
    scratch: &mut Vec<f32>,
) {
    let shape = &call.shape;
    let heads = shape.heads as usize;
    assert!(shape.value_dim.is_multiple_of(16), "whole vectors of values");
    assert_eq!(call.mixed.width(), shape.mixed_width() as usize, "queries, keys and values");
    assert_eq!(call.output.width(), shape.value_width() as usize, "a value a head");
    let gates = [call.decay.width(), call.strength.width(), call.rate.len(), call.bias.len()];
    assert_eq!(gates, [heads; 4], "gates a head");
    scratch.resize(scratch_floats(shape), 0.0);
    worker.for_each(call.carrying.rows() * heads, |task| {
        let (row, head) = (call.carrying.row(task / heads), task % heads);
        // SAFETY: the head of the row is this task's; the rest is the caller's promise.
        unsafe { isa.run(OneHead { call, row, head, scratch }) };
    });
    if !call.carrying.has_guesses() {
        return;
    }
    // Only now: heads have read what was kept of the guesses before.
    worker.for_each(call.carrying.rows(), |index| {
        let row = call.carrying.row(index);
        for (guess, token) in (row.certain..row.end).enumerate() {
            let mut to = row.kept(guess);
            for from in [call.mixed, call.decay, call.strength] {
                // SAFETY: what is kept of a guess is as long as the three; the row is this task's.
                unsafe {
                    from.pointer(token).copy_to_nonoverlapping(to, from.width());
                    to = to.add(from.width());
                }
            }
        }
    });
}

struct OneHead<'a> {
    call: &'a GatedDelta<'a>,
    row: CarriedRow,
    head: usize,
    scratch: &'a mut [f32],
}

/// Where the inputs of a token are.
#[derive(Clone, Copy)]
struct Inputs {
    mixed: *const f32,
    decay: f32,
    strength: f32,
}

impl Kernel for OneHead<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { call, row, head, scratch } = self;
        let (keys, values) = (call.shape.key_dim as usize, call.shape.value_dim as usize);
        let (heads, mixed) = (call.shape.heads as usize, call.mixed.width());
        let (vectors, aside) = scratch.split_at_mut(2 * keys);
        // SAFETY: a matrix a head in the slot's state and aside, a row of each input and of the
        // output a token; all are this task's to write that it writes.
        unsafe {
            let state = row.state.add(head * keys * values);
            let mut turn = |state: *mut f32, inputs: Inputs, output: *mut f32| {
                token::<V>(call, head, inputs, vectors, state, output);
            };
            for guess in 0..row.right {
                let kept = row.kept(guess).cast_const();
                let (decay, strength) = (*kept.add(mixed + head), *kept.add(mixed + heads + head));
                // What it said is in the cache of the layers behind.
                turn(state, Inputs { mixed: kept, decay, strength }, std::ptr::null_mut());
            }
            for place in row.first..row.end {
                if place == row.certain {
                    state.copy_to_nonoverlapping(aside.as_mut_ptr(), keys * values);
                }
                let state = if place < row.certain { state } else { aside.as_mut_ptr() };
                let inputs = Inputs {
                    mixed: call.mixed.pointer(place),
                    decay: *call.decay.pointer(place).add(head),
                    strength: *call.strength.pointer(place).add(head),
                };
                turn(state, inputs, call.output.pointer(place).add(head * values));
            }
        }
    }
}

/// One token of one head; nothing is read where `output` is null.
///
/// # Safety
/// Inputs of a token, `[key_dim, value_dim]` at `state`, twice `key_dim` in `vectors`; the
/// instruction set of `V` is present.
#[inline(always)]
unsafe fn token<V: Vector>(
    call: &GatedDelta<'_>,
    head: usize,
    inputs: Inputs,
    vectors: &mut [f32],
    state: *mut f32,
    output: *mut f32,
) {
    let (keys, values) = (call.shape.key_dim as usize, call.shape.value_dim as usize);
    let gates = Gates::of(call.rate[head], call.bias[head], inputs.decay, inputs.strength);
    let [query, key, value] = call.shape.parts(head as u32).map(|part| part.start);
    let (unit_key, unit_query) = vectors.split_at_mut(keys);
    // SAFETY: the caller's promise; columns go up to `values`, in fours of vectors and then alone.
    unsafe {
        unit::<V>(inputs.mixed.add(key), 1.0, unit_key);
        unit::<V>(inputs.mixed.add(query), (keys as f32).sqrt().recip(), unit_query);
        let columns = Columns { gates, key: unit_key, query: unit_query, width: values };
        let value = inputs.mixed.add(value);
        let mut column = 0;
        while column + 64 <= values {
            let output = if output.is_null() { output } else { output.add(column) };
            columns.turn::<V, 4>(state.add(column), value.add(column), output);
            column += 64;
        }
        while column < values {
            let output = if output.is_null() { output } else { output.add(column) };
            columns.turn::<V, 1>(state.add(column), value.add(column), output);
            column += 16;
        }
    }
}

/// A vector as long as 1, times `scale`.
///
/// # Safety
/// As many values at `from` as `to` has; the instruction set of `V` is present.
#[inline(always)]
unsafe fn unit<V: Vector>(from: *const f32, scale: f32, to: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let squares = sum_of_squares::<V>(from, to.len());
        let factor = scale / (squares + LENGTH_EPSILON).sqrt();
        for (index, to) in to.iter_mut().enumerate() {
            *to = *from.add(index) * factor;
        }
    }
}

struct Columns<'a> {
    gates: Gates,
    key: &'a [f32],
    query: &'a [f32],
    /// Of the whole matrix.
    width: usize,
}

impl Columns<'_> {
    /// `N` vectors of columns.
    ///
    /// # Safety
    /// The matrix from its first such column on, their values, and their outputs or null; the
    /// instruction set of `V` is present.
    #[inline(always)]
    unsafe fn turn<V: Vector, const N: usize>(
        &self,
        state: *mut f32,
        value: *const f32,
        output: *mut f32,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let keep = V::splat(self.gates.keep);
            let mut known = [V::splat(0.0); N];
            for (row, &key) in self.key.iter().enumerate() {
                let key = V::splat(key);
                for n in 0..N {
                    let at = state.add(row * self.width + 16 * n);
                    let element = V::load(at).mul(keep);
                    element.store(at);
                    known[n] = element.mul_add(key, known[n]);
                }
            }
            let correct = V::splat(self.gates.correct);
            let mut missing = known;
            for n in 0..N {
                missing[n] = V::load(value.add(16 * n)).sub(known[n]).mul(correct);
            }
            let mut read = [V::splat(0.0); N];
            for (row, (&key, &query)) in self.key.iter().zip(self.query).enumerate() {
                let (key, query) = (V::splat(key), V::splat(query));
                for n in 0..N {
                    let at = state.add(row * self.width + 16 * n);
                    let element = key.mul_add(missing[n], V::load(at));
                    element.store(at);
                    read[n] = element.mul_add(query, read[n]);
                }
            }
            if !output.is_null() {
                for n in 0..N {
                    read[n].store(output.add(16 * n));
                }
            }
        }
    }
}
