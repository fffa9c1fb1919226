//! `POST /invocations`: what SageMaker sends everything to. It is answered by the route that the body is meant for.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::error::ApiError;
use super::fields::Fields;
use super::{HttpState, RequestName, chat, completions, pooling};
use crate::embed::PoolTask;

/// The handler.
pub(crate) async fn invocations(
    state: State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    match state.app.pooler.as_ref().map(|pooler| pooler.task()) {
        None if fields.has("messages") => chat::chat_completions(state, name, fields).await,
        None => completions::completions(state, name, fields).await,
        Some(_) if fields.has("query") => pooling::rerank(state, name, fields).await,
        Some(_) if !fields.has("input") && !fields.has("messages") => {
            pooling::score(state, name, fields).await
        }
        Some(PoolTask::Embed) => pooling::embeddings(state, name, fields).await,
        Some(PoolTask::Classify) => pooling::classify(state, name, fields).await,
    }
}
