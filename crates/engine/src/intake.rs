//! How does a request become token ids? Rendering, encoding and length checks on a few threads of
//! their own, so that neither connections nor steps wait for a long text.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use constraint::{ConstraintError, Grammars};
use crossbeam_channel::Sender;
use messages::{
    Constraint, Refusal, RefusalKind, SamplingParams, SharingMode, SharingOutcome, SubscriberId,
    TokenId,
};
use models::Output;
use ops::constraint::SharedGrammar;
use ops::pool_rows::Pooling;
use sharing::{Fingerprint, Identity, StopRule, Work};
use tokenizer::{EncodeError, EncodeOptions, SpecialTokens, Tokenizer};
use tokio::sync::oneshot;

use crate::adapters::{self, NamedAdapter};
use crate::chat_prompt::ChatPrompt;
use crate::intake_lanes::{Lane, Lanes, is_long};
use crate::outbox::outbox;
use crate::outlet::{Outlet, TextRules, Ticket};
use crate::readers::{Reader, Shareable};
use crate::step_loop::{Event, Submit};
use crate::vector_texts::VectorTexts;
use crate::waiting::{Missed, Queue};
use crate::{
    Deadline, EncodedPrompt, GenerateRequest, Generation, Prompt, TextPair, Urgency, VectorInput,
};

/// Where admitted requests are counted and events handed to the step loop.
pub(crate) struct Desk {
    inbox: Sender<Event>,
    queue: Arc<Queue>,
    admitted: AtomicU32,
    admitted_max: u32,
    /// Whether identical requests share an answer.
    shares: bool,
    pub(crate) requests_total: AtomicU64,
    next_id: AtomicU64,
}

impl Desk {
    /// `inbox` must hold [`Desk::events_max`] events.
    pub(crate) fn new(
        inbox: Sender<Event>,
        admitted_max: u32,
        queue: Arc<Queue>,
        shares: bool,
    ) -> Self {
        Self {
            inbox,
            queue,
            admitted: AtomicU32::new(0),
            admitted_max,
            shares,
            requests_total: AtomicU64::new(0),
            next_id: AtomicU64::new(0),
        }
    }

    /// Events that can be on their way at once: every admitted request submits once and leaves
    /// once, its place may be taken again before the loop has read either, one stop, and what an
    /// operator changes.
    pub(crate) fn events_max(admitted_max: u32) -> usize {
        4 * admitted_max as usize + 2
    }

    /// Counts a request in, or refuses it: here, where that costs nothing and waits for nobody.
    fn enter(self: &Arc<Self>) -> Result<Ticket, Refusal> {
        self.requests_total.fetch_add(1, Ordering::Relaxed);
        let entered = self.admitted.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < self.admitted_max).then_some(count + 1)
        });
        if entered.is_err() {
            let text = format!(
                "{} requests are here already, the most there may be; try later",
                self.admitted_max
            );
            return Err(Refusal::new(RefusalKind::Busy, text));
        }
        let id = SubscriberId(self.next_id.fetch_add(1, Ordering::Relaxed));
        Ok(Ticket { id, desk: Arc::clone(self), live: false })
    }

    pub(crate) fn leave(&self) {
        let before = self.admitted.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "a place is given back once");
    }

    /// Whether another's answer may be a request's, too: else it needs a place in the queue.
    fn may_share(&self, request: &GenerateRequest) -> bool {
        self.shares && request.sharing == SharingMode::On && request.params.is_repeatable()
    }

    /// Hands an event to the loop. A closed inbox means the loop has ended: nobody is to be told.
    pub(crate) fn send(&self, event: Event) {
        let _ = self.inbox.send(event);
    }
}

/// What is asked, and where its answer goes.
pub(crate) enum Job {
    Answer(Box<Request>),
    Encode(Prompt, Ticket, Reply<EncodedPrompt>),
}

type Reply<T> = oneshot::Sender<Result<T, Refusal>>;
pub(crate) type Replied<T> = oneshot::Receiver<Result<T, Refusal>>;

/// A request for an answer.
pub(crate) struct Request {
    request: GenerateRequest,
    ticket: Ticket,
    arrived: Instant,
    reply: Reply<Generation>,
}

/// How Qwen3-Reranker is asked (<https://arxiv.org/abs/2506.05176>), and models like it.
const RANK_INSTRUCTION: &str =
    "Given a web search query, retrieve relevant passages that answer the query";
