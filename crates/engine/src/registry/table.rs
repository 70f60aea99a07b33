//! What is the state of every model? Changed under one lock, for moments only: nothing here loads,
//! unloads, waits or reads a file that a request names.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use messages::{Refusal, RefusalKind};
use tokio::sync::oneshot;

use super::{Lease, ModelEntry, stopping};
use crate::adapters::number_of;
use crate::engine::Admission;
use crate::guarded::whole_seconds;
use crate::residency::{Resident, Shortage, make_room};
use crate::{
    Engine, EngineError, EngineOptions, EngineStatus, GenerateRequest, LiveOptions, ModelCard,
    ModelPlan, ModelState, ModelStatus, Service,
};

pub(super) struct Table {
    models: Vec<Model>,
    budget_bytes: u64,
    failure_rest: Duration,
    is_stopping: bool,
    /// What was told since the start, for models that are loaded later.
    live: Option<LiveOptions>,
}

struct Model {
    entry: ModelEntry,
    plan: ModelPlan,
    /// Named at start, not found later.
    is_configured: bool,
    state: State,
    /// Requests that keep it in memory.
    leases: u32,
    last_used: Instant,
    /// Who waits for it to be loaded, in the order of arrival.
    waiting: VecDeque<Waiter>,
    /// Since when it is to be loaded.
    wanted: Option<Instant>,
    /// Who waits for it to be unloaded.
    unload: Vec<oneshot::Sender<Result<(), Refusal>>>,
    load_time: Duration,
    loads_total: u64,
    load_failures_total: u64,
    /// What engines of this model counted that are gone.
    past: EngineStatus,
}

enum State {
    Unloaded,
    Loading,
    Ready(Box<Engine>),
    Unloading,
    Failed { why: String, until: Instant },
}

/// What an operator may order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Load,
    Unload,
}

type Handed = Result<(Lease, Admission), Refusal>;

/// Where a request stands.
pub(super) enum Asked {
    Admitted(Lease, Admission),
    Waiting(oneshot::Receiver<Handed>),
}

enum Waiter {
    /// It has waited since then.
    Request(Box<GenerateRequest>, Instant, oneshot::Sender<Handed>),
    Order(oneshot::Sender<Result<(), Refusal>>),
}

impl Waiter {
    fn has_gone(&self) -> bool {
        match self {
            Self::Request(_, _, reply) => reply.is_closed(),
            Self::Order(reply) => reply.is_closed(),
        }
    }

    /// A closed channel means that nobody is left to be told.
    fn refuse(self, refusal: Refusal) {
        match self {
            Self::Request(_, _, reply) => drop(reply.send(Err(refusal))),
            Self::Order(reply) => drop(reply.send(Err(refusal))),
        }
    }
}

/// Engines that leave memory, with the names of their models.
pub(super) type Leaving = Vec<(String, Box<Engine>)>;

/// A load that the manager is to do.
pub(super) struct Load {
    pub(super) name: String,
    pub(super) options: EngineOptions,
    /// To be dropped first.
    pub(super) leaving: Leaving,
}

/// A request that has waited for its model, and the news for it. Told without the lock: a lease
/// that nobody takes gives itself back.
pub(super) struct News(oneshot::Sender<Handed>, Handed);

impl News {
    pub(super) fn tell(self) {
        drop(self.0.send(self.1));
    }
}

impl Table {
    pub(super) fn new(budget_bytes: u64, failure_rest: Duration) -> Self {
        Self { models: Vec::new(), budget_bytes, failure_rest, is_stopping: false, live: None }
    }

    /// Every model holds these from now on.
    pub(super) fn take_up(&mut self, live: LiveOptions) {
        for model in &self.models {
            if let State::Ready(engine) = &model.state {
                engine.take_up(&live);
            }
        }
        self.live = Some(live);
    }

    /// Adds a configured model.
    pub(super) fn add(&mut self, entry: ModelEntry, plan: ModelPlan) -> Result<(), EngineError> {
        let name = &entry.options.model_id;
        if !is_a_name(name) {
            return Err(EngineError::Option(format!("no model can be named `{name}`")));
        }
        let adapters = entry.options.adapters.iter().map(|adapter| &adapter.name);
        if let Some(name) = [name].into_iter().chain(adapters).find(|name| self.knows(name)) {
            return Err(EngineError::Option(format!("two models are named `{name}`")));
        }
        self.insert(entry, plan, true);
        Ok(())
    }

