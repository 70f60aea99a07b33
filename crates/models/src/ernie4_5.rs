//! ERNIE 4.5, dense: Llama whose rotary pairs are adjacent in the published order of rows.
//!
//! Reference: transformers `modeling_ernie4_5.py`.

use ops::gated_linear::Activation;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, ModelError};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family =
    Family { architectures: &[("ernie4_5", "ERNIE 4.5, dense")], read_spec };

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    GgufSettings::new(file, load)?.plain_decoder(Pairing::Adjacent, Activation::Silu)
}
