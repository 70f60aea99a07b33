//! What does the world keep of blocks and states that the device gave up? Everything, by their
//! prefixes.
//!
//! The naive twin of the engine's tiers: a map from whole prefixes to what the device copied out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use messages::{CacheNamespace, SequenceId, TokenId};
use scheduler::{Scheduler, SequenceRequest};

use crate::fake_device::{BlockCopy, Carried, Content, Copied};

/// A namespace and all tokens up to the end of a block.
pub(crate) type Prefix = (Arc<CacheNamespace>, Vec<TokenId>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Tier {
    blocks: BTreeMap<Prefix, Content>,
    states: BTreeMap<Prefix, Carried>,
    /// Whether blocks are nothing without the state behind them.
    carries: bool,
    held: BTreeMap<SequenceId, Held>,
}

/// What a request will copy in.
#[derive(Clone, Debug)]
struct Held {
    /// Its first block, and from there on.
    first: u32,
    contents: Vec<Content>,
    state: Option<Carried>,
}

impl Tier {
    pub(crate) fn of_carriers(self, carries: bool) -> Self {
        Self { carries, ..self }
    }

    /// What is here of a request's prompt behind what is cached.
    pub(crate) fn restorable(
        &mut self,
        scheduler: &Scheduler,
        request: &SequenceRequest,
    ) -> Range<u32> {
        let Some(namespace) = &request.cache_namespace else { return 0..0 };
        self.offer(scheduler, request.id, namespace, &request.prompt)
    }

    /// What is here of a sequence's tokens behind what is cached.
    pub(crate) fn offer(
        &mut self,
        scheduler: &Scheduler,
        id: SequenceId,
        namespace: &Arc<CacheNamespace>,
        tokens: &[TokenId],
    ) -> Range<u32> {
        let Some((_, tokens)) = tokens.split_last() else { return 0..0 };
        let block_tokens = scheduler.limits().block_tokens as usize;
        let cached = scheduler.cached(namespace, tokens);
        let prefix = |blocks: usize| {
            Some((Arc::clone(namespace), tokens.get(..blocks * block_tokens)?.to_vec()))
        };
        let first = cached.in_tree;
        let mut contents: Vec<Content> = (first + 1..)
            .map_while(prefix)
            .map_while(|prefix| self.blocks.get(&prefix).cloned())
            .collect();
        let (mut first, mut state) = (first, None);
        if self.carries {
            let ends = (cached.blocks + 1..=first + contents.len()).rev();
            let state_at = |end: usize| Some((end, *self.states.get(&prefix(end)?)?));
            let Some((end, found)) = ends.filter_map(state_at).next() else { return 0..0 };
            contents.truncate(end.saturating_sub(first));
            (first, state) = (first.min(end), Some(found));
        }
        let range = first as u32..(first + contents.len()) as u32;
        self.held.insert(id, Held { first: range.start, contents, state });
        range
    }

    /// The copies of the step that was just planned, and whose those are that come back.
    pub(crate) fn copies(&mut self, scheduler: &Scheduler) -> (Vec<BlockCopy>, [Vec<Prefix>; 2]) {
        let (mut copies, mut blocks, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for evicted in scheduler.evictions() {
            copies.push(BlockCopy::Out(evicted.block));
            blocks.push((Arc::clone(evicted.namespace), evicted.tokens.to_vec()));
        }
        for lost in scheduler.lost_states() {
            copies.push(BlockCopy::StateOut(lost.state));
            states.push((Arc::clone(lost.namespace), lost.tokens.to_vec()));
        }
        for admission in scheduler.admitted() {
            let held = self.held.remove(&admission.sequence);
            let held = || held.as_ref().expect("only what was offered is restored");
            for place in admission.restored {
                let content = held().contents[(place - held().first) as usize].clone();
                copies.push(BlockCopy::In(admission.blocks[place as usize], content));
            }
            if admission.takes_state {
                let state = held().state.expect("a state was offered");
                copies.push(BlockCopy::StateIn(admission.slot, state));
            }
        }
        (copies, [blocks, states])
    }

    pub(crate) fn keep(&mut self, [blocks, states]: [Vec<Prefix>; 2], copied: Copied) {
        assert_eq!(blocks.len(), copied.blocks.len(), "each copy comes back");
        assert_eq!(states.len(), copied.states.len(), "each copy comes back");
        self.blocks.extend(blocks.into_iter().zip(copied.blocks));
        self.states.extend(states.into_iter().zip(copied.states));
    }
}
