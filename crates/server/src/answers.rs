//! Where are the running answers of one request? All of them are polled by the connection's own
//! task and owned by the response, so that they end with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use answer_format::{Part, Reader, ReaderSetup};
use engine::{Delta, DeltaToken, End, GenerateFuture, GenerateRequest, Generation, QueueReport};
use messages::{Fault, SharingOutcome, SharingReport};

use crate::answer_metrics::Measure;
use crate::app::App;
use crate::reply::{ApiError, Choice, Explanation, Usage, ended};

/// A generation that waits for its next delta, and gives itself back with it.
type Waiting = Pin<Box<dyn Future<Output = (Generation, Option<Delta>)> + Send>>;

pub(crate) struct Answers {
    /// `None` once the answer has ended.
    running: Vec<Option<Waiting>>,
    /// Whether each answer's prompt counts in the usage.
    counts: Vec<bool>,
    /// Which answer is looked at first: the one after the last that spoke, so that none is starved.
    cursor: usize,
    usage: Usage,
    /// How each answer came about.
    reports: Vec<SharingReport>,
    /// How long each waited for a place.
    queues: Vec<QueueReport>,
    /// Who tells thoughts, text and calls apart, for each answer; `None`: all is text.
    readers: Vec<Option<Reader>>,
}

/// A piece of an answer.
pub(crate) struct Piece {
    pub(crate) parts: Vec<Part>,
    pub(crate) tokens: Vec<DeltaToken>,
    /// On the last piece only.
    pub(crate) end: Option<End>,
}

/// What one choice asks of the engine, and whether its prompt counts in the usage (a prompt with
/// several answers counts once).
pub(crate) struct ChoiceRequest {
    pub(crate) request: GenerateRequest,
    pub(crate) is_first_of_prompt: bool,
}

impl Answers {
    /// Admits all choices of a request, or none, and waits until each has a place to run: a wait
    /// that gets too long still ends as a refusal, with its status.
    ///
    /// `setup`: how the answers are read; `None`: as text.
    pub(crate) async fn admit(
        app: &Arc<App>,
        requests: Vec<ChoiceRequest>,
        setup: Option<&ReaderSetup>,
    ) -> Result<Self, ApiError> {
        let counts: Vec<bool> = requests.iter().map(|choice| choice.is_first_of_prompt).collect();
        let asked = choices_of_prompts(&requests);
        let admissions = requests.into_iter().map(|choice| start(app, choice.request)).collect();
        let generations = Admissions { waiting: admissions, admitted: Vec::new() }.all().await?;
        for (model, choices) in asked {
            app.metrics.answers.of_model(&model).counted(Measure::Choices, choices);
        }
        let prompt_tokens = generations
            .iter()
            .zip(&counts)
            .filter(|&(_, &counts)| counts)
            .map(|(generation, _)| u64::from(generation.prompt_tokens))
            .sum();
        let reader = |generation: &Generation| {
            setup.map(|setup| Reader::new(setup.clone(), &generation.prompt_end))
        };
        let readers = generations.iter().map(reader).collect();
        let reports = generations.iter().map(|generation| generation.sharing.clone()).collect();
        let queues: Vec<_> = generations.iter().map(|generation| generation.queue).collect();
        Ok(Self {
            running: generations.into_iter().map(|generation| Some(wait(generation))).collect(),
            counts,
            cursor: 0,
            usage: Usage::new(prompt_tokens),
            reports,
            queues,
            readers,
        })
    }

