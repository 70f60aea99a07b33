//! What do OpenAI's and Anthropic's fields say of tools and thoughts?

use messages::Constraint;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Fields;
use super::dialog::Dialog;
use super::fields::{Rest, only_labels};
use super::tool_fields::{ToolFields, read_functions, read_tools};
use crate::reply::ApiError;

/// OpenAI's fields, and those that vLLM and others added to them.
///
/// # Errors
/// 400 naming what is wrong.
pub(crate) fn read_dialog(fields: &mut Fields<'_>) -> Result<Dialog, ApiError> {
    let offered = read_tools(fields)?;
    let tools = read_functions(fields, offered)?;
    let mut dialog = Dialog { tools, ..Dialog::default() };
    dialog.extra = fields.typed::<Map<String, Value>>("chat_template_kwargs")?.unwrap_or_default();
    if let Some(is_on) = fields.boolean("enable_thinking")? {
        dialog.think(is_on);
    }
    if let Some(effort) = fields.string("reasoning_effort")? {
        dialog.effort(known_effort("reasoning_effort", &effort)?);
    }
    let most = fields.integer("thinking_budget", 0..=i64::from(u32::MAX))?;
    let newer = fields.integer("thinking_token_budget", 0..=i64::from(u32::MAX))?;
    dialog.thinking_tokens_max = newer.or(most).map(|count| count as u32);
    // Whether the thoughts are shown: they always are.
    fields.neutral("include_reasoning", &["true"])?;
    Ok(dialog)
}

/// vLLM's way to have the answer go on with the last message.
///
/// # Errors
/// 400 where there is nothing to go on with.
pub(crate) fn read_continuation(
    fields: &mut Fields<'_>,
    messages: &[chat::Message],
) -> Result<bool, ApiError> {
    const NAME: &str = "continue_final_message";
    let is_on = fields.boolean(NAME)?.unwrap_or(false);
    let opens = fields.boolean("add_generation_prompt")?;
    if is_on && opens == Some(true) {
        // vLLM's own default refuses itself here; what is left out is what is needed.
        let text = "add_generation_prompt begins another message: leave it out, or set it to false";
        return Err(ApiError::invalid(Some("add_generation_prompt"), text));
    }
    if !is_on && opens == Some(false) {
        let text = "`add_generation_prompt` is supported only as true: leave it out";
        return Err(ApiError::unsupported("add_generation_prompt", text));
    }
    if is_on && chat::Conversation::open_text(messages).is_none() {
        let text = format!("{NAME} needs a last message that is a text of the assistant's");
        return Err(ApiError::invalid(Some(NAME), text));
    }
    Ok(is_on)
}

const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];

pub(super) fn known_effort<'a>(field: &str, effort: &'a str) -> Result<&'a str, ApiError> {
    if EFFORTS.contains(&effort) {
        return Ok(effort);
    }
    let text = format!("{field} must be one of {}", EFFORTS.join(", "));
    Err(ApiError::invalid(Some(field), text))
}

#[derive(Deserialize, JsonSchema)]
struct AnthropicTool {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
    /// The model is to be told of it only once a result refers to it.
    defer_loading: Option<bool>,
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Value>")]
    rest: Rest,
}

/// Fields of a tool that change no answer here: what is cached, how calls are sent, who else may
/// call, and examples, for which templates have no place.
const TOOL_LABELS: &[&str] =
    &["allowed_callers", "cache_control", "eager_input_streaming", "input_examples"];

