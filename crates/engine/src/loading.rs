//! How does a model file become a running engine? Read, plan memory, check that it fits, load.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use answer_format::{AnswerFormat, CallFormat};
use constraint::Grammars;
use device::{
    Backend, BlitSettings, Capacity, Failing, HeapSettings, MemorySetting, MemoryUse, PartClock,
    Program, RingSettings, RowInput, SharedAllocator, SlotReset, StepInputs, StepOutputs, Tape,
    TokenInput,
};
use kv_tiers::TierSettings;
use messages::Limits;
use models::{DecoderSpec, LoadSettings, Output, ScoreHead};
use ops::kv_format::KvFormat;
use ops::sample_rows::SampleParams;
use tokenizer::{EncodeSettings, TokenType, Tokenizer};
use weights::WeightFile;

use crate::adapters::{AdapterOptions, Adapters, NamedAdapter};
use crate::available_memory::available_memory;
use crate::backends::OpenedBackend;
use crate::chat_prompt::{ChatPrompt, TemplateProgram, Templates};
use crate::draft_loading::OpenedDraft;
use crate::failpoints::Failpoints;
use crate::load_progress::LoadProgress;
use crate::model_origin::ModelOrigin;
use crate::offload::{CpuMoeLayers, GpuLayers, LayerSplit, Placed};
use crate::pacing::PacingOptions;
use crate::packed_store::FileStore;
use crate::resources::TierBuffers;
use crate::roofline::StepWork;
use crate::tensors::Tensors;
use crate::vector_texts::VectorTexts;
use crate::weight_manager::{DirectIo, LoadedWeights, WeightManager, WeightOptions};
use crate::{
    BreakerRules, EngineError, ModelCard, ModelMemory, SaveProgress, SharingOptions, backends,
    model_identity, offload, vocabulary,
};

/// What to load and how to serve it.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The model's file; of a split model, any part.
    pub path: PathBuf,
    /// The name requests use.
    pub model_id: String,
    /// What it is loaded with; requests choose one by its name, or none.
    pub adapters: Vec<AdapterOptions>,
    /// See [`crate::DEVICES`].
    pub device: String,
    /// How many of the model's layers a GPU takes; the processor has the others.
    pub gpu_layers: GpuLayers,
    pub cpu_moe_layers: CpuMoeLayers,
    /// Bytes of a GPU's memory that the model may take; `None`: what is left of it.
    pub device_memory_bytes: Option<u64>,
    /// `None`: as many as the process may use.
    pub threads: Option<usize>,
    /// Forces the cpu device's instruction set; `None`: the best this processor has.
    pub instruction_set: Option<String>,
    /// How keys and values are kept: f16, bf16, int16 or int8; `None`: int16.
    pub kv_dtype: Option<String>,
    /// Longest sequence; `None`: as long as the model and the KV budget allow.
    pub context_tokens: Option<u32>,
    /// What the model is for; `None`: what its files say.
    pub output: Option<Output>,
    /// It ranks texts: by its classifier, or by whether it would say yes or no.
    pub ranks: bool,
    pub sequences_max: u32,
    pub waiting_max: u32,
    /// Fewer run at once where more would make streams slower than a token in this time; `None`:
    /// they may be.
    pub token_target: Option<Duration>,
    /// A request that would wait longer for a place, or has, is refused; `None`: none is.
    pub queue_time_max: Option<Duration>,
    /// `None`: as many as the device reads prompts fastest with.
    pub step_tokens_max: Option<u32>,
    pub pacing: PacingOptions,
    /// Bytes for keys and values; `None`: see [`KV_BYTES_DEFAULT`].
    pub kv_cache_bytes: Option<u64>,
    /// Whether requests share the keys and values of equal prompt beginnings.
    pub prefix_cache: bool,
    /// Where blocks are kept that the device has no room for.
    pub kv_tiers: TierSettings,
    pub speculation: Speculation,
    /// The file of a smaller model of the same vocabulary, whose answers are guesses at this one's.
    pub draft_model: Option<PathBuf>,
    /// Replaces the template in the model file.
    pub chat_template: Option<String>,
    /// How the model writes calls; `None`: as its template says.
    pub call_format: Option<CallFormat>,
    /// How to start the program that renders templates; `None`: no chat.
    pub template_program: Option<TemplateProgram>,
    /// `None`: every request is computed for itself.
    pub sharing: Option<SharingOptions>,
    /// How the device's memory is got and divided.
    pub heap_pool: HeapSettings,
    /// Where heaps come from; `None`: from the device.
    pub heap_allocator: Option<SharedAllocator>,
    /// How blocks are copied beside steps.
    pub blit_queue: BlitSettings,
    /// How steps are handed to the device.
    pub command_ring: RingSettings,
    /// Keeps repacked weights in this file for the next start; `None`: packs at every start.
    pub repack_cache: Option<PathBuf>,
    /// How weights are read and kept.
    pub weights: WeightOptions,
    /// Counts what is loaded, for whoever watches.
    pub load_progress: Option<Arc<LoadProgress>>,
    /// Counts what is to be saved at the end, for whoever waits for it.
    pub save_progress: Arc<SaveProgress>,
    /// How prompts are encoded.
    pub encode: EncodeSettings,
    pub failpoints: Failpoints,
    pub breaker: BreakerRules,
    /// Touch memory and, where that pays, run two steps before the model counts as loaded, so that
    /// the first request is not slow.
    pub warm_up: bool,
}