    /// The next piece of any answer with the answer's index; `None` after the last of all.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(usize, Piece)>> {
        let count = self.running.len();
        let mut is_any_running = false;
        for offset in 0..count {
            let index = (self.cursor + offset) % count;
            let Some(waiting) = &mut self.running[index] else { continue };
            is_any_running = true;
            let Poll::Ready((generation, delta)) = waiting.as_mut().poll(context) else { continue };
            self.cursor = (index + 1) % count;
            let delta = delta.unwrap_or_else(unexplained_end);
            // Dropped here when it has ended, which frees its place at once.
            self.running[index] = delta.end.is_none().then(|| wait(generation));
            self.note(index, &delta);
            return Poll::Ready(Some((index, self.read(index, delta))));
        }
        if is_any_running { Poll::Pending } else { Poll::Ready(None) }
    }

    /// `hit`, `joined` or `miss` and why, and the wait for a place, for each answer.
    pub(crate) fn explanation(&self) -> Explanation {
        let share = |report: &SharingReport| {
            let word = match report.outcome {
                SharingOutcome::Hit => "hit",
                SharingOutcome::Joined => "joined",
                SharingOutcome::Miss => "miss",
            };
            format!("{word}: {}", report.why)
        };
        let wait = |queue: &QueueReport| {
            format!("waited {:.3} s, {} before it", queue.waited.as_secs_f64(), queue.before)
        };
        Explanation {
            sharing: self.reports.iter().map(share).collect::<Vec<_>>().join("; "),
            queue: self.queues.iter().map(wait).collect::<Vec<_>>().join("; "),
        }
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// Runs all answers to their ends.
    pub(crate) async fn collect(mut self) -> Result<(Vec<Choice>, Usage), ApiError> {
        let mut choices: Vec<Choice> = self.running.iter().map(|_| Choice::default()).collect();
        while let Some((index, piece)) =
            std::future::poll_fn(|context| self.poll_next(context)).await
        {
            ended(piece.end.as_ref())?;
            choices[index].add(piece);
        }
        Ok((choices, self.usage))
    }

    /// Tells the parts of a delta apart.
    fn read(&mut self, index: usize, delta: Delta) -> Piece {
        let Delta { text, tokens, end } = delta;
        let Some(reader) = &mut self.readers[index] else {
            let parts = if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] };
            return Piece { parts, tokens, end };
        };
        if reader.is_thinking() {
            self.usage.add_thoughts(tokens.len() as u64);
        }
        let mut parts = reader.push(&text);
        if end.is_some() {
            parts.extend(reader.finish());
        }
        Piece { parts, tokens, end }
    }

    fn note(&mut self, index: usize, delta: &Delta) {
        if let Some(End::Finished { completion_tokens, cached, proposals, .. }) = &delta.end {
            // Answers to one prompt may find it cached by the first.
            let cached_tokens = if self.counts[index] { cached.tokens } else { 0 };
            self.usage.add(u64::from(*completion_tokens), u64::from(cached_tokens), *proposals);
        }
    }
}

/// Model and number of answers of each prompt.
fn choices_of_prompts(requests: &[ChoiceRequest]) -> Vec<(String, u32)> {
    let mut prompts: Vec<(String, u32)> = Vec::new();
    for choice in requests {
        match prompts.last_mut() {
            Some((_, choices)) if !choice.is_first_of_prompt => *choices += 1,
            _ => prompts.push((choice.request.model.clone(), 1)),
        }
    }
    prompts
}

fn start(app: &App, request: GenerateRequest) -> GenerateFuture<'_> {
    let admitted = app.service.generate(request);
    Box::pin(async move {
        let mut generation = admitted.await?;
        generation.started().await?;
        Ok(generation)
    })
}

fn wait(mut generation: Generation) -> Waiting {
    Box::pin(async move {
        let delta = generation.next().await;
        (generation, delta)
    })
}

fn unexplained_end() -> Delta {
    let fault = Fault("the engine ended the answer without a reason".to_owned());
    Delta { text: String::new(), tokens: Vec::new(), end: Some(End::Failed(fault)) }
}

/// Admissions side by side: one after the other, many would each wait for a step.
struct Admissions<'a> {
    waiting: Vec<GenerateFuture<'a>>,
    admitted: Vec<Option<Generation>>,
}

impl Admissions<'_> {
    async fn all(mut self) -> Result<Vec<Generation>, ApiError> {
        self.admitted.resize_with(self.waiting.len(), || None);
        std::future::poll_fn(|context| self.poll(context)).await?;
        Ok(self.admitted.into_iter().flatten().collect())
    }

    /// Ready with the first refusal, which drops and so cancels the others.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), ApiError>> {
        let mut is_done = true;
        for (waiting, admitted) in self.waiting.iter_mut().zip(&mut self.admitted) {
            if admitted.is_some() {
                continue;
            }
            match waiting.as_mut().poll(context) {
                Poll::Ready(Ok(generation)) => *admitted = Some(generation),
                Poll::Ready(Err(refusal)) => return Poll::Ready(Err(refusal.into())),
                Poll::Pending => is_done = false,
            }
        }
        if is_done { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}
