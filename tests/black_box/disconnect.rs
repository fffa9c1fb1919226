//! A client that goes away takes its request with it: running or queued, streaming or not, HTTP or gRPC.
//! And one that reads slowly holds up nobody.

use std::time::{Duration, Instant};

use quire_proto::vllm;
use serde_json::{Value, json};

use crate::server::Server;
use crate::{grpc, http};

/// Runs for a long time if nobody stops it.
fn long(stream: bool) -> Value {
    json!({"prompt": "Once upon a time", "max_tokens": 2000, "ignore_eos": true, "stream": stream})
}

fn long_grpc() -> vllm::GenerateRequest {
    vllm::GenerateRequest {
        prompt: Some(grpc::text("Once upon a time")),
        stopping: Some(vllm::StoppingCriteria {
            max_new_tokens: 2000,
            ignore_eos: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

async fn until(server: &Server, what: &str, reached: impl Fn([f64; 3]) -> bool) {
    let start = Instant::now();
    loop {
        let figures = server.metrics().await.load_figures();
        if reached(figures) {
            return;
        }
        assert!(start.elapsed() < http::PATIENCE, "not {what}: {figures:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Waits until nothing is left of anybody, and so many sequences have been counted as aborted.
async fn until_aborted(server: &Server, count: f64) {
    server.until_idle().await;
    let start = Instant::now();
    loop {
        let reason = [("finished_reason", "abort")];
        let counted = server.metrics().await.value_where("vllm:request_success_total", &reason);
        if counted == count {
            return;
        }
        assert!(start.elapsed() < http::PATIENCE, "{counted} aborts were counted, not {count}");
    }
}

#[tokio::test]
async fn invariant_6_a_closed_http_stream_is_aborted() {
    let server = Server::start(&[]);
    let mut open = http::post_open(server.http, "/v1/completions", &long(true)).await;
    open.event().await.expect("a first token");
    assert_eq!(server.metrics().await.load_figures()[0], 1.0);
    drop(open);
    until_aborted(&server, 1.0).await;
}

#[tokio::test]
async fn invariant_6_a_closed_http_request_is_aborted() {
    let server = Server::start(&[]);
    let chat = json!({
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 2000,
        "ignore_eos": true,
    });
    let addr = server.http;
    let request = tokio::spawn(async move { http::post(addr, "/v1/chat/completions", &chat).await });
    until(&server, "running", |[running, ..]| running == 1.0).await;
    request.abort();
    until_aborted(&server, 1.0).await;
}

#[tokio::test]
async fn invariant_6_a_dropped_grpc_call_is_aborted() {
    let server = Server::start(&[]);
    let mut stream = grpc::open_stream(server.grpc, long_grpc()).await.expect("taken");
    grpc::next(&mut stream).await.expect("no error").expect("a message");
    grpc::next(&mut stream).await.expect("no error").expect("a message");
    assert_eq!(server.metrics().await.load_figures()[0], 1.0);
    drop(stream);
    server.until_idle().await;

    let addr = server.grpc;
    let call = tokio::spawn(async move { grpc::generate(addr, long_grpc()).await });
    until(&server, "running", |[running, ..]| running == 1.0).await;
    call.abort();
    until_aborted(&server, 2.0).await;
}

/// Both ends of a queue: those waiting leave without ever running, then the one that ran leaves, too.
#[tokio::test]
async fn invariant_6_queued_requests_are_aborted() {
    let server = Server::start(&["--max-num-seqs", "1"]);
    let mut running = http::post_open(server.http, "/v1/completions", &long(true)).await;
    running.event().await.expect("a first token");

    let (addr, grpc_addr) = (server.http, server.grpc);
    let streaming =
        tokio::spawn(
            async move { http::post_open(addr, "/v1/completions", &long(true)).await.events().await },
        );
    let whole = tokio::spawn(async move { http::post(addr, "/v1/completions", &long(false)).await });
    let grpc = tokio::spawn(async move { grpc::generate_stream(grpc_addr, long_grpc()).await });
    until(&server, "three waiting", |[running, waiting, _]| [running, waiting] == [1.0, 3.0]).await;
    streaming.abort();
    until(&server, "two waiting", |[_, waiting, _]| waiting == 2.0).await;
    whole.abort();
    grpc.abort();
    until(&server, "none waiting", |[running, waiting, _]| [running, waiting] == [1.0, 0.0]).await;
    // The one that runs has noticed nothing.
    running.event().await.expect("it goes on");
    drop(running);
    until_aborted(&server, 4.0).await;
}

#[tokio::test]
async fn control_abort_ends_a_request_by_its_name() {
    let server = Server::start(&[]);
    let mut request = long_grpc();
    request.request_id = "mine".to_owned();
    let mut stream = grpc::open_stream(server.grpc, request).await.expect("taken");
    grpc::next(&mut stream).await.expect("no error").expect("a message");
    let ids = vec!["mine".to_owned(), "unknown".to_owned()];
    let mut control = grpc::control(server.grpc).await;
    control.abort(vllm::AbortRequest { request_ids: ids }).await.expect("done");
    let mut last = None;
    while let Some(message) = grpc::next(&mut stream).await.expect("no error") {
        last = message.outputs;
    }
    let finish = last.and_then(|output| output.finish_info).expect("an end");
    assert_eq!(grpc::finish_reason(&finish), "abort");
    server.until_idle().await;
}

/// The slow client's answer is larger than what kernel buffers take in. It waits in the server in one
/// piece per choice, not token by token, while everybody else is served.
#[tokio::test]
async fn invariant_7_a_slow_reader_holds_up_nobody_and_loses_nothing() {
    let server = Server::start(&[]);
    let mut body = json!({
        "prompt": "Once upon a time",
        "max_tokens": 1900,
        "ignore_eos": true,
        "n": 4,
        "seed": 7,
        "logprobs": 20,
        "return_token_ids": true,
    });
    let expected = http::post(server.http, "/v1/completions", &body).await.ok();

    body["stream"] = true.into();
    let headers = [("content-type", "application/json")];
    let stream = http::connect_with_small_buffer(server.http, 4096).await;
    let slow = http::open_on(stream, hyper::Method::POST, "/v1/completions", &headers, body.to_string());
    let mut slow = slow.await.expect("an answer");
    let mut received = vec![slow.event().await.expect("a first token")];

    // It reads nothing from here on. Eight others run from start to end.
    let quick = json!({"prompt": "Hello", "max_tokens": 200, "ignore_eos": true});
    let others = (0..8).map(|_| http::stream(server.http, "/v1/completions", &quick));
    for events in futures_util::future::join_all(others).await {
        assert_eq!(events.last().expect("events")["choices"][0]["finish_reason"], "length");
    }
    // The engine finishes the slow one, too, although its client does not read.
    server.until_idle().await;

    while let Some(event) = slow.event().await {
        received.push(event);
    }
    let (mut text, mut ids, mut ends) = (vec![String::new(); 4], vec![Vec::new(); 4], [0; 4]);
    for choice in received.iter().flat_map(|event| event["choices"].as_array().expect("choices")) {
        let index = choice["index"].as_u64().expect("an index") as usize;
        ids[index].extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
        text[index].push_str(choice["text"].as_str().expect("text"));
        ends[index] += usize::from(!choice["finish_reason"].is_null());
    }
    assert_eq!(ends, [1; 4]);
    for (index, choice) in expected["choices"].as_array().expect("choices").iter().enumerate() {
        assert_eq!(choice["text"], text[index], "choice {index}");
        assert_eq!(choice["token_ids"], json!(ids[index]), "choice {index}");
    }
    let tokens = |event: &Value| event["choices"][0]["token_ids"].as_array().map_or(0, Vec::len);
    let largest = received.iter().map(tokens).max().expect("events");
    eprintln!("{} events, {largest} tokens in the largest", received.len());
    assert!(largest >= 100, "nothing was coalesced: kernel buffers took it all");
}
