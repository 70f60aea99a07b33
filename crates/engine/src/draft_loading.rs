//! How is a second, smaller model loaded beside the first, to guess what that will say?

use std::path::Path;

use device::{Backend, Capacity, Tape};
use messages::Limits;
use models::{DecoderSpec, LoadSettings, Output};
use tokenizer::Tokenizer;
use weights::WeightFile;

use crate::draft_model::DraftModel;
use crate::loading::{capacity, check_memory, heap_reserve_bytes};
use crate::tensors::Tensors;
use crate::{EngineError, EngineOptions, ModelMemory, backends, vocabulary};

/// A draft's file that was read as far as its settings and tensor table.
pub(crate) struct OpenedDraft {
    backend: Box<dyn Backend>,
    file: WeightFile,
    spec: DecoderSpec,
    tape: Tape,
    capacity: Capacity,
    pub(crate) memory: ModelMemory,
}

impl OpenedDraft {
    /// Opens the draft at `path` for a model of these limits: it keeps as many positions.
    ///
    /// # Errors
    /// [`EngineError`] when the file cannot be served.
    pub(crate) fn open(
        path: &Path,
        options: &EngineOptions,
        limits: &Limits,
    ) -> Result<Self, EngineError> {
        let opened = backends::candidates(&options.device)
            .into_iter()
            .map(|device| backends::open(device, options))
            .reduce(|first, next| first.or(next));
        let opened = opened.expect("invariant: a name means a device")?;
        let (backend, kv_kind) = (opened.backend, opened.kv_kind);
        let file = weights::open(path)?;
        let settings = LoadSettings { output: Some(Output::Logits), ..LoadSettings::default() };
        let spec = models::read_spec(&file, &settings)?;
        let tape = models::lower(&spec)?;
        if spec.carries_state() {
            let text = "the draft model carries a state from token to token and cannot take back \
                        what it guessed: choose one that attends in every layer";
            return Err(EngineError::Option(text.to_owned()));
        }
        // A draft checks nobody's guesses.
        let capacity = Capacity { proposed_tokens_max: 0, ..capacity(limits, None) };
        let tensors = Tensors::of(&file);
        // Its tokenizer is compared and let go.
        let program = backend.memory(&tape, &tensors, &capacity)?;
        let memory = ModelMemory {
            program,
            tokenizer_bytes: 0,
            tiers_bytes: 0,
            heap_reserve_bytes: heap_reserve_bytes(&options.device, &options.heap_pool, program),
            host_reserve_bytes: 0,
            kv_kind,
        };
        Ok(Self { backend, file, spec, tape, capacity, memory })
    }

    /// Loads it for a model with this tokenizer.
    ///
    /// # Errors
    /// [`EngineError`] when it has another vocabulary or does not fit.
    pub(crate) fn load(self, tokenizer: &Tokenizer) -> Result<DraftModel, EngineError> {
        let Self { backend, file, spec, tape, capacity, memory } = self;
        check_same(&vocabulary::tokenizer_of(&file)?, tokenizer)?;
        check_memory(memory, backend.as_ref())?;
        let tensors = Tensors::of(&file);
        let program = backend.load(tape, &tensors, capacity)?;
        file.check_lengths()?;
        Ok(DraftModel::new(program, capacity, spec.dims.context)?)
    }
}

/// A guess is a token id: it must be the same token to both.
fn check_same(draft: &Tokenizer, model: &Tokenizer) -> Result<(), EngineError> {
    let (own, other) = (draft.vocabulary_size(), model.vocabulary_size());
    let differs = |&id: &u32| {
        draft.token_bytes(id) != model.token_bytes(id)
            || draft.is_control(id) != model.is_control(id)
    };
    let problem = if own != other {
        format!("{own} tokens, the model {other}")
    } else if let Some(id) = (0..own as u32).find(differs) {
        format!("another token {id} than the model")
    } else {
        return Ok(());
    };
    Err(EngineError::Option(format!(
        "the draft model cannot guess for this model, its vocabulary has {problem}: choose a \
         draft of the same family"
    )))
}
