//! Soft cap of rows: `y = cap * tanh(y / cap)`, in place.
//!
//! Gemma 2, <https://arxiv.org/abs/2408.00118>. Reads and writes each value once.

use crate::arch::{Isa, Kernel};
use crate::rows::Rows;
use crate::team::Worker;
use crate::vector::Vector;

/// Values of a task, a multiple of 16: 16 KB, half of the first-level cache.
const TASK_VALUES: usize = 4096;

/// Caps every value; done when the next phase begins.
///
/// # Safety
/// Every member of the team calls it with the same arguments; nobody else touches the values.
pub unsafe fn soft_cap(worker: &Worker<'_>, isa: Isa, cap: f32, values: Rows<'_>) {
    let width = values.width();
    let parts = width.div_ceil(TASK_VALUES);
    worker.for_each(values.rows() * parts, |task| {
        let start = task % parts * TASK_VALUES;
        let count = TASK_VALUES.min(width - start);
        // SAFETY: inside the row; each part of a row belongs to one task.
        unsafe {
            let start = values.pointer(task / parts).add(start);
            isa.run(OnePart { cap, start, count });
        }
    });
}

struct OnePart {
    cap: f32,
    start: *mut f32,
    count: usize,
}

impl Kernel for OnePart {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Self { cap, start, count } = self;
        // SAFETY: the caller's promise; a tail is copied out and back.
        unsafe {
            let whole = count / 16 * 16;
            for at in (0..whole).step_by(16) {
                V::load(start.add(at)).soft_cap(cap).store(start.add(at));
            }
            if whole < count {
                let mut tail = [0.0f32; 16];
                let (from, left) = (start.add(whole), count - whole);
                std::ptr::copy_nonoverlapping(from, tail.as_mut_ptr(), left);
                V::load(tail.as_ptr()).soft_cap(cap).store(tail.as_mut_ptr());
                std::ptr::copy_nonoverlapping(tail.as_ptr(), from, left);
            }
        }
    }
}
