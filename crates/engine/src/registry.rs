//! How do several models share one process? Loaded when first asked for, within one memory budget,
//! and unloaded when idle or in the way.
//!
//! A request for a model in memory takes a lease on it and goes on to its engine. For any other it
//! waits in order at the model, while the one thread of `manager` makes room (`residency` says at
//! whose cost), loads, and hands the waiting requests to the new engine. It waits no longer than
//! for its answer's beginning: what it waited counts there, too. A model with a lease is
//! never unloaded. A load that fails is told to those who wait, remembered for a short while, and
//! concerns no other model.
//!
//! Reading order: `table` (the state of all models), `manager` (the thread that changes it).

mod manager;
mod table;

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use messages::{Refusal, RefusalKind, TokenId};
use tokio::sync::oneshot;

use crate::available_memory::available_memory;
use crate::turns::Turns;
use crate::{
    DecodeFuture, Delta, DeltaSource, EncodeFuture, EngineError, EngineOptions, EngineStatus,
    GenerateFuture, GenerateRequest, Generation, LiveOptions, ModelCard, ModelFuture, ModelPlan,
    ModelState, ModelStatus, Prompt, Service, StartFuture,
};
use table::{Asked, Order, Table};

/// A model that may be asked for.
#[derive(Clone, Debug)]
pub struct ModelEntry {
    /// Its `model_id` is the name that requests use.
    pub options: EngineOptions,
    /// Never unloaded to make room, nor for being idle.
    pub pinned: bool,
    /// Unloaded after so long without a request; `None`: only to make room.
    pub idle_max: Option<Duration>,
}

/// What holds for all models of a process.
pub struct RegistryOptions {
    /// For all models together; `None`: [`MEMORY_SHARE_PERCENT`] of what is available at start, and
    /// what models have in the own memory of GPUs.
    pub memory_budget_bytes: Option<u64>,
    /// How long a failed load is remembered.
    pub failure_rest: Duration,
    /// Names further models, asked now and then: those that have come appear, those that have
    /// gone disappear once they are not in memory.
    pub discover: Option<Box<dyn Fn() -> Vec<ModelEntry> + Send>>,
}

/// The rest is for requests, connections and everything else on the machine.
pub const MEMORY_SHARE_PERCENT: u64 = 90;

impl Default for RegistryOptions {
    fn default() -> Self {
        // Long enough that a stream of requests does not load a broken file again and again, short
        // enough for somebody who has mended it.
        let failure_rest = Duration::from_secs(30);
        Self { memory_budget_bytes: None, failure_rest, discover: None }
    }
}

/// All models of a process. Dropping it unloads them and ends its thread.
pub struct Registry {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What leases, the manager and callers share.
struct Shared {
    table: Mutex<Table>,
    /// Something is to do for the manager.
    work: Condvar,
    /// Somebody waits for a model, or nobody will any more.
    waits: Condvar,
    turns: Arc<Turns>,
}

impl Registry {
    /// Reads what every entry needs, without loading any; the first is `default`.
    ///
    /// # Errors
    /// [`EngineError`] when an entry cannot be served, or two have one name.
    pub fn start(entries: Vec<ModelEntry>, options: RegistryOptions) -> Result<Self, EngineError> {
        let plan = |entry: &ModelEntry| ModelPlan::read(&entry.options);
        let plans = entries.iter().map(plan).collect::<Result<Vec<_>, _>>()?;
        let available = || available_memory().unwrap_or(u64::MAX);
        let beside: u64 = plans.iter().map(|plan| plan.gpu_bytes).sum();
        let share = || (available() / 100 * MEMORY_SHARE_PERCENT).saturating_add(beside);
        let budget_bytes = options.memory_budget_bytes.unwrap_or_else(share);
        let mut table = Table::new(budget_bytes, options.failure_rest);
        for (entry, plan) in entries.into_iter().zip(plans) {
            table.add(entry, plan)?;
        }
        let (work, waits) = (Condvar::new(), Condvar::new());
        let shared =
            Arc::new(Shared { table: Mutex::new(table), work, waits, turns: Turns::new() });
        let mut registry = Self { shared: Arc::clone(&shared), threads: Vec::new() };
        let of_manager = Arc::clone(&shared);
        let discover = options.discover;
        registry.spawn("pelton-models", move || manager::run(&of_manager, discover.as_deref()))?;
        registry.spawn("pelton-waits", move || shared.refuse_overdue())?;
        Ok(registry)
    }

    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), EngineError> {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)
            .map_err(|error| EngineError::Option(format!("no thread for models: {error}")))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Loads a model and waits for it.
    ///
    /// # Errors
    /// The reason it cannot be loaded.
    pub fn load_blocking(&self, name: &str) -> Result<ModelStatus, String> {
        let order = self.order(name, Order::Load).map_err(|refusal| refusal.message)?;
        let loaded = order.blocking_recv().unwrap_or_else(|_| Err(stopping()));
        let status = self.status_of(name).map_err(|refusal| refusal.message)?;
        match (loaded, &status.state) {
            (Ok(()), _) => Ok(status),
            (Err(_), ModelState::Failed { why }) => Err(why.clone()),
            (Err(refusal), _) => Err(refusal.message),
        }
    }

    /// The models in memory.
    pub fn loaded_names(&self) -> Vec<String> {
        let statuses = self.model_statuses().into_iter();
        let loaded = statuses.filter(|status| status.state == ModelState::Ready);
        loaded.map(|status| status.card.id).collect()
    }

    /// Every model holds these from now on; running requests are not touched.
    pub fn take_up(&self, live: LiveOptions) {
        self.shared.lock().take_up(live);
        self.shared.waits.notify_all();
    }

