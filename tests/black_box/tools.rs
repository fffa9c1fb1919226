//! Tool calls, as the demo model makes them (in the format of Hermes) and clients see them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::http;
use crate::server::{Server, run};

const PATH: &str = "/v1/chat/completions";

fn tool(name: &str, description: &str, parameters: &[(&str, &str)]) -> Value {
    let properties: serde_json::Map<_, _> =
        parameters.iter().map(|(name, kind)| (name.to_string(), json!({"type": kind}))).collect();
    let required: Vec<_> = parameters.iter().map(|(name, _)| name).collect();
    json!({"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": required}}})
}

fn weather() -> Value {
    tool("get_weather", "Get the weather in a city", &[("city", "string")])
}

fn timer() -> Value {
    tool("set_timer", "Start a timer", &[("minutes", "integer")])
}

fn body(question: &str, tools: &[Value]) -> Value {
    let messages = json!([{"role": "user", "content": question}]);
    json!({"messages": messages, "tools": tools, "temperature": 0, "max_tokens": 100})
}

async fn ask(server: &Server, body: &Value) -> Value {
    http::post(server.http, PATH, body).await.ok()["choices"][0].clone()
}

/// Names and arguments, the latter read.
#[track_caller]
fn calls(choice: &Value) -> Vec<(String, Value)> {
    let calls = choice["message"]["tool_calls"].as_array().unwrap_or_else(|| panic!("no calls: {choice}"));
    let call = |call: &Value| {
        let id = call["id"].as_str().expect("an id");
        let digits = id.strip_prefix("chatcmpl-tool-").expect("vLLM's prefix");
        assert!(digits.len() == 32 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{id}");
        assert_eq!(call["type"], "function");
        let arguments = call["function"]["arguments"].as_str().expect("a string");
        let name = call["function"]["name"].as_str().expect("a name").to_owned();
        (name, serde_json::from_str(arguments).unwrap_or_else(|e| panic!("{arguments}: {e}")))
    };
    calls.iter().map(call).collect()
}

#[tokio::test]
async fn the_model_calls_of_its_own_accord() {
    let server = Server::shared(&[]);
    for (question, tools, name, arguments) in [
        ("What is the weather in Paris?", vec![weather()], "get_weather", json!({"city": "Paris"})),
        ("Set a timer for 12 minutes.", vec![timer()], "set_timer", json!({"minutes": 12})),
        ("What is the weather in Rome?", vec![weather(), timer()], "get_weather", json!({"city": "Rome"})),
    ] {
        let choice = ask(&server, &body(question, &tools)).await;
        assert_eq!(calls(&choice), [(name.to_owned(), arguments)], "{question}");
        assert_eq!(choice["message"]["content"], Value::Null);
        assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("tool_calls"), &Value::Null));
    }
    // Nothing to call: an answer like any other.
    let choice = ask(&server, &body("Who are you?", &[weather()])).await;
    assert!(choice["message"]["content"].as_str().is_some_and(|text| text.contains("Pebble")), "{choice}");
    assert!(choice["message"].get("tool_calls").is_none() && choice["finish_reason"] == "stop", "{choice}");
}

#[tokio::test]
async fn streamed_calls_have_the_shape_that_clients_need() {
    let server = Server::shared(&[]);
    let mut body = body("What is the weather in Paris?", &[weather()]);
    body["stream_options"] = json!({"include_usage": true});
    let mut events = http::stream(server.http, PATH, &body).await;
    let usage = events.pop().expect("a usage chunk");
    assert_eq!(usage["choices"], json!([]));
    assert!(usage["usage"]["completion_tokens"].as_u64() > Some(5));
    let choices: Vec<_> = events.iter().map(|event| &event["choices"][0]).collect();
    // The role comes first, and alone.
    assert_eq!(choices[0]["delta"], json!({"role": "assistant", "content": ""}));
    // The call begins with index, id, type, name and no arguments.
    let begin = &choices[1]["delta"]["tool_calls"][0];
    let id = begin["id"].as_str().expect("an id");
    let expected = json!({"index": 0, "id": id, "type": "function", "function": {"name": "get_weather", "arguments": ""}});
    assert_eq!(choices[1]["delta"], json!({"tool_calls": [expected]}));
    // Then its arguments, and nothing else.
    let (last, pieces) = choices[2..].split_last().expect("chunks");
    let mut arguments = String::new();
    for piece in pieces {
        let text = piece["delta"]["tool_calls"][0]["function"]["arguments"].as_str().expect("arguments");
        let expected = json!({"tool_calls": [{"index": 0, "function": {"arguments": text}}]});
        assert_eq!(piece["delta"], expected);
        arguments.push_str(text);
    }
    assert_eq!(arguments, r#"{"city": "Paris"}"#);
    // The end is a chunk of its own.
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &json!("tool_calls")));
    assert!(choices[..choices.len() - 1].iter().all(|choice| choice["finish_reason"].is_null()));
    assert!(!events.iter().any(|event| event.to_string().contains("<tool_call>")), "markers leak");
}

