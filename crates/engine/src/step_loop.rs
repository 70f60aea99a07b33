//! What happens from step to step? One thread: it takes events, plans, submits, settles.
//!
//! It never blocks on a client, a disk or a tokenizer, and never holds a user's text
//!: ids come in, ids go out.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use device::{CommandRing, Completion};
use messages::{
    CacheNamespace, Fault, Priority, Refusal, RefusalKind, SamplingParams, SequenceId,
    SharingOutcome, SharingReport, StepIndex, StepPlan, StepResult, SubscriberId, TokenEvent,
    TokenId,
};
use ops::constraint::SharedGrammar;
use ops::sample_rows::SampleParams;
use scheduler::{Scheduler, SequenceRequest, Work};
use sharing::{Leaving, SharingLimits};
use tokio::sync::oneshot;

use crate::block_tiers::{BlockTiers, Restored};
use crate::executor::{Broken, Executor, SlotSettings};
use crate::guarded::SharedBreaker;
use crate::guessing::Guessing;
use crate::intake::check_deadline;
use crate::pacing::{Pacing, PacingOptions};
use crate::readers::{Outgoing, Reader, Readers, Shareable, Shared as SharedAnswer};
use crate::resources::PartStatus;
use crate::turns::Streaming;
use crate::waiting::{Newcomer, Place, Waiting, WaitingReader};
use crate::{EngineStatus, PrefixCacheStatus, SaveProgress, StepSizes};

/// Everything that can happen to the loop, besides a finished step.
pub(crate) enum Event {
    Submit(Box<Submit>),
    /// A submitted request, with blocks of its prompt.
    Restored(Box<Submit>, Restored),
    /// A reader wants no more.
    Leave(SubscriberId, Leaving),
    /// Other limits hold from now on.
    TakeUp(SharingLimits, PacingOptions),
    Stop,
}

/// Where a step may take for ever, the wait for it is cut into pieces of this length.
const PATIENCE_MAX: Duration = Duration::from_secs(3600);

/// An encoded request on its way to the scheduler.
pub(crate) struct Submit {
    pub(crate) subscriber: SubscriberId,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) params: SamplingParams,
    /// The number of the adapter it asks for.
    pub(crate) adapter: Option<u32>,
    /// What the constraint became.
    pub(crate) grammar: Option<SharedGrammar>,
    /// Tokens that end the sequence.
    pub(crate) stop_tokens: Vec<TokenId>,
    /// Drawn at admission where the request gave none.
    pub(crate) seed: u64,
    pub(crate) priority: Priority,
    pub(crate) tenant: Arc<str>,
    /// With whom the prompt's beginning is shared; `None`: with nobody.
    pub(crate) cache_namespace: Option<Arc<CacheNamespace>>,
    pub(crate) shareable: Shareable,
    pub(crate) reader: Reader,
    pub(crate) arrived: Instant,
    /// In the queue; `None`: it has not been decided whether it needs one.
    pub(crate) place: Option<Place>,
    pub(crate) reply: oneshot::Sender<Result<SharingReport, Refusal>>,
}

impl Submit {
    /// The sequence that is the request's own, if it gets one, has its number.
    pub(crate) fn sequence(&self) -> SequenceId {
        SequenceId(self.subscriber.0)
    }
}

/// Numbers shared with the outside, written once a step.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) status: EngineStatus,
    /// When the device last finished a step, or was given the first after idling.
    pub(crate) progress: Option<Instant>,
    pub(crate) step_max: Duration,
    pub(crate) in_flight: usize,
}

/// What the loop asks besides its scheduler.
pub(crate) struct Helpers {
    pub(crate) tiers: Option<BlockTiers>,
    pub(crate) guessing: Guessing,
    pub(crate) pacing: Pacing,
    pub(crate) readers: Readers,
    pub(crate) waiting: Waiting,
    pub(crate) breaker: Arc<SharedBreaker>,
    pub(crate) streaming: Streaming,
}

