//! Which blocks leave the device, and which come back instead of being computed again?
//!
//! What a plan evicts is copied out before the plan's own step begins, and kept in memory or on
//! disk. A request whose prompt goes on in a tier waits beside the step loop until its blocks are
//! read; they are copied in before its first step. Both only where that is cheaper than computing,
//! by what steps, copies and reads took so far. A preempted sequence takes back from memory what
//! was given up of its blocks since.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use device::{
    BlockCopy, BlockForm, CommandRing, Completion, HostBytes, StagingRing, StagingStatistics,
};
use kv_tiers::{BlockBytes, BlockKey, Loaded, TierCounts, TierSettings, Tiers};
use messages::{CacheNamespace, SequenceId, TokenId};
use scheduler::Scheduler;

use crate::EngineError;
use crate::resources::StagedBlocks;
use crate::step_loop::{Event, Submit};

/// Blocks that the last step saves at once: a few megabytes each, so tens in all.
const SAVED_AT_ONCE: usize = 8;
/// A step of fewer tokens says little about what reading a prompt takes.
const PROMPT_TOKENS_MIN: usize = 32;

pub(crate) struct BlockTiers {
    tiers: Tiers,
    /// Of the model and of how its blocks are laid out.
    identity: BlockKey,
    block_tokens: usize,
    events: Sender<Event>,
    /// Read and not yet copied in.
    restored: BTreeMap<SequenceId, Restored>,
    /// Names of what each step in flight copies out.
    outgoing: VecDeque<Vec<BlockKey>>,
    token_seconds: Mean,
    copy_seconds: Mean,
    staging: StagingRing,
}

/// Consecutive blocks of a prompt, from its `first` on.
pub(crate) struct Restored {
    first: u32,
    loaded: Loaded,
}

/// A moving mean of the last ten or so values; nothing before the first.
#[derive(Clone, Copy, Default)]
struct Mean(Option<f64>);

impl Mean {
    fn add(&mut self, total: Duration, count: usize) {
        let value = total.as_secs_f64() / count as f64;
        let mean = self.0.unwrap_or(value);
        self.0 = Some(mean + (value - mean) / 10.0);
    }
}

impl BlockTiers {
    /// `None` where there is no staging, for all budgets are 0.
    ///
    /// # Errors
    /// [`EngineError::Tiers`] naming the setting and what is wrong with it.
    pub(crate) fn open(
        settings: &TierSettings,
        model: &[u8],
        form: &BlockForm,
        block_tokens: u32,
        events: Sender<Event>,
        staging: Option<StagingRing>,
    ) -> Result<Option<Self>, EngineError> {
        let Some(staging) = staging else { return Ok(None) };
        let buffers = Arc::new(StagedBlocks(staging.clone()));
        let layout = format!("{block_tokens} tokens: {}", form.name);
        let identity = BlockKey::root([model, layout.as_bytes()]);
        // Other models and layouts have folders of their own.
        let folder = |path: &std::path::PathBuf| path.join(identity.to_string());
        let disk_path = settings.disk_path.as_ref().map(folder);
        let settings = TierSettings { disk_path, ..settings.clone() };
        Ok(Some(Self {
            tiers: Tiers::open(&settings, form.bytes, buffers)?,
            identity,
            block_tokens: block_tokens as usize,
            events,
            restored: BTreeMap::new(),
            outgoing: VecDeque::new(),
            token_seconds: Mean::default(),
            copy_seconds: Mean::default(),
            staging,
        }))
    }

    /// The names of the full blocks of `tokens`.
    fn keys(&self, namespace: &CacheNamespace, tokens: &[TokenId]) -> Vec<BlockKey> {
        let CacheNamespace { tenant, salt, adapter } = namespace;
        let parts = [tenant, salt, adapter].map(|part| part.as_bytes());
        let mut key = BlockKey::root(std::iter::once(&self.identity.as_bytes()[..]).chain(parts));
        let blocks = tokens.chunks_exact(self.block_tokens);
        let next = |tokens: &[TokenId]| {
            key = key.then(tokens);
            key
        };
        blocks.map(next).collect()
    }

    /// Reads what a request needs; it comes back as [`Event::Restored`]. Gives it back at once
    /// where there is nothing to read or computing is cheaper.
    pub(crate) fn restore_first(
        &self,
        scheduler: &Scheduler,
        submit: Box<Submit>,
    ) -> Option<Box<Submit>> {
        let Some(namespace) = &submit.cache_namespace else { return Some(submit) };
        let Some((_, before_last)) = submit.prompt.split_last() else { return Some(submit) };
        let keys = self.keys(namespace, before_last);
        let first = scheduler.cached_blocks(namespace, before_last);
        let (count, reading) = self.tiers.find(&keys[first..]);
        if count == 0 || !self.pays(count, reading) {
            return Some(submit);
        }
        let keys = keys[first..first + count].to_vec();
        let events = self.events.clone();
        let then = move |loaded| {
            let restored = Restored { first: first as u32, loaded };
            // A closed inbox means the loop has ended.
            let _ = events.send(Event::Restored(submit, restored));
        };
        if let Err(then) = self.tiers.load(keys, then) {
            // Too much is being read: it is computed. The request's place in the inbox is free.
            then(Loaded::default());
        }
        None
    }

