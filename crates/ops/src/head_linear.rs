//! Linear by heads: each head's columns by a matrix of its own,
//! `y[t, h, o] = sum_i x[t, h, i] * w[h, o, i]`.
//!
//! Latent attention, whose keys and values are compressed for all heads together: queries are
//! brought into the compressed space, and what is attended out of it (DeepSeek V2,
//! <https://arxiv.org/abs/2405.04434>, section 2.1.2). Summed as [`crate::linear`] does.

use crate::HeadColumns;
use crate::linear::{self, Sum};

/// One token: `x` and `y` are rows of the two buffers, `weight: [heads, outputs, inputs]`.
pub fn reference(
    heads: u32,
    input: &HeadColumns,
    weight: &[f32],
    output: &HeadColumns,
    x: &[f32],
    y: &mut [f32],
) {
    let length = (input.width * output.width) as usize;
    for (head, weight) in (0..heads).zip(weight.chunks_exact(length)) {
        let (x, y) = (&x[input.range(head)], &mut y[output.range(head)]);
        linear::reference(x, weight, None, x.len(), Sum::Store, y);
    }
}

#[cfg(test)]
mod tests {
    use super::{HeadColumns, reference};
    use crate::ActivationId;

    #[test]
    fn each_head_has_a_matrix_and_columns_of_its_own() {
        let columns =
            |stride, first, width| HeadColumns { buffer: ActivationId(0), stride, first, width };
        // Two heads of two columns, of which the second counts; two outputs behind one that stays.
        let mut y = [9.0; 6];
        let weight = [1.0, 2.0, 10.0, 20.0];
        reference(2, &columns(2, 1, 1), &weight, &columns(3, 1, 2), &[7.0, 3.0, 7.0, 4.0], &mut y);
        assert_eq!(y, [9.0, 3.0, 6.0, 9.0, 40.0, 80.0]);
    }
}
