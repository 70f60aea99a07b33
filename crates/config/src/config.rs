//! Which keys are there, what do they mean, and what holds when they are absent?

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{ConfigError, environment, file};

/// The whole configuration, as in `pelton.yaml`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: ServerConfig,
    pub model: ModelConfig,
    /// Further models, loaded when they are first asked for.
    pub models: Vec<FurtherModelConfig>,
    /// "auto", "cpu" or "reference".
    pub device: String,
    /// Threads of the cpu device; absent: as many as the process may use.
    pub threads: Option<usize>,
    /// Forces the cpu device's instruction set; absent: the best this processor has.
    pub isa: Option<String>,
    /// Whether guesses at the next tokens are checked: from the text so far, and of a draft model.
    /// Answers are the same; a request can say otherwise.
    pub speculation: SpeculationMode,
    /// A smaller model of the same vocabulary: its answers are guesses, too. Absent: none.
    pub draft_model: Option<String>,
    /// How the cpu device keeps keys and values: "f16", "bf16", "int16" or "int8"; absent: int16.
    pub kv_dtype: Option<String>,
    pub limits: LimitsConfig,
    /// Share the keys and values of equal prompt beginnings between requests.
    pub prefix_cache: bool,
    pub kv_tiers: KvTiersConfig,
    pub sharing: SharingConfig,
    pub breaker: BreakerConfig,
}

/// Where keys and values are kept that the device has no room for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KvTiersConfig {
    /// Bytes of memory; 0: none.
    pub ram_bytes: u64,
    /// Bytes of disk, for each model; 0: none.
    pub disk_bytes: u64,
    /// The folder for it. What is in it survives a restart.
    pub disk_path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpeculationMode {
    Off,
    /// Where it pays, as measured.
    Auto,
    /// Every guess there is, to measure what it costs.
    Always,
}

impl std::str::FromStr for SpeculationMode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "off" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            _ => Err(()),
        }
    }
}

/// Where the server listens and whom it answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// A name or an address.
    pub host: String,
    /// 0: any free port.
    pub port: u16,
    /// Accept an address that other machines can reach.
    pub allow_public: bool,
    /// Host names, besides this machine's own, under which the server may be asked.
    pub allowed_hosts: Vec<String>,
    /// Web origins (`https://example.com`) whose pages may call the server.
    pub allowed_origins: Vec<String>,
    /// Longest request body.
    pub request_body_bytes_max: usize,
    /// Longest request line plus headers.
    pub request_head_bytes_max: usize,
    /// Connections open at once.
    pub connections_max: usize,
    /// How long a connection may stay open without a request.
    pub keep_alive_seconds: u64,
    /// How long running answers may take to finish after a stop is asked for.
    pub drain_seconds: u64,
}

/// Which model is served.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A catalogue name or the path of a file; absent: the default model.
    pub name: Option<String>,
    /// Longest sequence, in tokens; absent: as long as the model and the memory allow.
    pub context_tokens: Option<u32>,
    pub repack_cache: RepackCache,
}

/// Whether weights as the device laid them out are kept for the next start: `true` keeps them
/// beside the model, a path in that file. They take as much space as the model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "it must be `true`, `false` or the path of a file")]
pub enum RepackCache {
    Beside(bool),
    At(PathBuf),
}

impl Default for RepackCache {
    fn default() -> Self {
        Self::Beside(false)
    }
}

impl RepackCache {
    /// As in a variable or a flag.
    pub fn parse(text: &str) -> Self {
        match text {
            "true" => Self::Beside(true),
            "false" => Self::Beside(false),
            path => Self::At(PathBuf::from(path)),
        }
    }

    /// The file for the model at `model`, if there is to be one.
    pub fn path(&self, model: &Path) -> Option<PathBuf> {
        match self {
            Self::Beside(false) => None,
            Self::Beside(true) => {
                let mut name = model.as_os_str().to_owned();
                name.push(".packed");
                Some(PathBuf::from(name))
            }
            Self::At(path) => Some(path.clone()),
        }
    }
}

