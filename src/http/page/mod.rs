//! The page at `/`: a chat with the model and a view of the engine at work, for whoever opens the server's
//! address in a browser. It fetches nothing from anywhere else, and is off with `--no-ui`.
//!
//! The files are open to everybody, since they say nothing; what they show comes from routes that want the
//! key. [`state`] is those counters as JSON, read from the snapshot of the last step.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, VARY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use super::HttpState;
use super::openapi::Operation;
use super::reply::json;

const HTML: &str = include_str!("index.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Nothing but our own two files may be loaded or run, nobody else is talked to, no other page may frame this
/// one, and text cannot become script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
                      require-trusted-types-for 'script'; trusted-types 'none'";

/// What Ollama says at this place; its clients look for it to see whether a server is there.
const FOR_PROGRAMS: &str = "Ollama is running";

/// `GET /`: the page for browsers, a word for programs.
pub(crate) async fn index(headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let mut response = if accept.contains("text/html") {
        file("text/html; charset=utf-8", HTML)
    } else {
        file("text/plain; charset=utf-8", FOR_PROGRAMS)
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// `GET /quire/page.css`
pub(crate) async fn style() -> Response {
    file("text/css; charset=utf-8", STYLE)
}

/// `GET /quire/page.js`
pub(crate) async fn script() -> Response {
    file("text/javascript; charset=utf-8", SCRIPT)
}

fn file(media_type: &'static str, text: &'static str) -> Response {
    let headers = [
        (CONTENT_TYPE, media_type),
        // It changes with the program, whose address stays the same.
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text).into_response()
}

/// The engine at a glance. Totals only grow, so that whoever asks twice has a rate.
#[derive(Serialize, JsonSchema)]
struct EngineState<'a> {
    /// The name it answers with.
    model: &'a str,
    /// Of the server.
    version: &'static str,
    /// Since the engine was made.
    uptime_s: f64,
    /// It takes no new requests.
    draining: bool,
    /// Sequences being computed.
    running: u32,
    /// Sequences waiting for their turn.
    waiting: u32,
    /// Sequences in a step at most.
    max_num_seqs: u32,
    steps_total: u64,
    prompt_tokens_total: u64,
    generation_tokens_total: u64,
    preemptions_total: u64,
    /// Prompt tokens looked up in the prefix cache.
    prefix_cache_queries_total: u64,
    /// Prompt tokens found there.
    prefix_cache_hits_total: u64,
    kv_blocks: KvBlocks,
}

/// `used` + `cached` are at most `total`; the rest is free and empty.
#[derive(Serialize, JsonSchema)]
struct KvBlocks {
    total: u32,
    /// Held by sequences.
    used: u32,
    /// Held by nobody, but with content that a new sequence can take over.
    cached: u32,
    /// Tokens in a block.
    block_size: u32,
}

/// `GET /quire/state`
pub(crate) async fn state(State(state): State<Arc<HttpState>>) -> Response {
    let app = &*state.app;
    let stats = app.engine.stats();
    let scheduler = stats.scheduler();
    json(&EngineState {
        model: app.model.name(),
        version: env!("CARGO_PKG_VERSION"),
        uptime_s: stats.uptime().as_secs_f64(),
        draining: app.engine.is_draining(),
        running: scheduler.num_running,
        waiting: scheduler.num_waiting_capacity + scheduler.num_waiting_deferred,
        max_num_seqs: app.model.max_num_seqs,
        steps_total: stats.num_steps(),
        prompt_tokens_total: app.metrics.prompt_tokens_total(),
        generation_tokens_total: app.metrics.generation_tokens_total(),
        preemptions_total: scheduler.preemptions_total,
        prefix_cache_queries_total: scheduler.prefix_cache_queries_total,
        prefix_cache_hits_total: scheduler.prefix_cache_hits_total,
        kv_blocks: KvBlocks {
            total: scheduler.num_blocks_total,
            used: scheduler.num_blocks_total.saturating_sub(scheduler.num_blocks_free),
            cached: scheduler.num_blocks_cached,
            block_size: app.model.block_size,
        },
    })
}

/// How `/` tells of itself.
pub(crate) fn describe_index(op: &mut Operation<'_>) {
    op.about("A page for browsers, a word for programs").answers_text("text/html").answers_text("text/plain");
}

/// How the page's style tells of itself.
pub(crate) fn describe_style(op: &mut Operation<'_>) {
    op.about("The page's style").answers_text("text/css");
}

/// How the page's script tells of itself.
pub(crate) fn describe_script(op: &mut Operation<'_>) {
    op.about("The page's script").answers_text("text/javascript");
}

/// How `/quire/state` tells of itself.
pub(crate) fn describe_state(op: &mut Operation<'_>) {
    op.about("The engine at a glance").answers::<EngineState<'_>>();
}
