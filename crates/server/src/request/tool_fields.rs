//! Which tools does a request offer, and must the answer call one?

use std::collections::BTreeMap;

use answer_format::{Tool, ToolChoice};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Fields;
use super::fields::{Rest, only_labels};
use crate::reply::ApiError;

/// OpenAI's bound.
const TOOLS_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 128;

/// What may be called, whatever API told of it.
#[derive(Debug, Default)]
pub(crate) struct ToolFields {
    pub(crate) tools: Vec<Tool>,
    /// In OpenAI's form, which templates print.
    pub(crate) listed: Vec<Value>,
    /// `None`: nothing may be called.
    pub(crate) choice: Option<ToolChoice>,
    /// Whether an answer may call several times.
    pub(crate) is_parallel: bool,
    /// Whether the arguments must follow their schemas wherever a call is made.
    pub(crate) is_strict: bool,
    /// Told by the older `functions`: the answer calls one, in `function_call`.
    pub(crate) is_legacy: bool,
    /// Tools that the vendor's own servers would run: nobody here does, so the model is not told.
    pub(crate) left_out: Vec<String>,
    /// Tools that the model is told of once a result of the conversation names them.
    pub(crate) deferred: Vec<String>,
}

#[derive(Deserialize, JsonSchema)]
struct WireTool {
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<Function>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Function {
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "it must be a word, or an object with a type")]
enum WireChoice {
    Word(String),
    Object(ChoiceObject),
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ChoiceObject {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Named>,
    /// The responses API has the name beside the type.
    name: Option<String>,
    allowed_tools: Option<Allowed>,
    mode: Option<String>,
    tools: Option<Vec<AllowedTool>>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Named {
    name: String,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Allowed {
    mode: String,
    tools: Vec<AllowedTool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AllowedTool {
    #[serde(rename = "type")]
    _kind: Option<String>,
    function: Option<Named>,
    name: Option<String>,
}

/// OpenAI's older `function_call`.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "it must be `auto`, `none`, or an object with a name")]
enum LegacyChoice {
    Word(String),
    // Not a struct, which could be an array, too.
    Object(BTreeMap<String, String>),
}

/// OpenAI's older `functions` and `function_call`, where `tools` are not used.
///
/// # Errors
/// 400 naming what is wrong.
pub(super) fn read_functions(
    fields: &mut Fields<'_>,
    mut offered: ToolFields,
) -> Result<ToolFields, ApiError> {
    let functions = fields.typed::<Vec<Function>>("functions")?.unwrap_or_default();
    let choice = fields.typed::<LegacyChoice>("function_call")?;
    let refuse = |name, text: &str| Err(ApiError::invalid(Some(name), text));
    if functions.is_empty() {
        return match choice {
            None => Ok(offered),
            Some(LegacyChoice::Word(word)) if word == "none" || word == "auto" => Ok(offered),
            Some(_) => {
                refuse("function_call", "function_call is for functions, and there are none")
            }
        };
    }
    if !offered.tools.is_empty() {
        return refuse("functions", "functions are an older form of tools: send one of them");
    }
    for (index, function) in functions.into_iter().enumerate() {
        let Function { name, description, parameters, strict: _ } = function;
        offered.add(&format!("functions[{index}]"), &name, description, parameters)?;
    }
    (offered.is_legacy, offered.is_parallel) = (true, false);
    match choice {
        None => offered.choose("auto")?,
        Some(LegacyChoice::Word(word)) if word == "none" || word == "auto" => {
            offered.choose(&word)?;
        }
        Some(LegacyChoice::Object(named)) if named.contains_key("name") => {
            offered.choose_named(&named["name"])?;
        }
        Some(LegacyChoice::Object(_) | LegacyChoice::Word(_)) => {
            return refuse("function_call", "function_call must be `auto`, `none` or a function");
        }
    }
    Ok(offered)
}

/// OpenAI's `tools`, `tool_choice` and `parallel_tool_calls`.
///
/// # Errors
/// 400 naming what is wrong.
pub(crate) fn read_tools(fields: &mut Fields<'_>) -> Result<ToolFields, ApiError> {
    let mut offered = ToolFields { is_parallel: true, ..ToolFields::default() };
    for (index, tool) in
        fields.typed::<Vec<WireTool>>("tools")?.unwrap_or_default().into_iter().enumerate()
    {
        let place = format!("tools[{index}]");
        let kind = tool.kind.as_deref().unwrap_or("function");
        let (true, Some(function)) = (kind == "function", tool.function) else {
            return Err(not_a_function(&place, kind));
        };
        // What is cached is found by itself.
        only_labels(&place, &tool.rest, &["cache_control"])?;
        let Function { name, description, parameters, strict } = function;
        offered.add(&place, &name, description, parameters)?;
        offered.is_strict |= strict == Some(true);
    }
    offered.finish(fields)
}

pub(super) fn not_a_function(place: &str, kind: &str) -> ApiError {
    let place = format!("{place}.type");
    let kind: String = kind.chars().take(40).collect();
    let text = format!("{place} is `{kind}`; only functions that you call yourself are supported");
    ApiError::unsupported(&place, &text)
}

impl ToolFields {
    /// Adds a function of this name.
    pub(crate) fn add(
        &mut self,
        place: &str,
        name: &str,
        description: Option<String>,
        parameters: Option<Value>,
    ) -> Result<(), ApiError> {
        let refuse = |text: String| Err(ApiError::invalid(Some("tools"), text));
        if self.tools.len() == TOOLS_MAX {
            return refuse(format!("there are more than {TOOLS_MAX} tools"));
        }
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:/".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_letter) {
            let shown: String = name.chars().take(40).collect();
            return refuse(format!(
                "{place} is named `{shown}`: a name has 1 to {NAME_BYTES_MAX} letters, digits and \
                 `_-.:/`"
            ));
        }
        if self.tools.iter().any(|tool| tool.name == name) {
            return refuse(format!("{place}: there is a tool `{name}` before it"));
        }
        let parameters = parameters.filter(|schema| !schema.is_null());
        if parameters.as_ref().is_some_and(|schema| !schema.is_object()) {
            return refuse(format!("{place}: its schema of arguments is not an object"));
        }
        if let Some(problem) = parameters.as_ref().and_then(wrong_arguments) {
            return refuse(format!("{place}: {problem}"));
        }
        let mut function = Map::new();
        function.insert("name".to_owned(), Value::from(name));
        if let Some(text) = description {
            function.insert("description".to_owned(), Value::from(text));
        }
        let parameters = parameters.unwrap_or_else(|| json!({"type": "object", "properties": {}}));
        function.insert("parameters".to_owned(), parameters.clone());
        self.listed.push(json!({"type": "function", "function": function}));
        self.tools.push(Tool { name: name.to_owned(), parameters: of_objects(parameters) });
        Ok(())
    }

    /// Reads what is asked of the tools.
    pub(super) fn finish(mut self, fields: &mut Fields<'_>) -> Result<Self, ApiError> {
        let choice = fields.typed::<WireChoice>("tool_choice")?;
        self.is_parallel = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
        let name = |object: &ChoiceObject| {
            object.function.as_ref().map(|named| named.name.clone()).or_else(|| object.name.clone())
        };
        match choice {
            None => self.choose("auto")?,
            Some(WireChoice::Word(word)) => self.choose(&word)?,
            Some(WireChoice::Object(object)) => match (object.kind.as_str(), name(&object)) {
                ("custom" | "function", Some(name)) => {
                    self.choose_named(&name)?;
                    // OpenAI's promise: exactly one call.
                    self.is_parallel = false;
                }
                ("allowed_tools", _) => {
                    let ChoiceObject { allowed_tools, mode, tools, .. } = object;
                    let (mode, tools) = match allowed_tools {
                        Some(Allowed { mode, tools }) => (mode, tools),
                        None => (mode.unwrap_or_default(), tools.unwrap_or_default()),
                    };
                    self.keep(&tools)?;
                    self.choose(&mode)?;
                }
                (kind, None) if self.left_out.iter().any(|left_out| left_out == kind) => {
                    return Err(not_run_here(kind));
                }
                _ => return Err(wrong_choice()),
            },
        }
        Ok(self)
    }

    /// `auto`, `none` or `required`.
    pub(crate) fn choose(&mut self, word: &str) -> Result<(), ApiError> {
        self.choice = match word {
            "auto" => Some(ToolChoice::Auto),
            "none" => None,
            "required" => Some(ToolChoice::Required),
            _ => return Err(wrong_choice()),
        };
        if self.choice == Some(ToolChoice::Required) && self.tools.is_empty() {
            let text = "tool_choice asks for a call, and there are no tools";
            return Err(ApiError::invalid(Some("tool_choice"), text));
        }
        Ok(())
    }

    pub(crate) fn choose_named(&mut self, name: &str) -> Result<(), ApiError> {
        if !self.tools.iter().any(|tool| tool.name == name) {
            if self.left_out.iter().any(|left_out| left_out == name) {
                return Err(not_run_here(name));
            }
            let shown: String = name.chars().take(40).collect();
            let text = format!("tool_choice names `{shown}`, which is not among the tools");
            return Err(ApiError::invalid(Some("tool_choice"), text));
        }
        self.choice = Some(ToolChoice::Named(name.to_owned()));
        Ok(())
    }

    /// Leaves only these.
    fn keep(&mut self, allowed: &[AllowedTool]) -> Result<(), ApiError> {
        let names: Vec<&str> = allowed
            .iter()
            .filter_map(|tool| {
                let inner = || tool.function.as_ref().map(|function| function.name.as_str());
                tool.name.as_deref().or_else(inner)
            })
            .collect();
        for name in &names {
            self.choose_named(name)?;
        }
        self.retain(|name| names.contains(&name));
        Ok(())
    }

    fn retain(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.tools.retain(|tool| is_kept(&tool.name));
        self.listed.retain(|listed| {
            let name = listed.pointer("/function/name").and_then(Value::as_str);
            name.is_some_and(&is_kept)
        });
    }

    /// Leaves out the deferred tools that no result has named, nor the choice.
    pub(crate) fn load_deferred(&mut self, named: &[String]) {
        let deferred = std::mem::take(&mut self.deferred);
        let chosen = match &self.choice {
            Some(ToolChoice::Named(name)) => Some(name.clone()),
            _ => None,
        };
        let is_named = |name: &str| named.iter().chain(&chosen).any(|named| named == name);
        self.retain(|name| is_named(name) || !deferred.iter().any(|deferred| deferred == name));
    }

    /// Whether calls are to be looked for.
    pub(crate) fn may_call(&self) -> bool {
        self.choice.is_some() && !self.tools.is_empty()
    }
}

/// What keeps a schema from being one of arguments, which have names.
fn wrong_arguments(schema: &Value) -> Option<String> {
    let kind = schema.get("type")?;
    let is_object = match kind {
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "object"),
        kind => kind == "object",
    };
    let shown: String = kind.to_string().chars().take(40).collect();
    (!is_object).then(|| format!("its schema of arguments must be of type \"object\", not {shown}"))
}

/// The same schema, for objects only: what a grammar allows must be a call's arguments.
fn of_objects(mut schema: Value) -> Value {
    if schema.get("type").is_none_or(|kind| kind != "object")
        && let Some(keywords) = schema.as_object_mut()
    {
        keywords.insert("type".to_owned(), Value::from("object"));
    }
    schema
}

fn not_run_here(name: &str) -> ApiError {
    let name: String = name.chars().take(40).collect();
    let text = format!("tool_choice asks for `{name}`, which this server does not run");
    ApiError::unsupported("tool_choice", &text)
}

fn wrong_choice() -> ApiError {
    let text = "tool_choice must be `auto`, `none`, `required`, a function of the tools, or \
                allowed_tools";
    ApiError::invalid(Some("tool_choice"), text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const F: &str = r#"{"type": "function", "function": {"name": "f"}}"#;
    const G: &str = r#"{"type": "function", "function": {"name": "g", "strict": true}}"#;

    fn read(more: &str) -> Result<ToolFields, ApiError> {
        let body = format!("{{\"tools\": [{F}, {G}]{more}}}");
        read_tools(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    fn with_schema(schema: &str) -> String {
        let function = format!("{{\"name\": \"f\", \"parameters\": {schema}}}");
        format!("{{\"tools\": [{{\"type\": \"function\", \"function\": {function}}}]}}")
    }

    #[test]
    fn arguments_are_objects() {
        for (given, held) in [
            ("{}", r#"{"type": "object"}"#),
            (r#"{"type": ["null", "object"]}"#, r#"{"type": "object"}"#),
            (r#"{"enum": ["a"]}"#, r#"{"enum": ["a"], "type": "object"}"#),
        ] {
            let body = with_schema(given);
            let tools = read_tools(&mut Fields::parse(body.as_bytes()).unwrap()).unwrap();
            let value = |text: &str| serde_json::from_str::<Value>(text).unwrap();
            assert_eq!(tools.tools[0].parameters, value(held));
            let told = &tools.listed[0]["function"]["parameters"];
            assert_eq!(*told, value(given), "the template sees what was sent");
        }
    }

    #[test]
    fn tools_and_choices_are_read() {
        let plain = read("").unwrap();
        assert_eq!((plain.tools.len(), plain.choice), (2, Some(ToolChoice::Auto)));
        assert!(plain.is_parallel && plain.is_strict);
        assert_eq!(plain.listed[0]["function"]["name"], "f");
        let named = read(r#", "tool_choice": {"type": "function", "function": {"name": "g"}}"#);
        assert_eq!(named.unwrap().choice, Some(ToolChoice::Named("g".to_owned())));
        assert!(!read(r#", "tool_choice": "none""#).unwrap().may_call());
        let some = read(
            r#", "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required",
                "tools": [{"type": "function", "function": {"name": "g"}}]}}"#,
        );
        let some = some.unwrap();
        assert_eq!((some.tools[0].name.as_str(), some.listed.len()), ("g", 1));
        assert_eq!(some.choice, Some(ToolChoice::Required));
    }

    #[test]
    fn a_wrong_choice_is_told_of_in_words_of_the_api() {
        let body = |choice: &str| {
            format!("{{\"functions\": [{{\"name\": \"f\"}}], \"function_call\": {choice}}}")
        };
        let legacy = |choice: &str| {
            let body = body(choice);
            read_functions(&mut Fields::parse(body.as_bytes()).unwrap(), ToolFields::default())
        };
        let named = legacy(r#"{"name": "f"}"#).unwrap();
        assert_eq!(named.choice, Some(ToolChoice::Named("f".to_owned())));
        for wrong in [r#"["f"]"#, r#"{"nome": "f"}"#, "5"] {
            let error = legacy(wrong).unwrap_err().body;
            assert_eq!(error.param.as_deref(), Some("function_call"));
            assert!(error.message.contains("must be `auto`"), "{}", error.message);
        }
        let error = read(r#", "tool_choice": 5"#).unwrap_err().body;
        assert!(error.message.contains("a word, or an object"), "{}", error.message);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, param) in [
            (r#"{"tools": [{"type": "web_search"}]}"#.to_owned(), "tools[0].type"),
            (r#"{"tools": [{"type": "function"}]}"#.to_owned(), "tools[0].type"),
            (format!("{{\"tools\": [{F}, {F}]}}"), "tools"),
            (format!("{{\"tools\": [{}]}}", F.replace("\"f\"", "\"a b\"")), "tools"),
            (format!("{{\"tools\": [{F}], \"tool_choice\": \"always\"}}"), "tool_choice"),
            (with_schema(r#"{"type": "string"}"#), "tools"),
            (with_schema(r#"{"type": ["array", "null"]}"#), "tools"),
            (with_schema(r#"{"type": 5}"#), "tools"),
            (r#"{"tool_choice": "required"}"#.to_owned(), "tool_choice"),
            (
                r#"{"tools": [], "tool_choice": {"type": "function", "function": {"name": "x"}}}"#
                    .to_owned(),
                "tool_choice",
            ),
        ] {
            let error = read_tools(&mut Fields::parse(body.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.body.param.as_deref(), Some(param), "{body}");
        }
    }
}
