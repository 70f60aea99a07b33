//! Gemma, Gemma 2 and Gemma 3 (text): scaled embeddings, gated GELU; from the second on norms on
//! both sides of each block and layers that see a window only; caps in the second, norms of heads
//! and two rotations in the third.
//!
//! Papers: <https://arxiv.org/abs/2403.08295>, <https://arxiv.org/abs/2408.00118>,
//! <https://arxiv.org/abs/2503.19786>. Reference: transformers `modeling_gemma.py`,
//! `modeling_gemma2.py`, `modeling_gemma3.py`. GGUF files hold norms with their 1 added.

use ops::gated_linear::Activation;
use ops::rotary::{Pairing, Rotary, RotaryScaling};
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, HeadNorms, ModelError, Norms};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[("gemma", "Gemma"), ("gemma2", "Gemma 2"), ("gemma3", "Gemma 3, text")],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let mut spec = settings.plain_decoder(Pairing::HalfSplit, Activation::GeluTanh)?;
    spec.embedding_scale = brain_float_root(spec.dims.width);
    match settings.architecture() {
        "gemma2" => second(&settings, &mut spec)?,
        "gemma3" => third(&settings, &mut spec)?,
        _ => {}
    }
    Ok(spec)
}

fn second(settings: &GgufSettings<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    spec.norms = Norms::BeforeAndAfter;
    spec.attention.soft_cap = cap(settings, "attn_logit_softcapping", 50.0)?;
    spec.logit_soft_cap = cap(settings, "final_logit_softcapping", 30.0)?;
    // The 27B model scales by the width that a head would have of the whole; files do not say so.
    scale_by_width(settings, spec, 46);
    settings.alternate_windows(&mut spec.layers, 2)?;
    Ok(())
}

fn third(settings: &GgufSettings<'_>, spec: &mut DecoderSpec) -> Result<(), ModelError> {
    spec.norms = Norms::BeforeAndAfter;
    spec.attention.head_norms = HeadNorms::BeforeRotation;
    // One of attention would be known to its settings, and is not to the authors' code.
    spec.logit_soft_cap = cap(settings, "final_logit_softcapping", 0.0)?;
    scale_by_width(settings, spec, 62);
    let base = settings.rotary_base("rope.freq_base_swa", 10_000.0)?;
    for index in settings.alternate_windows(&mut spec.layers, 6)? {
        let layer = &mut spec.layers[index];
        let local = |rotary| Rotary { base, scaling: RotaryScaling::None, ..rotary };
        layer.rotary = layer.rotary.take().map(local);
    }
    Ok(())
}

/// A cap of 0 is none.
fn cap(settings: &GgufSettings<'_>, key: &str, default: f32) -> Result<Option<f32>, ModelError> {
    Ok(Some(settings.float_or(key, default)?).filter(|cap| *cap != 0.0))
}

fn scale_by_width(settings: &GgufSettings<'_>, spec: &mut DecoderSpec, layers: u32) {
    if spec.dims.layers == layers && !settings.gives("attention.scale") {
        spec.attention.scale = ((spec.dims.width / spec.dims.heads) as f32).sqrt().recip();
    }
}

/// `width^1/2` as the models were trained with: rounded to bfloat16.
pub(crate) fn brain_float_root(width: u32) -> f32 {
    let bits = (width as f32).sqrt().to_bits();
    // To nearest, ties to even: 16 bits go.
    let rounded = bits + 0x7fff + (bits >> 16 & 1);
    f32::from_bits(rounded & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn roots_are_rounded_to_bfloat16() {
        for (width, root) in [(2048, 45.25), (1152, 34.0), (2560, 50.5), (3584, 59.75), (64, 8.0)] {
            assert_eq!(super::brain_float_root(width), root);
        }
    }
}
