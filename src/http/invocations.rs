//! `POST /invocations`: the one route of SageMaker, which hands a body to the route that such bodies are for.

use std::sync::Arc;

use axum::extract::State;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use super::fields::Fields;
use super::openapi::Operation;
use super::{HttpState, RequestName, chat, completions, pooling};

/// The handler. What a body is, is told by the fields that no other has.
pub(crate) async fn invocations(
    state: State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    let pools = state.app.pooler.is_some();
    let any = |names: &[&str]| names.iter().any(|name| fields.has(name));
    if !pools && fields.has("messages") {
        chat::chat_completions(state, name, fields).await
    } else if !pools && fields.has("prompt") {
        completions::completions(state, name, fields).await
    } else if pools && any(&["input", "messages"]) {
        Ok(pooling::embeddings(state, name, fields).await.into_response())
    } else if pools && fields.has("query") {
        Ok(pooling::rerank(state, name, fields).await.into_response())
    } else if pools && any(&["text_1", "data_1", "queries"]) {
        Ok(pooling::score(state, name, fields).await.into_response())
    } else {
        let known = match pools {
            true => "input (embeddings), query and documents (rerank), text_1 and text_2 (score)",
            false => "messages (chat), prompt (completion)",
        };
        let message =
            format!("Cannot find suitable handler for request. Expected the fields of one of: {known}");
        Err(ApiError::bad_body(message))
    }
}

/// How the route tells of itself. Its body is that of other routes, which describe it.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("Does what the body asks for: the route of SageMaker")
        .takes(|mut fields| {
            ["messages", "prompt", "input", "query", "text_1"]
                .into_iter()
                .for_each(|name| drop(fields.take(name)))
        })
        .answers_as("application/json", serde_json::json!({ "type": "object" }))
        .streams("Events whose data are chunks of the answer; the last one's is [DONE]");
}
