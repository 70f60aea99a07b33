//! What does the user want? One YAML file, overridden by the environment, checked before anything
//! starts.
//!
//! Invariants: every key here is read by the server or the engine; an unknown key is an error.
//! Flags override what [`Config::load`] returns; that is the program's part.

#![forbid(unsafe_code)]

mod config;
mod environment;
mod error;
mod file;
mod nearest;

pub use config::{
    BreakerConfig, Config, FurtherModelConfig, KvTiersConfig, LimitsConfig, ModelConfig,
    RepackCache, ServerConfig, SharingConfig, SpeculationMode,
};
pub use environment::VARIABLES;
pub use error::ConfigError;
pub use nearest::nearest_name;
