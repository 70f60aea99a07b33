//! What does a request in Ollama's form ask for?

use engine::ModelCard;
use messages::SamplingParams;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::constraint_fields::read_ollama_format;
use super::conversation::{MESSAGES_MAX, template_call};
use super::dialog::Dialog;
use super::tool_fields::read_tools;
use super::{Bounds, Fields, GenerationFields, Logprobs, SharingHeaders, read_stop, read_urgency};
use crate::reply::ApiError;

/// Options of the machine and of loading, which are the server's own settings here.
const MACHINE_OPTIONS: &[&str] = &[
    "f16_kv",
    "logits_all",
    "low_vram",
    "main_gpu",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "penalize_newline",
    "repeat_last_n",
    "use_mlock",
    "use_mmap",
    "vocab_only",
];

/// Options that are accepted only where they ask for nothing.
const NEUTRAL_OPTIONS: &[(&str, &[&str])] = &[
    ("mirostat", &["0"]),
    ("mirostat_eta", &["0.1"]),
    ("mirostat_tau", &["5.0", "5"]),
    ("tfs_z", &["1.0", "1"]),
    ("typical_p", &["1.0", "1"]),
];

const NEUTRAL: &[(&str, &[&str])] = &[
    ("context", &["[]"]),
    ("images", &["[]"]),
    ("suffix", &["\"\""]),
    ("truncate", &["true", "false"]),
    ("shift", &["true", "false"]),
];

/// Ollama's own defaults, for what a request leaves out.
const TEMPERATURE: f32 = 0.8;
const TOP_K: u32 = 40;
const TOP_P: f32 = 0.9;

/// Reads everything but the model's name and the prompt.
///
/// # Errors
/// 400 naming the field or option that is wrong or not supported.
pub(crate) fn read_ollama_fields(
    fields: &mut Fields<'_>,
    card: &ModelCard,
    headers: &SharingHeaders,
    bounds: Bounds,
) -> Result<GenerationFields, ApiError> {
    let (params, stop) = read_ollama_options(fields, card)?;
    let (constraint, logprobs) = (read_ollama_format(fields)?, Logprobs::chat(fields)?);
    let params = SamplingParams { constraint, logprobs, ..params };
    let is_streamed = fields.boolean("stream")?.unwrap_or(true);
    for &(name, neutral) in NEUTRAL {
        fields.neutral(name, neutral)?;
    }
    let namespace = headers.namespace(fields)?;
    let (urgency, _) = read_urgency(fields, bounds)?;
    params.validate(card.vocabulary_size)?;
    Ok(GenerationFields::single(params, stop, is_streamed, (namespace, headers.mode), urgency))
}

/// How answers are sampled and stopped.
///
/// # Errors
/// 400 naming the option that is wrong or not supported.
pub(crate) fn read_ollama_options(
    fields: &mut Fields<'_>,
    card: &ModelCard,
) -> Result<(SamplingParams, Vec<String>), ApiError> {
    let mut options = Fields::parse(fields.raw("options").unwrap_or("{}").as_bytes())?;
    let read = read_options(&mut options, card)?;
    options.finish()?;
    Ok(read)
}

