//! How does an answer look in Ollama's form? Lines of JSON; the last one counts and times.

use std::time::{Duration, Instant};

use answer_format::{Call, Part};
use axum::response::Response;
use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::dialect::{Dialect, ErrorObject};
use super::{
    ApiError, ChunkWriter, EventWriter, StreamForm, TokenScore, Usage, ended, finish_reason,
    json_response,
};
use crate::answers::{Answers, Piece};
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
    /// The call whose arguments are still coming: Ollama tells calls as a whole.
    call: Option<Call>,
    explanation: Option<Value>,
}

impl OllamaWriter {
    pub(crate) fn new(form: OllamaForm, model: &str, started: Instant) -> Self {
        let model = model.to_owned();
        Self { form, model, started, spoke: None, reason: "stop", call: None, explanation: None }
    }

    fn object(&self, said: &Said) -> Map<String, Value> {
        let Said { text, thoughts, calls, scores } = said;
        let (name, value) = match self.form {
            OllamaForm::Chat => {
                let mut message = json!({"role": "assistant", "content": text});
                if !thoughts.is_empty() {
                    message["thinking"] = Value::from(thoughts.as_str());
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.iter().map(call_object).collect();
                }
                ("message", message)
            }
            OllamaForm::Generate => ("response", Value::from(text.as_str())),
        };
        let mut object = Map::new();
        object.insert("model".to_owned(), Value::from(self.model.as_str()));
        object.insert("created_at".to_owned(), Value::from(utc_now()));
        object.insert(name.to_owned(), value);
        if self.form == OllamaForm::Generate && !thoughts.is_empty() {
            object.insert("thinking".to_owned(), Value::from(thoughts.as_str()));
        }
        if !scores.is_empty() {
            object.insert("logprobs".to_owned(), json!(scores));
        }
        object.insert("done".to_owned(), Value::from(false));
        object
    }

    /// The last object; `said` is what the ones before it have not.
    fn last(&self, said: &Said, usage: Usage) -> Map<String, Value> {
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
        let mut object = self.object(said);
        object.insert("done".to_owned(), Value::from(true));
        if let Ok(Value::Object(times)) = serde_json::to_value(times) {
            object.extend(times);
        }
        object
    }

    /// What is said of a model that was only to be loaded, or to leave.
    pub(crate) fn without_answer(mut self, reason: &'static str) -> Response {
        self.reason = reason;
        let mut object = self.object(&Said::default());
        object.insert("done".to_owned(), Value::from(true));
        object.insert("done_reason".to_owned(), Value::from(reason));
        json_response(&object)
    }

    fn note(&mut self, piece: &Piece) -> Result<(), ApiError> {
        if !piece.tokens.is_empty() {
            self.spoke.get_or_insert_with(Instant::now);
        }
        if let Some((reason, _)) = ended(piece.end.as_ref())? {
            self.reason = finish_reason(reason)?;
        }
        Ok(())
    }

    /// What a piece says; a call once it is complete.
    fn said(&mut self, piece: &Piece) -> Said {
        let scores = TokenScore::all(&piece.tokens).collect();
        let mut said = Said { scores, ..Said::default() };
        for part in &piece.parts {
            match part {
                Part::CallArguments(text) => {
                    if let Some(call) = &mut self.call {
                        call.arguments.push_str(text);
                    }
                    continue;
                }
                Part::Text(text) => said.text.push_str(text),
                Part::Thought(text) => said.thoughts.push_str(text),
                Part::CallName(_) => {}
            }
            said.calls.extend(self.whole_call());
            if let Part::CallName(name) = part {
                self.call = Some(Call { name: name.clone(), arguments: String::new() });
            }
        }
        if piece.end.is_some() {
            said.calls.extend(self.whole_call());
        }
        said
    }

    /// The latest call, unless it was cut off: half of one is none.
    fn whole_call(&mut self) -> Option<Call> {
        let is_whole = |call: &Call| serde_json::from_str::<IgnoredAny>(&call.arguments).is_ok();
        self.call.take().filter(is_whole)
    }
}

/// What one object says.
#[derive(Default)]
struct Said {
    text: String,
    thoughts: String,
    calls: Vec<Call>,
    /// Of its tokens, where they were asked for.
    scores: Vec<TokenScore>,
}

impl Said {
    fn is_nothing(&self) -> bool {
        let Self { text, thoughts, calls, scores } = self;
        text.is_empty() && thoughts.is_empty() && calls.is_empty() && scores.is_empty()
    }
}

fn call_object(call: &Call) -> Value {
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap_or_else(|_| json!({}));
    json!({"function": {"name": call.name, "arguments": arguments}})
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
        let mut all = Said::default();
        while let Some((_, piece)) =
            std::future::poll_fn(|context| answers.poll_next(context)).await
        {
            self.note(&piece)?;
            let Said { text, thoughts, calls, scores } = self.said(&piece);
            all.text.push_str(&text);
            all.thoughts.push_str(&thoughts);
            all.calls.extend(calls);
            all.scores.extend(scores);
        }
        Ok(json_response(&self.last(&all, answers.usage())))
    }

    fn piece(
        &mut self,
        _index: usize,
        piece: &Piece,
        events: &mut EventWriter,
    ) -> Result<(), ApiError> {
        self.note(piece)?;
        let said = self.said(piece);
        if !said.is_nothing() {
            events.write_line(&self.object(&said));
        }
        Ok(())
    }

    fn explain(&mut self, explanation: Value, _: &mut EventWriter) {
        self.explanation = Some(explanation);
    }

    fn end(&mut self, usage: Usage, events: &mut EventWriter) {
        let mut last = self.last(&Said::default(), usage);
        last.extend(self.explanation.take().map(|value| ("x_explain".to_owned(), value)));
        events.write_line(&last);
    }

    /// Lines of JSON know no comments: a piece of no text.
    fn keep_alive(&mut self, events: &mut EventWriter) {
        events.write_line(&self.object(&Said::default()));
    }

    fn error(&mut self, error: &ApiError, events: &mut EventWriter) {
        events.write_line(&ErrorObject::new(error, Dialect::Ollama));
    }
}
