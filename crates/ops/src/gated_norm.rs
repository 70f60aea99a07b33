//! Gated RMS norm of heads: `y = rms_norm(y) * weight * silu(gate)`, each head alone, in place.
//!
//! What gated delta nets give their outputs (<https://arxiv.org/abs/2412.06464>); the norm is that
//! of [`crate::rms_norm`].

use crate::gated_linear::silu;

/// `values, gate: [heads, width]`, `weight: [width]`.
pub fn reference(weight: &[f32], epsilon: f32, gate: &[f32], values: &mut [f32]) {
    assert_eq!(gate.len(), values.len(), "values and gates have one shape");
    let width = weight.len();
    for (head, gate) in values.chunks_exact_mut(width).zip(gate.chunks_exact(width)) {
        let squares: f64 = head.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        let inverse = 1.0 / (squares / width as f64 + f64::from(epsilon)).sqrt();
        for ((value, weight), &gate) in head.iter_mut().zip(weight).zip(gate) {
            *value = (f64::from(*value) * inverse) as f32 * weight * silu(gate);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{reference, silu};

    #[test]
    fn each_head_is_normed_and_then_gated() {
        let mut values = [3.0, 4.0, 0.0, 2.0];
        reference(&[1.0, 2.0], 0.0, &[1.0, 1.0, 1.0, -3.0], &mut values);
        let expected = [3.0 / 12.5f32.sqrt(), 8.0 / 12.5f32.sqrt(), 0.0, 2.0 * 2f32.sqrt()];
        let gates = [1.0, 1.0, 1.0, -3.0].map(silu);
        for ((got, want), gate) in values.iter().zip(expected).zip(gates) {
            assert!((got - want * gate).abs() < 1e-6, "{values:?}");
        }
    }
}