/// A model besides the first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FurtherModelConfig {
    /// The name that requests use; absent: as in `model`.
    #[serde(default)]
    pub name: Option<String>,
    /// A catalogue name, `org/name` on the hub, or the path of a file.
    pub model: String,
    /// Longest sequence, in tokens; absent: as long as the model and the memory allow.
    #[serde(default)]
    pub context_tokens: Option<u32>,
    /// Mebibytes for keys and values; absent: as `limits.kv_cache_mb`.
    #[serde(default)]
    pub kv_cache_mb: Option<u64>,
    /// Never unload it to make room, nor for being idle.
    #[serde(default)]
    pub pinned: bool,
    /// Load it at start, not at its first request.
    #[serde(default)]
    pub preload: bool,
    /// Unload it after so many minutes without a request; absent: only to make room.
    #[serde(default)]
    pub idle_minutes: Option<u64>,
}

/// When a device that keeps failing is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerConfig {
    /// So many failed steps within `window_seconds` end admission.
    pub faults_max: u32,
    pub window_seconds: u64,
    /// From then until one request may try.
    pub pause_seconds: u64,
}

/// Sizes of the engine's queues and pools.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Answers generated at once.
    pub sequences_max: u32,
    /// Requests that may wait; further ones are refused as busy.
    pub waiting_max: u32,
    /// Tokens computed in one step.
    pub step_tokens_max: u32,
    /// Mebibytes for keys and values; absent: the engine's default.
    pub kv_cache_mb: Option<u64>,
    /// Mebibytes for all models together; absent: 90 % of what is available at start.
    pub memory_budget_mb: Option<u64>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        // One bad step is bad luck, five in half a minute are a device to leave alone; ten seconds
        // are about the time that a driver takes to reset one.
        Self { faults_max: 5, window_seconds: 30, pause_seconds: 10 }
    }
}

/// What identical requests share: running answers, and finished ones for a while.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SharingConfig {
    /// Off: each request is computed for itself, and nothing is remembered.
    pub enabled: bool,
    /// Requests that may read one running answer; the next computes its own.
    pub readers_max: u32,
    /// Answers remembered at most; 0: none.
    pub answers_max: u32,
    /// Tokens of all remembered answers together.
    pub tokens_max: u64,
    /// Mebibytes of them and of the requests that they answer.
    pub memory_mb: u64,
    /// How long an answer is remembered.
    pub ttl_seconds: u64,
    /// A folder in which remembered answers outlast the server, a file for each model; absent: they
    /// do not. The files hold prompts and answers.
    pub folder: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            model: ModelConfig::default(),
            models: Vec::new(),
            device: "auto".to_owned(),
            threads: None,
            isa: None,
            speculation: SpeculationMode::Auto,
            draft_model: None,
            kv_dtype: None,
            limits: LimitsConfig::default(),
            prefix_cache: true,
            kv_tiers: KvTiersConfig::default(),
            sharing: SharingConfig::default(),
            breaker: BreakerConfig::default(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            allow_public: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            // A context of 1,000,000 tokens is about 4 MB of text; JSON escapes can double it.
            request_body_bytes_max: 10 << 20,
            // Browsers and proxies send at most 8 to 16 KiB.
            request_head_bytes_max: 32 << 10,
            // Idle ones cost about 10 KiB each: 40 MiB in all.
            connections_max: 4096,
            // Longer than the pools of common clients keep theirs, so that they close first.
            keep_alive_seconds: 75,
            drain_seconds: 30,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            sequences_max: 32,
            waiting_max: 256,
            step_tokens_max: 256,
            kv_cache_mb: None,
            memory_budget_mb: None,
        }
    }
}

impl Default for SharingConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            readers_max: 256,
            answers_max: 1024,
            // 40 bytes each: 40 MiB, and as much again for requests and log-probabilities.
            tokens_max: 1 << 20,
            memory_mb: 80,
            ttl_seconds: 300,
            folder: None,
        }
    }
}

impl Config {
    /// Reads the file at `path`, or `pelton.yaml` in the user's configuration folder when there is
    /// one, then lets the variables of [`crate::VARIABLES`] override it.
    ///
    /// `environment` gives a variable's value; it is an argument so that tests bring their own.
    ///
    /// # Errors
    /// [`ConfigError`] naming the file or variable, the place and what to write instead.
    pub fn load(
        path: Option<&Path>,
        environment: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let mut config = match path {
            Some(path) => file::read(path)?,
            None => match file::default_path(&environment).filter(|path| path.is_file()) {
                Some(path) => file::read(&path)?,
                None => Self::default(),
            },
        };
        environment::apply(&mut config, environment)?;
        config.check()?;
        Ok(config)
    }

