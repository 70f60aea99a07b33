//! Which number in a GGUF file means which format of weights?
//!
//! Source: `enum ggml_type` in `ggml.h` and the block structs of `ggml-common.h`.

use std::fmt;

use ops::quant_format::QuantFormat;

/// The type id of a tensor as the file gives it; may be one that is not supported or not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType(pub u32);

/// Types that are known but not supported: id, name, weights a block, bytes a block. They are
/// listed so that their tensors' ranges can be checked and refusals can name them.
const KNOWN_ONLY: &[(u32, &str, u64, u64)] =
    &[(24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8), (28, "F64", 1, 8)];

impl TensorType {
    /// `None` for a format that GGUF does not have.
    pub fn from_format(format: QuantFormat) -> Option<Self> {
        Some(TensorType(match format {
            QuantFormat::F32 => 0,
            QuantFormat::F16 => 1,
            QuantFormat::Q4_0 => 2,
            QuantFormat::Q4_1 => 3,
            QuantFormat::Q5_0 => 6,
            QuantFormat::Q5_1 => 7,
            QuantFormat::Q8_0 => 8,
            QuantFormat::Q2K => 10,
            QuantFormat::Q3K => 11,
            QuantFormat::Q4K => 12,
            QuantFormat::Q5K => 13,
            QuantFormat::Q6K => 14,
            QuantFormat::Iq2Xxs => 16,
            QuantFormat::Iq2Xs => 17,
            QuantFormat::Iq3Xxs => 18,
            QuantFormat::Iq1S => 19,
            QuantFormat::Iq4Nl => 20,
            QuantFormat::Iq3S => 21,
            QuantFormat::Iq2S => 22,
            QuantFormat::Iq4Xs => 23,
            QuantFormat::Iq1M => 29,
            QuantFormat::Bf16 => 30,
            QuantFormat::Tq1_0 => 34,
            QuantFormat::Tq2_0 => 35,
            QuantFormat::GgufMxfp4 => 39,
            QuantFormat::GgufNvfp4 => 40,
            QuantFormat::MlxAffine(_)
            | QuantFormat::Mxfp4
            | QuantFormat::Mxfp8
            | QuantFormat::Nvfp4 => return None,
        }))
    }

    /// The format this type means, if it is one we decode.
    pub fn format(self) -> Option<QuantFormat> {
        QuantFormat::ALL
            .iter()
            .copied()
            .find(|format| TensorType::from_format(*format) == Some(self))
    }

    /// Weights and bytes of a block, if the type is known.
    pub(super) fn block(self) -> Option<(u64, u64)> {
        if let Some(format) = self.format() {
            return Some((format.block_elements() as u64, format.block_bytes() as u64));
        }
        let known = KNOWN_ONLY.iter().find(|(id, ..)| *id == self.0);
        known.map(|(_, _, elements, bytes)| (*elements, *bytes))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = self.format() {
            return f.write_str(format.name());
        }
        match KNOWN_ONLY.iter().find(|(id, ..)| *id == self.0) {
            Some((id, name, ..)) => write!(f, "{name} (type {id})"),
            None => write!(f, "type {}, which is not known", self.0),
        }
    }
}

/// The names of all supported formats, for refusals.
pub(super) fn supported_names() -> String {
    QuantFormat::ALL.iter().map(|format| format.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{KNOWN_ONLY, QuantFormat, TensorType};

    #[test]
    fn ids_are_unique_and_lead_back() {
        for format in QuantFormat::ALL {
            let id = TensorType::from_format(*format);
            assert_eq!(id.and_then(TensorType::format), Some(*format), "{format}");
            let is_listed = |known: u32| id == Some(TensorType(known));
            assert!(!KNOWN_ONLY.iter().any(|(known, ..)| is_listed(*known)), "{format} twice");
        }
        assert_eq!(TensorType(24).block(), Some((1, 1)), "known, not supported");
        assert_eq!(TensorType(4).block(), None, "removed from the format");
    }
}
