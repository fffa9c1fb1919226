//! The routes for operators, on the release binary: a pause in the middle of a stream, and a shutdown in a pause.

use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::server::Server;

fn text(events: &[Value]) -> String {
    events.iter().map(|event| event["choices"][0]["text"].as_str().expect("text")).collect()
}

async fn post(server: &Server, path: &str) -> u16 {
    http::post(server.http, path, &json!({})).await.status
}

#[tokio::test]
async fn a_pause_that_keeps_changes_no_answer() {
    let server = Server::start(&["--enable-admin"]);
    let body = json!({
        "prompt": "Once upon a time", "max_tokens": 1500, "ignore_eos": true, "temperature": 0, "stream": true,
    });
    let expected = text(&http::stream(server.http, "/v1/completions", &body).await);
    let mut stream = http::post_open(server.http, "/v1/completions", &body).await;
    let first = stream.event().await.expect("an event");
    for _ in 0..3 {
        assert_eq!(post(&server, "/pause?mode=keep").await, 200);
        assert_eq!(http::get(server.http, "/ready").await.status, 503);
        assert_eq!(http::get(server.http, "/health").await.status, 200);
        assert_eq!(post(&server, "/resume").await, 200);
    }
    let mut events = vec![first];
    events.extend(stream.events().await);
    assert_eq!(text(&events), expected);
    assert_eq!(post(&server, "/sleep?level=1").await, 501);
}

#[tokio::test]
async fn a_shutdown_ends_a_pause() {
    let server = Server::start(&["--enable-admin"]);
    assert_eq!(post(&server, "/pause").await, 200);
    let body = json!({"prompt": "Once upon a time", "max_tokens": 5, "ignore_eos": true});
    let (answer, ()) = tokio::join!(http::post(server.http, "/v1/completions", &body), async {
        // It is held, so it cannot end before it is seen.
        while server.metrics().await.value("vllm:num_requests_waiting") < 1.0 {}
        server.signal("TERM");
    });
    assert_eq!(answer.ok()["usage"]["completion_tokens"], 5);
    assert!(server.wait_for_exit(Duration::from_secs(30)).await.success());
}

#[tokio::test]
async fn without_the_flag_the_routes_are_closed() {
    let server = Server::shared(&[]);
    let answer = http::post(server.http, "/pause", &json!({})).await;
    assert!(answer.status == 403 && answer.text().contains("--enable-admin"), "{}", answer.text());
    let answer = http::post(server.http, "/inference/v1/generate", &json!({"token_ids": [300]})).await;
    assert!(answer.status == 403 && answer.text().contains("--enable-scale-out"), "{}", answer.text());
}
