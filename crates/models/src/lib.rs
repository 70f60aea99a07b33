//! Which family is this model of, and what is it made of? One file a family; words, no arithmetic.
//!
//! A family reads its settings from a model file into a [`DecoderSpec`]; the rest of Pelton never
//! asks which family it runs.

#![forbid(unsafe_code)]

mod gguf_names;
mod gguf_settings;
mod spec;

mod bert;
mod deepseek2;
mod ernie4_5;
mod exaone4;
mod gemma;
mod gemma4;
mod glm4;
mod glm4moe;
mod gpt_oss;
mod llama;
mod minimax_m2;
mod mistral3;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen35;
mod qwen3moe;
mod seed_oss;
mod smollm3;

pub use graph::{Adapted, Adapter};
pub use spec::{
    AttentionInputs, AttentionSpec, Beside, DecoderSpec, DeltaGates, DeltaSpec, Dense, Dims,
    Embedding, EncoderFeedForward, EncoderSpec, ExpertsSpec, FeedForward, HeadNorms, LatentSpec,
    LayerSpec, Mixer, ModelError, Norms, Output, OwnHeads, OwnKeys, PerLayerSpec, ScoreHead, Sinks,
    Stored,
};

use std::collections::HashSet;

use device::Tape;
use weights::WeightFile;

/// A family of models: the architectures it answers to and how to read its settings.
pub struct Family {
    /// Values of `general.architecture`, each with the names of models that have it.
    pub architectures: &'static [(&'static str, &'static str)],
    pub read_spec: fn(&WeightFile, &LoadSettings) -> Result<DecoderSpec, ModelError>,
}

/// What the one who loads a model decides about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadSettings {
    /// Longest sequence wanted; `None`: as long as the model was made for.
    pub context_tokens: Option<u32>,
    /// What the model is for; `None`: what its files say.
    pub output: Option<Output>,
    /// The token that ends a text, for encoders that are told two.
    pub separator: Option<u32>,
}

/// Every family, in alphabetical order.
pub const FAMILIES: &[Family] = &[
    deepseek2::FAMILY,
    ernie4_5::FAMILY,
    exaone4::FAMILY,
    gemma::FAMILY,
    gemma4::FAMILY,
    glm4::FAMILY,
    glm4moe::FAMILY,
    gpt_oss::FAMILY,
    llama::FAMILY,
    minimax_m2::FAMILY,
    mistral3::FAMILY,
    olmo2::FAMILY,
    phi3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen35::FAMILY,
    qwen3moe::FAMILY,
    seed_oss::FAMILY,
    smollm3::FAMILY,
];

/// Families of which a model can only tell what a text is about.
pub const ENCODERS: &[Family] = &[bert::FAMILY];

/// Reads the settings of a model file.
///
/// # Errors
/// [`ModelError`] naming the unknown architecture and the known ones, or the setting at fault.
pub fn read_spec(file: &WeightFile, settings: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    read_checked(file, settings).map_err(|error| match file.folder() {
        Some(folder) => error.of_folder(folder),
        None => error,
    })
}

fn read_checked(file: &WeightFile, settings: &LoadSettings) -> Result<DecoderSpec, ModelError> {
    let architecture: &str = file.metadata().required("general.architecture")?;
    let family = FAMILIES
        .iter()
        .chain(ENCODERS)
        .find(|family| family.architectures.iter().any(|(name, _)| *name == architecture))
        .ok_or_else(|| unknown(architecture))?;
    let mut spec = (family.read_spec)(file, settings)?;
    let is_encoder = spec.encoder.is_some();
    let output = settings.output.map_or_else(
        || gguf_settings::output(file, architecture, is_encoder),
        |output| Ok(Some(output)),
    )?;
    spec.output = output.unwrap_or(spec.output);
    spec.audit()?;
    gguf_settings::refuse_headless(file, &spec.output)?;
    refuse_unread(file, architecture, &spec)?;
    Ok(spec)
}

/// The context that a model had before LongRoPE stretched it, where it did. A load for more than
/// that takes the long factors, for all texts: keys in the cache are turned already.
pub fn context_before_stretching(file: &WeightFile) -> Option<u32> {
    let architecture: &str = file.metadata().required("general.architecture").ok()?;
    let size =
        |key: &str| file.metadata().optional::<u32>(&format!("{architecture}.{key}")).ok()?;
    let (original, now) = (size("rope.scaling.original_context_length")?, size("context_length")?);
    (file.contains("rope_factors_long.weight") && original < now).then_some(original)
}

