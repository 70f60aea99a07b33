//! Rotary position embedding: pairs of a head's elements turned by `position * frequency`.
//!
//! Su et al. 2021, <https://arxiv.org/abs/2104.09864>. Scalings: linear (Chen et al. 2023,
//! <https://arxiv.org/abs/2306.15595>), dynamic NTK, YaRN (<https://arxiv.org/abs/2309.00071>),
//! LongRoPE (<https://arxiv.org/abs/2402.13753>), Llama 3.1 (its `rope_scaling` of type `llama3`).
//! Frequencies are computed as transformers' `modeling_rope_utils.py` does, in f32.

/// Which two elements of a head form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(2i, 2i + 1)`: GGUF files of the llama architecture, whose rows are permuted for it.
    Adjacent,
    /// `(i, i + dims / 2)`: Hugging Face and MLX files.
    HalfSplit,
}

/// How a model was stretched past the context it was trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RotaryScaling {
    None,
    Linear {
        factor: f32,
    },
    /// Base grows with the context in use; `context` is fixed at load.
    DynamicNtk {
        factor: f32,
        original_context: u32,
        context: u32,
    },
    Llama3 {
        factor: f32,
        low_frequency_factor: f32,
        high_frequency_factor: f32,
        original_context: u32,
    },
    Yarn(Yarn),
    /// One divisor a frequency, as GGUF's `rope_freqs` and LongRoPE's factor lists give them.
    Divisors {
        divisors: Vec<f32>,
        attention_factor: f32,
    },
    /// Only the first `turning / 2` frequencies turn, their exponents over the full width: Gemma 4.
    Proportional {
        turning: u32,
    },
}

/// YaRN's settings; defaults of the paper are `beta_fast` 32 and `beta_slow` 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Yarn {
    pub factor: f32,
    pub original_context: u32,
    pub beta_fast: f32,
    pub beta_slow: f32,
    /// Round the ramp's ends outward to whole dimensions (not for GPT-OSS).
    pub truncate: bool,
    /// `None`: `0.1 ln(factor) + 1`.
    pub attention_factor: Option<f32>,
}

/// Rotation of every head of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotary {
    pub pairing: Pairing,
    /// Elements of a head that turn, from its start; even.
    pub dims: u32,
    pub base: f32,
    pub scaling: RotaryScaling,
}

/// How queries grow with their positions, so that attention stays sharp over long texts: by
/// `1 + factor ln(1 + floor(position / every))`. Llama 4's and Ministral 3's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    pub factor: f32,
    pub every: u32,
}

impl QueryGrowth {
    /// What multiplies a query at `position`.
    pub fn at(self, position: u32) -> f32 {
        1.0 + self.factor * (1.0 + (position / self.every) as f32).ln()
    }
}

/// LongRoPE's factor on cosines and sines when the context grew from `original` to `context`.
pub fn long_rope_attention_factor(original: u32, context: u32) -> f32 {
    if context <= original {
        return 1.0;
    }
    let ratio = f64::from(context) / f64::from(original);
    (1.0 + ratio.ln() / f64::from(original).ln()).sqrt() as f32
}

impl Rotary {
    /// `[dims / 2]` angles for one position, in radians.
    pub fn inverse_frequencies(&self) -> Vec<f32> {
        let dims = self.dims as usize;
        let plain = frequencies(self.base, dims);
        match &self.scaling {
            RotaryScaling::None => plain,
            RotaryScaling::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
            RotaryScaling::DynamicNtk { factor, original_context, context } => {
                let length = f64::from(*context.max(original_context));
                let ratio = length / f64::from(*original_context);
                let grown = f64::from(*factor) * ratio - (f64::from(*factor) - 1.0);
                let power = dims as f64 / (dims as f64 - 2.0);
                frequencies((f64::from(self.base) * grown.powf(power)) as f32, dims)
            }
            RotaryScaling::Llama3 { .. } => {
                plain.iter().map(|&f| llama3(f, &self.scaling)).collect()
            }
            RotaryScaling::Yarn(yarn) => yarn.frequencies(self.base, &plain),
            RotaryScaling::Divisors { divisors, .. } => {
                plain.iter().zip(divisors).map(|(f, d)| f / d).collect()
            }
            RotaryScaling::Proportional { turning } => {
                let kept = *turning as usize / 2;
                let keep = |(i, f): (usize, &f32)| if i < kept { *f } else { 0.0 };
                plain.iter().enumerate().map(keep).collect()
            }
        }
    }

    /// Multiplies cosines and sines, so that `q . k` gets its square.
    pub fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RotaryScaling::Yarn(yarn) => {
                yarn.attention_factor.unwrap_or_else(|| 0.1 * yarn.factor.max(1.0).ln() + 1.0)
            }
            RotaryScaling::Divisors { attention_factor, .. } => *attention_factor,
            RotaryScaling::None
            | RotaryScaling::Linear { .. }
            | RotaryScaling::DynamicNtk { .. }
            | RotaryScaling::Llama3 { .. }
            | RotaryScaling::Proportional { .. } => 1.0,
        }
    }
}

fn frequencies(base: f32, dims: usize) -> Vec<f32> {
    (0..dims / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / dims as f32)).collect()
}

fn llama3(frequency: f32, scaling: &RotaryScaling) -> f32 {
    let RotaryScaling::Llama3 {
        factor,
        low_frequency_factor: low,
        high_frequency_factor: high,
        original_context,
    } = scaling
    else {
        return frequency;
    };
    let original = *original_context as f32;
    let wavelength = 2.0 * std::f32::consts::PI / frequency;
    if wavelength > original / low {
        frequency / factor
    } else if wavelength < original / high {
        frequency
    } else {
        let smooth = (original / wavelength - low) / (high - low);
        (1.0 - smooth) * frequency / factor + smooth * frequency
    }
}

impl Yarn {
    fn frequencies(&self, base: f32, plain: &[f32]) -> Vec<f32> {
        let dims = plain.len() * 2;
        let correction = |rotations: f32| {
            let original = f64::from(self.original_context);
            let turns = original / (f64::from(rotations) * 2.0 * std::f64::consts::PI);
            dims as f64 * turns.ln() / (2.0 * f64::from(base).ln())
        };
        let (mut low, mut high) = (correction(self.beta_fast), correction(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(dims as f64 - 1.0));
        if low == high {
            // As the reference does: a ramp of no width would divide by zero.
            high += 0.001;
        }
        let blend = |(i, &frequency): (usize, &f32)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0) as f32;
            frequency / self.factor * ramp + frequency * (1.0 - ramp)
        };
        plain.iter().enumerate().map(blend).collect()
    }
}

/// Cosine and sine of each pair at `position`, times the attention factor.
pub fn cos_sin(inverse_frequencies: &[f32], factor: f32, position: u32, out: &mut [(f32, f32)]) {
    for (out, frequency) in out.iter_mut().zip(inverse_frequencies) {
        // The angle is rounded to f32 as the published implementations do; its sine is not.
        let angle = f64::from(position as f32 * frequency);
        *out = (angle.cos() as f32 * factor, angle.sin() as f32 * factor);
    }
}

/// Turns one head in place; `head: [head_dim]`, `cos_sin: [dims / 2]`.
pub fn reference(pairing: Pairing, cos_sin: &[(f32, f32)], head: &mut [f32]) {
    let half = cos_sin.len();
    for (i, &(cos, sin)) in cos_sin.iter().enumerate() {
        let (a, b) = match pairing {
            Pairing::Adjacent => (2 * i, 2 * i + 1),
            Pairing::HalfSplit => (i, i + half),
        };
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
    }
}
