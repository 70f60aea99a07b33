//! How does a streamed answer travel? As server-sent events, or as lines of JSON, written only as
//! fast as the socket takes them: while it takes none, nothing is pulled from the engine.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep};

use super::dialect::{Dialect, ErrorObject};
use super::{ApiError, Usage, explaining};
use crate::answers::{Answers, Piece};
use crate::app::App;
use crate::visit::Visit;

/// Writes the chunks of one endpoint's stream.
pub(crate) trait ChunkWriter: Send + Unpin + 'static {
    const FORM: StreamForm = StreamForm::Events;

    /// # Errors
    /// When the piece says that its answer failed; the stream then ends with the error.
    fn piece(
        &mut self,
        index: usize,
        piece: &Piece,
        events: &mut EventWriter,
    ) -> Result<(), ApiError>;

    /// The whole reply of a request that is not streamed.
    fn collect(self, answers: Answers) -> impl Future<Output = Result<Response, ApiError>> + Send;

    /// How the answers came about, just before the end of a stream that is asked for it.
    fn explain(&mut self, explanation: Value, events: &mut EventWriter);

    /// What follows the last answer's end.
    fn end(&mut self, usage: Usage, events: &mut EventWriter);

    /// What is said while there is nothing to say, so that neither a proxy nor the client takes the
    /// silence of a long prompt for a dead server, and a client that has vanished is noticed.
    fn keep_alive(&mut self, events: &mut EventWriter) {
        events.write_comment();
    }

    /// The end of a stream that began and cannot go on.
    fn error(&mut self, error: &ApiError, events: &mut EventWriter) {
        events.write(&ErrorObject::new(error, Dialect::OpenAi));
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum StreamForm {
    /// Server-sent events.
    Events,
    /// A JSON object a line.
    Lines,
}

/// Chunks that wait to be sent.
#[derive(Default)]
pub(crate) struct EventWriter {
    bytes: Vec<u8>,
}

impl EventWriter {
    /// An event without a name.
    pub(crate) fn write(&mut self, chunk: &impl Serialize) {
        self.put(&[b"data: "], chunk, b"\n\n");
    }

    pub(crate) fn write_named(&mut self, name: &'static str, chunk: &impl Serialize) {
        self.put(&[b"event: ", name.as_bytes(), b"\ndata: "], chunk, b"\n\n");
    }

    /// Forgets what waits.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// An event that clients pass over.
    fn write_comment(&mut self) {
        self.bytes.extend_from_slice(b": waiting\n\n");
    }

    /// OpenAI's last event.
    pub(crate) fn write_done(&mut self) {
        self.bytes.extend_from_slice(b"data: [DONE]\n\n");
    }

    pub(crate) fn write_line(&mut self, chunk: &impl Serialize) {
        self.put(&[], chunk, b"\n");
    }

    fn put(&mut self, before: &[&[u8]], chunk: &impl Serialize, after: &[u8]) {
        let start = self.bytes.len();
        for part in before {
            self.bytes.extend_from_slice(part);
        }
        if let Err(error) = serde_json::to_writer(&mut self.bytes, chunk) {
            // Our own structs always serialize; a half-written event would break the stream.
            tracing::error!(%error, "cannot write a chunk as JSON");
            self.bytes.truncate(start);
            return;
        }
        self.bytes.extend_from_slice(after);
    }
}

/// The reply with its answers, as they come or when all are there, and with how they came about
/// where that is asked for.
pub(crate) async fn respond<W: ChunkWriter>(
    app: &Arc<App>,
    answers: Answers,
    writer: W,
    (is_streamed, explains): (bool, bool),
) -> Result<Response, ApiError> {
    if !explains {
        return match is_streamed {
            true => Ok(stream_response(app, answers, writer, None)),
            false => writer.collect(answers).await,
        };
    }
    let headers = explaining::headers(&answers);
    let visit = Arc::clone(&app.visit);
    let mut response = if is_streamed {
        stream_response(app, answers, writer, Some(visit))
    } else {
        let whole = writer.collect(answers).await?;
        explaining::with_field(whole, &explaining::explanation(&visit)).await?
    };
    response.headers_mut().extend(headers);
    Ok(response)
}

fn stream_response<W: ChunkWriter>(
    app: &Arc<App>,
    answers: Answers,
    writer: W,
    explained: Option<Arc<Visit>>,
) -> Response {
    let comment_after = app.options.patience.comment;
    let stream = EventStream {
        answers: Some(answers),
        writer,
        explained,
        events: EventWriter::default(),
        comment_after,
        comment_timer: Box::pin(sleep(comment_after)),
    };
    let kind = match W::FORM {
        StreamForm::Events => "text/event-stream",
        StreamForm::Lines => "application/x-ndjson",
    };
    let mut response = Response::new(Body::new(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise collect the events before it passes them on.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Ready deltas are sent together up to this size: fewer writes for a slow reader, no delay.
const FRAME_BYTES: usize = 16 << 10;

struct EventStream<W> {
    /// `None` after the end.
    answers: Option<Answers>,
    writer: W,
    /// The visit, where its end is to say how the answers came about.
    explained: Option<Arc<Visit>>,
    events: EventWriter,
    comment_after: Duration,
    comment_timer: Pin<Box<Sleep>>,
}

impl<W: ChunkWriter> EventStream<W> {
    /// Collects what is ready.
    fn fill(&mut self, context: &mut Context<'_>) {
        while self.events.bytes.len() < FRAME_BYTES {
            let Some(answers) = &mut self.answers else { return };
            let Poll::Ready(next) = answers.poll_next(context) else { return };
            let written = match next {
                Some((index, piece)) => self.writer.piece(index, &piece, &mut self.events),
                None => {
                    if let Some(visit) = &self.explained {
                        let explanation = explaining::explanation(visit);
                        self.writer.explain(explanation, &mut self.events);
                    }
                    self.writer.end(answers.usage(), &mut self.events);
                    self.answers = None;
                    Ok(())
                }
            };
            if let Err(error) = written {
                self.writer.error(&error, &mut self.events);
                self.answers = None;
            }
        }
    }
}

impl<W: ChunkWriter> HttpBody for EventStream<W> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let stream = &mut *self;
        stream.fill(context);
        if stream.events.bytes.is_empty() {
            if stream.answers.is_none() {
                return Poll::Ready(None);
            }
            ready!(stream.comment_timer.as_mut().poll(context));
            stream.writer.keep_alive(&mut stream.events);
        }
        let next_comment = Instant::now() + stream.comment_after;
        stream.comment_timer.as_mut().reset(next_comment);
        let bytes = Bytes::from(std::mem::take(&mut stream.events.bytes));
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}
