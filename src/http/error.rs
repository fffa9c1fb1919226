//! [`ApiError`]: what a client is told when a request cannot be served, in vLLM's error shape:
//! `{"error": {"message", "type", "param", "code"}}`.

use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::adapters::AdapterError;
use crate::embed::EmbedError;
use crate::engine::SubmitError;
use crate::text::TextError;
use crate::validate::ParamError;

/// An answer other than 2xx.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    message: String,
    param: Option<String>,
}

impl ApiError {
    /// 400 about the request as a whole: not JSON, wrong content type, wrong types of fields.
    pub(crate) fn bad_body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "Bad Request", message)
    }

    /// 400 about one field whose value is not allowed.
    pub(crate) fn bad_param(param: impl Into<String>, message: impl Into<String>) -> Self {
        ParamError::new(param, message).into()
    }

    /// 400 for a request whose own fields let nothing follow, which only sampling could find out.
    pub(crate) fn impossible(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", message)
    }

    /// 404 for a name in `model` that is not served.
    pub(crate) fn unknown_model(model: &str, served: &[String]) -> Self {
        let message =
            format!("The model `{}` does not exist. Valid aliases: {}", excerpt(model), served.join(", "));
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message).about("model")
    }

    /// 404 for something that a body names.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
    }

    /// 404 for a path.
    pub(crate) fn no_such_route(path: &str) -> Self {
        let message = format!("Not Found: there is nothing at {}", excerpt(path));
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
    }

    /// 404: the route is one of servers that do something else with their model (vLLM has no such route then).
    pub(crate) fn wrong_task(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFoundError", message)
    }

    /// 403 for a route that the operator has not opened; the message says how.
    pub(crate) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "PermissionDeniedError", message)
    }

    /// 409: something else happened meanwhile.
    pub(crate) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "ConflictError", message)
    }

    /// 400 about adapters, by vLLM's name.
    pub(crate) fn invalid_user_input(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "InvalidUserInput", message)
    }

    /// 501 for a whole feature; the message names it.
    pub(crate) fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, "NotImplementedError", message)
    }

    /// 404 for a response that is not in the store (any more).
    pub(crate) fn no_such_response(id: &str) -> Self {
        Self::not_found(format!("Response with id '{}' not found.", excerpt(id)))
    }

    /// 405.
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowedError",
            "Method Not Allowed: see the Allow header",
        )
    }

    /// 408.
    pub(crate) fn body_too_slow(silence: Duration) -> Self {
        let message = format!("nothing came of the request body for {} s", silence.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeoutError", message)
    }

    /// 413.
    pub(crate) fn body_too_large(max_body_bytes: usize) -> Self {
        let message = format!("the request body is larger than the limit of {max_body_bytes} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLargeError", message)
    }

    /// 500; the message must be fit for clients.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", message)
    }

    /// 503: it may work later, or elsewhere.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", message)
    }

    /// The same error with `param` set.
    pub(crate) fn about(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// The body, also used as a frame of a stream that has begun.
    pub(crate) fn to_json(&self) -> String {
        let error = ErrorDetail {
            message: &self.message,
            r#type: self.kind,
            param: self.param.as_deref(),
            code: self.status.as_u16(),
        };
        serde_json::to_string(&ErrorBody { error }).expect("strings and numbers serialise")
    }

    /// What is wrong, for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The status to answer with.
    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), param: None }
    }
}

/// The body of an error.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Error")]
pub(crate) struct ErrorBody<'a> {
    error: ErrorDetail<'a>,
}

#[derive(Serialize, JsonSchema)]
struct ErrorDetail<'a> {
    /// For a person.
    message: &'a str,
    /// For a program.
    r#type: &'a str,
    /// The field it is about.
    param: Option<&'a str>,
    /// The status.
    code: u16,
}

impl From<AdapterError> for ApiError {
    fn from(error: AdapterError) -> Self {
        match error {
            AdapterError::AlreadyLoaded(_) | AdapterError::NameTaken(_) | AdapterError::TooMany => {
                Self::invalid_user_input(error.to_string())
            }
            AdapterError::Unknown(_) | AdapterError::Missing { .. } => Self::not_found(error.to_string()),
            // As in vLLM: the folder is the server's.
            AdapterError::Unusable { .. } | AdapterError::Changed(_) | AdapterError::Panicked(_) => {
                Self::internal(error.to_string())
            }
        }
    }
}

impl From<ParamError> for ApiError {
    fn from(error: ParamError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequestError", error.message).about(error.param)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Overloaded { .. } | SubmitError::Draining => Self::unavailable(error.to_string()),
            SubmitError::WrongTask { .. } => Self::wrong_task(error.to_string()),
            SubmitError::Dead(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<EmbedError> for ApiError {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::NotPooled | EmbedError::WrongTask { .. } => Self::wrong_task(error.to_string()),
            EmbedError::Param(error) => error.into(),
            EmbedError::Text(error) => error.into(),
            EmbedError::Submit(error) => error.into(),
            EmbedError::Aborted => Self::unavailable(error.to_string()),
            EmbedError::Failed(_) => Self::internal(error.to_string()),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> Self {
        match error {
            TextError::Overloaded { .. } => Self::unavailable(error.to_string()),
            TextError::Panicked { .. } => {
                tracing::error!(%error, "text work for one request failed");
                Self::internal("internal error while preparing the prompt")
            }
            // Everything else comes from what the client sent: text, messages, template arguments.
            _ => Self::new(StatusCode::BAD_REQUEST, "BadRequestError", error.to_string()),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.to_json()).into_response();
        response.extensions_mut().insert(ErrorMessage(self.message));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// Goes with an error's response, for those who say it in another API's shape.
#[derive(Debug, Clone)]
pub(crate) struct ErrorMessage(pub(crate) String);

/// What a client sent, short enough to be sent back in a message.
pub(crate) fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 80;
    let mut chars = text.chars();
    let mut short: String = chars.by_ref().take(MAX_CHARS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_vllms_shape() {
        let error = ApiError::bad_param("top_p", "top_p must be in (0, 1], got 2");
        let expected = r#"{"error":{"message":"top_p must be in (0, 1], got 2","type":"BadRequestError","param":"top_p","code":400}}"#;
        assert_eq!(error.to_json(), expected);
        let unknown = ApiError::unknown_model("gpt", &["a".into(), "b".into()]);
        let expected = r#"{"error":{"message":"The model `gpt` does not exist. Valid aliases: a, b","type":"NotFoundError","param":"model","code":404}}"#;
        assert_eq!(unknown.to_json(), expected);
    }

    #[test]
    fn refusals_that_may_pass_carry_retry_after() {
        for error in [SubmitError::Draining, SubmitError::Overloaded { queued: 1, limit: 1 }] {
            let response = ApiError::from(error).into_response();
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()[RETRY_AFTER], "1");
        }
        assert_eq!(ApiError::from(SubmitError::Dead("gone".into())).into_response().status(), 500);
    }

    #[test]
    fn excerpts_are_short_and_whole_characters() {
        assert_eq!(excerpt("é"), "é");
        assert_eq!(excerpt(&"é".repeat(1000)).chars().count(), 81);
    }
}
