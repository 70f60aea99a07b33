//! What do flags, environment and the configuration file say together? Flags win.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use config::{Config, RepackCache, SharingConfig, SpeculationMode};
use engine::{
    BreakerRules, EngineOptions, ReplayLimits, SharingLimits, SharingOptions, Speculation,
    TemplateProgram, TierSettings,
};

use crate::model_file;

/// Flags of every command that loads a model.
#[derive(Args)]
pub(crate) struct ModelArguments {
    /// A model's name, `org/name` on the hub, or the path of a .gguf file [default: smollm2]
    #[arg(long, short)]
    pub(crate) model: Option<String>,
    /// Where it runs: auto, cpu or reference
    #[arg(long)]
    pub(crate) device: Option<String>,
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
    #[arg(long, value_parser = speculation_mode)]
    pub(crate) speculation: Option<SpeculationMode>,
    /// A smaller model of the same vocabulary, whose answers are guesses to be checked
    #[arg(long)]
    pub(crate) draft_model: Option<String>,
    /// Compute every request for itself, even where an identical one runs or was answered
    #[arg(long)]
    pub(crate) no_sharing: bool,
    /// Use this instruction set: portable, avx2, avx512-vnni or neon (for tests)
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
    /// The configuration file [default: pelton.yaml in the user's configuration folder]
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// Make things fail on purpose: `fault@STEP`, `nan@STEP`, `hang:MS@STEP`, `disk@N` or
    /// `clock:SECONDS`
    #[arg(long, hide = true)]
    pub(crate) failpoints: Option<String>,
}

/// The catalogue's first entry.
pub(crate) const DEFAULT_MODEL: &str = "smollm2";

impl ModelArguments {
    /// The configuration with these flags applied.
    pub(crate) fn config(&self) -> Result<Config> {
        let mut config = Config::load(self.config.as_deref(), |name| std::env::var(name).ok())?;
        config.model.name = self.model.clone().or(config.model.name);
        config.model.context_tokens = self.context_tokens.or(config.model.context_tokens);
        config.limits.kv_cache_mb = self.kv_cache_mb.or(config.limits.kv_cache_mb);
        config.limits.sequences_max = self.sequences_max.unwrap_or(config.limits.sequences_max);
        config.sharing.enabled &= !self.no_sharing;
        if let Some(asked) = &self.repack_cache {
            config.model.repack_cache = RepackCache::parse(asked);
        }
        config.threads = self.threads.or(config.threads);
        config.speculation = self.speculation.unwrap_or(config.speculation);
        config.draft_model = self.draft_model.clone().or(config.draft_model);
        config.isa = self.isa.clone().or(config.isa);
        config.kv_dtype = self.kv_dtype.clone().or(config.kv_dtype);
        config.device = self.device.clone().unwrap_or(config.device);
        config.check()?;
        Ok(config)
    }

    /// These flags for a child of this program, but for the model and the threads, which its
    /// caller has found out.
    pub(crate) fn as_flags(&self) -> Vec<OsString> {
        let number = |value: Option<u64>| value.map(|value| value.to_string().into());
        let text = |value: &Option<String>| value.as_ref().map(OsString::from);
        let flags = [
            ("--device", text(&self.device)),
            ("--context-tokens", number(self.context_tokens.map(u64::from))),
            ("--kv-cache-mb", number(self.kv_cache_mb)),
            ("--sequences-max", number(self.sequences_max.map(u64::from))),
            ("--kv-dtype", text(&self.kv_dtype)),
            ("--speculation", self.speculation.map(speculation_name)),
            ("--draft-model", text(&self.draft_model)),
            ("--isa", text(&self.isa)),
            ("--chat-template", text(&self.chat_template)),
            ("--config", self.config.as_ref().map(OsString::from)),
            ("--failpoints", text(&self.failpoints)),
        ];
        let mut cache =
            self.repack_cache.iter().map(|path| format!("--repack-cache={path}").into());
        let given = flags.into_iter().filter_map(|(name, value)| Some([name.into(), value?]));
        given.flatten().chain(&mut cache).collect()
    }

    /// Finds the model, pulling it if need be, and says how to load it.
    pub(crate) fn engine_options(&self, config: &Config) -> Result<EngineOptions> {
        let name = config.model.name.as_deref().unwrap_or(DEFAULT_MODEL);
        let file = model_file::find(name)?;
        let repack_cache = config.model.repack_cache.path(&file.path);
        let mut options = EngineOptions::new(file.path, &file.name);
        options.repack_cache = repack_cache;
        options.device.clone_from(&config.device);
        options.threads = config.threads;
        options.instruction_set.clone_from(&config.isa);
        options.kv_dtype.clone_from(&config.kv_dtype);
        options.context_tokens = config.model.context_tokens;
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
        options.breaker = BreakerRules {
            faults_max: config.breaker.faults_max,
            window: Duration::from_secs(config.breaker.window_seconds),
            pause: Duration::from_secs(config.breaker.pause_seconds),
        };
        options.kv_cache_bytes = config.limits.kv_cache_mb.map(|megabytes| megabytes << 20);
        options.prefix_cache = config.prefix_cache;
        options.kv_tiers = TierSettings {
            ram_bytes: config.kv_tiers.ram_bytes,
            disk_bytes: config.kv_tiers.disk_bytes,
            disk_path: config.kv_tiers.disk_path.clone(),
        };
        options.sharing = config.sharing.enabled.then(|| sharing_options(&config.sharing));
        options.chat_template = self.chat_template.as_deref().map(template).transpose()?;
        options.template_program = Some(TemplateProgram {
            path: std::env::current_exe().context("this program's own path is unknown")?,
            arguments: vec!["template-worker".into()],
        });
        if let Some(plan) = &self.failpoints {
            options.failpoints = engine::Failpoints::parse(plan)?;
        }
        Ok(options)
    }
}

fn speculation_name(mode: SpeculationMode) -> OsString {
    let name = match mode {
        SpeculationMode::Off => "off",
        SpeculationMode::Auto => "auto",
        SpeculationMode::Always => "always",
    };
    name.into()
}

fn speculation_mode(text: &str) -> Result<SpeculationMode, &'static str> {
    text.parse().map_err(|()| "it must be `off`, `auto` or `always`")
}

fn sharing_options(config: &SharingConfig) -> SharingOptions {
    let replay = ReplayLimits {
        entries_max: config.answers_max as usize,
        tokens_max: config.tokens_max,
        bytes_max: config.memory_mb << 20,
        ttl_ms: config.ttl_seconds * 1000,
    };
    let limits = SharingLimits { subscribers_max: config.readers_max as usize, replay };
    SharingOptions { limits, folder: config.folder.as_ref().map(PathBuf::from) }
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