const RANK_BEGIN: &str = "<|im_start|>system\nJudge whether the Document meets the requirements \
    based on the Query and the Instruct provided. Note that the answer can only be \"yes\" or \
    \"no\".<|im_end|>\n<|im_start|>user\n";
const RANK_END: &str = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n";

/// Everything that turning a request into ids needs.
pub(crate) struct Intake {
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat_prompt: ChatPrompt,
    pub(crate) grammars: Option<Grammars>,
    pub(crate) model: String,
    pub(crate) adapters: Arc<[NamedAdapter]>,
    pub(crate) context_tokens_max: u32,
    /// Rows of the embedding: what tokens the model has weights for.
    pub(crate) rows: u32,
    pub(crate) output: Output,
    pub(crate) vector_texts: VectorTexts,
    pub(crate) reads_whole: bool,
    /// Whether the beginnings of prompts are shared.
    pub(crate) prefix_cache: bool,
    pub(crate) desk: Arc<Desk>,
    pub(crate) fingerprint: Fingerprint,
}

impl Intake {
    /// Takes a request, which came at `arrived`, to the queue of `jobs`.
    pub(crate) fn enqueue(
        desk: &Arc<Desk>,
        jobs: &Lanes<Job>,
        request: GenerateRequest,
        arrived: Instant,
    ) -> Result<Replied<Generation>, Refusal> {
        let ticket = desk.enter()?;
        let (reply, receiver) = oneshot::channel();
        let text_bytes = request.prompt.text_bytes();
        if is_long(text_bytes) && !desk.may_share(&request) {
            desk.queue.check_room()?;
        }
        let request = Request { request, ticket, arrived, reply };
        put(jobs, Job::Answer(Box::new(request)), text_bytes)?;
        Ok(receiver)
    }

    /// Takes a prompt that is only to be encoded to the queue of `jobs`.
    pub(crate) fn enqueue_prompt(
        desk: &Arc<Desk>,
        jobs: &Lanes<Job>,
        prompt: Prompt,
    ) -> Result<Replied<EncodedPrompt>, Refusal> {
        let ticket = desk.enter()?;
        let (reply, receiver) = oneshot::channel();
        let text_bytes = prompt.text_bytes();
        put(jobs, Job::Encode(prompt, ticket, reply), text_bytes)?;
        Ok(receiver)
    }

    /// Serves jobs until the lane closes.
    pub(crate) fn serve(&self, jobs: &Lane<Job>) {
        while let Some(job) = jobs.next() {
            let Request { request, ticket, arrived, reply } = match job {
                Job::Answer(request) => *request,
                Job::Encode(prompt, ticket, reply) => {
                    // Nobody listens where the caller has gone.
                    let _ = reply.send(self.encode_only(prompt));
                    drop(ticket);
                    continue;
                }
            };
            if reply.is_closed() {
                continue;
            }
            let answer = match self.desk.queue.overdue(arrived.elapsed(), Missed::Place(None)) {
                Some(refusal) => Err(refusal),
                None => self.admit(request, ticket, arrived),
            };
            if answer.is_err() {
                self.desk.queue.refused_total.fetch_add(1, Ordering::Relaxed);
            }
            // If the caller has gone, the generation is dropped here, which cancels it.
            let _ = reply.send(answer);
        }
    }