    fn pays(&self, blocks: usize, reading: Option<Duration>) -> bool {
        let (Some(reading), Some(token_seconds)) = (reading, self.token_seconds.0) else {
            // Not measured yet; this measures it.
            return true;
        };
        let copying = blocks as f64 * self.copy_seconds.0.unwrap_or(0.0);
        let computing = (blocks * self.block_tokens) as f64 * token_seconds;
        reading.as_secs_f64() + copying < computing
    }

    /// Offers a preempted sequence, before the plan that starts it again, what is in memory of it,
    /// where copying is cheaper than computing. What is on disk only is computed: nobody waits.
    pub(crate) fn take_back(&mut self, scheduler: &mut Scheduler) {
        let Some(returning) = scheduler.returning() else { return };
        let Some((_, before_last)) = returning.tokens.split_last() else { return };
        let first = scheduler.cached_blocks(returning.namespace, before_last);
        let keys = self.keys(returning.namespace, before_last);
        let loaded = self.tiers.in_memory(&keys[first..]);
        if loaded.blocks.is_empty() || !self.pays(loaded.blocks.len(), Some(Duration::ZERO)) {
            return;
        }
        let id = returning.sequence;
        let range = self.hold(id, Restored { first: first as u32, loaded });
        scheduler.offer_blocks(id, range);
    }

    /// Keeps what was read until its sequence starts; says which blocks of the prompt that is.
    pub(crate) fn hold(&mut self, id: SequenceId, restored: Restored) -> Range<u32> {
        let range = restored.first..restored.first + restored.loaded.blocks.len() as u32;
        if !range.is_empty() {
            self.restored.insert(id, restored);
        }
        range
    }

    pub(crate) fn forget(&mut self, id: SequenceId) {
        self.restored.remove(&id);
    }

    /// Adds the copies of the step that was just planned.
    pub(crate) fn fill(&mut self, scheduler: &Scheduler, copies: &mut Vec<BlockCopy>) {
        let mut names = Vec::new();
        for evicted in scheduler.evictions() {
            let Some(key) = self.keys(evicted.namespace, evicted.tokens).pop() else { continue };
            if self.tiers.contains(&key) {
                continue;
            }
            // Without a buffer it is forgotten, and counted by the staging ring.
            if let Some(bytes) = self.staging.take() {
                names.push(key);
                copies.push(BlockCopy::Out { block: evicted.block.0, bytes });
            }
        }
        for admission in scheduler.admitted() {
            let Some(restored) = self.restored.remove(&admission.sequence) else { continue };
            for place in admission.restored {
                let bytes = Arc::clone(&restored.loaded.blocks[(place - restored.first) as usize]);
                let bytes = HostBytes(bytes);
                copies.push(BlockCopy::In { block: admission.blocks[place as usize].0, bytes });
            }
        }
        self.outgoing.push_back(names);
    }

    /// Keeps what a finished step copied out, and measures.
    pub(crate) fn collect(&mut self, completion: &mut Completion) {
        let names = self.outgoing.pop_front().expect("invariant: a step for each completion");
        let copies = std::mem::take(&mut completion.inputs.copies);
        let tokens = completion.inputs.tokens.len();
        if completion.result.is_err() {
            return;
        }
        if !copies.is_empty() {
            self.copy_seconds.add(completion.copying, copies.len());
        }
        if tokens >= PROMPT_TOKENS_MIN {
            self.token_seconds.add(completion.duration, tokens);
        }
        for (key, bytes) in names.into_iter().zip(copied_out(copies)) {
            self.tiers.keep(key, bytes);
        }
    }

    /// Writes every cached block to disk, where there is one: it survives a restart. `ring` runs
    /// nothing any more.
    pub(crate) fn save(self, scheduler: &Scheduler, ring: &mut CommandRing) {
        if !self.tiers.has_disk() {
            return;
        }
        let mut blocks = Vec::new();
        scheduler.pool().each_cached(|cached| {
            let key = self.keys(cached.namespace, cached.tokens).pop();
            blocks.extend(key.map(|key| (key, cached.block.0)));
        });
        blocks.retain(|(key, _)| !self.tiers.contains(key));
        for blocks in blocks.chunks(SAVED_AT_ONCE) {
            let copy_out = |&(_, block): &(BlockKey, u32)| {
                self.staging.take().map(|bytes| BlockCopy::Out { block, bytes })
            };
            ring.submit(Instant::now(), |inputs| {
                inputs.clear(0);
                inputs.copies.extend(blocks.iter().map_while(copy_out));
            });
            let Ok(completion) = ring.completions().recv() else { return };
            let copies = ring.collect(completion, |done| {
                done.result.is_ok().then(|| std::mem::take(&mut done.inputs.copies))
            });
            let Some(Some(copies)) = copies else { return };
            for (&(key, _), bytes) in blocks.iter().zip(copied_out(copies)) {
                self.tiers.save(key, bytes);
            }
        }
        let counts = self.tiers.counts();
        tracing::info!(blocks = blocks.len(), ?counts, "saved the prefix cache");
    }

    pub(crate) fn staging(&self) -> StagingStatistics {
        self.staging.statistics()
    }

    pub(crate) fn counts(&self) -> TierCounts {
        self.tiers.counts()
    }
}

fn copied_out(copies: Vec<BlockCopy>) -> impl Iterator<Item = BlockBytes> {
    copies.into_iter().filter_map(|copy| match copy {
        BlockCopy::Out { bytes, .. } => Some(Arc::new(bytes) as BlockBytes),
        BlockCopy::In { .. } => None,
    })
}
