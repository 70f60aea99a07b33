//! How much of everything? One struct; every queue and table is sized from it.

/// Bounds of one loaded model's serving state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest sequence (prompt plus answer), in tokens.
    pub context_tokens_max: u32,
    /// Sequences that may hold a device slot at once.
    pub sequences_max: u32,
    /// Requests that may wait for a slot; beyond it a request is refused as busy.
    pub waiting_max: u32,
    /// Plans that go by until a waiting request counts as one priority more urgent, at least 1.
    pub aging_plans: u32,
    /// Tokens computed in one step over all rows.
    pub step_tokens_max: u32,
    /// Of them, guesses to be checked; each needs a row of logits.
    pub proposed_tokens_max: u32,
    /// Positions held by one KV block.
    pub block_tokens: u32,
    /// Blocks in the KV pool.
    pub block_count: u32,
}

impl Limits {
    /// Positions the whole KV pool can hold.
    pub fn pool_tokens(&self) -> u64 {
        u64::from(self.block_tokens) * u64::from(self.block_count)
    }
}
