//! Any body to any route: an answer in time, never a 500, errors in the shape of the API, and nothing left
//! behind in the engine.

use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use quire::http::router;
use serde_json::Value;
use tower::ServiceExt;

use super::server::{assert_idle, with_server};

/// Where bodies are sent.
pub const ROUTES: &[&str] = &[
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/detokenize",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/batch",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/v1/load_lora_adapter",
    "/v1/embeddings",
];

/// One byte for the route, then the body.
pub fn run(data: &[u8]) {
    let Some((route, body)) = data.split_first() else { return };
    let route = ROUTES[usize::from(*route) % ROUTES.len()];
    with_server(async |app| {
        let request = Request::post(route)
            .header("content-type", "application/json")
            .body(Body::from(body.to_vec()))
            .expect("a request");
        let answer = router(app.clone()).oneshot(request).await.expect("the router never fails");
        check(route, answer).await;
        assert_idle(&app).await;
    });
}

async fn check(route: &str, answer: Response<Body>) {
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("bodies do not break off").to_bytes();
    let text = std::str::from_utf8(&body).expect("answers are UTF-8");
    let allowed = status.is_success()
        || status.is_client_error()
        || [StatusCode::NOT_IMPLEMENTED, StatusCode::SERVICE_UNAVAILABLE].contains(&status);
    assert!(allowed, "{route}: {status} {text}");
    if !status.is_success() {
        let json: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("{route}: {error}: {text}"));
        let error = &json["error"];
        assert!(error["message"].is_string() || error.is_string(), "{route}: {text}");
    }
}
