//! What holds a loaded model together? Its threads, its queues and the calls from outside.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use device::{BlitQueue, CommandRing, FailPlan, HeapPool};
use kv_tiers::TierSettings;
use messages::{Limits, Refusal, RefusalKind, TokenId};
use scheduler::{STEPS_IN_FLIGHT_MAX, Scheduler};
use tokenizer::{DecodeOptions, Tokenizer};

use crate::adapters::{self, NamedAdapter};
use crate::block_tiers::{BlockTiers, KeptForm};
use crate::draft_loading::OpenedDraft;
use crate::draft_model::DraftModel;
use crate::guarded::{Guarded, SharedBreaker, whole_seconds};
use crate::guessing::Guessing;
use crate::intake::{Desk, Intake, Job, Replied};
use crate::intake_lanes::{Lanes, lanes};
use crate::limiter::LimiterRules;
use crate::pacing::Pacing;
use crate::readers::Readers;
use crate::resources::TierBuffers;
use crate::step_loop::{Event, Helpers, Shared, StepLoop};
use crate::turns::Turns;
use crate::waiting::{Queue, Waiting};
use crate::weight_manager::LoadedWeights;
use crate::{
    BreakerState, DecodeFuture, EncodeFuture, EncodedPrompt, EngineError, EngineOptions,
    EngineStatus, GenerateFuture, GenerateRequest, Generation, LiveOptions, ModelCard, ModelFuture,
    ModelMemory, ModelStatus, Prompt, Service, loading, resources,
};

/// Requests that need no place, for they are told what others are, or that are being encoded. They
/// wait for nobody; what they hold is memory, some kilobytes each.
const READERS_ALONG_MAX: u32 = 1024;
/// Without a finished step for this long, or ten times the slowest step so far, something hangs.
const STALL_MIN: Duration = Duration::from_secs(5);
const STALL_STEPS: u32 = 10;

/// One loaded model and everything that serves it. Dropping it ends its threads.
pub struct Engine {
    card: ModelCard,
    adapters: Arc<[NamedAdapter]>,
    memory: ModelMemory,
    desk: Arc<Desk>,
    queue: Arc<Queue>,
    jobs: Option<Lanes<Job>>,
    shared: Arc<Mutex<Shared>>,
    breaker: Arc<SharedBreaker>,
    /// All of the device's; the program that uses them runs on its own thread.
    pools: Vec<HeapPool>,
    limits: Limits,
    weights: LoadedWeights,
    tokenizer: Arc<Tokenizer>,
    threads: Vec<JoinHandle<()>>,
    fail_plan: FailPlan,
}

impl Engine {
    /// Loads a model and starts serving it.
    ///
    /// # Errors
    /// [`EngineError`] naming the file, setting, tensor or amount of memory at fault.
    pub fn load(options: &EngineOptions) -> Result<Self, EngineError> {
        Self::load_beside(options, &Turns::new())
    }

