//! `GET /metrics`: what has the server done so far? Prometheus text.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;

use super::Answer;
use crate::app::App;
use crate::visit::Visit;

pub(super) fn answer(app: Arc<App>, request: Request) -> Answer {
    Box::pin(async move {
        let (status, models) = (app.service.status(), app.service.model_statuses());
        let visit = Visit::of(&request);
        let may_see = |model: &str| visit.caller.may_use(model);
        let text = app.metrics.render(&status, &models, &app.outside, may_see);
        let mut response = Response::new(Body::from(text));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    })
}
