//! Where do models come from that are not here yet? The server does not know; the program that it
//! is a part of does.

use std::fmt::Debug;

use messages::Refusal;

/// Brings models to this machine.
pub trait ModelSource: Debug + Send + Sync + 'static {
    /// Brings a model; gives the name that it is served by from now on, or `None` where it was here
    /// before. It may block for as long as that takes; `tell` is called often, and is quick.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be had.
    fn pull(&self, name: &str, tell: &mut dyn FnMut(PullStep)) -> Result<Option<String>, Refusal>;
}

/// How far a pull is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullStep {
    /// Another process brings the same model.
    Waiting,
    /// Where it comes from.
    From(String),
    Bytes {
        done: u64,
        total: Option<u64>,
    },
    /// All bytes are here; their checksum is compared.
    Verifying,
}
