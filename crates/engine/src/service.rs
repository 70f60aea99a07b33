//! What may the outside ask of the engine? A closed list of calls, implemented by the engine and
//! by scripted stand-ins in tests.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use answer_format::AnswerFormat;
use kv_tiers::TierCounts;
use messages::{
    CacheNamespace, CachedPrompt, FinishReason, Priority, ProposalCounts, Refusal, SamplingParams,
    SharingMode, SharingReport, TokenId,
};
use tokenizer::EncodeCounts;

use crate::{
    BreakerState, ModelFuture, ModelOrigin, ModelStatus, ResourceStatus, StepSizes, WeightStatus,
};

/// The engine as its edges (HTTP, terminal, benchmark) see it.
pub trait Service: Send + Sync {
    /// Every model that can be asked for; the first is `default`.
    fn models(&self) -> Vec<ModelCard>;

    /// Admits a request: lets it into the queue, renders, encodes and checks lengths.
    ///
    /// The future is short: it ends when the request is admitted or refused, not when it starts
    /// ([`Generation::started`]) or is answered. Dropping it, or the [`Generation`] it gives,
    /// cancels the request; its sequence is gone by the next planned step.
    fn generate(&self, request: GenerateRequest) -> GenerateFuture<'_>;

    /// The ids of a prompt, rendered and encoded as [`Service::generate`] would.
    fn encode(&self, model: &str, prompt: Prompt) -> EncodeFuture<'_>;

    /// The text of some ids, control tokens included.
    fn decode(&self, model: &str, ids: Vec<TokenId>) -> DecodeFuture<'_>;

    /// Counters and gauges of the moment, for `/metrics`, `/ready` and the terminal.
    fn status(&self) -> EngineStatus;

    /// Each of [`Service::models`], in that order.
    fn model_statuses(&self) -> Vec<ModelStatus>;

    /// Brings a model into memory, as a request for it would.
    ///
    /// # Errors
    /// [`Refusal`] when there is no such model or it cannot be loaded.
    fn load_model(&self, name: &str) -> ModelFuture<'_>;

    /// Takes a model out of memory.
    ///
    /// # Errors
    /// [`Refusal`] when there is no such model, or requests are using it.
    fn unload_model(&self, name: &str) -> ModelFuture<'_>;

    /// Ends whatever still runs, each stream with a fault that says so, and admits nothing more.
    fn stop(&self);
}

pub type GenerateFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Generation, Refusal>> + Send + 'a>>;

pub type EncodeFuture<'a> =
    Pin<Box<dyn Future<Output = Result<EncodedPrompt, Refusal>> + Send + 'a>>;
pub type DecodeFuture<'a> = Pin<Box<dyn Future<Output = Result<String, Refusal>> + Send + 'a>>;

/// A prompt as the model reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncodedPrompt {
    pub ids: Vec<TokenId>,
    /// The text of each id, control tokens included.
    pub texts: Vec<String>,
}

/// A model as it is shown to callers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelCard {
    /// The name requests use.
    pub id: String,
    /// Seconds since 1970 at which it was loaded.
    pub created: u64,
    pub context_tokens_max: u32,
    pub vocabulary_size: u32,
    pub parameters: u64,
    /// "reference", "cpu"...
    pub device: String,
    /// How its answers mark thoughts and calls.
    pub answer_format: AnswerFormat,
    /// How long the vectors are that it gives of texts; `None`: it generates text.
    pub vector_width: Option<u32>,
    /// Whether those are scores of how well a text answers another.
    pub ranks: bool,
    /// How it samples where a request does not say.
    pub defaults: SamplingParams,
    /// The model that it is an adapter of.
    pub base: Option<String>,
    /// Of what it was made.
    pub origin: ModelOrigin,
}

impl ModelCard {
    /// The model's, then those of its adapters.
    pub(crate) fn with_adapters<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<Self> {
        let of =
            |name: &str| Self { id: name.to_owned(), base: Some(self.id.clone()), ..self.clone() };
        std::iter::once(self.clone()).chain(names.map(of)).collect()
    }
}