    fn admit(
        &self,
        mut request: GenerateRequest,
        mut ticket: Ticket,
        arrived: Instant,
    ) -> Result<Generation, Refusal> {
        let Urgency { priority, deadline } = request.urgency;
        check_deadline(deadline)?;
        let vocabulary = u32::try_from(self.tokenizer.vocabulary_size()).unwrap_or(u32::MAX);
        request.params.validate(vocabulary.min(self.rows))?;
        check_stop(&request.stop)?;
        let adapter = self.take_adapter(&mut request);
        let Encoded { ids: prompt, prompt_end, shown } =
            self.read(request.prompt, request.params.max_tokens, vocabulary)?;
        let prompt_tokens = prompt.len() as u32;
        let params = request.params;
        let grammar = self.grammar(&params, &prompt_end)?;
        let stop_tokens = self.stop_tokens(&params);
        let stop = StopRule { texts: request.stop, min_tokens: params.min_tokens };
        let work = Work {
            model: &self.fingerprint,
            namespace: &request.namespace,
            prompt: &prompt,
            params: &params,
            stop_tokens: &stop_tokens,
        };
        let shareable = self.shareable(&work, &stop, request.sharing);
        let rules = TextRules {
            stop,
            include_stop: request.include_stop,
            stop_tokens: stop_tokens.clone(),
            shown,
        };
        let (outbox, receiver) = outbox(params.max_tokens);
        let (reply, added) = oneshot::channel();
        let seed = params.seed.unwrap_or_else(fresh_seed);
        let subscriber = ticket.id;
        let tenant = Arc::from(request.namespace.tenant.as_str());
        let caches = self.caches() && request.sharing != SharingMode::Off;
        let cache_namespace = caches.then(|| Arc::new(request.namespace));
        let submit = Submit {
            subscriber,
            prompt,
            params,
            adapter,
            grammar,
            stop_tokens,
            seed,
            priority,
            tenant,
            cache_namespace,
            shareable,
            reader: Reader { outbox, deadline },
            arrived,
            place: None,
            reply,
        };
        ticket.live = true;
        self.desk.send(Event::Submit(Box::new(submit)));
        let stopping = |_| Err(Refusal::new(RefusalKind::Unavailable, "the engine is stopping"));
        let report = added.blocking_recv().unwrap_or_else(stopping).inspect_err(|_| {
            ticket.live = false;
        })?;
        // A shared answer computed nothing of the prompt.
        let cached = (report.outcome != SharingOutcome::Miss).then_some(prompt_tokens);
        let outlet = Outlet::new(receiver, Arc::clone(&self.tokenizer), rules, cached, ticket);
        let generation = Generation::new(prompt_tokens, report, Box::new(outlet));
        Ok(Generation { prompt_end, ..generation })
    }

    fn encode_only(&self, prompt: Prompt) -> Result<EncodedPrompt, Refusal> {
        let vocabulary = u32::try_from(self.tokenizer.vocabulary_size()).unwrap_or(u32::MAX);
        let ids = self.encode(prompt, vocabulary, usize::MAX)?.ids;
        let text = |&id: &TokenId| self.tokenizer.token_text(id).unwrap_or_default().to_owned();
        Ok(EncodedPrompt { texts: ids.iter().map(text).collect(), ids })
    }

    /// What holds the answer: the constraint, once the model has thought.
    fn grammar(
        &self,
        params: &SamplingParams,
        prompt_end: &str,
    ) -> Result<Option<SharedGrammar>, Refusal> {
        let inner = params.constraint.as_ref().map(|asked| self.compile(asked)).transpose()?;
        let Some(thoughts) = &params.thoughts else { return Ok(inner) };
        let Some(grammars) = &self.grammars else {
            let text = "this model runs on a device whose thoughts cannot be bounded: ask without \
                        a budget, or have it served on the cpu device";
            return Err(Refusal::invalid("thinking", text));
        };
        Ok(grammars.behind_thoughts(thoughts, prompt_end, inner))
    }

    /// The prompt's ids, if there can be an answer to it.
    fn read(
        &self,
        prompt: Prompt,
        max_tokens: Option<u32>,
        vocabulary: u32,
    ) -> Result<Encoded, Refusal> {
        self.check_kind(&prompt)?;
        let field = field_of(&prompt);
        let encoded = self.encode(prompt, vocabulary, self.context_tokens_max as usize)?;
        self.check_rows(field, &encoded.ids)?;
        match self.output {
            Output::Logits => self.check_length(field, &encoded.ids, max_tokens)?,
            Output::Vector(_) | Output::Score(_) => self.check_input(field, &encoded.ids)?,
        }
        Ok(encoded)
    }

    /// The number of the adapter that the request names. Whatever is kept of it is kept apart from
    /// that of others.
    fn take_adapter(&self, request: &mut GenerateRequest) -> Option<u32> {
        let names = self.adapters.iter().map(|adapter| adapter.name.as_str());
        let number = adapters::number_of(names, &[&self.model, "default"], &request.model)?;
        request.namespace.adapter.clone_from(&self.adapters[number].namespace);
        u32::try_from(number).ok()
    }

