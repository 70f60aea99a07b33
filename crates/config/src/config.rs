//! Which keys are there, what do they mean, and what holds when they are absent?
//!
//! The keys of the top level; those of a section are in its file under `sections`.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::ConfigError;
use crate::sections::access::AccessConfig;
use crate::sections::audit::AuditConfig;
use crate::sections::blit_queue::BlitQueueConfig;
use crate::sections::breaker::BreakerConfig;
use crate::sections::command_ring::CommandRingConfig;
use crate::sections::gpu_layers::GpuLayersConfig;
use crate::sections::heap_pool::HeapPoolConfig;
use crate::sections::kv_tiers::KvTiersConfig;
use crate::sections::limits::LimitsConfig;
use crate::sections::model::ModelConfig;
use crate::sections::models::FurtherModelConfig;
use crate::sections::server::ServerConfig;
use crate::sections::sharing::SharingConfig;
use crate::sections::speculation::SpeculationMode;
use crate::sections::stored_responses::StoredResponsesConfig;
use crate::sections::tokenizer::TokenizerConfig;
use crate::sections::traces::TracesConfig;
use crate::sections::weights::WeightsConfig;

/// The whole configuration, as in `pelton.yaml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    #[serde(deserialize_with = "empty_or")]
    pub server: ServerConfig,
    #[serde(deserialize_with = "empty_or")]
    pub access: AccessConfig,
    #[serde(deserialize_with = "empty_or")]
    pub audit: AuditConfig,
    #[serde(deserialize_with = "empty_or")]
    pub traces: TracesConfig,
    #[serde(deserialize_with = "empty_or")]
    pub model: ModelConfig,
    /// Further models, loaded when they are first asked for. A running server takes up what is
    /// added at the end of the list.
    #[serde(deserialize_with = "empty_or")]
    #[schemars(extend("x-reload" = true))]
    pub models: Vec<FurtherModelConfig>,
    /// Where models run: `cpu`, `cuda` (an NVIDIA GPU; `cuda:1` the second), `metal`,
    /// `vulkan`, `dx12` or `wgpu` (any GPU of these interfaces; numbered in the same way),
    /// `reference`, or `auto`: the NVIDIA GPU where there is one that the model fits, else the
    /// processor.
    pub device: String,
    /// How many of a model's layers a GPU takes, counted from the last; the processor has the
    /// others. With `auto` all where the GPU has room for them, else as many as it has; with `all`
    /// all, or the model is refused. A number is of the first model; others are placed as with
    /// `auto`.
    pub gpu_layers: GpuLayersConfig,
    /// Of how many of a mixture's layers, counted from the first, the processor has the experts,
    /// while a GPU has all else. With `auto` of none where the GPU has room for them, else of as
    /// many as must be, where that takes a token less time than whole layers; with `all` of every
    /// one. A number is of the first model; others are placed as with `auto`.
    pub cpu_moe_layers: GpuLayersConfig,
    /// Memory of the GPU that a model may take; absent: as much as the GPU says it has left, and on
    /// `metal`, `vulkan` and `dx12`, which do not say, as much as the model needs.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub device_memory_mb: Option<u64>,
    /// Threads of the cpu device; absent: as many as the process may use.
    #[schemars(range(min = 1, max = 4096))]
    pub threads: Option<usize>,
    /// Forces the cpu device's instruction set (`portable`, `avx2`, `avx512-vnni`, `neon`,
    /// `neon-dotprod` or `neon-i8mm`); absent: the best this processor has.
    pub isa: Option<String>,
    /// Whether guesses at the next tokens are checked, from the text so far and of a draft model:
    /// `auto` where it pays, `always` to measure what it costs. Answers are the same; a request
    /// can say otherwise.
    pub speculation: SpeculationMode,
    /// A smaller model of the same vocabulary: its answers are guesses, too. Absent: none.
    pub draft_model: Option<String>,
    /// How keys and values are kept: on the cpu device `f16`, `bf16`, `int16` or `int8`, on cuda
    /// `f16` or `int8`, on others `f16`; absent: `int16` on the cpu device, else `f16`.
    #[schemars(extend("enum" = ["f16", "bf16", "int16", "int8", null]))]
    pub kv_dtype: Option<String>,
    #[serde(deserialize_with = "empty_or")]
    pub limits: LimitsConfig,
    /// Share the keys and values of equal prompt beginnings between requests.
    pub prefix_cache: bool,
    #[serde(deserialize_with = "empty_or")]
    pub kv_tiers: KvTiersConfig,
    #[serde(deserialize_with = "empty_or")]
    pub sharing: SharingConfig,
    #[serde(deserialize_with = "empty_or")]
    pub stored_responses: StoredResponsesConfig,
    #[serde(deserialize_with = "empty_or")]
    pub tokenizer: TokenizerConfig,
    #[serde(deserialize_with = "empty_or")]
    pub weights: WeightsConfig,
    #[serde(deserialize_with = "empty_or")]
    pub breaker: BreakerConfig,
    #[serde(deserialize_with = "empty_or")]
    pub heap_pool: HeapPoolConfig,
    #[serde(deserialize_with = "empty_or")]
    pub blit_queue: BlitQueueConfig,
    #[serde(deserialize_with = "empty_or")]
    pub command_ring: CommandRingConfig,
    /// What is logged, as in `info` or `warn,engine=debug`; absent: `info` for a server, `warn`
    /// for other commands.
    #[schemars(extend("x-reload" = true))]
    pub log: Option<String>,
}

/// A section, or nothing: what is left of one whose keys are all commented out says nothing.
fn empty_or<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            access: AccessConfig::default(),
            audit: AuditConfig::default(),
            traces: TracesConfig::default(),
            model: ModelConfig::default(),
            models: Vec::new(),
            device: "auto".to_owned(),
            gpu_layers: GpuLayersConfig::default(),
            cpu_moe_layers: GpuLayersConfig::default(),
            device_memory_mb: None,
            threads: None,
            isa: None,
            speculation: SpeculationMode::Auto,
            draft_model: None,
            kv_dtype: None,
            limits: LimitsConfig::default(),
            prefix_cache: true,
            kv_tiers: KvTiersConfig::default(),
            sharing: SharingConfig::default(),
            stored_responses: StoredResponsesConfig::default(),
            tokenizer: TokenizerConfig::default(),
            weights: WeightsConfig::default(),
            breaker: BreakerConfig::default(),
            heap_pool: HeapPoolConfig::default(),
            blit_queue: BlitQueueConfig::default(),
            command_ring: CommandRingConfig::default(),
            log: None,
        }
    }
}

impl Config {
    /// What must hold between keys; each key alone is held against its schema.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the keys.
    pub(crate) fn check_together(&self) -> Result<(), ConfigError> {
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
        let HeapPoolConfig { num_heaps, heap_size_mb, .. } = &self.heap_pool;
        if *num_heaps > 1 && heap_size_mb.is_none() {
            return refuse(
                "heap_pool.num_heaps",
                "counts heaps of heap_pool.heap_size_mb: say that, too",
            );
        }
        let ServerConfig { tls_certificate_file, tls_key_file, .. } = &self.server;
        if tls_certificate_file.is_some() != tls_key_file.is_some() {
            return refuse(
                "server.tls_key_file",
                "belongs to server.tls_certificate_file: name both",
            );
        }
        if let Some(problem) = self.access.problem() {
            return refuse("access.keys", &problem);
        }
        Ok(())
    }
}
