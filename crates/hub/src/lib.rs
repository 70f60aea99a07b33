//! Which file on this disk does a name mean, and how does it get here?
//!
//! A person types `smollm2`, `org/name`, `org/name/file.gguf`, or a path. [`Store::resolve`] finds
//! the file without touching the network; [`Store::pull`] brings it, from the first source that
//! can be reached, checked byte by byte before it takes its final name.
//!
//! Invariants: a file under its final name is complete and verified (it gets there by rename);
//! nothing is written outside the store's folder; nothing is printed; a token is only ever sent
//! to the hub it was set for.
//!
//! Reading order: `catalogue`, `asked_name`, `store`, `pull`, then the sources.

#![forbid(unsafe_code)]

mod asked_name;
mod catalogue;
mod error;
mod http;
mod hugging_face;
mod partial_file;
mod progress;
mod pull;
mod python_package;
mod settings;
mod store;

pub use catalogue::{CatalogueEntry, Checksum, Source, catalogue};
pub use error::{HubError, SourceFailure};
pub use progress::{Event, Progress};
pub use settings::Settings;
pub use store::{LocalModel, Origin, Pulled, Resolved, Store};
