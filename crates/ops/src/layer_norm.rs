//! Layer norm of rows, in place: `y = (y - mean) / sqrt(variance + epsilon) * weight + bias`.
//!
//! Ba and others 2016, <https://arxiv.org/abs/1607.06450>. The variance is that of the row itself,
//! not an estimate; both sums are made in f64.

/// `values: [tokens, width]`, `weight, bias: [width]`.
pub fn reference(weight: &[f32], bias: &[f32], epsilon: f32, values: &mut [f32]) {
    let width = weight.len();
    for row in values.chunks_exact_mut(width) {
        let mean = row.iter().map(|value| f64::from(*value)).sum::<f64>() / width as f64;
        let square = |value: &f32| (f64::from(*value) - mean).powi(2);
        let variance = row.iter().map(square).sum::<f64>() / width as f64;
        let scale = (variance + f64::from(epsilon)).sqrt().recip();
        for ((value, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
            *value = ((f64::from(*value) - mean) * scale) as f32 * weight + bias;
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn rows_have_the_weights_spread_around_the_bias() {
        let mut values = [1.0, 3.0, -5.0, -5.0];
        super::reference(&[2.0, 4.0], &[0.5, -0.5], 0.0, &mut values[..2]);
        assert_eq!(values[..2], [-1.5, 3.5]);
        // Nothing to divide by but epsilon.
        super::reference(&[2.0, 4.0], &[0.5, -0.5], 1e-5, &mut values[2..]);
        assert_eq!(values[2..], [0.5, -0.5]);
    }
}
