//! Which tools does a request of the responses API offer, and how are their calls told there?
//!
//! A model knows functions only. A tool that is called with a text becomes a function of one text,
//! one of a namespace a function of both names; [`CallForms`] leads back from the function's name.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Fields;
use super::fields::{Rest, only_labels};
use super::tool_fields::{ToolFields, not_a_function};
use crate::reply::ApiError;

/// Types of tools that OpenAI's servers run, beside those whose names end in a date.
const OPENAIS_OWN: &[&str] = &[
    "code_interpreter",
    "file_search",
    "image_generation",
    "mcp",
    "tool_search",
    "web_search",
    "web_search_preview",
];
/// The one argument of what is called with a text.
const INPUT: &str = "input";

#[derive(Deserialize, JsonSchema)]
struct FlatTool {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
    /// Of a tool that is called with a text: what that looks like.
    format: Option<InputFormat>,
    /// Of a namespace.
    #[schemars(with = "Option<Vec<Value>>")]
    tools: Option<Vec<FlatTool>>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

/// Fields of a tool that change no answer here: who else may call it, that it waits to be searched
/// for, as nobody here would, and what it gives back, which is for programs that call it.
const TOOL_LABELS: &[&str] = &["allowed_callers", "defer_loading", "output_schema"];

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct InputFormat {
    #[serde(rename = "type")]
    kind: String,
    syntax: Option<String>,
    definition: Option<String>,
}

/// How a call is told where it is not one of a function of that name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CallForm {
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    /// It is called with a text.
    pub(crate) is_custom: bool,
}

/// Forms of calls by the name that the model says.
#[derive(Clone, Debug, Default)]
pub(crate) struct CallForms(BTreeMap<String, CallForm>);

impl CallForms {
    pub(crate) fn find(&self, name: &str) -> CallForm {
        self.0.get(name).cloned().unwrap_or_else(|| CallForm {
            namespace: None,
            name: name.to_owned(),
            is_custom: false,
        })
    }
}

/// The name by which the model knows a tool.
pub(crate) fn full_name(namespace: Option<&str>, name: &str) -> String {
    namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}.{name}"))
}

/// The arguments of a call with a text.
pub(crate) fn text_arguments(input: &str) -> Value {
    json!({INPUT: input})
}

/// The text of such a call; of one that broke off what there is of it.
pub(crate) fn input_of(arguments: &str) -> String {
    let object: Value = serde_json::from_str(arguments).unwrap_or_default();
    object[INPUT].as_str().map_or_else(|| arguments.to_owned(), str::to_owned)
}

/// # Errors
/// 400 naming what is wrong.
pub(super) fn read_flat_tools(
    fields: &mut Fields<'_>,
) -> Result<(ToolFields, CallForms), ApiError> {
    let mut offered = ToolFields { is_parallel: true, ..ToolFields::default() };
    let mut forms = CallForms::default();
    let tools = fields.typed::<Vec<FlatTool>>("tools")?.unwrap_or_default();
    for (index, tool) in tools.into_iter().enumerate() {
        let place = format!("tools[{index}]");
        match (tool.kind.as_str(), tool.name.as_deref(), tool.tools) {
            ("namespace", Some(namespace), Some(inner)) => {
                for (index, tool) in inner.into_iter().enumerate() {
                    let place = format!("{place}.tools[{index}]");
                    let tool = FlatTool { tools: None, ..tool };
                    add(&mut offered, &mut forms, &place, Some(namespace), tool)?;
                }
            }
            (kind, ..) if is_openais_own(kind) => offered.left_out.push(tool.kind),
            _ => add(&mut offered, &mut forms, &place, None, FlatTool { tools: None, ..tool })?,
        }
    }
    Ok((offered.finish(fields)?, forms))
}

/// Whether it runs on OpenAI's servers only.
pub(super) fn is_openais_own(kind: &str) -> bool {
    OPENAIS_OWN.contains(&kind) || kind.starts_with("web_search_preview_20")
}

