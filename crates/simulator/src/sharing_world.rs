//! Is every reader of a shared answer told what its request alone would be told?
//!
//! Many requests are variations of a few: the same prompt with another `max_tokens`, stop text or
//! namespace. They come at random between the steps of the scheduler and a device that is late;
//! they leave, find their stop text, and see steps fail. Every token a reader is told is compared
//! with the answer of its own request in a world of its own.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use messages::{
    CacheNamespace, FinishReason, Limits, RefusalKind, SamplingParams, SequenceId, StepIndex,
    StepPlan, SubscriberId, TokenEvent, TokenId,
};
use scheduler::{Pace, STEPS_IN_FLIGHT_MAX, Scheduler, SequenceRequest};
use sharing::{
    Asked, Found, Identity, Leaving, ReplayLimits, Sharing, SharingLimits, StopRule, Told, Work,
};

use crate::client::{Texts, answer_alone};
use crate::fake_device::{Copied, FakeDevice, SlotReset, Submission};
use crate::random::{Random, mix};
use crate::world::random_limits;

/// What a world of shared answers came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharingOutcome {
    /// Hash of all that was told: the same for the same seed.
    pub trace: u64,
    pub hits: u64,
    pub joins: u64,
    pub misses: u64,
    pub stopped: u64,
    pub left: u64,
    pub failed: u64,
    pub finished: u64,
    pub tokens_computed: u64,
    pub tokens_told: u64,
}

/// A request as a caller makes it.
#[derive(Clone, Debug)]
struct Wish {
    request: SequenceRequest,
    /// Its stop text comes after so many tokens.
    stop_after: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    Left,
    Failed,
}

#[derive(Clone, Debug)]
struct Reader {
    wish: Wish,
    expected: Vec<TokenId>,
    finish: FinishReason,
    told: usize,
    state: State,
}

/// One that runs.
struct Sequence {
    wish: Wish,
    told: Vec<TokenId>,
}

pub(crate) struct SharingWorld {
    random: Random,
    limits: Limits,
    texts: Texts,
    arrival: u32,
    leaving: u32,
    fault: u32,
    scheduler: Scheduler,
    device: FakeDevice,
    submissions: VecDeque<Submission>,
    sharing: Sharing,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Every accepted request; its id is its place.
    readers: Vec<Reader>,
    /// What was computed for whom.
    computed: BTreeSet<(Option<Arc<CacheNamespace>>, Vec<TokenId>)>,
    turn: u64,
    outcome: SharingOutcome,
}