pub(crate) struct StepLoop {
    pub(crate) scheduler: Scheduler,
    pub(crate) ring: CommandRing,
    pub(crate) inbox: Receiver<Event>,
    pub(crate) shared: Arc<Mutex<Shared>>,
    guessing: Guessing,
    pacing: Pacing,
    executor: Executor,
    params: BTreeMap<SequenceId, SlotSettings>,
    readers: Readers,
    waiting: Waiting,
    overdue: Vec<SubscriberId>,
    plan: StepPlan,
    result: StepResult,
    events: Vec<TokenEvent>,
    tiers: Option<BlockTiers>,
    breaker: Arc<SharedBreaker>,
    streaming: Streaming,
    broken: Vec<(SequenceId, Broken)>,
    vectors: Vec<(SequenceId, Box<[f32]>)>,
    counted: Counted,
}

/// Counters of this loop, copied to [`Shared`] once a step.
#[derive(Default)]
struct Counted {
    refused: u64,
    late: u64,
    prompt_tokens: u64,
    generated_tokens: u64,
    computed_tokens: u64,
    step_sizes: StepSizes,
    steps: u64,
    step_seconds: f64,
    step_max: Duration,
}

enum Wake {
    Event(Event),
    Completion(Completion),
    /// Somebody has waited too long, a deadline has passed, or a step does not finish.
    Overdue,
    Closed,
}

impl StepLoop {
    pub(crate) fn new(
        scheduler: Scheduler,
        ring: CommandRing,
        inbox: Receiver<Event>,
        shared: Arc<Mutex<Shared>>,
        helpers: Helpers,
    ) -> Self {
        let Helpers { tiers, guessing, pacing, readers, waiting, breaker, streaming } = helpers;
        let (depth, rows) = (ring.statistics().depth, scheduler.limits().sequences_max);
        let executor = Executor::new(depth as usize, rows as usize);
        Self {
            tiers,
            breaker,
            streaming,
            scheduler,
            ring,
            inbox,
            shared,
            guessing,
            pacing,
            executor,
            params: BTreeMap::new(),
            readers,
            waiting,
            overdue: Vec::new(),
            plan: StepPlan::empty(StepIndex(0)),
            result: StepResult { step: StepIndex(0), samples: Vec::new() },
            events: Vec::new(),
            broken: Vec::new(),
            vectors: Vec::new(),
            counted: Counted::default(),
        }
    }

    /// Runs until it is told to stop or nobody is left to tell it anything; then saves what
    /// outlasts it: first what is small and quick.
    pub(crate) fn run(mut self, saving: &SaveProgress) {
        self.serve();
        saving.write_answers(|| self.readers.save());
        if let Some(tiers) = self.tiers.take() {
            while self.ring.in_flight() > 0 {
                match self.ring.wait() {
                    Some(completion) => drop(self.ring.collect(completion, |_| ())),
                    None => drop(self.ring.give_up()),
                }
            }
            if !self.ring.is_stuck() {
                tiers.save(&self.scheduler, &mut self.ring, saving);
            }
        }
    }

    fn serve(&mut self) {
        loop {
            // Everything that is known goes into the next plan: a cancellation is one step away.
            while let Ok(event) = self.inbox.try_recv() {
                if !self.handle(event) {
                    return;
                }
            }
            self.refuse_overdue();
            self.break_off_late();
            while self.ring.has_room() && self.submit() {}
            self.publish();
            match self.wait() {
                Wake::Closed => return,
                Wake::Event(event) => {
                    if !self.handle(event) {
                        return;
                    }
                }
                Wake::Completion(completion) if self.ring.is_stale(&completion) => {
                    self.ring.collect(completion, |_| ());
                    if !self.ring.is_stuck() {
                        tracing::warn!("the device that hung has come back");
                    }
                }
                Wake::Completion(completion) => self.settle(completion),
                Wake::Overdue => self.give_up(),
            }
        }
    }