    /// The same for one of several models that compute in turns.
    pub(crate) fn load_beside(
        options: &EngineOptions,
        turns: &Arc<Turns>,
    ) -> Result<Self, EngineError> {
        let loaded = loading::load(options)?;
        let (limits, breaker) = (loaded.limits, SharedBreaker::new(options.breaker));
        let (form, mut pools) = (KeptForm::of(&*loaded.program), loaded.program.heap_pools());
        let kept = tiers_of(options, loaded.states, &form);
        let buffers = TierBuffers::new(options, &kept, form.block.bytes, limits.block_count);
        let staging = resources::staging(options, buffers, &pools)?;
        let (turns, steps) = (turns.join(), Arc::clone(&breaker));
        let streaming = turns.streaming();
        let program = Guarded { inner: loaded.program, turns, breaker: Arc::clone(&breaker) };
        let ring = start_ring(program, (&limits, loaded.states), options, staging.is_some())?;
        // The limiter decides who may wait; the scheduler's own queue must hold those that could
        // start at once, too, since none has a slot until the next plan.
        let queues = Limits { waiting_max: limits.sequences_max + limits.waiting_max, ..limits };
        let admitted_max = queues.waiting_max + READERS_ALONG_MAX;
        let (events, inbox) = bounded(Desk::events_max(admitted_max));
        let shared = Arc::new(Mutex::new(Shared::default()));
        let (identity, block_tokens) = (&loaded.identity, limits.block_tokens);
        let tiers =
            BlockTiers::open(&kept, identity, &form, block_tokens, events.clone(), staging)?;
        let readers = Readers::new(options.sharing.as_ref(), loaded.identity, &loaded.card)?;
        let scheduler = new_scheduler(queues, tiers.is_some(), (loaded.reads_whole, loaded.states));
        let mut memory = ModelMemory { tiers_bytes: buffers.bytes(), ..loaded.memory };
        let draft = load_draft(options, &limits, &loaded.tokenizer, &mut memory)?;
        pools.extend(draft.iter().flat_map(DraftModel::heap_pools));
        let queue = Queue::new(limiter_rules(options, &limits));
        let waiting = Waiting::new(Arc::clone(&queue), block_tokens);
        let guessing = Guessing::new(options.speculation, draft);
        let pacing = Pacing::new(options.pacing);
        let parts =
            Helpers { tiers, guessing, pacing, readers, waiting, breaker: steps, streaming };
        let step_loop = StepLoop::new(scheduler, ring, inbox, Arc::clone(&shared), parts);
        let (shares, saving) = (options.sharing.is_some(), Arc::clone(&options.save_progress));
        let desk = Arc::new(Desk::new(events, admitted_max, Arc::clone(&queue), shares));
        let mut threads = vec![spawn("pelton-engine", move || step_loop.run(&saving))?];
        let intake = Intake {
            tokenizer: Arc::clone(&loaded.tokenizer),
            chat_prompt: loaded.chat_prompt,
            grammars: loaded.grammars,
            model: loaded.card.id.clone(),
            adapters: Arc::clone(&loaded.adapters),
            context_tokens_max: limits.context_tokens_max,
            rows: loaded.card.vocabulary_size,
            output: loaded.output,
            vector_texts: loaded.vector_texts,
            reads_whole: loaded.reads_whole,
            prefix_cache: options.prefix_cache && !loaded.reads_whole,
            desk: Arc::clone(&desk),
            fingerprint: loaded.identity,
        };
        Ok(Self {
            card: loaded.card,
            adapters: loaded.adapters,
            memory,
            desk,
            queue,
            jobs: Some(start_intake(intake, admitted_max, &mut threads)?),
            shared,
            breaker,
            pools,
            limits,
            weights: loaded.weights,
            tokenizer: loaded.tokenizer,
            threads,
            fail_plan: options.failpoints.device.clone(),
        })
    }

    /// What the model takes.
    pub fn memory(&self) -> ModelMemory {
        self.memory
    }

    /// Holds these from now on; requests go on as they began.
    pub fn take_up(&self, live: &LiveOptions) {
        self.breaker.set_rules(live.breaker);
        self.queue.set_bounds(live.waiting_max, live.queue_time_max);
        self.queue.set_token_target(live.pacing.itl_target);
        self.desk.send(Event::TakeUp(live.sharing, live.pacing));
    }

    pub(crate) fn card(&self) -> &ModelCard {
        &self.card
    }

    fn check_name(&self, name: &str) -> Result<(), Refusal> {
        let names = self.adapters.iter().map(|adapter| adapter.name.as_str());
        let is_here = name == "default" || name == self.card.id;
        if is_here || adapters::number_of(names, &[&self.card.id, "default"], name).is_some() {
            return Ok(());
        }
        let asked: String = name.chars().take(100).collect();
        let text = format!(
            "there is no model `{asked}` here; there is `{}` (also as `default`)",
            self.card.id
        );
        let field = Some("model".to_owned());
        Err(Refusal { field, ..Refusal::new(RefusalKind::UnknownModel, text) })
    }

    /// Takes a request, which came at `arrived`, to the intake, or refuses it; the answer comes
    /// through the channel.
    pub(crate) fn enqueue(
        &self,
        request: GenerateRequest,
        arrived: Instant,
    ) -> Result<Admission, Refusal> {
        let enqueued = self.try_enqueue(request, arrived);
        if enqueued.is_err() {
            self.queue.refused_total.fetch_add(1, Ordering::Relaxed);
        }
        enqueued
    }

    pub(crate) fn enqueue_prompt(&self, prompt: Prompt) -> Result<Replied<EncodedPrompt>, Refusal> {
        let jobs = self.jobs.as_ref().expect("invariant: open until dropped");
        Intake::enqueue_prompt(&self.desk, jobs, prompt)
    }

