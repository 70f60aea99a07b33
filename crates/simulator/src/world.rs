//! What happens at each turn, and what must hold after it?

use std::collections::VecDeque;
use std::sync::Arc;

use messages::{
    BlockIndex, Limits, ProposalCounts, RefusalKind, SequenceId, StateMove, StepIndex, StepPlan,
    StepResult, TokenEvent,
};
use scheduler::{Pace, STEPS_IN_FLIGHT_MAX, Scheduler};

use crate::client::{Client, Manners, State, Texts};
use crate::fake_device::{Copied, FakeDevice, SlotReset, Submission};
use crate::random::{Random, mix};
use crate::tier::Tier;

/// What a world came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Hash of every plan and event in order: the same for the same seed.
    pub trace: u64,
    pub steps: u64,
    pub tokens: u64,
    pub finished: u64,
    pub cancelled: u64,
    pub preemptions: u64,
    pub expired: u64,
    /// Sequences ended by failed steps.
    pub failed: u64,
    /// Rows that were left out because a step before had failed.
    pub left_out: u64,
    /// Steps in which a pace held prompts back.
    pub paced: u64,
    /// Blocks of preempted sequences that came back instead of being computed again.
    pub returned: u64,
    /// Prompt tokens that were not computed because another sequence had.
    pub cached_tokens: u64,
    /// Those of sequences that carry a state.
    pub carried_tokens: u64,
    pub evictions: u64,
    /// Blocks that came back instead of being computed again.
    pub restored: u64,
    /// States that came back so.
    pub restored_states: u64,
    pub proposals: ProposalCounts,
    pub refused_invalid: u64,
    pub refused_busy: u64,
    /// Most steps that were in flight at once.
    pub in_flight_max: usize,
}

/// How a world behaves, in percent of turns or of choices.
#[derive(Clone, Copy, Debug)]
struct Habits {
    arrival: u32,
    cancel: u32,
    /// The engine plans when it can.
    plan: u32,
    /// A sequence is guessed at before a plan.
    guess: u32,
    /// A guess is wrong.
    guess_wrong: u32,
    /// Turns a step takes at most beyond its own.
    delay_max: u32,
    /// A plan has a pace.
    pace: u32,
    /// A step fails, or a row of it.
    fault: u32,
    /// A request has a deadline.
    deadline: u32,
    /// A client reads what it was told.
    read: u32,
}

