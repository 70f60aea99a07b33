//! Copy by heads: `y[t, h, i] = x[t, h, i]` for some columns of each head.
//!
//! Puts together heads whose parts are computed apart: what turns and what does not, in latent
//! attention (DeepSeek V2, <https://arxiv.org/abs/2405.04434>). Exact.

use crate::HeadColumns;

/// One token: `x` and `y` are rows of the two buffers.
pub fn reference(heads: u32, input: &HeadColumns, output: &HeadColumns, x: &[f32], y: &mut [f32]) {
    for head in 0..heads {
        y[output.range(head)].copy_from_slice(&x[input.range(head)]);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_of_each_head_go_to_their_place() {
        let columns = |stride, first| super::HeadColumns {
            buffer: crate::ActivationId(0),
            stride,
            first,
            width: 1,
        };
        let mut y = [0.0; 4];
        super::reference(
            2,
            &columns(3, 2),
            &columns(2, 0),
            &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            &mut y,
        );
        assert_eq!(y, [3.0, 0.0, 6.0, 0.0]);
    }
}