    fn stop_tokens(&self, params: &SamplingParams) -> Vec<TokenId> {
        let mut stop_tokens = params.stop_token_ids.clone();
        if !params.ignore_eos {
            let ends = self.tokenizer.end_of_generation_ids().iter().copied();
            stop_tokens.extend(ends.filter(|&id| id < self.rows));
        }
        stop_tokens
    }

    /// Whether a model that generates is asked for an answer, and one that gives vectors for those.
    fn check_kind(&self, prompt: &Prompt) -> Result<(), Refusal> {
        let text = match (self.output, prompt) {
            (Output::Score(_), Prompt::Vector(VectorInput::Pair(_)))
            | (
                Output::Vector(_),
                Prompt::Vector(VectorInput::Text { .. } | VectorInput::Tokens(_)),
            )
            | (Output::Logits, Prompt::Text(_) | Prompt::Tokens(_) | Prompt::Chat(_)) => {
                return Ok(());
            }
            (Output::Score(_), _) => "this model ranks texts and does nothing else: ask /v1/rerank",
            (_, Prompt::Vector(VectorInput::Pair(_))) => {
                "this model does not rank texts: name one that does, or have this one served with \
                 model.pooling: rank"
            }
            (Output::Logits, Prompt::Vector(_)) => {
                "this model generates text and gives no vectors: name a model for embeddings, or \
                 have this one served with model.pooling"
            }
            (Output::Vector(_), Prompt::Text(_) | Prompt::Tokens(_) | Prompt::Chat(_)) => {
                "this model gives vectors of texts and does not answer them: ask /v1/embeddings, \
                 or name a model that generates"
            }
        };
        Err(Refusal::invalid("model", text))
    }

    /// What all rows make together cannot begin behind those of another text.
    fn caches(&self) -> bool {
        let begins_anywhere = match self.output {
            Output::Logits | Output::Score(_) | Output::Vector(Pooling::Last) => true,
            Output::Vector(Pooling::First | Pooling::Mean) => false,
        };
        self.prefix_cache && begins_anywhere
    }

    fn compile(&self, constraint: &Constraint) -> Result<SharedGrammar, Refusal> {
        let field = match constraint {
            Constraint::JsonObject | Constraint::JsonSchema(_) => "response_format",
            Constraint::Calls { .. } => "tools",
            Constraint::Regex(_) | Constraint::Choice(_) | Constraint::Grammar(_) => {
                "structured_outputs"
            }
        };
        let Some(grammars) = &self.grammars else {
            let text = "this model runs on a device whose answers cannot be constrained: ask \
                        without a constraint, or have it served on the cpu device";
            return Err(Refusal::invalid(field, text));
        };
        grammars.compile(constraint).map_err(|error| {
            let text = error.to_string();
            match error {
                ConstraintError::Busy => Refusal::new(RefusalKind::Busy, text),
                ConstraintError::Invalid { .. } | ConstraintError::Vocabulary(_) => {
                    Refusal::invalid(field, text)
                }
            }
        })
    }

    /// What may be shared of a request, or why nothing may. Hashed here, beside the steps.
    fn shareable(&self, work: &Work<'_>, stop: &StopRule, mode: SharingMode) -> Shareable {
        if !self.desk.shares {
            return Shareable::No("sharing is off on this server".to_owned());
        }
        if self.output != Output::Logits {
            return Shareable::No("vectors are computed for each request".to_owned());
        }
        if mode == SharingMode::Off {
            return Shareable::No("the request asks for no sharing".to_owned());
        }
        if !work.params.is_repeatable() {
            let temperature = work.params.temperature;
            let why = format!("not repeatable: temperature {temperature} without a seed");
            return Shareable::No(why);
        }
        let (identity, stop) = (Identity::of(work), stop.clone());
        Shareable::Yes { identity, stop, is_fresh: mode == SharingMode::Fresh }
    }

