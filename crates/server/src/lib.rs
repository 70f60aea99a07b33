//! Who is asking, and how do they get their answer? HTTP/1.1 with JSON and server-sent events, as
//! OpenAI's clients speak it.
//!
//! The only crate with wire types. It reaches the engine through [`engine::Service`] and nothing
//! else. Invariants: a request body is read only within limits of size and time; whatever a client
//! drops is dropped here at once (no task outlives its connection, but one that brings a model); no
//! text of a user is logged.
//!
//! Reading order, along a request: `listen` (sockets), `timed_stream` (their patience), `tls`,
//! `gate` (host, origin, panics, log), `access` (keys and what each may use), `visit` (what is
//! known of one request), `caller_service` (the engine as its caller may use it, in the words of
//! `field_names`), `admin` (who may
//! load models), `model_source` (who brings them), `routes` (the table and one file for each
//! endpoint), `request` (body to [`engine::GenerateRequest`]s), `answers` (running generations) and
//! `vectors` (of texts), `reply` (parts of answers to JSON and events), `stored_responses` (which
//! answers are kept). What is known of requests that ended goes to `metrics`, `audit` and `traces`.
//! Beside them `pages` holds what browsers show, and `in_process` asks without a socket.

#![forbid(unsafe_code)]

mod access;
mod admin;
mod answer_metrics;
mod answers;
mod app;
mod audit;
mod caller_service;
mod error;
mod field_names;
mod gate;
mod histogram;
mod hosts;
mod in_process;
mod listen;
mod metrics;
mod model_source;
mod options;
mod pages;
mod reply;
mod request;
mod resource_metrics;
mod routes;
mod stored_responses;
mod timed_stream;
mod tls;
mod trace_context;
mod traces;
mod vectors;
mod visit;

pub use access::NewKey;
pub use error::ServerError;
pub use in_process::{InProcess, InProcessReply};
pub use listen::{Reserved, Server, ServerControl, bind, reserve, serve};
pub use model_source::{ModelSource, PullStep};
pub use options::{Patience, ServerOptions};
pub use routes::route_names;
