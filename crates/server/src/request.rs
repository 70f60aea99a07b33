//! What does a body ask for? From bytes to [`engine::GenerateRequest`]s; everything that is wrong
//! with a request and needs no tokenizer is found here.

mod anthropic_messages;
mod body;
mod constraint_fields;
mod context_edits;
mod conversation;
mod dialog;
mod dialog_fields;
mod fields;
mod generation_fields;
mod generic_tools;
mod known_field;
mod ollama_fields;
mod prompts;
mod query;
mod response_fields;
mod response_tools;
mod sharing_headers;
mod text_or_list;
mod tool_fields;

pub(crate) use anthropic_messages::{AnthropicMessages, read_anthropic_messages};
pub(crate) use body::{next_data, read_body};
pub(crate) use conversation::read_messages;
pub(crate) use dialog_fields::{
    read_anthropic_dialog, read_continuation, read_dialog, read_output_config,
};
pub(crate) use fields::{Description, Fields};
pub(crate) use generation_fields::{
    Bounds, CHOICES_MAX, GenerationFields, Logprobs, RequestSize, read_stop, read_urgency,
};
pub(crate) use known_field::KnownField;
pub(crate) use ollama_fields::{
    OllamaPrompt, asks_to_leave, read_ollama_dialog, read_ollama_fields, read_ollama_messages,
    read_ollama_model, read_ollama_options, read_ollama_prompt,
};
pub(crate) use prompts::{read_inputs, read_prompts};
pub(crate) use query::Query;
pub(crate) use response_fields::read_response_fields;
pub(crate) use response_tools::{CallForms, full_name, input_of, text_arguments};
pub(crate) use sharing_headers::{QUEUE, SHARING, SharingHeaders};
