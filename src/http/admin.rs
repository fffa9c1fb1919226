//! Routes that change the server for everybody: pause, resume, the prefix cache, aborts. Behind
//! `--enable-admin`, because a key for the API is not yet the right to stop the API for others.
//!
//! Names, parameters and defaults are vLLM's, where they are open in its development mode.

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::HttpState;
use super::error::{ApiError, excerpt};
use super::fields::Fields;
use super::reply::json;
use crate::engine::PauseMode;

/// The parameters in the URL, in order.
type Parameters = Query<Vec<(String, String)>>;

#[derive(Debug, Serialize, JsonSchema)]
struct Status {
    status: &'static str,
}

#[derive(Debug, Serialize, JsonSchema)]
struct IsPaused {
    is_paused: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct IsSleeping {
    is_sleeping: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Success {
    success: bool,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Aborted {
    /// Sequences that were told to end.
    num_aborted: usize,
}

/// What is served, and with what limits.
#[derive(Debug, Serialize, JsonSchema)]
struct ServerInfo<'a> {
    version: &'static str,
    model: &'a str,
    served_model_names: &'a [String],
    architecture: &'a str,
    max_model_len: u32,
    max_num_seqs: u32,
    max_num_batched_tokens: u32,
    block_size: u32,
    num_gpu_blocks: u32,
    enable_prefix_caching: bool,
    uptime_s: u64,
    is_paused: bool,
    is_draining: bool,
}

/// 403 that names the flag: answers in the place of all the others unless it was given.
pub(crate) async fn forbidden(uri: Uri) -> ApiError {
    let path = excerpt(uri.path());
    ApiError::forbidden(format!("{path} is for operators; start the server with --enable-admin"))
}

/// `POST /pause?mode=abort|wait|keep&clear_cache=BOOL`. Answers when the engine stands still.
pub(crate) async fn pause(
    State(state): State<Arc<HttpState>>,
    Query(parameters): Parameters,
) -> Result<Response, ApiError> {
    let mode = pause_mode(&parameters)?;
    let clear = switch(&parameters, "clear_cache")?;
    if mode == PauseMode::Keep && clear == Some(true) {
        let message = "clear_cache cannot be true with mode \"keep\": requests keep their KV blocks then";
        return Err(ApiError::bad_param("clear_cache", message));
    }
    stand_still(&state, mode).await?;
    if clear.unwrap_or(mode != PauseMode::Keep) && !state.app.engine.reset_prefix_cache().await {
        return Err(ApiError::conflict("the pause ended before the prefix cache could be cleared"));
    }
    Ok(json(&Status { status: "paused" }))
}

/// `POST /resume`
pub(crate) async fn resume(State(state): State<Arc<HttpState>>) -> Response {
    state.app.engine.resume().await;
    json(&Status { status: "resumed" })
}

/// `GET /is_paused`
pub(crate) async fn is_paused(State(state): State<Arc<HttpState>>) -> Response {
    json(&IsPaused { is_paused: state.app.engine.is_paused() })
}

/// `POST /sleep?level=0&mode=...`: level 0 is a pause. The levels above give memory back, which is not built.
pub(crate) async fn sleep(
    State(state): State<Arc<HttpState>>,
    Query(parameters): Parameters,
) -> Result<StatusCode, ApiError> {
    let mode = pause_mode(&parameters)?;
    match parameter(&parameters, "level").unwrap_or("1") {
        "0" => stand_still(&state, mode).await?,
        level @ ("1" | "2") => {
            let message = format!(
                "sleep level {level} is not supported: weights and KV cache stay in memory while the server \
                 lives; level 0 pauses the engine"
            );
            return Err(ApiError::not_implemented(message).about("level"));
        }
        other => {
            let message = format!("level must be 0, 1 or 2, got {:?}", excerpt(other));
            return Err(ApiError::bad_param("level", message));
        }
    }
    Ok(StatusCode::OK)
}

/// `POST /wake_up`: the end of a sleep of level 0. Without one nothing happens.
pub(crate) async fn wake_up(State(state): State<Arc<HttpState>>) -> StatusCode {
    state.app.engine.resume().await;
    StatusCode::OK
}

/// `GET /is_sleeping`: asleep at any level, and the only one that there is, is paused.
pub(crate) async fn is_sleeping(State(state): State<Arc<HttpState>>) -> Response {
    json(&IsSleeping { is_sleeping: state.app.engine.is_paused() })
}

/// `POST /reset_prefix_cache`. `success` is false while requests hold blocks.
pub(crate) async fn reset_prefix_cache(
    State(state): State<Arc<HttpState>>,
    Query(parameters): Parameters,
) -> Result<Response, ApiError> {
    for (name, why) in [
        ("reset_running_requests", "running requests keep their blocks; see /pause?mode=abort"),
        ("reset_external", "there is no cache outside the engine"),
    ] {
        if switch(&parameters, name)? == Some(true) {
            return Err(ApiError::bad_param(name, format!("{name} is not supported: {why}")));
        }
    }
    Ok(json(&Success { success: state.app.engine.reset_prefix_cache().await }))
}

/// `POST /abort_requests {"request_ids": [...]}`: ends requests by their names; without a list, all of them.
pub(crate) async fn abort_requests(
    State(state): State<Arc<HttpState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let ids = read_abort(&mut fields);
    fields.finish()?;
    let engine = &state.app.engine;
    let num_aborted = match ids {
        Some(ids) => ids.iter().map(|id| engine.abort(id)).sum(),
        None => {
            let num_in_flight = engine.num_in_flight();
            engine.abort_all();
            num_in_flight
        }
    };
    Ok(json(&Aborted { num_aborted }))
}

/// The body of `/abort_requests`.
fn read_abort(fields: &mut Fields) -> Option<Vec<String>> {
    fields.strings("request_ids")
}

/// `GET /server_info`
pub(crate) async fn server_info(State(state): State<Arc<HttpState>>) -> Response {
    let (model, engine) = (&state.app.model, &state.app.engine);
    json(&ServerInfo {
        version: env!("CARGO_PKG_VERSION"),
        model: &model.root,
        served_model_names: &model.served_names,
        architecture: &model.architecture,
        max_model_len: state.app.limits.max_model_len,
        max_num_seqs: model.max_num_seqs,
        max_num_batched_tokens: model.max_num_batched_tokens,
        block_size: model.block_size,
        num_gpu_blocks: model.num_blocks,
        enable_prefix_caching: model.enable_prefix_caching,
        uptime_s: engine.stats().uptime().as_secs(),
        is_paused: engine.is_paused(),
        is_draining: engine.is_draining(),
    })
}

/// How these routes tell of themselves.
pub(crate) mod describe {
    use serde_json::json;

    use super::*;
    use crate::http::openapi::Operation;

    const ENDED: &str = "The pause ended before the engine stood still";

    pub(crate) fn pause(op: &mut Operation<'_>) {
        op.about("Stops the engine: running requests are aborted, finished, or kept")
            .query_parameter("mode", false, json!({ "enum": ["abort", "wait", "keep"] }))
            .query_parameter("clear_cache", false, json!({ "type": "boolean" }))
            .answers::<Status>()
            .refuses(400, "A parameter is wrong")
            .refuses(409, ENDED);
    }

    pub(crate) fn resume(op: &mut Operation<'_>) {
        op.about("Lets the engine go on").answers::<Status>();
    }

    pub(crate) fn is_paused(op: &mut Operation<'_>) {
        op.about("Whether the engine is paused").answers::<IsPaused>();
    }

    pub(crate) fn sleep(op: &mut Operation<'_>) {
        op.about("A pause, by its other name")
            .query_parameter("level", true, json!({ "enum": ["0"] }))
            .query_parameter("mode", false, json!({ "enum": ["abort", "wait", "keep"] }))
            .answers_nothing()
            .refuses(400, "A parameter is wrong")
            .refuses(409, ENDED)
            .refuses(501, "Levels that give memory back are not built");
    }

    pub(crate) fn wake_up(op: &mut Operation<'_>) {
        op.about("The end of a sleep").answers_nothing();
    }

    pub(crate) fn is_sleeping(op: &mut Operation<'_>) {
        op.about("Whether the engine sleeps").answers::<IsSleeping>();
    }

    pub(crate) fn reset_prefix_cache(op: &mut Operation<'_>) {
        op.about("Forgets what the prefix cache holds, unless requests hold blocks")
            .query_parameter("reset_running_requests", false, json!({ "const": false }))
            .query_parameter("reset_external", false, json!({ "const": false }))
            .answers::<Success>()
            .refuses(400, "A parameter is wrong");
    }

    pub(crate) fn abort_requests(op: &mut Operation<'_>) {
        op.about("Ends requests by their names, or all of them")
            .takes(|mut fields| drop(read_abort(&mut fields)))
            .answers::<Aborted>();
    }

    pub(crate) fn server_info(op: &mut Operation<'_>) {
        op.about("What is served, and with what limits").answers::<ServerInfo<'_>>();
    }
}

async fn stand_still(state: &HttpState, mode: PauseMode) -> Result<(), ApiError> {
    if state.app.engine.pause(mode).await {
        return Ok(());
    }
    let message =
        "the pause ended before the engine stood still: it was resumed, or the server is shutting down";
    Err(ApiError::conflict(message))
}

fn parameter<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters.iter().rev().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
}

fn pause_mode(parameters: &[(String, String)]) -> Result<PauseMode, ApiError> {
    match parameter(parameters, "mode") {
        None | Some("abort") => Ok(PauseMode::Abort),
        Some("wait") => Ok(PauseMode::Wait),
        Some("keep") => Ok(PauseMode::Keep),
        Some(other) => {
            let message = format!("mode must be \"abort\", \"wait\" or \"keep\", got {:?}", excerpt(other));
            Err(ApiError::bad_param("mode", message))
        }
    }
}

fn switch(parameters: &[(String, String)], name: &str) -> Result<Option<bool>, ApiError> {
    match parameter(parameters, name).map(str::to_ascii_lowercase).as_deref() {
        None => Ok(None),
        Some("true" | "1") => Ok(Some(true)),
        Some("false" | "0") => Ok(Some(false)),
        Some(other) => {
            let message = format!("{name} must be true or false, got {:?}", excerpt(other));
            Err(ApiError::bad_param(name, message))
        }
    }
}
