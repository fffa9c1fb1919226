//! Invariant 12 over HTTP: a bad request gets a clear 4xx that names the field, at once, and harms nobody
//! else, neither those who are served meanwhile nor those who come after.

use std::time::{Duration, Instant};

use hyper::Method;
use serde_json::{Value, json};

use crate::crowd::Crowd;
use crate::http::{self, Response};
use crate::server::Server;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A refusal does no work worth waiting for.
const SOON: Duration = Duration::from_secs(5);

/// A server with a few well-behaved clients on it, whose answers are known.
struct Served<'s> {
    server: &'s Server,
    crowd: Crowd<'s>,
    good: Value,
}

impl<'s> Served<'s> {
    async fn new(server: &'s Server) -> Self {
        let good = good(server).await;
        Self { server, crowd: Crowd::start(server, 3).await, good }
    }

    /// Posts a body as it is; it must be refused with this status and name the field.
    #[track_caller]
    fn refuses(
        &self,
        path: &str,
        body: impl Into<bytes::Bytes>,
        status: u16,
        field: &str,
    ) -> impl Future<Output = ()> {
        let (body, path, field) = (body.into(), path.to_owned(), field.to_owned());
        let what = format!("{path} {}", String::from_utf8_lossy(&body[..body.len().min(200)]));
        let addr = self.server.http;
        async move {
            let start = Instant::now();
            let response = http::send(addr, Method::POST, &path, &[JSON], body).await;
            assert!(start.elapsed() < SOON, "{what}: took {:?}", start.elapsed());
            check(&response, status, &field, &what);
        }
    }

    /// The same for a completion with one field changed, and for a chat with it.
    async fn refuses_field(&self, field: &str, value: &Value) {
        for (path, mut body) in [(COMPLETIONS, completion()), (CHAT, chat())] {
            if path == COMPLETIONS && ["messages", "top_logprobs", "tools", "tool_choice"].contains(&field) {
                continue;
            }
            if path == CHAT && ["prompt", "suffix"].contains(&field) {
                continue;
            }
            // Type errors of logprobs differ: a number here, a boolean there.
            if path == CHAT && field == "logprobs" {
                continue;
            }
            body[field] = value.clone();
            self.refuses(path, body.to_string(), 400, field).await;
        }
    }

    /// The others are still there and get what they got before.
    async fn unharmed(self) {
        self.crowd.assert_present().await;
        assert_eq!(good(self.server).await, self.good);
        assert_eq!(http::get(self.server.http, "/health").await.status, 200);
    }
}

fn completion() -> Value {
    json!({"model": "pebble", "prompt": "Hello", "max_tokens": 3})
}

fn chat() -> Value {
    json!({"model": "pebble", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3})
}

async fn good(server: &Server) -> Value {
    let mut body = chat();
    body["temperature"] = 0.into();
    body["max_tokens"] = 20.into();
    let answer = http::post(server.http, CHAT, &body).await.ok();
    answer["choices"].clone()
}

/// An error of vLLM's shape, written for the reader.
fn check(response: &Response, status: u16, field: &str, what: &str) {
    assert_eq!(response.status, status, "{what}: {}", response.text());
    assert!(response.header("content-type").starts_with("application/json"), "{what}");
    let body = response.json();
    let error = &body["error"];
    assert_eq!(error["code"], status, "{what}: {body}");
    assert!(error["type"].as_str().is_some_and(|kind| !kind.is_empty()), "{what}: {body}");
    let message = error["message"].as_str().unwrap_or_else(|| panic!("{what}: no message in {body}"));
    assert!((10..2000).contains(&message.len()), "{what}: {message:?}");
    let param = error.get("param").unwrap_or_else(|| panic!("{what}: no param in {body}"));
    let names = param.as_str().is_some_and(|param| param.starts_with(field)) || message.contains(field);
    assert!(names, "{what}: does not name {field}: {body}");
    for inside in ["panicked", "src/", ".rs:", "unwrap", "0x"] {
        assert!(!message.contains(inside), "{what}: tells of the inside: {message}");
    }
}