pub(crate) struct World {
    random: Random,
    limits: Limits,
    habits: Habits,
    texts: Texts,
    scheduler: Scheduler,
    device: FakeDevice,
    carries: bool,
    /// `None`: what the device gives up is lost.
    tier: Option<Tier>,
    /// Steps in flight, oldest first.
    submissions: VecDeque<Submission>,
    /// Every accepted request; its id is its place.
    clients: Vec<Client>,
    events: Vec<TokenEvent>,
    turn: u64,
    outcome: Outcome,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let limits = random_limits(&mut random);
        let habits = Habits {
            arrival: random.between(2, 60),
            cancel: if random.chance(50) { random.between(1, 20) } else { 0 },
            plan: random.between(40, 100),
            guess: if random.chance(70) { random.between(1, 100) } else { 0 },
            guess_wrong: random.between(0, 60),
            delay_max: random.between(0, 2),
            pace: if random.chance(60) { random.between(1, 100) } else { 0 },
            fault: if random.chance(20) { random.between(1, 5) } else { 0 },
            deadline: if random.chance(40) { random.between(1, 40) } else { 0 },
            read: random.between(1, 100),
        };
        let mut scheduler = Scheduler::new(limits);
        let tier = random.chance(50).then(Tier::default);
        let mut device = FakeDevice::new(&limits);
        // Sequences that carry a state, and the places in which states are kept.
        let carries = random.chance(30);
        if carries {
            let count = random.between(0, 6);
            scheduler.keep_states(count);
            device.keep_states(count);
        }
        let tier = tier.map(|tier| tier.of_carriers(carries));
        if tier.is_some() {
            scheduler.note_evictions();
        }
        Self {
            texts: Texts::new(&mut random, &limits),
            scheduler,
            device,
            carries,
            tier,
            submissions: VecDeque::new(),
            clients: Vec::new(),
            events: Vec::new(),
            turn: 0,
            outcome: Outcome::default(),
            random,
            limits,
            habits,
        }
    }

    pub(crate) fn run(mut self, turns: u32) -> Outcome {
        for _ in 0..turns {
            if self.random.chance(self.habits.arrival) {
                self.arrive();
            }
            if self.random.chance(self.habits.cancel) {
                self.cancel();
            }
            self.turn();
        }
        // Nothing more arrives: all that is here must come to its end. Each sequence needs at
        // most a step a token, each preemption computes it again, each step takes a few turns.
        let mut left = 2_000_000_u32;
        while !self.scheduler.is_idle() {
            self.turn();
            left -= 1;
            assert!(left > 0, "no_starvation: the world does not come to rest");
        }
        self.check_rest();
        let counts = self.scheduler.counts();
        self.outcome.cached_tokens = counts.prefix_hit_tokens_total;
        self.outcome.evictions = counts.prefixes.evicted_blocks_total;
        self.outcome.finished = counts.finished_total;
        self.outcome.cancelled = counts.cancelled_total;
        self.outcome.preemptions = counts.preemptions_total;
        self.outcome.returned = counts.returned_blocks_total;
        self.outcome.proposals = counts.proposals_total;
        if self.carries {
            self.outcome.carried_tokens = counts.prefix_hit_tokens_total;
        }
        self.outcome
    }

    fn arrive(&mut self) {
        let id = SequenceId(self.clients.len() as u64);
        let mut request = self.texts.request(&mut self.random, id, &self.limits);
        if let Some(tier) = &mut self.tier {
            request.restorable = tier.restorable(&self.scheduler, &request);
        }
        let waiting = self.scheduler.counts().waiting;
        match self.scheduler.add(request.clone()) {
            Ok(()) => {
                assert!(waiting < self.limits.waiting_max as usize, "queues_bounded");
                let in_time = u64::from(self.random.between(1, 120));
                let deadline = self.random.chance(self.habits.deadline);
                let manners = Manners {
                    reads: self.habits.read,
                    deadline: deadline.then_some(self.turn + in_time),
                    since: self.outcome.steps,
                };
                self.clients.push(Client::new(request, &self.limits, manners));
            }
            Err(refusal) if refusal.kind == RefusalKind::Busy => {
                assert!(waiting >= self.limits.waiting_max as usize, "busy without a queue");
                self.outcome.refused_busy += 1;
            }
            Err(refusal) => {
                let is_theirs = matches!(refusal.kind, RefusalKind::Invalid | RefusalKind::TooLong);
                assert!(is_theirs, "{refusal}");
                self.outcome.refused_invalid += 1;
            }
        }
    }

    fn cancel(&mut self) {
        if self.clients.is_empty() {
            return;
        }
        // Late ones rather than long finished ones; ended ones too, which must change nothing.
        let count = self.clients.len() as u32;
        let index = self.random.between(count.saturating_sub(12), count - 1) as usize;
        let client = &mut self.clients[index];
        if client.is_open() {
            client.state = State::Cancelled;
        }
        self.scheduler.cancel(client.request.id);
    }

    /// Gives up what is late.
    fn expire(&mut self) {
        for client in &mut self.clients {
            let is_late = client.deadline.is_some_and(|deadline| deadline <= self.turn);
            if client.is_open() && is_late {
                client.state = State::Expired;
                self.outcome.expired += 1;
                self.scheduler.cancel(client.request.id);
            }
        }
    }

    fn turn(&mut self) {
        self.turn += 1;
        self.expire();
        for client in &mut self.clients {
            client.read(&mut self.random);
        }
        while self.submissions.len() < STEPS_IN_FLIGHT_MAX && self.random.chance(self.habits.plan) {
            if !self.plan() {
                break;
            }
        }
        self.outcome.in_flight_max = self.outcome.in_flight_max.max(self.submissions.len());
        while self.submissions.front().is_some_and(|front| front.due <= self.turn) {
            self.settle();
        }
    }

    /// Plans and submits a step if there is something to do.
    fn plan(&mut self) -> bool {
        self.propose();
        self.offer_kept();
        let paced = self.random.chance(self.habits.pace);
        let prompt_tokens_max = if paced { self.random.between(0, 8) } else { u32::MAX };
        let pace = Pace { prompt_tokens_max, alone_tokens_max: prompt_tokens_max };
        let mut plan = StepPlan::empty(StepIndex(0));
        let planned = self.scheduler.plan(pace, &mut plan);
        self.audit();
        if !planned {
            // Liveness: with nothing in flight, whoever is here can go on.
            let waits = !self.submissions.is_empty() || self.scheduler.is_idle();
            assert!(waits, "no_starvation: somebody is here and nothing is planned");
            return false;
        }
        plan.audit(self.limits.block_tokens);
        self.check_writers(&plan);
        self.check_ends(&plan);
        self.check_pace(&plan, pace);
        self.check_admissions();
        self.hash_plan(&plan);
        let resets = self.resets();
        for reset in &resets {
            let at_once = plan.rows.iter().any(|row| row.slot == reset.slot);
            assert!(at_once, "an admitted sequence has a row in the same plan");
        }
        for admission in self.scheduler.admitted() {
            self.outcome.restored += admission.restored.len() as u64;
            self.outcome.restored_states += u64::from(admission.takes_state);
        }
        let copies = self.tier.as_mut().map(|tier| tier.copies(&self.scheduler));
        let (copies, prefixes) = copies.unwrap_or_default();
        let due = self.turn + u64::from(self.random.between(0, self.habits.delay_max));
        self.outcome.steps += 1;
        self.submissions.push_back(Submission { copies, prefixes, plan, resets, due });
        self.check_blocks_in_use();
        true
    }

    /// Offers what the tier has of a preempted sequence, before it starts again.
    fn offer_kept(&mut self) {
        let Some(tier) = &mut self.tier else { return };
        let Some(returning) = self.scheduler.returning() else { return };
        let id = returning.sequence;
        let range = tier.offer(&self.scheduler, id, returning.namespace, returning.tokens);
        self.scheduler.offer_blocks(id, range);
    }

    /// Guesses at what some sequences say next, also at some that cannot take guesses now.
    fn propose(&mut self) {
        let open = self.scheduler.streams().filter(|stream| stream.is_open);
        let open: Vec<SequenceId> = open.map(|stream| stream.id).collect();
        let late = self.clients.len().saturating_sub(4)..self.clients.len();
        for id in open.into_iter().chain(late.map(|index| SequenceId(index as u64))) {
            if self.random.chance(self.habits.guess) {
                let client = &self.clients[id.0 as usize];
                let guesses = client.guesses(&mut self.random, self.habits.guess_wrong);
                self.scheduler.propose(id, &guesses);
            }
        }
    }

    /// What the engine tells the device about newly admitted sequences.
    fn resets(&self) -> Vec<SlotReset> {
        let mut resets = Vec::new();
        for admission in self.scheduler.admitted() {
            let client = &self.clients[admission.sequence.0 as usize];
            assert_eq!(admission.prompt, client.request.prompt, "the prompt as it was asked");
            assert_eq!(admission.generated, client.told(), "the answer as it was told");
            resets.push(SlotReset {
                slot: admission.slot,
                sequence: admission.sequence,
                generated_count: admission.generated.len() as u32,
                min_tokens: client.request.min_tokens,
                stop_tokens: client.request.stop_tokens.clone(),
            });
        }
        resets
    }

    /// The device finishes its oldest step.
    fn settle(&mut self) {
        let submission = self.submissions.pop_front().expect("the caller saw it");
        self.check_left_out(&submission);
        let result = self.run_or_fail(submission);
        self.events.clear();
        self.scheduler.settle(&result, &mut self.events);
        for event in &self.events {
            self.clients[event.sequence.0 as usize].tell(event);
            self.outcome.tokens += 1;
            let id_and_token = event.sequence.0 << 32 | u64::from(event.token);
            self.outcome.trace = mix(self.outcome.trace, id_and_token);
        }
        self.audit();
        self.check_blocks_in_use();
    }

    fn run_or_fail(&mut self, submission: Submission) -> StepResult {
        let has_failed = self.random.chance(self.habits.fault);
        if has_failed && self.random.chance(50) {
            // Before it began: its copies, settings and states are lost with it.
            self.give_up(&submission.plan, submission.plan.rows.len());
            return self.device.fail(&submission.plan);
        }
        let mut copied = Copied::default();
        let result = self.device.execute(&submission, &mut copied);
        if let Some(tier) = &mut self.tier {
            tier.keep(submission.prefixes, copied);
        }
        if has_failed {
            // All of it, or its first row could not be sampled.
            let rows = submission.plan.rows.len();
            let count = if self.random.chance(50) { rows } else { 1 };
            self.device.lose(&submission.plan, count);
            self.give_up(&submission.plan, count);
        }
        result
    }

    /// The sequences of the first `count` rows end before their step settles.
    fn give_up(&mut self, plan: &StepPlan, count: usize) {
        for row in &plan.rows[..count] {
            let client = &mut self.clients[row.sequence.0 as usize];
            if client.is_open() {
                client.state = State::Failed;
                self.outcome.failed += 1;
            }
            self.scheduler.cancel(row.sequence);
        }
    }

    /// `failed_slots_rest`: what is left out of a step is of sequences that have ended.
    fn check_left_out(&mut self, submission: &Submission) {
        for row in &submission.plan.rows {
            if self.device.leaves_out(submission, row) {
                let client = &self.clients[row.sequence.0 as usize];
                assert!(!client.is_open(), "failed_slots_rest: {:?} goes on", row.sequence);
                self.outcome.left_out += 1;
            }
        }
    }

    fn audit(&self) {
        self.scheduler.audit();
        let in_flight = self.scheduler.steps_in_flight();
        assert!(in_flight <= STEPS_IN_FLIGHT_MAX, "depth_bounded: {in_flight} steps");
    }

    /// `kv_single_writer` as the device sees it: a block written by one row is in no other table.
    fn check_writers(&self, plan: &StepPlan) {
        let mut writers: Vec<Option<usize>> = vec![None; self.limits.block_count as usize];
        for (index, row) in plan.rows.iter().enumerate() {
            let first = (row.start / self.limits.block_tokens) as usize;
            for block in &plan.block_table(index)[first..] {
                let writer = writers[block.0 as usize].replace(index);
                assert_eq!(writer, None, "kv_single_writer: {block:?} has two writers");
            }
        }
        for index in 0..plan.rows.len() {
            for block in plan.block_table(index) {
                let writer = writers[block.0 as usize].unwrap_or(index);
                assert_eq!(writer, index, "kv_single_writer: {block:?} is read while written");
            }
        }
    }

    /// Nothing is computed beyond the last token that may be asked for.
    fn check_ends(&self, plan: &StepPlan) {
        for row in &plan.rows {
            let request = &self.clients[row.sequence.0 as usize].request;
            let answer_max = request.max_tokens.unwrap_or(u32::MAX);
            let beyond = row.sample_index.is_some_and(|index| index + row.proposed >= answer_max);
            assert!(!beyond, "{:?} samples beyond max_tokens", row.sequence);
            let end = row.start + row.length;
            assert!(end < self.limits.context_tokens_max, "{:?} leaves no room", row.sequence);
        }
    }

    /// Beside streams, prompts keep to the pace; and who has ended gets no rows.
    fn check_pace(&mut self, plan: &StepPlan, pace: Pace) {
        let (mut streams, mut read) = (0, 0);
        for row in &plan.rows {
            let client = &self.clients[row.sequence.0 as usize];
            assert!(client.is_open(), "{:?} has ended and has a row", row.sequence);
            let admitted = self.scheduler.admitted().any(|other| other.sequence == row.sequence);
            if row.sample_index.is_some() && row.length == 1 + row.proposed && !admitted {
                streams += 1;
            } else {
                read += row.length;
            }
        }
        if streams > 0 {
            assert!(read <= pace.prompt_tokens_max, "{read} tokens of prompts: {pace:?}");
            self.outcome.paced += u64::from(read >= pace.prompt_tokens_max);
        }
    }

    /// Who has aged beyond all priorities is overtaken by nobody of its tenant, and by each other
    /// tenant once, until its own tenant has its turn.
    fn check_admissions(&mut self) {
        let plan = self.outcome.steps;
        let overdue = 3 * u64::from(self.limits.aging_plans);
        for id in self.scheduler.admitted().map(|other| other.sequence.0 as usize) {
            self.clients[id].was_admitted = true;
            let tenant = Arc::clone(&self.clients[id].request.tenant);
            for (other, client) in self.clients.iter_mut().enumerate() {
                let is_overdue = plan - client.since >= overdue;
                if !client.is_open() || client.was_admitted || !is_overdue {
                    continue;
                }
                let waiting = client.request.id;
                if tenant == client.request.tenant {
                    assert!(id < other, "no_starvation: {waiting:?} is overtaken by its tenant's");
                    client.turns.clear();
                } else {
                    let again = client.turns.contains(&tenant);
                    assert!(!again, "no_starvation: {tenant:?} has two turns before {waiting:?}");
                    client.turns.push(Arc::clone(&tenant));
                }
            }
        }
    }

    /// `release_after_last_use` as the device sees it.
    fn check_blocks_in_use(&self) {
        let named = self.submissions.iter().flat_map(|submission| &submission.plan.blocks);
        for &block in named {
            let is_free = self.scheduler.pool().is_available(block);
            assert!(!is_free, "release_after_last_use: {block:?} is free and in a step in flight");
        }
    }

    fn hash_plan(&mut self, plan: &StepPlan) {
        let mut trace = mix(self.outcome.trace, plan.step.0);
        for row in &plan.rows {
            trace = mix(trace, row.sequence.0 << 32 | u64::from(row.slot.0));
            trace = mix(trace, u64::from(row.start) << 32 | u64::from(row.length));
            trace = mix(trace, u64::from(row.proposed));
        }
        for &BlockIndex(block) in &plan.blocks {
            trace = mix(trace, u64::from(block));
        }
        for copy in &plan.states {
            let (is_load, slot, state) = match *copy {
                StateMove::Load { from, to } => (1, to, from),
                StateMove::Save { from, to } => (0, from, to),
            };
            trace = mix(trace, is_load << 63 | u64::from(slot.0) << 32 | u64::from(state.0));
        }
        self.outcome.trace = trace;
    }

    /// All clients have their answers, and nothing is held any more.
    fn check_rest(&mut self) {
        for client in &mut self.clients {
            assert!(!client.is_open(), "{:?} was never finished", client.request.id);
            client.read_all();
        }
        let counts = self.scheduler.counts();
        assert_eq!(
            counts.blocks_free + counts.blocks_cached,
            self.limits.block_count as usize,
            "kv_conserved: a leak"
        );
        let clients = self.clients.len() as u64;
        assert_eq!(counts.finished_total + counts.cancelled_total, clients, "each ends once");
        let is_finished = |client: &&Client| client.state == State::Finished;
        let cancelled = clients - self.clients.iter().filter(is_finished).count() as u64;
        assert_eq!(counts.cancelled_total, cancelled, "each cancellation is counted");
        let mut proposals = ProposalCounts::default();
        self.clients.iter().for_each(|client| proposals += client.proposals);
        assert_eq!(counts.proposals_total, proposals, "each checked guess is told");
    }
}

/// Small limits, so that every bound is met often.
pub(crate) fn random_limits(random: &mut Random) -> Limits {
    let context_tokens_max = random.between(2, 48);
    let block_tokens = random.between(1, 6);
    // From far too few blocks to enough for several sequences.
    let context_blocks = context_tokens_max.div_ceil(block_tokens);
    let block_count = random.between(1.max(context_blocks / 2), 5 * context_blocks + 4);
    Limits {
        context_tokens_max,
        sequences_max: random.between(1, 8),
        waiting_max: random.between(1, 12),
        aging_plans: random.between(1, 40),
        step_tokens_max: random.between(2, 24),
        proposed_tokens_max: random.between(0, 8),
        block_tokens,
        block_count,
    }
}