fn read_options(
    options: &mut Fields<'_>,
    card: &ModelCard,
) -> Result<(SamplingParams, Vec<String>), ApiError> {
    let default = SamplingParams::default();
    let context = i64::from(card.context_tokens_max);
    let mut number = |name, low: f64, high: f64, absent: f32| {
        let read = options.number(name, low..=high)?;
        Ok::<f32, ApiError>(read.map_or(absent, |value| value as f32))
    };
    let temperature = number("temperature", 0.0, 2.0, TEMPERATURE)?;
    let top_p = number("top_p", 0.0, 1.0, TOP_P)?;
    let min_p = number("min_p", 0.0, 1.0, default.min_p)?;
    let repetition_penalty = number("repeat_penalty", 0.125, 10.0, default.repetition_penalty)?;
    let presence_penalty = number("presence_penalty", -2.0, 2.0, default.presence_penalty)?;
    let frequency_penalty = number("frequency_penalty", -2.0, 2.0, default.frequency_penalty)?;
    let top_k = options.integer("top_k", 0..=i64::from(u32::MAX))?;
    let seed = options.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned);
    // -1: until the answer ends; -2: until the context does.
    let most = options.integer("num_predict", -2..=i64::from(u32::MAX))?.unwrap_or(-1);
    let max_tokens = (1..context).contains(&most).then_some(most as u32);
    if most == 0 {
        let text = "num_predict is 0: ask for at least one token, or -1 for as many as it takes";
        return Err(ApiError::invalid(Some("options.num_predict"), text));
    }
    let stop = read_stop(options, "stop")?;
    for &(name, neutral) in NEUTRAL_OPTIONS {
        options.neutral(name, neutral)?;
    }
    for &name in MACHINE_OPTIONS {
        options.label(name);
    }
    let params = SamplingParams {
        temperature,
        top_k: top_k.map_or(TOP_K, |count| count as u32),
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        seed,
        max_tokens,
        ..default
    };
    Ok((params, stop))
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireMessage {
    role: String,
    content: Option<String>,
    thinking: Option<String>,
    #[schemars(with = "Option<Vec<Value>>")]
    images: Option<Vec<serde::de::IgnoredAny>>,
    tool_calls: Option<Vec<WireCall>>,
    tool_name: Option<String>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireCall {
    id: Option<String>,
    /// All are of functions.
    #[serde(rename = "type")]
    _kind: Option<String>,
    function: WireFunction,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct WireFunction {
    name: String,
    /// Which of an answer's calls it was.
    #[serde(rename = "index")]
    _index: Option<u32>,
    arguments: Option<Value>,
}

/// The messages of `/api/chat`; none: the model is to be loaded.
pub(crate) fn read_ollama_messages(
    fields: &mut Fields<'_>,
) -> Result<Vec<chat::Message>, ApiError> {
    let messages = fields.typed::<Vec<WireMessage>>("messages")?.unwrap_or_default();
    if messages.len() > MESSAGES_MAX {
        let text = format!("there are {} messages, the most is {MESSAGES_MAX}", messages.len());
        return Err(ApiError::invalid(Some("messages"), text));
    }
    let read = |(index, message): (usize, WireMessage)| {
        let place = |field: &str| format!("messages[{index}].{field}");
        if !["assistant", "system", "tool", "user"].contains(&message.role.as_str()) {
            let shown: String = message.role.chars().take(40).collect();
            let text = format!(
                "{} is `{shown}`, it must be assistant, system, tool or user",
                place("role")
            );
            return Err(ApiError::invalid(Some(&place("role")), text));
        }
        if message.images.is_some_and(|list| !list.is_empty()) {
            let text = format!("{} is not supported: leave it out", place("images"));
            return Err(ApiError::unsupported(&place("images"), &text));
        }
        let call = |WireCall { id, function, .. }: WireCall| {
            template_call(id.as_deref(), &function.name, function.arguments)
        };
        let calls: Vec<Value> =
            message.tool_calls.unwrap_or_default().into_iter().map(call).collect();
        // Null is no text in Go, and so for Ollama.
        let plain = chat::Message::new(&message.role, &message.content.unwrap_or_default());
        Ok(chat::Message {
            reasoning_content: message.thinking,
            tool_calls: (!calls.is_empty()).then(|| Value::from(calls)),
            name: message.tool_name,
            tool_call_id: message.tool_call_id,
            ..plain
        })
    };
    messages.into_iter().enumerate().map(read).collect()
}

/// What is asked, before the model's template is known.
pub(crate) enum OllamaPrompt {
    Raw(String),
    Chat(Vec<chat::Message>),
}

/// Ollama's `tools` and `think`. Its `/api/generate` knows no tools.
///
/// # Errors
/// 400 naming what is wrong.
pub(crate) fn read_ollama_dialog(
    fields: &mut Fields<'_>,
    card: &ModelCard,
) -> Result<Dialog, ApiError> {
    let mut dialog = Dialog { tools: read_tools(fields)?, ..Dialog::default() };
    let think = fields.typed::<Value>("think")?;
    let is_asked = think.as_ref().is_some_and(|think| *think != false);
    if is_asked && card.answer_format.thoughts.is_none() {
        // Ollama's words.
        let text = format!("\"{}\" does not support thinking", card.id);
        return Err(ApiError::unsupported("think", &text));
    }
    match think {
        None => {}
        Some(Value::Bool(is_on)) => dialog.think(is_on),
        Some(Value::String(effort)) if ["low", "medium", "high"].contains(&effort.as_str()) => {
            dialog.effort(&effort);
        }
        Some(_) => {
            let text = "think must be true, false, `low`, `medium` or `high`";
            return Err(ApiError::invalid(Some("think"), text));
        }
    }
    Ok(dialog)
}

/// The prompt of `/api/generate`: within the model's template unless `raw`; `None` where there is
/// none: the model is to be loaded.
pub(crate) fn read_ollama_prompt(
    fields: &mut Fields<'_>,
) -> Result<Option<OllamaPrompt>, ApiError> {
    let prompt = fields.string("prompt")?.unwrap_or_default();
    let system = fields.string("system")?.filter(|text| !text.is_empty());
    let is_raw = fields.boolean("raw")?.unwrap_or(false);
    fields.neutral("template", &["\"\""])?;
    if prompt.is_empty() {
        return Ok(None);
    }
    if is_raw {
        return Ok(Some(OllamaPrompt::Raw(prompt)));
    }
    let system = system.map(|text| chat::Message::new("system", &text));
    let user = chat::Message::new("user", &prompt);
    Ok(Some(OllamaPrompt::Chat(system.into_iter().chain([user]).collect())))
}

/// What is wanted of the model's time in memory: `true` where it is to leave at once. Other times
/// are the server's own setting.
pub(crate) fn asks_to_leave(fields: &mut Fields<'_>) -> Result<bool, ApiError> {
    let seconds = match fields.typed::<Value>("keep_alive")? {
        None => return Ok(false),
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => seconds_of(&text),
        Some(_) => None,
    };
    let seconds = seconds.ok_or_else(|| {
        let text = "keep_alive must be a number of seconds or a time as `5m` or `1h30m`";
        ApiError::invalid(Some("keep_alive"), text)
    })?;
    Ok(seconds == 0.0)
}

/// Seconds of a time as Go writes it, or of a bare number.
fn seconds_of(text: &str) -> Option<f64> {
    /// Longer ones before those that they begin with.
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("\u{b5}s", 1e-6),
        ("\u{3bc}s", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let is_number = |text: &str| {
        text.bytes().any(|byte| byte.is_ascii_digit())
            && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    };
    let number = |text: &str| is_number(text).then(|| text.parse::<f64>().ok()).flatten();
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if let Some(seconds) = number(rest) {
        return Some(seconds);
    }
    let (has_time, mut seconds) = (!rest.is_empty(), 0.0);
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (count, behind) = rest.split_at(end);
        let (unit, each) = UNITS.iter().find(|(unit, _)| behind.starts_with(unit))?;
        seconds += number(count)? * each;
        rest = &behind[unit.len()..];
    }
    has_time.then_some(seconds)
}

/// The model that a request names, with or without Ollama's `:latest`.
pub(crate) fn read_ollama_model(fields: &mut Fields<'_>) -> Result<Option<String>, ApiError> {
    let (model, name) = (fields.string("model")?, fields.string("name")?);
    let asked = model.or(name);
    Ok(asked.map(|name| name.strip_suffix(":latest").unwrap_or(&name).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, seconds) in [
            ("5m", Some(300.0)),
            ("1h30m", Some(5400.0)),
            ("1.5s", Some(1.5)),
            ("250ms", Some(0.25)),
            ("-1", Some(1.0)),
            ("-1m", Some(60.0)),
            ("0", Some(0.0)),
            ("0h0m", Some(0.0)),
            ("", None),
            ("-", None),
            ("banana", None),
            ("5x", None),
            ("m", None),
            (".m", None),
            ("5m3", None),
        ] {
            assert_eq!(seconds_of(text), seconds, "{text}");
        }
    }
}
