//! How should the answer be sampled, stopped and sent? The fields both endpoints share, with their
//! bounds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use engine::{Deadline, GenerateRequest, ModelCard, Prompt, Urgency};
use messages::{CacheNamespace, Priority, SamplingParams, SharingMode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::constraint_fields::read_constraint;
use super::text_or_list::TextOrList;
use super::{Fields, SharingHeaders};
use crate::answers::ChoiceRequest;
use crate::reply::ApiError;

/// OpenAI's bound on `n`.
pub(crate) const CHOICES_MAX: u32 = 128;
/// OpenAI allows 4, vLLM's users send more; each is searched for in every piece of the answer.
const STOP_TEXTS_MAX: usize = 16;
const STOP_TEXT_BYTES_MAX: usize = 1024;
/// OpenAI's bound on `top_logprobs`.
pub(super) const LOGPROBS_MAX: i64 = 20;
/// A day.
const TIMEOUT_MS_MAX: i64 = 86_400_000;
/// Each answer holds its prompt until it is encoded; together no more than bodies may.
const COPIES_BYTES_MAX: usize = 64 << 20;

/// What a request asks of its answers.
pub(crate) struct GenerationFields {
    pub(crate) params: SamplingParams,
    stop: Vec<String>,
    include_stop: bool,
    /// Answers for each prompt.
    pub(crate) choices: u32,
    pub(crate) stream: Stream,
    namespace: CacheNamespace,
    sharing: SharingMode,
    urgency: Urgency,
    /// As the answer names it; `None`: nobody asked.
    pub(crate) service_tier: Option<&'static str>,
}

/// How much one request asks for at once.
#[derive(Clone, Copy)]
pub(crate) struct RequestSize {
    pub(crate) prompts: usize,
    pub(crate) choices_max: u32,
    pub(crate) body_bytes: usize,
}

/// What the server sets bounds to while a request is read.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) choices_max: u32,
    /// When the request came.
    pub(crate) started: Instant,
    /// The longest that an answer may take; `None`: any time.
    pub(crate) timeout_max: Option<Duration>,
    /// Of a request that names none.
    pub(crate) priority: Priority,
    pub(crate) priority_max: Priority,
}

/// How the answer is sent.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Stream {
    Off,
    On,
    WithUsage,
}

impl Stream {
    pub(crate) fn is_on(self) -> bool {
        self != Self::Off
    }

    pub(crate) fn include_usage(self) -> bool {
        self == Self::WithUsage
    }
}

impl GenerationFields {
    /// Reads the shared fields. `max_tokens` and `logprobs` are completed by each endpoint.
    pub(crate) fn read(
        fields: &mut Fields<'_>,
        card: &ModelCard,
        headers: &SharingHeaders,
        bounds: Bounds,
    ) -> Result<Self, ApiError> {
        let choices = fields.integer("n", 1..=i64::from(bounds.choices_max))?.unwrap_or(1) as u32;
        let constraint = read_constraint(fields)?;
        let params = SamplingParams { constraint, ..read_params(fields, card)? };
        let stop = read_stop(fields, "stop")?;
        let include_stop = fields.boolean("include_stop_str_in_output")?.unwrap_or(false);
        let stream = read_stream(fields)?;
        for &(name, neutral) in NEUTRAL {
            fields.neutral(name, neutral)?;
        }
        for &name in LABELS {
            fields.label(name);
        }
        let (namespace, sharing) = (headers.namespace(fields)?, headers.mode);
        let (urgency, service_tier) = read_urgency(fields, bounds)?;
        Ok(Self {
            params,
            stop,
            include_stop,
            choices,
            stream,
            namespace,
            sharing,
            urgency,
            service_tier,
        })
    }

    /// What APIs ask that know one answer a request.
    pub(crate) fn single(
        params: SamplingParams,
        stop: Vec<String>,
        is_streamed: bool,
        (namespace, sharing): (CacheNamespace, SharingMode),
        urgency: Urgency,
    ) -> Self {
        let stream = if is_streamed { Stream::On } else { Stream::Off };
        Self {
            params,
            stop,
            include_stop: false,
            choices: 1,
            stream,
            namespace,
            sharing,
            urgency,
            service_tier: None,
        }
    }

    /// The texts that end the answer.
    pub(crate) fn stops(&self) -> &[String] {
        &self.stop
    }

    /// Goes on past what would end the answer before the model does.
    pub(crate) fn forget_stops(&mut self) {
        self.stop.clear();
        self.params.stop_token_ids.clear();
    }

    /// Checks what depends on more than one field. `size` is the request's.
    pub(crate) fn check(&self, card: &ModelCard, size: RequestSize) -> Result<(), ApiError> {
        let refuse = |text: String| Err(ApiError::invalid(Some("n"), text));
        let RequestSize { prompts, choices_max, body_bytes } = size;
        let asked = prompts * self.choices as usize;
        if asked > choices_max as usize {
            return refuse(format!(
                "{asked} answers are asked for at once, the most is {choices_max}"
            ));
        }
        if body_bytes.saturating_mul(self.choices as usize) > COPIES_BYTES_MAX {
            return refuse(format!(
                "n is {}, too many answers for a request of {body_bytes} bytes",
                self.choices
            ));
        }
        Ok(self.params.validate(card.vocabulary_size)?)
    }