    /// Adds a model that was found.
    pub(super) fn add_found(&mut self, entry: ModelEntry, plan: ModelPlan) {
        let name = &entry.options.model_id;
        if is_a_name(name) && !self.knows(name) {
            self.insert(entry, plan, false);
        }
    }

    pub(super) fn knows(&self, name: &str) -> bool {
        self.models.iter().any(|model| model.answers_to(name, false))
    }

    /// Forgets found models that are not there any more and of which nothing is in memory.
    pub(super) fn keep_found(&mut self, is_there: impl Fn(&str) -> bool) {
        self.models.retain(|model| {
            let is_held = !matches!(model.state, State::Unloaded | State::Failed { .. });
            model.is_configured || is_held || model.wanted.is_some() || is_there(model.name())
        });
    }

    fn insert(&mut self, entry: ModelEntry, plan: ModelPlan, is_configured: bool) {
        self.models.push(Model {
            entry,
            plan,
            is_configured,
            state: State::Unloaded,
            leases: 0,
            last_used: Instant::now(),
            waiting: VecDeque::new(),
            wanted: None,
            unload: Vec::new(),
            load_time: Duration::ZERO,
            loads_total: 0,
            load_failures_total: 0,
            past: EngineStatus::default(),
        });
    }

    pub(super) fn budget_bytes(&self) -> u64 {
        self.budget_bytes
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.models.iter().filter(|model| model.is_held()).map(Model::bytes).sum()
    }

    /// A model's engine, where it is in memory.
    pub(super) fn engine(&self, name: &str) -> Result<&Engine, Refusal> {
        match &self.models[self.find(name)?].state {
            State::Ready(engine) => Ok(engine),
            State::Unloaded | State::Loading | State::Unloading | State::Failed { .. } => {
                Err(Refusal::new(RefusalKind::Busy, "the model left again at once; try later"))
            }
        }
    }

    pub(super) fn find(&self, name: &str) -> Result<usize, Refusal> {
        let found = match name {
            "default" => (!self.models.is_empty()).then_some(0),
            name => {
                let mut models = self.models.iter().enumerate();
                models.position(|(index, model)| model.answers_to(name, index == 0))
            }
        };
        found.ok_or_else(|| {
            let asked: String = name.chars().take(100).collect();
            let known: Vec<String> =
                self.models.iter().take(20).map(|model| format!("`{}`", model.name())).collect();
            let text = format!("there is no model `{asked}` here; there are {}", known.join(", "));
            let field = Some("model".to_owned());
            Refusal { field, ..Refusal::new(RefusalKind::UnknownModel, text) }
        })
    }

    /// Hands a request to its model's engine (`lend` then makes its lease) or has it wait.
    pub(super) fn ask(
        &mut self,
        index: usize,
        mut request: GenerateRequest,
        now: Instant,
        lend: impl FnOnce(&mut Self) -> Lease,
    ) -> Result<Asked, Refusal> {
        if self.is_stopping {
            return Err(stopping());
        }
        let model = &mut self.models[index];
        request.model = model.canonical(&request.model, index == 0);
        if let State::Ready(engine) = &model.state {
            let admitted = engine.enqueue(request, now)?;
            return Ok(Asked::Admitted(lend(self), admitted));
        }
        model.check_failure(now)?;
        model.waiting.retain(|waiter| !waiter.has_gone());
        // As many as the engine will have places for.
        let options = &model.entry.options;
        let waiting_max = (options.sequences_max + options.waiting_max) as usize;
        if model.waiting.len() >= waiting_max {
            let text = format!(
                "{waiting_max} requests wait for `{}` to be loaded already; try later",
                model.name()
            );
            return Err(Refusal::new(RefusalKind::Busy, text));
        }
        let (reply, waiting) = oneshot::channel();
        model.waiting.push_back(Waiter::Request(Box::new(request), now, reply));
        model.wanted.get_or_insert(now);
        Ok(Asked::Waiting(waiting))
    }

