//! Would a model run here, where, and with how much memory at which length of context?
//!
//! What a file holds is told of files that no family reads, too. What a model needs is worked out
//! by the code that plans its memory at load, for one sequence of the length in question, and what
//! the program takes beside it is added; whether there is as much is asked as at load.

use std::path::Path;

use crate::backends;
use crate::loading::{EngineOptions, available_to, check_memory, open_on};
use crate::{EngineError, LayerSplit};

/// What a model file holds, before anybody asks what it means.
#[derive(Clone, Debug, PartialEq)]
pub struct FileFacts {
    /// `gguf`, or `safetensors` for a folder.
    pub kind: &'static str,
    pub architecture: String,
    pub files: usize,
    pub file_bytes: u64,
    pub parameters: u64,
    /// By format, most bytes first.
    pub mix: Vec<FormatShare>,
    pub tensors: Vec<TensorFacts>,
}

/// How much of a model is in one format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormatShare {
    pub format: String,
    pub tensors: u32,
    pub weights: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorFacts {
    pub name: String,
    pub format: String,
    /// Fastest first.
    pub dims: Vec<u64>,
    pub bytes: u64,
}

/// What a device says to a model.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceFit {
    pub device: String,
    /// `None` where nobody tells.
    pub available_bytes: Option<u64>,
    /// By length of context, shortest first; empty where the model is refused.
    pub needs: Vec<ContextNeed>,
    /// Why the model cannot run on it, whatever its context.
    pub refusal: Option<String>,
}

/// What a program that serves one model takes beside it: code, threads, connections and the
/// allocator's slack. Measured with contexts that were full, on Linux: 29 MB with SmolLM2 at 2,048
/// and at 8,192 tokens, 34 MB with a model of a billion weights.
pub const PROGRAM_BYTES: u64 = 32 << 20;

/// What one sequence of a length takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextNeed {
    pub context_tokens: u32,
    pub weights_bytes: u64,
    pub kv_bytes: u64,
    /// With [`PROGRAM_BYTES`].
    pub resident_bytes: u64,
    /// While it is being loaded, with the same.
    pub peak_bytes: u64,
    pub fits: bool,
    /// Where it fits only with layers on the processor, too.
    pub split: Option<LayerSplit>,
}

impl FileFacts {
    /// # Errors
    /// [`EngineError`] if the file is none of a model, or damaged.
    pub fn read(path: &Path) -> Result<Self, EngineError> {
        let file = weights::open(path)?;
        let architecture = file.metadata().optional::<&str>("general.architecture")?;
        let mut facts = Self {
            kind: if file.folder().is_some() { "safetensors" } else { "gguf" },
            architecture: architecture.unwrap_or_default().to_owned(),
            files: file.parts().len(),
            file_bytes: file.file_bytes(),
            parameters: 0,
            mix: Vec::new(),
            tensors: Vec::new(),
        };
        for tensor in file.tensors() {
            let known = tensor.format().map(|format| format.name().to_owned());
            let format = known.unwrap_or_else(|_| tensor.kind().to_string());
            let weights = tensor.rows().saturating_mul(tensor.cols());
            let (dims, bytes) = (tensor.dims().to_vec(), tensor.bytes().unwrap_or(0));
            facts.parameters = facts.parameters.saturating_add(weights);
            facts.add_to_mix(&format, weights, bytes);
            facts.tensors.push(TensorFacts { name: tensor.name().to_owned(), format, dims, bytes });
        }
        facts.mix.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        Ok(facts)
    }

    fn add_to_mix(&mut self, format: &str, weights: u64, bytes: u64) {
        let place = self.mix.iter().position(|share| share.format == format);
        let place = place.unwrap_or_else(|| {
            let format = format.to_owned();
            self.mix.push(FormatShare { format, tensors: 0, weights: 0, bytes: 0 });
            self.mix.len() - 1
        });
        let share = &mut self.mix[place];
        share.tensors += 1;
        share.weights = share.weights.saturating_add(weights);
        share.bytes = share.bytes.saturating_add(bytes);
    }
}

/// Lengths that people ask for.
const CONTEXTS: [u32; 5] = [2048, 8192, 32_768, 131_072, 1_048_576];

/// What each device that `auto` means says to the model, the first choice first.
pub fn fits(path: &Path, context_tokens_max: u32) -> Vec<DeviceFit> {
    let shorter = CONTEXTS.into_iter().filter(|&tokens| tokens < context_tokens_max);
    let contexts: Vec<u32> = shorter.chain([context_tokens_max]).collect();
    let on = |device: &str| {
        let mut fit = DeviceFit {
            device: device.to_owned(),
            available_bytes: None,
            needs: Vec::new(),
            refusal: None,
        };
        for &context_tokens in &contexts {
            let mut options = EngineOptions::new(path.to_owned(), "fit");
            options.context_tokens = Some(context_tokens);
            // As many blocks as one sequence can use.
            options.sequences_max = 1;
            match open_on(device, &options) {
                Err(error) => {
                    fit.needs.clear();
                    fit.refusal = Some(error.to_string());
                    return fit;
                }
                Ok(opened) => {
                    let memory = opened.sized.memory;
                    let available = available_to(&*opened.backend);
                    fit.available_bytes = available;
                    fit.needs.push(ContextNeed {
                        context_tokens,
                        weights_bytes: memory.weights_bytes(),
                        kv_bytes: memory.kv_bytes(),
                        resident_bytes: memory.resident_bytes() + PROGRAM_BYTES,
                        peak_bytes: memory.peak_bytes() + PROGRAM_BYTES,
                        fits: check_memory(memory, &*opened.backend).is_ok(),
                        split: opened.split,
                    });
                }
            }
        }
        fit
    };
    backends::candidates("auto").into_iter().map(on).collect()
}
