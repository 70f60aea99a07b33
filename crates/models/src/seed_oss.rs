//! Seed-OSS: Llama with biases of query, key and value, and heads of a size of their own.
//!
//! Reference: transformers `modeling_seed_oss.py`.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ModelError, Norms};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family { architectures: &[("seed_oss", "Seed-OSS")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::Silu)?;
    spec.norms = Norms::BeforeByOtherName;
    Ok(spec)
}