impl SharingWorld {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let limits = random_limits(&mut random);
        let replay = ReplayLimits {
            entries_max: random.between(0, 6) as usize,
            tokens_max: u64::from(random.between(1, 100)),
            bytes_max: u64::from(random.between(1, 8)) << 10,
            ttl_ms: u64::from(random.between(1, 500)),
        };
        let subscribers_max = random.between(1, 6) as usize;
        Self {
            texts: Texts::new(&mut random, &limits),
            arrival: random.between(5, 90),
            leaving: if random.chance(50) { random.between(1, 20) } else { 0 },
            fault: if random.chance(30) { random.between(1, 10) } else { 0 },
            scheduler: Scheduler::new(limits),
            device: FakeDevice::new(&limits),
            submissions: VecDeque::new(),
            sharing: Sharing::new(SharingLimits { subscribers_max, replay }),
            sequences: BTreeMap::new(),
            readers: Vec::new(),
            computed: BTreeSet::new(),
            turn: 0,
            outcome: SharingOutcome::default(),
            random,
            limits,
        }
    }

    pub(crate) fn run(mut self, turns: u32) -> SharingOutcome {
        for _ in 0..turns {
            if self.random.chance(self.arrival) {
                self.arrive();
            }
            if self.random.chance(self.leaving) {
                self.leave();
            }
            self.turn();
        }
        let mut left = 2_000_000_u32;
        while !self.scheduler.is_idle() {
            self.turn();
            left -= 1;
            assert!(left > 0, "no_starvation: the world does not come to rest");
        }
        assert!(self.readers.iter().all(|reader| reader.state != State::Open), "all have ended");
        assert_eq!(self.sharing.subscribers().count(), 0, "nobody reads any more");
        let counts = self.sharing.counts();
        self.outcome.hits = counts.hits_total;
        self.outcome.joins = counts.joins_total;
        self.outcome.misses = counts.misses_total;
        self.outcome
    }

    fn now_ms(&self) -> u64 {
        self.turn
    }

    /// A new request, or a variation of one that came lately.
    fn wish(&mut self, id: SequenceId) -> Wish {
        let mut wish = match self.readers.len() as u32 {
            count if count > 0 && self.random.chance(70) => {
                let index = self.random.between(count.saturating_sub(8), count - 1) as usize;
                self.readers[index].wish.clone()
            }
            _ => {
                let request = self.texts.request(&mut self.random, id, &self.limits);
                Wish { request, stop_after: None }
            }
        };
        wish.request.id = id;
        if self.random.chance(30) {
            let context = self.limits.context_tokens_max;
            let least = wish.request.min_tokens.max(1);
            let max_tokens = self.random.between(least, context.max(least));
            wish.request.max_tokens = self.random.chance(80).then_some(max_tokens);
        }
        if self.random.chance(20) {
            let after = self.random.between(1, 8) as usize;
            wish.stop_after = self.random.chance(70).then_some(after);
        }
        if self.random.chance(10) {
            let request = self.texts.request(&mut self.random, id, &self.limits);
            wish.request.cache_namespace = request.cache_namespace;
        }
        wish
    }

    fn arrive(&mut self) {
        let number = self.readers.len() as u64;
        let (subscriber, id) = (SubscriberId(number), SequenceId(number));
        let wish = self.wish(id);
        let request = &wish.request;
        let prompt = request.prompt.len();
        let Ok(tokens_max) = self.scheduler.answer_tokens_max(prompt, request.max_tokens) else {
            return;
        };
        let (identity, stop) = (identity(&wish), stop_rule(&wish));
        let is_shared = request.cache_namespace.is_some() && self.random.chance(95);
        let looks = self.random.chance(90);
        if looks && is_shared {
            let asked = Asked { identity: identity.clone(), tokens_max, stop: stop.clone() };
            let found = self.sharing.find(subscriber, &asked, self.now_ms());
            if self.take_found(subscriber, &wish, found) {
                return;
            }
        }
        if let Err(refusal) = self.scheduler.add(request.clone()) {
            assert_eq!(refusal.kind, RefusalKind::Busy, "{refusal}");
            return;
        }
        let shared = is_shared.then_some((identity, stop));
        if is_shared {
            self.computed.insert((request.cache_namespace.clone(), request.prompt.clone()));
        }
        self.sharing.begin(id, subscriber, tokens_max, shared);
        self.sequences.insert(id, Sequence { wish: wish.clone(), told: Vec::new() });
        self.readers.push(Reader::new(wish, &self.limits));
        self.sharing.audit();
    }

    /// Whether something was there.
    fn take_found(&mut self, subscriber: SubscriberId, wish: &Wish, found: Found) -> bool {
        let (tokens, count, finish, joined) = match found {
            Found::Nothing { .. } => return false,
            Found::Known { answer, count, finish, .. } => (answer.tokens, count, finish, None),
            Found::Joined { sequence, told, .. } => {
                let count = told.len();
                self.scheduler.raise(sequence, wish.request.priority);
                (told, count, None, Some(sequence))
            }
        };
        let key = (wish.request.cache_namespace.clone(), wish.request.prompt.clone());
        assert!(self.computed.contains(&key), "sharing_exact: another namespace's answer");
        self.readers.push(Reader::new(wish.clone(), &self.limits));
        for (index, token) in tokens[..count].iter().enumerate() {
            let finish = finish.filter(|_| index + 1 == count);
            self.tell(subscriber, token.id, finish);
        }
        let state = self.readers[subscriber.0 as usize].state;
        assert!(joined.is_some() || state != State::Open, "sharing_exact: an answer has an end");
        self.sharing.audit();
        true
    }

    /// A reader gets a token, and leaves if its stop text is complete.
    fn tell(&mut self, subscriber: SubscriberId, token: TokenId, finish: Option<FinishReason>) {
        let reader = &mut self.readers[subscriber.0 as usize];
        if reader.state != State::Open {
            // It found its stop text in what was told at once; the rest is not read.
            return;
        }
        reader.take(subscriber, token, finish);
        self.outcome.tokens_told += 1;
        self.outcome.trace = mix(self.outcome.trace, subscriber.0 << 32 | u64::from(token));
        match reader.state {
            State::Ended if finish.is_none() => {
                self.outcome.stopped += 1;
                let tokens = reader.told;
                self.give_up(subscriber, Leaving::StopText { tokens });
            }
            State::Ended => self.outcome.finished += 1,
            State::Open | State::Left | State::Failed => {}
        }
    }

    fn give_up(&mut self, subscriber: SubscriberId, leaving: Leaving) {
        let now_ms = self.now_ms();
        if let Some(sequence) = self.sharing.leave(subscriber, leaving, now_ms) {
            self.cancel(sequence);
        }
    }

    fn cancel(&mut self, sequence: SequenceId) {
        self.scheduler.cancel(sequence);
        self.sequences.remove(&sequence);
    }

    /// Somebody goes away; one that has ended, too, which changes nothing.
    fn leave(&mut self) {
        let Some(last) = (self.readers.len() as u32).checked_sub(1) else { return };
        let index = self.random.between(last.saturating_sub(12), last) as usize;
        let reader = &mut self.readers[index];
        if reader.state == State::Open {
            reader.state = State::Left;
            self.outcome.left += 1;
        }
        self.give_up(SubscriberId(index as u64), Leaving::Gone);
        self.sharing.audit();
    }

    fn turn(&mut self) {
        self.turn += 1;
        while self.submissions.len() < STEPS_IN_FLIGHT_MAX && self.random.chance(80) {
            if !self.plan() {
                break;
            }
        }
        while self.submissions.front().is_some_and(|front| front.due <= self.turn) {
            self.settle();
        }
    }

    fn plan(&mut self) -> bool {
        let mut plan = StepPlan::empty(StepIndex(0));
        if !self.scheduler.plan(Pace::FREE, &mut plan) {
            return false;
        }
        let mut resets = Vec::new();
        for admission in self.scheduler.admitted() {
            let sequence = &self.sequences[&admission.sequence];
            assert_eq!(admission.generated, sequence.told, "the answer as it was told");
            resets.push(SlotReset {
                slot: admission.slot,
                sequence: admission.sequence,
                generated_count: admission.generated.len() as u32,
                min_tokens: sequence.wish.request.min_tokens,
                stop_tokens: sequence.wish.request.stop_tokens.clone(),
            });
        }
        let due = self.turn + u64::from(self.random.between(0, 2));
        self.submissions.push_back(Submission {
            copies: Vec::new(),
            prefixes: Default::default(),
            plan,
            resets,
            due,
        });
        true
    }

    fn settle(&mut self) {
        let submission = self.submissions.pop_front().expect("the caller saw it");
        let result = self.device.execute(&submission, &mut Copied::default());
        if self.random.chance(self.fault) {
            let broken: Vec<SequenceId> =
                submission.plan.rows.iter().map(|row| row.sequence).collect();
            let whole_step = self.random.chance(50);
            let count = if whole_step { broken.len() } else { 1 };
            broken.into_iter().take(count).for_each(|sequence| self.fail(sequence));
        }
        let mut events = Vec::new();
        self.scheduler.settle(&result, &mut events);
        for event in &events {
            self.say(event);
        }
        self.scheduler.audit();
        self.sharing.audit();
    }

    fn say(&mut self, event: &TokenEvent) {
        self.outcome.tokens_computed += 1;
        let id = event.sequence;
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.told.push(event.token);
        }
        let mut told: Vec<Told> = Vec::new();
        let is_unwanted = self.sharing.say(event, self.now_ms(), &mut told);
        if is_unwanted {
            self.cancel(id);
        } else if event.finish.is_some() {
            self.sequences.remove(&id);
        }
        for Told { subscriber, finish } in told {
            self.tell(subscriber, event.token, finish);
        }
    }

    /// The device could not compute a row of the sequence.
    fn fail(&mut self, sequence: SequenceId) {
        self.cancel(sequence);
        for subscriber in self.sharing.fail(sequence) {
            let reader = &mut self.readers[subscriber.0 as usize];
            assert_eq!(reader.state, State::Open, "{subscriber:?} is told of a fault");
            reader.state = State::Failed;
            self.outcome.failed += 1;
        }
    }
}

