//! Does the program do what its help says? The built binary, run as a person or a client would.

#![allow(clippy::unwrap_used, reason = "tests")]

mod benching;
#[cfg(target_os = "linux")]
mod chatting;
mod clients;
mod command_line;
mod configuring;
#[cfg(unix)]
mod documents;
mod keys;
mod python;
mod running;
mod serving;
mod sharing;
mod watching;