/// One request for one answer. `n` answers are `n` requests.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateRequest {
    /// A model's id, or `default`.
    pub model: String,
    pub prompt: Prompt,
    pub params: SamplingParams,
    /// Texts that end the answer; the answer stops before them.
    pub stop: Vec<String>,
    /// Keep the stop text at the end of the answer.
    pub include_stop: bool,
    /// Whose request it is: nothing is shared between namespaces.
    pub namespace: CacheNamespace,
    /// Whether the answer may come from, or serve, another request.
    pub sharing: SharingMode,
    pub urgency: Urgency,
}

/// When an answer is wanted, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Urgency {
    pub priority: Priority,
    /// `None`: the answer may take as long as it takes.
    pub deadline: Option<Deadline>,
}

/// When an answer comes too late to be of use: it is then broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Instant,
    /// So long after the request came, for the text of the error.
    pub after: Duration,
}

impl Deadline {
    /// So long after the request came at `from`; `None`: beyond all time.
    pub fn after(from: Instant, after: Duration) -> Option<Self> {
        Some(Self { at: from.checked_add(after)?, after })
    }

    /// What the caller is told when it has passed.
    pub fn text(&self) -> String {
        let ms = self.after.as_millis();
        format!("the answer was not complete {ms} ms after the request, its deadline (timeout_ms)")
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Plain text, encoded with the model's usual leading token.
    Text(String),
    /// Ids as given; each is checked against the vocabulary.
    Tokens(Vec<TokenId>),
    /// Messages for the model's chat template.
    Chat(chat::Conversation),
    /// To be told by a vector, not to be answered.
    Vector(VectorInput),
}

impl Prompt {
    /// Bytes of text that are to be encoded.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Text(text) | Self::Vector(VectorInput::Text { text, .. }) => text.len(),
            Self::Tokens(_) | Self::Vector(VectorInput::Tokens(_)) => 0,
            Self::Chat(conversation) => conversation.text_bytes(),
            Self::Vector(VectorInput::Pair(TextPair { query, document, instruction })) => {
                query.len() + document.len() + instruction.as_ref().map_or(0, String::len)
            }
        }
    }
}

/// A text that is wanted as a vector, framed as the model expects.
#[derive(Clone, Debug, PartialEq)]
pub enum VectorInput {
    Text {
        text: String,
        /// Leave out the end of a text that is too long, instead of refusing it.
        cuts: bool,
    },
    /// Ids as given.
    Tokens(Vec<TokenId>),
    /// How well a text answers another: of a model that ranks.
    Pair(TextPair),
}

/// A question, and what may answer it.
#[derive(Clone, Debug, PartialEq)]
pub struct TextPair {
    pub query: String,
    pub document: String,
    /// What is meant by answering, for models that are told; `None`: a usual search.
    pub instruction: Option<String>,
}

/// A running answer: pull deltas until one carries a finish.
pub struct Generation {
    pub prompt_tokens: u32,
    /// Whether the answer is computed for this request, and why.
    pub sharing: SharingReport,
    /// How it waited for a place; known once it has [started](Generation::started).
    pub queue: QueueReport,
    /// The last characters of a rendered conversation: a template may have begun the answer.
    pub prompt_end: String,
    pub(crate) source: Box<dyn DeltaSource>,
}

/// How a request waited until its answer could be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueReport {
    pub waited: Duration,
    /// Requests that were in the queue when it came.
    pub before: u32,
}

pub type StartFuture<'a> = Pin<Box<dyn Future<Output = Result<QueueReport, Refusal>> + Send + 'a>>;

/// Where a [`Generation`]'s deltas come from.
pub trait DeltaSource: Send {
    /// Ready when the wait for a place is over. A source without a queue never waits.
    fn started(&mut self) -> StartFuture<'_> {
        Box::pin(std::future::ready(Ok(QueueReport::default())))
    }
    /// The next delta, `None` after the last.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Delta>> + Send + '_>>;
    /// The same for threads outside any async runtime.
    fn next_blocking(&mut self) -> Option<Delta>;
    /// The vector that was asked for, once its answer has ended well.
    fn take_vector(&mut self) -> Option<Box<[f32]>> {
        None
    }
    /// From the step that gave the answer's first token to the one that gave the last so far, by
    /// the engine's clock, however late they are read; `None` where no step did.
    fn decoding(&self) -> Option<Duration> {
        None
    }
}

