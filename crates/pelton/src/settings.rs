//! What do flags, environment and the configuration file say together? Flags win.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use config::{
    BreakerConfig, Config, GpuLayersConfig, LimitsConfig, Loaded, NamedLayers, PoolingConfig,
    SharingConfig, Sources, SpeculationMode, WeightsConfig,
};
use engine::{
    AdapterOptions, BlitSettings, BreakerRules, CpuMoeLayers, DirectIo, EncodeSettings,
    EngineOptions, GpuLayers, HeapSettings, LiveOptions, Output, PacingOptions, Pooling,
    ReplayLimits, RingSettings, SharingLimits, SharingOptions, Speculation, TemplateProgram,
    TierSettings, WeightOptions,
};

use crate::{logging, model_file};

/// Flags of every command that loads a model.
#[derive(Args, Default)]
pub(crate) struct ModelArguments {
    /// A model's name, `org/name` on the hub, or the path of a .gguf file or
    /// of a folder with config.json and .safetensors files [default: smollm2]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// An adapter (LoRA) that requests may name: its name and its folder; as often as wanted
    #[arg(long, value_name = "NAME=FOLDER")]
    pub(crate) adapter: Vec<String>,
    /// Where it runs: auto, cpu, cuda, metal, vulkan, dx12, wgpu (any of these three) or reference;
    /// cuda:1, metal:1 and so on are the second of their kind
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Layers of the model on the GPU, the last ones: auto (as many as fit), all or a number; the
    /// processor has the others [default: auto]
    #[arg(long, short = 'n', visible_alias = "n-gpu-layers", value_name = "N")]
    pub(crate) gpu_layers: Option<String>,
    /// Layers of a mixture, the first ones, whose experts stay with the processor while the GPU has
    /// all else: auto (as many as must be), all or a number [default: auto]
    #[arg(long, visible_alias = "n-cpu-moe", value_name = "N")]
    pub(crate) cpu_moe_layers: Option<String>,
    /// Threads of the cpu device [default: as many as this process may use]
    #[arg(long, short)]
    pub(crate) threads: Option<usize>,
    /// Longest conversation, in tokens [default: as long as the model and the cache allow]
    #[arg(long)]
    pub(crate) context_tokens: Option<u32>,
    /// Mebibytes for keys and values [default: 1024]
    #[arg(long)]
    pub(crate) kv_cache_mb: Option<u64>,
    /// How keys and values are kept: f16, bf16, int16 or int8 [default: int16]
    #[arg(long)]
    pub(crate) kv_dtype: Option<String>,
    /// Answers generated at once [default: 32]
    #[arg(long)]
    pub(crate) sequences_max: Option<u32>,
    /// Check guesses at the next tokens: off, auto (where it pays) or always (to measure); answers
    /// are the same [default: auto]
    #[arg(long, value_name = "MODE")]
    pub(crate) speculation: Option<String>,
    /// A smaller model of the same vocabulary, whose answers are guesses to be checked
    #[arg(long)]
    pub(crate) draft_model: Option<String>,
    /// Compute every request for itself, even where an identical one runs or was answered
    #[arg(long)]
    pub(crate) no_sharing: bool,
    /// Use this instruction set: portable, avx2, avx512-vnni, neon, neon-dotprod or neon-i8mm
    #[arg(long)]
    pub(crate) isa: Option<String>,
    /// Keep repacked weights in a file beside the model, or in this one, so that the next start is
    /// faster; it takes as much space as the model
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub(crate) repack_cache: Option<String>,
    /// A file with a chat template, or the name of a built-in one, instead of the model's own
    #[arg(long)]
    pub(crate) chat_template: Option<String>,
    #[command(flatten)]
    pub(crate) file: FileArguments,
    /// Make things fail on purpose: `fault@STEP`, `nan@STEP`, `hang:MS@STEP`, `disk@N` or
    /// `clock:SECONDS`
    #[arg(long, hide = true)]
    pub(crate) failpoints: Option<String>,
    /// The program whose children render templates; `None`: this one
    #[arg(skip)]
    pub(crate) program: Option<PathBuf>,
}

/// The catalogue's first entry.
pub(crate) const DEFAULT_MODEL: &str = "smollm2";

