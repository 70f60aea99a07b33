//! How does an answer look in Ollama's form? Lines of JSON; the last one counts and times.

use std::time::{Duration, Instant};

use axum::response::Response;
use engine::Delta;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::dialect::{Dialect, ErrorObject};
use super::{
    ApiError, ChunkWriter, EventWriter, StreamForm, Usage, ended, finish_reason, json_response,
};
use crate::answers::Answers;
use crate::app::unix_seconds;

/// Where the text of a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OllamaForm {
    Chat,
    Generate,
}

/// Turns deltas into Ollama's objects.
pub(crate) struct OllamaWriter {
    form: OllamaForm,
    model: String,
    started: Instant,
    /// When the answer's first token came.
    spoke: Option<Instant>,
    reason: &'static str,
}

impl OllamaWriter {
    pub(crate) fn new(form: OllamaForm, model: &str, started: Instant) -> Self {
        Self { form, model: model.to_owned(), started, spoke: None, reason: "stop" }
    }

    fn object(&self, text: &str) -> Map<String, Value> {
        let (name, value) = match self.form {
            OllamaForm::Chat => ("message", json!({"role": "assistant", "content": text})),
            OllamaForm::Generate => ("response", Value::from(text)),
        };
        let mut object = Map::new();
        object.insert("model".to_owned(), Value::from(self.model.as_str()));
        object.insert("created_at".to_owned(), Value::from(utc_now()));
        object.insert(name.to_owned(), value);
        object.insert("done".to_owned(), Value::from(false));
        object
    }

    /// The last object; `text` is what the ones before it have not said.
    fn last(&self, text: &str, usage: Usage) -> Map<String, Value> {
        let now = Instant::now();
        let spoke = self.spoke.unwrap_or(now);
        let times = Times {
            done_reason: self.reason,
            total_duration: nanoseconds(now - self.started),
            load_duration: 0,
            prompt_eval_count: usage.prompt_tokens,
            prompt_eval_duration: nanoseconds(spoke - self.started),
            eval_count: usage.completion_tokens,
            eval_duration: nanoseconds(now - spoke),
        };
        let mut object = self.object(text);
        object.insert("done".to_owned(), Value::from(true));
        if let Ok(Value::Object(times)) = serde_json::to_value(times) {
            object.extend(times);
        }
        object
    }

    /// What is said of a model that was only to be loaded, or to leave.
    pub(crate) fn without_answer(mut self, reason: &'static str) -> Response {
        self.reason = reason;
        let mut object = self.object("");
        object.insert("done".to_owned(), Value::from(true));
        object.insert("done_reason".to_owned(), Value::from(reason));
        json_response(&object)
    }

    fn note(&mut self, delta: &Delta) -> Result<(), ApiError> {
        if !delta.tokens.is_empty() {
            self.spoke.get_or_insert_with(Instant::now);
        }
        if let Some((reason, _)) = ended(delta)? {
            self.reason = finish_reason(reason)?;
        }
        Ok(())
    }
}

/// In nanoseconds; the counts are tokens. The prompt's time is that to the first token, the wait
/// for a place included.
#[derive(Serialize)]
struct Times {
    done_reason: &'static str,
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u64,
    prompt_eval_duration: u64,
    eval_count: u64,
    eval_duration: u64,
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn utc_now() -> String {
    utc(unix_seconds())
}

/// By RFC 3339.
pub(crate) fn utc(unix_seconds: u64) -> String {
    let seconds = i64::try_from(unix_seconds).unwrap_or(0);
    chat::strftime(seconds, "%FT%TZ").unwrap_or_default()
}

impl ChunkWriter for OllamaWriter {
    const FORM: StreamForm = StreamForm::Lines;

    async fn collect(mut self, mut answers: Answers) -> Result<Response, ApiError> {
        let mut text = String::new();
        while let Some((_, delta)) =
            std::future::poll_fn(|context| answers.poll_next(context)).await
        {
            self.note(&delta)?;
            text.push_str(&delta.text);
        }
        Ok(json_response(&self.last(&text, answers.usage())))
    }

    fn delta(
        &mut self,
        _index: usize,
        delta: &Delta,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        self.note(delta)?;
        if !delta.text.is_empty() {
            events.write_line(&self.object(&delta.text));
        }
        Ok(())
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        events.write_line(&self.last("", usage));
    }

    fn error(&mut self, error: &ApiError, events: &mut EventWriter) {
        events.write_line(&ErrorObject::new(error, Dialect::Ollama));
    }
}
