//! Qwen 3, dense: Llama with norms of query and key heads, and heads of a size of their own.
//! Qwen3-VL is the same for texts: its positions in time, height and width are then all one.
//!
//! Paper: <https://arxiv.org/abs/2505.09388>. Reference: transformers `modeling_qwen3.py`,
//! `modeling_qwen3_vl.py`.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, HeadNorms, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[("qwen3", "Qwen 3, dense"), ("qwen3vl", "Qwen3-VL, dense, text")],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.attention.head_norms = HeadNorms::BeforeRotation;
    settings.listed_windows(&mut spec.layers)?;
    Ok(spec)
}
