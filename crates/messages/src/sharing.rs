//! May a request share work with others, and did it?

/// What a request allows to be shared with identical ones of its namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SharingMode {
    #[default]
    On,
    /// Computed anew; others may use its answer.
    Fresh,
    /// Computed for itself; nothing of it is remembered, the KV blocks of its prompt included.
    Off,
}

/// How a request came to its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharingReport {
    pub outcome: SharingOutcome,
    /// For a person; printable ASCII.
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SharingOutcome {
    /// The answer was remembered; nothing is computed.
    Hit,
    /// Reads along with an identical request that runs.
    Joined,
    /// Computed for this request.
    Miss,
}
