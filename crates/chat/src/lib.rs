//! How does a conversation become a prompt, by the Jinja template that came with the model?
//!
//! Templates are code from strangers, written for Python. So they are rendered in a child process
//! that can be killed: [`TemplateWorker`] is the parent's side, [`worker_main`] the child's.
//!
//! Invariants: rendering has no I/O, no clock and no environment; a template cannot outlive its
//! deadline, outgrow its memory or take the caller down; nothing is rendered with a template that
//! nobody chose.
//!
//! Reading order: `message`, `conversation`, `request`, `builtin_templates`, `worker_pool`,
//! `protocol`, `worker`, `engine`, `markup`, `python_methods`, `python_text`, `python_values`,
//! `date_text`.

#![forbid(unsafe_code)]

mod builtin_templates;
mod conversation;
mod date_text;
mod engine;
mod error;
mod markup;
mod message;
mod protocol;
mod python_methods;
mod python_text;
mod python_values;
mod request;
mod worker;
mod worker_pool;

pub use builtin_templates::{builtin_template, builtin_template_names};
pub use conversation::Conversation;
pub use date_text::strftime;
pub use error::ChatError;
pub use message::Message;
pub use request::{RenderRequest, TemplateLimits, TemplateSetup};
pub use worker::worker_main;
pub use worker_pool::TemplateWorker;
