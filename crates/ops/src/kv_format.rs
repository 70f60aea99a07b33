//! How are keys and values stored in the cache?
//!
//! Integer formats keep one scale for each token's key and value of a head: a key's scale is its
//! largest element over the largest code. 16-bit codes use 13 bits (-4095 to 4095), so that 128
//! products of two of them fit in 32 bits. Keys in 8 bits are turned by a Hadamard matrix first,
//! which spreads outlier channels over the head (QuaRot, <https://arxiv.org/abs/2404.00456>).

/// The form of a cached key or value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 13-bit codes in 16 bits, one f32 scale a token and head.
    #[default]
    Int16,
    /// 8-bit codes, one f32 scale a token and head.
    Int8,
}

impl KvFormat {
    /// Every format, as settings name them.
    pub const ALL: [Self; 4] = [Self::F16, Self::Bf16, Self::Int16, Self::Int8];

    /// The name in settings and printed plans.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }

    /// Bytes of one element, scales aside.
    pub const fn element_bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 | Self::Int16 => 2,
            Self::Int8 => 1,
        }
    }

    pub const fn has_scales(self) -> bool {
        matches!(self, Self::Int16 | Self::Int8)
    }

    /// Bytes of one token's key and value of one head, scales included.
    pub const fn token_head_bytes(self, head_dim: usize) -> usize {
        let scale = if self.has_scales() { 4 } else { 0 };
        2 * (head_dim * self.element_bytes() + scale)
    }

    /// The largest code of an integer format; 1 for floats.
    pub const fn largest_code(self) -> f32 {
        match self {
            Self::F16 | Self::Bf16 => 1.0,
            Self::Int16 => 4095.0,
            Self::Int8 => 127.0,
        }
    }

    /// The largest code that a key or value is multiplied by: 128 products fit in 31 bits.
    pub const fn largest_factor(self) -> f32 {
        match self {
            Self::F16 | Self::Bf16 => 1.0,
            Self::Int16 => 4095.0,
            Self::Int8 => 32_767.0,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_come_back_and_128_products_fit() {
        for format in KvFormat::ALL {
            assert_eq!(KvFormat::from_name(format.name()), Some(format));
            let product = f64::from(format.largest_code()) * f64::from(format.largest_factor());
            assert!(128.0 * product < 2f64.powi(31), "{}", format.name());
        }
        assert_eq!(KvFormat::from_name("int4"), None);
        assert_eq!(KvFormat::Int8.token_head_bytes(64), 136);
        assert_eq!(KvFormat::F16.token_head_bytes(64), 256);
    }
}
