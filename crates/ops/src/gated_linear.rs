//! Gated feed-forward: `y = activation(x G^T) * (x U^T)`.
//!
//! Shazeer 2020, <https://arxiv.org/abs/2002.05202>.

/// The gate's non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `v / (1 + e^-v)`: Llama, Mistral, Qwen.
    Silu,
    /// The tanh form of GELU: Gemma.
    GeluTanh,
}

impl Activation {
    pub fn apply(self, value: f32) -> f32 {
        match self {
            Self::Silu => value / (1.0 + (-value).exp()),
            Self::GeluTanh => {
                // sqrt(2 / pi), as in the paper <https://arxiv.org/abs/1606.08415>.
                const ROOT: f32 = 0.797_884_6;
                let inner = ROOT * (value + 0.044_715 * value * value * value);
                0.5 * value * (1.0 + inner.tanh())
            }
        }
    }
}

/// Joins two finished products in place: `gate = activation(gate) * up`.
pub fn reference(activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have one shape");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = activation.apply(*gate) * up;
    }
}
