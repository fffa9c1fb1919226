//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::HttpState;
use super::error::ApiError;
use super::openapi::Operation;
use super::reply::json;

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelList")]
struct List<'a> {
    object: &'static str,
    data: Vec<Card<'a>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelCard")]
struct Card<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    /// Gateways know vLLM's contract by this word.
    owned_by: &'static str,
    root: &'a str,
    parent: Option<&'a str>,
    max_model_len: u32,
    permission: [Permission; 1],
}

/// A relic of OpenAI's API that typed clients still want; says that everything is allowed.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ModelPermission")]
struct Permission {
    id: String,
    object: &'static str,
    created: i64,
    allow_create_engine: bool,
    allow_sampling: bool,
    allow_logprobs: bool,
    allow_search_indices: bool,
    allow_view: bool,
    allow_fine_tuning: bool,
    organization: &'static str,
    group: Option<()>,
    is_blocking: bool,
}

/// All names of the model.
pub(crate) async fn list(State(state): State<Arc<HttpState>>) -> Response {
    let names = &state.app.model.served_names;
    json(&List { object: "list", data: names.iter().map(|name| card(&state, name)).collect() })
}

/// One name, which may have slashes in it.
pub(crate) async fn get(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let names = &state.app.model.served_names;
    let name = names.iter().find(|name| **name == id);
    let name = name.ok_or_else(|| ApiError::unknown_model(&id, names))?;
    Ok(json(&card(&state, name)))
}

/// How `/v1/models` tells of itself.
pub(crate) fn describe_list(op: &mut Operation<'_>) {
    op.about("All names of the model").answers::<List<'_>>();
}

/// How `/v1/models/{id}` tells of itself.
pub(crate) fn describe_get(op: &mut Operation<'_>) {
    op.about("One name of the model")
        .path_parameter("id")
        .answers::<Card<'_>>()
        .refuses(400, "The path is not UTF-8")
        .refuses(404, "The model is not served");
}

fn card<'a>(state: &'a HttpState, name: &'a str) -> Card<'a> {
    let model = &state.app.model;
    let permission = Permission {
        id: format!("modelperm-{}", uuid::Uuid::new_v4().simple()),
        object: "model_permission",
        created: model.created,
        allow_create_engine: false,
        allow_sampling: true,
        allow_logprobs: true,
        allow_search_indices: false,
        allow_view: true,
        allow_fine_tuning: false,
        organization: "*",
        group: None,
        is_blocking: false,
    };
    Card {
        id: name,
        object: "model",
        created: model.created,
        owned_by: "vllm",
        root: &model.root,
        parent: None,
        max_model_len: state.app.limits.max_model_len,
        permission: [permission],
    }
}
