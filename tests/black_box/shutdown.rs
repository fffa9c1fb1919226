//! The end of the program: it drains, it is bounded, and it can be hurried.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use quire_proto::vllm;
use serde_json::{Value, json};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::http::Open;
use crate::server::Server;
use crate::{grpc, http};

fn body(max_tokens: u32) -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": max_tokens, "ignore_eos": true, "stream": true})
}

fn grpc_request(max_new_tokens: u32) -> vllm::GenerateRequest {
    vllm::GenerateRequest {
        prompt: Some(grpc::text("Once upon a time")),
        stopping: Some(vllm::StoppingCriteria { max_new_tokens, ignore_eos: true, ..Default::default() }),
        ..Default::default()
    }
}

/// A stream that has begun.
async fn begun(addr: SocketAddr, max_tokens: u32) -> Open {
    let mut open = http::post_open(addr, "/v1/completions", &body(max_tokens)).await;
    open.event().await.expect("a first token");
    open
}

fn last_reason(events: &[Value]) -> &str {
    let reasons: Vec<&str> =
        events.iter().filter_map(|event| event["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(reasons.len(), 1, "exactly one end: {reasons:?}");
    reasons[0]
}

#[tokio::test]
async fn invariant_6_sigterm_drains() {
    let server = Server::start(&[]);
    let mut health = HealthClient::new(grpc::channel(server.grpc).await);
    let mut inference = grpc::inference(server.grpc).await;
    let running = begun(server.http, 1500).await;
    let mut grpc_running = grpc::open_stream(server.grpc, grpc_request(1500)).await.expect("taken");
    grpc::next(&mut grpc_running).await.expect("no error").expect("a message");
    server.signal("TERM");
    let start = Instant::now();
    while http::get(server.http, "/ready").await.status != 503 {
        assert!(start.elapsed() < http::PATIENCE, "/ready still says yes");
    }

    // Nothing new is taken, and it is said in a way that clients can act on.
    let refused = http::post(server.http, "/v1/completions", &body(5)).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_ne!(refused.header("retry-after"), "");
    assert_eq!(refused.header("connection"), "close");
    assert_eq!(refused.json()["error"]["code"], 503);
    let refused = inference.generate(grpc_request(5)).await.expect_err("draining");
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let answer = health.check(HealthCheckRequest::default()).await.expect("answers").into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    // It is alive all the same: killing it now would lose what it is finishing.
    assert_eq!(http::get(server.http, "/health").await.status, 200);
    assert!(server.exit_status().is_none(), "it ended before its streams");

    // What runs, runs to its own end.
    assert_eq!(last_reason(&running.events().await), "length");
    let mut finish = None;
    while let Some(message) = grpc::next(&mut grpc_running).await.expect("no error") {
        finish = message.outputs.and_then(|output| output.finish_info);
    }
    assert_eq!(grpc::finish_reason(&finish.expect("an end")), "length");
    let status = server.wait_for_exit(Duration::from_secs(5)).await;
    assert_eq!(status.code(), Some(0), "{status:?}");
}

#[tokio::test]
async fn an_idle_server_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&[]);
        let start = Instant::now();
        server.signal(signal);
        let status = server.wait_for_exit(Duration::from_secs(2)).await;
        assert_eq!(status.code(), Some(0), "{status:?}");
        eprintln!("ended {:.0} ms after SIG{signal}", start.elapsed().as_secs_f64() * 1e3);
    }
}

/// The drain is bounded; what is left then gets a proper last word, not a broken connection.
#[tokio::test]
async fn invariant_6_the_drain_ends_with_an_abort() {
    for timeout_s in ["0", "1"] {
        // One at a time, so that the second is still queued.
        let server = Server::start(&["--shutdown-timeout", timeout_s, "--max-num-seqs", "1"]);
        let mut queued_grpc = None;
        let running = begun(server.http, 2000).await;
        let queued = tokio::spawn({
            let addr = server.http;
            async move { http::post(addr, "/v1/completions", &json!({"prompt": "Hi", "max_tokens": 5})).await }
        });
        while server.metrics().await.load_figures()[1] < 1.0 {}
        let mut client = grpc::inference(server.grpc).await;
        let call = tokio::spawn(async move { client.generate(grpc_request(2000)).await });
        while server.metrics().await.load_figures()[1] < 2.0 {}
        queued_grpc.replace(call);

        let start = Instant::now();
        server.signal("TERM");
        let events = running.events().await;
        // A fast machine may finish 2,000 tokens within the second.
        let reason = last_reason(&events);
        assert!(reason == "abort" || (timeout_s == "1" && reason == "length"), "{reason}");
        let queued = queued.await.expect("no panic");
        let body = queued.json();
        assert!(
            queued.status == 503 || body["choices"][0]["finish_reason"] == "abort" || reason == "length",
            "{} {body}",
            queued.status
        );
        match queued_grpc.expect("asked").await.expect("no panic") {
            Ok(answer) => {
                let finish = answer.into_inner().outputs.and_then(|o| o.finish_info).expect("an end");
                assert_eq!(grpc::finish_reason(&finish), "abort");
            }
            Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}"),
        }
        let status = server.wait_for_exit(Duration::from_secs(5)).await;
        assert_eq!(status.code(), Some(0), "{status:?}");
        let took = start.elapsed();
        eprintln!("--shutdown-timeout {timeout_s}: ended after {:.0} ms", took.as_secs_f64() * 1e3);
        assert!(took < Duration::from_secs(timeout_s.parse::<u64>().unwrap() + 3), "{took:?}");
    }
}

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let server = Server::start(&[]);
    let _running = begun(server.http, 2000).await;
    server.signal("TERM");
    let start = Instant::now();
    while http::get(server.http, "/ready").await.status != 503 {
        assert!(start.elapsed() < http::PATIENCE, "/ready still says yes");
    }
    let start = Instant::now();
    server.signal("TERM");
    // Not 0, which is for a drain that came to its end.
    assert_eq!(server.wait_for_exit(http::PATIENCE).await.code(), Some(1));
    eprintln!("ended {:.0} ms after the second signal", start.elapsed().as_secs_f64() * 1e3);
}
