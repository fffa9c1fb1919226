//! A full server says so at once, and what it holds goes on.

use std::time::Duration;

use quire_proto::vllm;
use serde_json::{Value, json};

use crate::server::Server;
use crate::{grpc, http};

fn body(max_tokens: u32, stream: bool) -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": true, "stream": stream})
}

#[tokio::test]
async fn invariant_7_the_fifth_of_four_is_refused_at_once() {
    let server = Server::start(&["--max-num-queued-reqs", "4", "--max-num-seqs", "2"]);
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut open = http::post_open(server.http, "/v1/completions", &body(1900, true)).await;
        open.event().await.expect("a first token");
        held.push(open);
    }
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let addr = server.http;
            tokio::spawn(async move { http::post(addr, "/v1/completions", &body(5, false)).await })
        })
        .collect();
    while server.metrics().await.load_figures()[1] < 2.0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    for stream in [false, true] {
        let refused = http::post(server.http, "/v1/completions", &body(5, stream)).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        let seconds: u64 = refused.header("retry-after").parse().expect("Retry-After in seconds");
        assert!((1..=60).contains(&seconds), "{seconds}");
        assert_eq!(refused.json()["error"]["code"], 503);
    }
    let request = vllm::GenerateRequest { prompt: Some(grpc::text("Hello")), ..Default::default() };
    let refused = grpc::try_generate(server.grpc, request.clone()).await.expect_err("full");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    let refused = grpc::open_stream(server.grpc, request).await.expect_err("full");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    // None of the answers waited for room: there was none before them, and there is none after.
    assert_eq!(server.metrics().await.load_figures()[..2], [2.0, 2.0]);

    // As soon as there is room, new requests are taken, and those that waited get their turn.
    drop(held);
    for answer in waiting {
        answer.await.expect("no panic").ok();
    }
    server.until_idle().await;
    http::post(server.http, "/v1/completions", &body(5, false)).await.ok();
    let metrics = server.metrics().await;
    assert_eq!(metrics.value("vllm:admission_rejections_total"), 4.0);
}

/// `n` sequences take `n` places: one request cannot smuggle in more than the limit.
#[tokio::test]
async fn invariant_7_sequences_are_counted() {
    let server = Server::start(&["--max-num-queued-reqs", "4"]);
    let mut body = body(5, false);
    body["n"] = 5.into();
    let refused = http::post(server.http, "/v1/completions", &body).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    body["n"] = 4.into();
    let answer = http::post(server.http, "/v1/completions", &body).await.ok();
    assert_eq!(answer["choices"].as_array().map(Vec::len), Some(4));
}
