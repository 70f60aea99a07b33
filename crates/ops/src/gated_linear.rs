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
    /// `(u + 1) g / (1 + e^(-1.702 g))` of a gate of at most 7 and an `up` within 7 of 0: GPT-OSS,
    /// <https://arxiv.org/abs/2508.10925>.
    ClampedSilu,
}

/// Where [`Activation::ClampedSilu`] cuts, and how steep its sigmoid is.
pub const CLAMPED_MOST: f32 = 7.0;
pub const CLAMPED_STEEPNESS: f32 = 1.702;

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `x / (1 + e^-x)`.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

impl Activation {
    /// Joins an element of both products.
    pub fn join(self, gate: f32, up: f32) -> f32 {
        let value = gate;
        match self {
            Self::Silu => silu(value) * up,
            Self::GeluTanh => {
                // sqrt(2 / pi), as in the paper <https://arxiv.org/abs/1606.08415>.
                const ROOT: f32 = 0.797_884_6;
                let inner = ROOT * (value + 0.044_715 * value * value * value);
                0.5 * value * (1.0 + inner.tanh()) * up
            }
            Self::ClampedSilu => {
                // Not by `min`, which would hide what is no number.
                let value = if value > CLAMPED_MOST { CLAMPED_MOST } else { value };
                let up = up.clamp(-CLAMPED_MOST, CLAMPED_MOST);
                value / (1.0 + (-CLAMPED_STEEPNESS * value).exp()) * (up + 1.0)
            }
        }
    }
}

/// Joins two finished products in place.
pub fn reference(activation: Activation, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up have one shape");
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = activation.join(*gate, *up);
    }
}
