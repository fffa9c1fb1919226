//! API keys: who may call what.
//!
//! With `--api-key`, every route but the probes and `/metrics` needs `Authorization: Bearer KEY`, or
//! `x-api-key: KEY` as Anthropic's clients send it (vLLM guards only some prefixes, which its own security
//! guide regrets). The decision is made on the path as
//! it came over the wire, before anything decodes or rewrites it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::HttpState;

/// Open to everybody: what kubelets, load balancers and Prometheus ask without a key, and the files of the
/// page, which asks for the key itself.
const OPEN: &[&str] =
    &["/health", "/ready", "/ping", "/version", "/metrics", "/", "/quire/page.css", "/quire/page.js"];

/// Whether a path needs no key.
pub(crate) fn is_open(path: &str) -> bool {
    OPEN.contains(&path)
}

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Middleware: 401 in vLLM's words if the key is missing or wrong.
pub(crate) async fn check(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let open = request.method() == Method::OPTIONS || is_open(request.uri().path());
    if open || has_key(&state, request.headers()) {
        return next.run(request).await;
    }
    let headers = [(CONTENT_TYPE, "application/json"), (WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, headers, r#"{"error":"Unauthorized"}"#).into_response()
}

fn has_key(state: &HttpState, headers: &HeaderMap) -> bool {
    let header = |name| headers.get(name).map(HeaderValue::as_bytes);
    let keys = &state.api_keys;
    keys.admit(header(AUTHORIZATION)) || header(X_API_KEY).is_some_and(|key| keys.is_known(key))
}
