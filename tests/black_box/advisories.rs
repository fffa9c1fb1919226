//! What other servers of this kind were hurt by, class by class, as tests against this one. Where a class has
//! its tests in another file, the table says so.
//!
//! | class of advisory | held here by |
//! |---|---|
//! | parameters that ask for the moon (n, min_tokens, penalties, huge ids) | `invariant_12_values_out_of_range_are_named`, `many_prompts_of_many_choices_are_refused_at_once` |
//! | grammars, schemas and regular expressions that explode | `structured.rs` |
//! | templates: reserved names, recursion, loops without end | `template_arguments_cannot_take_over`, the tests of `src/text/template.rs` |
//! | tokenizers that are quadratic in a long word | `a_long_word_holds_up_nobody` |
//! | JSON that nests or repeats without end | `invariant_12_bodies_that_are_not_json` |
//! | heads and bodies that flood or trickle | `invariant_7_hostile_heads_are_refused`, `invariant_7_a_body_of_100_mb_is_refused`, `invariant_7_slow_heads_do_not_hold_the_server`, `bodies_that_trickle_hold_up_nobody` |
//! | keys: compared in constant time, on every route, whatever the Host header says | `every_route_asks_for_the_key`, `the_host_header_opens_nothing` |
//! | the prefix cache as an oracle for other people's prompts | `a_salt_keeps_prompts_from_strangers` |
//! | code or files named by a request (media URLs, templates, models) | `nothing_is_fetched_or_opened_for_a_request` |

use std::time::Duration;

use hyper::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::http;
use crate::server::Server;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");
/// What answers without a key: probes and metrics, and the page that asks for the key.
const OPEN: &[&str] =
    &["/health", "/ready", "/ping", "/version", "/metrics", "/", "/quire/page.css", "/quire/page.js"];

async fn assert_serves(server: &Server) {
    let body = json!({"prompt": "Hello", "max_tokens": 3});
    http::post(server.http, COMPLETIONS, &body).await.ok();
}

#[tokio::test]
async fn many_prompts_of_many_choices_are_refused_at_once() {
    let server = Server::shared(&[]);
    let body = json!({"prompt": vec!["Hello"; 1024], "n": 128, "max_tokens": 100, "temperature": 1});
    let answer = http::post(server.http, COMPLETIONS, &body).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(!answer.header("retry-after").is_empty());
    assert_serves(&server).await;
}

#[tokio::test]
async fn template_arguments_cannot_take_over() {
    let server = Server::shared(&[]);
    let deep = (0..120).fold(json!(1), |inner, _| json!([inner]));
    for (kwargs, status) in [
        (json!({"chat_template": "{{ 1 }}"}), 400),
        (json!({"tokenize": true}), 400),
        (json!({"messages": []}), 400),
        (json!({"tools": [1]}), 400),
        (json!({"add_generation_prompt": false}), 400),
        (json!({"x": deep}), 200),
        (json!({"raise_exception": 1, "namespace": 2, "range": 3, "strftime_now": 4}), 200),
    ] {
        let body = json!({
            "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "chat_template_kwargs": kwargs
        });
        let answer = http::post(server.http, CHAT, &body).await;
        assert_eq!(answer.status, status, "{kwargs}: {}", answer.text());
    }
    let template = json!({"messages": [{"role": "user", "content": "Hi"}], "chat_template": "{{ 7 * 7 }}"});
    assert_eq!(
        http::post(server.http, CHAT, &template).await.status,
        400,
        "templates come from the operator"
    );
    assert_serves(&server).await;
}

/// One word of a megabyte, which a careless tokenizer takes an hour for: others are served meanwhile, and it
/// gets its answer.
#[tokio::test]
async fn a_long_word_holds_up_nobody() {
    let server = Server::shared(&[]);
    for word in ["a".repeat(1 << 20), " ".repeat(1 << 20), "ab1!é".repeat(1 << 17), "\u{301}".repeat(1 << 18)]
    {
        let body = json!({"prompt": word, "max_tokens": 1, "truncate_prompt_tokens": 16});
        let bomb = http::post(server.http, COMPLETIONS, &body);
        let others = async {
            for _ in 0..5 {
                assert_serves(&server).await;
            }
        };
        let (answer, ()) = tokio::join!(bomb, others);
        assert!([200, 400].contains(&answer.status), "{}", answer.text());
    }
}

