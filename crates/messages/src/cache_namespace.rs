//! Who may share cached keys and values, and answers?

/// Requests of one namespace share the KV blocks of equal prompts, and answers; no others do.
///
/// A cached prefix makes the first token come sooner, and that can be seen: a caller who guesses
/// another's prompt could tell. So a namespace is part of a request, compared as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheNamespace {
    /// Who asks; callers that are told apart by nothing share the empty name.
    pub tenant: String,
    /// Chosen by the caller (`cache_salt`) to be alone, or with those who know it.
    pub salt: String,
    /// The adapter whose weights made the keys and values; empty: the model's own.
    pub adapter: String,
}
