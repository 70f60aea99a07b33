//! What does an API call the field that the engine names?
//!
//! The engine knows one name for each field, that of OpenAI's chats where it has one; what an
//! endpoint reads under another name stands here. Anthropic's and Ollama's errors name no field.

use messages::Refusal;

/// Routes with names of their own: the engine's, and theirs.
const NAMES: &[(&str, &[(&str, &str)])] = &[
    ("/v1/chat/completions", &[("thinking", "thinking_budget")]),
    (
        "/v1/responses",
        &[
            ("max_tokens", "max_output_tokens"),
            ("messages", "input"),
            ("response_format", "text.format"),
            ("thinking", "reasoning"),
        ],
    ),
];

/// A refusal of the engine's, for who asked this route of the table.
pub(crate) fn in_words_of(route: &str, mut refusal: Refusal) -> Refusal {
    let Some(field) = &mut refusal.field else { return refusal };
    let theirs = NAMES.iter().find(|(path, _)| *path == route).map_or(&[][..], |(_, names)| names);
    if let Some((_, name)) = theirs.iter().find(|(ours, _)| ours == field) {
        *field = (*name).to_owned();
    }
    refusal
}
