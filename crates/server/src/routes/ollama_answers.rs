//! `POST /api/chat` and `POST /api/generate`: the same questions in Ollama's form.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::response::Response;
use engine::Prompt;

use super::Answer;
use crate::admin;
use crate::answers::Answers;
use crate::app::App;
use crate::reply::{ApiError, OllamaForm, OllamaWriter, respond};
use crate::request::{
    OllamaPrompt, SharingHeaders, asks_to_leave, read_body, read_ollama_dialog, read_ollama_fields,
    read_ollama_messages, read_ollama_model, read_ollama_prompt,
};

pub(super) fn chat(app: Arc<App>, request: Request) -> Answer {
    Box::pin(answer(app, request, OllamaForm::Chat))
}

pub(super) fn generate(app: Arc<App>, request: Request) -> Answer {
    Box::pin(answer(app, request, OllamaForm::Generate))
}

async fn answer(app: Arc<App>, request: Request, form: OllamaForm) -> Result<Response, ApiError> {
    let started = Instant::now();
    let headers = SharingHeaders::read(request.headers())?;
    let may_order = admin::check(&request);
    let body = read_body(&app, request).await?;
    let mut fields = body.fields()?;
    let card = app.pick_model(read_ollama_model(&mut fields)?.as_deref())?;
    let bounds = app.bounds(started);
    let mut asked = read_ollama_fields(&mut fields, &card, &headers, bounds)?;
    let dialog = read_ollama_dialog(&mut fields, &card)?;
    dialog.hold(&mut asked, &card)?;
    let setup = dialog.reader(&card, &asked);
    let prompt = match form {
        OllamaForm::Generate => read_ollama_prompt(&mut fields)?,
        OllamaForm::Chat => Some(read_ollama_messages(&mut fields)?)
            .filter(|list| !list.is_empty())
            .map(OllamaPrompt::Chat),
    };
    let leaves = asks_to_leave(&mut fields)?;
    let explains = headers.explains(&mut fields)?;
    fields.finish()?;
    drop(body);
    let writer = OllamaWriter::new(form, &card.id, started);
    let Some(prompt) = prompt else {
        // What only programs of this machine may order.
        may_order?;
        return if leaves {
            app.service.unload_model(&card.id).await?;
            Ok(writer.without_answer("unload"))
        } else {
            app.service.load_model(&card.id).await?;
            Ok(writer.without_answer("load"))
        };
    };
    let stream = asked.stream;
    let (prompt, setup) = match prompt {
        OllamaPrompt::Raw(text) => (Prompt::Text(text), None),
        OllamaPrompt::Chat(messages) => {
            // As Ollama's templates leave the assistant's turn open at the end.
            let is_continued = chat::Conversation::open_text(&messages).is_some();
            let conversation = dialog.conversation(messages, &card);
            (Prompt::Chat(chat::Conversation { is_continued, ..conversation }), Some(&setup))
        }
    };
    let requests = asked.into_requests(&card.id, vec![prompt]);
    let answers = Answers::admit(&app, requests, setup).await?;
    respond(&app, answers, writer, (stream.is_on(), explains)).await
}
