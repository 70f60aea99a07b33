//! What was found of a prompt in the cache of prefixes, and why not more?

/// Of one sequence's prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachedPrompt {
    /// Tokens that were found and not computed for it.
    pub tokens: u32,
    pub end: CachedEnd,
}

/// Why no more of a prompt was found. Only what its own namespace holds or held is told: of
/// others' texts nobody learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachedEnd {
    /// It was not looked for.
    #[default]
    Off,
    /// The answer is another request's.
    Shared,
    /// All of its whole blocks were there.
    Whole,
    /// It fills no block.
    Short,
    /// Nothing of its namespace is cached.
    New,
    /// Nothing that is cached goes on behind what was found.
    Ends,
    /// What is cached has another token at this position.
    Differs { at: u32 },
    /// What follows was cached once and made room.
    Evicted,
    /// What follows is cached, and the state that the model carries was not kept there.
    NoState,
}