    fn wait(&mut self) -> Wake {
        if self.ring.in_flight() == 0 {
            self.ring.rest();
        }
        let overdue = self.waiting.next_overdue().unwrap_or(PATIENCE_MAX);
        let deadline = self.readers.next_deadline();
        let until = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let late = until.unwrap_or(PATIENCE_MAX);
        let patience = self.ring.patience().unwrap_or(PATIENCE_MAX).min(overdue).min(late);
        select! {
            recv(self.inbox) -> event => event.map_or(Wake::Closed, Wake::Event),
            recv(self.ring.completions()) -> done => done.map_or(Wake::Closed, Wake::Completion),
            default(patience) => Wake::Overdue,
        }
    }

    fn refuse_overdue(&mut self) {
        let mut overdue = std::mem::take(&mut self.overdue);
        self.waiting.refuse_overdue(&mut overdue);
        for subscriber in overdue.drain(..) {
            self.leave(subscriber, Leaving::Gone);
        }
        self.overdue = overdue;
    }

    /// False when the loop is to end.
    fn handle(&mut self, event: Event) -> bool {
        match event {
            Event::Submit(submit) => self.submitted(submit),
            Event::Restored(submit, restored) => {
                let id = submit.sequence();
                let range = self.tiers.as_mut().map(|tiers| tiers.hold(id, restored));
                self.add(*submit, range.unwrap_or(0..0));
            }
            Event::Leave(subscriber, leaving) => self.leave(subscriber, leaving),
            Event::TakeUp(limits, pacing) => {
                self.readers.set_limits(limits);
                self.pacing.set_options(pacing);
            }
            Event::Stop => {
                let text = "the server is stopping and did not wait for this answer's end";
                self.readers.fail_all(&Fault(text.to_owned()));
                return false;
            }
        }
        true
    }

    /// Adds a request that another's answer is for, or that is let into the queue, after what is
    /// kept of its prompt outside the device has been read.
    fn submitted(&mut self, mut submit: Box<Submit>) {
        // What has an answer already needs neither place nor blocks.
        if self.readers.has_answer(&submit.shareable) {
            return self.add(*submit, 0..0);
        }
        match self.enter(&submit) {
            Ok(place) => submit.place = Some(place),
            Err(refusal) => return self.refuse(*submit, refusal),
        }
        let submit = match &self.tiers {
            Some(tiers) => tiers.restore_first(&self.scheduler, submit),
            None => Some(submit),
        };
        if let Some(submit) = submit {
            self.add(*submit, 0..0);
        }
    }

    /// Lets a request into the queue.
    fn enter(&self, submit: &Submit) -> Result<Place, Refusal> {
        let (scheduler, prompt) = (&self.scheduler, &submit.prompt);
        let answer_tokens_max =
            scheduler.answer_tokens_max(prompt.len(), submit.params.max_tokens)?;
        let unread_tokens = scheduler.unread_of(prompt, submit.cache_namespace.as_deref());
        let work = Work { unread_tokens, answer_tokens: 0, answer_tokens_max };
        let (arrived, priority, tenant) = (submit.arrived, submit.priority, &submit.tenant);
        self.waiting.enter(&Newcomer { work, arrived, priority, tenant, scheduler })
    }

    fn refuse(&mut self, submit: Submit, refusal: Refusal) {
        self.counted.refused += 1;
        self.forget(submit.sequence());
        // Who has gone needs no answer.
        let _ = submit.reply.send(Err(refusal));
    }