#[tokio::test]
async fn invariant_12_bodies_that_are_not_json() {
    let server = Server::shared(&[]);
    let served = Served::new(&server).await;
    let deep = format!("{{\"prompt\":\"a\",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_objects = format!("{}1{}", "{\"a\":".repeat(50_000), "}".repeat(50_000));
    let broken: [&[u8]; 16] = [
        b"",
        b"{",
        b"}",
        b"[]",
        b"null",
        b"3",
        b"\"prompt\"",
        b"{\"prompt\":}",
        b"{\"prompt\":\"a\"",
        b"{\"prompt\":\"a\",}",
        b"{'prompt':'a'}",
        b"{\"prompt\":\"a\"} trailing",
        b"{\"prompt\":\"a\",\"temperature\":NaN}",
        b"{\"prompt\":\"\xff\xfe\"}",
        b"{\"prompt\":\"\\ud800\"}",
        b"\xef\xbb\xbf{\"prompt\":\"a\"}",
    ];
    for path in [COMPLETIONS, CHAT, "/tokenize", "/detokenize"] {
        for body in broken {
            served.refuses(path, body.to_vec(), 400, "").await;
        }
        served.refuses(path, deep.clone(), 400, "").await;
        served.refuses(path, deep_objects.clone(), 400, "").await;
    }
    served.unharmed().await;
}

#[tokio::test]
async fn invariant_12_wrong_types_are_named() {
    let server = Server::shared(&[]);
    let served = Served::new(&server).await;
    let numbers = [
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "seed",
        "max_tokens",
        "min_tokens",
        "logprobs",
        "prompt_logprobs",
        "priority",
        "truncate_prompt_tokens",
    ];
    for field in numbers {
        for value in [json!("1"), json!([1]), json!({"a": 1}), json!(true)] {
            served.refuses_field(field, &value).await;
        }
    }
    let integers = ["n", "top_k", "seed", "max_tokens", "min_tokens", "prompt_logprobs", "priority"];
    for field in integers {
        served.refuses_field(field, &json!(1.5)).await;
        served.refuses(COMPLETIONS, format!("{{\"prompt\":\"a\",\"{field}\":1e30}}"), 400, field).await;
    }
    let booleans = [
        "ignore_eos",
        "stream",
        "echo",
        "include_stop_str_in_output",
        "skip_special_tokens",
        "spaces_between_special_tokens",
        "return_token_ids",
        "return_tokens_as_token_ids",
        "add_special_tokens",
    ];
    for field in booleans {
        for value in [json!("yes"), json!(1), json!([]), json!({})] {
            served.refuses_field(field, &value).await;
        }
    }
    for field in ["stop", "stop_token_ids", "bad_words", "allowed_token_ids", "logit_bias", "stream_options"]
    {
        served.refuses_field(field, &json!(3)).await;
        served.refuses_field(field, &json!([[]])).await;
    }
    for field in ["model", "request_id", "cache_salt", "truncation_side"] {
        for value in [json!(3), json!(["pebble"]), json!({})] {
            served.refuses_field(field, &value).await;
        }
    }
    for value in [json!(3), json!(true), json!({"a": 1}), json!([null]), json!(["a", 1]), json!([[1], "a"])] {
        served.refuses_field("prompt", &value).await;
    }
    let logprobs = json!({"messages": chat()["messages"], "logprobs": 5});
    served.refuses(CHAT, logprobs.to_string(), 400, "logprobs").await;
    served.unharmed().await;
}

#[tokio::test]
async fn invariant_12_values_out_of_range_are_named() {
    let server = Server::shared(&[]);
    let served = Served::new(&server).await;
    let many_words: Vec<String> = (0..1000).map(|i| format!("word{i}")).collect();
    let many_ids: Vec<u32> = (0..100_000).map(|i| i % 2048).collect();
    let table: &[(&str, Vec<Value>)] = &[
        ("n", vec![json!(0), json!(-1), json!(10_000), json!(i64::MAX)]),
        ("temperature", vec![json!(-0.1), json!(2.1), json!(1e300)]),
        ("top_p", vec![json!(0), json!(-0.1), json!(1.1)]),
        ("top_k", vec![json!(-2), json!(i64::MIN), json!(1_i64 << 40)]),
        ("min_p", vec![json!(-0.1), json!(1.1)]),
        ("presence_penalty", vec![json!(-2.1), json!(2.1)]),
        ("frequency_penalty", vec![json!(-2.1), json!(2.1)]),
        ("repetition_penalty", vec![json!(0), json!(-1)]),
        ("max_tokens", vec![json!(0), json!(-1), json!(2048), json!(i64::MAX)]),
        ("min_tokens", vec![json!(-1), json!(4), json!(1_000_000_000_000_i64)]),
        ("logprobs", vec![json!(-2), json!(21), json!(1_000_000)]),
        ("prompt_logprobs", vec![json!(-2), json!(21), json!(1_000_000)]),
        ("stop", vec![json!(many_words), json!([""]), json!("x".repeat(100_000))]),
        ("stop_token_ids", vec![json!([2048]), json!([-1]), json!(many_ids)]),
        ("logit_bias", vec![json!({"2048": 1}), json!({"-1": 1}), json!({"one": 1}), json!({"1": "much"})]),
        ("allowed_token_ids", vec![json!([]), json!([2048]), json!([-1]), json!(many_ids)]),
        ("bad_words", vec![json!([""]), json!(many_words)]),
        ("priority", vec![json!(1_i64 << 40)]),
        ("cache_salt", vec![json!(""), json!("a/b"), json!("a\u{0}"), json!("x".repeat(200))]),
        ("request_id", vec![json!("x".repeat(10_000))]),
        ("truncate_prompt_tokens", vec![json!(-2), json!(i64::MIN)]),
        ("truncation_side", vec![json!("middle")]),
    ];
    for (field, values) in table {
        for value in values {
            served.refuses_field(field, value).await;
        }
    }
    // vLLM's rule: several greedy answers would all be the same.
    let greedy = json!({"prompt": "a", "n": 2, "temperature": 0});
    served.refuses(COMPLETIONS, greedy.to_string(), 400, "n").await;
    let mut top = chat();
    top["logprobs"] = true.into();
    for wrong in [json!(-2), json!(21), json!("5")] {
        top["top_logprobs"] = wrong;
        served.refuses(CHAT, top.to_string(), 400, "top_logprobs").await;
    }
    for field in ["max_completion_tokens"] {
        for wrong in [json!(0), json!(2048), json!("5")] {
            let mut body = json!({"messages": chat()["messages"]});
            body[field] = wrong;
            served.refuses(CHAT, body.to_string(), 400, field).await;
        }
    }
    served.unharmed().await;
}

#[tokio::test]
async fn invariant_12_prompts_that_cannot_be_served() {
    let server = Server::shared(&[]);
    let served = Served::new(&server).await;
    let refuse = |prompt: Value, names: &'static str| {
        let mut body = completion();
        body["prompt"] = prompt;
        served.refuses(COMPLETIONS, body.to_string(), 400, names)
    };
    refuse(json!(""), "prompt").await;
    refuse(json!([]), "prompt").await;
    refuse(json!([""]), "prompt").await;
    refuse(json!([[]]), "prompt").await;
    refuse(json!(["good", ""]), "prompt").await;
    refuse(json!([2048]), "prompt").await;
    refuse(json!([-1]), "prompt").await;
    refuse(json!([5, 4_294_967_296_u64]), "prompt").await;
    refuse(json!([[5], [2048]]), "prompt").await;
    refuse(json!(vec!["a"; 1025]), "prompt").await;
    refuse(json!(vec![5; 2048]), "2048").await;
    refuse(json!(vec![5; 3_000_000]), "2048").await;
    refuse(json!("word ".repeat(5000)), "2048").await;
    refuse(json!("x".repeat(20_000_000)), "2048").await;
    served.refuses(COMPLETIONS, json!({"max_tokens": 3}).to_string(), 400, "prompt").await;
    served.refuses(COMPLETIONS, json!({"prompt": null}).to_string(), 400, "prompt").await;
    // It fits, but not together with what is asked for.
    let long = json!({"prompt": vec![5; 2000], "max_tokens": 49});
    served.refuses(COMPLETIONS, long.to_string(), 400, "max_tokens").await;
    let fits = json!({"prompt": vec![5; 2000], "max_tokens": 48, "temperature": 0, "ignore_eos": true});
    let answer = http::post(server.http, COMPLETIONS, &fits).await.ok();
    assert_eq!(answer["usage"]["total_tokens"], 2048);
    served.unharmed().await;
}

