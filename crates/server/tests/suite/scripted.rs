//! What would a perfectly predictable engine answer? A stand-in behind the service trait: words
//! drawn from a hash of prompt, seed and position, with switches in the prompt's first word.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "the example and each test use a part")]

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use engine::{
    AnswerFormat, Deadline, Delta, DeltaLogprob, DeltaSource, DeltaToken, End, EngineStatus,
    GenerateFuture, GenerateRequest, Generation, ModelCard, ModelFuture, ModelMemory, ModelState,
    ModelStatus, Prompt, QueueReport, ScoredToken, Service, StartFuture, VectorInput,
};
use messages::{
    CachedEnd, CachedPrompt, Fault, FinishReason, Refusal, RefusalKind, SharingOutcome,
    SharingReport,
};

pub(crate) const VOCABULARY: u32 = 1000;
pub(crate) const CONTEXT: u32 = 4096;
/// Answers end by themselves after this many tokens.
pub(crate) const WORDS: u32 = 12;
pub(crate) const MODEL: &str = "scripted/words";
/// Where a test asks for a second model.
pub(crate) const OTHER: &str = "scripted/other";

/// Switches: `!busy`, `!unavailable`, `!invalid`, `!panic` refuse; `!fail` fails after two words,
/// `!unfit` turns out to be refused;
/// `!deadline` is late after two; `!slow` takes 10 ms a word; `!big` gives 64 KiB a word; `!hang`
/// never speaks; `!stuck` is never admitted; `!silent` ends without an end; `!queued` waits 20 ms
/// for a place, `!late` too long; `!say` answers with the rest of the prompt, five characters a
/// token.
#[derive(Default)]
pub(crate) struct Scripted {
    pub(crate) requests: Mutex<Vec<GenerateRequest>>,
    /// Generations (or admissions) that exist now.
    pub(crate) live: Arc<AtomicUsize>,
    pub(crate) status: Mutex<EngineStatus>,
    /// How its answers mark thoughts and calls.
    pub(crate) answer_format: Mutex<AnswerFormat>,
    drawn: AtomicU64,
    stopped: tokio::sync::watch::Sender<bool>,
    /// Whether the model is in memory.
    pub(crate) is_loaded: AtomicBool,
    /// How the model samples where a request does not say.
    pub(crate) defaults: Mutex<messages::SamplingParams>,
    /// Whether there is a second model.
    pub(crate) has_other: AtomicBool,
}

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        let scripted = Self::default();
        scripted.status.lock().unwrap().ready = true;
        scripted.is_loaded.store(true, Ordering::SeqCst);
        let template = "{% if tools %}<tool_call>{% endif %}</think>";
        *scripted.answer_format.lock().unwrap() = AnswerFormat::of_template(Some(template));
        Arc::new(scripted)
    }

    pub(crate) fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    fn order(&self, name: &str, load: bool) -> ModelFuture<'_> {
        let is_known = name == MODEL;
        Box::pin(async move {
            if !is_known {
                return Err(Refusal::new(RefusalKind::UnknownModel, "no such model"));
            }
            if !load && self.live() > 0 {
                return Err(Refusal::new(RefusalKind::Conflict, "1 request is using it"));
            }
            self.is_loaded.store(load, Ordering::SeqCst);
            Ok(self.model_statuses().remove(0))
        })
    }

    pub(crate) fn last(&self) -> GenerateRequest {
        self.requests.lock().unwrap().last().unwrap().clone()
    }
}