    /// One engine request for each answer: all of the first prompt, then all of the second.
    pub(crate) fn into_requests(self, model: &str, prompts: Vec<Prompt>) -> Vec<ChoiceRequest> {
        let mut requests = Vec::with_capacity(prompts.len() * self.choices as usize);
        for prompt in prompts {
            for choice in 0..self.choices {
                let mut params = self.params.clone();
                // Answers to one prompt must differ; the same request still repeats all of them.
                params.seed = params.seed.map(|seed| seed.wrapping_add(u64::from(choice)));
                let request = GenerateRequest {
                    model: model.to_owned(),
                    prompt: prompt.clone(),
                    params,
                    stop: self.stop.clone(),
                    include_stop: self.include_stop,
                    namespace: self.namespace.clone(),
                    sharing: self.sharing,
                    urgency: self.urgency,
                };
                requests.push(ChoiceRequest { request, is_first_of_prompt: choice == 0 });
            }
        }
        requests
    }
}

/// Fields of both endpoints that change no answer: whose it is, and what to cache, which is found
/// by itself.
const LABELS: &[&str] =
    &["metadata", "prompt_cache_key", "prompt_cache_options", "safety_identifier", "user"];

/// Fields of both endpoints that are accepted only when they ask for nothing.
const NEUTRAL: &[(&str, &[&str])] = &[
    ("length_penalty", &["1", "1.0"]),
    ("prompt_cache_retention", &["\"in-memory\"", "\"in_memory\""]),
    ("prompt_logprobs", &["0"]),
    ("skip_special_tokens", &["true"]),
    ("spaces_between_special_tokens", &["true"]),
    ("store", &["false"]),
    ("truncate_prompt_tokens", &[]),
    ("use_beam_search", &["false"]),
];

/// When the answer is wanted: `priority` and `timeout_ms`, of Pelton's own, and OpenAI's
/// `service_tier`, whose tiers are priorities here. Gives the tier for the answer, too.
pub(crate) fn read_urgency(
    fields: &mut Fields<'_>,
    bounds: Bounds,
) -> Result<(Urgency, Option<&'static str>), ApiError> {
    let refuse = |name, text: &str| Err(ApiError::invalid(Some(name), text));
    let named = match fields.typed::<serde_json::Value>("priority")? {
        None | Some(serde_json::Value::Null) => None,
        Some(value) => match value.as_str() {
            Some("high") => Some(Priority::High),
            Some("normal") => Some(Priority::Normal),
            Some("low") => Some(Priority::Low),
            // What vLLM's clients send where they want nothing special.
            None if value == 0 => Some(Priority::Normal),
            _ => return refuse("priority", "priority must be `high`, `normal` or `low`"),
        },
    };
    let tier = fields.string("service_tier")?;
    let of_tier = match tier.as_deref() {
        Some("priority") => Some(Priority::High),
        Some("flex") => Some(Priority::Low),
        None | Some("auto" | "default") => None,
        Some(_) => {
            let text = "service_tier must be `auto`, `default`, `flex` or `priority`";
            return refuse("service_tier", text);
        }
    };
    if named.is_some() && of_tier.is_some() && named != of_tier {
        let text = "priority and service_tier ask for different things: send one of them";
        return refuse("service_tier", text);
    }
    let priority = named.or(of_tier).unwrap_or(bounds.priority);
    if priority > bounds.priority_max {
        let name = if named.is_some() { "priority" } else { "service_tier" };
        return Err(ApiError::too_urgent(name));
    }
    // As OpenAI does: the tier that was used, where the request speaks of tiers.
    let used = tier.map(|_| match priority {
        Priority::High => "priority",
        Priority::Normal => "default",
        Priority::Low => "flex",
    });
    let asked = fields.integer("timeout_ms", 1..=TIMEOUT_MS_MAX)?;
    let asked = asked.map(|ms| Duration::from_millis(ms.unsigned_abs()));
    if let (Some(asked), Some(max)) = (asked, bounds.timeout_max)
        && asked > max
    {
        let (asked, max) = (asked.as_millis(), max.as_millis());
        let text = format!("timeout_ms is {asked}, this server allows {max} at most");
        return refuse("timeout_ms", &text);
    }
    let timeout = asked.or(bounds.timeout_max);
    let deadline = timeout.and_then(|timeout| Deadline::after(bounds.started, timeout));
    Ok((Urgency { priority, deadline }, used))
}