#[tokio::test]
async fn streams_say_what_whole_answers_say() {
    let server = Server::shared(&[]);
    let questions = [
        "What is the weather in Oslo?",
        "Set a timer for 7 minutes.",
        "Tell me a story about a fox.",
        "Hello!",
    ];
    for seed in 0..24 {
        let mut body = body(questions[seed % 4], &[weather(), timer()]);
        body["temperature"] = json!(if seed < 8 { 0.7 } else { 1.5 });
        body["seed"] = seed.into();
        body["return_token_ids"] = true.into();
        let whole = ask(&server, &body).await;
        let (mut content, mut calls, mut ids) = (String::new(), Vec::<(String, String)>::new(), Vec::new());
        for event in http::stream(server.http, PATH, &body).await {
            let choice = &event["choices"][0];
            content.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
            ids.extend(choice["token_ids"].as_array().cloned().unwrap_or_default());
            for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
                if let Some(name) = call["function"]["name"].as_str() {
                    calls.push((name.into(), String::new()));
                }
                let arguments = call["function"]["arguments"].as_str().expect("arguments");
                calls[call["index"].as_u64().expect("an index") as usize].1.push_str(arguments);
            }
        }
        assert_eq!(whole["message"]["content"].as_str().unwrap_or_default(), content, "seed {seed}");
        assert_eq!(whole["token_ids"], Value::Array(ids), "seed {seed}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let whole: Vec<_> = whole["message"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|call| (text(&call["function"]["name"]), text(&call["function"]["arguments"])))
            .collect();
        assert_eq!(whole, calls, "seed {seed}");
    }
}

#[tokio::test]
async fn a_call_can_be_demanded() {
    let server = Server::shared(&[]);
    // Not what the model would do by itself.
    for (question, choice, names) in [
        ("Who are you?", json!("required"), &["get_weather", "set_timer"][..]),
        ("Hello!", json!({"type": "function", "function": {"name": "set_timer"}}), &["set_timer"]),
        (
            "What is the weather in Paris?",
            json!({"type": "function", "function": {"name": "set_timer"}}),
            &["set_timer"],
        ),
        (
            "What is the weather in Paris?",
            json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                {"type": "function", "function": {"name": "set_timer"}}]}}),
            &["set_timer"],
        ),
    ] {
        let mut body = body(question, &[weather(), timer()]);
        body["tool_choice"] = choice;
        body["parallel_tool_calls"] = false.into();
        let choice = ask(&server, &body).await;
        let calls = calls(&choice);
        assert_eq!(calls.len(), 1, "{choice}");
        let (name, arguments) = &calls[0];
        assert!(names.contains(&&**name), "{choice}");
        match &**name {
            "set_timer" => assert!(arguments["minutes"].is_i64(), "{choice}"),
            _ => assert!(arguments["city"].is_string(), "{choice}"),
        }
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &Value::Null)
        );
    }
}

#[tokio::test]
async fn a_call_can_be_forbidden() {
    let server = Server::shared(&[]);
    let mut body = body("What is the weather in Paris?", &[weather()]);
    body["tool_choice"] = "none".into();
    let choice = ask(&server, &body).await;
    assert!(choice["message"].get("tool_calls").is_none() && choice["finish_reason"] == "stop", "{choice}");
    assert!(choice["message"]["content"].as_str().is_some_and(|text| !text.is_empty()), "{choice}");
}

#[tokio::test]
async fn results_go_back_to_the_model() {
    let server = Server::shared(&[]);
    let mut body = body("What is the weather in Paris?", &[weather()]);
    let first = http::post(server.http, PATH, &body).await.ok();
    let message = &first["choices"][0]["message"];
    let id = &message["tool_calls"][0]["id"];
    // As the client got it, nulls and all.
    let result = json!({"role": "tool", "tool_call_id": id, "content": "{\"temperature\": 31, \"condition\": \"sunny\"}"});
    body["messages"].as_array_mut().expect("messages").extend([message.clone(), result]);
    let second = http::post(server.http, PATH, &body).await.ok();
    let answer = second["choices"][0]["message"]["content"].as_str().expect("an answer");
    assert!(answer.contains("sunny") && answer.contains("31"), "{answer}");
    // The call goes back as the model wrote it: all of the first prompt and most of the call are cached.
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a number");
    assert!(cached + 16 >= first["usage"]["total_tokens"].as_u64().expect("a number"), "{second}");
}

#[tokio::test]
async fn cut_calls_end_with_length() {
    let server = Server::shared(&[]);
    let mut body = body("What is the weather in Paris?", &[weather()]);
    let whole = ask(&server, &body).await;
    let arguments =
        whole["message"]["tool_calls"][0]["function"]["arguments"].as_str().expect("arguments").to_owned();
    for max_tokens in 1..20 {
        body["max_tokens"] = max_tokens.into();
        let choice = ask(&server, &body).await;
        assert_eq!(choice["finish_reason"], "length");
        match choice["message"]["tool_calls"][0]["function"]["arguments"].as_str() {
            Some(begun) => assert!(arguments.starts_with(begun), "{begun}"),
            None => assert!(
                choice["message"]["content"].as_str().is_some_and(|text| !text.is_empty()),
                "{choice}"
            ),
        }
    }
}

#[test]
fn wrong_parsers_stop_the_start_and_list_the_right_ones() {
    for flag in ["--tool-call-parser", "--reasoning-parser"] {
        let output =
            run(&["serve", "--port", "0", "--grpc-port", "0", flag, "nonsense"], Duration::from_secs(30));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(flag) && told.contains("qwen3"), "{told}");
    }
    let template = "{{ messages[0].content }}";
    let args = [
        "serve",
        "--port",
        "0",
        "--grpc-port",
        "0",
        "--enable-auto-tool-choice",
        "--chat-template",
        template,
    ];
    let output = run(&args, Duration::from_secs(30));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("--tool-call-parser"), "{told}");
}
