//! Errors of `/v1/messages` in Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`.
//!
//! They come from everywhere (readers, keys, limits, the router), so they are brought into shape on their way
//! out, by path.

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::http::error::ErrorMessage;

/// An error, as a body and as an event.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicError")]
pub(crate) struct ErrorBody<'a> {
    r#type: &'static str,
    error: Detail<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "AnthropicErrorDetail")]
pub(super) struct Detail<'a> {
    r#type: &'static str,
    message: &'a str,
}

impl<'a> Detail<'a> {
    /// The word for it follows from the status.
    pub(super) fn new(status: StatusCode, message: &'a str) -> Self {
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 | 529 => "overloaded_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        };
        Self { r#type: kind, message }
    }
}

/// Middleware: errors of Anthropic's routes say what they say in Anthropic's shape.
pub(crate) async fn shape_errors(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let ours = path == "/v1/messages" || path.starts_with("/v1/messages/");
    let response = next.run(request).await;
    if !ours || response.status().as_u16() < 400 {
        return response;
    }
    let (mut parts, _) = response.into_parts();
    let message = parts.extensions.remove::<ErrorMessage>();
    let reason = parts.status.canonical_reason().unwrap_or("refused");
    let message = message.as_ref().map_or(reason, |ErrorMessage(message)| message);
    let body = ErrorBody { r#type: "error", error: Detail::new(parts.status, message) };
    let body = serde_json::to_vec(&body).expect("strings serialise");
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Response::from_parts(parts, Body::from(body))
}
