//! What must the answer be? OpenAI's `response_format`, and the fields of vLLM's clients:
//! `structured_outputs`, and the older `guided_json`, `guided_regex`, `guided_choice` and
//! `guided_grammar`.

use messages::Constraint;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Fields;
use crate::reply::ApiError;

/// A tree of values takes many times its text; the engine's bound on the text is stricter.
const FIELD_BYTES_MAX: usize = 256 << 10;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ResponseFormat {
    r#type: String,
    json_schema: Option<NamedSchema>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NamedSchema {
    /// For the model's eyes in OpenAI's service; here the messages say what is wanted.
    #[serde(rename = "name")]
    _name: Option<String>,
    #[serde(rename = "description")]
    _description: Option<String>,
    schema: Option<Value>,
    /// The schema is followed, whether this says so or not.
    #[serde(rename = "strict")]
    _strict: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct StructuredOutputs {
    json: Option<Value>,
    json_object: Option<bool>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
}

/// The one constraint that a request names; `None`: any answer will do.
pub(super) fn read_constraint(fields: &mut Fields<'_>) -> Result<Option<Constraint>, ApiError> {
    let mut found = Found(None);
    found.add("response_format", read_response_format(fields)?)?;
    if let Some(asked) = read::<StructuredOutputs>(fields, "structured_outputs")? {
        let StructuredOutputs { json, json_object, regex, choice, grammar } = asked;
        let name = "structured_outputs";
        let given = [json.is_some(), json_object == Some(true), regex.is_some(), choice.is_some()];
        if !given.contains(&true) && grammar.is_none() {
            let text = "structured_outputs names none of json, json_object, regex, choice, grammar";
            return Err(ApiError::invalid(Some(name), text));
        }
        found.add(name, json.as_ref().map(schema))?;
        found.add(name, (json_object == Some(true)).then_some(Constraint::JsonObject))?;
        found.add(name, regex.map(|text| Constraint::Regex(text.into())))?;
        found.add(name, choice.map(|texts| Constraint::Choice(texts.into())))?;
        found.add(name, grammar.map(|text| Constraint::Grammar(text.into())))?;
    }
    let json = read::<Value>(fields, "guided_json")?;
    found.add("guided_json", json.as_ref().map(schema))?;
    let regex = read::<String>(fields, "guided_regex")?;
    found.add("guided_regex", regex.map(|text| Constraint::Regex(text.into())))?;
    let choice = read::<Vec<String>>(fields, "guided_choice")?;
    found.add("guided_choice", choice.map(|texts| Constraint::Choice(texts.into())))?;
    let grammar = read::<String>(fields, "guided_grammar")?;
    found.add("guided_grammar", grammar.map(|text| Constraint::Grammar(text.into())))?;
    Ok(found.0)
}

fn read_response_format(fields: &mut Fields<'_>) -> Result<Option<Constraint>, ApiError> {
    let name = "response_format";
    let Some(format) = read::<ResponseFormat>(fields, name)? else { return Ok(None) };
    let refuse = |text: &str| Err(ApiError::invalid(Some(name), text));
    match (format.r#type.as_str(), format.json_schema) {
        ("json_schema", Some(NamedSchema { schema: Some(value), .. })) => Ok(Some(schema(&value))),
        ("json_schema", _) => refuse("response_format.json_schema.schema is missing"),
        ("text" | "json_object", Some(_)) => {
            refuse("response_format.json_schema is for the type `json_schema`")
        }
        ("text", None) => Ok(None),
        ("json_object", None) => Ok(Some(Constraint::JsonObject)),
        _ => refuse("response_format.type must be `text`, `json_object` or `json_schema`"),
    }
}

fn read<T: DeserializeOwned + JsonSchema>(
    fields: &mut Fields<'_>,
    name: &'static str,
) -> Result<Option<T>, ApiError> {
    if let Some(bytes) = fields.raw_bytes(name).filter(|&bytes| bytes > FIELD_BYTES_MAX) {
        let text = format!("{name} has {bytes} bytes, the most is {FIELD_BYTES_MAX}");
        return Err(ApiError::invalid(Some(name), text));
    }
    fields.typed(name)
}

/// Ollama's `format`: `json`, or a schema.
pub(super) fn read_ollama_format(fields: &mut Fields<'_>) -> Result<Option<Constraint>, ApiError> {
    match fields.typed::<Value>("format")? {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text == "json" => Ok(Some(Constraint::JsonObject)),
        Some(value @ Value::Object(_)) => Ok(Some(schema(&value))),
        Some(_) => {
            let text = "format must be `json` or a JSON schema";
            Err(ApiError::invalid(Some("format"), text))
        }
    }
}

/// A schema, or the text of one. Blanks in it make no difference, so that they are not compiled
/// twice.
fn schema(value: &Value) -> Constraint {
    let text = match value {
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(inner) => inner.to_string(),
            // The compiler says what is wrong with it.
            Err(_) => text.clone(),
        },
        _ => value.to_string(),
    };
    Constraint::JsonSchema(text.into())
}

/// What has been named so far.
struct Found(Option<Constraint>);

impl Found {
    fn add(&mut self, name: &str, constraint: Option<Constraint>) -> Result<(), ApiError> {
        if constraint.is_some() && self.0.is_some() {
            let text = format!("{name}: an answer can follow one constraint, two are given");
            return Err(ApiError::invalid(Some(name), text));
        }
        self.0 = self.0.take().or(constraint);
        Ok(())
    }
}