    pub(crate) fn decode_ids(&self, ids: &[TokenId]) -> Result<String, Refusal> {
        let size = self.tokenizer.vocabulary_size();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= size) {
            let text = format!("there is no token {id}, the vocabulary has {size}");
            return Err(Refusal::invalid("tokens", text));
        }
        let options = DecodeOptions { skip_control: false, at_text_start: false };
        Ok(self.tokenizer.decode(ids, options))
    }

    fn try_enqueue(
        &self,
        request: GenerateRequest,
        arrived: Instant,
    ) -> Result<Admission, Refusal> {
        self.check_name(&request.model)?;
        self.breaker.check()?;
        let jobs = self.jobs.as_ref().expect("invariant: open until dropped");
        Intake::enqueue(&self.desk, jobs, request, arrived)
    }
}

fn new_scheduler(
    limits: Limits,
    has_tiers: bool,
    (reads_whole, states): (bool, Option<u32>),
) -> Scheduler {
    let mut scheduler = Scheduler::new(limits);
    if reads_whole {
        scheduler.read_whole();
    }
    if let Some(states) = states {
        scheduler.keep_states(states);
    }
    if has_tiers {
        scheduler.note_evictions();
    }
    scheduler
}

/// Where blocks are kept that the device has no room for: nowhere, where they are nothing without
/// the state at their end and that stays on the device.
fn tiers_of(options: &EngineOptions, states: Option<u32>, form: &KeptForm) -> TierSettings {
    let asked = &options.kv_tiers;
    if states.is_none() || form.state_bytes.is_some() {
        return asked.clone();
    }
    if asked.ram_bytes > 0 || asked.disk_bytes > 0 {
        tracing::warn!(
            model = options.model_id,
            "kv_tiers are not used for this model: it carries a state from token to token, which \
             stays on this device, and what leaves it is computed again; give the memory to \
             limits.kv_cache_mb"
        );
    }
    TierSettings::default()
}

/// The draft model, if there is to be one; `memory` then counts it, too.
fn load_draft(
    options: &EngineOptions,
    limits: &Limits,
    tokenizer: &Tokenizer,
    memory: &mut ModelMemory,
) -> Result<Option<DraftModel>, EngineError> {
    let Some(path) = &options.draft_model else { return Ok(None) };
    let opened = OpenedDraft::open(path, options, limits)?;
    *memory += opened.memory;
    opened.load(tokenizer).map(Some)
}

fn limiter_rules(options: &EngineOptions, limits: &Limits) -> LimiterRules {
    LimiterRules {
        running_max: limits.sequences_max,
        waiting_max: limits.waiting_max,
        block_count: limits.block_count,
        token_target: options.token_target,
        queue_time_max: options.queue_time_max,
    }
}

/// The queue of copies is there only where blocks move.
fn start_ring(
    program: Guarded,
    (limits, states): (&Limits, Option<u32>),
    options: &EngineOptions,
    moves_blocks: bool,
) -> Result<CommandRing, EngineError> {
    let (ring, blit) = (&options.command_ring, &options.blit_queue);
    if !(1..=STEPS_IN_FLIGHT_MAX).contains(&ring.depth) {
        let text = format!("command_ring.ring_size is {}, it must be between 1 and 4", ring.depth);
        return Err(EngineError::Option(text));
    }
    let queue = (moves_blocks && blit.enabled)
        .then(|| BlitQueue::start(blit, ring.trace.clone()))
        .transpose()?;
    let capacity = loading::capacity(limits, states);
    Ok(CommandRing::start(Box::new(program), &capacity, ring.clone(), queue)?)
}

/// Where requests are handed to the threads that render and encode: texts are short next to
/// answers, so two keep any device busy.
fn start_intake(
    intake: Intake,
    admitted_max: u32,
    threads: &mut Vec<JoinHandle<()>>,
) -> Result<Lanes<Job>, EngineError> {
    let intake = Arc::new(intake);
    let (jobs, lanes) = lanes(admitted_max as usize);
    for lane in lanes {
        let intake = Arc::clone(&intake);
        threads.push(spawn("pelton-intake", move || intake.serve(&lane))?);
    }
    Ok(jobs)
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, EngineError> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map_err(|error| EngineError::Option(format!("the thread {name} cannot start: {error}")))
}

