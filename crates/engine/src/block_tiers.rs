//! Which blocks leave the device, and which come back instead of being computed again?
//!
//! What a plan evicts is copied out before the plan's own step begins, and kept in memory or on
//! disk. A request whose prompt goes on in a tier waits beside the step loop until its blocks are
//! read; they are copied in before its first step. Both only where that is cheaper than computing,
//! by what steps, copies and reads took so far. A preempted sequence takes back from memory what
//! was given up of its blocks since.
//!
//! A state that sequences carry is kept in pieces as long as a block, under names of their own.
//! Where there are states, blocks are wanted only up to one that is here in all its pieces.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use device::{
    BlockCopy, BlockForm, CommandRing, Completion, HostBytes, Program, StagingRing,
    StagingStatistics,
};
use kv_tiers::{BlockBytes, BlockKey, Loaded, TierCounts, TierSettings, Tiers};
use messages::{CacheNamespace, SequenceId, TokenId};
use scheduler::{CachedPrefix, PrefixState, Scheduler};

use crate::resources::StagedBlocks;
use crate::step_loop::{Event, Submit};
use crate::{EngineError, SaveProgress};

/// Blocks that the last step saves at once: a few megabytes each, so tens in all.
const SAVED_AT_ONCE: usize = 8;
/// A step of fewer tokens says little about what reading a prompt takes.
const PROMPT_TOKENS_MIN: usize = 32;

pub(crate) struct BlockTiers {
    tiers: Tiers,
    /// Of the model and of how its blocks are laid out.
    identity: BlockKey,
    block_tokens: usize,
    /// `None` where sequences carry nothing.
    states: Option<StateForm>,
    events: Sender<Event>,
    /// Read and not yet copied in.
    restored: BTreeMap<SequenceId, Restored>,
    /// Names of what each step in flight copies out.
    outgoing: VecDeque<Vec<BlockKey>>,
    token_seconds: Mean,
    copy_seconds: Mean,
    staging: StagingRing,
}

/// What a program has that can be kept elsewhere.
pub(crate) struct KeptForm {
    pub(crate) block: BlockForm,
    pub(crate) state_bytes: Option<usize>,
}

impl KeptForm {
    pub(crate) fn of(program: &dyn Program) -> Self {
        let block = program.block_form();
        // Pieces are as long as a block.
        let state_bytes = program.state_bytes().filter(|_| block.bytes > 0);
        Self { block, state_bytes }
    }
}

/// Consecutive blocks of a prompt, and behind them the pieces of the state at their end, if any.
pub(crate) struct Restored {
    blocks: Range<u32>,
    loaded: Loaded,
}

/// What a sequence would take from here.
struct Wanted {
    blocks: Range<u32>,
    /// Blocks that need not be computed then.
    saved: usize,
    /// Of the blocks, then of the pieces of the state.
    keys: Vec<BlockKey>,
}

impl Wanted {
    /// Of what was read; without all of it a state is worth nothing.
    fn restored(&self, loaded: Loaded, carries: bool) -> Restored {
        let Range { start, end } = self.blocks;
        let read = loaded.blocks.len();
        if carries && read < self.keys.len() {
            return Restored { blocks: 0..0, loaded: Loaded::default() };
        }
        Restored { blocks: start..end.min(start + read as u32), loaded }
    }
}

/// How a state is cut.
#[derive(Clone, Copy)]
struct StateForm {
    bytes: usize,
    piece_bytes: usize,
}

impl StateForm {
    /// Where each piece begins, and its name where the state is at the end of the block `key`.
    fn pieces(self, key: BlockKey) -> impl Iterator<Item = (usize, BlockKey)> {
        (0..self.bytes).step_by(self.piece_bytes).map(move |offset| {
            let place = (offset as u64).to_le_bytes();
            (offset, BlockKey::root([&key.as_bytes()[..], b"state", &place]))
        })
    }

    fn count(self) -> usize {
        self.bytes.div_ceil(self.piece_bytes)
    }
}