impl Generation {
    pub fn new(prompt_tokens: u32, sharing: SharingReport, source: Box<dyn DeltaSource>) -> Self {
        let (queue, prompt_end) = (QueueReport::default(), String::new());
        Self { prompt_tokens, sharing, queue, prompt_end, source }
    }

    /// How long the answer took to be computed, its first token apart.
    pub fn decoding(&self) -> Option<Duration> {
        self.source.decoding()
    }

    /// Waits until the answer is being computed. Who reads deltas without asking is told of a
    /// refusal by an answer that failed.
    ///
    /// # Errors
    /// `Busy` when that takes longer than a request may wait.
    pub async fn started(&mut self) -> Result<(), Refusal> {
        self.queue = self.source.started().await?;
        Ok(())
    }

    pub async fn next(&mut self) -> Option<Delta> {
        self.source.next().await
    }

    pub fn next_blocking(&mut self) -> Option<Delta> {
        self.source.next_blocking()
    }

    /// The vector of a [`Prompt::Vector`], once its last delta was read.
    pub fn take_vector(&mut self) -> Option<Box<[f32]>> {
        self.source.take_vector()
    }
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Delta {
    /// Complete characters; may be empty while a character or a possible stop text is held back.
    pub text: String,
    /// The tokens this delta is made of, in order (also those whose text is still held back).
    pub tokens: Vec<DeltaToken>,
    /// On the last delta only.
    pub end: Option<End>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeltaToken {
    pub id: TokenId,
    pub logprob: Option<DeltaLogprob>,
}

/// One position's log-probabilities with the tokens' bytes, as OpenAI's clients expect them.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaLogprob {
    pub chosen: ScoredToken,
    pub top: Vec<ScoredToken>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ScoredToken {
    pub id: TokenId,
    pub bytes: Arc<[u8]>,
    pub logprob: f32,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    Finished {
        reason: FinishReason,
        /// The stop string or token that ended it, where one did.
        stop: Option<String>,
        completion_tokens: u32,
        /// Of the prompt: found in the cache and not computed.
        cached: CachedPrompt,
        /// Guesses at the answer that were checked on the way.
        proposals: ProposalCounts,
    },
    /// It turned out that the request cannot be served as written.
    Refused(Refusal),
    /// The machine failed mid-answer; the text says how.
    Failed(messages::Fault),
    /// The request's deadline passed.
    Late(Deadline),
}

/// Counters (ever growing) and gauges of one engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStatus {
    pub ready: bool,
    /// Why it is not ready or not healthy, when it is not.
    pub trouble: Option<String>,
    /// Whether the device is trusted with work.
    pub breaker: BreakerState,
    pub breaker_opened_total: u64,
    pub sequences_running: u32,
    pub sequences_waiting: u32,
    /// Answers broken off at their deadlines.
    pub requests_late_total: u64,
    pub kv_blocks_used: u32,
    pub kv_blocks_total: u32,
    /// Positions of each.
    pub kv_block_tokens: u32,
    pub requests_total: u64,
    pub requests_refused_total: u64,
    pub requests_cancelled_total: u64,
    pub prompt_tokens_total: u64,
    pub generation_tokens_total: u64,
    /// Positions computed in steps, of prompts and answers; what was cached is not among them.
    pub computed_tokens_total: u64,
    pub steps_total: u64,
    /// Their sum is `computed_tokens_total`.
    pub step_sizes: StepSizes,
    pub step_seconds_total: f64,
    pub preemptions_total: u64,
    /// Blocks that preempted sequences took back from memory and did not compute again.
    pub returned_blocks_total: u64,
    pub prefix_cache: PrefixCacheStatus,
    pub kv_tiers: TierCounts,
    pub speculation: SpeculationStatus,
    pub sharing: SharingStatus,
    pub queue: QueueStatus,
    pub resources: ResourceStatus,
    /// How its weights were loaded.
    pub weights: WeightStatus,
    /// What its tokenizer encoded.
    pub encoded: EncodeCounts,
}

/// Who waits for a place, and what became of others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueStatus {
    /// How many may run at once now, by memory, latency and settings.
    pub running_limit: u32,
    /// Requests that wait, those included whose prompts are being encoded.
    pub length: u32,
    /// How long one would wait that came now; `None`: not known yet.
    pub newcomer_wait: Option<Duration>,
    pub started_total: u64,
    /// Of those that started.
    pub waited_seconds_total: f64,
    /// Refused because too many waited.
    pub refused_full_total: u64,
    /// Refused because they would have waited too long, or had.
    pub refused_late_total: u64,
}