/// Where settings come from besides flags of their own.
#[derive(Args, Default)]
pub(crate) struct FileArguments {
    /// The configuration file [default: pelton.yaml in the user's configuration folder]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set any key of the configuration, as in `--set limits.waiting_max=64`; `pelton config check`
    /// lists them
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub(crate) set: Vec<(String, String)>,
}

fn key_and_value(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in threads=2")?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

impl ModelArguments {
    /// The configuration with these flags applied.
    pub(crate) fn config(&self) -> Result<Config> {
        Ok(self.load(Vec::new())?.config)
    }

    /// The same with flags of one command, and where each value came from.
    pub(crate) fn load(&self, more: Vec<(String, String)>) -> Result<Loaded> {
        let loaded = self.sources(more).load()?;
        logging::check(&loaded.config)?;
        Ok(loaded)
    }

    pub(crate) fn sources(&self, more: Vec<(String, String)>) -> Sources {
        let flags = self.keys().into_iter().chain(more).collect();
        Sources::of_process(self.file.config.clone(), flags)
    }

    /// The keys that these flags set.
    pub(crate) fn keys(&self) -> Vec<(String, String)> {
        let number = |value: Option<u64>| value.map(|value| value.to_string());
        let own = [
            ("model.name", self.model.clone()),
            ("model.adapters", self.adapters_key()),
            ("device", self.device.clone()),
            ("gpu_layers", self.gpu_layers.clone()),
            ("cpu_moe_layers", self.cpu_moe_layers.clone()),
            ("threads", number(self.threads.map(|threads| threads as u64))),
            ("model.context_tokens", number(self.context_tokens.map(u64::from))),
            ("limits.kv_cache_mb", number(self.kv_cache_mb)),
            ("kv_dtype", self.kv_dtype.clone()),
            ("limits.sequences_max", number(self.sequences_max.map(u64::from))),
            ("speculation", self.speculation.clone()),
            ("draft_model", self.draft_model.clone()),
            ("sharing.enabled", self.no_sharing.then(|| "false".to_owned())),
            ("isa", self.isa.clone()),
            ("model.repack_cache", self.repack_cache.clone()),
        ];
        let own = own.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        own.chain(self.file.set.iter().cloned()).collect()
    }

    /// As a list in YAML.
    fn adapters_key(&self) -> Option<String> {
        let each = self.adapter.iter().map(|text| format!("{text:?}"));
        let list = each.collect::<Vec<_>>().join(", ");
        (!self.adapter.is_empty()).then(|| format!("[{list}]"))
    }

    /// These flags for a child of this program, but for the model and the threads, which its
    /// caller has found out.
    pub(crate) fn as_flags(&self) -> Vec<OsString> {
        let is_found_out = |key: &str| matches!(key, "model.name" | "threads");
        let keys = self.keys().into_iter().filter(|(key, _)| !is_found_out(key));
        let sets = keys.flat_map(|(key, value)| ["--set".into(), format!("{key}={value}").into()]);
        sets.chain(self.other_flags()).collect()
    }

    /// The flags that set no key.
    pub(crate) fn other_flags(&self) -> Vec<OsString> {
        let others = [
            ("--chat-template", self.chat_template.as_ref().map(OsString::from)),
            ("--config", self.file.config.as_ref().map(OsString::from)),
            ("--failpoints", self.failpoints.as_ref().map(OsString::from)),
        ];
        let others = others.into_iter().filter_map(|(name, value)| Some([name.into(), value?]));
        others.flatten().collect()
    }

    /// Finds the model, pulling it if need be, and says how to load it.
    pub(crate) fn engine_options(&self, config: &Config) -> Result<EngineOptions> {
        let name = config.model.name.as_deref().unwrap_or(DEFAULT_MODEL);
        let file = model_file::find(name)?;
        let repack_cache = config.model.repack_cache.path(&file.path);
        let mut options = EngineOptions::new(file.path, &file.name);
        options.repack_cache = repack_cache;
        options.device.clone_from(&config.device);
        options.gpu_layers = gpu_layers(config.gpu_layers);
        options.cpu_moe_layers = cpu_moe_layers(config.cpu_moe_layers);
        options.device_memory_bytes = config.device_memory_mb.map(|megabytes| megabytes << 20);
        options.threads = config.threads;
        options.instruction_set.clone_from(&config.isa);
        options.kv_dtype.clone_from(&config.kv_dtype);
        options.context_tokens = config.model.context_tokens;
        options.output = config.model.pooling.and_then(output);
        options.ranks = config.model.pooling == Some(PoolingConfig::Rank);
        options.adapters = adapters(&config.model.adapters)?;
        options.sequences_max = config.limits.sequences_max;
        options.speculation = match config.speculation {
            SpeculationMode::Off => Speculation::Off,
            SpeculationMode::Auto => Speculation::Auto,
            SpeculationMode::Always => Speculation::Always,
        };
        if let Some(draft) = &config.draft_model {
            options.draft_model = Some(model_file::find(draft)?.path);
        }
        options.waiting_max = config.limits.waiting_max;
        options.step_tokens_max = config.limits.step_tokens_max;
        options.breaker = breaker_rules(&config.breaker);
        options.pacing = pacing(&config.limits);
        options.kv_cache_bytes = config.limits.kv_cache_mb.map(|megabytes| megabytes << 20);
        options.prefix_cache = config.prefix_cache;
        resources(&mut options, config)?;
        options.kv_tiers = TierSettings {
            ram_bytes: config.kv_tiers.ram_bytes,
            disk_bytes: config.kv_tiers.disk_bytes,
            disk_path: config.kv_tiers.disk_path.clone(),
        };
        options.sharing = config.sharing.enabled.then(|| SharingOptions {
            limits: sharing_limits(&config.sharing),
            folder: config.sharing.folder.as_ref().map(PathBuf::from),
        });
        options.weights = weight_options(&config.weights);
        let tokenizer = &config.tokenizer;
        options.encode = EncodeSettings {
            threads: tokenizer.num_threads.unwrap_or(options.encode.threads),
            span_bytes_min: tokenizer.min_chunk_size,
            cache_bytes: tokenizer.cache_kb << 10,
        };
        options.chat_template = self.chat_template.as_deref().map(template).transpose()?;
        options.call_format = config.model.tool_calls.as_deref().map(call_format).transpose()?;
        let program = self.program.clone().map_or_else(std::env::current_exe, Ok);
        options.template_program = Some(TemplateProgram {
            path: program.context("this program's own path is unknown")?,
            arguments: vec!["template-worker".into()],
        });
        if let Some(plan) = &self.failpoints {
            options.failpoints = engine::Failpoints::parse(plan)?;
        }
        Ok(options)
    }
}

fn gpu_layers(asked: GpuLayersConfig) -> GpuLayers {
    match asked {
        GpuLayersConfig::Count(count) => GpuLayers::Count(count),
        GpuLayersConfig::Named(NamedLayers::Auto) => GpuLayers::Auto,
        GpuLayersConfig::Named(NamedLayers::All) => GpuLayers::All,
    }
}

fn cpu_moe_layers(asked: GpuLayersConfig) -> CpuMoeLayers {
    match asked {
        GpuLayersConfig::Count(count) => CpuMoeLayers::Count(count),
        GpuLayersConfig::Named(NamedLayers::Auto) => CpuMoeLayers::Auto,
        GpuLayersConfig::Named(NamedLayers::All) => CpuMoeLayers::All,
    }
}

/// `NAME=FOLDER` each.
pub(crate) fn adapters(named: &[String]) -> Result<Vec<AdapterOptions>> {
    let read = |text: &String| {
        let named = text.split_once('=').filter(|(name, _)| !name.is_empty());
        let wrong = || format!("the adapter `{text}` is not named: write NAME=FOLDER");
        let (name, path) = named.with_context(wrong)?;
        Ok(AdapterOptions { name: name.to_owned(), path: PathBuf::from(path) })
    };
    named.iter().map(read).collect()
}

/// What a model is for, as settings say it.
pub(crate) fn output(pooling: PoolingConfig) -> Option<Output> {
    Some(match pooling {
        // By what it has to rank with.
        PoolingConfig::Rank => return None,
        PoolingConfig::None => Output::Logits,
        PoolingConfig::Mean => Output::Vector(Pooling::Mean),
        PoolingConfig::Last => Output::Vector(Pooling::Last),
    })
}

fn weight_options(config: &WeightsConfig) -> WeightOptions {
    WeightOptions {
        pin_critical_weights: config.pin_critical_weights,
        critical_layers: config.critical_layers,
        pin_all_weights: config.pin_all_weights,
        pinned_bytes_max: config.max_pinned_mb.map(|megabytes| megabytes << 20),
        prefetch_threads: config.prefetch_threads,
        warmup_bytes: config.warmup_buffer_mb << 20,
        use_mmap: config.use_mmap,
        pack_behind_bytes_min: WeightOptions::default().pack_behind_bytes_min,
        direct_io: match config.direct_io.set() {
            None => DirectIo::Auto,
            Some(true) => DirectIo::On,
            Some(false) => DirectIo::Off,
        },
    }
}

/// What models that are loaded already can take up.
pub(crate) fn live_options(config: &Config) -> LiveOptions {
    LiveOptions {
        sharing: sharing_limits(&config.sharing),
        breaker: breaker_rules(&config.breaker),
        waiting_max: config.limits.waiting_max,
        queue_time_max: Some(Duration::from_secs(config.limits.queue_seconds_max)),
        pacing: pacing(&config.limits),
    }
}

fn pacing(config: &LimitsConfig) -> PacingOptions {
    let target = config.itl_target_ms;
    PacingOptions {
        itl_target: (target > 0).then(|| Duration::from_millis(target)),
        slowdown_percent: config.slowdown_percent,
    }
}

fn breaker_rules(config: &BreakerConfig) -> BreakerRules {
    BreakerRules {
        faults_max: config.faults_max,
        window: Duration::from_secs(config.window_seconds),
        pause: Duration::from_secs(config.pause_seconds),
    }
}

fn sharing_limits(config: &SharingConfig) -> SharingLimits {
    let replay = ReplayLimits {
        entries_max: config.answers_max as usize,
        tokens_max: config.tokens_max,
        bytes_max: config.memory_mb << 20,
        ttl_ms: config.ttl_seconds * 1000,
    };
    SharingLimits { subscribers_max: config.readers_max as usize, replay }
}

/// Heaps, copies and the ring of steps.
fn resources(options: &mut EngineOptions, config: &Config) -> Result<()> {
    let (heaps, blit) = (&config.heap_pool, &config.blit_queue);
    let bytes = |value: u64| usize::try_from(value).context("more than this machine can address");
    options.heap_pool = HeapSettings {
        enabled: heaps.enabled,
        heap_bytes: heaps.heap_size_mb.map(|size| bytes(size << 20)).transpose()?,
        heaps: heaps.num_heaps,
        warm_up_bytes: heaps.warmup_sizes.iter().copied().map(bytes).collect::<Result<_>>()?,
        may_grow: heaps.allow_growth,
        tracks_classes: heaps.track_statistics,
        logs_exhaustion: heaps.log_exhaustion,
    };
    options.heap_allocator = heaps.allocator.as_deref().map(engine::open_allocator).transpose()?;
    options.blit_queue = BlitSettings {
        enabled: blit.enabled,
        concurrent_ops_max: blit.max_concurrent_ops as usize,
        staging_bytes: bytes(blit.staging_buffer_size_mb << 20)?,
    };
    let timeout_ms = config.command_ring.timeout_ms;
    options.command_ring = RingSettings {
        depth: config.command_ring.ring_size as usize,
        timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
        trace: None,
    };
    Ok(())
}

fn call_format(name: &str) -> Result<engine::CallFormat> {
    engine::CallFormat::named(name).with_context(|| {
        let known: Vec<&str> = engine::CallFormat::names().collect();
        format!("model.tool_calls is `{name}`, it must be one of {}", known.join(", "))
    })
}

fn template(asked: &str) -> Result<String> {
    if let Some(source) = chat::builtin_template(asked) {
        return Ok(source.to_owned());
    }
    let known: Vec<&str> = chat::builtin_template_names().collect();
    std::fs::read_to_string(asked).with_context(|| {
        format!(
            "--chat-template {asked} is neither a file that can be read nor a built-in template \
             ({})",
            known.join(", ")
        )
    })
}
