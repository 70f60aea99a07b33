//! Which tokens of which sequences are computed in the next step?
//!
//! A state machine over plain data: no clock, threads, I/O, floats or tensors. The engine feeds it
//! requests ([`Scheduler::add`], [`Scheduler::cancel`]) and results ([`Scheduler::settle`]); it
//! answers with plans ([`Scheduler::plan`]) and events. Same calls, same plans, byte for byte.
//!
//! How a step is filled:
//! 1. sequences that lack one token (running streams) get a row each;
//! 2. waiting sequences are admitted, the most urgent first, while slots and blocks last;
//! 3. prompts are read with what is left, or with what the [`Pace`] allows beside streams: the most
//!    urgent first, tenants alike, of one tenant the shortest first.
//!
//! Plan N+1 may be made before step N is settled: a row then names its token by slot, and if step
//! N ends the sequence, the extra row's sample is dropped when it settles. When the KV pool runs
//! out, the last in rank gives its blocks back and is computed again later (`preemption`).
//!
//! A sequence starts behind its longest cached prefix, and its own blocks can be found by others as
//! soon as the step that filled them settles (`prefixes`). A preempted one finds its own again,
//! unless they were given away.
//!
//! Invariants, each with a test of its name: `plan_pure`, `no_starvation`, `fair_shares`,
//! `queues_bounded`, `depth_bounded`, `step_allocates_nothing`; those of blocks are in `kv-cache`.
//!
//! Reading order: `sequence` (the state of one), `tenants` (who had how much), `queue` (who waits),
//! `budget` (how much), `planning` (before a step), `prompts` (admission and chunks), `prefixes`
//! (what need not be computed), `states` (what is carried on), `proposals` (guesses that a step
//! checks), `preemption` (when blocks run out), `settling` (after a step), `counts`, `workload`
//! (what is to come), `audit`.

#![forbid(unsafe_code)]

mod audit;
mod budget;
mod counts;
mod planning;
mod preemption;
mod prefixes;
mod prompts;
mod proposals;
mod queue;
mod sequence;
mod settling;
mod states;
mod tenants;
mod workload;

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use kv_cache::BlockPool;
pub use kv_cache::{CachedPrefix, PrefixBlock, PrefixState};
use messages::{
    BlockIndex, CacheNamespace, Limits, Priority, ProposalCounts, Refusal, RefusalKind, SequenceId,
    SlotIndex, StateIndex, TokenId,
};

pub use budget::{Pace, host_bytes_max, wait_plans_max};
pub use counts::{Counts, Outlook};
pub use preemption::Returning;
pub use prompts::reading_class;
pub use queue::AGING_LEVELS;
use queue::WaitingQueue;
use sequence::{Place, Sequence, Status};
use tenants::Tenants;
pub use workload::Work;

/// Steps that may be planned and not yet settled: one runs on the device, others wait behind it.
/// Whoever runs them may allow fewer; more would only move a cancellation further away.
pub const STEPS_IN_FLIGHT_MAX: usize = 4;

/// What the scheduler needs to know of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRequest {
    /// Not in use by another sequence.
    pub id: SequenceId,
    pub prompt: Vec<TokenId>,
    /// Tokens to generate at most. `None`: until the context or the KV pool is full.
    pub max_tokens: Option<u32>,
    /// A stop token among the first `min_tokens` generated tokens does not end the sequence.
    pub min_tokens: u32,
    /// The model's end-of-generation tokens (unless ignored) and the request's own.
    pub stop_tokens: Vec<TokenId>,
    pub priority: Priority,
    /// Whose request it is: tenants share alike.
    pub tenant: Arc<str>,
    /// With whom it shares cached prefixes; `None`: it takes none and leaves none.
    pub cache_namespace: Option<Arc<CacheNamespace>>,
    /// Blocks of the prompt, counted from 0, whose bytes the caller has: it copies those of
    /// [`Admission::restored`] in before the step. Empty: none. Where sequences carry a state, the
    /// caller has that at their end as well, and there may be none but that.
    pub restorable: Range<u32>,
}

