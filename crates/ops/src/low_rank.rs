//! Low-rank adaptation: `y += scale * B (A x)`, of the adapter that a token's sequence has.
//!
//! LoRA, <https://arxiv.org/abs/2106.09685>. A token without an adapter is not touched, so that it
//! is told, bit for bit, what it would be told if there were none.

use crate::WeightId;

/// What one adapter adds to one product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank {
    /// `[rank, input width]`
    pub down: WeightId,
    /// `[output width, rank]`
    pub up: WeightId,
    pub scale: f32,
}

/// Partial sums that are made side by side, so that compilers can use wide registers; added in a
/// fixed order.
const LANES: usize = 16;

fn dot(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (xs, x_rest) = x.as_chunks::<LANES>();
    let (ys, y_rest) = y.as_chunks::<LANES>();
    for (x, y) in xs.iter().zip(ys) {
        for lane in 0..LANES {
            lanes[lane] += x[lane] * y[lane];
        }
    }
    let rest: f32 = x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

/// `down: [rank, input]`, `up: [output, rank]`, `input: [input]`, `output: [output]`; `rank` values
/// of `inner` are used. Also what fast backends run: next to the product it adds to it is little.
pub fn reference(
    down: &[f32],
    up: &[f32],
    scale: f32,
    input: &[f32],
    inner: &mut Vec<f32>,
    output: &mut [f32],
) {
    inner.clear();
    inner.extend(down.chunks_exact(input.len()).map(|row| dot(row, input)));
    for (value, row) in output.iter_mut().zip(up.chunks_exact(inner.len())) {
        *value += scale * dot(row, inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_small_products_are_added() {
        // Longer than the lanes, and no multiple of them.
        let input: Vec<f32> = (0..19).map(|index| index as f32).collect();
        let down: Vec<f32> = [vec![1.0; 19], vec![-2.0; 19]].concat();
        let up = [1.0, 0.0, 0.0, 1.0, 3.0, 1.0];
        let (mut inner, mut output) = (Vec::new(), vec![100.0; 3]);
        reference(&down, &up, 0.5, &input, &mut inner, &mut output);
        // The sum of the input is 171: inner is 171 and -342.
        assert_eq!(output, [100.0 + 85.5, 100.0 - 171.0, 100.0 + 0.5 * (513.0 - 342.0)]);
    }
}
