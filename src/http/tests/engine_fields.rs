//! Fields of requests that reach into the engine: chosen tokens' log-probabilities, patterns that end an output,
//! chunks of several tokens; and the prompt as text.

use serde_json::{Value, json};

use super::*;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn with(mut body: Value, fields: &Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn chat(fields: &Value) -> Value {
    with(json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 6, "seed": 1}), fields)
}

fn completion(fields: &Value) -> Value {
    with(json!({"prompt": "hi", "max_tokens": 6, "seed": 1}), fields)
}

/// The names of alternatives at each position of a chat answer.
fn alternatives(logprobs: &Value) -> Vec<Vec<String>> {
    let positions = logprobs["content"].as_array().unwrap().iter();
    let names = |position: &Value| {
        let top = position["top_logprobs"].as_array().unwrap();
        top.iter().map(|entry| entry["token"].as_str().unwrap().to_owned()).collect()
    };
    positions.map(names).collect()
}

#[tokio::test]
async fn chosen_tokens_and_the_generated_one_have_their_logprobs_told() {
    let server = start(Settings::default()).await;
    for (ids, top) in
        [(json!([500]), json!(5)), (json!([500, 1000, 300]), json!(null)), (json!([300, 300]), json!(0))]
    {
        for generated in [300, 301] {
            let body = chat(&json!({"logprobs": true, "top_logprobs": top, "logprob_token_ids": ids,
                "return_tokens_as_token_ids": true, "allowed_token_ids": [generated]}));
            let mut expected = vec![format!("token_id:{generated}")];
            for id in ids.as_array().unwrap() {
                let name = format!("token_id:{id}");
                if !expected.contains(&name) {
                    expected.push(name);
                }
            }
            let whole = server.post(CHAT, &body).await.json();
            assert_eq!(alternatives(&whole["choices"][0]["logprobs"]), vec![expected.clone(); 6], "{whole}");
            let events = server.post(CHAT, &with(body, &json!({"stream": true}))).await.events();
            let told = events.iter().map(|event| &event["choices"][0]["logprobs"]).filter(|l| !l.is_null());
            let told: Vec<_> = told.flat_map(alternatives).collect();
            assert_eq!(told, vec![expected; 6]);
        }
    }
    let body =
        completion(&json!({"logprobs": 5, "logprob_token_ids": [500], "return_tokens_as_token_ids": true,
        "allowed_token_ids": [300]}));
    let answer = server.post(COMPLETIONS, &body).await.json();
    let top = &answer["choices"][0]["logprobs"]["top_logprobs"];
    assert_eq!(top.as_array().unwrap().len(), 6);
    for position in top.as_array().unwrap() {
        let names: Vec<_> = position.as_object().unwrap().keys().collect();
        assert_eq!(names, ["token_id:300", "token_id:500"], "{answer}");
    }
}

#[tokio::test]
async fn chosen_tokens_that_cannot_be_told_are_refused() {
    let server = start(Settings::default()).await;
    let many: Vec<u32> = (0..129).collect();
    for (fields, param) in [
        (json!({"logprob_token_ids": [5]}), "logprob_token_ids"),
        (json!({"logprob_token_ids": [], "logprobs": 1}), "logprob_token_ids"),
        (json!({"logprob_token_ids": many, "logprobs": 1}), "logprob_token_ids"),
        (json!({"logprob_token_ids": [VOCAB_SIZE], "logprobs": 1}), "logprob_token_ids"),
        (json!({"logprob_token_ids": [-1], "logprobs": 1}), "logprob_token_ids"),
        (json!({"logprob_token_ids": 5, "logprobs": 1}), "logprob_token_ids"),
        (
            json!({"logprob_token_ids": [5], "logprobs": 1, "echo": true, "max_tokens": 0}),
            "logprob_token_ids",
        ),
        (json!({"repetition_detection": {"max_pattern_size": 3}}), "repetition_detection"),
        (json!({"repetition_detection": {"max_pattern_size": 3, "min_count": 1}}), "repetition_detection"),
        (json!({"repetition_detection": {"max_pattern_size": -1}}), "repetition_detection"),
        (
            json!({"repetition_detection": {"max_pattern_size": 3, "min_pattern_size": 4, "min_count": 2}}),
            "repetition_detection",
        ),
        (json!({"repetition_detection": {"max_pattern_size": 5000, "min_count": 2}}), "repetition_detection"),
        (json!({"repetition_detection": 3}), "repetition_detection"),
        (json!({"stream_interval": 0}), "stream_interval"),
        (json!({"stream_interval": "2"}), "stream_interval"),
        (json!({"return_prompt_text": true}), "return_prompt_text"),
        (json!({"return_token_offsets": true}), "return_token_offsets"),
    ] {
        let answer = server.post(COMPLETIONS, &completion(&fields)).await;
        assert_eq!(answer.error(), (400, param.to_owned()), "{fields}");
    }
    let off = json!({"repetition_detection": {}, "stream_interval": 1, "return_prompt_text": false});
    assert_eq!(server.post(COMPLETIONS, &completion(&off)).await.status, 200);
}

