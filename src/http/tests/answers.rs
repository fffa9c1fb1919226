//! What the operator wants of all answers.

use serde_json::json;

use super::*;
use crate::config::{AnswerConfig, Fingerprint};

async fn server(answers: AnswerConfig) -> Server {
    let mut settings = Settings::default();
    settings.server.answers = answers;
    start(settings).await
}

/// One request for each of the two APIs.
fn requests(fields: &Value) -> [(&'static str, Value); 2] {
    let mut completion = json!({"prompt": "The cat", "max_tokens": 4, "ignore_eos": true});
    let mut chat =
        json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "ignore_eos": true});
    for (name, value) in fields.as_object().unwrap() {
        completion[name] = value.clone();
        chat[name] = value.clone();
    }
    [("/v1/completions", completion), ("/v1/chat/completions", chat)]
}

#[tokio::test]
async fn usage_can_be_forced_on_every_stream() {
    let server = server(AnswerConfig { force_include_usage: true, ..AnswerConfig::default() }).await;
    for (path, body) in requests(&json!({"stream": true})) {
        let events = server.post(path, &body).await.events();
        assert!(events.iter().all(|event| event["usage"]["total_tokens"].is_u64()), "{path}: {events:?}");
        let last = events.last().unwrap();
        assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(4)));
        assert_eq!(last["system_fingerprint"], fingerprint());
    }
}

#[tokio::test]
async fn answers_can_tell_how_long_they_took() {
    let server = server(AnswerConfig { request_metrics: true, ..AnswerConfig::default() }).await;
    let all =
        ["time_to_first_token_ms", "generation_time_ms", "queue_time_ms", "mean_itl_ms", "tokens_per_second"];
    let told = |metrics: &Value| all.iter().all(|name| metrics[name].as_f64().is_some_and(|ms| ms >= 0.0));
    for (path, body) in requests(&json!({})) {
        let body = server.post(path, &body).await.json();
        assert!(told(&body["metrics"]), "{path}: {body}");
    }
    for (path, body) in requests(&json!({"stream": true, "stream_options": {"include_usage": true}})) {
        let events = server.post(path, &body).await.events();
        let (usage, chunks) = events.split_last().unwrap();
        assert!(told(&usage["metrics"]), "{path}: {usage}");
        assert!(chunks.iter().all(|chunk| chunk.get("metrics").is_none()), "{path}");
    }
    // Of several choices, none could be told from the others.
    for (path, body) in requests(&json!({"n": 2, "temperature": 1})) {
        assert_eq!(server.post(path, &body).await.json()["metrics"], Value::Null, "{path}");
    }
}

#[tokio::test]
async fn tokens_can_be_written_as_ids_for_everybody() {
    let server = server(AnswerConfig { tokens_as_token_ids: true, ..AnswerConfig::default() }).await;
    let [(path, mut body), (chat_path, mut chat)] = requests(&json!({}));
    body["logprobs"] = 1.into();
    chat["logprobs"] = true.into();
    let tokens = &server.post(path, &body).await.json()["choices"][0]["logprobs"]["tokens"];
    assert!(tokens[0].as_str().unwrap().starts_with("token_id:"), "{tokens}");
    let content = &server.post(chat_path, &chat).await.json()["choices"][0]["logprobs"]["content"];
    assert!(content[0]["token"].as_str().unwrap().starts_with("token_id:"), "{content}");
}

#[tokio::test]
async fn the_fingerprint_is_the_operators() {
    for (fingerprint, told) in
        [(Fingerprint::Custom("ours".into()), json!("ours")), (Fingerprint::None, Value::Null)]
    {
        let server = server(AnswerConfig { fingerprint, ..AnswerConfig::default() }).await;
        for (path, body) in requests(&json!({})) {
            assert_eq!(server.post(path, &body).await.json()["system_fingerprint"], told);
        }
        for (path, body) in requests(&json!({"stream": true})) {
            let events = server.post(path, &body).await.events();
            assert_eq!(events.last().unwrap()["system_fingerprint"], told);
        }
    }
}

#[tokio::test]
async fn the_prefix_cache_can_be_left_out_of_the_usage() {
    let server = server(AnswerConfig { prompt_tokens_details: false, ..AnswerConfig::default() }).await;
    let options =
        json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    for ((path, body), (_, stream)) in requests(&json!({})).into_iter().zip(requests(&options)) {
        let usage = &server.post(path, &body).await.json()["usage"];
        assert!(usage["total_tokens"].is_u64() && usage.get("prompt_tokens_details").is_none(), "{usage}");
        for event in server.post(path, &stream).await.events() {
            assert!(event["usage"].get("prompt_tokens_details").is_none(), "{event}");
        }
    }
}

#[tokio::test]
async fn answers_have_the_operators_role() {
    let server = server(AnswerConfig { response_role: "model".into(), ..AnswerConfig::default() }).await;
    let [_, (path, body)] = requests(&json!({}));
    assert_eq!(server.post(path, &body).await.json()["choices"][0]["message"]["role"], "model");
    let [_, (path, body)] = requests(&json!({"stream": true}));
    assert_eq!(server.post(path, &body).await.events()[0]["choices"][0]["delta"]["role"], "model");
    // A message that is continued keeps its own.
    let mut continued = body;
    continued["stream"] = false.into();
    continued["messages"] = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    continued["continue_final_message"] = true.into();
    assert_eq!(server.post(path, &continued).await.json()["choices"][0]["message"]["role"], "assistant");
}
