//! `/v1/chat/completions`: the shape of answers and streams as clients take them apart.

use serde_json::{Value, json};

use crate::http;
use crate::server::Server;

const PATH: &str = "/v1/chat/completions";

fn hello() -> Value {
    json!({"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 40, "temperature": 0})
}

async fn ask(server: &Server, body: &Value) -> Value {
    http::post(server.http, PATH, body).await.ok()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("content")
}

#[tokio::test]
async fn the_shape_of_an_answer() {
    let server = Server::shared(&[]);
    let answer = ask(&server, &hello()).await;
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("chatcmpl-") && id.len() > 14));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "pebble");
    assert!(answer["created"].as_i64().is_some_and(|at| at > 1_700_000_000));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(content(&answer).contains("Pebble"), "{answer}");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice.get("logprobs"), Some(&Value::Null));
    assert!(choice["message"]["tool_calls"].as_array().is_none_or(Vec::is_empty));
    let usage = &answer["usage"];
    assert!(usage["prompt_tokens"].as_u64() > Some(10) && usage["completion_tokens"].as_u64() > Some(3));
}

#[tokio::test]
async fn frames_of_a_stream_are_exact() {
    let server = Server::shared(&[]);
    let mut body = hello();
    let whole = ask(&server, &body).await;
    body["stream_options"] = json!({"include_usage": true});
    let events = http::stream(server.http, PATH, &body).await;
    let (first, rest) = events.split_first().expect("events");
    let (usage, rest) = rest.split_last().expect("events");
    let (last, middle) = rest.split_last().expect("events");
    let mut text = String::new();
    for event in &events {
        assert_eq!(event["object"], "chat.completion.chunk");
        assert_eq!(event["id"], first["id"]);
        assert_eq!(event["model"], "pebble");
        assert!(event["created"].is_i64());
        text.push_str(event["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
    }
    // The role comes first, and alone.
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(first["choices"][0]["finish_reason"], Value::Null);
    for event in middle {
        let choice = &event["choices"][0];
        assert_eq!(choice["finish_reason"], Value::Null);
        assert!(choice["delta"].get("role").is_none(), "{event}");
        assert!(event.get("usage").is_none_or(Value::is_null), "{event}");
    }
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    assert_eq!(usage["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    assert_eq!(text, content(&whole));
}

#[tokio::test]
async fn streams_say_what_whole_answers_say() {
    let server = Server::shared(&[]);
    let questions = [
        "Tell me a story about a fox and a lighthouse.",
        "Repeat: 🦊 é 漢字 ñandú",
        "Spell the word piano.",
        "Extract name and age as JSON: Ann is 7.",
        "",
    ];
    for seed in 0..40 {
        let body = json!({
            "messages": [{"role": "user", "content": questions[seed as usize % questions.len()]}],
            "max_completion_tokens": 50, "temperature": 1.8, "seed": seed, "n": 2, "ignore_eos": seed % 4 == 0,
        });
        let whole = ask(&server, &body).await;
        let mut texts = [String::new(), String::new()];
        let mut ends = [0, 0];
        for event in http::stream(server.http, PATH, &body).await {
            for choice in event["choices"].as_array().expect("choices") {
                let index = choice["index"].as_u64().expect("an index") as usize;
                texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
                ends[index] += usize::from(!choice["finish_reason"].is_null());
            }
        }
        assert_eq!(ends, [1, 1], "seed {seed}");
        for choice in whole["choices"].as_array().expect("choices") {
            let index = choice["index"].as_u64().expect("an index") as usize;
            assert_eq!(choice["message"]["content"], texts[index], "seed {seed}");
        }
    }
}

#[tokio::test]
async fn logprobs_have_one_entry_a_token() {
    let server = Server::shared(&[]);
    let mut body = hello();
    body["logprobs"] = true.into();
    body["top_logprobs"] = 4.into();
    let whole = ask(&server, &body).await;
    let entries = whole["choices"][0]["logprobs"]["content"].as_array().expect("entries");
    assert_eq!(Some(entries.len() as u64), whole["usage"]["completion_tokens"].as_u64());
    let mut bytes = Vec::new();
    for entry in entries {
        assert!(entry["logprob"].as_f64().is_some_and(|lp| lp <= 0.0), "{entry}");
        let top = entry["top_logprobs"].as_array().expect("alternatives");
        assert_eq!(top.len(), 4);
        // Greedy: the best is the one that was taken.
        assert_eq!(top[0]["token"], entry["token"]);
        assert_eq!(top[0]["logprob"], entry["logprob"]);
        let sorted = top.iter().map(|t| t["logprob"].as_f64().expect("a number")).collect::<Vec<_>>();
        assert!(sorted.is_sorted_by(|a, b| a >= b), "{entry}");
        bytes.extend(
            entry["bytes"].as_array().expect("bytes").iter().map(|b| b.as_u64().expect("a byte") as u8),
        );
    }
    let text = String::from_utf8(bytes).expect("the bytes of all tokens are the text");
    assert_eq!(text, format!("{}<|im_end|>", content(&whole)));
    let streamed: Vec<Value> = http::stream(server.http, PATH, &body)
        .await
        .iter()
        .flat_map(|event| event["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(&streamed, entries);
    // No alternatives asked for.
    body.as_object_mut().expect("an object").remove("top_logprobs");
    let plain = ask(&server, &body).await;
    assert_eq!(plain["choices"][0]["logprobs"]["content"][0]["top_logprobs"], json!([]));
}

/// Content comes in many forms; all of these are the same question.
#[tokio::test]
async fn content_in_parts_and_other_roles() {
    let server = Server::shared(&[]);
    let expected = ask(&server, &hello()).await;
    let mut parts = hello();
    parts["messages"][0]["content"] = json!([{"type": "text", "text": "Who are you?"}]);
    assert_eq!(content(&ask(&server, &parts).await), content(&expected));
    let mut named = hello();
    named["messages"][0]["name"] = "ann".into();
    assert_eq!(content(&ask(&server, &named).await), content(&expected));
    let conversation = json!({"messages": [
        {"role": "system", "content": "You are Pebble."},
        {"role": "user", "content": "My dog is called Otis."},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "save_note", "arguments": "{\"content\": \"Otis\"}"}}]},
        {"role": "tool", "tool_call_id": "1", "content": "{\"status\": \"ok\"}"},
        {"role": "assistant", "content": "Noted."},
        {"role": "user", "content": "Thank you."},
    ], "max_tokens": 5});
    ask(&server, &conversation).await;
}

#[tokio::test]
async fn the_last_message_can_be_continued() {
    let server = Server::shared(&[]);
    let whole = ask(&server, &hello()).await;
    let start: String = content(&whole).chars().take(8).collect();
    let body = json!({
        "messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": start}],
        "add_generation_prompt": false, "continue_final_message": true, "max_tokens": 40, "temperature": 0,
    });
    let rest = ask(&server, &body).await;
    assert!(!content(&rest).is_empty());
    let mut echoed = body;
    echoed["echo"] = true.into();
    let echoed = ask(&server, &echoed).await;
    assert_eq!(content(&echoed), format!("{start}{}", content(&rest)));
}

#[tokio::test]
async fn without_max_tokens_the_context_is_the_limit() {
    let server = Server::shared(&["--max-model-len", "100"]);
    let mut body = hello();
    body.as_object_mut().expect("an object").remove("max_tokens");
    body["ignore_eos"] = true.into();
    let answer = ask(&server, &body).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], 100);
}

#[tokio::test]
async fn other_conversations_share_no_state() {
    let server = Server::shared(&[]);
    let secret = json!({"messages": [{"role": "user", "content": "My cat is called Zanzibar."}], "max_tokens": 20, "temperature": 0});
    let question = json!({"messages": [{"role": "user", "content": "What is the name of my cat?"}], "max_tokens": 30, "temperature": 0});
    let before = ask(&server, &question).await;
    ask(&server, &secret).await;
    let after = ask(&server, &question).await;
    assert_eq!(content(&before), content(&after));
}
