//! Gate of finished products: `output = activation(gate) * up`.
//!
//! The same arithmetic as a gated linear's own, for products that something was added to. Reads two
//! values for each that it writes.

use ops::gated_linear::Activation;

use crate::arch::{Isa, Kernel};
use crate::kernels::linear::join;
use crate::rows::Rows;
use crate::team::Worker;
use crate::vector::Vector;

/// `[tokens, inner]` each.
#[derive(Clone, Copy)]
pub struct Gate<'a> {
    pub activation: Activation,
    pub gate: Rows<'a>,
    pub up: Rows<'a>,
    pub output: Rows<'a>,
}

/// Joins every pair; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the output or
/// writes the inputs; the three do not overlap.
///
/// # Panics
/// If shapes do not match.
pub unsafe fn gate(worker: &Worker<'_>, isa: Isa, call: &Gate<'_>) {
    let shape = |rows: Rows<'_>| (rows.rows(), rows.width());
    assert_eq!(shape(call.gate), shape(call.output), "shape of the gate");
    assert_eq!(shape(call.up), shape(call.output), "shape of what is gated");
    worker.for_each(call.output.rows(), |row| {
        // SAFETY: each row is of the one member that claimed it; the rest is the caller's promise.
        unsafe { isa.run(OneRow { call: *call, row }) };
    });
}

struct OneRow<'a> {
    call: Gate<'a>,
    row: usize,
}

impl Kernel for OneRow<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { call: Gate { activation, gate, up, output }, row } = self;
        let width = output.width();
        let whole = width / 16 * 16;
        // SAFETY: inside the rows; a tail is copied out and back.
        unsafe {
            let (gate, up, output) = (gate.pointer(row), up.pointer(row), output.pointer(row));
            for at in (0..whole).step_by(16) {
                let joined = join(V::load(gate.add(at)), V::load(up.add(at)), activation);
                joined.store(output.add(at));
            }
            if whole < width {
                let mut tails = [[0.0f32; 16]; 2];
                let left = width - whole;
                for (tail, from) in tails.iter_mut().zip([gate, up]) {
                    std::ptr::copy_nonoverlapping(from.add(whole), tail.as_mut_ptr(), left);
                }
                let [gate, up] = tails.each_ref().map(|tail| tail.as_ptr());
                let mut joined = [0.0f32; 16];
                join(V::load(gate), V::load(up), activation).store(joined.as_mut_ptr());
                std::ptr::copy_nonoverlapping(joined.as_ptr(), output.add(whole), left);
            }
        }
    }
}