    fn add(&mut self, submit: Submit, restorable: Range<u32>) {
        if self.ring.is_stuck() {
            let text = "the device has hung; requests are refused until it comes back";
            return self.refuse(submit, Refusal::new(RefusalKind::Unavailable, text));
        }
        let tokens_max = check_deadline(submit.reader.deadline).and_then(|()| {
            self.scheduler.answer_tokens_max(submit.prompt.len(), submit.params.max_tokens)
        });
        let tokens_max = match tokens_max {
            Ok(tokens_max) => tokens_max,
            Err(refusal) => return self.refuse(submit, refusal),
        };
        let Submit { subscriber, shareable, reader, .. } = &submit;
        let subscriber = *subscriber;
        let is_gone = match self.readers.find(subscriber, shareable, tokens_max, reader) {
            Ok(shared) => self.share(submit, shared),
            Err(why) => self.begin(submit, restorable, tokens_max, why),
        };
        if is_gone {
            // The caller went away while it was being admitted.
            self.leave(subscriber, Leaving::Gone);
        }
    }

    /// Starts a sequence for a request. True if the caller has gone.
    fn begin(
        &mut self,
        mut submit: Submit,
        restorable: Range<u32>,
        tokens_max: u32,
        why: String,
    ) -> bool {
        let id = submit.sequence();
        // What it could have shared may have ended since.
        let place = submit.place.take().map_or_else(|| self.enter(&submit), Ok);
        // Here it is known that it needs the device: a trial is not spent on anything less.
        let place = match place.and_then(|place| self.breaker.admit().map(|()| place)) {
            Ok(place) => place,
            Err(refusal) => {
                self.refuse(submit, refusal);
                return false;
            }
        };
        let Submit { params, grammar, stop_tokens, seed, shareable, reader, .. } = submit;
        let prompt_tokens = submit.prompt.len() as u64;
        self.guessing.begin(id, &submit.prompt, params.speculation);
        let added = self.scheduler.add(SequenceRequest {
            id,
            prompt: submit.prompt,
            max_tokens: params.max_tokens,
            min_tokens: params.min_tokens,
            stop_tokens: stop_tokens.clone(),
            priority: submit.priority,
            tenant: submit.tenant,
            cache_namespace: submit.cache_namespace,
            restorable,
        });
        if let Err(refusal) = added {
            self.counted.refused += 1;
            self.forget(id);
            return submit.reply.send(Err(refusal)).is_err();
        }
        self.counted.prompt_tokens += prompt_tokens;
        let params = sample_params(&params, grammar, stop_tokens, seed);
        self.params.insert(id, SlotSettings { params, adapter: submit.adapter });
        let (subscriber, arrived) = (submit.subscriber, submit.arrived);
        let waits = WaitingReader { subscriber, arrived, outbox: reader.outbox.clone() };
        self.waiting.wait(id, place, waits, tokens_max);
        self.readers.begin(id, subscriber, shareable, tokens_max, reader);
        let report = SharingReport { outcome: SharingOutcome::Miss, why };
        submit.reply.send(Ok(report)).is_err()
    }

    /// A request's answer is another's, too: it waits with that, or for nothing. True if the caller
    /// has gone.
    fn share(&mut self, submit: Submit, shared: SharedAnswer) -> bool {
        let SharedAnswer { report, known, reads } = shared;
        self.forget(submit.sequence());
        let (subscriber, arrived) = (submit.subscriber, submit.arrived);
        let outbox = submit.reader.outbox;
        if let Some(id) = reads {
            self.scheduler.raise(id, submit.priority);
        }
        let reader = WaitingReader { subscriber, arrived, outbox: outbox.clone() };
        if let Some(known) = known {
            self.waiting.start_at_once(&reader);
            outbox.send(Outgoing::Known(known));
        } else if let Some(id) = reads {
            self.waiting.join(id, reader);
        }
        submit.reply.send(Ok(report)).is_err()
    }

    fn leave(&mut self, subscriber: SubscriberId, leaving: Leaving) {
        if let Some(id) = self.readers.leave(subscriber, leaving) {
            self.cancel(id);
        }
    }

