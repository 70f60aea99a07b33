//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes: which tokens is this text, and which
//! text are these tokens?

use std::sync::Arc;

use axum::extract::Request;
use engine::{EncodedPrompt, Prompt};
use messages::TokenId;
use serde::Serialize;
use serde_json::json;

use super::Answer;
use crate::app::App;
use crate::reply::{ApiError, json_response};
use crate::request::{read_body, read_dialog, read_messages};

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<TokenId>,
    /// The texts of the tokens, where they were asked for.
    token_strs: Option<Vec<String>>,
}

/// Of a `prompt`, or of `messages` in the model's template.
pub(super) fn tokenize(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let body = read_body(&app, request).await?;
        let mut fields = body.fields()?;
        let card = app.pick_model(fields.string("model")?.as_deref())?;
        let with_texts = fields.boolean("return_token_strs")?.unwrap_or(false);
        let prompt = match fields.string("prompt")? {
            Some(text) => {
                fields.neutral("add_special_tokens", &["true"])?;
                Prompt::Text(text)
            }
            None => {
                fields.neutral("add_special_tokens", &["false"])?;
                fields.neutral("add_generation_prompt", &["true"])?;
                fields.neutral("continue_final_message", &["false"])?;
                let dialog = read_dialog(&mut fields)?;
                Prompt::Chat(dialog.conversation(read_messages(&mut fields)?, &card))
            }
        };
        fields.finish()?;
        drop(body);
        let EncodedPrompt { ids, texts } = app.service.encode(&card.id, prompt).await?;
        Ok(json_response(&Tokenized {
            count: ids.len(),
            max_model_len: card.context_tokens_max,
            tokens: ids,
            token_strs: with_texts.then_some(texts),
        }))
    })
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
        Ok(json_response(&json!({"prompt": text})))
    })
}
