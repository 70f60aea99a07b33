//! An activation of values, in place, where nothing is gated by it.

/// Which function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// `v / 2 (1 + erf(v / sqrt 2))`, <https://arxiv.org/abs/1606.08415>: BERT.
    Gelu,
    /// Its form by tanh.
    GeluTanh,
    Relu,
    Tanh,
}

impl Curve {
    pub fn at(self, value: f32) -> f32 {
        match self {
            Self::Gelu => {
                let value = f64::from(value);
                (0.5 * value * (1.0 + erf(value * std::f64::consts::FRAC_1_SQRT_2))) as f32
            }
            Self::GeluTanh => {
                // sqrt(2 / pi).
                const ROOT: f32 = 0.797_884_6;
                let inner = ROOT * (value + 0.044_715 * value * value * value);
                0.5 * value * (1.0 + inner.tanh())
            }
            // Not by `max`, which would hide what is no number.
            Self::Relu => {
                if value < 0.0 {
                    0.0
                } else {
                    value
                }
            }
            Self::Tanh => value.tanh(),
        }
    }
}

/// Off by 1.5e-7 at most: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
fn erf(value: f64) -> f64 {
    const TERMS: [f64; 5] =
        [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let t = 1.0 / (1.0 + 0.327_591_1 * value.abs());
    let sum = TERMS.iter().fold(0.0, |sum, term| (sum + term) * t);
    (1.0 - sum * (-value * value).exp()).copysign(value)
}

pub fn reference(curve: Curve, values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value = curve.at(*value));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of torch 2.15 (`torch.nn.functional.gelu` and `tanh`).
    #[test]
    fn curves_are_those_of_torch() {
        for (curve, value, expected) in [
            (Curve::Gelu, 1.0, 0.841_344_7),
            (Curve::Gelu, -2.0, -0.045_500_264),
            (Curve::Gelu, 0.0, 0.0),
            (Curve::Gelu, 30.0, 30.0),
            (Curve::GeluTanh, 1.0, 0.841_192),
            (Curve::Relu, -1.0, 0.0),
            (Curve::Relu, 2.5, 2.5),
            (Curve::Tanh, 0.5, 0.462_117_16),
        ] {
            let got = curve.at(value);
            assert!((got - expected).abs() < 1e-6, "{curve:?} of {value} is {got}");
        }
        assert!(Curve::Relu.at(f32::NAN).is_nan() && Curve::Gelu.at(f32::NAN).is_nan());
    }
}