    /// Checks every value against its range; flags may have changed them since they were read.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the key and the range.
    pub fn check(&self) -> Result<(), ConfigError> {
        let server = &self.server;
        // Below 8 KiB hyper cannot read a head at all; above 1 MiB a head is an attack.
        in_range("server.request_head_bytes_max", server.request_head_bytes_max, 8 << 10, 1 << 20)?;
        in_range("server.request_body_bytes_max", server.request_body_bytes_max, 1 << 10, 1 << 30)?;
        in_range("server.connections_max", server.connections_max, 1, 1 << 20)?;
        in_range("server.keep_alive_seconds", server.keep_alive_seconds, 1, 86_400)?;
        in_range("server.drain_seconds", server.drain_seconds, 0, 86_400)?;
        in_range("limits.sequences_max", self.limits.sequences_max, 1, 65_536)?;
        in_range("limits.waiting_max", self.limits.waiting_max, 0, 1 << 20)?;
        in_range("limits.step_tokens_max", self.limits.step_tokens_max, 1, 1 << 20)?;
        let sharing = &self.sharing;
        in_range("sharing.readers_max", sharing.readers_max, 1, 65_536)?;
        in_range("sharing.answers_max", sharing.answers_max, 0, 1 << 20)?;
        in_range("sharing.tokens_max", sharing.tokens_max, 0, 1 << 32)?;
        in_range("sharing.memory_mb", sharing.memory_mb, 0, 1 << 20)?;
        // A week: beyond it nobody knows any more what a model was asked.
        in_range("sharing.ttl_seconds", sharing.ttl_seconds, 1, 604_800)?;
        if let Some(tokens) = self.model.context_tokens {
            in_range("model.context_tokens", tokens, 1, u32::MAX)?;
        }
        if let Some(threads) = self.threads {
            in_range("threads", threads, 1, 4096)?;
        }
        self.check_tiers()?;
        if let Some(size) = self.limits.kv_cache_mb {
            in_range("limits.kv_cache_mb", size, 1, MEGABYTES_MAX)?;
        }
        if let Some(size) = self.limits.memory_budget_mb {
            in_range("limits.memory_budget_mb", size, 1, MEGABYTES_MAX)?;
        }
        in_range("breaker.faults_max", self.breaker.faults_max, 1, 1 << 16)?;
        in_range("breaker.window_seconds", self.breaker.window_seconds, 1, 86_400)?;
        in_range("breaker.pause_seconds", self.breaker.pause_seconds, 1, 86_400)?;
        self.models.iter().try_for_each(FurtherModelConfig::check)
    }
}

/// 16 TiB: more than any machine's memory, far from overflowing when turned to bytes.
const MEGABYTES_MAX: u64 = 1 << 24;

impl FurtherModelConfig {
    fn check(&self) -> Result<(), ConfigError> {
        if let Some(tokens) = self.context_tokens {
            in_range("models.context_tokens", tokens, 1, u32::MAX)?;
        }
        if let Some(size) = self.kv_cache_mb {
            in_range("models.kv_cache_mb", size, 1, MEGABYTES_MAX)?;
        }
        if let Some(minutes) = self.idle_minutes {
            // A year.
            in_range("models.idle_minutes", minutes, 1, 525_600)?;
        }
        Ok(())
    }
}

impl Config {
    fn check_tiers(&self) -> Result<(), ConfigError> {
        let KvTiersConfig { ram_bytes, disk_bytes, disk_path } = &self.kv_tiers;
        let refuse = |key: &str, problem: &str| {
            Err(ConfigError::Value { key: key.to_owned(), problem: problem.to_owned() })
        };
        if *disk_bytes > 0 && disk_path.is_none() {
            return refuse("kv_tiers.disk_path", "is needed where kv_tiers.disk_bytes is not 0");
        }
        if (*ram_bytes > 0 || *disk_bytes > 0) && !self.prefix_cache {
            return refuse("kv_tiers", "keeps prefixes, which prefix_cache: false turns off");
        }
        Ok(())
    }
}

fn in_range<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    low: T,
    high: T,
) -> Result<(), ConfigError> {
    if value >= low && value <= high {
        return Ok(());
    }
    let problem = format!("is {value}, it must be between {low} and {high}");
    Err(ConfigError::Value { key: key.to_owned(), problem })
}