/// Whether guesses at next tokens are checked, for requests that do not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// Where it pays, as measured.
    Auto,
    /// Every guess there is, whatever it costs: to measure that, and to test.
    Always,
}

/// 1 GiB: 45,000 positions of a 135M model, 8,000 of an 8B one; more is asked for by name.
pub const KV_BYTES_DEFAULT: u64 = 1 << 30;
/// The automata of a pre-tokenizer and the rest of a tokenizer that does not grow with its
/// vocabulary.
const PRE_TOKENIZER_BYTES: u64 = 1 << 20;
/// Positions a block: small enough to waste little at a sequence's end, large enough that a
/// block's keys fill whole cache lines and the tables stay short.
const BLOCK_TOKENS: u32 = 32;

/// Guesses checked in one step over all rows. On a processor a handful more tokens are cheap for
/// one stream and not for many; each takes a row of logits, 200 KB of a 50,000-token vocabulary.
const PROPOSED_TOKENS_MAX: u32 = 32;
/// The same where a state is carried, which keeps each slot's guesses until it is known which were
/// right: of the largest, each is a thirtieth of a state.
const CARRIED_GUESSES_MAX: u32 = 4;
/// What states that sequences may start from take besides the budget of keys and values: this part
/// of it, and no fewer than a few conversations need.
const STATES_SHARE: u64 = 8;
const STATES_MIN: u64 = 4;
/// Until steps were measured: what they take decides (`waiting`).
const AGING_PLANS: u32 = 3000;

impl EngineOptions {
    pub fn new(path: PathBuf, model_id: &str) -> Self {
        Self {
            path,
            model_id: model_id.to_owned(),
            adapters: Vec::new(),
            device: "auto".to_owned(),
            gpu_layers: GpuLayers::Auto,
            cpu_moe_layers: CpuMoeLayers::Auto,
            device_memory_bytes: None,
            threads: None,
            instruction_set: None,
            kv_dtype: None,
            context_tokens: None,
            output: None,
            ranks: false,
            sequences_max: 32,
            waiting_max: 256,
            token_target: None,
            queue_time_max: None,
            step_tokens_max: None,
            pacing: PacingOptions::default(),
            kv_cache_bytes: None,
            prefix_cache: true,
            kv_tiers: TierSettings::default(),
            speculation: Speculation::Auto,
            draft_model: None,
            chat_template: None,
            call_format: None,
            template_program: None,
            sharing: Some(SharingOptions::default()),
            heap_pool: HeapSettings::default(),
            heap_allocator: None,
            blit_queue: BlitSettings::default(),
            command_ring: RingSettings::default(),
            repack_cache: None,
            weights: WeightOptions::default(),
            load_progress: None,
            save_progress: Arc::default(),
            encode: EncodeSettings {
                threads: std::thread::available_parallelism().map_or(1, usize::from),
                ..EncodeSettings::default()
            },
            failpoints: Failpoints::default(),
            breaker: BreakerRules::default(),
            warm_up: true,
        }
    }
}

impl EngineOptions {
    pub(crate) fn heaps(&self) -> (HeapSettings, Option<SharedAllocator>) {
        (self.heap_pool.clone(), self.heap_allocator.clone())
    }
}

/// A model on its device, with everything that surrounds it.
pub(crate) struct Loaded {
    pub(crate) memory: ModelMemory,
    pub(crate) program: Box<dyn Program>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat_prompt: ChatPrompt,
    /// Constraints of answers; `None` on a device that cannot follow any.
    pub(crate) grammars: Option<Grammars>,
    pub(crate) limits: Limits,
    /// Of models whose sequences carry one: how many are kept besides those that run.
    pub(crate) states: Option<u32>,
    pub(crate) card: ModelCard,
    pub(crate) output: Output,
    pub(crate) vector_texts: VectorTexts,
    /// Whether its tokens see the whole of a text, which is then read in one step.
    pub(crate) reads_whole: bool,
    pub(crate) adapters: Arc<[NamedAdapter]>,
    /// Tells the model, and what it answers, from every other.
    pub(crate) identity: [u8; 32],
    pub(crate) weights: LoadedWeights,
}

/// What a model file is and needs, before it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSummary {
    pub architecture: String,
    pub name: Option<String>,
    pub license: Option<String>,
    pub parameters: u64,
    pub layers: u32,
    pub width: u32,
    pub heads: u32,
    pub heads_kv: u32,
    pub context_tokens: u32,
    /// What it was before LongRoPE, where that stretched it.
    pub context_before_stretching: Option<u32>,
    pub vocabulary_size: u32,
    pub file_bytes: u64,
    pub kv_bytes_per_token: u64,
    pub work: StepWork,
    pub has_chat_template: bool,
}