    /// Offers a further model.
    ///
    /// # Errors
    /// [`EngineError`] when it cannot be served, or another has its name.
    pub fn add(&self, entry: ModelEntry) -> Result<(), EngineError> {
        // Read without the lock: files may be slow.
        let plan = ModelPlan::read(&entry.options)?;
        self.shared.lock().add(entry, plan)
    }

    /// What all models together may take, and what is taken.
    pub fn memory(&self) -> RegistryMemory {
        let table = self.shared.lock();
        RegistryMemory { budget_bytes: table.budget_bytes(), held_bytes: table.held_bytes() }
    }

    fn order(
        &self,
        name: &str,
        order: Order,
    ) -> Result<oneshot::Receiver<Result<(), Refusal>>, Refusal> {
        let (reply, receiver) = oneshot::channel();
        self.shared.lock().order(name, order, reply)?;
        self.shared.work.notify_all();
        Ok(receiver)
    }

    fn status_of(&self, name: &str) -> Result<ModelStatus, Refusal> {
        let table = self.shared.lock();
        let index = table.find(name)?;
        Ok(table.status(index, Instant::now()))
    }

    fn ordered(&self, name: String, order: Order) -> ModelFuture<'_> {
        Box::pin(async move {
            let receiver = self.order(&name, order)?;
            receiver.await.unwrap_or_else(|_| Err(stopping()))?;
            self.status_of(&name)
        })
    }
}

/// Bytes of the memory budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegistryMemory {
    pub budget_bytes: u64,
    /// By models that are loaded, being loaded or being unloaded, as estimated.
    pub held_bytes: u64,
}

impl Service for Registry {
    fn models(&self) -> Vec<ModelCard> {
        self.shared.lock().cards()
    }

    fn generate(&self, request: GenerateRequest) -> GenerateFuture<'_> {
        let asked = self.shared.ask(request);
        Box::pin(async move {
            let (lease, admitted) = match asked? {
                Asked::Admitted(lease, admitted) => (lease, admitted),
                Asked::Waiting(waiting) => waiting.await.unwrap_or_else(|_| Err(stopping()))?,
            };
            let generation = admitted.await.unwrap_or_else(|_| Err(stopping()))?;
            let source = Box::new(Leased { source: generation.source, _lease: lease });
            Ok(Generation { source, ..generation })
        })
    }

    fn encode(&self, model: &str, prompt: Prompt) -> EncodeFuture<'_> {
        let name = model.to_owned();
        Box::pin(async move {
            self.ordered(name.clone(), Order::Load).await?;
            let enqueued = self.shared.lock().engine(&name)?.enqueue_prompt(prompt)?;
            enqueued.await.unwrap_or_else(|_| Err(stopping()))
        })
    }

    fn decode(&self, model: &str, ids: Vec<TokenId>) -> DecodeFuture<'_> {
        let name = model.to_owned();
        Box::pin(async move {
            self.ordered(name.clone(), Order::Load).await?;
            self.shared.lock().engine(&name)?.decode_ids(&ids)
        })
    }

    fn status(&self) -> EngineStatus {
        self.shared.lock().whole_status()
    }

    fn model_statuses(&self) -> Vec<ModelStatus> {
        self.shared.lock().statuses(Instant::now())
    }

    fn load_model(&self, name: &str) -> ModelFuture<'_> {
        self.ordered(name.to_owned(), Order::Load)
    }

    fn unload_model(&self, name: &str) -> ModelFuture<'_> {
        self.ordered(name.to_owned(), Order::Unload)
    }

    fn stop(&self) {
        self.shared.lock().stop();
        self.shared.work.notify_all();
        self.shared.waits.notify_all();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // The manager catches what a load throws, so it ends only by being told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(self: &Arc<Self>, request: GenerateRequest) -> Result<Asked, Refusal> {
        let mut table = self.lock();
        let index = table.find(&request.model)?;
        let lease = |table: &mut Table| Lease::new(self, table, index);
        let asked = table.ask(index, request, Instant::now(), lease);
        drop(table);
        if matches!(asked, Ok(Asked::Waiting(_))) {
            self.work.notify_all();
            self.waits.notify_all();
        }
        asked
    }

    /// Refuses who has waited too long for a model, until the registry stops. A thread of its own:
    /// the manager's does nothing else while it loads.
    fn refuse_overdue(&self) {
        let mut table = self.lock();
        while !table.is_stopping() {
            // An hour is as good as forever, and no overflow.
            let patience = table.refuse_overdue(Instant::now());
            let patience = patience.unwrap_or(Duration::from_secs(3600));
            let waited = self.waits.wait_timeout(table, patience);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn stopping() -> Refusal {
    Refusal::new(RefusalKind::Unavailable, "the server is stopping")
}

/// A request's hold on its model: the model stays in memory until it is dropped.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    name: String,
}

impl Lease {
    fn new(shared: &Arc<Shared>, table: &mut Table, index: usize) -> Self {
        Self { shared: Arc::clone(shared), name: table.lend(index) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.lock().give_back(&self.name, Instant::now());
        self.shared.work.notify_all();
    }
}

/// An answer that keeps its model in memory.
struct Leased {
    source: Box<dyn DeltaSource>,
    _lease: Lease,
}

impl DeltaSource for Leased {
    fn started(&mut self) -> StartFuture<'_> {
        self.source.started()
    }

    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Delta>> + Send + '_>> {
        self.source.next()
    }

    fn next_blocking(&mut self) -> Option<Delta> {
        self.source.next_blocking()
    }

    fn take_vector(&mut self) -> Option<Box<[f32]>> {
        self.source.take_vector()
    }

    fn decoding(&self) -> Option<Duration> {
        self.source.decoding()
    }
}