impl Reader {
    fn new(wish: Wish, limits: &Limits) -> Self {
        let (expected, finish) = answer_alone(&wish.request, limits);
        Self { wish, expected, finish, told: 0, state: State::Open }
    }

    fn take(&mut self, id: SubscriberId, token: TokenId, finish: Option<FinishReason>) {
        let place = self.told;
        assert!(place < self.expected.len(), "sharing_exact: {id:?} is told more than its answer");
        let alone = self.expected[place];
        assert_eq!(token, alone, "sharing_exact: {id:?}: token {place} differs from alone");
        self.told += 1;
        let is_last = self.told == self.expected.len();
        let alone = is_last.then_some(self.finish);
        assert_eq!(finish, alone, "sharing_exact: {id:?}: finish at token {place}");
        if is_last || self.wish.stop_after == Some(self.told) {
            self.state = State::Ended;
        }
    }
}

fn identity(wish: &Wish) -> Identity {
    let request = &wish.request;
    let namespace = request.cache_namespace.as_deref().cloned().unwrap_or_default();
    Identity::of(&Work {
        model: &[0; 32],
        namespace: &namespace,
        prompt: &request.prompt,
        params: &SamplingParams { min_tokens: request.min_tokens, ..SamplingParams::greedy() },
        stop_tokens: &request.stop_tokens,
    })
}

fn stop_rule(wish: &Wish) -> StopRule {
    let texts = wish.stop_after.iter().map(|after| format!("after {after}")).collect();
    StopRule { texts, min_tokens: 0 }
}