/// Counts itself while it exists.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Service for Scripted {
    fn models(&self) -> Vec<ModelCard> {
        let card = |id: &&str| ModelCard {
            id: (*id).to_owned(),
            created: 1_700_000_000,
            context_tokens_max: CONTEXT,
            vocabulary_size: VOCABULARY,
            parameters: 1,
            device: "script".to_owned(),
            vector_width: None,
            ranks: false,
            defaults: self.defaults.lock().unwrap().clone(),
            base: None,
            origin: engine::ModelOrigin {
                format: "gguf",
                architecture: "llama".to_owned(),
                quantization: "Q4_1",
                license: Some("mit".to_owned()),
                template: Some("{{ messages }}".to_owned()),
            },
            answer_format: *self.answer_format.lock().unwrap(),
        };
        let count = if self.has_other.load(Ordering::SeqCst) { 2 } else { 1 };
        [MODEL, OTHER][..count].iter().map(card).collect()
    }

    fn generate(&self, request: GenerateRequest) -> GenerateFuture<'_> {
        self.requests.lock().unwrap().push(request.clone());
        let alive = Alive::new(&self.live);
        let fresh = self.drawn.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            request.params.validate(VOCABULARY)?;
            let text = prompt_text(&request.prompt);
            match text.split(' ').next().unwrap_or("") {
                "!busy" => return Err(Refusal::new(RefusalKind::Busy, "too many")),
                "!unavailable" => return Err(Refusal::new(RefusalKind::Unavailable, "stopping")),
                "!invalid" => return Err(Refusal::invalid("messages", "the template says no")),
                "!panic" => panic!("as asked"),
                "!stuck" => std::future::pending::<()>().await,
                _ => {}
            }
            let prompt_tokens = count_words(&request.prompt);
            let why = "a script computes each answer".to_owned();
            let report = SharingReport { outcome: SharingOutcome::Miss, why };
            let mut words = Words::new(request, text, fresh, alive);
            words.stopped = Some(self.stopped.subscribe());
            Ok(Generation::new(prompt_tokens, report, Box::new(words)))
        })
    }

    fn encode(&self, _model: &str, prompt: Prompt) -> engine::EncodeFuture<'_> {
        let count = count_words(&prompt);
        let texts = (0..count).map(word).collect();
        let encoded = engine::EncodedPrompt { ids: (0..count).collect(), texts };
        Box::pin(std::future::ready(Ok(encoded)))
    }

    fn decode(&self, _model: &str, ids: Vec<u32>) -> engine::DecodeFuture<'_> {
        Box::pin(std::future::ready(Ok(ids.into_iter().map(word).collect())))
    }

    fn status(&self) -> EngineStatus {
        self.status.lock().unwrap().clone()
    }

    fn model_statuses(&self) -> Vec<ModelStatus> {
        let is_loaded = self.is_loaded.load(Ordering::SeqCst);
        let status = |card| {
            let status = ModelStatus::always_ready(card, ModelMemory::default(), self.status());
            if is_loaded {
                return status;
            }
            ModelStatus { state: ModelState::Unloaded, memory_used: None, ..status }
        };
        self.models().into_iter().map(status).collect()
    }

    fn load_model(&self, name: &str) -> ModelFuture<'_> {
        self.order(name, true)
    }

    fn unload_model(&self, name: &str) -> ModelFuture<'_> {
        self.order(name, false)
    }

    fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

fn prompt_text(prompt: &Prompt) -> String {
    match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(ids) => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
        Prompt::Chat(conversation) => {
            conversation.messages.last().unwrap().content.clone().unwrap_or_default()
        }
        Prompt::Vector(VectorInput::Text { text, .. }) => text.clone(),
        Prompt::Vector(VectorInput::Tokens(ids)) => prompt_text(&Prompt::Tokens(ids.clone())),
        Prompt::Vector(VectorInput::Pair(pair)) => pair.document.clone(),
    }
}

/// A prompt has as many tokens as words.
fn count_words(prompt: &Prompt) -> u32 {
    let words = |text: &str| text.split(' ').count() as u32;
    match prompt {
        Prompt::Chat(conversation) => {
            let messages = &conversation.messages;
            messages.iter().map(|message| words(message.content.as_deref().unwrap_or(""))).sum()
        }
        Prompt::Text(_) | Prompt::Tokens(_) | Prompt::Vector(_) => words(&prompt_text(prompt)),
    }
}