    /// Refuses requests that have waited for their model as long as one may wait for its answer to
    /// begin. Gives the time until the next will have.
    pub(super) fn refuse_overdue(&mut self, now: Instant) -> Option<Duration> {
        let most: Vec<_> = self.models.iter().map(|model| self.queue_time_max(model)).collect();
        let next = |(model, most): (&mut Model, Option<Duration>)| model.refuse_overdue(most?, now);
        self.models.iter_mut().zip(most).filter_map(next).min()
    }

    /// Counts a lease and names its model.
    pub(super) fn lend(&mut self, index: usize) -> String {
        let model = &mut self.models[index];
        model.leases += 1;
        model.name().to_owned()
    }

    pub(super) fn give_back(&mut self, name: &str, now: Instant) {
        let model = self.model(name);
        assert!(model.leases > 0, "a lease is given back once");
        model.leases -= 1;
        model.last_used = now;
    }

    /// What an operator orders; `reply` is told when it is done.
    pub(super) fn order(
        &mut self,
        name: &str,
        order: Order,
        reply: oneshot::Sender<Result<(), Refusal>>,
    ) -> Result<(), Refusal> {
        let index = self.find(name)?;
        if self.is_stopping {
            return Err(stopping());
        }
        let model = &mut self.models[index];
        let in_use = |text: String| Err(Refusal::new(RefusalKind::Conflict, text));
        match (&model.state, order) {
            (State::Ready(_), Order::Load) => drop(reply.send(Ok(()))),
            (_, Order::Load) => {
                model.waiting.push_back(Waiter::Order(reply));
                model.wanted.get_or_insert_with(Instant::now);
            }
            (State::Ready(_), Order::Unload) if model.leases > 0 => {
                let (name, leases) = (model.name(), model.leases);
                let requests =
                    if leases == 1 { "1 request is" } else { &format!("{leases} requests are") };
                return in_use(format!(
                    "{requests} using `{name}`: unload it when they have ended"
                ));
            }
            (State::Ready(_) | State::Unloading, Order::Unload) => model.unload.push(reply),
            (State::Loading, Order::Unload) => {
                let name = model.name();
                return in_use(format!("`{name}` is being loaded: unload it when it is"));
            }
            (State::Unloaded | State::Failed { .. }, Order::Unload) => {
                model.state = State::Unloaded;
                drop(reply.send(Ok(())));
            }
        }
        Ok(())
    }

    /// Engines that are to go: by order, or idle for too long.
    pub(super) fn begin_unloads(&mut self, now: Instant) -> Leaving {
        let is_stopping = self.is_stopping;
        let going = self.models.iter_mut().filter(|model| {
            let ordered = !model.unload.is_empty();
            // At the end nobody is asked: streams have been told.
            is_stopping || model.leases == 0 && (ordered || model.is_idle_too_long(now))
        });
        going.filter_map(Model::take_engine).collect()
    }

    /// The next model to load, room made for it. A model that cannot fit is refused here; one that
    /// could if nobody used the others waits until they are done, which the queue's time bounds.
    pub(super) fn begin_load(&mut self, now: Instant) -> Option<Load> {
        for index in self.wanted() {
            match self.room_for(index, now) {
                Ok(leaving) => {
                    let model = &mut self.models[index];
                    model.state = State::Loading;
                    let (name, options) = (model.name().to_owned(), model.entry.options.clone());
                    return Some(Load { name, options, leaving });
                }
                Err(shortage) => {
                    let may_wait = self.may_wait(index, now);
                    let model = &mut self.models[index];
                    let text = shortage_text(model.name(), &shortage);
                    model.refuse_load(&Refusal::new(RefusalKind::Unavailable, text), may_wait);
                }
            }
        }
        None
    }