fn read_params(fields: &mut Fields<'_>, card: &ModelCard) -> Result<SamplingParams, ApiError> {
    // The model's own, where its files say any.
    let default = card.defaults.clone();
    let context = i64::from(card.context_tokens_max);
    let mut number = |name, low: f32, high: f32, absent: f32| {
        let read = fields.number(name, f64::from(low)..=f64::from(high))?;
        Ok::<f32, ApiError>(read.map_or(absent, |value| value as f32))
    };
    let temperature = number("temperature", 0.0, 2.0, default.temperature)?;
    let top_p = number("top_p", 0.0, 1.0, default.top_p)?;
    let min_p = number("min_p", 0.0, 1.0, default.min_p)?;
    let presence_penalty = number("presence_penalty", -2.0, 2.0, default.presence_penalty)?;
    let frequency_penalty = number("frequency_penalty", -2.0, 2.0, default.frequency_penalty)?;
    let repetition_penalty = number("repetition_penalty", 0.125, 10.0, default.repetition_penalty)?;
    // vLLM writes "off" as -1 or 0.
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    let top_k = top_k.map_or(default.top_k, |count| count.max(0) as u32);
    // Any 64-bit integer is a seed; its bits count.
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned);
    let max_tokens = fields.integer("max_tokens", 1..=context)?.map(|count| count as u32);
    let min_tokens = fields.integer("min_tokens", 0..=context)?.unwrap_or(0) as u32;
    let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
    Ok(SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        logit_bias: read_logit_bias(fields)?,
        seed,
        logprobs: None,
        max_tokens,
        min_tokens,
        ignore_eos,
        stop_token_ids: fields.typed("stop_token_ids")?.unwrap_or_default(),
        speculation: fields.boolean("speculation")?,
        constraint: default.constraint,
        thoughts: default.thoughts,
    })
}

fn read_logit_bias(fields: &mut Fields<'_>) -> Result<Vec<(u32, f32)>, ApiError> {
    let biases = fields.typed::<BTreeMap<String, f64>>("logit_bias")?.unwrap_or_default();
    let read = |(token, bias): (String, f64)| {
        let shown: String = token.chars().take(40).collect();
        let refuse = |problem: &str| {
            let text = format!("logit_bias has `{shown}`: {bias}; {problem}");
            ApiError::invalid(Some("logit_bias"), text)
        };
        let id = token.parse().map_err(|_| refuse("the name must be a token's id"))?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(refuse("the bias must be between -100 and 100"));
        }
        Ok((id, bias as f32))
    };
    biases.into_iter().map(read).collect()
}

/// Texts that end the answer, from the field of this name.
pub(crate) fn read_stop(
    fields: &mut Fields<'_>,
    name: &'static str,
) -> Result<Vec<String>, ApiError> {
    let refuse = |text: String| Err(ApiError::invalid(Some(name), text));
    let stop = match fields.typed::<TextOrList<String>>(name)? {
        None => Vec::new(),
        Some(TextOrList::Text(text)) => vec![text],
        Some(TextOrList::List(texts)) => texts,
    };
    if stop.len() > STOP_TEXTS_MAX {
        return refuse(format!("{name} has {} texts, the most is {STOP_TEXTS_MAX}", stop.len()));
    }
    for text in &stop {
        let bytes = text.len();
        if bytes == 0 || bytes > STOP_TEXT_BYTES_MAX {
            return refuse(format!(
                "a stop text has {bytes} bytes, it must have between 1 and {STOP_TEXT_BYTES_MAX}"
            ));
        }
    }
    Ok(stop)
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
    /// OpenAI's padding against guesses from lengths; only `false` can be honoured.
    include_obfuscation: Option<bool>,
    continuous_usage_stats: Option<bool>,
}

fn read_stream(fields: &mut Fields<'_>) -> Result<Stream, ApiError> {
    let is_on = fields.boolean("stream")?.unwrap_or(false);
    let Some(options) = fields.typed::<StreamOptions>("stream_options")? else {
        return Ok(if is_on { Stream::On } else { Stream::Off });
    };
    if !is_on {
        let text = "stream_options are for stream: true";
        return Err(ApiError::invalid(Some("stream_options"), text));
    }
    for (name, value) in [
        ("stream_options.include_obfuscation", options.include_obfuscation),
        ("stream_options.continuous_usage_stats", options.continuous_usage_stats),
    ] {
        if value == Some(true) {
            return Err(ApiError::unsupported(name, &format!("`{name}` is not supported")));
        }
    }
    Ok(if options.include_usage == Some(true) { Stream::WithUsage } else { Stream::On })
}

/// How many alternatives to report, in the two endpoints' ways of asking.
pub(crate) struct Logprobs;

impl Logprobs {
    /// `logprobs: true`, `top_logprobs: 5`.
    pub(crate) fn chat(fields: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
        let is_on = fields.boolean("logprobs")?.unwrap_or(false);
        let top = fields.integer("top_logprobs", 0..=LOGPROBS_MAX)?;
        if !is_on && top.is_some_and(|top| top > 0) {
            let text = "top_logprobs needs logprobs: true";
            return Err(ApiError::invalid(Some("top_logprobs"), text));
        }
        Ok(is_on.then(|| top.unwrap_or(0) as u32))
    }

    /// `logprobs: 5`.
    pub(crate) fn text(fields: &mut Fields<'_>) -> Result<Option<u32>, ApiError> {
        Ok(fields.integer("logprobs", 0..=LOGPROBS_MAX)?.map(|top| top as u32))
    }
}
