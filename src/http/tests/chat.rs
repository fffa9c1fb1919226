//! `/v1/chat/completions`: shapes of answers, streamed and whole.

use serde_json::{Value, json};

use super::*;

/// A short conversation, with these fields.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "pebble", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "seed": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

async fn chat(server: &Server, fields: Value) -> Value {
    let answer = server.post("/v1/chat/completions", &with(fields)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn stream(server: &Server, fields: Value) -> Vec<Value> {
    let mut body = with(fields);
    body["stream"] = true.into();
    server.post("/v1/chat/completions", &body).await.events()
}

fn prompt_tokens(text: &str) -> u64 {
    tokenizer().encode(text, false).unwrap().len() as u64
}

#[tokio::test]
async fn a_whole_answer_has_vllms_fields() {
    let server = start(Settings::default()).await;
    let body = chat(&server, json!({"model": "org/pebble"})).await;
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let content = &body["choices"][0]["message"]["content"];
    assert!(!content.as_str().unwrap().is_empty());
    let prompt_tokens = prompt_tokens("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    let expected = json!({
        "id": body["id"], "object": "chat.completion", "created": body["created"], "model": "pebble",
        "choices": [{
            "index": 0,
            "message": {
                "role": "assistant", "content": content, "refusal": null, "annotations": null, "audio": null,
                "function_call": null, "reasoning": null,
            },
            "logprobs": null, "finish_reason": "length", "stop_reason": null, "token_ids": null,
        }],
        "service_tier": null,
        "system_fingerprint": fingerprint(), "metrics": null,
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": 6, "total_tokens": prompt_tokens + 6,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "prompt_logprobs": null, "prompt_token_ids": null, "prompt_text": null, "kv_transfer_params": null,
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn streams_begin_with_the_role_and_end_with_the_reason() {
    let server = start(Settings::default()).await;
    for n in [1, 3] {
        let whole = chat(&server, json!({"n": n})).await;
        let events = stream(&server, json!({"n": n, "stream_options": {"include_usage": true}})).await;
        let (usage, events) = events.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], 6 * n);
        assert!(events.iter().all(|event| event["object"] == "chat.completion.chunk"));
        assert!(events.iter().all(|event| event.get("usage") == Some(&Value::Null)));
        for index in 0..n {
            let choices: Vec<_> = events
                .iter()
                .map(|event| &event["choices"][0])
                .filter(|choice| choice["index"] == index)
                .collect();
            let first = json!({
                "index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": null,
                "finish_reason": null,
            });
            assert_eq!(*choices[0], first);
            let (last, others) = choices.split_last().unwrap();
            assert_eq!(last["finish_reason"], "length");
            assert_eq!(last.get("stop_reason"), Some(&Value::Null));
            assert!(others.iter().all(|choice| choice["finish_reason"].is_null()));
            assert!(others.iter().all(|choice| choice.get("stop_reason").is_none()));
            let text: String =
                choices.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
            assert_eq!(text, whole["choices"][index as usize]["message"]["content"].as_str().unwrap());
        }
    }
}

#[tokio::test]
async fn logprobs_have_bytes() {
    let server = start(Settings::default()).await;
    let body = chat(&server, json!({"logprobs": true, "top_logprobs": 2})).await;
    let content = body["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    assert_eq!(content.len(), 6);
    let mut text = Vec::new();
    for entry in &content {
        let bytes: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).unwrap();
        assert_eq!(entry["token"].as_str().unwrap().as_bytes(), bytes);
        assert!(entry["logprob"].as_f64().unwrap() <= 0.0);
        assert!(entry["top_logprobs"].as_array().unwrap().len() <= 2);
        text.extend(bytes);
    }
    assert_eq!(text, body["choices"][0]["message"]["content"].as_str().unwrap().as_bytes());
    let none = chat(&server, json!({"logprobs": true})).await;
    assert_eq!(none["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
    let events = stream(&server, json!({"logprobs": true, "top_logprobs": 2})).await;
    let streamed = events.iter().filter_map(|event| event["choices"][0]["logprobs"].get("content"));
    let streamed: Vec<_> = streamed.flat_map(|content| content.as_array().unwrap().clone()).collect();
    assert_eq!(streamed, content);
}

#[tokio::test]
async fn token_ids_and_prompt_logprobs_are_beside_the_choices() {
    let server = start(Settings::default()).await;
    let fields = json!({"return_token_ids": true, "prompt_logprobs": 0});
    let body = chat(&server, fields.clone()).await;
    let ids = body["prompt_token_ids"].as_array().unwrap();
    assert_eq!(body["prompt_logprobs"].as_array().unwrap().len(), ids.len());
    assert_eq!(body["choices"][0]["token_ids"].as_array().unwrap().len(), 6);
    let events = stream(&server, fields).await;
    assert_eq!(events[0]["prompt_token_ids"], body["prompt_token_ids"]);
    assert_eq!(events[0]["prompt_logprobs"], body["prompt_logprobs"]);
    let streamed = events.iter().filter_map(|event| event["choices"][0]["token_ids"].as_array());
    let streamed: Vec<_> = streamed.flatten().cloned().collect();
    assert_eq!(Value::Array(streamed), body["choices"][0]["token_ids"]);
}

#[tokio::test]
async fn a_final_message_can_be_continued_and_echoed() {
    let server = start(Settings::default()).await;
    let fields = json!({
        "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello, I"}],
        "continue_final_message": true, "add_generation_prompt": false, "echo": true,
    });
    let body = chat(&server, fields.clone()).await;
    let content = body["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.starts_with("Hello, I"), "{content}");
    let prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello, I";
    assert_eq!(body["usage"]["prompt_tokens"], prompt_tokens(prompt));
    let events = stream(&server, fields).await;
    assert_eq!(events[1]["choices"][0]["delta"], json!({"content": "Hello, I"}));
}

#[tokio::test]
async fn what_other_servers_got_wrong() {
    let server = start(Settings::default()).await;
    for messages in [
        json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]),
        json!([{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]),
        json!([
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "42"},
        ]),
        json!([{"role": "user", "content": "hi", "name": "me", "unknown": {"a": []}}]),
    ] {
        chat(&server, json!({"messages": messages})).await;
    }
    let nulls = json!({
        "temperature": null, "stop": null, "n": null, "top_logprobs": null, "tools": null, "tool_choice": null,
        "response_format": null, "stream": null, "stream_options": null, "logit_bias": null, "seed": null,
        "max_tokens": null, "max_completion_tokens": 2, "user": null, "suffix": null,
    });
    let body = chat(&server, nulls).await;
    assert_eq!(body["usage"]["completion_tokens"], 2);
    chat(&server, json!({"user": "u", "store": true, "metadata": {"a": "b"}, "never_heard_of": [1]})).await;
    chat(&server, json!({"response_format": {"type": "text"}, "modalities": ["text"]})).await;
}

#[tokio::test]
async fn tools_are_shown_to_the_model() {
    let server = start(Settings::default()).await;
    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {}}}]);
    let with_tools = chat(&server, json!({"tools": tools, "tool_choice": "none"})).await;
    let without = chat(&server, json!({})).await;
    let tokens = |body: &Value| body["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&with_tools) > tokens(&without) + 10);
}

