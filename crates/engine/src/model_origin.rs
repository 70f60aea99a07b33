//! What does a model's file say of itself, for who asks about the model and not of it?

use std::collections::BTreeMap;

use ops::quant_format::QuantFormat;
use weights::{WeightFile, WeightsError};

/// Of what a model was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelOrigin {
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// In GGUF's word, as `llama`.
    pub architecture: String,
    /// The format of most of its weights, as `Q4_1`; empty where that is none of ours.
    pub quantization: &'static str,
    pub license: Option<String>,
    /// The template of its conversations.
    pub template: Option<String>,
}

impl ModelOrigin {
    pub(crate) fn of(file: &WeightFile, template: Option<&str>) -> Result<Self, WeightsError> {
        let mut weights: BTreeMap<&'static str, u64> = BTreeMap::new();
        for tensor in file.tensors() {
            let count = tensor.rows().saturating_mul(tensor.cols());
            let name = tensor.format().map_or("", QuantFormat::name);
            let before = weights.entry(name).or_default();
            *before = before.saturating_add(count);
        }
        let most = weights.into_iter().max_by_key(|(_, count)| *count);
        let metadata = file.metadata();
        let architecture: Option<&str> = metadata.optional("general.architecture")?;
        let license: Option<&str> = metadata.optional("general.license")?;
        Ok(Self {
            format: if file.folder().is_some() { "safetensors" } else { "gguf" },
            architecture: architecture.unwrap_or_default().to_owned(),
            quantization: most.map_or("", |(name, _)| name),
            license: license.map(str::to_owned),
            template: template.map(str::to_owned),
        })
    }
}
