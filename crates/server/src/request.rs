//! What does a body ask for? From bytes to [`engine::GenerateRequest`]s; everything that is wrong
//! with a request and needs no tokenizer is found here.

mod body;
mod conversation;
mod fields;
mod generation_fields;
mod prompts;
mod sharing_headers;

pub(crate) use body::read_body;
pub(crate) use conversation::read_messages;
pub(crate) use fields::Fields;
pub(crate) use generation_fields::{Bounds, CHOICES_MAX, GenerationFields, Logprobs, RequestSize};
pub(crate) use prompts::read_prompts;
pub(crate) use sharing_headers::{QUEUE, SHARING, SharingHeaders};
