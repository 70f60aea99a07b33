//! `POST /tokenize` and `POST /detokenize`, in the shapes of vLLM and of llama-server: which tokens
//! is this text, and which text are these tokens?

use std::sync::Arc;

use axum::extract::Request;
use engine::{EncodedPrompt, ModelCard, Prompt};
use messages::TokenId;
use serde::Serialize;
use serde_json::json;

use super::Answer;
use crate::app::App;
use crate::reply::{ApiError, json_response};
use crate::request::{Fields, read_body, read_continuation, read_dialog, read_messages};

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<TokenId>,
    /// The texts of the tokens, where they were asked for.
    token_strs: Option<Vec<String>>,
}

/// What is to be encoded, and how the reply looks.
struct Asked {
    prompt: Prompt,
    /// Without the token that the model's prompts begin with.
    is_bare: bool,
    shape: Shape,
}

#[derive(PartialEq)]
enum Shape {
    LlamaServer,
    Vllm { with_texts: bool },
}

/// Of a `prompt`, of `messages` in the model's template, or of llama-server's `content`.
pub(super) fn tokenize(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let Asked { prompt, is_bare, shape } = read_fields(&mut fields, &card)?;
        fields.finish()?;
        drop(body);
        let EncodedPrompt { mut ids, mut texts } = app.service.encode(&card.id, prompt).await?;
        if is_bare {
            let frame = app.service.encode(&card.id, Prompt::Text(String::new())).await?.ids.len();
            let frame = frame.min(ids.len());
            ids.drain(..frame);
            texts.drain(..frame);
        }
        Ok(match shape {
            Shape::LlamaServer => json_response(&json!({"tokens": ids})),
            Shape::Vllm { with_texts } => json_response(&Tokenized {
                count: ids.len(),
                max_model_len: card.context_tokens_max,
                tokens: ids,
                token_strs: with_texts.then_some(texts),
            }),
        })
    })
}

fn read_fields(fields: &mut Fields<'_>, card: &ModelCard) -> Result<Asked, ApiError> {
    if let Some(text) = fields.string("content")? {
        let is_bare = !fields.boolean("add_special")?.unwrap_or(false);
        fields.neutral("parse_special", &["true"])?;
        fields.neutral("with_pieces", &["false"])?;
        return Ok(Asked { prompt: Prompt::Text(text), is_bare, shape: Shape::LlamaServer });
    }
    let with_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
    let shape = Shape::Vllm { with_texts };
    if let Some(text) = fields.string("prompt")? {
        let is_bare = !fields.boolean("add_special_tokens")?.unwrap_or(true);
        return Ok(Asked { prompt: Prompt::Text(text), is_bare, shape });
    }
    fields.neutral("add_special_tokens", &["false"])?;
    let (dialog, messages) = (read_dialog(fields)?, read_messages(fields)?);
    let is_continued = read_continuation(fields, &messages)?;
    let conversation = dialog.conversation(messages, card);
    let prompt = Prompt::Chat(chat::Conversation { is_continued, ..conversation });
    Ok(Asked { prompt, is_bare: false, shape })
}

pub(super) fn detokenize(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let Some(ids) = fields.typed::<Vec<TokenId>>("tokens")? else {
            let text = "tokens is missing: it is an array of ids";
            return Err(ApiError::invalid(Some("tokens"), text));
        };
        fields.finish()?;
        drop(body);
        let text = app.service.decode(&card.id, ids).await?;
        // vLLM reads the one name, llama-server's clients the other.
        Ok(json_response(&json!({"prompt": text, "content": text})))
    })
}
