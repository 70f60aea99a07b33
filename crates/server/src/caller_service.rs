//! What is the engine to one caller? A service with the models that the caller may use, and whose
//! answers are counted for its key, for the metrics, and for the record of the visit. What it
//! refuses is told by the names that the caller's API has for it.
//!
//! All of an endpoint's work goes through it, so no endpoint can forget to ask who asks.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{
    DecodeFuture, Delta, DeltaSource, EncodeFuture, End, EngineStatus, GenerateFuture,
    GenerateRequest, Generation, ModelCard, ModelFuture, ModelStatus, Prompt, Service, StartFuture,
};
use messages::{CachedPrompt, FinishReason, ProposalCounts, Refusal, RefusalKind, TokenId};

use crate::answer_metrics::{Measure, ModelAnswers};
use crate::app::Shared;
use crate::field_names::in_words_of;
use crate::visit::{AnswerEnd, AnswerRecord, Visit};

pub(crate) struct CallerService {
    shared: Arc<Shared>,
    visit: Arc<Visit>,
    /// Which endpoint asks.
    route: &'static str,
}

impl CallerService {
    pub(crate) fn new(shared: Arc<Shared>, visit: Arc<Visit>, route: &'static str) -> Self {
        Self { shared, visit, route }
    }

    fn check(&self, model: &str) -> Result<(), Refusal> {
        if self.visit.caller.may_use(model) {
            return Ok(());
        }
        Err(Refusal::new(RefusalKind::UnknownModel, "there is no such model for this key"))
    }

    fn counted(&self, inner: Generation, model: String) -> Counted {
        let answer = self.visit.add(AnswerRecord {
            prompt_tokens: inner.prompt_tokens,
            cached: CachedPrompt::default(),
            completion_tokens: 0,
            proposals: ProposalCounts::default(),
            sharing: inner.sharing.clone(),
            queued: Duration::ZERO,
            queued_behind: 0,
            admitted: Instant::now(),
            placed: None,
            first_token: None,
            last_token: None,
            end: AnswerEnd::Gone,
            model: model.clone(),
        });
        Counted {
            inner,
            metrics: self.shared.metrics.answers.of_model(&model),
            shared: Arc::clone(&self.shared),
            visit: Arc::clone(&self.visit),
            answer,
            route: self.route,
        }
    }
}

impl Service for CallerService {
    fn models(&self) -> Vec<ModelCard> {
        let mut models = self.shared.engine.models();
        models.retain(|card| self.visit.caller.may_use(&card.id));
        models
    }

    fn generate(&self, mut request: GenerateRequest) -> GenerateFuture<'_> {
        if let Some(tenant) = self.visit.caller.tenant() {
            // Never what the caller says: a tenant's caches can be measured.
            tenant.clone_into(&mut request.namespace.tenant);
        }
        Box::pin(async move {
            self.check(&request.model)?;
            let (model, max_tokens) = (request.model.clone(), request.params.max_tokens);
            let admitted = self.shared.engine.generate(request).await;
            let inner = admitted.map_err(|refusal| in_words_of(self.route, refusal))?;
            let (tokens, sharing) = (inner.prompt_tokens, inner.sharing.clone());
            let prompt_end = inner.prompt_end.clone();
            self.visit.caller.charge(tokens.into());
            let counted = self.counted(inner, model);
            if let Some(most) = max_tokens {
                counted.metrics.counted(Measure::MaxTokens, most);
            }
            let mut generation = Generation::new(tokens, sharing, Box::new(counted));
            generation.prompt_end = prompt_end;
            Ok(generation)
        })
    }

    fn encode(&self, model: &str, prompt: Prompt) -> EncodeFuture<'_> {
        match self.check(model) {
            Ok(()) => {
                let encoding = self.shared.engine.encode(model, prompt);
                let told = |refusal| in_words_of(self.route, refusal);
                Box::pin(async move { encoding.await.map_err(told) })
            }
            Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
        }
    }

    fn decode(&self, model: &str, ids: Vec<TokenId>) -> DecodeFuture<'_> {
        match self.check(model) {
            Ok(()) => self.shared.engine.decode(model, ids),
            Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
        }
    }

    fn status(&self) -> EngineStatus {
        self.shared.engine.status()
    }

    fn model_statuses(&self) -> Vec<ModelStatus> {
        let mut statuses = self.shared.engine.model_statuses();
        statuses.retain(|status| self.visit.caller.may_use(&status.card.id));
        statuses
    }

    fn load_model(&self, name: &str) -> ModelFuture<'_> {
        match self.check(name) {
            Ok(()) => self.shared.engine.load_model(name),
            Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
        }
    }

    fn unload_model(&self, name: &str) -> ModelFuture<'_> {
        match self.check(name) {
            Ok(()) => self.shared.engine.unload_model(name),
            Err(refusal) => Box::pin(std::future::ready(Err(refusal))),
        }
    }

    fn stop(&self) {
        self.shared.engine.stop();
    }
}