fn unknown(architecture: &str) -> ModelError {
    let known = FAMILIES.iter().chain(ENCODERS).flat_map(|family| family.architectures);
    let known: Vec<&'static str> = known.map(|&(name, _)| name).collect();
    let nearest = weights::nearest_name(architecture, known.iter().copied());
    ModelError::UnknownArchitecture { found: spec::printable(architecture), nearest, known }
}

/// Fails when the file has a tensor that the tape would leave out, such as the bias of a linear
/// that has none in this family: its answers would be wrong without a word.
fn refuse_unread(
    file: &WeightFile,
    architecture: &str,
    spec: &DecoderSpec,
) -> Result<(), ModelError> {
    let tape = lower(spec)?;
    let read: HashSet<&str> = tape.weights.iter().map(|weight| weight.name.as_str()).collect();
    // Layers behind the last that guess at later tokens: speculation has other sources.
    let guessing = gguf_settings::guessing_layers(file, architecture)?;
    let layers = spec.dims.layers..spec.dims.layers.saturating_add(guessing);
    let is_guess = |name: &str| {
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next());
        layer.and_then(|layer| layer.parse().ok()).is_some_and(|layer| layers.contains(&layer))
    };
    let is_read = |name: &str| {
        let for_rotary = ["rope_freqs.", "rope_factors_long.", "rope_factors_short."];
        // Old converters kept a table of frequencies in each layer, which nobody reads.
        let is_table = name.ends_with(".attn_rot_embd.weight");
        // A head for words, in a model that gives vectors.
        let is_answer = matches!(spec.output, Output::Score(ScoreHead::Answers(_)));
        let is_classifier = !matches!(spec.output, Output::Score(_)) && name.starts_with("cls.");
        let is_head = (spec.output != Output::Logits && !is_answer && name == "output.weight")
            || (is_classifier && spec.encoder.is_some());
        read.contains(name)
            || is_table
            || reads_others_keys(spec, name)
            || is_head
            || is_guess(name)
            || for_rotary.iter().any(|stem| name.starts_with(stem))
    };
    match file.tensors().find(|tensor| !is_read(tensor.name())) {
        None => Ok(()),
        Some(tensor) => Err(ModelError::UnreadTensor {
            name: spec::printable(tensor.name()),
            architecture: architecture.to_owned(),
        }),
    }
}

/// Whether a tensor makes keys or values in a layer that reads another's: files may have them.
fn reads_others_keys(spec: &DecoderSpec, name: &str) -> bool {
    let inner = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((layer, stem)) = inner else { return false };
    let own = layer.parse::<usize>().ok().and_then(|layer| spec.layers.get(layer)?.own_heads);
    let makes_keys = ["attn_k.weight", "attn_v.weight", "attn_k_norm.weight"].contains(&stem);
    makes_keys && own.is_some_and(|own| matches!(own.keys, OwnKeys::Of(_)))
}

/// Whether a file has query and key rows permuted, so that rotary pairs are adjacent.
pub fn stores_permuted(file: &WeightFile) -> bool {
    let architecture = file.metadata().optional::<&str>("general.architecture").ok().flatten();
    let is_plain = file.metadata().get("pelton.rotary_pairs").is_some();
    architecture.is_some_and(|name| ["llama", "mistral3", "smollm3"].contains(&name)) && !is_plain
}

/// A tape with what adapters add to it, by their numbers.
///
/// # Errors
/// [`ModelError`] when they adapt what this model does not have.
pub fn adapt(tape: Tape, adapters: &[Adapter]) -> Result<Tape, ModelError> {
    if adapters.is_empty() {
        return Ok(tape);
    }
    Ok(graph::adapt(tape, adapters)?)
}

/// Lowers a checked spec to the tape that backends run.
///
/// # Errors
/// [`ModelError`] when its sizes contradict each other.
pub fn lower(spec: &DecoderSpec) -> Result<Tape, ModelError> {
    match &spec.encoder {
        Some(encoder) => Ok(graph::lower_encoder(&gguf_names::encoder(spec, encoder))?),
        None => Ok(graph::lower(&gguf_names::decoder(spec))?),
    }
}
