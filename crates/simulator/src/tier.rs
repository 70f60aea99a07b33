//! What does the world keep of blocks that the device gave up? Everything, by their prefixes.
//!
//! The naive twin of the engine's tiers: a map from whole prefixes to what the device copied out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use messages::{CacheNamespace, SequenceId, TokenId};
use scheduler::{Scheduler, SequenceRequest};

use crate::fake_device::{BlockCopy, Content};

/// A namespace and all tokens up to the end of a block.
pub(crate) type Prefix = (Arc<CacheNamespace>, Vec<TokenId>);

#[derive(Clone, Debug, Default)]
pub(crate) struct Tier {
    blocks: BTreeMap<Prefix, Content>,
    /// What requests will copy in: their first block, and from there on.
    held: BTreeMap<SequenceId, (u32, Vec<Content>)>,
}

impl Tier {
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
        let first = scheduler.cached_blocks(namespace, tokens);
        let ends = (first + 1..).map(|blocks| blocks * block_tokens);
        let contents: Vec<Content> = ends
            .map_while(|end| Some((Arc::clone(namespace), tokens.get(..end)?.to_vec())))
            .map_while(|prefix| self.blocks.get(&prefix).cloned())
            .collect();
        let range = first as u32..(first + contents.len()) as u32;
        self.held.insert(id, (range.start, contents));
        range
    }

    /// The copies of the step that was just planned, and whose those are that come back.
    pub(crate) fn copies(&mut self, scheduler: &Scheduler) -> (Vec<BlockCopy>, Vec<Prefix>) {
        let (mut copies, mut prefixes) = (Vec::new(), Vec::new());
        for evicted in scheduler.evictions() {
            copies.push(BlockCopy::Out(evicted.block));
            prefixes.push((Arc::clone(evicted.namespace), evicted.tokens.to_vec()));
        }
        for admission in scheduler.admitted() {
            let held = self.held.remove(&admission.sequence);
            for place in admission.restored {
                let (first, contents) = held.as_ref().expect("only what was offered is restored");
                let content = contents[(place - first) as usize].clone();
                copies.push(BlockCopy::In(admission.blocks[place as usize], content));
            }
        }
        (copies, prefixes)
    }

    pub(crate) fn keep(&mut self, prefixes: Vec<Prefix>, contents: Vec<Content>) {
        assert_eq!(prefixes.len(), contents.len(), "each copy comes back");
        self.blocks.extend(prefixes.into_iter().zip(contents));
    }
}
