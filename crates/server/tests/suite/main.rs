//! Does the server keep its promises on the wire? Every test talks to a real loopback socket; the
//! engine behind it is scripted.

mod access;
mod answers;
mod anthropic;
mod client;
mod coding_clients;
mod constraints;
mod embeddings;
mod fields;
mod hardening;
mod leaving;
mod observing;
mod ollama;
mod openapi;
mod pages;
mod rerank;
mod responses;
mod scripted;
mod thoughts;
mod tls;
mod tools;