    /// The ids of a prompt, unless it is a text that has more than `tokens_max` whatever it says:
    /// that is known before they are.
    fn encode(
        &self,
        prompt: Prompt,
        vocabulary: u32,
        tokens_max: usize,
    ) -> Result<Encoded, Refusal> {
        let mut encoded = Encoded::default();
        let field = field_of(&prompt);
        let (text, options) = match prompt {
            Prompt::Tokens(tokens) | Prompt::Vector(VectorInput::Tokens(tokens)) => {
                encoded.ids = check_tokens(field, tokens, vocabulary)?;
                return Ok(encoded);
            }
            Prompt::Vector(VectorInput::Pair(pair)) => {
                encoded.ids = self.encode_pair(&pair)?;
                return Ok(encoded);
            }
            Prompt::Vector(VectorInput::Text { text, cuts }) => {
                encoded.ids = self.encode_for_vector(&text, cuts)?;
                return Ok(encoded);
            }
            Prompt::Text(text) => {
                // A plain prompt may be a hand-written template: its control tokens count.
                let options = EncodeOptions {
                    special: SpecialTokens::Parse,
                    add_bos: self.tokenizer.adds_bos(),
                    add_eos: false,
                };
                (text, options)
            }
            Prompt::Chat(conversation) => {
                if conversation.shows_markup {
                    encoded.shown = Arc::clone(&self.chat_prompt.markup_ids);
                }
                let text = self.chat_prompt.render(conversation)?;
                encoded.prompt_end = last_characters(&text).to_owned();
                (text, EncodeOptions::TEMPLATE)
            }
        };
        let at_least = self.tokenizer.tokens_min(text.len());
        if at_least > tokens_max {
            // So many at the least; how many nobody needs to know.
            return Err(Refusal::too_long(field, at_least as u64, tokens_max as u64));
        }
        let ids = self.tokenizer.encode(&text, options);
        encoded.ids = ids.map_err(|error| Refusal::invalid(field, error.to_string()))?;
        Ok(encoded)
    }

    /// Framed as the tokenizer frames a text. What is cut keeps the frame's end, which stands for
    /// the text in models that look at their last token.
    fn encode_for_vector(&self, text: &str, cuts: bool) -> Result<Vec<TokenId>, Refusal> {
        let options = EncodeOptions {
            special: SpecialTokens::Parse,
            add_bos: self.tokenizer.adds_bos(),
            add_eos: self.tokenizer.adds_eos(),
        };
        let encode = |text: &str, options| {
            let encoded = self.tokenizer.encode(text, options);
            encoded.map_err(|error| Refusal::invalid("input", error.to_string()))
        };
        let mut tokens = encode(&format!("{}{text}", self.vector_texts.prefix), options)?;
        let room = self.vector_texts.room(self.context_tokens_max);
        if cuts && tokens.len() > room {
            let end = encode("", EncodeOptions { add_bos: false, ..options })?;
            tokens.truncate(room.saturating_sub(end.len()));
            tokens.extend(end);
        }
        Ok(tokens)
    }

    /// Both texts as the model was taught to be asked about them; none can smuggle in a token.
    fn encode_pair(&self, pair: &TextPair) -> Result<Vec<TokenId>, Refusal> {
        let refuse = |error: EncodeError| Refusal::invalid("documents", error.to_string());
        let TextPair { query, document, instruction } = pair;
        if self.reads_whole {
            if instruction.is_some() {
                let text = "this model is told nothing but the two texts: leave it out";
                return Err(Refusal::invalid("instruction", text));
            }
            return self.tokenizer.encode_pair(query, document).map_err(refuse);
        }
        let instruction = instruction.as_deref().unwrap_or(RANK_INSTRUCTION);
        let body = format!("<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}");
        let mut tokens = Vec::new();
        for (text, options) in [
            (RANK_BEGIN, EncodeOptions::TEMPLATE),
            (body.as_str(), EncodeOptions::USER_TEXT),
            (RANK_END, EncodeOptions::TEMPLATE),
        ] {
            tokens.extend(self.tokenizer.encode(text, options).map_err(refuse)?);
        }
        Ok(tokens)
    }

    /// A family's models share a tokenizer, and those without images have no weights for theirs.
    fn check_rows(&self, field: &str, tokens: &[TokenId]) -> Result<(), Refusal> {
        let Some(&token) = tokens.iter().find(|&&token| token >= self.rows) else { return Ok(()) };
        let name = self.tokenizer.token_text(token).unwrap_or_default();
        let text = format!(
            "the prompt has token {token} ({name}), for which this model has no weights: leave it \
             out"
        );
        Err(Refusal::invalid(field, text))
    }

