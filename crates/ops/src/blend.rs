//! Sum of two, scaled: `y = scale * (y + x)`, in place; and a scale from a file: `y = s y`.
//!
//! What Gemma 4 gives its layers of a token (transformers `modeling_gemma4.py`), and
//! what a layer's output is multiplied by there.

pub fn reference(scale: f32, other: &[f32], values: &mut [f32]) {
    values.iter_mut().zip(other).for_each(|(value, other)| *value = scale * (*value + other));
}

/// `by: [1]`.
pub fn scale(by: &[f32], values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value *= by[0]);
}

#[cfg(test)]
mod tests {
    #[test]
    fn sums_are_scaled() {
        let mut values = [1.0, 2.0];
        super::reference(0.5, &[3.0, -2.0], &mut values);
        assert_eq!(values, [2.0, 0.0]);
        super::scale(&[3.0], &mut values);
        assert_eq!(values, [6.0, 0.0]);
    }
}
