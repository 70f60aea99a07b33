//! Gates of finished values: `y = y * sigmoid(gate)`, in place; one gate for each value, or for so
//! many that follow each other.
//!
//! Gated attention (<https://arxiv.org/abs/2505.06708>), and the gate of an expert that every token
//! passes, in Qwen's later models.

use crate::gated_linear::sigmoid;

/// One token: `values: [gates * n]`, `gate: [gates]`.
pub fn reference(gate: &[f32], values: &mut [f32]) {
    let each = values.len() / gate.len();
    for (values, &gate) in values.chunks_exact_mut(each).zip(gate) {
        let gate = sigmoid(gate);
        values.iter_mut().for_each(|value| *value *= gate);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_gate_is_of_as_many_values_as_there_are_for_it() {
        let mut values = [4.0, 8.0, 4.0, 8.0];
        super::reference(&[0.0, f32::NEG_INFINITY], &mut values);
        assert_eq!(values, [2.0, 4.0, 0.0, 0.0]);
        super::reference(&[f32::INFINITY; 4], &mut values);
        assert_eq!(values, [2.0, 4.0, 0.0, 0.0]);
    }
}