#[tokio::test]
async fn an_output_that_goes_round_in_circles_ends() {
    // One token: whatever comes, comes again.
    let server = start(Settings { vocab: 300..301, ..Settings::default() }).await;
    let detection = json!({"max_pattern_size": 4, "min_pattern_size": 2, "min_count": 3});
    for (min_tokens, expected) in [(0, 6), (9, 9)] {
        let fields = json!({"repetition_detection": detection, "max_tokens": 30, "min_tokens": min_tokens,
            "return_token_ids": true});
        let answer = server.post(COMPLETIONS, &completion(&fields)).await.json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["token_ids"].as_array().unwrap().len(), expected, "{answer}");
        assert_eq!(choice["finish_reason"], "repetition");
        assert_eq!(choice["stop_reason"], "repetition_detected");
        let streamed = chat(&with(fields, &json!({"stream": true})));
        let events = server.post(CHAT, &streamed).await.events();
        let end = &events.last().unwrap()["choices"][0];
        assert_eq!(
            (&end["finish_reason"], &end["stop_reason"]),
            (&json!("repetition"), &json!("repetition_detected"))
        );
    }
    let whole = completion(&json!({"repetition_detection": detection, "max_tokens": 5}));
    let answer = server.post(COMPLETIONS, &whole).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn chunks_have_as_many_tokens_as_asked_for() {
    let cost = Some(StepCost { step_us: 1000.0, token_us: 0.0, sleep: true });
    let server = start(Settings { cost, ..Settings::default() }).await;
    let tokens = |events: &[Value]| -> Vec<usize> {
        events.iter().map(|e| e["choices"][0]["token_ids"].as_array().map_or(0, Vec::len)).collect()
    };
    for (interval, ignored) in
        [(1, json!({})), (4, json!({})), (7, json!({"stop": ["never said"]})), (1000, json!({}))]
    {
        let fields = with(json!({"max_tokens": 40, "stream": true, "return_token_ids": true}), &ignored);
        let plain = server.post(COMPLETIONS, &completion(&fields)).await.events();
        let body = completion(&with(fields, &json!({"stream_interval": interval})));
        let events = server.post(COMPLETIONS, &body).await.events();
        let counts = tokens(&events);
        // A reader that is slow gets more at once.
        let middle = &counts[1..counts.len().max(2) - 1];
        assert!(counts[0] >= 1 && middle.iter().all(|count| *count >= interval), "{interval}: {counts:?}");
        assert_eq!(counts.iter().sum::<usize>(), 40);
        let text = |events: &[Value]| -> String {
            events.iter().map(|event| event["choices"][0]["text"].as_str().unwrap()).collect()
        };
        assert_eq!(text(&events), text(&plain));
    }
}

#[tokio::test]
async fn the_prompt_of_a_chat_is_told_as_text() {
    let server = start(Settings::default()).await;
    let expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let body = chat(&json!({"return_prompt_text": true, "n": 2, "temperature": 1.0}));
    let whole = server.post(CHAT, &body).await.json();
    assert_eq!(whole["prompt_text"], expected);
    let events = server.post(CHAT, &with(body, &json!({"stream": true}))).await.events();
    for (at, event) in events.iter().enumerate() {
        let begins = event["choices"][0]["delta"].get("role").is_some();
        assert_eq!(event.get("prompt_text").is_some(), begins, "chunk {at}: {event}");
        assert!(!begins || event["prompt_text"] == expected);
    }
}
