//! What need not be computed, because another sequence has computed it?
//!
//! Taken at admission, and again before each chunk of a prompt: a sequence behind another with the
//! same prompt meets it as soon as the other's steps settle. The last known token is always
//! computed, for its logits are needed.

use std::ops::Range;

use messages::{CacheNamespace, CachedEnd, CachedPrompt, TokenId};

use crate::Scheduler;
use crate::sequence::{Sequence, Status};

impl Scheduler {
    /// Lets an admitted sequence without blocks start behind its longest cached prefix.
    pub(crate) fn take_prefix(&mut self, sequence: &mut Sequence) {
        let Some(namespace) = &sequence.cache_namespace else { return };
        self.pool.enter(&mut sequence.table, namespace);
        let before_last = &sequence.tokens[..sequence.tokens.len() - 1];
        sequence.computed = self.pool.take_cached(&mut sequence.table, before_last, None);
        // Blocks that were kept elsewhere have no state behind them.
        let is_whole = !self.carries;
        sequence.restored =
            if is_whole { restored(sequence, self.limits.block_tokens) } else { 0..0 };
        sequence.computed += sequence.restored.len() as u32 * self.limits.block_tokens;
        if sequence.preemptions > 0 {
            self.returned_blocks_total += sequence.restored.len() as u64;
        } else {
            self.prefix_queried_tokens_total += u64::from(sequence.prompt_count);
            self.count_cached(sequence.computed);
            let end = if sequence.restored.is_empty() {
                self.pool.end_of_cached(&sequence.table, before_last)
            } else if before_last.len() as u32 - sequence.computed < self.limits.block_tokens {
                CachedEnd::Whole
            } else {
                CachedEnd::Ends
            };
            sequence.cached = CachedPrompt { tokens: sequence.computed, end };
        }
    }

    /// Lets sequences that read their prompts skip what others have published since.
    pub(crate) fn skip_cached(&mut self) {
        if self.carries {
            // What is carried stands where the prompt is read.
            return;
        }
        for index in 0..self.running.len() {
            let sequence = &mut self.running[index];
            if sequence.remaining() <= 1 || sequence.samples_in_flight > 0 {
                continue;
            }
            let before_last = &sequence.tokens[..sequence.tokens.len() - 1];
            let last_step = sequence.last_step;
            let cached = self.pool.take_cached(&mut sequence.table, before_last, last_step);
            let skipped = cached.saturating_sub(sequence.computed);
            sequence.computed += skipped;
            if sequence.preemptions == 0 && skipped > 0 {
                sequence.cached.tokens += skipped;
                sequence.cached.end = self.pool.end_of_cached(&sequence.table, before_last);
                self.count_cached(skipped);
            }
        }
    }

    /// Lets others find the blocks that a settled row has filled up to position `end`.
    pub(crate) fn publish(&mut self, index: usize, end: u32) {
        let sequence = &mut self.running[index];
        if sequence.status == Status::Ended {
            return;
        }
        // A row may have computed tokens that were dropped since: only known ones have a name.
        let written = &sequence.tokens[..end.min(sequence.known()) as usize];
        self.pool.publish(&mut sequence.table, written, sequence.last_step);
    }

    /// Blocks of the longest cached prefix of a waiting sequence that running ones hold.
    pub(crate) fn owned_prefix(&self, sequence: &Sequence) -> usize {
        let Some(namespace) = &sequence.cache_namespace else { return 0 };
        let before_last = &sequence.tokens[..sequence.tokens.len() - 1];
        self.pool.cached_prefix(namespace, before_last).owned
    }

    /// Blocks at the start of `prompt` that are cached now.
    pub fn cached_blocks(&self, namespace: &CacheNamespace, prompt: &[TokenId]) -> usize {
        self.pool.cached_prefix(namespace, prompt).blocks
    }

    fn count_cached(&mut self, tokens: u32) {
        self.prefix_hit_tokens_total += u64::from(tokens);
    }
}

/// Blocks to copy in behind those that are cached, of an admitted sequence. They are not in the
/// tree yet: they go there like computed ones, when the step that brings them settles.
fn restored(sequence: &Sequence, block_tokens: u32) -> Range<u32> {
    let cached = sequence.computed / block_tokens;
    let end = sequence.restorable.end.min((sequence.known() - 1) / block_tokens);
    if sequence.restorable.start <= cached && cached < end { cached..end } else { 0..0 }
}
