//! The sections of the configuration: one file each, one line each in this list.
//!
//! A field is a key. Its doc comment is the key's meaning, `schemars(range)` its range, the value
//! in `Default` its default, and the last word of its name its unit; `extend("x-reload" = true)`
//! marks a key that a running server takes up at SIGHUP, and `extend("x-path" = "file")` or
//! `"folder"` one that names a place which `pelton config check` looks for.
//! The schema, the commented file, the reference, variables, `--set` and checks follow from these.

pub(crate) mod access;
pub(crate) mod audit;
pub(crate) mod blit_queue;
pub(crate) mod breaker;
pub(crate) mod command_ring;
pub(crate) mod gpu_layers;
pub(crate) mod heap_pool;
pub(crate) mod kv_tiers;
pub(crate) mod limits;
pub(crate) mod model;
pub(crate) mod models;
pub(crate) mod server;
pub(crate) mod sharing;
pub(crate) mod speculation;
pub(crate) mod stored_responses;
pub(crate) mod tokenizer;
pub(crate) mod traces;
pub(crate) mod weights;
