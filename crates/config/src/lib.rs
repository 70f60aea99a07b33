//! What does the user want? One YAML file, overridden by the environment and by flags, checked
//! before anything starts.
//!
//! Invariants: every key here is read by the server or the engine; an unknown key, variable or flag
//! is an error; what there is to say about a key is written once, at its field.
//!
//! Reading order: `config` and `sections` (the keys), `schema` and `keys` (what is known of each),
//! `file`, `environment` and `layers` (who says what), `effects` (what is said in vain),
//! `keys_file` (API keys in a file of their own), `template` and `reference` (what people read).

#![forbid(unsafe_code)]

mod config;
mod effects;
mod environment;
mod error;
mod file;
mod keys;
mod keys_file;
mod layers;
mod nearest;
mod paths;
mod places;
mod reference;
mod schema;
mod sections;
mod template;

pub use config::Config;
pub use error::ConfigError;
pub use keys::{Key, Kind, Place, Section, keys, sections};
pub use keys_file::{add_key, key_entry};
pub use layers::{Changes, Loaded, Origin, Setting, Sources};
pub use nearest::nearest_name;
pub use reference::reference;
pub use schema::json_schema;
pub use sections::access::{AccessConfig, KeyConfig, KeyDigest, KeyPriority};
pub use sections::audit::AuditConfig;
pub use sections::blit_queue::BlitQueueConfig;
pub use sections::breaker::BreakerConfig;
pub use sections::command_ring::CommandRingConfig;
pub use sections::gpu_layers::{GpuLayersConfig, NamedLayers};
pub use sections::heap_pool::HeapPoolConfig;
pub use sections::kv_tiers::KvTiersConfig;
pub use sections::limits::LimitsConfig;
pub use sections::model::{ModelConfig, PoolingConfig, RepackCache};
pub use sections::models::FurtherModelConfig;
pub use sections::server::ServerConfig;
pub use sections::sharing::SharingConfig;
pub use sections::speculation::SpeculationMode;
pub use sections::stored_responses::StoredResponsesConfig;
pub use sections::tokenizer::TokenizerConfig;
pub use sections::traces::TracesConfig;
pub use sections::weights::{DirectIo, WeightsConfig};
pub use template::template;