/// What is copied out at the end.
#[derive(Clone, Copy)]
enum Leaving {
    Block(u32),
    State { place: u32, offset: usize },
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
        form: &KeptForm,
        block_tokens: u32,
        events: Sender<Event>,
        staging: Option<StagingRing>,
    ) -> Result<Option<Self>, EngineError> {
        let Some(staging) = staging else { return Ok(None) };
        let buffers = Arc::new(StagedBlocks(staging.clone()));
        let KeptForm { block: form, state_bytes } = form;
        let states = state_bytes.map(|bytes| StateForm { bytes, piece_bytes: form.bytes });
        assert!(form.bytes.is_multiple_of(4) || states.is_none(), "a state is cut between floats");
        let carried = state_bytes.map_or(String::new(), |bytes| format!(", states of {bytes}"));
        let layout = format!("{block_tokens} tokens: {}{carried}", form.name);
        let identity = BlockKey::root([model, layout.as_bytes()]);
        Ok(Some(Self {
            tiers: Tiers::open(settings, identity, form.bytes, buffers)?,
            identity,
            block_tokens: block_tokens as usize,
            states,
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
        let cached = scheduler.cached(namespace, before_last);
        let Some(wanted) = self.wanted(&self.keys(namespace, before_last), cached) else {
            return Some(submit);
        };
        let (count, reading) = self.tiers.find(&wanted.keys);
        if !self.pays(count, wanted.saved, reading) {
            return Some(submit);
        }
        let (events, carries) = (self.events.clone(), self.states.is_some());
        let keys = wanted.keys.clone();
        let then = move |loaded| {
            // A closed inbox means the loop has ended.
            let _ = events.send(Event::Restored(submit, wanted.restored(loaded, carries)));
        };
        if let Err(then) = self.tiers.load(keys, then) {
            // Too much is being read: it is computed. The request's place in the inbox is free.
            then(Loaded::default());
        }
        None
    }

    /// What is here of a sequence with these blocks, beyond what is cached.
    fn wanted(&self, keys: &[BlockKey], cached: CachedPrefix) -> Option<Wanted> {
        let CachedPrefix { blocks: usable, in_tree: first, .. } = cached;
        let last = first + self.tiers.find(&keys[first..]).0;
        let end = match self.states {
            None => Some(last),
            Some(states) => (usable + 1..=last).rev().find(|&end| {
                states.pieces(keys[end - 1]).all(|(_, piece)| self.tiers.contains(&piece))
            }),
        };
        let end = end.filter(|&end| end > usable)?;
        let first = first.min(end);
        let pieces = self.states.map(|states| states.pieces(keys[end - 1]).map(|(_, piece)| piece));
        let blocks = keys[first..end].iter().copied();
        let keys = blocks.chain(pieces.into_iter().flatten()).collect();
        Some(Wanted { blocks: first as u32..end as u32, saved: end - usable, keys })
    }

    /// Whether so many copies cost less than computing so many blocks.
    fn pays(&self, copies: usize, saved: usize, reading: Option<Duration>) -> bool {
        let (Some(reading), Some(token_seconds)) = (reading, self.token_seconds.0) else {
            // Not measured yet; this measures it.
            return true;
        };
        let copying = copies as f64 * self.copy_seconds.0.unwrap_or(0.0);
        let computing = (saved * self.block_tokens) as f64 * token_seconds;
        reading.as_secs_f64() + copying < computing
    }

    /// Offers a preempted sequence, before the plan that starts it again, what is in memory of it,
    /// where copying is cheaper than computing. What is on disk only is computed: nobody waits.
    pub(crate) fn take_back(&mut self, scheduler: &mut Scheduler) {
        let Some(returning) = scheduler.returning() else { return };
        let Some((_, before_last)) = returning.tokens.split_last() else { return };
        let cached = scheduler.cached(returning.namespace, before_last);
        let keys = self.keys(returning.namespace, before_last);
        let Some(wanted) = self.wanted(&keys, cached) else { return };
        let loaded = self.tiers.in_memory(&wanted.keys);
        let saved = if self.states.is_some() { wanted.saved } else { loaded.blocks.len() };
        if loaded.blocks.is_empty() || !self.pays(loaded.blocks.len(), saved, Some(Duration::ZERO))
        {
            return;
        }
        let id = returning.sequence;
        let range = self.hold(id, wanted.restored(loaded, self.states.is_some()));
        scheduler.offer_blocks(id, range);
    }

    /// Keeps what was read until its sequence starts; says which blocks of the prompt that is.
    pub(crate) fn hold(&mut self, id: SequenceId, restored: Restored) -> Range<u32> {
        let range = restored.blocks.clone();
        if !restored.loaded.blocks.is_empty() {
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
        // Ends of prompts are evicted first, and are worth nothing without what is before them.
        let too_many = scheduler.evictions().count().saturating_sub(self.staging.buffers_max());
        for evicted in scheduler.evictions().skip(too_many) {
            let Some(key) = self.keys(evicted.namespace, evicted.tokens).pop() else { continue };
            if self.tiers.contains(&key) {
                continue;
            }
            if self.staging.is_used_up() {
                self.tiers.forget_oldest();
            }
            // Without a buffer it is forgotten, and counted by the staging ring.
            if let Some(bytes) = self.staging.take() {
                names.push(key);
                copies.push(BlockCopy::Out { block: evicted.block.0, bytes });
            }
        }
        self.bring_back(scheduler, copies);
        for lost in scheduler.lost_states() {
            self.take_out(lost, &mut names, copies);
        }
        self.outgoing.push_back(names);
    }

    fn bring_back(&mut self, scheduler: &Scheduler, copies: &mut Vec<BlockCopy>) {
        let bytes =
            |held: &Restored, place: usize| HostBytes(Arc::clone(&held.loaded.blocks[place]));
        // Blocks first, for they may be copied beside other steps.
        for admission in scheduler.admitted() {
            let Some(held) = self.restored.get(&admission.sequence) else { continue };
            for place in admission.restored {
                let bytes = bytes(held, (place - held.blocks.start) as usize);
                copies.push(BlockCopy::In { block: admission.blocks[place as usize].0, bytes });
            }
        }
        for admission in scheduler.admitted() {
            let Some(held) = self.restored.remove(&admission.sequence) else { continue };
            let Some(states) = self.states.filter(|_| admission.takes_state) else { continue };
            let position = held.blocks.end * self.block_tokens as u32;
            let first = held.loaded.blocks.len() - states.count();
            for (place, offset) in (0..states.bytes).step_by(states.piece_bytes).enumerate() {
                let (slot, bytes) = (admission.slot.0, bytes(&held, first + place));
                copies.push(BlockCopy::StateIn { slot, position, offset, bytes });
            }
        }
    }

    fn take_out(
        &self,
        lost: PrefixState<'_>,
        names: &mut Vec<BlockKey>,
        copies: &mut Vec<BlockCopy>,
    ) {
        let (Some(states), Some(key)) = (self.states, self.keys(lost.namespace, lost.tokens).pop())
        else {
            return;
        };
        for (offset, piece) in states.pieces(key) {
            if self.tiers.contains(&piece) {
                continue;
            }
            let Some(bytes) = self.staging.take() else { return };
            names.push(piece);
            copies.push(BlockCopy::StateOut { place: lost.state.0, offset, bytes });
        }
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
    pub(crate) fn save(
        mut self,
        scheduler: &Scheduler,
        ring: &mut CommandRing,
        saving: &SaveProgress,
    ) {
        // Whoever waited for them has gone.
        self.restored.clear();
        if !self.tiers.has_disk() {
            return;
        }
        let mut leaving = Vec::new();
        scheduler.pool().each_cached(|cached| {
            let key = self.keys(cached.namespace, cached.tokens).pop();
            leaving.extend(key.map(|key| (key, Leaving::Block(cached.block.0))));
        });
        scheduler.pool().each_state(|kept| {
            let key = self.keys(kept.namespace, kept.tokens).pop();
            let pieces = self.states.zip(key).map(|(states, key)| states.pieces(key));
            let place = kept.state.0;
            let state = |(offset, piece)| (piece, Leaving::State { place, offset });
            leaving.extend(pieces.into_iter().flatten().map(state));
        });
        leaving.retain(|(key, _)| !self.tiers.contains(key));
        let left = saving.expect_blocks(leaving.len() as u64);
        self.tiers.count_down(&left);
        let blocks = left.load(Ordering::Acquire);
        let is_copied = self.copy_out_all(&leaving, ring, saving);
        // Writes what memory has, too.
        drop(self);
        match left.load(Ordering::Acquire) {
            0 => tracing::info!(blocks, "saved the prefix cache"),
            left if !is_copied => {
                tracing::warn!(left, "the device did not give all of the prefix cache to save");
            }
            left => tracing::warn!(left, "not all of the prefix cache is saved"),
        }
    }

    /// Copies from the device to disk; `false` where it gave no more.
    fn copy_out_all(
        &self,
        mut leaving: &[(BlockKey, Leaving)],
        ring: &mut CommandRing,
        saving: &SaveProgress,
    ) -> bool {
        while !leaving.is_empty() {
            let copy_out = |&(_, what): &(BlockKey, Leaving)| {
                let bytes = self.staging.take()?;
                Some(match what {
                    Leaving::Block(block) => BlockCopy::Out { block, bytes },
                    Leaving::State { place, offset } => {
                        BlockCopy::StateOut { place, offset, bytes }
                    }
                })
            };
            let some = leaving.iter().take(SAVED_AT_ONCE);
            let copies: Vec<_> = some.map_while(copy_out).collect();
            if copies.is_empty() {
                if !self.tiers.wait_for_write() {
                    // All buffers are with somebody who does not give them back now.
                    return false;
                }
                continue;
            }
            let (now, later) = leaving.split_at(copies.len());
            ring.submit(Instant::now(), |inputs| {
                inputs.clear(0);
                inputs.copies.extend(copies);
            });
            let Some(completion) = saving.wait_for_device(|| ring.wait()) else {
                let _ = ring.give_up();
                return false;
            };
            let copies = ring.collect(completion, |done| {
                done.result.is_ok().then(|| std::mem::take(&mut done.inputs.copies))
            });
            let Some(Some(copies)) = copies else { return false };
            for (&(key, _), bytes) in now.iter().zip(copied_out(copies)) {
                self.tiers.save(key, bytes);
            }
            leaving = later;
        }
        true
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
        BlockCopy::Out { bytes, .. } | BlockCopy::StateOut { bytes, .. } => {
            Some(Arc::new(bytes) as BlockBytes)
        }
        BlockCopy::In { .. } | BlockCopy::StateIn { .. } => None,
    })
}
