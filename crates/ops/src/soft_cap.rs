//! Soft cap: `y = cap * tanh(x / cap)`, in place: near zero the value itself, never beyond the cap.
//!
//! Gemma 2, <https://arxiv.org/abs/2408.00118>. A backend is within one unit in the last place of
//! its `tanh`, times the cap.

/// `values`: any shape.
pub fn reference(cap: f32, values: &mut [f32]) {
    for value in values {
        *value = cap * (*value / cap).tanh();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn small_values_stay_and_large_ones_end_at_the_cap() {
        let mut values = [0.0, 0.01, -1e6, 1e6, 30.0];
        super::reference(30.0, &mut values);
        assert_eq!((values[0], values[2], values[3]), (0.0, -30.0, 30.0));
        assert!((values[1] - 0.01).abs() < 1e-8);
        assert!((values[4] - 30.0 * 1f32.tanh()).abs() < 1e-5);
    }
}
