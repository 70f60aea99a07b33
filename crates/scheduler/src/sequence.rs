//! How far is one sequence?

use std::ops::Range;
use std::sync::Arc;

use kv_cache::BlockTable;
use messages::{
    CacheNamespace, CachedPrompt, PlanRow, Priority, SequenceId, SlotIndex, StateIndex, StepIndex,
    TokenId, TokenSource,
};

use crate::SequenceRequest;
use crate::tenants::AccountIndex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Waits, or gets rows.
    Live,
    /// Gets no rows; waits again once no step in flight uses it.
    Preempting,
    /// Gets no rows and has no blocks; leaves once no step in flight uses it.
    Ended,
}

/// Where a new sequence stands among the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) arrival: u64,
    pub(crate) account: AccountIndex,
    pub(crate) waiting_since: u64,
}

/// One generation, from its arrival to its last token.
///
/// Three counters tell all: `tokens` are known to the host, `samples_in_flight` more are on their
/// way, and the first `computed` positions of them are in the KV cache or planned to be.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// Numbers sequences in the order they were added; a preempted one keeps its number.
    pub(crate) arrival: u64,
    /// Prompt and settled answer. Allocated for the longest answer when the sequence is added.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_count: u32,
    pub(crate) generated_max: u32,
    pub(crate) min_tokens: u32,
    pub(crate) stop_tokens: Vec<TokenId>,
    pub(crate) cache_namespace: Option<Arc<CacheNamespace>>,
    /// What it found of its prompt in the cache and never computed.
    pub(crate) cached: CachedPrompt,
    /// Prompt tokens that were in the cache, or to be copied in, when it came.
    pub(crate) cached_before: u32,
    pub(crate) preemptions: u32,
    pub(crate) priority: Priority,
    pub(crate) account: AccountIndex,
    /// What its tenant had and claimed when it was first admitted.
    pub(crate) start_tag: Option<u64>,
    /// Plans made before it began to wait.
    pub(crate) waiting_since: u64,
    pub(crate) restorable: Range<u32>,
    /// Blocks that were copied in when it was last admitted.
    pub(crate) restored: Range<u32>,
    /// Whether it was last admitted with a state that is copied in.
    pub(crate) takes_state: bool,
    /// The state that its first row starts from, until that is planned.
    pub(crate) state: Option<StateIndex>,
    /// Where its state is kept; 0: nowhere.
    pub(crate) borders: [u32; 2],
    pub(crate) status: Status,
    /// `Some` while running.
    pub(crate) slot: Option<SlotIndex>,
    pub(crate) table: BlockTable,
    pub(crate) computed: u32,
    pub(crate) rows_in_flight: u32,
    pub(crate) samples_in_flight: u32,
    /// Guesses at its next tokens: offered for the next row, or being checked by the row in flight.
    pub(crate) proposal: Vec<TokenId>,
    pub(crate) proposed_in_flight: u32,
    /// The last step that names this sequence's blocks.
    pub(crate) last_step: Option<StepIndex>,
    /// Plans since its last row in which it could have had one.
    pub(crate) plans_waited: u32,
}

impl Sequence {
    pub(crate) fn new(
        request: SequenceRequest,
        Place { arrival, account, waiting_since }: Place,
        generated_max: u32,
        blocks: usize,
    ) -> Self {
        let mut tokens = request.prompt;
        let prompt_count = tokens.len() as u32;
        tokens.reserve_exact(generated_max as usize);
        Self {
            id: request.id,
            arrival,
            tokens,
            prompt_count,
            generated_max,
            min_tokens: request.min_tokens,
            stop_tokens: request.stop_tokens,
            cache_namespace: request.cache_namespace,
            cached: CachedPrompt::default(),
            cached_before: 0,
            preemptions: 0,
            priority: request.priority,
            account,
            start_tag: None,
            waiting_since,
            restorable: request.restorable,
            restored: 0..0,
            takes_state: false,
            state: None,
            borders: [0; 2],
            status: Status::Live,
            slot: None,
            table: BlockTable::with_capacity(blocks),
            computed: 0,
            rows_in_flight: 0,
            samples_in_flight: 0,
            proposal: Vec::new(),
            proposed_in_flight: 0,
            last_step: None,
            plans_waited: 0,
        }
    }

    pub(crate) fn slot(&self) -> SlotIndex {
        self.slot.expect("invariant: a running sequence has a slot")
    }

    /// Tokens known to the host.
    pub(crate) fn known(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Answer tokens known to the host.
    pub(crate) fn generated(&self) -> u32 {
        self.known() - self.prompt_count
    }

    /// Positions that can be planned now: 1 for a running stream, more while a prompt is read, 0
    /// when nothing is to come or guesses are being checked.
    pub(crate) fn remaining(&self) -> u32 {
        if self.is_leaving() || self.proposed_in_flight > 0 {
            return 0;
        }
        self.known() + self.samples_in_flight - self.computed
    }

    /// Whether its blocks come back as soon as the steps in flight settle.
    pub(crate) fn is_leaving(&self) -> bool {
        let sampled = self.generated() + self.samples_in_flight;
        self.status != Status::Live || sampled >= self.generated_max
    }

    /// Whether it goes on token by token: its prompt is read, and it has not said its last token.
    pub(crate) fn is_stream(&self) -> bool {
        !self.is_leaving() && self.remaining() <= 1
    }

    /// Whether its next row may check guesses at what comes after it.
    pub(crate) fn takes_proposals(&self) -> bool {
        self.samples_in_flight == 0 && self.remaining() == 1
    }

    /// The next `length` positions and the first `proposed` guesses as a row of `step`; samples if
    /// nothing remains after it.
    pub(crate) fn next_row(&mut self, step: StepIndex, length: u32, proposed: u32) -> PlanRow {
        let remaining = self.remaining();
        assert!(0 < length && length <= remaining, "{length} positions of {remaining}");
        assert!(proposed == 0 || self.takes_proposals(), "guesses follow the last known token");
        let samples = length == remaining;
        let row = PlanRow {
            sequence: self.id,
            slot: self.slot(),
            start: self.computed,
            length: length + proposed,
            sample_index: samples.then_some(self.generated() + self.samples_in_flight),
            proposed,
        };
        self.computed += length + proposed;
        self.proposal.truncate(proposed as usize);
        self.proposed_in_flight = proposed;
        self.rows_in_flight += 1;
        self.samples_in_flight += u32::from(samples);
        self.last_step = Some(step);
        self.plans_waited = 0;
        row
    }

    /// Where the device finds the token at `position`: among those known, then the guesses being
    /// checked, and else in its own slot.
    pub(crate) fn source(&self, position: u32) -> TokenSource {
        let mut tokens = self.tokens.iter().chain(&self.proposal);
        match tokens.nth(position as usize) {
            Some(&token) => TokenSource::Known(token),
            None => TokenSource::Slot(self.slot()),
        }
    }
}