    /// Whether requests may wait for a model for which there is no room: it would fit if nobody
    /// used the others, and the wait is bounded.
    fn may_wait(&self, index: usize, now: Instant) -> bool {
        let model = &self.models[index];
        let others = self.models.iter().filter(|other| other.is_held());
        let unused =
            |other: &Model| Resident { may_leave: other.may_leave(), ..other.resident(now) };
        let unused: Vec<Resident> = others.map(unused).collect();
        let needed = model.plan.memory.peak_bytes();
        let would_fit = make_room(&unused, needed, self.budget_bytes).is_ok();
        would_fit && self.queue_time_max(model).is_some()
    }

    /// How long a request may wait for a model.
    fn queue_time_max(&self, model: &Model) -> Option<Duration> {
        let live = self.live.as_ref().map(|live| live.queue_time_max);
        live.unwrap_or(model.entry.options.queue_time_max)
    }

    /// Models that are to be loaded and that somebody still waits for, the first wanted first.
    fn wanted(&mut self) -> Vec<usize> {
        for model in &mut self.models {
            model.waiting.retain(|waiter| !waiter.has_gone());
            if model.waiting.is_empty() {
                model.wanted = None;
            }
        }
        let wanted = self.models.iter().enumerate().filter_map(|(index, model)| {
            let is_out = matches!(model.state, State::Unloaded | State::Failed { .. });
            model.wanted.filter(|_| is_out).map(|since| (since, index))
        });
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_unstable();
        wanted.into_iter().map(|(_, index)| index).collect()
    }

    fn room_for(&mut self, index: usize, now: Instant) -> Result<Leaving, Shortage> {
        let held: Vec<usize> =
            (0..self.models.len()).filter(|&index| self.models[index].is_held()).collect();
        let residents: Vec<Resident> =
            held.iter().map(|&index| self.models[index].resident(now)).collect();
        let needed = self.models[index].plan.memory.peak_bytes();
        let leaving = make_room(&residents, needed, self.budget_bytes)?;
        let in_use = |&at: &usize| self.models[held[at]].leases > 0;
        assert!(!leaving.iter().any(in_use), "a model in use is not unloaded");
        let models = &mut self.models;
        Ok(leaving.iter().filter_map(|&at| models[held[at]].take_engine()).collect())
    }

    /// An engine has left memory.
    pub(super) fn unloaded(&mut self, name: &str) {
        let model = self.model(name);
        assert!(matches!(model.state, State::Unloading), "unloaded by whoever took its engine");
        model.state = State::Unloaded;
        for reply in model.unload.drain(..) {
            drop(reply.send(Ok(())));
        }
    }

    /// A load has ended. Gives the news for those who waited; the manager tells them unlocked.
    pub(super) fn loaded(
        &mut self,
        name: &str,
        result: Result<Engine, String>,
        load_time: Duration,
        mut lease: impl FnMut(&mut Self, usize) -> Lease,
    ) -> Vec<News> {
        let failure_rest = self.failure_rest;
        let index = self.find(name).expect("invariant: a model that is being loaded stays");
        let model = &mut self.models[index];
        assert!(matches!(model.state, State::Loading), "loaded by whoever began it");
        model.last_used = Instant::now();
        let engine = match result {
            Ok(engine) => engine,
            Err(why) => {
                model.load_failures_total += 1;
                model.state = State::Failed { why, until: model.last_used + failure_rest };
                if let Err(refusal) = model.check_failure(model.last_used) {
                    model.refuse_all(&refusal);
                }
                return Vec::new();
            }
        };
        if let Some(live) = &self.live {
            engine.take_up(live);
        }
        (model.load_time, model.wanted) = (load_time, None);
        model.loads_total += 1;
        let mut news = Vec::new();
        for waiter in std::mem::take(&mut model.waiting) {
            match waiter {
                Waiter::Order(reply) => drop(reply.send(Ok(()))),
                Waiter::Request(_, _, reply) if reply.is_closed() => {}
                Waiter::Request(request, since, reply) => {
                    let admitted = engine.enqueue(*request, since);
                    news.push(News(reply, admitted.map(|rx| (lease(self, index), rx))));
                }
            }
        }
        self.models[index].state = State::Ready(Box::new(engine));
        news
    }

    /// Refuses those who wait and tells every engine to end what it runs.
    pub(super) fn stop(&mut self) {
        self.is_stopping = true;
        for model in &mut self.models {
            model.refuse_all(&stopping());
            if let State::Ready(engine) = &model.state {
                engine.stop();
            }
        }
    }

