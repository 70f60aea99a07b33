//! How does a caller follow a pull?

use std::path::Path;
use std::time::Duration;

/// What happens during a pull, in the order it happens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event<'a> {
    /// Another process pulls the same model; this one waits for it.
    WaitingForOther,
    /// A source was chosen; `total_bytes` where it is known already.
    Source { place: &'a str, total_bytes: Option<u64> },
    /// `done_bytes` have arrived, those of an earlier, interrupted pull included.
    Bytes { done_bytes: u64, total_bytes: Option<u64> },
    /// The source failed after `after`; the next one is tried.
    FellThrough { place: &'a str, why: &'a str, after: Duration },
    /// All bytes are here; their checksum is compared.
    Verifying,
    /// The file has its final name.
    Done { path: &'a Path },
}

/// Told of every [`Event`]; called often, so it must be quick.
pub trait Progress {
    fn event(&mut self, event: Event<'_>);
}

impl<F: FnMut(Event<'_>)> Progress for F {
    fn event(&mut self, event: Event<'_>) {
        self(event);
    }
}
