//! `GET /tokenizer_info`: the tokenizer's settings and the chat template, for clients that tokenise for themselves.
//! Behind a flag, as in vLLM: a chat template may be a secret.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::HttpState;
use super::error::ApiError;
use super::openapi::Operation;
use super::reply::json;

/// tokenizer_config.json with two more fields.
#[derive(Debug, Serialize, JsonSchema)]
struct TokenizerInfo {
    tokenizer_class: String,
    /// The one in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template: Option<String>,
    #[serde(flatten)]
    config: Map<String, Value>,
}

/// The handler.
pub(crate) async fn tokenizer_info(State(state): State<Arc<HttpState>>) -> Result<Response, ApiError> {
    let shared = state.clone();
    let read = move || shared.app.tokenizer_files.config();
    let mut config = state.app.text_pool.run(read).await?.map_err(|error| {
        tracing::error!(%error, "the tokenizer's settings cannot be read");
        ApiError::internal("the tokenizer's settings cannot be read")
    })?;
    config.remove("chat_template");
    let tokenizer_class = match config.remove("tokenizer_class") {
        Some(Value::String(name)) => name,
        _ => "PreTrainedTokenizerFast".into(),
    };
    config.values_mut().for_each(only_texts);
    let chat_template = state.app.chat_template.as_ref().map(|template| template.source().to_owned());
    Ok(json(&TokenizerInfo { tokenizer_class, chat_template, config }))
}

/// What is answered where the operator has not opened it: in vLLM, there is no such route then.
pub(crate) async fn closed() -> ApiError {
    ApiError::not_found("Not Found: start the server with --enable-tokenizer-info-endpoint")
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("The tokenizer's settings and the chat template").answers::<TokenizerInfo>();
}

/// Tokens that are described by an object become their text.
fn only_texts(value: &mut Value) {
    match value {
        Value::Object(map) => match map.get("content") {
            Some(Value::String(text)) => *value = Value::String(text.clone()),
            _ => map.values_mut().for_each(only_texts),
        },
        Value::Array(list) => list.iter_mut().for_each(only_texts),
        _ => (),
    }
}
