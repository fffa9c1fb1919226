//! Invariant 12 below JSON: bodies, headers, methods and paths that no well-behaved client sends, and keys.

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::http;
use crate::server::Server;

const COMPLETIONS: &str = "/v1/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

fn completion() -> String {
    json!({"prompt": "Hello", "max_tokens": 3}).to_string()
}

/// Status of a raw answer.
fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_else(|| panic!("not an HTTP answer: {answer:?}"))
}

async fn assert_serves(server: &Server) {
    http::send(server.http, Method::POST, COMPLETIONS, &[JSON], completion()).await.ok();
}

#[tokio::test]
async fn invariant_7_a_body_of_100_mb_is_refused() {
    let server = Server::start(&[]);
    assert_serves(&server).await;
    let before = server.resident_bytes();
    let mut declared = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{{\"prompt\":\"",
        100 << 20
    )
    .into_bytes();
    declared.resize(declared.len() + (100 << 20) - 11, b'x');
    let answer = http::raw(server.http, &declared).await;
    assert_eq!(status(&answer), "413", "{answer}");
    assert!(answer.contains("\"code\":413"), "{answer}");
    let grown = || server.resident_bytes().saturating_sub(before);
    assert!(
        grown() < 16 << 20,
        "a body that says how large it is is not read, but memory grew by {}",
        grown()
    );

    // Without a declared length it has to be counted.
    let mut chunked = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    let chunk = [b"100000\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
    for _ in 0..100 {
        chunked.extend_from_slice(&chunk);
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    let answer = http::raw(server.http, &chunked).await;
    assert_eq!(status(&answer), "413", "{answer}");

    // A client that asks first is told before it sends.
    let mut asking = TcpStream::connect(server.http).await.expect("listens");
    let head = format!(
        "POST {COMPLETIONS} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n\
         content-length: {}\r\n\r\n",
        100 << 20
    );
    asking.write_all(head.as_bytes()).await.expect("sent");
    let mut start = [0; 12];
    asking.read_exact(&mut start).await.expect("an answer");
    assert_eq!(&start, b"HTTP/1.1 413");
    // 32 MiB are allowed; a buffer that grows is copied, and the allocator may keep both halves.
    assert!(grown() < 4 * (32 << 20), "grew by {} bytes", grown());
    assert_serves(&server).await;
}

/// As many clients as it takes to hurt, each with a body just below the limit.
#[tokio::test]
async fn invariant_7_large_bodies_are_not_kept() {
    let server = Server::start(&[]);
    let body = json!({"prompt": "x".repeat(30_000_000)}).to_string();
    let mut resident_mib = Vec::new();
    for _ in 0..4 {
        for _ in 0..4 {
            let response = http::send(server.http, Method::POST, COMPLETIONS, &[JSON], body.clone()).await;
            assert_eq!(response.status, 400, "{}", response.text());
        }
        assert_serves(&server).await;
        resident_mib.push(server.resident_bytes() >> 20);
    }
    eprintln!("{resident_mib:?} MiB resident after each four bodies of 30 MB");
    // The allocator keeps what a few bodies need, and no more however many come.
    assert!(resident_mib[3] <= resident_mib[0] + 64, "{resident_mib:?} MiB resident");
}

#[tokio::test]
async fn wrong_content_types_are_refused() {
    let server = Server::shared(&[]);
    for kind in ["text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data"]
    {
        let headers = [("content-type", kind)];
        let response = http::send(server.http, Method::POST, COMPLETIONS, &headers, completion()).await;
        assert_eq!(response.status, 400, "{kind}: {}", response.text());
        let message = response.json()["error"]["message"].as_str().expect("a message").to_lowercase();
        assert!(message.contains("content-type"), "{kind}: {message}");
    }
    for kind in [
        "application/json",
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/vnd.api+json",
    ] {
        let headers = [("content-type", kind)];
        http::send(server.http, Method::POST, COMPLETIONS, &headers, completion()).await.ok();
    }
}

#[tokio::test]
async fn wrong_methods_and_paths_are_refused() {
    let server = Server::shared(&[]);
    for (method, path) in [
        (Method::GET, COMPLETIONS),
        (Method::PUT, "/v1/chat/completions"),
        (Method::DELETE, "/v1/models"),
        (Method::POST, "/v1/models"),
        (Method::POST, "/metrics"),
        (Method::GET, "/tokenize"),
    ] {
        let response = http::send(server.http, method.clone(), path, &[JSON], completion()).await;
        assert_eq!(response.status, 405, "{method} {path}: {}", response.text());
        assert_ne!(response.header("allow"), "", "{method} {path}");
        assert_eq!(response.json()["error"]["code"], 405);
    }
    for path in ["/v1", "/v1/completion", "/v1/completions/x", "/v2/completions", "/%2e%2e/etc/passwd"] {
        let response = http::send(server.http, Method::POST, path, &[JSON], completion()).await;
        assert_eq!(response.status, 404, "{path}: {}", response.text());
        assert_eq!(response.json()["error"]["code"], 404, "{path}");
    }
}

#[tokio::test]
async fn invariant_7_hostile_heads_are_refused() {
    let server = Server::start(&[]);
    let huge = format!("GET /health HTTP/1.1\r\nhost: a\r\nx-huge: {}\r\n\r\n", "x".repeat(8 << 20));
    let answer = http::raw(server.http, huge.as_bytes()).await;
    assert!(answer.is_empty() || status(&answer).starts_with('4'), "{answer}");
    let many: String = (0..10_000).map(|i| format!("x-{i}: 1\r\n")).collect();
    let answer =
        http::raw(server.http, format!("GET /health HTTP/1.1\r\nhost: a\r\n{many}\r\n").as_bytes()).await;
    assert!(answer.is_empty() || status(&answer).starts_with('4'), "{answer}");
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ] {
        let answer = http::raw(server.http, nonsense).await;
        assert!(answer.is_empty() || status(&answer).starts_with('4'), "{answer}");
    }
    let long_path = format!("/v1/{}", "x".repeat(60_000));
    let response = http::get(server.http, &long_path).await;
    assert!((400..500).contains(&response.status), "{}", response.status);
    assert!(response.body.len() < 2000, "the path is not sent back whole");
    assert_serves(&server).await;
}

/// A client that sends its head byte by byte, or never ends it, holds a socket and nothing else.
#[tokio::test]
async fn invariant_7_slow_heads_do_not_hold_the_server() {
    let server = Server::start(&[]);
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut stream = TcpStream::connect(server.http).await.expect("listens");
        stream.write_all(b"POST /v1/completions HTTP/1.1\r\nhost:").await.expect("sent");
        slow.push(stream);
    }
    assert_serves(&server).await;
    // They are shown out after a while.
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(30), slow[0].read_to_end(&mut rest)).await;
    closed.expect("a head that never ends is not waited for").expect("closed");
}

