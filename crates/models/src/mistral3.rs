//! Ministral 3: Llama whose queries grow with their positions, each so many of them by a step.
//!
//! Reference: transformers `modeling_ministral3.py`. GGUF files store query and key rows permuted,
//! as those of Llama, and do not say how long a step is: as the context that YaRN stretches.

use ops::gated_linear::Activation;
use ops::rotary::QueryGrowth;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family =
    Family { architectures: &[("mistral3", "Ministral 3")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    // Of a model whose YaRN has two equal factors, turns stay as they are; so do scores here.
    let settings = GgufSettings::new(file, load)?.reading_log_multiplier();
    let mut spec = settings.plain_decoder(settings.permuted_pairing()?, Activation::Silu)?;
    let window = settings.window_or_full()?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    let factor = settings.float_or("attention.temperature_scale", 0.0)?;
    if factor != 0.0 {
        spec.attention.growth = Some(QueryGrowth { factor, every: settings.original_context()? });
    }
    Ok(spec)
}
