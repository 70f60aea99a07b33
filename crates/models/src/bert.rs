//! BERT and what followed it: encoders that give vectors of texts. Nomic's has rotary positions
//! and gated feed-forwards, XLM-RoBERTa's is BERT's with another vocabulary.
//!
//! Papers: <https://arxiv.org/abs/1810.04805>, <https://arxiv.org/abs/1911.02116>,
//! <https://arxiv.org/abs/2402.01613>. Reference: transformers `modeling_bert.py`,
//! `modeling_xlm_roberta.py`; for Nomic's, llama.cpp's converter and graph.

use ops::activate::Curve;
use ops::gated_linear::Activation;
use ops::pool_rows::Pooling;
use ops::rotary::Pairing;
use weights::WeightFile;

use crate::gguf_settings::GgufSettings;
use crate::spec::{DecoderSpec, EncoderFeedForward, EncoderSpec, ModelError, Output};
use crate::{Family, LoadSettings};

pub(crate) const FAMILY: Family = Family {
    architectures: &[
        ("bert", "BERT, XLM-RoBERTa and others that give vectors of texts"),
        ("nomic-bert", "Nomic Embed 1 and 1.5"),
    ],
    read_spec,
};

fn read_spec(file: &WeightFile, load: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let settings = GgufSettings::new(file, load)?;
    let epsilon = settings.float("attention.layer_norm_epsilon")?;
    let is_nomic = settings.architecture() == "nomic-bert";
    let rotary = is_nomic.then_some(Pairing::HalfSplit);
    let mut spec = settings.plain_decoder_of(rotary, Activation::Silu, epsilon)?;
    let rows = |name: &str| file.shape(name).ok().and_then(|shape| u32::try_from(shape.rows).ok());
    spec.encoder = Some(EncoderSpec {
        positions: rows("position_embd.weight"),
        positions_from: file.metadata().optional("pelton.positions_from")?.unwrap_or(0),
        types: rows("token_types.weight"),
        // Where there is one row all texts are of one kind.
        separator: load.separator.filter(|_| rows("token_types.weight") > Some(1)),
        feed_forward: if is_nomic {
            EncoderFeedForward::Gated(Activation::Silu)
        } else {
            EncoderFeedForward::Plain(Curve::Gelu)
        },
        is_fused: file.contains("blk.0.attn_qkv.weight"),
        has_biases: file.contains("blk.0.attn_output.bias"),
    });
    spec.output = Output::Vector(Pooling::Mean);
    Ok(spec)
}
