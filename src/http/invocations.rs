//! `POST /invocations`: what SageMaker sends everything to. It is answered by the route that the body is meant for.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::error::ApiError;
use super::fields::Fields;
use super::openapi::Operation;
use super::{HttpState, RequestName, chat, completions, pooling};
use crate::embed::PoolTask;

/// The fields by which bodies are told from each other.
const TELLING: [&str; 5] = ["messages", "prompt", "input", "query", "text_1"];

/// The handler.
pub(crate) async fn invocations(
    state: State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    match state.app.pooler.as_ref().map(|pooler| pooler.task()) {
        None if fields.has("messages") => chat::chat_completions(state, name, fields).await,
        None if fields.has("prompt") => completions::completions(state, name, fields).await,
        None => {
            let message = "Cannot find suitable handler for request. Expected messages (a chat) or prompt \
                           (a completion)";
            Err(ApiError::bad_body(message))
        }
        Some(_) if fields.has("query") => pooling::rerank(state, name, fields).await,
        Some(_) if !fields.has("input") && !fields.has("messages") => {
            pooling::score(state, name, fields).await
        }
        Some(PoolTask::Embed) => pooling::embeddings(state, name, fields).await,
        Some(PoolTask::Classify) => pooling::classify(state, name, fields).await,
    }
}

/// How the route tells of itself. The rest of its body is that of other routes, which describe it.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("Does what the body asks for: the route of SageMaker")
        .takes(|mut fields| TELLING.into_iter().for_each(|name| drop(fields.take(name))))
        .answers_as("application/json", serde_json::json!({ "type": "object" }))
        .streams("Events whose data are chunks of the answer; the last one's is [DONE]");
}
