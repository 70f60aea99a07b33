//! Linear: `y[t, o] = sum_i x[t, i] * w[o, i] (+ bias[o])`, stored or added to the target.
//!
//! Summed in eight interleaved f32 partial sums and then in f64: independent of how many rows are
//! computed together, and about as near to the exact sum as plain f32 gets.

/// `x: [tokens, inputs]`, `weight: [outputs, inputs]`, `bias: [outputs]`, `y: [tokens, outputs]`.
pub fn reference(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    inputs: usize,
    sum: Sum,
    y: &mut [f32],
) {
    let outputs = weight.len() / inputs;
    assert_eq!(x.len() / inputs, y.len() / outputs, "one row of y for each row of x");
    // Weights outside, tokens inside: a row of weights is read once for all tokens.
    for (index, row) in weight.chunks_exact(inputs).enumerate() {
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
            let product = dot(x, row) + bias.map_or(0.0, |bias| bias[index]);
            match sum {
                Sum::Store => y[index] = product,
                Sum::Add => y[index] += product,
            }
        }
    }
}

/// Whether the product replaces or joins what the output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sum {
    Store,
    Add,
}

/// `sum a[i] * b[i]`
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut partial = [0f32; LANES];
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            partial[lane] += a[lane] * b[lane];
        }
    }
    let mut sum: f64 = partial.iter().map(|&v| f64::from(v)).sum();
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += f64::from(*a) * f64::from(*b);
    }
    sum as f32
}

#[cfg(test)]
mod tests {
    use super::{Sum, reference};

    #[test]
    fn stores_and_adds_with_bias() {
        let weight: Vec<f32> = (0..20).map(|v| v as f32).collect();
        let x = [1.0f32; 10];
        let mut y = [1.0f32; 2];
        reference(&x, &weight, Some(&[0.5, 0.0]), 10, Sum::Add, &mut y);
        assert_eq!(y, [46.5, 146.0]);
        reference(&x, &weight, None, 10, Sum::Store, &mut y);
        assert_eq!(y, [45.0, 145.0]);
    }
}