fn add(
    offered: &mut ToolFields,
    forms: &mut CallForms,
    place: &str,
    namespace: Option<&str>,
    tool: FlatTool,
) -> Result<(), ApiError> {
    let FlatTool { kind, name, description, parameters, strict, format, tools: _, rest } = tool;
    let is_custom = kind == "custom";
    let (true, Some(name)) = (is_custom || kind == "function", name) else {
        return Err(not_a_function(place, &kind));
    };
    only_labels(place, &rest, TOOL_LABELS)?;
    let full = full_name(namespace, &name);
    if is_custom {
        let description = describe(place, description, format)?;
        let parameters = json!({"type": "object", "properties": {INPUT: {"type": "string"}},
            "required": [INPUT], "additionalProperties": false});
        offered.add(place, &full, Some(description), Some(parameters))?;
    } else {
        offered.add(place, &full, description, parameters)?;
        offered.is_strict |= strict == Some(true);
    }
    if is_custom || namespace.is_some() {
        let namespace = namespace.map(str::to_owned);
        forms.0.insert(full, CallForm { namespace, name, is_custom });
    }
    Ok(())
}

/// The model is told of a text's grammar, and not held to it: inside of JSON nothing could be.
fn describe(
    place: &str,
    description: Option<String>,
    format: Option<InputFormat>,
) -> Result<String, ApiError> {
    let mut text = description.unwrap_or_default();
    match format.as_ref().map(|format| (format.kind.as_str(), &format.definition)) {
        None | Some(("text", _)) => Ok(text),
        Some(("grammar", Some(definition))) => {
            let syntax = format.as_ref().and_then(|format| format.syntax.as_deref());
            text.push_str(&format!(
                "\n\nThe {INPUT} follows this grammar ({}):\n{definition}",
                syntax.unwrap_or("lark")
            ));
            Ok(text)
        }
        Some(_) => {
            let place = format!("{place}.format");
            let text =
                format!("{place} must be of the type `text`, or `grammar` with a definition");
            Err(ApiError::invalid(Some(&place), text))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(body: &Value) -> Result<(ToolFields, CallForms), ApiError> {
        read_flat_tools(&mut Fields::parse(body.to_string().as_bytes()).unwrap())
    }

    #[test]
    fn all_become_functions() {
        let (offered, forms) = read(&json!({"tools": [
            {"type": "function", "name": "f", "parameters": {"type": "object"}},
            {"type": "web_search", "external_web_access": false},
            {"type": "custom", "name": "patch", "description": "Patches.", "format":
                {"type": "grammar", "syntax": "lark", "definition": "start: \"x\""}},
            {"type": "namespace", "name": "git", "description": "", "tools": [
                {"type": "function", "name": "log", "parameters": {"type": "object"}}]},
        ]}))
        .unwrap();
        let names: Vec<&str> = offered.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(names, ["f", "patch", "git.log"]);
        assert_eq!(offered.left_out, ["web_search"]);
        let description = offered.listed[1]["function"]["description"].as_str().unwrap();
        assert!(description.starts_with("Patches.") && description.ends_with("start: \"x\""));
        let git = CallForm {
            namespace: Some("git".to_owned()),
            name: "log".to_owned(),
            is_custom: false,
        };
        assert_eq!(forms.find("git.log"), git);
        assert!(forms.find("patch").is_custom && !forms.find("f").is_custom);
        assert_eq!(input_of(&text_arguments("a\n\"b\"").to_string()), "a\n\"b\"");
        assert_eq!(input_of("{\"input\": \"a"), "{\"input\": \"a");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (tool, param) in [
            (json!({"type": "local_shell"}), "tools[0].type"),
            (json!({"type": "custom"}), "tools[0].type"),
            (json!({"type": "namespace", "name": "a"}), "tools[0].type"),
            (
                json!({"type": "namespace", "name": "a", "tools": [{"type": "x"}]}),
                "tools[0].tools[0].type",
            ),
            (json!({"type": "custom", "name": "a", "format": {"type": "x"}}), "tools[0].format"),
            (json!({"type": "function", "name": "a", "defer_loading": true, "x": 1}), "tools[0].x"),
        ] {
            let error = read(&json!({"tools": [tool]})).err().unwrap();
            assert_eq!(error.body.param.as_deref(), Some(param), "{tool}");
        }
        let function = json!({"type": "function", "name": "web_search"});
        let own = json!({"tools": [{"type": "web_search"}, function], "tool_choice": function});
        assert!(read(&own).is_ok(), "a function of the same name is another tool");
        for choice in [json!({"type": "web_search"}), json!("required")] {
            let tools = json!([{"type": "web_search"}]);
            let error = read(&json!({"tools": tools, "tool_choice": choice})).err().unwrap();
            assert_eq!(error.body.param.as_deref(), Some("tool_choice"));
        }
    }
}
