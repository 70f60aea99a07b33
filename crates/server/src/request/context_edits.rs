//! What of a conversation does Anthropic's `context_management` leave out before the model reads
//! it?
//!
//! Thoughts of earlier turns can be left out. Results of tools are left out there once a prompt has
//! grown beyond a number of tokens, to make room: here they stay, and what finds no room is
//! refused.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::Fields;
use crate::reply::ApiError;

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ContextManagement {
    edits: Option<Vec<Edit>>,
}

#[derive(Deserialize, JsonSchema)]
struct Edit {
    #[serde(rename = "type")]
    kind: String,
    /// `all`, or so many turns; of other edits something else.
    keep: Option<Value>,
}

/// How many of the latest turns with thoughts keep them; `None`: all.
///
/// # Errors
/// 400 for an edit that is not known or wrong.
pub(super) fn read_context_edits(fields: &mut Fields<'_>) -> Result<Option<usize>, ApiError> {
    let management = fields.typed::<ContextManagement>("context_management")?;
    let edits = management.and_then(|management| management.edits).unwrap_or_default();
    let mut turns = None;
    for (index, Edit { kind, keep }) in edits.into_iter().enumerate() {
        let place = format!("context_management.edits[{index}]");
        match kind.as_str() {
            "clear_tool_uses_20250919" => {}
            "clear_thinking_20251015" => turns = turns_kept(&place, keep.as_ref())?,
            _ => {
                let (kind, place) =
                    (kind.chars().take(40).collect::<String>(), format!("{place}.type"));
                let text = format!("{place} is `{kind}`, which is not supported: leave it out");
                return Err(ApiError::unsupported(&place, &text));
            }
        }
    }
    Ok(turns)
}

fn turns_kept(place: &str, keep: Option<&Value>) -> Result<Option<usize>, ApiError> {
    let kind = |keep: &Value| keep["type"].as_str().unwrap_or_default().to_owned();
    match keep {
        // Anthropic's default.
        None | Some(Value::Null) => return Ok(Some(1)),
        Some(Value::String(word)) if word == "all" => return Ok(None),
        Some(keep) if kind(keep) == "all" => return Ok(None),
        Some(keep) if kind(keep) == "thinking_turns" => {
            if let Some(turns @ 1..) = keep["value"].as_u64() {
                return Ok(Some(usize::try_from(turns).unwrap_or(usize::MAX)));
            }
        }
        Some(_) => {}
    }
    let place = format!("{place}.keep");
    let text = format!("{place} must be `all`, or thinking_turns with a value of 1 or more");
    Err(ApiError::invalid(Some(&place), text))
}

/// Takes the thoughts out of all turns but the latest that have some. Calls and their results are
/// one turn with the answer that they lead to.
pub(super) fn forget_thoughts(messages: &mut [chat::Message], turns: usize) {
    let (mut behind, mut is_seen) = (0, false);
    for message in messages.iter_mut().rev() {
        if message.role == "user" {
            behind += usize::from(is_seen);
            is_seen = false;
        }
        is_seen |= message.reasoning_content.is_some();
        if behind >= turns {
            message.reasoning_content = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(management: &str) -> Result<Option<usize>, ApiError> {
        let body = format!("{{\"context_management\": {management}}}");
        read_context_edits(&mut Fields::parse(body.as_bytes()).unwrap())
    }

    #[test]
    fn edits_are_read() {
        let edit = |more: &str| {
            read(&format!("{{\"edits\": [{{\"type\": \"clear_thinking_20251015\"{more}}}]}}"))
        };
        assert_eq!(read("null").unwrap(), None);
        assert_eq!(read("{}").unwrap(), None);
        assert_eq!(edit("").unwrap(), Some(1));
        assert_eq!(edit(", \"keep\": \"all\"").unwrap(), None);
        let three = ", \"keep\": {\"type\": \"thinking_turns\", \"value\": 3}";
        assert_eq!(edit(three).unwrap(), Some(3));
        let uses = "{\"edits\": [{\"type\": \"clear_tool_uses_20250919\", \"keep\": \
                    {\"type\": \"tool_uses\", \"value\": 3}, \"clear_tool_inputs\": true}]}";
        assert_eq!(read(uses).unwrap(), None);
        for (wrong, param) in [
            (edit(", \"keep\": 0"), "context_management.edits[0].keep"),
            (edit(&three.replace('3', "0")), "context_management.edits[0].keep"),
            (read("{\"edits\": [{\"type\": \"compact\"}]}"), "context_management.edits[0].type"),
            (read("{\"enabled\": true}"), "context_management.enabled"),
        ] {
            assert_eq!(wrong.unwrap_err().body.param.as_deref(), Some(param));
        }
    }

    #[test]
    fn thoughts_of_earlier_turns_are_forgotten() {
        let said = |role: &str, thought: Option<&str>| chat::Message {
            reasoning_content: thought.map(str::to_owned),
            ..chat::Message::new(role, "x")
        };
        let messages = [
            said("user", None),
            said("assistant", Some("a")),
            said("user", None),
            said("assistant", Some("b")),
            said("tool", None),
            said("assistant", Some("c")),
            said("user", None),
            said("assistant", None),
            said("user", None),
        ];
        for (turns, expected) in [(1, vec!["b", "c"]), (2, vec!["a", "b", "c"])] {
            let mut messages = messages.clone();
            forget_thoughts(&mut messages, turns);
            let left = messages.iter().filter_map(|message| message.reasoning_content.as_deref());
            assert_eq!(left.collect::<Vec<_>>(), expected);
        }
    }
}