    /// Breaks off answers whose deadlines have passed: the next plan has no row for them.
    fn break_off_late(&mut self) {
        let now = Instant::now();
        while let Some(subscriber) = self.readers.late(now) {
            self.counted.late += 1;
            if let Some(id) = self.readers.break_off(subscriber) {
                self.cancel(id);
            }
        }
    }

    /// Gives up a sequence that nobody reads.
    fn cancel(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
        self.forget(id);
    }

    /// Plans and submits one step; false when there is nothing to do.
    fn submit(&mut self) -> bool {
        let since = Instant::now();
        if !self.guessing.offer(&mut self.scheduler) {
            return false;
        }
        if let Some(tiers) = &mut self.tiers {
            tiers.take_back(&mut self.scheduler);
        }
        let pace = self.pacing.pace(&self.scheduler.outlook(), self.streaming.others());
        if !self.scheduler.plan(pace, &mut self.plan) {
            return false;
        }
        self.pacing.planned(&self.plan);
        self.waiting.planned(&self.plan, self.scheduler.has_unread());
        self.counted.computed_tokens += self.plan.tokens.len() as u64;
        self.counted.step_sizes.count(self.plan.tokens.len());
        self.guessing.planned(&self.plan);
        for admitted in self.scheduler.admitted() {
            self.waiting.admitted(admitted.sequence, admitted.prompt.len());
        }
        let (plan, scheduler, params) = (&self.plan, &self.scheduler, &self.params);
        let (executor, tiers) = (&mut self.executor, &mut self.tiers);
        self.ring.submit(since, |inputs| {
            executor.fill(plan, scheduler, params, inputs);
            if let Some(tiers) = tiers {
                tiers.fill(scheduler, &mut inputs.copies);
            }
        });
        true
    }

    fn settle(&mut self, mut completion: Completion) {
        let (since, step) = (Instant::now(), completion.inputs.step);
        let broken = self.read(&mut completion);
        self.ring.collect(completion, |_| ());
        self.tell(broken);
        self.ring.settled(since, step);
    }

    /// The device has hung: what it computes is lost, and so is what waits for it. The ring takes
    /// no steps until the device has come back.
    fn give_up(&mut self) {
        if !self.ring.patience().is_some_and(|patience| patience.is_zero()) {
            return;
        }
        let silent = self.ring.give_up().as_millis();
        let fault = Fault(format!("the device has hung: no step has finished for {silent} ms"));
        tracing::error!(%fault, "its steps are given up");
        self.breaker.failed();
        while let Some(step) = self.executor.oldest() {
            let lost = device::Fault(fault.0.clone());
            let broken = self.read(&mut Completion::given_up(step.0, lost));
            self.tell(broken);
        }
        while let Some(&id) = self.params.keys().next() {
            self.cancel(id);
            self.readers.fail(id, &Broken::Fault(fault.clone()));
        }
    }

    /// Takes what a finished step gave; says which sequences it broke.
    fn read(&mut self, completion: &mut Completion) -> Vec<(SequenceId, Broken)> {
        let mut broken = std::mem::take(&mut self.broken);
        let (result, vectors) = (&mut self.result, &mut self.vectors);
        self.executor.read(completion, result, vectors, &mut broken);
        if let Some(tiers) = &mut self.tiers {
            tiers.collect(completion);
        }
        self.guessing.finished(completion.duration);
        self.waiting.finished(completion.duration, &self.result);
        self.pacing.finished(completion.duration);
        self.counted.steps += 1;
        self.counted.step_seconds += completion.duration.as_secs_f64();
        self.counted.step_max = self.counted.step_max.max(completion.duration);
        if let Err(fault) = &completion.result {
            tracing::error!(step = self.result.step.0, %fault, "a step failed");
        }
        broken
    }