/// How much of the prompts was found in the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixCacheStatus {
    /// Prompt tokens of requests that were looked up.
    pub queried_tokens_total: u64,
    /// Those of them that were not computed.
    pub hit_tokens_total: u64,
    pub evicted_blocks_total: u64,
    /// Blocks that can be found now, in use or not.
    pub blocks: u32,
}

/// What became of guesses at tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpeculationStatus {
    /// Rows that checked guesses.
    pub checks_total: u64,
    /// Guesses that were right, and so saved a step each.
    pub accepted_tokens_total: u64,
    pub rejected_tokens_total: u64,
    /// Times an answer's guesses stopped being worth their check.
    pub switched_off_total: u64,
}

/// What was shared between requests, and what is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharingStatus {
    /// Answers that were remembered.
    pub hits_total: u64,
    /// Requests that read along with another.
    pub joins_total: u64,
    /// Requests that could have shared and found nothing.
    pub misses_total: u64,
    /// Requests that may not share: not repeatable, or not wanted.
    pub unshared_total: u64,
    /// Tokens told that were computed for another request.
    pub tokens_shared_total: u64,
    pub replay_entries: u64,
    pub replay_tokens: u64,
    pub replay_bytes: u64,
}

impl QueueStatus {
    fn add(&mut self, other: &Self) {
        let Self {
            running_limit,
            length,
            newcomer_wait,
            started_total,
            waited_seconds_total,
            refused_full_total,
            refused_late_total,
        } = other;
        self.running_limit += running_limit;
        self.length += length;
        // Of several models the one with the longest.
        self.newcomer_wait = self.newcomer_wait.max(*newcomer_wait);
        self.started_total += started_total;
        self.waited_seconds_total += waited_seconds_total;
        self.refused_full_total += refused_full_total;
        self.refused_late_total += refused_late_total;
    }
}

impl PrefixCacheStatus {
    fn add(&mut self, other: &Self) {
        let Self { queried_tokens_total, hit_tokens_total, evicted_blocks_total, blocks } = other;
        self.queried_tokens_total += queried_tokens_total;
        self.hit_tokens_total += hit_tokens_total;
        self.evicted_blocks_total += evicted_blocks_total;
        self.blocks += blocks;
    }
}

impl SpeculationStatus {
    fn add(&mut self, other: &Self) {
        let Self {
            checks_total,
            accepted_tokens_total: accepted,
            rejected_tokens_total: rejected,
            switched_off_total,
        } = other;
        self.checks_total += checks_total;
        self.accepted_tokens_total += accepted;
        self.rejected_tokens_total += rejected;
        self.switched_off_total += switched_off_total;
    }
}

impl SharingStatus {
    fn add(&mut self, other: &Self) {
        let Self {
            hits_total,
            joins_total,
            misses_total,
            unshared_total,
            tokens_shared_total,
            replay_entries,
            replay_tokens,
            replay_bytes,
        } = other;
        self.hits_total += hits_total;
        self.joins_total += joins_total;
        self.misses_total += misses_total;
        self.unshared_total += unshared_total;
        self.tokens_shared_total += tokens_shared_total;
        self.replay_entries += replay_entries;
        self.replay_tokens += replay_tokens;
        self.replay_bytes += replay_bytes;
    }
}