    /// When there may be something to do without anybody saying so; `None` when all is done.
    pub(super) fn next_unload(&self, now: Instant) -> Option<Duration> {
        let due = self.models.iter().filter_map(Model::idle_until);
        due.min().map(|due| due.saturating_duration_since(now))
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping
    }

    fn model(&mut self, name: &str) -> &mut Model {
        let mut models = self.models.iter_mut();
        models.find(|model| model.name() == name).expect("invariant: a model in use stays")
    }

    pub(super) fn cards(&self) -> Vec<ModelCard> {
        self.models.iter().flat_map(Model::cards).collect()
    }

    pub(super) fn status(&self, index: usize, now: Instant) -> ModelStatus {
        self.models[index].status(now)
    }

    pub(super) fn statuses(&self, now: Instant) -> Vec<ModelStatus> {
        self.models.iter().map(|model| model.status(now)).collect()
    }

    /// All models together: in trouble when none that is loaded is without.
    pub(super) fn whole_status(&self) -> EngineStatus {
        let mut whole = EngineStatus::default();
        let mut troubles = Vec::new();
        let mut is_any_well = false;
        for model in &self.models {
            whole.add(&model.past);
            let State::Ready(engine) = &model.state else { continue };
            let status = engine.status();
            whole.add(&status);
            match status.trouble {
                Some(trouble) => troubles.push(format!("{}: {trouble}", model.name())),
                None => is_any_well = true,
            }
        }
        whole.trouble = (!is_any_well && !troubles.is_empty()).then(|| troubles.join("; "));
        whole.ready = !self.is_stopping && whole.trouble.is_none();
        whole
    }
}

impl Model {
    fn name(&self) -> &str {
        &self.entry.options.model_id
    }

    fn adapters(&self) -> impl Iterator<Item = &str> {
        self.entry.options.adapters.iter().map(|adapter| adapter.name.as_str())
    }

    /// Whether a request of this name is for this model, or an adapter of it.
    fn answers_to(&self, name: &str, is_first: bool) -> bool {
        name == self.name() || self.number_of(name, is_first).is_some()
    }

    /// Of the adapter that is named; the first model is `default`, too.
    fn number_of(&self, name: &str, is_first: bool) -> Option<usize> {
        let names = [self.name(), if is_first { "default" } else { self.name() }];
        number_of(self.adapters(), &names, name)
    }

    /// The name of what is asked for, without that of the model before it.
    fn canonical(&self, asked: &str, is_first: bool) -> String {
        let number = self.number_of(asked, is_first);
        let adapter = number.and_then(|number| self.adapters().nth(number));
        adapter.unwrap_or(self.name()).to_owned()
    }

    fn cards(&self) -> Vec<ModelCard> {
        self.card().with_adapters(self.adapters())
    }

    fn bytes(&self) -> u64 {
        self.plan.memory.resident_bytes()
    }

    fn is_held(&self) -> bool {
        match self.state {
            State::Loading | State::Ready(_) | State::Unloading => true,
            State::Unloaded | State::Failed { .. } => false,
        }
    }

    fn resident(&self, now: Instant) -> Resident {
        Resident {
            bytes: self.bytes(),
            load_time: self.load_time,
            idle: now.saturating_duration_since(self.last_used),
            may_leave: self.may_leave() && self.leases == 0,
        }
    }

    /// When nobody uses it.
    fn may_leave(&self) -> bool {
        matches!(self.state, State::Ready(_)) && !self.entry.pinned
    }

    fn idle_until(&self) -> Option<Instant> {
        let can_leave = matches!(self.state, State::Ready(_)) && self.leases == 0;
        let idle_max = self.entry.idle_max.filter(|_| can_leave && !self.entry.pinned)?;
        self.last_used.checked_add(idle_max)
    }

    /// How long it stays from now on if nobody asks it.
    fn idle_left(&self, now: Instant) -> Option<Duration> {
        let idle_max = self.entry.idle_max.filter(|_| !self.entry.pinned)?;
        let idle = now.saturating_duration_since(self.last_used);
        Some(if self.leases > 0 { idle_max } else { idle_max.saturating_sub(idle) })
    }