/// Reads a model file's settings, tokenizer and tensor table without loading weights.
///
/// # Errors
/// [`EngineError`]: whatever would refuse the file at load.
pub fn inspect(path: &std::path::Path) -> Result<ModelSummary, EngineError> {
    let file = weights::open(path)?;
    let spec = models::read_spec(&file, &LoadSettings::default())?;
    let tape = models::lower(&spec)?;
    let tensors = Tensors::of(&file);
    for id in 0..tape.weights.len() as u32 {
        tape.shape(ops::WeightId(id), &tensors)?;
    }
    let tokenizer = vocabulary::tokenizer_of(&file)?;
    check_vocabulary(&spec, &tokenizer)?;
    let text = |key: &str| file.metadata().optional::<&str>(key).ok().flatten().map(visible);
    Ok(ModelSummary {
        architecture: text("general.architecture").unwrap_or_default(),
        name: text("general.name"),
        license: text("general.license"),
        parameters: parameters(&file),
        layers: spec.dims.layers,
        width: spec.dims.width,
        heads: spec.dims.heads,
        heads_kv: spec.dims.heads_kv,
        context_tokens: spec.dims.context,
        context_before_stretching: models::context_before_stretching(&file),
        vocabulary_size: spec.dims.vocabulary,
        file_bytes: file.file_bytes(),
        kv_bytes_per_token: kv_bytes_per_token(&spec, KvFormat::default()),
        work: StepWork::of(&tape, &tensors, kv_bytes_per_token(&spec, KvFormat::default()))?,
        has_chat_template: file.metadata().get("tokenizer.chat_template").is_some(),
    })
}

/// A model file that was read as far as its settings and tensor table, and what follows from it.
pub(crate) struct Opened {
    pub(crate) backend: Box<dyn Backend>,
    kv_format: KvFormat,
    file: WeightFile,
    pub(crate) sized: SizedModel,
    /// Where a part of it is on the processor.
    pub(crate) split: Option<LayerSplit>,
}

/// What follows from a model and the device it is to be on.
pub(crate) struct SizedModel {
    spec: DecoderSpec,
    pub(crate) tape: Tape,
    limits: Limits,
    states: Option<u32>,
    pub(crate) memory: ModelMemory,
    adapters: Adapters,
    /// With nothing left to be chosen.
    weights: WeightOptions,
}

/// On the first device that takes the model, or with the words of the last.
fn open(options: &EngineOptions) -> Result<Opened, EngineError> {
    let devices = backends::candidates(&options.device);
    let (last, others) = devices.split_last().expect("invariant: a name means a device");
    for device in others {
        let opened = open_on(device, options);
        if let Ok(opened) = opened
            && check_memory(opened.sized.memory, opened.backend.as_ref()).is_ok()
        {
            return Ok(opened);
        }
    }
    open_on(last, options)
}

pub(crate) fn open_on(device: &str, options: &EngineOptions) -> Result<Opened, EngineError> {
    if options.gpu_layers == GpuLayers::Count(0) && backends::is_gpu(device) {
        let (gpu_layers, cpu_moe_layers) = (GpuLayers::Auto, CpuMoeLayers::Auto);
        let options = EngineOptions { gpu_layers, cpu_moe_layers, ..options.clone() };
        return open_on("cpu", &options);
    }
    let OpenedBackend { backend, kv_format, kv_kind } = backends::open(device, options)?;
    let file = weights::open(&options.path)?;
    let spec = read_spec(options, &file)?;
    let kept = (kv_format, kv_kind);
    let size = |backend: &dyn Backend| sized(device, options, (&file, &spec), (backend, kept));
    let tensors = Tensors::of(&file);
    let token_bytes = |tape: &Tape| Ok(StepWork::of(tape, &tensors, 0)?.weights_bytes);
    let beside = |sized: &SizedModel| draft_memory(options, &sized.limits);
    let Placed { backend, mut sized, split } =
        offload::place(device, backend, options, (&size, &beside), &token_bytes)?;
    if split.is_some_and(|split| split.on_processor > 0) && options.kv_dtype.is_none() {
        // Each device as it does best.
        sized.memory.kv_kind = "int16 and f16";
    }
    Ok(Opened { backend, kv_format, file, sized, split })
}