/// Three values, together 13 long for each word; `!silent` has none.
fn vector_of(prompt: &Prompt) -> Option<Box<[f32]>> {
    let text = prompt_text(prompt);
    let count = count_words(prompt) as f32;
    // The more words a document has, the better it answers.
    if matches!(prompt, Prompt::Vector(VectorInput::Pair(_))) {
        return Some(Box::from([count - 3.0]));
    }
    let is_wanted = matches!(prompt, Prompt::Vector(_)) && text != "!silent";
    is_wanted.then(|| Box::from([3.0 * count, -4.0 * count, 12.0 * count]))
}

/// The deltas of one answer, made in advance.
struct Words {
    deltas: VecDeque<Delta>,
    pause: Duration,
    is_hanging: bool,
    is_late: bool,
    waited: Duration,
    stopped: Option<tokio::sync::watch::Receiver<bool>>,
    vector: Option<Box<[f32]>>,
    _alive: Alive,
}

/// Prompt tokens of each answer that count as cached.
pub(crate) const CACHED: u32 = 1;

pub(crate) fn word(token: u32) -> String {
    format!(" w{token}")
}

impl Words {
    fn new(request: GenerateRequest, text: String, fresh: u64, alive: Alive) -> Self {
        let switch = text.split(' ').next().unwrap_or("");
        if let Some(said) = text.strip_prefix("!say ") {
            return Self {
                deltas: say(said),
                pause: Duration::ZERO,
                is_hanging: false,
                is_late: false,
                waited: Duration::ZERO,
                stopped: None,
                vector: None,
                _alive: alive,
            };
        }
        let pause = Duration::from_millis(if switch == "!slow" { 10 } else { 0 });
        let mut deltas = match switch {
            "!big" => big_deltas(),
            _ => word_deltas(&request, &text, fresh),
        };
        let broken = match switch {
            "!fail" => Some(End::Failed(Fault("the device is gone".to_owned()))),
            "!unfit" => Some(End::Refused(Refusal::new(RefusalKind::Invalid, "too much"))),
            "!deadline" => {
                let after = Duration::from_millis(7);
                Some(End::Late(Deadline { at: std::time::Instant::now(), after }))
            }
            _ => None,
        };
        if broken.is_some() {
            deltas.truncate(2);
            deltas.retain(|delta| delta.end.is_none());
            deltas.push_back(Delta { text: String::new(), tokens: Vec::new(), end: broken });
        }
        if switch == "!silent" {
            deltas.truncate(2);
        }
        let waited = Duration::from_millis(if switch == "!queued" { 20 } else { 0 });
        let (is_hanging, is_late) = (switch == "!hang", switch == "!late");
        let vector = vector_of(&request.prompt);
        Self { deltas, pause, is_hanging, is_late, waited, stopped: None, vector, _alive: alive }
    }
}

fn big_deltas() -> VecDeque<Delta> {
    let delta = Delta { text: "x".repeat(64 << 10), tokens: Vec::new(), end: None };
    std::iter::repeat_n(delta, 1000).collect()
}

fn word_deltas(request: &GenerateRequest, text: &str, fresh: u64) -> VecDeque<Delta> {
    let params = &request.params;
    let seed = match (params.temperature == 0.0, params.seed) {
        (true, _) => 0,
        (false, Some(seed)) => seed,
        (false, None) => fresh.wrapping_add(1 << 32),
    };
    let max = params.max_tokens.unwrap_or(CONTEXT);
    let natural = if params.ignore_eos { CONTEXT } else { WORDS.max(params.min_tokens) };
    let mut deltas = VecDeque::new();
    let mut answer = String::new();
    for position in 0..max.min(natural) {
        let token = draw(request, text, seed, position);
        let mut shown = word(token);
        let mut stop = params.stop_token_ids.contains(&token).then(|| token.to_string());
        let before = answer.len();
        answer.push_str(&shown);
        let found =
            request.stop.iter().filter_map(|stop| Some((answer.find(stop.as_str())?, stop)));
        if let Some((at, text)) = found.min() {
            stop = Some(text.clone());
            let end = if request.include_stop { at + text.len() } else { at };
            shown = answer[before.min(end)..end].to_owned();
        }
        let is_last = position + 1 == max.min(natural);
        let reason = match (stop.is_some(), is_last && max <= natural) {
            (true, _) => Some(FinishReason::Stop),
            (false, true) => Some(FinishReason::Length),
            (false, false) => is_last.then_some(FinishReason::Stop),
        };
        let completion_tokens = position + 1;
        let end = reason.map(|reason| End::Finished {
            reason,
            stop,
            completion_tokens,
            cached: CachedPrompt { tokens: CACHED, end: CachedEnd::Ends },
            proposals: messages::ProposalCounts { accepted: 2, rejected: 1 },
        });
        let is_end = end.is_some();
        let tokens = vec![DeltaToken { id: token, logprob: logprob(params.logprobs, token) }];
        deltas.push_back(Delta { text: shown, tokens, end });
        if is_end {
            break;
        }
    }
    deltas
}