#[tokio::test]
async fn without_a_limit_the_context_is_the_limit() {
    let server = start(Settings::default()).await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "ignore_eos": true});
    let usage = server.post("/v1/chat/completions", &body).await.json()["usage"].clone();
    assert_eq!(usage["total_tokens"], MAX_MODEL_LEN);
}

#[tokio::test]
async fn a_batch_answers_each_conversation_as_if_alone() {
    let server = start(Settings::default()).await;
    let conversation = |text: &str| json!([{"role": "user", "content": text}]);
    let fields = json!({"n": 2, "temperature": 1.0, "echo": false, "logprobs": true});
    let mut body = with(fields.clone());
    body["messages"] = json!([conversation("hi"), conversation("ho"), conversation("hi")]);
    let answer = server.post("/v1/chat/completions/batch", &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let batch = answer.json();
    let choices = batch["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    let mut total = 0;
    for (i, text) in ["hi", "ho", "hi"].iter().enumerate() {
        let mut body = with(fields.clone());
        body["messages"] = conversation(text);
        let alone = server.post("/v1/chat/completions", &body).await.json();
        total += alone["usage"]["total_tokens"].as_u64().unwrap();
        for j in 0..2 {
            let choice = &choices[2 * i + j];
            assert_eq!(choice["index"], 2 * i + j);
            assert_eq!(choice["message"], alone["choices"][j]["message"]);
            assert_eq!(choice["logprobs"], alone["choices"][j]["logprobs"]);
        }
    }
    assert_eq!(batch["usage"]["total_tokens"], total);
    for (fields, param) in [
        (json!({"messages": []}), "messages"),
        (json!({"messages": [[]]}), "messages[0]"),
        (json!({"messages": [{"role": "user"}]}), "messages[0]"),
        (json!({"messages": [conversation("hi"), [{"role": "user"}]]}), "messages[1][0].content"),
        (json!({"messages": [conversation("hi")], "stream": true}), "stream"),
        (json!({"messages": [conversation("hi")], "prompt_logprobs": 1}), "prompt_logprobs"),
    ] {
        let error = server.post("/v1/chat/completions/batch", &with(fields)).await.error();
        assert_eq!(error, (400, param.into()));
    }
    server.wait_until_idle().await;
}