/// What a model takes on a device, and which limits follow.
fn sized(
    device: &str,
    options: &EngineOptions,
    (file, spec): (&WeightFile, &DecoderSpec),
    (backend, (kv_format, kv_kind)): (&dyn Backend, (KvFormat, &'static str)),
) -> Result<SizedModel, EngineError> {
    let mut spec = spec.clone();
    let limits = limits(options, (kv_format, backend.step_tokens_best()), &mut spec)?;
    let adapters = Adapters::open(&options.adapters, &options.model_id, file, &spec)?;
    let tape = models::adapt(models::lower(&spec)?, &adapters.tables)?;
    let tensors = Tensors { adapters: Some(&adapters), ..Tensors::of(file) };
    let states = states(options, &tape, &limits);
    let mut program = backend.memory(&tape, &tensors, &capacity(&limits, states))?;
    let mut weights = options.weights.settled(file);
    let staging_bytes = program.staging_bytes + adapters.bytes();
    program.staging_bytes = staging_bytes + weights.staging_bytes(file);
    let texts = vocabulary::tokenizer_bytes(file)?;
    let texts = (texts + options.encode.cache_bytes_max()) as u64;
    let block_bytes = match states {
        // All of the cache is blocks, as long as the device makes them.
        None => program.kv_bytes / u64::from(limits.block_count),
        Some(_) => kv_bytes_per_token(&spec, kv_format) * u64::from(BLOCK_TOKENS),
    };
    let keeps = states.is_none() || backend.copies_states();
    let kept = if keeps { options.kv_tiers.clone() } else { TierSettings::default() };
    let buffers = TierBuffers::new(options, &kept, block_bytes as usize, limits.block_count);
    let tiers_bytes = buffers.bytes();
    let tokenizer_bytes = texts + PRE_TOKENIZER_BYTES;
    let mut memory = ModelMemory {
        program,
        tokenizer_bytes,
        tiers_bytes,
        heap_reserve_bytes: 0,
        host_reserve_bytes: 0,
        kv_kind,
    };
    for part in backend.memory_of_each(&tape, &tensors, &capacity(&limits, states))? {
        let bytes = heap_reserve_bytes(device, &options.heap_pool, part.used);
        memory.heap_reserve_bytes += bytes;
        // Of a processor beside a device whose memory is its own.
        let is_host = backend.own_memory().is_some() && !part.is_own;
        memory.host_reserve_bytes += if is_host { bytes } else { 0 };
    }
    let is_chosen = options.weights.direct_io == DirectIo::Auto;
    if is_chosen && check_memory(memory, backend).is_err() {
        // Buffers to read by are no reason to refuse a model.
        weights.direct_io = DirectIo::Off;
        memory.program.staging_bytes = staging_bytes + weights.staging_bytes(file);
    }
    Ok(SizedModel { spec, tape, limits, states, memory, adapters, weights })
}

/// What the model is, and what it is for.
fn read_spec(options: &EngineOptions, file: &WeightFile) -> Result<DecoderSpec, EngineError> {
    let (context_tokens, mut output) = (options.context_tokens, options.output);
    let read = |output, separator| {
        models::read_spec(file, &LoadSettings { context_tokens, output, separator })
    };
    if options.ranks && !file.contains("cls.output.weight") {
        let tokenizer = vocabulary::tokenizer_of(file)?;
        let token = |word: &str| {
            let missing = || format!("it has no token `{word}` to rank by");
            tokenizer.token_id(word).ok_or_else(|| EngineError::Vocabulary(missing()))
        };
        output = Some(Output::Score(ScoreHead::Answers([token("yes")?, token("no")?])));
    }
    let spec = read(output, None)?;
    if spec.encoder.is_none() || !matches!(spec.output, Output::Score(_)) {
        return Ok(spec);
    }
    Ok(read(output, vocabulary::tokenizer_of(file)?.separator())?)
}

/// What a model is and will take, known before it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelPlan {
    pub card: ModelCard,
    pub memory: ModelMemory,
    /// Where a part of it is to be on the processor.
    pub split: Option<LayerSplit>,
    /// What it takes that is not of the machine's memory, but of a GPU's own.
    pub(crate) gpu_bytes: u64,
}

impl ModelPlan {
    /// Reads the settings and the tensor table of the model's file.
    ///
    /// # Errors
    /// [`EngineError`]: most of what would refuse the file at load.
    pub fn read(options: &EngineOptions) -> Result<Self, EngineError> {
        let Opened { backend, file, sized, split, .. } = open(options)?;
        let SizedModel { spec, limits, mut memory, .. } = sized;
        memory += draft_memory(options, &limits)?;
        let card = card(options, &file, &spec, &limits, backend.name())?;
        let is_apart = split.is_some() || backend.own_memory().is_some();
        let gpu_bytes = if is_apart { memory.device_bytes() } else { 0 };
        Ok(Self { card, memory, split, gpu_bytes })
    }
}

/// What a draft model takes, if there is to be one.
fn draft_memory(options: &EngineOptions, limits: &Limits) -> Result<ModelMemory, EngineError> {
    let draft = options.draft_model.as_deref();
    let opened = draft.map(|path| OpenedDraft::open(path, options, limits)).transpose()?;
    Ok(opened.map_or_else(ModelMemory::default, |opened| opened.memory))
}

fn warn_of_stretching(options: &EngineOptions, file: &WeightFile, spec: &DecoderSpec) {
    if let Some(original) = models::context_before_stretching(file)
        && original < spec.dims.context
    {
        tracing::warn!(
            "{} is stretched from {original} to {} tokens by LongRoPE, and answers short texts, \
             too, as it does long ones: where {original} are enough, set context_tokens to that",
            options.model_id,
            spec.dims.context
        );
    }
}

pub(crate) fn load(options: &EngineOptions) -> Result<Loaded, EngineError> {
    let Opened { backend, kv_format, file, sized, split } = open(options)?;
    let SizedModel { spec, tape, limits, states, memory, adapters, weights: reading } = sized;
    check_memory(memory, backend.as_ref())?;
    tell_split(options, backend.name(), split);
    let file = Arc::new(file);
    let is_held = file.hold();
    if !is_held {
        tracing::debug!("{} is not kept from being written to", options.path.display());
    }
    check_reserved(&options.heap_pool, available_to(backend.as_ref()))?;
    for text in without_effect(options, backend.as_ref()) {
        tracing::warn!("{text}");
    }
    warn_of_stretching(options, &file, &spec);
    let card = card(options, &file, &spec, &limits, backend.name())?;
    // The tokenizer and the template worker start while the weights are being packed, and the file
    // is looked at here and there, for which a disk takes its time.
    let beside = || {
        let texts = load_texts(options, &file, &spec)?;
        let identity = model_identity::fingerprint(&file, &spec, &card, kv_format)?;
        Ok::<_, EngineError>((texts, identity))
    };
    std::thread::scope(|scope| {
        let beside = std::thread::Builder::new()
            .name("pelton-load".to_owned())
            .spawn_scoped(scope, beside)
            .map_err(|error| EngineError::Option(format!("no thread to load with: {error}")))?;
        // What others may cut off is looked at while it is loaded and no longer.
        let lasting = is_held.then_some(&file);
        let from = (&*file, lasting, &adapters);
        let sizes = (&limits, states);
        let how = (options, reading);
        let (program, weights) = load_program(how, backend.as_ref(), from, tape, sizes)?;
        let ((tokenizer, chat_prompt), identity) =
            beside.join().map_err(|_| EngineError::Vocabulary("reading it broke".to_owned()))??;
        file.check_lengths()?;
        let memory = ModelMemory { program: program.memory(), ..memory };
        let tokenizer = Arc::new(tokenizer);
        let grammars = backend.follows_grammars().then(|| Grammars::new(Arc::clone(&tokenizer)));
        Ok(Loaded {
            memory,
            program,
            tokenizer,
            chat_prompt,
            grammars,
            limits,
            states,
            card: card.clone(),
            output: spec.output,
            vector_texts: VectorTexts::of(&file)?,
            reads_whole: spec.encoder.is_some(),
            adapters: adapters.named.into(),
            identity,
            weights,
        })
    })
}

/// A split that nobody asked for is slower than whoever named the device expects.
fn tell_split(options: &EngineOptions, device: &str, split: Option<LayerSplit>) {
    let Some(split) = split else {
        for (is_asked, key) in [
            (options.gpu_layers != GpuLayers::Auto, "gpu_layers"),
            (options.cpu_moe_layers != CpuMoeLayers::Auto, "cpu_moe_layers"),
        ] {
            if is_asked && device == "cpu" {
                tracing::warn!("{key} has no effect: the model is on the processor");
            }
        }
        return;
    };
    match (options.gpu_layers, options.cpu_moe_layers) {
        (GpuLayers::Auto, CpuMoeLayers::Auto) => {
            tracing::warn!("the GPU has no room for all of the model: {split}");
        }
        _ => tracing::info!("{split}"),
    }
}

/// What was asked for and does nothing on this device, and why.
fn without_effect(options: &EngineOptions, backend: &dyn Backend) -> Vec<String> {
    let is_asked = |setting| match setting {
        MemorySetting::WarmUpSizes => !options.heap_pool.warm_up_bytes.is_empty(),
        MemorySetting::Allocator => options.heap_allocator.is_some(),
        MemorySetting::Pinning => {
            options.weights.pin_critical_weights || options.weights.pin_all_weights
        }
        MemorySetting::PackedStore => options.repack_cache.is_some(),
    };
    let name = |setting| match setting {
        MemorySetting::WarmUpSizes => "heap_pool.warmup_sizes",
        MemorySetting::Allocator => "heap_pool.allocator",
        MemorySetting::Pinning => "weights.pin_critical_weights or pin_all_weights",
        MemorySetting::PackedStore => "model.repack_cache",
    };
    let settings = backend.without_effect().iter().filter(|(setting, _)| is_asked(*setting));
    let text = |&(setting, why): &(MemorySetting, &str)| {
        format!("{} has no effect on the device {}: {why}", name(setting), backend.name())
    };
    settings.map(text).collect()
}

fn load_texts(
    options: &EngineOptions,
    file: &WeightFile,
    spec: &DecoderSpec,
) -> Result<(Tokenizer, ChatPrompt), EngineError> {
    let tokenizer = vocabulary::tokenizer_of(file)?.with_settings(options.encode);
    check_vocabulary(spec, &tokenizer)?;
    let templates = Templates::of(file, options.chat_template.as_deref())?;
    let format = answer_format(options, templates.telling_calls());
    let chat_prompt = ChatPrompt::new(
        templates,
        options.template_program.as_ref(),
        options.failpoints.clock,
        (&tokenizer, format),
    );
    Ok((tokenizer, chat_prompt))
}

fn load_program(
    (options, reading): (&EngineOptions, WeightOptions),
    backend: &dyn Backend,
    (file, lasting, adapters): (&WeightFile, Option<&Arc<WeightFile>>, &Adapters),
    tape: Tape,
    (limits, states): (&Limits, Option<u32>),
) -> Result<(Box<dyn Program>, LoadedWeights), EngineError> {
    let in_place = reading.in_place();
    let store = options.repack_cache.clone().map(|path| FileStore::new(path, file, in_place));
    let store = store.transpose()?;
    // A repack cache is written when all is packed.
    let lasting = lasting.filter(|_| store.is_none() && reading.packs_behind_steps(file));
    let progress = options.load_progress.clone();
    let order = backend.load_order(&tape);
    let names = order.into_iter().map(|id| tape.weight(id).name.clone());
    let manager = WeightManager::new(reading, file, names, progress);
    let disk = options.failpoints.disk();
    let adapters = Some(adapters);
    let tensors = Tensors { file, lasting, adapters, disk, store, manager: Some(&manager) };
    let mut program = backend.load(tape, &tensors, capacity(limits, states))?;
    if options.warm_up {
        program.warm(reading.warmup_bytes);
        if program.gains_from_first_steps() {
            warm_up(program.as_mut(), limits)?;
            tell_parts(&program.clocks());
        }
    }
    let status = manager.status();
    tracing::debug!(?status, "weights are loaded");
    // With a repack cache the next start does not read the model's files.
    let asked = Some(options.weights.direct_io).filter(|_| options.repack_cache.is_none());
    let filling = asked.and_then(|asked| manager.fill_cache(asked));
    if !options.failpoints.device.is_empty() {
        program = Box::new(Failing::new(program, options.failpoints.device.clone()));
    }
    Ok((program, LoadedWeights { status, _filling: filling }))
}

pub(crate) fn capacity(limits: &Limits, states: Option<u32>) -> Capacity {
    Capacity {
        step_tokens_max: limits.step_tokens_max,
        slots: limits.sequences_max,
        proposed_tokens_max: limits.proposed_tokens_max,
        block_count: limits.block_count,
        block_tokens: limits.block_tokens,
        states: states.unwrap_or(0),
    }
}

/// How many states are kept for sequences to start from; `None` where sequences carry none.
fn states(options: &EngineOptions, tape: &Tape, limits: &Limits) -> Option<u32> {
    if tape.state.is_empty() {
        return None;
    }
    let budget = options.kv_cache_bytes.unwrap_or(KV_BYTES_DEFAULT) / STATES_SHARE;
    let affordable = budget / (4 * u64::from(tape.state.elements));
    let most = u64::from(limits.sequences_max).saturating_mul(2).max(STATES_MIN);
    let count = affordable.clamp(STATES_MIN, most) as u32;
    Some(if options.prefix_cache { count } else { 0 })
}

/// How fast a model is that is on several devices, by a step of one token.
fn tell_parts(parts: &[PartClock]) {
    let all: Duration = parts.iter().map(PartClock::time).sum();
    if all.is_zero() {
        return;
    }
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    let each = parts.iter().map(|part| {
        let (name, time) = (part.name(), milliseconds(part.time()));
        match part.layers() {
            0 => format!("{time:.1} ms in experts on {name}"),
            layers => format!("{time:.1} ms in {layers} layers on {name}"),
        }
    });
    tracing::info!(
        "a token takes {}: about {:.1} tokens a second",
        each.collect::<Vec<_>>().join(", "),
        1.0 / all.as_secs_f64()
    );
}

/// A prompt's tile of tokens: every kernel runs in the form it has for prompts.
const WARM_UP_TOKENS: u32 = 16;

/// Runs a step of a prompt and one of an answer, so that no request is the first to wake the
/// device's threads and to touch its buffers. What they write into the cache is written again
/// before it is read.
fn warm_up(program: &mut dyn Program, limits: &Limits) -> Result<(), EngineError> {
    let length = WARM_UP_TOKENS.min(limits.step_tokens_max).min(limits.context_tokens_max - 1);
    let (mut inputs, mut outputs) = (StepInputs::default(), StepOutputs::default());
    for (step, start, length) in [(0, 0, length), (1, length, 1)] {
        if length == 0 {
            continue;
        }
        // What is told of the parts is the last step's.
        program.clocks().iter().for_each(PartClock::reset);
        inputs.clear(step);
        if start == 0 {
            let params = SampleParams::default();
            let (prompt, generated) = (Vec::new(), Vec::new());
            inputs.resets.push(SlotReset { slot: 0, params, prompt, generated, adapter: None });
        }
        let blocks_count = (start + length).div_ceil(limits.block_tokens);
        let (blocks_start, sample_index) = (0, Some(step as u32));
        let slot = 0;
        inputs.rows.push(RowInput {
            slot,
            start,
            length,
            blocks_start,
            blocks_count,
            sample_index,
            proposed: 0,
        });
        inputs.tokens.extend((0..length).map(|_| TokenInput::Known(0)));
        inputs.blocks.extend(0..blocks_count);
        // A damaged model may break its program; that ends the load and nothing else.
        let run = catch_unwind(AssertUnwindSafe(|| program.run(&inputs, &mut outputs)));
        run.unwrap_or_else(|_| Err(device::Fault("its first step broke".to_owned())))?;
    }
    Ok(())
}

fn check_vocabulary(spec: &DecoderSpec, tokenizer: &Tokenizer) -> Result<(), EngineError> {
    let (tokens, rows) = (tokenizer.vocabulary_size(), spec.dims.vocabulary);
    // Embeddings are often padded to a round number of rows. Fewer rows than tokens are those of a
    // model that shares its tokenizer with others of its family, and lacks what they added: such
    // tokens are refused in prompts. Ordinary text must be known.
    let added = [TokenType::Control, TokenType::UserDefined, TokenType::Unused].map(Some);
    let is_text = |&id: &u32| !added.contains(&tokenizer.token_type(id));
    match (rows..u32::try_from(tokens).unwrap_or(u32::MAX)).find(is_text) {
        None => Ok(()),
        Some(id) => Err(EngineError::Vocabulary(format!(
            "it has {tokens} tokens, the embedding only {rows} rows, and token {id} is ordinary \
             text: model and tokenizer do not belong together"
        ))),
    }
}

fn kv_bytes_per_token(spec: &DecoderSpec, format: KvFormat) -> u64 {
    let of_head = format.token_head_bytes(spec.dims.head_dim as usize) as u64;
    of_head * u64::from(spec.dims.heads_kv) * u64::from(spec.attention_layers())
}

/// Sizes the pool and, where it was not asked for, the context.
fn limits(
    options: &EngineOptions,
    (kv_format, step_tokens_best): (KvFormat, u32),
    spec: &mut DecoderSpec,
) -> Result<Limits, EngineError> {
    let step_tokens_max = options.step_tokens_max.unwrap_or(step_tokens_best);
    for (name, value) in [
        ("sequences_max", options.sequences_max),
        ("waiting_max", options.waiting_max),
        ("step_tokens_max", step_tokens_max),
    ] {
        if value == 0 || value > 1 << 16 {
            let text = format!("{name} is {value}, it must be between 1 and 65536");
            return Err(EngineError::Option(text));
        }
    }
    let block_bytes = kv_bytes_per_token(spec, kv_format) * u64::from(BLOCK_TOKENS);
    let budget = options.kv_cache_bytes.unwrap_or(KV_BYTES_DEFAULT);
    let affordable = budget / block_bytes;
    let context_blocks = u64::from(spec.dims.context).div_ceil(u64::from(BLOCK_TOKENS));
    if options.context_tokens.is_some() && options.kv_cache_bytes.is_some() {
        if affordable < context_blocks {
            return Err(EngineError::Option(format!(
                "a context of {} tokens needs {} bytes of KV cache, {budget} are allowed: lower \
                 context_tokens or raise kv_cache_mb",
                spec.dims.context,
                context_blocks * block_bytes
            )));
        }
    } else if options.context_tokens.is_none() && affordable < context_blocks {
        // Room for at least one block: a smaller model context is better than no model.
        let tokens = affordable.max(1) * u64::from(BLOCK_TOKENS);
        spec.dims.context = u32::try_from(tokens).unwrap_or(spec.dims.context);
    }
    let answer = u64::from(spec.output != Output::Logits);
    let one = (u64::from(spec.dims.context) + answer).div_ceil(u64::from(BLOCK_TOKENS));
    // No more than all sequences can use, no less than one context.
    let all = one.saturating_mul(u64::from(options.sequences_max));
    let blocks = affordable.clamp(one, all.max(one));
    let whole = if spec.encoder.is_some() { spec.dims.context } else { 0 };
    let step_tokens_max = step_tokens_max.max(options.sequences_max + 1).max(whole);
    // What has no answer needs no room for one.
    let context_tokens_max = spec.dims.context + u32::from(spec.output != Output::Logits);
    Ok(Limits {
        context_tokens_max,
        sequences_max: options.sequences_max,
        waiting_max: options.waiting_max,
        aging_plans: AGING_PLANS,
        step_tokens_max,
        proposed_tokens_max: match spec.carries_state() {
            true => CARRIED_GUESSES_MAX,
            false => PROPOSED_TOKENS_MAX,
        },
        block_tokens: BLOCK_TOKENS,
        block_count: u32::try_from(blocks)
            .map_err(|_| EngineError::Option(format!("{blocks} KV blocks are too many")))?,
    })
}

/// Heaps of a configured size are got whole, whatever is carved from them.
pub(crate) fn heap_reserve_bytes(device: &str, heaps: &HeapSettings, program: MemoryUse) -> u64 {
    let MemoryUse { weights_bytes, kv_bytes, activations_bytes, .. } = program;
    match heaps.heap_bytes {
        // The reference takes its memory as it comes.
        Some(bytes) if heaps.enabled && device != "reference" => {
            let reserved = (bytes as u64).saturating_mul(heaps.heaps.into());
            reserved.saturating_sub(weights_bytes + kv_bytes + activations_bytes)
        }
        _ => 0,
    }
}

/// Refuses a model that cannot be in memory as a whole: the device's own, or the machine's.
pub(crate) fn check_memory(needed: ModelMemory, backend: &dyn Backend) -> Result<(), EngineError> {
    // Tiers, tokenizers and buffers to read by are memory of the process, also where the device has
    // its own.
    let own = backend.own_memory();
    let on_device = needed.device_bytes();
    let needs = match own {
        Some(own) => {
            [(on_device, Some(own)), (needed.peak_bytes() - on_device, available_memory())]
        }
        None => [(needed.peak_bytes(), available_memory()), (0, None)],
    };
    for (bytes, available) in needs {
        if let Some(available_bytes) = available
            && bytes > available_bytes
        {
            return Err(EngineError::Memory { needed, available_bytes });
        }
    }
    Ok(())
}

/// Refuses heaps of set sizes that cannot all be in memory: a system may lend addresses for them.
fn check_reserved(heaps: &HeapSettings, available: Option<u64>) -> Result<(), EngineError> {
    let Some(bytes) = heaps.heap_bytes.filter(|_| heaps.enabled) else { return Ok(()) };
    let reserved = (bytes as u64).saturating_mul(heaps.heaps.into());
    match available {
        Some(available) if reserved > available => Err(EngineError::Option(format!(
            "heap_pool.num_heaps of heap_pool.heap_size_mb are {reserved} bytes together, and \
             {available} are left: lower them, or leave them out"
        ))),
        _ => Ok(()),
    }
}

/// Bytes that a model may take on a device, where somebody tells.
pub(crate) fn available_to(backend: &dyn Backend) -> Option<u64> {
    backend.own_memory().or_else(available_memory)
}

/// The device that a model would be loaded on.
pub(crate) fn open_backend(options: &EngineOptions) -> Result<Box<dyn Backend>, EngineError> {
    open(options).map(|opened| opened.backend)
}

/// Text from a file, fit for a terminal: no control character reaches it.
fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn parameters(file: &WeightFile) -> u64 {
    file.tensors().map(|tensor| tensor.rows().saturating_mul(tensor.cols())).sum()
}

/// As the template says, but for what an operator knows better.
fn answer_format(options: &EngineOptions, template: Option<&str>) -> AnswerFormat {
    let detected = AnswerFormat::of_template(template);
    options.call_format.map_or(detected, |calls| detected.with_calls(calls))
}

fn card(
    options: &EngineOptions,
    file: &WeightFile,
    spec: &DecoderSpec,
    limits: &Limits,
    device: &str,
) -> Result<ModelCard, EngineError> {
    let templates = Templates::of(file, options.chat_template.as_deref())?;
    Ok(ModelCard {
        id: options.model_id.clone(),
        created: u64::try_from(options.failpoints.clock.now_unix_s()).unwrap_or(0),
        context_tokens_max: spec.dims.context.min(limits.context_tokens_max),
        vocabulary_size: spec.dims.vocabulary,
        parameters: parameters(file),
        device: device.to_owned(),
        vector_width: spec.vector_width(),
        ranks: matches!(spec.output, Output::Score(_)),
        base: None,
        defaults: vocabulary::sampling_defaults(file)?,
        answer_format: answer_format(options, templates.telling_calls()),
        origin: ModelOrigin::of(file, templates.default)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heaps_of_set_sizes_must_fit_in_memory() {
        let heaps = |heap_bytes, heaps| HeapSettings { heap_bytes, heaps, ..Default::default() };
        let check = |settings: HeapSettings| check_reserved(&settings, Some(1 << 30)).is_ok();
        assert!(check(heaps(None, 1024)) && check(heaps(Some(1 << 20), 1024)));
        assert!(!check(heaps(Some(1 << 20), 1025)) && !check(heaps(Some(usize::MAX), 2)));
        assert!(check(HeapSettings { enabled: false, ..heaps(Some(usize::MAX), 2) }));
        assert!(check_reserved(&heaps(Some(usize::MAX), 2), None).is_ok());
    }

    #[test]
    fn what_a_device_can_do_nothing_about_is_told() {
        let mut options = EngineOptions::new(PathBuf::new(), "");
        let told = |device: &str, options: &EngineOptions| {
            let opened = backends::open(device, options).map_err(|error| error.to_string());
            opened.map(|opened| without_effect(options, opened.backend.as_ref()))
        };
        assert_eq!(told("reference", &options), Ok(Vec::new()), "nothing was asked for");
        options.weights.pin_critical_weights = true;
        options.repack_cache = Some(PathBuf::from("kept"));
        options.heap_pool.warm_up_bytes = vec![1];
        let texts = told("reference", &options).unwrap_or_default();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].starts_with("heap_pool.warmup_sizes has no effect on the device refe"));
        assert_eq!(told("cpu", &options), Ok(Vec::new()));
    }
}
