//! Routes for operators: is it alive, is it ready, how busy is it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::HttpState;
use super::error::ApiError;
use super::openapi::Operation;
use super::reply::json;

#[derive(Serialize, JsonSchema)]
struct Version {
    version: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct Load {
    server_load: usize,
}

/// 200 as long as the engine makes progress. Not a question of this process being there: work that has
/// not moved for `stall_timeout` makes it 503, so that somebody restarts us.
pub(crate) async fn health(State(state): State<Arc<HttpState>>) -> Result<StatusCode, ApiError> {
    let stats = state.app.engine.stats();
    if let Some(reason) = stats.death() {
        return Err(ApiError::unavailable(format!("the engine has stopped: {reason}")));
    }
    let stalled = stats.stalled_for();
    if stalled > state.app.server.stall_timeout {
        let message = format!("the engine has completed no step for {} s", stalled.as_secs());
        return Err(ApiError::unavailable(message));
    }
    Ok(StatusCode::OK)
}

/// 200 if new requests are welcome. (The model is loaded before there is anything to answer with.)
pub(crate) async fn ready(State(state): State<Arc<HttpState>>) -> Result<StatusCode, ApiError> {
    let engine = &state.app.engine;
    if engine.is_draining() {
        return Err(ApiError::unavailable("the server is shutting down and takes no new requests"));
    }
    if let Some(reason) = engine.stats().death() {
        return Err(ApiError::unavailable(format!("the engine has stopped: {reason}")));
    }
    if engine.is_paused() {
        return Err(ApiError::unavailable("the engine is paused: new requests wait until it is resumed"));
    }
    Ok(StatusCode::OK)
}

/// What answers is Quire of this version.
pub(crate) async fn version() -> Response {
    json(&Version { version: env!("CARGO_PKG_VERSION") })
}

/// Sequences queued and running.
pub(crate) async fn load(State(state): State<Arc<HttpState>>) -> Response {
    json(&Load { server_load: state.app.engine.num_in_flight() })
}

/// Where KV events are published: nowhere.
pub(crate) async fn kv_event_sources() -> Response {
    json(&serde_json::Map::new())
}

/// Prometheus' text format.
pub(crate) async fn metrics(State(state): State<Arc<HttpState>>) -> Response {
    let text = state.app.metrics.render(state.app.engine.stats());
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// How `/health` and `/ping` tell of themselves.
pub(crate) fn describe_health(op: &mut Operation<'_>) {
    op.about("Whether the engine makes progress")
        .answers_nothing()
        .refuses(503, "The engine has stopped, or stands still with work to do");
}

/// How `/ready` tells of itself.
pub(crate) fn describe_ready(op: &mut Operation<'_>) {
    op.about("Whether new requests are welcome")
        .answers_nothing()
        .refuses(503, "The server is shutting down, or its engine has stopped");
}

/// How `/version` tells of itself.
pub(crate) fn describe_version(op: &mut Operation<'_>) {
    op.about("The version of the server").answers::<Version>();
}

/// How `/load` tells of itself.
pub(crate) fn describe_load(op: &mut Operation<'_>) {
    op.about("Sequences queued and running").answers::<Load>();
}

/// How `/kv_event_sources` tells of itself.
pub(crate) fn describe_kv_event_sources(op: &mut Operation<'_>) {
    op.about("Where events of the KV cache are published besides gRPC: nowhere")
        .answers_as("application/json", serde_json::json!({ "type": "object" }));
}

/// How `/metrics` tells of itself.
pub(crate) fn describe_metrics(op: &mut Operation<'_>) {
    op.about("Counters and histograms in Prometheus' text format").answers_text("text/plain");
}
