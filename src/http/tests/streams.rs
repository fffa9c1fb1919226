//! Ends of streams that are not the usual ones: clients that go, servers that stop, silence, crowds.

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

fn slow() -> Settings {
    let cost = Some(StepCost { step_us: 20_000.0, token_us: 0.0, sleep: true });
    Settings { cost, ..Settings::default() }
}

/// Sends a request for many tokens and hangs up after the first bytes of the answer, or at once.
async fn hang_up(server: &Server, body: serde_json::Value, after_bytes: bool) {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(body.as_bytes()).await.unwrap();
    if after_bytes {
        let mut buffer = [0; 64];
        assert!(socket.read(&mut buffer).await.unwrap() > 0);
    }
    while server.app.engine.num_in_flight() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_aborts_its_request() {
    let server = start(slow()).await;
    let body = json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 400, "ignore_eos": true});
    for stream in [true, false] {
        let mut body = body.clone();
        body["stream"] = stream.into();
        hang_up(&server, body, stream).await;
        let since = std::time::Instant::now();
        server.wait_until_idle().await;
        assert!(since.elapsed() < Duration::from_secs(2), "stream: {stream}");
    }
}

#[tokio::test]
async fn an_aborted_stream_says_so() {
    let server = start(slow()).await;
    let body =
        json!({"prompt": "a", "max_tokens": 400, "ignore_eos": true, "stream": true, "request_id": "it"});
    let (answer, ()) = tokio::join!(server.post("/v1/completions", &body), async {
        while server.app.engine.abort("cmpl-it") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert_eq!(answer.events().last().unwrap()["choices"][0]["finish_reason"], "abort");
}

#[tokio::test]
async fn silence_is_broken_by_comments() {
    let mut settings = Settings {
        cost: Some(StepCost { step_us: 400_000.0, token_us: 0.0, sleep: true }),
        ..Settings::default()
    };
    settings.server.sse_keep_alive_interval = Duration::from_millis(100);
    let server = start(settings).await;
    let body = json!({"prompt": "a", "max_tokens": 2, "stream": true});
    let answer = server.post("/v1/completions", &body).await;
    assert!(answer.text.starts_with(": keep-alive\n\n"), "{}", answer.text);
    assert!(!answer.events().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crowds_get_what_they_would_get_alone() {
    let server = Arc::new(start(Settings { max_num_queued_reqs: 1024, ..Settings::default() }).await);
    let body = |i: u32| json!({"prompt": [300 + i % 50], "seed": i % 50, "max_tokens": 40, "stream": true});
    let text = |answer: &Answer| -> String {
        let events = answer.events();
        events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap().to_owned()).collect()
    };
    let mut alone = Vec::new();
    for i in 0..50 {
        alone.push(text(&server.post("/v1/completions", &body(i)).await));
    }
    let crowd: Vec<_> = (0..300)
        .map(|i| {
            let server = server.clone();
            tokio::spawn(async move { (i, server.post("/v1/completions", &body(i)).await) })
        })
        .collect();
    for member in crowd {
        let (i, answer) = member.await.unwrap();
        assert_eq!(text(&answer), alone[i as usize % 50], "{i}");
    }
    server.wait_until_idle().await;
}