/// An answer that is counted as it comes.
struct Counted {
    inner: Generation,
    shared: Arc<Shared>,
    visit: Arc<Visit>,
    /// Which of the visit's answers it is.
    answer: usize,
    metrics: Arc<ModelAnswers>,
    route: &'static str,
}

impl Counted {
    fn placed(&self) {
        let queue = self.inner.queue;
        self.metrics.took(Measure::Queue, queue.waited, 1);
        self.visit.note(self.answer, |answer| {
            (answer.queued, answer.queued_behind) = (queue.waited, queue.before);
            answer.placed = Some(Instant::now());
        });
    }

    /// What turns out to be refused on the way has names too.
    fn told(&self, mut delta: Option<Delta>) -> Option<Delta> {
        if let Some(Delta { end: Some(End::Refused(refusal)), .. }) = &mut delta {
            *refusal = in_words_of(self.route, refusal.clone());
        }
        delta
    }

    fn note(&self, delta: Option<&Delta>) {
        let Some(delta) = delta else { return };
        let tokens = delta.tokens.len() as u32;
        if tokens > 0 {
            self.spoke(tokens);
        }
        if let Some(end) = &delta.end {
            self.ended(end);
        }
    }

    fn spoke(&self, tokens: u32) {
        self.visit.caller.charge(tokens.into());
        let now = Instant::now();
        let before = self.visit.note(self.answer, |answer| {
            answer.completion_tokens += tokens;
            answer.first_token.get_or_insert(now);
            answer.last_token.replace(now)
        });
        match before {
            None => self.metrics.took(Measure::FirstToken, now - self.visit.started, 1),
            Some(before) => self.metrics.took(Measure::NextToken, (now - before) / tokens, tokens),
        }
    }

    fn ended(&self, end: &End) {
        let name = match end {
            End::Finished { reason: FinishReason::Stop, .. } => AnswerEnd::Stop,
            End::Finished { reason: FinishReason::Length, .. } => AnswerEnd::Length,
            End::Finished { reason: FinishReason::Cancelled, .. } => AnswerEnd::Cancelled,
            End::Refused(_) => AnswerEnd::Refused,
            End::Failed(_) => AnswerEnd::Failed,
            End::Late(_) => AnswerEnd::Late,
        };
        let record = self.visit.note(self.answer, |answer| {
            answer.end = name;
            if let End::Finished { cached, proposals, .. } = end {
                (answer.cached, answer.proposals) = (*cached, *proposals);
            }
            answer.clone()
        });
        match name {
            AnswerEnd::Stop | AnswerEnd::Length => self.finished(&record),
            AnswerEnd::Failed => self.shared.metrics.count_failed_answer(),
            // The engine counts them.
            AnswerEnd::Gone | AnswerEnd::Cancelled | AnswerEnd::Late => {}
            // The caller's fault.
            AnswerEnd::Refused => {}
        }
    }

    fn finished(&self, answer: &AnswerRecord) {
        let metrics = &self.metrics;
        let (Some(first), Some(last)) = (answer.first_token, answer.last_token) else { return };
        metrics.took(Measure::Answer, last - self.visit.started, 1);
        metrics.counted(Measure::PromptTokens, answer.prompt_tokens);
        metrics.counted(Measure::GenerationTokens, answer.completion_tokens);
        let computed = answer.prompt_tokens.saturating_sub(answer.cached.tokens);
        metrics.counted(Measure::ComputedTokens, computed);
        metrics.took(Measure::Decode, last - first, 1);
        if answer.completion_tokens > 1 {
            let mean = (last - first) / (answer.completion_tokens - 1);
            metrics.took(Measure::TokenOfAnswer, mean, 1);
        }
        if let Some(placed) = answer.placed {
            metrics.took(Measure::Prefill, first - placed, 1);
            metrics.took(Measure::Inference, last - placed, 1);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.ended(self.visit.note(self.answer, |answer| answer.end));
    }
}

impl DeltaSource for Counted {
    fn started(&mut self) -> StartFuture<'_> {
        Box::pin(async {
            self.inner.started().await?;
            self.placed();
            Ok(self.inner.queue)
        })
    }

    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Delta>> + Send + '_>> {
        Box::pin(async {
            let delta = self.inner.next().await;
            self.note(delta.as_ref());
            self.told(delta)
        })
    }

    fn take_vector(&mut self) -> Option<Box<[f32]>> {
        self.inner.take_vector()
    }

    fn next_blocking(&mut self) -> Option<Delta> {
        let delta = self.inner.next_blocking();
        self.note(delta.as_ref());
        self.told(delta)
    }
}