/// A sequence that got a slot in the last plan: the device must forget what the slot held before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission<'a> {
    pub sequence: SequenceId,
    pub slot: SlotIndex,
    pub prompt: &'a [TokenId],
    /// Not empty when the sequence runs again after a preemption.
    pub generated: &'a [TokenId],
    /// Its blocks so far, in order.
    pub blocks: &'a [BlockIndex],
    /// Places in `blocks` of those to be copied in: they are neither cached nor computed.
    pub restored: Range<u32>,
    /// Whether the state at their end is to be copied into the slot.
    pub takes_state: bool,
}

/// The state of all sequences of one loaded model.
#[derive(Clone, Debug)]
pub struct Scheduler {
    limits: Limits,
    pool: BlockPool,
    waiting: WaitingQueue,
    /// In order of arrival; at most `limits.sequences_max`.
    running: Vec<Sequence>,
    /// Last in, first out.
    free_slots: Vec<SlotIndex>,
    /// Rows of the unsettled steps: step `s` is at `s % STEPS_IN_FLIGHT_MAX`.
    in_flight: [Vec<RowInFlight>; STEPS_IN_FLIGHT_MAX],
    planned_count: u64,
    settled_count: u64,
    arrival_count: u64,
    /// Arrivals admitted by the last plan.
    admitted: Vec<u64>,
    /// Nobody is admitted while so many run.
    running_max: u32,
    /// Whether a prompt is read in one step, or not at all.
    reads_whole: bool,
    /// Whether sequences carry a state from token to token.
    carries: bool,
    tenants: Tenants,
    /// Rank and arrival of the running sequences, as of the last plan, the first in rank first.
    ranks: Vec<((Reverse<u32>, u64), u64)>,
    /// Tokens that the plan being made gives to each running sequence's prompt.
    grants: Vec<u32>,
    finished_total: u64,
    cancelled_total: u64,
    preemptions_total: u64,
    returned_blocks_total: u64,
    prefix_queried_tokens_total: u64,
    prefix_hit_tokens_total: u64,
    proposals_total: ProposalCounts,
}

/// A row the device has not finished.
#[derive(Clone, Copy, Debug)]
struct RowInFlight {
    arrival: u64,
    samples: bool,
    /// Positions of its sequence that are computed once it settles.
    end: u32,
    proposed: u32,
    /// Where the state at its end is kept.
    state: Option<StateIndex>,
}

impl Scheduler {
    /// An empty scheduler; its queues and tables are allocated here, from `limits`.
    ///
    /// # Panics
    /// When a limit is 0, or a step has no room for a stream and a prompt at once.
    pub fn new(limits: Limits) -> Self {
        assert!(limits.context_tokens_max >= 2, "a context holds a prompt and an answer");
        assert!(limits.sequences_max > 0, "at least one sequence runs");
        assert!(limits.step_tokens_max >= 2, "a step has room for a stream and a prompt");
        let rows = limits.sequences_max as usize;
        Self {
            pool: BlockPool::new(limits.block_count, limits.block_tokens),
            waiting: WaitingQueue::new(&limits),
            running: Vec::with_capacity(rows),
            // Reversed, so that slot 0 is taken first.
            free_slots: (0..limits.sequences_max).rev().map(SlotIndex).collect(),
            in_flight: std::array::from_fn(|_| Vec::with_capacity(rows)),
            planned_count: 0,
            settled_count: 0,
            arrival_count: 0,
            admitted: Vec::with_capacity(rows),
            running_max: limits.sequences_max,
            reads_whole: false,
            carries: false,
            tenants: Tenants::default(),
            ranks: Vec::with_capacity(rows),
            grants: Vec::with_capacity(rows),
            finished_total: 0,
            cancelled_total: 0,
            preemptions_total: 0,
            returned_blocks_total: 0,
            prefix_queried_tokens_total: 0,
            prefix_hit_tokens_total: 0,
            proposals_total: ProposalCounts::default(),
            limits,
        }
    }