#[tokio::test]
async fn invariant_12_hostile_conversations() {
    let server = Server::shared(&[]);
    let served = Served::new(&server).await;
    let hello = json!([{"role": "user", "content": "Hello"}]);
    let messages = [
        json!([]),
        json!("Hello"),
        json!({"role": "user", "content": "Hello"}),
        json!([3]),
        json!([null]),
        json!([{}]),
        json!([{"content": "no role"}]),
        json!([{"role": 3, "content": "Hello"}]),
        json!([{"role": "user", "content": 3}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/b.png"}}]}]),
        json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]),
        json!([{"role": "user", "content": [{"type": "text"}]}]),
        json!([{"role": "user", "content": [3]}]),
        json!([{"role": "user", "content": "x".repeat(8_000_000)}]),
    ];
    for bad in messages {
        let body = json!({"messages": bad, "max_tokens": 3});
        let names = if body.to_string().len() > 1_000_000 { "2048" } else { "messages" };
        served.refuses(CHAT, body.to_string(), 400, names).await;
    }
    served.refuses(CHAT, json!({"max_tokens": 3}).to_string(), 400, "messages").await;
    // Templates are code; a client's is not run. Nor may arguments replace what the server passes.
    let kwargs = [
        ("chat_template", json!("{% for i in range(1000000000) %}{% endfor %}"), "chat_template"),
        ("chat_template_kwargs", json!({"messages": "x"}), "chat_template_kwargs"),
        ("chat_template_kwargs", json!({"chat_template": "{{ 1 }}"}), "chat_template"),
        ("chat_template_kwargs", json!({"tokenize": true}), "tokenize"),
        ("chat_template_kwargs", json!("x"), "chat_template_kwargs"),
        ("chat_template_kwargs", json!([1]), "chat_template_kwargs"),
        ("tools", json!("x"), "tools"),
        ("tools", json!([3]), "tools"),
        ("tools", json!([]), "tools"),
        ("documents", json!("x"), "documents"),
    ];
    for (field, value, names) in kwargs {
        let mut body = json!({"messages": hello, "max_tokens": 3});
        body[field] = value;
        if field == "tools" && body["tools"] == json!([]) {
            // Refused by vLLM; an empty list asks for nothing, so both answers are right.
            let response = http::post(server.http, CHAT, &body).await;
            assert!(response.status == 200 || response.status == 400);
            continue;
        }
        served.refuses(CHAT, body.to_string(), 400, names).await;
    }
    let both = json!({
        "messages": [{"role": "assistant", "content": "Once"}],
        "add_generation_prompt": true,
        "continue_final_message": true,
    });
    served.refuses(CHAT, both.to_string(), 400, "continue_final_message").await;
    served.unharmed().await;
}

