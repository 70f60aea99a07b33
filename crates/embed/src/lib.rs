//! How does a program in another language hold Pelton inside itself? By the functions of
//! `include/pelton_embed.h`: an engine, replies to requests of the server's APIs, and their bytes.
//! `packaging/python` builds `pelton.Engine` on them.

#![deny(unsafe_code)]

#[allow(unsafe_code, reason = "takes and gives the pointers of the functions in the header")]
pub mod abi;
mod settings;
