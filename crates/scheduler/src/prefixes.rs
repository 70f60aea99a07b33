//! What need not be computed, because another sequence has computed it?
//!
//! Taken at admission, and again before each chunk of a prompt: a sequence behind another with the
//! same prompt meets it as soon as the other's steps settle. The last known token is always
//! computed, for its logits are needed.

use std::ops::Range;

use kv_cache::CachedPrefix;
use messages::{CacheNamespace, CachedEnd, CachedPrompt, TokenId};

use crate::Scheduler;
use crate::sequence::{Sequence, Status};

impl Scheduler {
    /// Lets an admitted sequence without blocks start behind its longest cached prefix.
    pub(crate) fn take_prefix(&mut self, sequence: &mut Sequence) {
        let Some(namespace) = &sequence.cache_namespace else { return };
        self.pool.enter(&mut sequence.table, namespace);
        let before_last = &sequence.tokens[..sequence.tokens.len() - 1];
        let block_tokens = self.limits.block_tokens;
        let found = self.carries.then(|| self.pool.cached_prefix(namespace, before_last));
        sequence.takes_state = false;
        if let Some(end) = found.and_then(|found| carried_end(sequence, found, block_tokens)) {
            // The state comes from elsewhere, and so it does not matter who kept one here.
            let tokens = &before_last[..(end * block_tokens) as usize];
            sequence.computed = self.pool.seal(&mut sequence.table, tokens, None);
            sequence.restored = sequence.computed / block_tokens..end;
            sequence.takes_state = true;
        } else {
            sequence.computed = self.pool.take_cached(&mut sequence.table, before_last, None);
            // Blocks are nothing without the state behind them.
            let offered = if self.carries { 0..0 } else { restored(sequence, block_tokens) };
            sequence.restored = offered;
        }
        sequence.computed += sequence.restored.len() as u32 * block_tokens;
        if sequence.preemptions > 0 {
            self.returned_blocks_total += sequence.restored.len() as u64;
        } else {
            self.prefix_queried_tokens_total += u64::from(sequence.prompt_count);
            self.count_cached(sequence.computed);
            let end = if sequence.restored.is_empty() && !sequence.takes_state {
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

    /// Blocks at the start of `prompt` from which a sequence could start now.
    pub fn cached_blocks(&self, namespace: &CacheNamespace, prompt: &[TokenId]) -> usize {
        self.cached(namespace, prompt).blocks
    }

    /// What is cached now of a prompt.
    pub fn cached(&self, namespace: &CacheNamespace, prompt: &[TokenId]) -> CachedPrefix {
        self.pool.cached_prefix(namespace, prompt)
    }

    fn count_cached(&mut self, tokens: u32) {
        self.prefix_hit_tokens_total += u64::from(tokens);
    }
}

/// Where the state from elsewhere stands with which an admitted sequence begins, in blocks: beyond
/// what it would find here, with all blocks up to there found or offered.
fn carried_end(sequence: &Sequence, found: CachedPrefix, block_tokens: u32) -> Option<u32> {
    let Range { start, end } = sequence.restorable;
    let has_blocks = start as usize <= found.in_tree;
    let gains = end as usize > found.blocks && end <= (sequence.known() - 1) / block_tokens;
    (has_blocks && gains).then_some(end)
}

/// Blocks to copy in behind those that are cached, of an admitted sequence. They are not in the
/// tree yet: they go there like computed ones, when the step that brings them settles.
fn restored(sequence: &Sequence, block_tokens: u32) -> Range<u32> {
    let cached = sequence.computed / block_tokens;
    let end = sequence.restorable.end.min((sequence.known() - 1) / block_tokens);
    if sequence.restorable.start <= cached && cached < end { cached..end } else { 0..0 }
}
