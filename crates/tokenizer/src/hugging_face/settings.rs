//! What do the small files beside a `tokenizer.json` say?

use serde_json::Value;

use super::error::HuggingFaceError;
use crate::vocabulary::printable;

/// Published ones stay under 3 MB (`added_tokens_decoder` of Gemma 3).
const SETTINGS_BYTES_MAX: usize = 16 << 20;
/// Longest template accepted; what renders it has a limit of its own.
const TEMPLATES_MAX: usize = 64;

/// Reads a file that may be missing.
pub(crate) fn read(
    file: &'static str,
    bytes: Option<&[u8]>,
) -> Result<Option<Value>, HuggingFaceError> {
    let Some(bytes) = bytes else { return Ok(None) };
    let limit = SETTINGS_BYTES_MAX;
    if bytes.len() > limit {
        return Err(HuggingFaceError::TooLarge { file, bytes: bytes.len(), limit });
    }
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| HuggingFaceError::NotReadable { file, reason: error.to_string() })?;
    if !value.is_object() {
        let reason = "it is no object".to_owned();
        return Err(HuggingFaceError::NotReadable { file, reason });
    }
    Ok(Some(value))
}

/// A token of `tokenizer_config.json`: a text, or an object with one.
pub(crate) fn token_text<'a>(settings: Option<&'a Value>, name: &str) -> Option<&'a str> {
    let value = settings?.get(name)?;
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// The chat templates of a model, by name; a single one is called `default`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    templates: Vec<(String, String)>,
}

impl ChatTemplates {
    /// A template in a file of its own wins over those of `tokenizer_config.json`.
    pub(crate) fn read(
        config: Option<&Value>,
        jinja: Option<&[u8]>,
    ) -> Result<ChatTemplates, HuggingFaceError> {
        let default = |text: String| ChatTemplates { templates: vec![("default".into(), text)] };
        if let Some(bytes) = jinja {
            let file = "chat_template.jinja";
            let text = String::from_utf8(bytes.to_vec()).map_err(|error| {
                HuggingFaceError::NotReadable { file, reason: error.to_string() }
            })?;
            return Ok(default(text));
        }
        let damaged = |what: &str| HuggingFaceError::Damaged {
            file: "tokenizer_config.json",
            what: what.to_owned(),
        };
        match config.and_then(|config| config.get("chat_template")) {
            None | Some(Value::Null) => Ok(ChatTemplates::default()),
            Some(Value::String(text)) => Ok(default(text.clone())),
            Some(Value::Array(list)) if list.len() <= TEMPLATES_MAX => {
                let part = |entry: &Value, name: &str| entry[name].as_str().map(str::to_owned);
                let named = |entry| Some((part(entry, "name")?, part(entry, "template")?));
                let templates: Option<Vec<_>> = list.iter().map(named).collect();
                let templates = templates
                    .ok_or_else(|| damaged("an entry of chat_template has no name or template"))?;
                Ok(ChatTemplates { templates })
            }
            Some(Value::Object(map)) if map.len() <= TEMPLATES_MAX => {
                let text = |(name, text): (&String, &Value)| {
                    text.as_str().map(|text| (name.clone(), text.to_owned()))
                };
                let templates: Option<Vec<_>> = map.iter().map(text).collect();
                let templates =
                    templates.ok_or_else(|| damaged("a template of chat_template is no text"))?;
                Ok(ChatTemplates { templates })
            }
            Some(_) => Err(damaged("chat_template is neither a text nor a list of them")),
        }
    }

    /// The one for a conversation: with tools the one called `tool_use` where there is one, else
    /// the default, as `apply_chat_template` chooses.
    pub fn choose(&self, has_tools: bool) -> Option<&str> {
        let tools = if has_tools { self.named("tool_use") } else { None };
        tools.or_else(|| self.named("default"))
    }

    /// The last of this name, as in a dictionary.
    fn named(&self, name: &str) -> Option<&str> {
        let mut found = self.templates.iter().rev().filter(|(own, _)| own == name);
        found.next().map(|(_, template)| template.as_str())
    }
}

/// What `generation_config.json` says where a request does not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Whether to sample at all; `None` or false: the likeliest token.
    pub do_sample: Option<bool>,
    /// Sharpness of the distribution.
    pub temperature: Option<f64>,
    /// The likeliest tokens that together have this probability.
    pub top_p: Option<f64>,
    /// This many of the likeliest tokens.
    pub top_k: Option<u32>,
    /// Tokens at least this likely, relative to the likeliest.
    pub min_p: Option<f64>,
    /// Divides the logits of tokens that were there before.
    pub repetition_penalty: Option<f64>,
}

impl GenerationDefaults {
    /// Reads a `generation_config.json`.
    ///
    /// # Errors
    /// [`HuggingFaceError`] when it is no JSON, or a value is out of all bounds.
    pub fn of_file(text: &[u8]) -> Result<GenerationDefaults, HuggingFaceError> {
        GenerationDefaults::read(read("generation_config.json", Some(text))?.as_ref())
    }

    pub(crate) fn read(config: Option<&Value>) -> Result<GenerationDefaults, HuggingFaceError> {
        let Some(config) = config else { return Ok(GenerationDefaults::default()) };
        let file = "generation_config.json";
        let number = |name: &str| config[name].as_f64();
        let defaults = GenerationDefaults {
            do_sample: config["do_sample"].as_bool(),
            temperature: number("temperature"),
            top_p: number("top_p"),
            top_k: config["top_k"].as_u64().and_then(|count| u32::try_from(count).ok()),
            min_p: number("min_p"),
            repetition_penalty: number("repetition_penalty"),
        };
        let within = |name: &str, value: Option<f64>, low: f64, high: f64| match value {
            Some(value) if !(low..=high).contains(&value) => {
                let what = format!("{name} is {value}, not from {low} to {high}");
                Err(HuggingFaceError::Damaged { file, what })
            }
            _ => Ok(()),
        };
        within("temperature", defaults.temperature, 0.0, 100.0)?;
        within("top_p", defaults.top_p, 0.0, 1.0)?;
        within("min_p", defaults.min_p, 0.0, 1.0)?;
        within("repetition_penalty", defaults.repetition_penalty, 0.0, 100.0)?;
        Ok(defaults)
    }
}

/// The ids that end an answer: one, or a list of them, below `tokens`.
pub(crate) fn end_ids(
    file: &'static str,
    config: Option<&Value>,
    tokens: usize,
) -> Result<Vec<u32>, HuggingFaceError> {
    let ids: Vec<&Value> = match config.and_then(|config| config.get("eos_token_id")) {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(ids)) => ids.iter().collect(),
        Some(id) => vec![id],
    };
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.filter(|id| (*id as usize) < tokens).ok_or_else(|| {
            let what = format!("its eos_token_id {} is none of {tokens} tokens", value);
            HuggingFaceError::Damaged { file, what: printable(&what) }
        })
    };
    ids.into_iter().map(id).collect()
}
