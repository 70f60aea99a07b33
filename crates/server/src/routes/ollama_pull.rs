//! `POST /api/pull`: bring a model to this machine, told in lines of JSON as it goes. For those who
//! may load models; one pull at a time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame};
use messages::Refusal;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::Answer;
use crate::admin;
use crate::app::App;
use crate::reply::{ApiError, Dialect, ErrorObject, json_response};
use crate::request::{read_body, read_ollama_model};
use crate::{ModelSource, PullStep};

/// Between two lines about bytes.
const BYTES_EVERY: Duration = Duration::from_millis(200);
/// Steps that wait for a slow reader; bytes are left out when there are so many.
const WAITING_MAX: usize = 64;
/// Models that are new on the disk are looked for every few seconds.
const LISTED_WITHIN: Duration = Duration::from_secs(10);
const LISTED_EVERY: Duration = Duration::from_millis(50);

/// What the puller says.
enum Said {
    Step(PullStep),
    /// Its last word: the name that the model is served by, if it is new.
    End(Result<Option<String>, Refusal>),
}

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        admin::check(&request)?;
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let name = read_ollama_model(&mut fields)?;
        let is_streamed = fields.boolean("stream")?.unwrap_or(true);
        fields.neutral("insecure", &["false"])?;
        fields.finish()?;
        drop(body);
        let name = name.ok_or_else(|| {
            ApiError::invalid(Some("model"), "model is missing: say which one to bring")
        })?;
        if app.service.models().iter().any(|card| card.id == name) {
            let (told, said) = channel(1);
            let _ = told.try_send(Said::End(Ok(None)));
            return Lines::new(app, said, None).reply(is_streamed).await;
        }
        let Some(source) = app.options.models.clone() else {
            let text = "this program serves the models that it was given, and brings no others";
            return Err(ApiError::invalid(None, text));
        };
        let Ok(permit) = Arc::clone(&app.pulls).try_acquire_owned() else {
            return Err(ApiError::busy(
                "another model is being brought: try again when it is here",
            ));
        };
        let mut said = start(source, name, permit)?;
        // What cannot even begin has a status of its own.
        let first = said.recv().await;
        if let Some(Said::End(Err(refusal))) = first {
            return Err(refusal.into());
        }
        Lines::new(app, said, first).reply(is_streamed).await
    })
}

/// Brings it on a thread of its own, which goes on when nobody listens any more: what has arrived
/// is worth keeping.
fn start(
    source: Arc<dyn ModelSource>,
    name: String,
    permit: OwnedSemaphorePermit,
) -> Result<Receiver<Said>, ApiError> {
    let (told, said) = channel(WAITING_MAX);
    let pull = move || {
        let mut last = None;
        let result = source.pull(&name, &mut |step| tell(&told, step, &mut last));
        // Whoever hears of the end may ask for the next.
        drop(permit);
        // Who asked may have gone.
        let _ = told.blocking_send(Said::End(result));
    };
    let spawned = std::thread::Builder::new().name("pelton-pull".to_owned()).spawn(pull);
    spawned.map_err(|error| {
        tracing::error!(%error, "cannot start a thread to bring a model");
        ApiError::internal()
    })?;
    Ok(said)
}

fn tell(told: &Sender<Said>, step: PullStep, last: &mut Option<Instant>) {
    if matches!(step, PullStep::Bytes { .. }) {
        if last.is_some_and(|last| last.elapsed() < BYTES_EVERY) {
            return;
        }
        *last = Some(Instant::now());
        // The next line says more.
        let _ = told.try_send(Said::Step(step));
        return;
    }
    let _ = told.blocking_send(Said::Step(step));
}

fn line_of(step: PullStep) -> Value {
    match step {
        PullStep::Waiting => json!({"status": "waiting for another process that pulls it"}),
        PullStep::From(place) => json!({"status": format!("pulling from {place}")}),
        PullStep::Bytes { done, total: Some(total) } => {
            json!({"status": "pulling", "total": total, "completed": done})
        }
        PullStep::Bytes { done, total: None } => json!({"status": "pulling", "completed": done}),
        PullStep::Verifying => json!({"status": "verifying sha256 digest"}),
    }
}

/// What is told of one pull.
struct Lines {
    app: Arc<App>,
    said: Receiver<Said>,
    first: Option<Said>,
    /// The model is here and is to be seen in the list, too.
    listing: Option<Listing>,
}

type Listing = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Lines {
    fn new(app: Arc<App>, said: Receiver<Said>, first: Option<Said>) -> Self {
        Self { app, said, first, listing: None }
    }

    async fn reply(self, is_streamed: bool) -> Result<Response, ApiError> {
        if is_streamed { Ok(streamed(self)) } else { self.last().await }
    }

    /// The reply of who asks for no stream.
    async fn last(mut self) -> Result<Response, ApiError> {
        let mut next = match self.first.take() {
            Some(first) => Some(first),
            None => self.said.recv().await,
        };
        loop {
            match next {
                Some(Said::Step(_)) => next = self.said.recv().await,
                Some(Said::End(Ok(name))) => {
                    listed(Arc::clone(&self.app), name).await;
                    return Ok(json_response(&json!({"status": "success"})));
                }
                Some(Said::End(Err(refusal))) => return Err(refusal.into()),
                None => return Err(ApiError::internal()),
            }
        }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Value>> {
        if let Some(listing) = &mut self.listing {
            std::task::ready!(listing.as_mut().poll(context));
            self.listing = None;
            self.said.close();
            return Poll::Ready(Some(json!({"status": "success"})));
        }
        let said = match self.first.take() {
            Some(said) => Some(said),
            None => std::task::ready!(self.said.poll_recv(context)),
        };
        match said {
            Some(Said::Step(step)) => Poll::Ready(Some(line_of(step))),
            Some(Said::End(Ok(name))) => {
                self.listing = Some(Box::pin(listed(Arc::clone(&self.app), name)));
                self.poll_next(context)
            }
            Some(Said::End(Err(refusal))) => {
                let error = ApiError::from(refusal);
                let error = ErrorObject::new(&error, Dialect::Ollama);
                Poll::Ready(Some(serde_json::to_value(&error).unwrap_or_default()))
            }
            None => Poll::Ready(None),
        }
    }
}

/// Waits until a new model is in the list, or has had its time.
async fn listed(app: Arc<App>, name: Option<String>) {
    let Some(name) = name else { return };
    let until = tokio::time::Instant::now() + LISTED_WITHIN;
    let is_listed = || app.service.models().iter().any(|card| card.id == name);
    while !is_listed() && tokio::time::Instant::now() < until {
        tokio::time::sleep(LISTED_EVERY).await;
    }
}

fn streamed(lines: Lines) -> Response {
    let mut response = Response::new(Body::new(lines));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let line = std::task::ready!(self.poll_next(context));
        let frame = |line: Value| Ok(Frame::data(Bytes::from(format!("{line}\n"))));
        Poll::Ready(line.map(frame))
    }
}