    /// Puts a request into the waiting queue.
    ///
    /// # Errors
    /// `Invalid` when the request can never run, `Busy` when too many wait already.
    ///
    /// # Panics
    /// When `request.id` is in use.
    pub fn add(&mut self, request: SequenceRequest) -> Result<(), Refusal> {
        let generated_max = self.answer_tokens_max(request.prompt.len(), request.max_tokens)?;
        if self.waiting.is_full() {
            let max = self.limits.waiting_max;
            let text = format!(
                "{max} requests are waiting already, the most there may be; \
                 try again later"
            );
            return Err(Refusal::new(RefusalKind::Busy, text));
        }
        let in_use = self.running.iter().any(|sequence| sequence.id == request.id);
        assert!(!in_use && !self.waiting.contains(request.id), "{:?} is in use", request.id);
        let blocks = self.pool.blocks_for(request.prompt.len() as u32 + generated_max);
        self.arrival_count += 1;
        let account = self.tenants.enter(&request.tenant);
        let (arrival, waiting_since) = (self.arrival_count, self.planned_count);
        let place = Place { arrival, account, waiting_since };
        let unread = self.unread_of(&request.prompt, request.cache_namespace.as_deref());
        let here = request.prompt.len() as u32 - unread;
        let Range { start, end } = request.restorable;
        let cached = match self.carries {
            true => here.max(end.saturating_mul(self.limits.block_tokens)),
            false => here.saturating_add(end.saturating_sub(start) * self.limits.block_tokens),
        };
        let mut sequence = Sequence::new(request, place, generated_max, blocks);
        sequence.cached_before = cached.min(sequence.prompt_count - 1);
        sequence.proposal.reserve_exact(self.limits.proposed_tokens_max as usize);
        self.waiting.insert(sequence);
        Ok(())
    }

    /// A waiting request grows more urgent by one priority with every so many plans from now on.
    pub fn set_aging(&mut self, plans: u32) {
        self.waiting.set_aging(plans);
    }

    /// From the next plan on nobody is admitted while `count` sequences run. Those that run stay.
    ///
    /// # Panics
    /// When `count` is 0: then nobody would ever run.
    pub fn limit_running(&mut self, count: u32) {
        assert!(count > 0, "no_starvation: at least one sequence may run");
        self.running_max = count;
    }

    /// How many tokens an answer may have: what was asked for, or what there is room for.
    ///
    /// # Errors
    /// `Invalid` when the request can never run.
    pub fn answer_tokens_max(
        &self,
        prompt_tokens: usize,
        max_tokens: Option<u32>,
    ) -> Result<u32, Refusal> {
        let prompt = prompt_tokens as u64;
        let context = u64::from(self.limits.context_tokens_max);
        let pool = self.limits.pool_tokens();
        let asked = max_tokens.map(u64::from);
        if prompt == 0 {
            return Err(Refusal::invalid("prompt", "the prompt is empty, send at least one token"));
        }
        if asked == Some(0) {
            return Err(Refusal::invalid("max_tokens", "max_tokens must be at least 1"));
        }
        if prompt >= context {
            return Err(Refusal::too_long("prompt", prompt, context));
        }
        let needed = (prompt + asked.unwrap_or(1)).min(context);
        if needed > pool {
            let text = format!(
                "the request needs {needed} tokens of KV cache ({prompt} of prompt, \
                 {} of answer), all of it holds {pool}; ask for fewer",
                needed - prompt
            );
            let field = if prompt + 1 > pool { "prompt" } else { "max_tokens" };
            return Err(Refusal::invalid(field, text));
        }
        let room = context.min(pool) - prompt;
        Ok(asked.map_or(room, |asked| asked.min(room)) as u32)
    }

    /// Forgets a sequence: no event of it follows. Its blocks and slot are free once no unfinished
    /// step uses them. An id that is not here has ended by itself, which is no error.
    pub fn cancel(&mut self, id: SequenceId) {
        if let Some(sequence) = self.waiting.remove(id) {
            self.tenants.leave(sequence.account);
            self.cancelled_total += 1;
            return;
        }
        let Some(index) = self.running.iter().position(|sequence| sequence.id == id) else {
            return;
        };
        if self.running[index].status == Status::Ended {
            return;
        }
        self.cancelled_total += 1;
        self.end(index);
        if self.running[index].rows_in_flight == 0 {
            self.remove(index);
        }
    }