/// Where the intake answers.
pub(crate) type Admission = tokio::sync::oneshot::Receiver<Result<Generation, Refusal>>;

impl Service for Engine {
    fn models(&self) -> Vec<ModelCard> {
        let names = self.adapters.iter().map(|adapter| adapter.name.as_str());
        self.card.with_adapters(names)
    }

    fn generate(&self, request: GenerateRequest) -> GenerateFuture<'_> {
        let enqueued = self.enqueue(request, Instant::now());
        Box::pin(async move {
            let stopping = Refusal::new(RefusalKind::Unavailable, "the engine is stopping");
            enqueued?.await.unwrap_or(Err(stopping))
        })
    }

    fn encode(&self, model: &str, prompt: Prompt) -> EncodeFuture<'_> {
        let enqueued = self.check_name(model).and_then(|()| self.enqueue_prompt(prompt));
        Box::pin(async move {
            let stopping = Refusal::new(RefusalKind::Unavailable, "the engine is stopping");
            enqueued?.await.unwrap_or(Err(stopping))
        })
    }

    fn decode(&self, model: &str, ids: Vec<TokenId>) -> DecodeFuture<'_> {
        let decoded = self.check_name(model).and_then(|()| self.decode_ids(&ids));
        Box::pin(std::future::ready(decoded))
    }

    fn status(&self) -> EngineStatus {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut status = shared.status.clone();
        let patience = STALL_MIN.max(shared.step_max * STALL_STEPS);
        let waited =
            shared.progress.map_or(Duration::ZERO, |since| since.elapsed_at(Instant::now()));
        if shared.in_flight > 0 && shared.status.steps_total > 0 && waited > patience {
            let seconds = waited.as_secs();
            status.trouble =
                Some(format!("no step has finished for {seconds} s with work waiting"));
        }
        status.breaker = self.breaker.state();
        status.breaker_opened_total = self.breaker.opened_total();
        match status.breaker {
            // Half open, the next request decides: it must be let through.
            BreakerState::Closed | BreakerState::HalfOpen => {}
            BreakerState::Open { rest } => {
                let seconds = whole_seconds(rest);
                let text = format!("the device failed repeatedly; it rests for {seconds} s more");
                status.trouble = Some(text);
            }
        }
        let ended = self.threads.iter().any(JoinHandle::is_finished);
        if ended {
            status.trouble = Some("a thread of the engine has ended".to_owned());
        }
        let stuck = status.resources.command_ring.steps_stuck;
        if stuck > 0 {
            let text = format!("the device has hung: {stuck} steps were given up and run still");
            status.trouble = Some(text);
        }
        status.ready = status.trouble.is_none();
        status.resources.heap_pool = resources::heap_statistics(&self.pools);
        status.kv_blocks_total = self.limits.block_count;
        status.kv_block_tokens = self.limits.block_tokens;
        status.queue = self.queue.status();
        status.weights = self.weights.status;
        status.encoded = self.tokenizer.counts();
        status.requests_total = self.desk.requests_total.load(Ordering::Relaxed);
        status.requests_refused_total = self.queue.refused_total.load(Ordering::Relaxed);
        status
    }

    fn model_statuses(&self) -> Vec<ModelStatus> {
        let (card, memory) = (self.card.clone(), self.memory);
        vec![ModelStatus::always_ready(card, memory, self.status())]
    }

    fn load_model(&self, name: &str) -> ModelFuture<'_> {
        let loaded = self.check_name(name).map(|()| self.model_statuses().remove(0));
        Box::pin(std::future::ready(loaded))
    }

    fn unload_model(&self, name: &str) -> ModelFuture<'_> {
        let text = "this is the only model here and stays until the process ends";
        let refused = Err(Refusal::new(RefusalKind::Invalid, text));
        Box::pin(std::future::ready(self.check_name(name).and(refused)))
    }

    fn stop(&self) {
        self.desk.send(Event::Stop);
    }
}

/// Time since an instant that may lie in the future by a race.
trait Elapsed {
    fn elapsed_at(&self, now: Instant) -> Duration;
}

impl Elapsed for Instant {
    fn elapsed_at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*self)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
        drop(self.jobs.take());
        // A test that fails ends here, too, and has not opened its gate.
        self.fail_plan.let_go();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