#[tokio::test]
async fn invariant_9_what_is_not_supported_is_refused_by_name() {
    let server = Server::shared(&[]);
    let served = Served::new(&server).await;
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let both: &[(&str, Value)] = &[
        ("use_beam_search", json!(true)),
        ("length_penalty", json!(0.5)),
        ("kv_transfer_params", json!({"do_remote_decode": true})),
        ("vllm_xargs", json!({"a": 1})),
        ("watermarking", json!(true)),
        ("suffix", json!("the end")),
        ("best_of", json!(3)),
    ];
    for (field, value) in both {
        served.refuses_field(field, value).await;
    }
    let chat_only = [
        ("tools", json!([{"type": "custom", "custom": {"name": "f"}}])),
        ("tool_choice", json!("any")),
        ("tool_choice", json!({"type": "function", "function": {"name": "g"}})),
        ("functions", json!([tool["function"]])),
        ("modalities", json!(["audio"])),
        ("audio", json!({"voice": "alloy", "format": "mp3"})),
    ];
    for (field, value) in chat_only {
        let mut body = chat();
        body[field] = value;
        if field == "tool_choice" {
            body["tools"] = json!([tool]);
        }
        served.refuses(CHAT, body.to_string(), 400, field).await;
    }
    for path in [COMPLETIONS, CHAT] {
        let mut body = if path == CHAT { chat() } else { completion() };
        body["stream_options"] = json!({"include_usage": true});
        served.refuses(path, body.to_string(), 400, "stream_options").await;
    }
    served.unharmed().await;
}

#[tokio::test]
async fn unknown_fields_and_nulls_are_harmless() {
    let server = Server::shared(&[]);
    let mut body = completion();
    for field in
        ["n", "temperature", "top_p", "stop", "seed", "logit_bias", "stream", "user", "logprobs", "suffix"]
    {
        body[field] = Value::Null;
    }
    body["a_field_of_another_server"] = json!({"x": [1, 2]});
    http::post(server.http, COMPLETIONS, &body).await.ok();
    // As in Python, the last of two counts.
    let twice = r#"{"prompt":"Hello","max_tokens":0,"max_tokens":2,"ignore_eos":true}"#;
    let answer = http::send(server.http, Method::POST, COMPLETIONS, &[JSON], twice).await.ok();
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn unknown_models_are_not_found() {
    let server = Server::shared(&[]);
    let served = Served::new(&server).await;
    for model in ["gpt-4", "Pebble", "pebble/", "../pebble", &"x".repeat(10_000)] {
        for mut body in [completion(), chat()] {
            body["model"] = model.into();
            let path = if body.get("messages").is_some() { CHAT } else { COMPLETIONS };
            served.refuses(path, body.to_string(), 404, "model").await;
        }
    }
    let response = http::get(server.http, "/v1/models/gpt-4").await;
    check(&response, 404, "gpt-4", "/v1/models/gpt-4");
    served.unharmed().await;
}