    /// Raises a sequence to `priority`, for somebody more urgent waits for it, too.
    pub fn raise(&mut self, id: SequenceId, priority: Priority) {
        let running = self.running.iter_mut().find(|sequence| sequence.id == id);
        if let Some(sequence) = running.or_else(|| self.waiting.get_mut(id)) {
            sequence.priority = sequence.priority.max(priority);
        }
    }

    /// The sequences that got a slot in the last plan; each has a row in it. To be read before that
    /// plan's step settles.
    pub fn admitted(&self) -> impl Iterator<Item = Admission<'_>> {
        self.admitted.iter().map(|&arrival| {
            let sequence = &self.running[self.position(arrival)];
            let (prompt, generated) = sequence.tokens.split_at(sequence.prompt_count as usize);
            Admission {
                sequence: sequence.id,
                slot: sequence.slot(),
                prompt,
                generated,
                blocks: sequence.table.blocks(),
                restored: sequence.restored.clone(),
                takes_state: sequence.takes_state,
            }
        })
    }

    /// From now on every prompt is read in one step: for models whose tokens see the whole of it.
    /// A step must have room for the longest.
    ///
    /// # Panics
    /// When it has not.
    pub fn read_whole(&mut self) {
        let Limits { step_tokens_max, context_tokens_max, .. } = self.limits;
        assert!(step_tokens_max + 1 >= context_tokens_max, "a step holds the longest prompt");
        self.reads_whole = true;
    }

    /// From now on [`Scheduler::evictions`] tells what it evicts.
    pub fn note_evictions(&mut self) {
        self.pool.note_evictions();
    }

    /// Prefixes that the last plan evicted. Until its step runs, their blocks hold them.
    pub fn evictions(&self) -> impl Iterator<Item = PrefixBlock<'_>> {
        self.pool.evictions()
    }

    /// The states that the last plan gave up; each is where it was until that plan's own saves.
    pub fn lost_states(&self) -> impl Iterator<Item = PrefixState<'_>> {
        self.pool.lost_states()
    }

    /// Steps planned and not yet settled.
    pub fn steps_in_flight(&self) -> usize {
        (self.planned_count - self.settled_count) as usize
    }

    /// Whether no sequence is here and no step is in flight.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.len() == 0 && self.steps_in_flight() == 0
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The KV blocks, for counting and auditing.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Place in `running` of a sequence, if it is there.
    fn place(&self, arrival: u64) -> Option<usize> {
        self.running.binary_search_by_key(&arrival, |sequence| sequence.arrival).ok()
    }

    /// Place in `running` of a sequence that is there.
    fn position(&self, arrival: u64) -> usize {
        let place = self.place(arrival);
        place.expect("invariant: a sequence stays in `running` while a step in flight uses it")
    }

    /// Takes the blocks of a running sequence that gets no more rows.
    fn end(&mut self, index: usize) {
        let sequence = &mut self.running[index];
        assert!(sequence.status != Status::Ended, "{:?} ends twice", sequence.id);
        sequence.status = Status::Ended;
        self.pool.release(&mut sequence.table, sequence.last_step);
    }

    /// Lets an ended sequence go that no step in flight uses.
    fn remove(&mut self, index: usize) {
        let sequence = self.retire(index);
        self.tenants.leave(sequence.account);
    }

    /// Takes a sequence that no step in flight uses out of `running`, and its slot back.
    fn retire(&mut self, index: usize) -> Sequence {
        let mut sequence = self.running.remove(index);
        assert_eq!(sequence.rows_in_flight, 0, "a step in flight uses {:?}", sequence.id);
        assert!(sequence.table.is_empty(), "{:?} retires with blocks", sequence.id);
        self.free_slots.push(sequence.slot.take().expect("invariant: it ran in a slot"));
        sequence
    }
}
