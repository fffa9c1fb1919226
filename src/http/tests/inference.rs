//! `/inference/v1/generate`: tokens in, tokens out, the same as the routes with text give.

use serde_json::{Value, json};

use super::*;

async fn open() -> Server {
    let mut settings = Settings::default();
    settings.server.enable_scale_out = true;
    start(settings).await
}

fn body(params: Value) -> Value {
    json!({"token_ids": [300, 301, 302], "sampling_params": params})
}

#[tokio::test]
async fn the_routes_are_closed_unless_enabled() {
    let server = start(Settings::default()).await;
    for path in ["/inference/v1/generate", "/inference/v1/abort_requests"] {
        let answer = server.post(path, &body(json!({}))).await;
        assert_eq!(answer.error(), (403, "null".into()));
        assert_eq!(answer.json()["error"]["type"], "PermissionDeniedError");
        assert!(answer.text.contains("--enable-scale-out"), "{}", answer.text);
    }
}

#[tokio::test]
async fn tokens_are_those_of_a_completion_whole_and_streamed() {
    let server = open().await;
    let params = json!({"n": 2, "seed": 5, "max_tokens": 7, "logprobs": 1, "prompt_logprobs": 0});
    let mut completion = params.clone();
    completion.as_object_mut().unwrap().extend([
        ("prompt".to_owned(), json!([300, 301, 302])),
        ("return_token_ids".to_owned(), json!(true)),
    ]);
    let completion = server.post("/v1/completions", &completion).await.json();
    for mode in ["tokens", "text"] {
        let mut body = body(params.clone());
        body["output_mode"] = mode.into();
        body["request_id"] = "mine".into();
        let answer = server.post("/inference/v1/generate", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let whole = answer.json();
        assert_eq!((&whole["request_id"], &whole["output_mode"]), (&json!("mine"), &json!(mode)));
        assert_eq!(whole["usage"]["total_tokens"], completion["usage"]["total_tokens"]);
        assert_eq!(whole["prompt_logprobs"], completion["choices"][0]["prompt_logprobs"]);
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        let mut events = server.post("/inference/v1/generate", &body).await.events();
        assert_eq!(events.pop().unwrap()["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
        for index in 0..2 {
            let (choice, expected) = (&whole["choices"][index], &completion["choices"][index]);
            assert_eq!(choice["token_ids"], expected["token_ids"]);
            assert_eq!(choice["finish_reason"], "length");
            assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), 7);
            let text = choice.get("text").map(|text| text == &expected["text"]);
            assert_eq!(text, (mode == "text").then_some(true));
            let of = |event: &&Value| event["choices"][0]["index"] == index;
            let chunks: Vec<_> = events.iter().filter(of).map(|event| &event["choices"][0]).collect();
            let pieces = chunks.iter().flat_map(|chunk| chunk["token_ids"].as_array().unwrap().clone());
            assert_eq!(Value::from(pieces.collect::<Vec<_>>()), choice["token_ids"]);
            assert_eq!(chunks.last().unwrap()["finish_reason"], "length");
        }
        assert!(events.iter().all(|event| event["request_id"] == "mine"));
    }
    server.wait_until_idle().await;
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = open().await;
    for (fields, param) in [
        (json!({"token_ids": null}), "token_ids"),
        (json!({"token_ids": []}), "prompt"),
        (json!({"token_ids": [1, -1]}), "token_ids[1]"),
        (json!({"token_ids": [VOCAB_SIZE]}), "prompt"),
        (json!({"output_mode": "derender"}), "output_mode"),
        (json!({"sampling_params": {"top_p": 2}}), "top_p"),
        (json!({"sampling_params": {"best_of": 2}}), "sampling_params.best_of"),
        (
            json!({"sampling_params": {"detokenize": false}, "output_mode": "text"}),
            "sampling_params.detokenize",
        ),
        (json!({"features": {"mm_hashes": {}}}), "features"),
        (json!({"kv_transfer_params": {"do_remote_decode": true}}), "kv_transfer_params"),
        (json!({"stream_options": {"include_usage": true}}), "stream_options"),
    ] {
        let mut body = body(json!({}));
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let answer = server.post("/inference/v1/generate", &body).await;
        assert_eq!(answer.error(), (400, param.into()), "{fields}");
    }
    let aborted = server.post("/inference/v1/abort_requests", &json!({"request_ids": ["none"]})).await;
    assert_eq!(aborted.json(), json!({"num_aborted": 0}));
    let error = server.post("/inference/v1/abort_requests", &json!({})).await.error();
    assert_eq!(error, (400, "request_ids".into()));
}

#[tokio::test]
async fn without_a_limit_tokens_come_until_the_context_is_full() {
    let server = open().await;
    let whole = server.post("/inference/v1/generate", &body(json!({"ignore_eos": true}))).await.json();
    let tokens = whole["choices"][0]["token_ids"].as_array().unwrap();
    assert_eq!(tokens.len() as u32, MAX_MODEL_LEN - 3);
}

#[tokio::test]
async fn logprobs_of_tokens_are_numbers_and_those_of_text_are_names() {
    let server = open().await;
    for (mode, key) in [("tokens", "token_id"), ("text", "token")] {
        for stream in [false, true] {
            let mut body = body(json!({"max_tokens": 1, "ignore_eos": true, "logprobs": 2}));
            body["output_mode"] = mode.into();
            body["stream"] = stream.into();
            let answer = server.post("/inference/v1/generate", &body).await;
            let whole = if stream { answer.events().remove(0) } else { answer.json() };
            let token = &whole["choices"][0]["logprobs"]["content"][0];
            assert!(token.get(key).is_some(), "{whole}");
            // The simulated model has no others; a number is among its own.
            let named = token["top_logprobs"].as_array().unwrap().iter().all(|top| top.get(key).is_some());
            assert!(named, "{whole}");
        }
    }
}
