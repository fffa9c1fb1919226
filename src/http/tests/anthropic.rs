//! `/v1/messages` over a socket: shapes, the order of events, errors, counting.

use serde_json::{Value, json};

use super::typed_events::parse;
use super::*;

const PATH: &str = "/v1/messages";

/// A short request with these fields.
fn with(fields: Value) -> Value {
    let mut body = json!({
        "model": "pebble", "max_tokens": 6, "seed": 1, "messages": [{"role": "user", "content": "hi"}],
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

async fn create(server: &Server, fields: Value) -> Value {
    let answer = server.post(PATH, &with(fields)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn count(server: &Server, fields: Value) -> u64 {
    let answer = server.post("/v1/messages/count_tokens", &with(fields)).await;
    answer.json()["input_tokens"].as_u64().unwrap_or_else(|| panic!("{}", answer.text))
}

fn tokens(text: &str) -> u64 {
    tokenizer().encode(text, false).unwrap().len() as u64
}

#[tokio::test]
async fn a_whole_message_has_anthropics_fields() {
    let server = start(Settings::default()).await;
    let body = create(&server, json!({"system": "Be brief."})).await;
    let text = &body["content"][0]["text"];
    assert!(!text.as_str().unwrap().is_empty() && body["id"].as_str().unwrap().starts_with("msg_"));
    let prompt =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let expected = json!({
        "id": body["id"], "type": "message", "role": "assistant", "model": "pebble",
        "content": [{"type": "text", "text": text}], "stop_reason": "max_tokens", "stop_sequence": null,
        "usage": {
            "input_tokens": tokens(prompt), "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
            "output_tokens": 6,
        },
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn streams_make_up_the_whole_message() {
    let server = start(Settings::default()).await;
    for fields in [json!({}), json!({"max_tokens": 40}), json!({"stop_sequences": ["e"], "max_tokens": 100})]
    {
        let whole = create(&server, fields.clone()).await;
        let mut fields = fields;
        fields["stream"] = true.into();
        let answer = server.post(PATH, &with(fields.clone())).await;
        assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
        let events = parse(&answer.text);
        let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        assert_eq!(types[..2], ["message_start", "content_block_start"]);
        assert_eq!(types[types.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
        let start = &events[0]["message"];
        assert_eq!((&start["content"], &start["stop_reason"]), (&json!([]), &Value::Null));
        let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
        assert_eq!(text, whole["content"][0]["text"].as_str().unwrap(), "{fields}");
        let end = &events[events.len() - 2];
        assert_eq!(end["delta"]["stop_reason"], whole["stop_reason"]);
        assert_eq!(end["delta"]["stop_sequence"], whole["stop_sequence"]);
        // The second of two requests with one prompt may take it from the cache.
        let sum = |usage: &Value| {
            usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap()
        };
        assert_eq!(sum(&end["usage"]), sum(&whole["usage"]));
        assert_eq!(sum(&start["usage"]), sum(&whole["usage"]));
        assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    }
    let stopped = create(&server, json!({"stop_sequences": ["e"], "max_tokens": 100})).await;
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!("e")));
}

#[tokio::test]
async fn cached_tokens_are_counted_apart() {
    let server = start(Settings::default()).await;
    let long = json!({"system": "Once upon a time there was a pebble on a beach. ".repeat(8)});
    let first = create(&server, long.clone()).await["usage"].clone();
    let second = create(&server, long.clone()).await["usage"].clone();
    assert_eq!(first["cache_read_input_tokens"], 0);
    let cached = second["cache_read_input_tokens"].as_u64().unwrap();
    assert!(cached >= 16, "{second}");
    assert_eq!(second["input_tokens"].as_u64().unwrap() + cached, first["input_tokens"].as_u64().unwrap());
}

#[tokio::test]
async fn blocks_become_the_prompt_that_they_mean() {
    let server = start(Settings::default()).await;
    let turn = |role: &str, content: &str| format!("<|im_start|>{role}\n{content}<|im_end|>\n");
    let open = "<|im_start|>assistant\n";
    let user = || json!({"role": "user", "content": "hi"});
    for (fields, expected) in [
        (json!({}), turn("user", "hi") + open),
        (
            json!({"system": [{"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}},
                           {"type": "text", "text": "B"}]}),
            turn("system", "A\n\nB") + &turn("user", "hi") + open,
        ),
        // What changes with every request of Claude Code is left out.
        (
            json!({"system": [{"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=12ab;"},
                           {"type": "text", "text": "B"}]}),
            turn("system", "B") + &turn("user", "hi") + open,
        ),
        (
            json!({"system": "x-anthropic-billing-header: cch=1;\nB"}),
            turn("system", "B") + &turn("user", "hi") + open,
        ),
        (json!({"system": "x-anthropic-billing-header: cch=1;"}), turn("user", "hi") + open),
        (
            json!({"messages": [user(), {"role": "system", "content": "Note."}, user()]}),
            turn("user", "hi") + &turn("system", "Note.") + &turn("user", "hi") + open,
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}),
            turn("user", "a\nb") + open,
        ),
        // The model goes on with what has been put into its mouth.
        (
            json!({"messages": [user(), {"role": "assistant", "content": "Well, I"}]}),
            turn("user", "hi") + open + "Well, I",
        ),
        (
            json!({"messages": [
            user(),
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "Look:"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
                {"type": "text", "text": "so?"}]}]}),
            turn("user", "hi")
                + &turn(
                    "assistant",
                    "Look:\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>",
                )
                + &turn("tool", "<tool_response>\n42\n</tool_response>")
                + &turn("user", "so?")
                + open,
        ),
        (
            json!({"messages": [
            user(), {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "no", "is_error": true}]},
            {"role": "system", "content": [{"type": "tool_addition", "tool": {"type": "tool_reference", "name": "g"}}]}]}),
            turn("user", "hi")
                + &turn("assistant", "<tool_call>\n{\"name\": \"f\", \"arguments\": {}}\n</tool_call>")
                + &turn("tool", "<tool_response>\nError: no\n</tool_response>")
                + &turn("system", "The tool g is ready.")
                + open,
        ),
    ] {
        assert_eq!(count(&server, fields.clone()).await, tokens(&expected), "{fields}");
        let usage = create(&server, fields.clone()).await["usage"].clone();
        let sum =
            usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
        assert_eq!(sum, tokens(&expected), "{fields}");
    }
    let tool = json!({"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}});
    assert!(count(&server, json!({"tools": [tool]})).await > count(&server, json!({})).await + 20);
    let no_limit = server.post("/v1/messages/count_tokens", &json!({"messages": [user()]})).await;
    assert_eq!(no_limit.json(), json!({"input_tokens": tokens(&(turn("user", "hi") + open))}));
}

/// Of an error in Anthropic's shape: the status, the word and the message.
#[track_caller]
fn error(answer: &Answer) -> (u16, String, String) {
    let body = answer.json();
    assert_eq!(body["type"], "error", "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/json");
    let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
    (answer.status.as_u16(), text("type"), text("message"))
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let server = start(Settings::default()).await;
    let message = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let block = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    for (fields, status, kind, named) in [
        (json!({"messages": null}), 400, "invalid_request_error", "messages: this field is required"),
        (json!({"messages": []}), 400, "invalid_request_error", "messages"),
        (json!({"max_tokens": null}), 400, "invalid_request_error", "max_tokens: this field is required"),
        (json!({"max_tokens": 0}), 400, "invalid_request_error", "max_tokens"),
        (json!({"model": "claude"}), 404, "not_found_error", "claude"),
        (
            json!({"messages": [{"role": "cook", "content": "a"}]}),
            400,
            "invalid_request_error",
            "messages[0].role",
        ),
        (message(json!(5)), 400, "invalid_request_error", "messages[0].content"),
        (block(json!({"type": "image"})), 400, "invalid_request_error", "messages[0].content[0].type"),
        (block(json!({"type": "document"})), 400, "invalid_request_error", "messages[0].content[0].type"),
        (block(json!({"type": "text"})), 400, "invalid_request_error", "messages[0].content[0].text"),
        (
            block(json!({"type": "thinking", "thinking": "a"})),
            400,
            "invalid_request_error",
            "messages[0].content[0]",
        ),
        (json!({"system": 5}), 400, "invalid_request_error", "system: "),
        (json!({"system": [{"type": "image"}]}), 400, "invalid_request_error", "system[0].type"),
        (
            json!({"messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]}),
            400,
            "invalid_request_error",
            "tool_result is missing",
        ),
        (
            json!({"stop_sequences": ["a", "b", "c", "d", "e"]}),
            400,
            "invalid_request_error",
            "stop_sequences",
        ),
        (json!({"temperature": 3}), 400, "invalid_request_error", "temperature"),
        (json!({"thinking": {"type": "deep"}}), 400, "invalid_request_error", "thinking.type"),
        (
            json!({"output_config": {"format": {"type": "xml"}}}),
            400,
            "invalid_request_error",
            "output_config.format.type",
        ),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "s"}]}),
            400,
            "invalid_request_error",
            "tools[0].type",
        ),
        (json!({"tools": [{"name": "f"}]}), 400, "invalid_request_error", "tools[0].input_schema"),
        (json!({"tool_choice": {"type": "any"}}), 400, "invalid_request_error", "tool_choice.type"),
        (
            json!({"tool_choice": {"type": "tool", "name": "f"}}),
            400,
            "invalid_request_error",
            "tool_choice.name",
        ),
        (json!({"mcp_servers": [{"url": "x"}]}), 400, "invalid_request_error", "mcp_servers"),
        (json!({"container": "c"}), 400, "invalid_request_error", "container"),
        (
            json!({"context_management": {"edits": [{"type": "compact"}]}}),
            400,
            "invalid_request_error",
            "context_management",
        ),
    ] {
        let (got, word, message) = error(&server.post(PATH, &with(fields.clone())).await);
        assert_eq!((got, word.as_str()), (status, kind), "{fields}: {message}");
        assert!(message.contains(named), "{fields}: {message}");
    }
    let harmless = json!({
        "metadata": {"user_id": "u"}, "service_tier": "auto", "thinking": {"type": "enabled", "budget_tokens": 2048},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"}, "mcp_servers": [], "never_heard_of": 1, "top_k": 5, "top_p": 0.9,
    });
    create(&server, harmless).await;
    server.wait_until_idle().await;
}

#[tokio::test]
async fn errors_from_everywhere_have_anthropics_shape() {
    let mut settings = Settings { max_num_queued_reqs: 0, ..Settings::default() };
    settings.server.api_keys = vec!["secret".into()];
    settings.server.max_body_bytes = 1000;
    let server = start(settings).await;
    let body = with(json!({})).to_string();
    let ask = async |method: Method, headers: &[(&str, &str)], body: &str| {
        let headers = [&[("content-type", "application/json")], headers].concat();
        server.send(server.request(method, "/v1/messages?beta=true", &headers, body.as_bytes())).await
    };
    let key = [("x-api-key", "secret")];
    for (method, headers, body, status, kind) in [
        (Method::POST, &[][..], body.as_str(), 401, "authentication_error"),
        (Method::POST, &[("x-api-key", "wrong")][..], &body, 401, "authentication_error"),
        (Method::POST, &key[..], "{", 400, "invalid_request_error"),
        (Method::GET, &key[..], "", 405, "invalid_request_error"),
        (Method::POST, &key[..], &" ".repeat(2000), 413, "request_too_large"),
        (Method::POST, &key[..], &body, 503, "overloaded_error"),
        (Method::POST, &[("authorization", "Bearer secret")][..], &body, 503, "overloaded_error"),
    ] {
        let answer = ask(method, headers, body).await;
        let (got, word, _) = error(&answer);
        assert_eq!((got, word.as_str()), (status, kind), "{}", answer.text);
        assert_eq!(answer.headers.contains_key("retry-after"), status == 503);
        assert_eq!(answer.headers.contains_key("allow"), status == 405);
    }
    // Elsewhere they have vLLM's.
    assert_eq!(server.get("/v1/models").await.text, r#"{"error":"Unauthorized"}"#);
}

#[tokio::test]
async fn a_failure_is_an_event() {
    let settings = || Settings {
        failures: SimFailures { row: 10_000, ..SimFailures::default() },
        ..Settings::default()
    };
    let answer = start(settings()).await.post(PATH, &with(json!({"stream": true}))).await;
    let events = parse(&answer.text);
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["error"]["type"]),
        (&json!("error"), &json!("api_error")),
        "{}",
        answer.text
    );
    assert_eq!(error(&start(settings()).await.post(PATH, &with(json!({}))).await).0, 500);
}

#[tokio::test]
async fn silence_is_broken_by_pings() {
    let cost = Some(StepCost { step_us: 400_000.0, token_us: 0.0, sleep: true });
    let mut settings = Settings { cost, ..Settings::default() };
    settings.server.sse_keep_alive_interval = Duration::from_millis(100);
    let server = start(settings).await;
    let answer = server.post(PATH, &with(json!({"max_tokens": 2, "stream": true}))).await;
    let events = parse(&answer.text);
    assert_eq!(events[0], json!({"type": "ping"}));
    assert_eq!(events.last().unwrap()["type"], "message_stop");
}