    fn check_input(&self, field: &str, tokens: &[TokenId]) -> Result<(), Refusal> {
        let most = self.vector_texts.room(self.context_tokens_max);
        if (1..=most).contains(&tokens.len()) {
            return Ok(());
        }
        let count = tokens.len();
        let text = format!("the input has {count} tokens, this model reads 1 to {most}");
        let kind = if count == 0 { RefusalKind::Invalid } else { RefusalKind::TooLong };
        Err(Refusal { kind, ..Refusal::invalid(field, text) })
    }

    /// Nothing is cut silently: what does not fit is refused with both numbers.
    fn check_length(
        &self,
        field: &str,
        prompt: &[TokenId],
        max_tokens: Option<u32>,
    ) -> Result<(), Refusal> {
        let context = u64::from(self.context_tokens_max);
        let (prompt, most) = (prompt.len() as u64, u64::from(max_tokens.unwrap_or(0)));
        if prompt >= context {
            return Err(Refusal::too_long(field, prompt, context));
        }
        let asked = prompt + most;
        if asked <= context {
            return Ok(());
        }
        // Anthropic's words, by which its clients ask for fewer tokens.
        let text = format!(
            "input length and `max_tokens` exceed context limit: {prompt} + {most} > {context}, \
             together {asked}; this model's maximum context length is {context} tokens: shorten \
             the prompt or ask for fewer tokens"
        );
        let kind = RefusalKind::TooLong;
        Err(Refusal { kind, ..Refusal::invalid("max_tokens", text) })
    }
}

/// Where a request has its prompt, in OpenAI's first API with such a prompt (and Cohere's).
fn field_of(prompt: &Prompt) -> &'static str {
    match prompt {
        Prompt::Chat(_) => "messages",
        Prompt::Text(_) | Prompt::Tokens(_) => "prompt",
        Prompt::Vector(VectorInput::Pair(_)) => "documents",
        Prompt::Vector(VectorInput::Text { .. } | VectorInput::Tokens(_)) => "input",
    }
}

fn check_tokens(
    field: &str,
    tokens: Vec<TokenId>,
    vocabulary: u32,
) -> Result<Vec<TokenId>, Refusal> {
    match tokens.iter().find(|&&token| token >= vocabulary) {
        None => Ok(tokens),
        Some(token) => {
            let text = format!("the {field} names token {token}, the vocabulary has {vocabulary}");
            Err(Refusal::invalid(field, text))
        }
    }
}

/// A prompt's ids, and what its answer's reader must know of it.
#[derive(Default)]
struct Encoded {
    ids: Vec<TokenId>,
    prompt_end: String,
    shown: Arc<[TokenId]>,
}

/// More than any marker that a template can end in.
const PROMPT_END_CHARS: usize = 64;

fn last_characters(text: &str) -> &str {
    let at = text.char_indices().rev().nth(PROMPT_END_CHARS - 1).map_or(0, |(at, _)| at);
    &text[at..]
}

fn put(jobs: &Lanes<Job>, job: Job, text_bytes: usize) -> Result<(), Refusal> {
    // Each lane holds as many jobs as there are tickets, so it is full only when closed.
    let sent = jobs.put(job, text_bytes);
    sent.map_err(|_| Refusal::new(RefusalKind::Unavailable, "the engine is stopping"))
}

/// A request that is late already is not begun.
pub(crate) fn check_deadline(deadline: Option<Deadline>) -> Result<(), Refusal> {
    match deadline.filter(|deadline| deadline.at <= Instant::now()) {
        Some(late) => Err(Refusal::new(RefusalKind::Late, late.text())),
        None => Ok(()),
    }
}

/// More than any client sends; each stop text is searched for in every piece of the answer.
const STOP_TEXTS_MAX: usize = 16;
const STOP_TEXT_BYTES_MAX: usize = 1024;

fn check_stop(stop: &[String]) -> Result<(), Refusal> {
    if stop.len() > STOP_TEXTS_MAX {
        let text = format!("stop has {} texts, the most is {STOP_TEXTS_MAX}", stop.len());
        return Err(Refusal::invalid("stop", text));
    }
    for text in stop {
        if text.is_empty() || text.len() > STOP_TEXT_BYTES_MAX {
            let text = format!(
                "a stop text has {} bytes, it must have between 1 and {STOP_TEXT_BYTES_MAX}",
                text.len()
            );
            return Err(Refusal::invalid("stop", text));
        }
    }
    Ok(())
}

/// A seed for requests that gave none; the standard library's hash keys come from the system.
fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}