    fn is_idle_too_long(&self, now: Instant) -> bool {
        self.idle_until().is_some_and(|until| until <= now)
    }

    /// Its engine, to be dropped by the manager.
    fn take_engine(&mut self) -> Option<(String, Box<Engine>)> {
        if !matches!(self.state, State::Ready(_)) {
            return None;
        }
        let State::Ready(engine) = std::mem::replace(&mut self.state, State::Unloading) else {
            return None;
        };
        self.past.add(&engine.status().counters());
        Some((self.name().to_owned(), engine))
    }

    fn check_failure(&self, now: Instant) -> Result<(), Refusal> {
        let State::Failed { why, until } = &self.state else { return Ok(()) };
        let rest = until.saturating_duration_since(now);
        if rest.is_zero() {
            return Ok(());
        }
        let text = format!(
            "the model `{}` could not be loaded: {why}; it is tried again in {} s",
            self.name(),
            whole_seconds(rest)
        );
        Err(Refusal { retry_after: Some(rest), ..Refusal::new(RefusalKind::Unavailable, text) })
    }

    /// Refuses requests that have waited for `most`; what they waited for is loaded all the same if
    /// that has begun. Gives the time until the next will have.
    fn refuse_overdue(&mut self, most: Duration, now: Instant) -> Option<Duration> {
        let mut next = None;
        let waiting = std::mem::take(&mut self.waiting);
        for waiter in waiting {
            let Waiter::Request(_, since, _) = &waiter else {
                self.waiting.push_back(waiter);
                continue;
            };
            let waited = now.saturating_duration_since(*since);
            if waited >= most {
                let refusal = self.overdue(waited);
                waiter.refuse(refusal);
            } else {
                let left = most - waited;
                next = Some(next.map_or(left, |next: Duration| next.min(left)));
                self.waiting.push_back(waiter);
            }
        }
        next
    }

    fn overdue(&self, waited: Duration) -> Refusal {
        let doing = match self.state {
            State::Loading => "it is being loaded",
            _ => "others are loaded or in use before it",
        };
        // As long as the last load took, if there was one.
        let retry_after = self.load_time.saturating_sub(waited).max(Duration::from_secs(1));
        let text = format!(
            "the model `{}` was not in memory within {} s, the longest that a request may wait; \
             {doing}; try again in {} s",
            self.name(),
            waited.as_secs().max(1),
            whole_seconds(retry_after)
        );
        let retry_after = Some(retry_after);
        Refusal { retry_after, ..Refusal::new(RefusalKind::Busy, text) }
    }

    /// There is no room for it now; requests may wait until there is, or nobody may.
    fn refuse_load(&mut self, refusal: &Refusal, requests_may_wait: bool) {
        let may_wait = |waiter: &Waiter| requests_may_wait && matches!(waiter, Waiter::Request(..));
        let waiting = std::mem::take(&mut self.waiting);
        let (stay, go): (VecDeque<_>, VecDeque<_>) = waiting.into_iter().partition(may_wait);
        self.waiting = stay;
        self.load_failures_total += u64::from(!go.is_empty());
        go.into_iter().for_each(|waiter| waiter.refuse(refusal.clone()));
        if self.waiting.is_empty() {
            self.wanted = None;
        }
    }

    fn refuse_all(&mut self, refusal: &Refusal) {
        self.wanted = None;
        for waiter in self.waiting.drain(..) {
            waiter.refuse(refusal.clone());
        }
    }

    fn card(&self) -> ModelCard {
        match &self.state {
            State::Ready(engine) => engine.card().clone(),
            State::Unloaded | State::Loading | State::Unloading | State::Failed { .. } => {
                self.plan.card.clone()
            }
        }
    }