#[tokio::test]
async fn bodies_that_trickle_hold_up_nobody() {
    let server = Server::start(&[]);
    let mut slow = Vec::new();
    for _ in 0..300 {
        let mut stream = TcpStream::connect(server.http).await.expect("listens");
        let head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
                     content-length: 1000000\r\n\r\n{\"prompt\":\"";
        stream.write_all(head).await.expect("sent");
        slow.push(stream);
    }
    for stream in &mut slow {
        stream.write_all(b"x").await.expect("sent");
    }
    assert_serves(&server).await;
    assert_eq!(http::get(server.http, "/health").await.status, 200);
}

/// Every path that the server itself describes, by every method that it describes.
#[tokio::test]
async fn every_route_asks_for_the_key() {
    let server = Server::start(&["--api-key", "secret", "--enable-admin", "--enable-scale-out"]);
    let with_key = [("authorization", "Bearer secret")];
    let document = http::send(server.http, Method::GET, "/openapi.json", &with_key, "").await.ok();
    let paths = document["paths"].as_object().expect("paths");
    assert!(paths.len() > 20, "only {} paths", paths.len());
    for (path, methods) in paths {
        for method in methods.as_object().expect("methods").keys() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let real = path.replace("{id}", "some-id").replace("{*id}", "some-id");
            let answer = http::send(server.http, method.clone(), &real, &[JSON], "{}").await;
            let open = OPEN.contains(&path.as_str());
            assert_eq!(answer.status != 401, open, "{method} {path}: {}", answer.status);
        }
    }
    // Without a key nobody learns what there is.
    let answer = http::get(server.http, "/no/such/route").await;
    assert_eq!(answer.status, 401);
}

#[tokio::test]
async fn the_host_header_opens_nothing() {
    let server = Server::start(&["--api-key", "secret"]);
    for head in [
        "GET /v1/models HTTP/1.1\r\nhost: x/health",
        "GET /v1/models HTTP/1.1\r\nhost: a\r\nx-original-url: /health\r\nx-forwarded-prefix: /health",
        "GET http://a/v1/models HTTP/1.1\r\nhost: a",
        "GET /v1/models?/health HTTP/1.1\r\nhost: a",
        "GET /health/../v1/models HTTP/1.1\r\nhost: a",
        "GET /v1/models#/health HTTP/1.1\r\nhost: a",
        "GET //health/v1/models HTTP/1.1\r\nhost: a",
    ] {
        let answer = http::raw(server.http, format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).await;
        assert!(!answer.contains("\"data\""), "{head}: {answer}");
    }
}

/// Timing tells whether a prompt is cached; with a salt, only those who know it can ask.
#[tokio::test]
async fn a_salt_keeps_prompts_from_strangers() {
    let server = Server::start(&[]);
    let cached = async |salt: Value| {
        let prompt =
            "The secret of the old lighthouse is kept by a fox who lives under the third stair. ".repeat(3);
        let body = json!({"prompt": prompt, "max_tokens": 1, "cache_salt": salt});
        let answer = http::post(server.http, COMPLETIONS, &body).await.ok();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
    };
    assert_eq!(cached(json!("mine")).await, 0);
    assert!(cached(json!("mine")).await > 0, "who knows the salt shares the blocks");
    assert_eq!(cached(json!("yours")).await, 0);
    assert_eq!(cached(Value::Null).await, 0);
    assert!(cached(Value::Null).await > 0);
}

/// A listener that a request names must not hear of it, and a file must not be read.
#[tokio::test]
async fn nothing_is_fetched_or_opened_for_a_request() {
    let server = Server::shared(&[]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/x.png", listener.local_addr().expect("bound"));
    let parts = [
        json!({"type": "image_url", "image_url": {"url": url}}),
        json!({"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}),
        json!({"type": "video_url", "video_url": {"url": url}}),
        json!({"type": "file", "file": {"file_data": "file:///etc/passwd"}}),
    ];
    for part in parts {
        let body = json!({"messages": [{"role": "user", "content": [part]}], "max_tokens": 3});
        let answer = http::post(server.http, CHAT, &body).await;
        assert_eq!(answer.status, 400, "{part}: {}", answer.text());
    }
    let schema = json!({
        "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": url}}}
    });
    let answer = http::post(server.http, CHAT, &schema).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let heard = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
    assert!(heard.is_err(), "somebody came to look");
}