impl EngineStatus {
    /// Adds another engine's counters and gauges; `ready`, `trouble` and `breaker` stay.
    pub(crate) fn add(&mut self, other: &Self) {
        // Named one by one, so that a new field is not forgotten.
        let Self {
            ready: _,
            trouble: _,
            breaker: _,
            breaker_opened_total,
            sequences_running,
            sequences_waiting,
            requests_late_total,
            kv_blocks_used,
            kv_blocks_total,
            kv_block_tokens,
            requests_total,
            requests_refused_total,
            requests_cancelled_total,
            prompt_tokens_total,
            generation_tokens_total,
            computed_tokens_total,
            steps_total,
            step_sizes,
            step_seconds_total,
            preemptions_total,
            returned_blocks_total,
            prefix_cache,
            kv_tiers,
            speculation,
            sharing,
            queue,
            resources,
            weights,
            encoded,
        } = other;
        self.breaker_opened_total += breaker_opened_total;
        self.sequences_running += sequences_running;
        self.sequences_waiting += sequences_waiting;
        self.requests_late_total += requests_late_total;
        self.kv_blocks_used += kv_blocks_used;
        self.kv_blocks_total += kv_blocks_total;
        // The same in all engines.
        self.kv_block_tokens = self.kv_block_tokens.max(*kv_block_tokens);
        self.requests_total += requests_total;
        self.requests_refused_total += requests_refused_total;
        self.requests_cancelled_total += requests_cancelled_total;
        self.prompt_tokens_total += prompt_tokens_total;
        self.generation_tokens_total += generation_tokens_total;
        self.computed_tokens_total += computed_tokens_total;
        self.steps_total += steps_total;
        self.step_sizes.add(step_sizes);
        self.step_seconds_total += step_seconds_total;
        self.preemptions_total += preemptions_total;
        self.returned_blocks_total += returned_blocks_total;
        self.prefix_cache.add(prefix_cache);
        add_tiers(&mut self.kv_tiers, kv_tiers);
        self.speculation.add(speculation);
        self.sharing.add(sharing);
        self.queue.add(queue);
        self.resources.add(resources);
        self.weights.add(weights);
        add_encoded(&mut self.encoded, encoded);
    }

    /// What stays of an engine that has gone: what it counted.
    pub(crate) fn counters(self) -> Self {
        Self {
            ready: false,
            trouble: None,
            breaker: BreakerState::Closed,
            sequences_running: 0,
            sequences_waiting: 0,
            kv_blocks_used: 0,
            kv_blocks_total: 0,
            prefix_cache: PrefixCacheStatus { blocks: 0, ..self.prefix_cache },
            kv_tiers: TierCounts {
                ram_bytes: 0,
                ram_blocks: 0,
                disk_bytes: 0,
                disk_blocks: 0,
                ..self.kv_tiers
            },
            sharing: SharingStatus {
                replay_entries: 0,
                replay_tokens: 0,
                replay_bytes: 0,
                ..self.sharing
            },
            queue: QueueStatus { running_limit: 0, length: 0, newcomer_wait: None, ..self.queue },
            resources: self.resources.counters(),
            weights: WeightStatus { pinned_bytes: 0, ..self.weights },
            ..self
        }
    }
}

fn add_encoded(sum: &mut EncodeCounts, other: &EncodeCounts) {
    let EncodeCounts { texts, bytes, tokens, shared_spans, cache_hits, cache_misses } = other;
    sum.texts += texts;
    sum.bytes += bytes;
    sum.tokens += tokens;
    sum.shared_spans += shared_spans;
    sum.cache_hits += cache_hits;
    sum.cache_misses += cache_misses;
}

fn add_tiers(sum: &mut TierCounts, other: &TierCounts) {
    let TierCounts {
        ram_bytes,
        ram_blocks,
        disk_bytes,
        disk_blocks,
        loaded_blocks_total,
        dropped_blocks_total,
        damaged_blocks_total,
        disk_errors_total,
    } = other;
    sum.ram_bytes += ram_bytes;
    sum.ram_blocks += ram_blocks;
    sum.disk_bytes += disk_bytes;
    sum.disk_blocks += disk_blocks;
    sum.loaded_blocks_total += loaded_blocks_total;
    sum.dropped_blocks_total += dropped_blocks_total;
    sum.damaged_blocks_total += damaged_blocks_total;
    sum.disk_errors_total += disk_errors_total;
}