    /// Settles the step that was read, and tells its readers.
    fn tell(&mut self, mut broken: Vec<(SequenceId, Broken)>) {
        for (id, why) in broken.drain(..) {
            self.cancel(id);
            self.readers.fail(id, &why);
        }
        self.broken = broken;
        // A vector is no token, but ends like one.
        let tokens = u64::from(self.vectors.is_empty());
        for (id, vector) in self.vectors.drain(..) {
            self.readers.give(id, vector);
        }
        let mut events = std::mem::take(&mut self.events);
        self.scheduler.settle(&self.result, &mut events);
        for event in events.drain(..) {
            self.counted.generated_tokens += tokens;
            self.guessing.observe(&event);
            self.waiting.observe(&event);
            let is_unwanted = self.readers.say(&event);
            if is_unwanted {
                self.cancel(event.sequence);
            } else if event.finish.is_some() {
                self.forget(event.sequence);
            }
        }
        self.events = events;
    }

    fn forget(&mut self, id: SequenceId) {
        self.params.remove(&id);
        self.guessing.end(id);
        self.waiting.ended(id);
        if let Some(tiers) = &mut self.tiers {
            tiers.forget(id);
        }
    }

    fn publish(&mut self) {
        let counts = self.scheduler.counts();
        let running_max = self.waiting.look(&self.scheduler);
        self.scheduler.set_aging(self.waiting.aging_plans());
        self.streaming.set(self.scheduler.outlook().streams > 0);
        self.scheduler.limit_running(running_max);
        let counted = &self.counted;
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let in_flight = self.ring.in_flight();
        let moved = shared.status.steps_total != counted.steps || shared.in_flight == 0;
        if moved && in_flight > 0 {
            shared.progress = Some(Instant::now());
        }
        shared.in_flight = in_flight;
        shared.step_max = counted.step_max;
        let status = &mut shared.status;
        status.sequences_running = counts.running as u32;
        status.sequences_waiting = counts.waiting as u32;
        status.kv_blocks_used = (counts.blocks_owned + counts.blocks_pending) as u32;
        status.requests_cancelled_total = counts.cancelled_total;
        status.preemptions_total = counts.preemptions_total;
        status.returned_blocks_total = counts.returned_blocks_total;
        status.prefix_cache = PrefixCacheStatus {
            queried_tokens_total: counts.prefix_queried_tokens_total,
            hit_tokens_total: counts.prefix_hit_tokens_total,
            evicted_blocks_total: counts.prefixes.evicted_blocks_total,
            blocks: counts.prefixes.blocks as u32,
        };
        status.speculation = self.guessing.status(&self.scheduler);
        status.requests_refused_total = counted.refused;
        status.requests_late_total = counted.late;
        status.prompt_tokens_total = counted.prompt_tokens;
        status.generation_tokens_total = counted.generated_tokens;
        status.kv_tiers = self.tiers.as_ref().map(BlockTiers::counts).unwrap_or_default();
        status.computed_tokens_total = counted.computed_tokens;
        status.steps_total = counted.steps;
        status.step_sizes = counted.step_sizes;
        status.step_seconds_total = counted.step_seconds;
        status.sharing = self.readers.status();
        let resources = &mut status.resources;
        resources.command_ring = self.ring.statistics();
        resources.blit_queue = self.ring.copy_statistics();
        resources.parts = self.ring.clocks().iter().map(PartStatus::of).collect();
        resources.staging = self.tiers.as_ref().map(BlockTiers::staging).unwrap_or_default();
    }
}

fn sample_params(
    params: &SamplingParams,
    grammar: Option<SharedGrammar>,
    stop_tokens: Vec<TokenId>,
    seed: u64,
) -> SampleParams {
    SampleParams {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        presence_penalty: params.presence_penalty,
        frequency_penalty: params.frequency_penalty,
        bias: params.logit_bias.clone(),
        banned: if params.min_tokens > 0 { stop_tokens } else { Vec::new() },
        banned_until: params.min_tokens,
        seed,
        logprobs: params.logprobs,
        grammar,
    }
}
