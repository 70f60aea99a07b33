//! RMS norm of heads: `y = rms_norm(y) * weight`, each head alone, in place; without a weight where
//! a model has none.
//!
//! Gemma 4's keys, values and inputs of layers; the norm is that of [`crate::rms_norm`].

/// `values: [heads, width]`, `weight: [width]`.
pub fn reference(width: usize, weight: Option<&[f32]>, epsilon: f32, values: &mut [f32]) {
    for head in values.chunks_exact_mut(width) {
        let squares: f64 = head.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let inverse = 1.0 / (squares / width as f64 + f64::from(epsilon)).sqrt();
        for (index, value) in head.iter_mut().enumerate() {
            let normed = (f64::from(*value) * inverse) as f32;
            *value = weight.map_or(normed, |weight| normed * weight[index]);
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_head_is_normed_alone() {
        let mut values = [3.0, 4.0, 0.0, 2.0];
        super::reference(2, Some(&[1.0, 2.0]), 0.0, &mut values);
        let expected = [3.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt(), 0.0, 2.0 * 2f32.sqrt()];
        let near = |(a, b): (&f32, f32)| (a - b).abs() < 1e-6;
        assert!(values.iter().zip(expected).all(near), "{values:?}");
        super::reference(4, None, 0.0, &mut values);
        let squares: f32 = values.iter().map(|value| value * value).sum();
        assert!((squares - 4.0).abs() < 1e-5, "{values:?}");
    }
}