/// How the types of tools begin that run on Anthropic's servers; their ends are dates.
const ANTHROPICS_OWN: &[&str] = &[
    "advisor_",
    "code_execution_",
    "mcp_toolset",
    "tool_search_tool_",
    "web_fetch_",
    "web_search_",
];

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AnthropicChoice {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AnthropicThinking {
    #[serde(rename = "type")]
    kind: String,
    budget_tokens: Option<u32>,
    /// How thoughts are shown: always as they are.
    #[serde(rename = "display")]
    _display: Option<String>,
}

/// Anthropic's `tools`, `tool_choice` and `thinking`.
///
/// # Errors
/// 400 naming what is wrong.
pub(crate) fn read_anthropic_dialog(fields: &mut Fields<'_>) -> Result<Dialog, ApiError> {
    let mut tools = ToolFields { is_parallel: true, ..ToolFields::default() };
    let mut searches = false;
    let offered = fields.typed::<Vec<AnthropicTool>>("tools")?.unwrap_or_default();
    for (index, tool) in offered.into_iter().enumerate() {
        let place = format!("tools[{index}]");
        searches |= read_anthropic_tool(&mut tools, &place, tool)?;
    }
    if searches {
        // Nobody here would find them.
        tools.deferred.clear();
    }
    let choice = fields.typed::<AnthropicChoice>("tool_choice")?;
    match choice {
        None => tools.choose("auto")?,
        Some(AnthropicChoice { kind, name, disable_parallel_tool_use }) => {
            tools.is_parallel = disable_parallel_tool_use != Some(true);
            match (kind.as_str(), name) {
                ("auto", _) => tools.choose("auto")?,
                ("none", _) => tools.choose("none")?,
                ("any", _) => tools.choose("required")?,
                ("tool", Some(name)) => tools.choose_named(&name)?,
                _ => {
                    let text = "tool_choice.type must be auto, any, none, or tool with a name";
                    return Err(ApiError::invalid(Some("tool_choice"), text));
                }
            }
        }
    }
    let mut dialog = Dialog { tools, ..Dialog::default() };
    read_anthropic_thinking(fields, &mut dialog)?;
    Ok(dialog)
}

/// Whether it is Anthropic's own search for tools.
fn read_anthropic_tool(
    tools: &mut ToolFields,
    place: &str,
    tool: AnthropicTool,
) -> Result<bool, ApiError> {
    let AnthropicTool { kind, name, description, input_schema, strict, defer_loading, rest } = tool;
    if let Some(kind) = kind.filter(|kind| kind != "custom") {
        if ANTHROPICS_OWN.iter().any(|own| kind.starts_with(own)) {
            tools.left_out.extend(name);
            return Ok(kind.starts_with("tool_search_tool_"));
        }
        let kind: String = kind.chars().take(40).collect();
        let place = format!("{place}.type");
        let text = format!(
            "{place} is `{kind}`, whose schema is not known here: send it as a tool with an \
             input_schema"
        );
        return Err(ApiError::unsupported(&place, &text));
    }
    let Some(name) = name else {
        let place = format!("{place}.name");
        return Err(ApiError::invalid(Some(&place), format!("{place} is missing")));
    };
    only_labels(place, &rest, TOOL_LABELS)?;
    tools.add(place, &name, description, input_schema)?;
    tools.is_strict |= strict == Some(true);
    if defer_loading == Some(true) {
        tools.deferred.push(name);
    }
    Ok(false)
}

#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<OutputFormat>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OutputFormat {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
}

/// Anthropic's `output_config`: how hard to think, and a schema that the answer follows.
///
/// # Errors
/// 400 naming what is wrong.
pub(crate) fn read_output_config(
    fields: &mut Fields<'_>,
    dialog: &mut Dialog,
) -> Result<Option<Constraint>, ApiError> {
    let config = fields.typed::<OutputConfig>("output_config")?.unwrap_or_default();
    if let Some(effort) = &config.effort {
        dialog.effort(known_effort("output_config.effort", effort)?);
    }
    match config.format {
        None => Ok(None),
        Some(OutputFormat { kind, schema: Some(schema) }) if kind == "json_schema" => {
            Ok(Some(Constraint::JsonSchema(schema.to_string().into())))
        }
        Some(_) => {
            let text = "output_config.format must be a json_schema with a schema";
            Err(ApiError::invalid(Some("output_config"), text))
        }
    }
}

fn read_anthropic_thinking(fields: &mut Fields<'_>, dialog: &mut Dialog) -> Result<(), ApiError> {
    let Some(thinking) = fields.typed::<AnthropicThinking>("thinking")? else { return Ok(()) };
    let refuse = |text: &str| Err(ApiError::invalid(Some("thinking"), text));
    match (thinking.kind.as_str(), thinking.budget_tokens) {
        ("disabled", None) => dialog.think(false),
        ("adaptive", None) => dialog.think(true),
        ("enabled", Some(most @ 1..)) => {
            dialog.think(true);
            dialog.thinking_tokens_max = Some(most);
        }
        ("enabled", _) => return refuse("thinking.budget_tokens is missing, or 0"),
        _ => return refuse("thinking.type must be `enabled`, `adaptive` or `disabled`"),
    }
    Ok(())
}