    fn status(&self, now: Instant) -> ModelStatus {
        let mut engine_status = self.past.clone();
        let mut used = None;
        let state = match &self.state {
            State::Unloaded => ModelState::Unloaded,
            State::Loading => ModelState::Loading,
            State::Unloading => ModelState::Unloading,
            State::Failed { until, .. } if *until <= now => ModelState::Unloaded,
            State::Failed { why, .. } => ModelState::Failed { why: why.clone() },
            State::Ready(engine) => {
                let current = engine.status();
                engine_status.add(&current);
                engine_status.ready = current.ready;
                engine_status.trouble = current.trouble;
                engine_status.breaker = current.breaker;
                used = Some(engine.memory());
                ModelState::Ready
            }
        };
        ModelStatus {
            card: self.card(),
            state,
            is_pinned: self.entry.pinned,
            memory_estimate: self.plan.memory,
            memory_used: used,
            idle_left: self.idle_left(now),
            leases: self.leases,
            waiting: self.waiting.len() as u32,
            loads_total: self.loads_total,
            load_failures_total: self.load_failures_total,
            load_time: self.load_time,
            engine: engine_status,
        }
    }
}

/// `default` means the first model, whatever its name.
fn is_a_name(name: &str) -> bool {
    !name.is_empty() && name != "default"
}

fn shortage_text(name: &str, shortage: &Shortage) -> String {
    let Shortage { needed_bytes, budget_bytes, kept_bytes } = shortage;
    let mut text = format!(
        "the model `{name}` needs {needed_bytes} bytes, the memory budget is {budget_bytes}"
    );
    if *kept_bytes > 0 {
        text.push_str(&format!(
            ", of which {kept_bytes} are held by models that are pinned or have requests"
        ));
    }
    text + ": raise memory_budget_mb, or lower this model's kv_cache_mb, context_tokens, kv_tiers \
            or heap_pool"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use messages::{CacheNamespace, SamplingParams, SharingMode};
    use testkit::tiny_model::TinyModel;

    use super::*;
    use crate::{Prompt, Urgency};

    fn request() -> GenerateRequest {
        GenerateRequest {
            model: "a".to_owned(),
            prompt: Prompt::Text("x".to_owned()),
            params: SamplingParams::greedy(),
            stop: Vec::new(),
            include_stop: false,
            namespace: CacheNamespace::default(),
            sharing: SharingMode::Off,
            urgency: Urgency::default(),
        }
    }

    #[test]
    fn a_wait_for_a_model_is_as_long_as_one_in_the_queue() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.gguf");
        std::fs::write(&path, TinyModel::default().to_bytes()).unwrap();
        let mut options = EngineOptions::new(path, "a");
        options.queue_time_max = Some(Duration::from_secs(10));
        let plan = ModelPlan::read(&options).unwrap();
        let mut table = Table::new(u64::MAX, Duration::ZERO);
        table.add(ModelEntry { options, pinned: false, idle_max: None }, plan).unwrap();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let ask = |table: &mut Table, seconds| {
            let asked = table.ask(0, request(), after(seconds), |_| panic!("it is not loaded"));
            let Ok(Asked::Waiting(waiting)) = asked else { panic!("it waits") };
            waiting
        };
        assert_eq!(table.refuse_overdue(start), None, "nobody waits");
        let mut first = ask(&mut table, 0);
        let mut second = ask(&mut table, 4);
        assert!(table.begin_load(after(4)).is_some());
        assert_eq!(table.refuse_overdue(after(4)), Some(Duration::from_secs(6)));
        assert!(first.try_recv().is_err(), "it waits");
        assert_eq!(table.refuse_overdue(after(10)), Some(Duration::from_secs(4)));
        let refusal = first.try_recv().unwrap().err().unwrap();
        assert_eq!(refusal.kind, RefusalKind::Busy);
        assert!(refusal.retry_after >= Some(Duration::from_secs(1)));
        for text in ["`a` was not in memory within 10 s", "it is being loaded"] {
            assert!(refusal.message.contains(text), "{refusal}");
        }
        assert!(second.try_recv().is_err(), "it came later");
        assert_eq!(table.refuse_overdue(after(14)), None);
        assert!(second.try_recv().unwrap().is_err());
        // The load goes on, and whoever comes now has all the time again.
        let mut third = ask(&mut table, 15);
        assert_eq!(table.refuse_overdue(after(16)), Some(Duration::from_secs(9)));
        assert!(third.try_recv().is_err());
    }
}
