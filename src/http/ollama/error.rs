//! [`OllamaError`]: an [`ApiError`] in Ollama's shape, `{"error": "message"}`.

use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::http::error::{ApiError, excerpt};

/// An answer other than 2xx on one of Ollama's routes.
#[derive(Debug)]
pub(crate) struct OllamaError(ApiError);

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaError")]
pub(super) struct Body<'a> {
    error: &'a str,
}

impl OllamaError {
    /// 404, in the words that Ollama's clients look for.
    pub(super) fn unknown_model(name: &str) -> Self {
        Self(ApiError::not_found(format!("model '{}' not found", excerpt(name))))
    }

    /// The body, also used as the last line of a stream.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(&Body { error: self.0.message() }).expect("a string serialises")
    }
}

impl<E: Into<ApiError>> From<E> for OllamaError {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for OllamaError {
    fn into_response(self) -> Response {
        let body = self.to_json();
        // Status and headers are the same as elsewhere.
        let mut response = self.0.into_response();
        *response.body_mut() = body.into();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}