#[tokio::test]
async fn keys_are_asked_for() {
    let server = Server::start(&["--api-key", "first-key", "second-key"]);
    let with = |key: &'static str| [JSON, ("authorization", key)];
    let guarded = [
        (Method::POST, COMPLETIONS, completion()),
        (
            Method::POST,
            "/v1/chat/completions",
            json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}).to_string(),
        ),
        (Method::GET, "/v1/models", String::new()),
    ];
    for (method, path, body) in &guarded {
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            "Bearer wrong",
            "Bearer first-key2",
            "Bearer first-ke",
            "first-key",
            "Basic first-key",
        ] {
            let response = http::send(server.http, method.clone(), path, &with(wrong), body.clone()).await;
            assert_eq!(response.status, 401, "{path} with {wrong:?}: {}", response.text());
            // The body is vLLM's.
            assert_eq!(response.json(), json!({"error": "Unauthorized"}), "{path}");
        }
        let response = http::send(server.http, method.clone(), path, &[JSON], body.clone()).await;
        assert_eq!(response.status, 401, "{path} without a header");
        for right in ["Bearer first-key", "Bearer second-key"] {
            http::send(server.http, method.clone(), path, &with(right), body.clone()).await.ok();
        }
    }
    // Paths that only look different reach nothing without a key.
    for path in [
        "/v1//completions",
        "//v1/completions",
        "/v1/./completions",
        "/V1/completions",
        "/v1/completions/",
        "/v1%2Fcompletions",
    ] {
        let response = http::send(server.http, Method::POST, path, &[JSON], completion()).await;
        assert!([401, 404].contains(&response.status), "{path}: {}", response.status);
    }
    for path in ["/health", "/ready", "/ping", "/version", "/metrics"] {
        assert_eq!(http::get(server.http, path).await.status, 200, "{path} needs no key");
    }
}

/// A key is not even compared before the head is whole, so that a bad body without a key is a 401.
#[tokio::test]
async fn without_a_key_nothing_else_is_told() {
    let server = Server::start(&["--api-key", "secret"]);
    for (path, body) in [(COMPLETIONS, "{"), ("/v1/chat/completions", "{\"model\":\"gpt-4\"}")] {
        let response = http::send(server.http, Method::POST, path, &[JSON], body).await;
        assert_eq!(response.status, 401, "{path}");
        assert_eq!(response.json(), json!({"error": "Unauthorized"}) as Value);
    }
    assert!(!server.stderr().contains("secret"), "the key is in the log");
}
