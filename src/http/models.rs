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
use crate::adapters::{AdapterInfo, Adapters};

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
    /// Of the model itself.
    max_model_len: Option<u32>,
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

/// All names of the model, and the adapters.
pub(crate) async fn list(State(state): State<Arc<HttpState>>) -> Response {
    let adapters = adapters(&state);
    let names = state.app.model.served_names.iter().map(|name| card(&state, name));
    let data = names.chain(adapters.iter().map(|adapter| adapter_card(&state, adapter))).collect();
    json(&List { object: "list", data })
}

/// One name, which may have slashes in it.
pub(crate) async fn get(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    if let Some(name) = state.app.model.served_names.iter().find(|name| **name == id) {
        return Ok(json(&card(&state, name)));
    }
    let adapter = adapters(&state).into_iter().find(|adapter| adapter.name == id);
    let adapter = adapter.ok_or_else(|| ApiError::unknown_model(&id, &state.app.all_names()))?;
    Ok(json(&adapter_card(&state, &adapter)))
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

fn adapters(state: &HttpState) -> Vec<AdapterInfo> {
    state.app.adapters.as_ref().map(Adapters::list).unwrap_or_default()
}

fn adapter_card<'a>(state: &'a HttpState, adapter: &'a AdapterInfo) -> Card<'a> {
    let parent = Some(&*adapter.parent);
    Card { root: &adapter.path, parent, max_model_len: None, ..card(state, &adapter.name) }
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
        max_model_len: Some(state.app.limits.max_model_len),
        permission: [permission],
    }
}
