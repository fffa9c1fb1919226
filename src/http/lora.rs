//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`: vLLM's routes, where the operator has opened them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use super::HttpState;
use super::error::ApiError;
use super::fields::Fields;
use super::openapi::Operation;
use crate::adapters::{AdapterError, AdapterInfo, Adapters};

/// The body of `/v1/load_lora_adapter`.
struct LoadRequest {
    name: Option<String>,
    path: Option<String>,
    in_place: bool,
}

/// The body of `/v1/unload_lora_adapter`.
struct UnloadRequest {
    name: Option<String>,
    id: Option<i64>,
}

/// The handler of `/v1/load_lora_adapter`.
pub(crate) async fn load(
    State(state): State<Arc<HttpState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let LoadRequest { name, path, in_place } = read_load(&mut fields);
    fields.finish()?;
    let (Some(name), Some(path)) = (name, path) else {
        return Err(ApiError::invalid_user_input("Both 'lora_name' and 'lora_path' must be provided."));
    };
    adapters(&state)?.load(&name, &path, None, in_place).await?;
    Ok(text(format!("Success: LoRA adapter '{name}' added successfully.")))
}

/// The handler of `/v1/unload_lora_adapter`.
pub(crate) async fn unload(
    State(state): State<Arc<HttpState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let UnloadRequest { name, id } = read_unload(&mut fields);
    fields.finish()?;
    let Some(name) = name else {
        let message = "'lora_name' needs to be provided to unload a LoRA adapter.";
        return Err(ApiError::invalid_user_input(message));
    };
    let adapters = adapters(&state)?;
    let is_another = |info: &AdapterInfo| info.name == name && id.is_some_and(|id| id != info.id);
    if adapters.list().iter().any(is_another) {
        return Err(AdapterError::Unknown(name).into());
    }
    adapters.unload(&name).await?;
    Ok(text(format!("Success: LoRA adapter '{name}' removed successfully.")))
}

/// What is answered where the operator has not opened the routes: in vLLM, there are none then.
pub(crate) async fn closed() -> ApiError {
    let message = "Not Found: start the server with --enable-lora and --allow-runtime-lora-updating \
                   (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)";
    ApiError::not_found(message)
}

/// How `/v1/load_lora_adapter` tells of itself.
pub(crate) fn describe_load(op: &mut Operation<'_>) {
    op.about("Reads a LoRA adapter, which requests can then name")
        .takes(|mut fields| drop(read_load(&mut fields)))
        .refuses(400, "A field is missing, or the name is taken")
        .refuses(404, "There is no adapter in that folder")
        .refuses(500, "The adapter cannot be used with this model");
}

/// How `/v1/unload_lora_adapter` tells of itself.
pub(crate) fn describe_unload(op: &mut Operation<'_>) {
    op.about("Forgets a LoRA adapter; requests that run with it go on")
        .takes(|mut fields| drop(read_unload(&mut fields)))
        .refuses(400, "The name is missing")
        .refuses(404, "There is no adapter of that name");
}

fn adapters(state: &HttpState) -> Result<&Adapters, ApiError> {
    let missing = || ApiError::not_found("adapters are not enabled: start the server with --enable-lora");
    state.app.adapters.as_ref().ok_or_else(missing)
}

fn read_load(fields: &mut Fields) -> LoadRequest {
    let in_place = fields.bool("load_inplace").unwrap_or(false);
    if fields.bool("is_3d_lora_weight") == Some(true) {
        fields.wrong("is_3d_lora_weight", "must be false: adapters of stacked experts are not supported");
    }
    LoadRequest { name: given(fields, "lora_name"), path: given(fields, "lora_path"), in_place }
}

fn read_unload(fields: &mut Fields) -> UnloadRequest {
    UnloadRequest { id: fields.int("lora_int_id"), name: given(fields, "lora_name") }
}

fn given(fields: &mut Fields, name: &str) -> Option<String> {
    fields.string(name).filter(|text| !text.is_empty())
}

fn text(message: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8")], message).into_response()
}