/// An answer of these words, then its end.
fn say(text: &str) -> VecDeque<Delta> {
    let letters: Vec<char> = text.chars().collect();
    let pieces = letters.chunks(5).map(|letters| letters.iter().collect::<String>());
    let mut deltas: VecDeque<Delta> = pieces
        .map(|text| Delta { text, tokens: vec![DeltaToken { id: 7, logprob: None }], end: None })
        .collect();
    if let Some(last) = deltas.back_mut() {
        last.end = Some(End::Finished {
            reason: FinishReason::Stop,
            stop: None,
            completion_tokens: letters.len().div_ceil(5) as u32,
            cached: CachedPrompt { tokens: CACHED, end: CachedEnd::Ends },
            proposals: messages::ProposalCounts::default(),
        });
    }
    deltas
}

fn draw(request: &GenerateRequest, text: &str, seed: u64, position: u32) -> u32 {
    let biases = &request.params.logit_bias;
    if let Some((forced, _)) = biases.iter().find(|(_, bias)| *bias == 100.0) {
        return *forced;
    }
    let mut hasher = DefaultHasher::new();
    (text, seed, position).hash(&mut hasher);
    let mut token = (hasher.finish() % u64::from(VOCABULARY)) as u32;
    while biases.contains(&(token, -100.0)) {
        token = (token + 1) % VOCABULARY;
    }
    token
}

fn logprob(asked: Option<u32>, token: u32) -> Option<DeltaLogprob> {
    let scored = |offset: u32| ScoredToken {
        id: (token + offset) % VOCABULARY,
        bytes: Arc::from(word((token + offset) % VOCABULARY).as_bytes()),
        logprob: -0.5 - offset as f32,
    };
    asked.map(|count| DeltaLogprob { chosen: scored(0), top: (0..count).map(scored).collect() })
}

impl DeltaSource for Words {
    fn started(&mut self) -> StartFuture<'_> {
        let (is_late, waited) = (self.is_late, self.waited);
        Box::pin(async move {
            tokio::time::sleep(waited).await;
            let late = || Refusal::new(RefusalKind::Busy, "no place came free");
            let retry_after = Some(Duration::from_secs(7));
            if is_late {
                return Err(Refusal { retry_after, ..late() });
            }
            Ok(QueueReport { waited, before: 2 })
        })
    }

    fn next(&mut self) -> Pin<Box<dyn Future<Output = Option<Delta>> + Send + '_>> {
        Box::pin(async move {
            if self.is_hanging {
                let stopped = self.stopped.as_mut().unwrap();
                stopped.wait_for(|stopped| *stopped).await.unwrap();
                return Some(Delta {
                    text: String::new(),
                    tokens: Vec::new(),
                    end: Some(End::Failed(Fault("the server is stopping".to_owned()))),
                });
            }
            tokio::time::sleep(self.pause).await;
            self.deltas.pop_front()
        })
    }

    fn take_vector(&mut self) -> Option<Box<[f32]>> {
        self.vector.take()
    }

    fn next_blocking(&mut self) -> Option<Delta> {
        self.deltas.pop_front()
    }
}
