//! Qwen 2 and 2.5, and what was distilled into them: Llama with biases of query, key and value.
//!
//! Paper: <https://arxiv.org/abs/2407.10671>. Reference: transformers `modeling_qwen2.py`. Windows
//! (`use_sliding_window`) are off in all published models, and only folders have a key for them.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[("qwen2", "Qwen 2 and 2.5, and what was distilled into them")],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    settings.listed_windows(&mut spec.layers)?;
    Ok(spec)
}
