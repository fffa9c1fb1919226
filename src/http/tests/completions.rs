//! `/v1/completions`: shapes of answers, streamed and whole.

use serde_json::{Value, json};

use super::*;

async fn complete(server: &Server, fields: Value) -> Value {
    let answer = server.post("/v1/completions", &with(fields)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

async fn stream(server: &Server, fields: Value) -> Vec<Value> {
    let mut body = with(fields);
    body["stream"] = true.into();
    server.post("/v1/completions", &body).await.events()
}

/// A short prompt, with these fields.
fn with(fields: Value) -> Value {
    let mut body = json!({"model": "pebble", "prompt": "The cat", "max_tokens": 8, "seed": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn text_of(events: &[Value], index: usize) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    choices.filter(|choice| choice["index"] == index).map(|choice| choice["text"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_whole_answer_has_vllms_fields() {
    let server = start(Settings::default()).await;
    let body = complete(&server, json!({})).await;
    assert!(body["id"].as_str().unwrap().starts_with("cmpl-"));
    let text = &body["choices"][0]["text"];
    assert!(!text.as_str().unwrap().is_empty());
    let prompt_tokens = tokenizer().encode("The cat", true).unwrap().len();
    let expected = json!({
        "id": body["id"], "object": "text_completion", "created": body["created"], "model": "pebble",
        "choices": [{
            "index": 0, "text": text, "logprobs": null, "finish_reason": "length", "stop_reason": null,
            "token_ids": null, "prompt_logprobs": null, "prompt_token_ids": null,
        }],
        "service_tier": null,
        "system_fingerprint": fingerprint(), "metrics": null,
        "usage": {
            "prompt_tokens": prompt_tokens, "completion_tokens": 8, "total_tokens": prompt_tokens + 8,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "kv_transfer_params": null,
    });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn frames_are_exact() {
    let server = start(Settings::default()).await;
    let body = with(json!({"stream": true, "max_tokens": 1, "request_id": "x\"y"}));
    let answer = server.post("/v1/completions", &body).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    let whole = complete(&server, json!({"max_tokens": 1})).await;
    let text = serde_json::to_string(&whole["choices"][0]["text"]).unwrap();
    let created = &answer.events()[0]["created"];
    let head = format!(
        r#"data: {{"id":"cmpl-x\"y","object":"text_completion","created":{created},"model":"pebble","choices":[{{"index":0,"text":"#
    );
    let end = format!(
        r#""finish_reason":"length","stop_reason":null}}],"system_fingerprint":"{}"}}"#,
        fingerprint()
    );
    // The end may come with the token or after it.
    let together = format!("{head}{text},\"logprobs\":null,{end}\n\ndata: [DONE]\n\n");
    let apart = format!(
        "{head}{text},\"logprobs\":null,\"finish_reason\":null,\"stop_reason\":null}}]}}\n\n\
         {head}\"\",\"logprobs\":null,{end}\n\ndata: [DONE]\n\n"
    );
    assert!(answer.text == together || answer.text == apart, "{}\n{together}", answer.text);
}

#[tokio::test]
async fn streams_say_the_same_as_whole_answers() {
    let server = start(Settings::default()).await;
    for fields in [
        json!({}),
        json!({"n": 3}),
        json!({"prompt": ["The cat", "A dog", "One"], "n": 2, "logprobs": 2}),
        json!({"prompt": [5, 6, 7], "echo": true}),
        json!({"prompt": [[300, 301], [400]], "echo": true, "logprobs": 1}),
        json!({"logprobs": 0, "return_tokens_as_token_ids": true}),
    ] {
        let whole = complete(&server, fields.clone()).await;
        let mut streamed = fields.clone();
        streamed["stream_options"] = json!({"include_usage": true});
        let events = stream(&server, streamed).await;
        let (usage, events) = events.split_last().unwrap();
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        assert_eq!(usage["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
        for choice in whole["choices"].as_array().unwrap() {
            let index = choice["index"].as_u64().unwrap() as usize;
            assert_eq!(text_of(events, index), choice["text"].as_str().unwrap(), "{fields}");
            let of_choice: Vec<_> =
                events.iter().filter(|event| event["choices"][0]["index"] == index).collect();
            let last = &of_choice.last().unwrap()["choices"][0];
            assert_eq!(last["finish_reason"], choice["finish_reason"]);
            for (name, expected) in choice["logprobs"].as_object().into_iter().flatten() {
                let parts = of_choice.iter().filter_map(|event| event["choices"][0]["logprobs"].get(name));
                let joined: Vec<_> = parts.flat_map(|part| part.as_array().unwrap().clone()).collect();
                assert_eq!(&Value::Array(joined), expected, "{name} of {fields}");
            }
        }
        assert!(events.iter().all(|event| event.get("usage") == Some(&Value::Null)));
        let fingerprints = events.iter().filter(|event| event.get("system_fingerprint").is_some()).count();
        assert_eq!(fingerprints, whole["choices"].as_array().unwrap().len());
    }
}

#[tokio::test]
async fn logprobs_have_four_equal_lists() {
    let server = start(Settings::default()).await;
    for (logprobs, most) in [(0, 1), (2, 3)] {
        let body = complete(&server, json!({"logprobs": logprobs})).await;
        let l = &body["choices"][0]["logprobs"];
        let list = |name: &str| l[name].as_array().unwrap().clone();
        let tokens = list("tokens");
        assert_eq!(tokens.len(), 8);
        for name in ["token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(name).len(), 8, "{name}");
        }
        let mut offset = 0;
        for (i, token) in tokens.iter().enumerate() {
            let token = token.as_str().unwrap();
            assert_eq!(list("text_offset")[i], offset);
            offset += token.chars().count();
            let top = list("top_logprobs")[i].as_object().unwrap().clone();
            assert!((1..=most).contains(&top.len()), "{top:?}");
            assert_eq!(top[token], list("token_logprobs")[i]);
        }
        let joined: String = tokens.iter().map(|token| token.as_str().unwrap()).collect();
        assert_eq!(joined, body["choices"][0]["text"].as_str().unwrap());
    }
}

#[tokio::test]
async fn echo_with_no_tokens_scores_the_prompt() {
    let server = start(Settings::default()).await;
    let body = complete(&server, json!({"max_tokens": 0, "echo": true, "logprobs": 1})).await;
    let choice = &body["choices"][0];
    assert_eq!(choice["text"], "The cat");
    assert_eq!(choice["finish_reason"], "length");
    let scores = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    let prompt_tokens = tokenizer().encode("The cat", true).unwrap().len();
    assert_eq!(scores.len(), prompt_tokens);
    assert!(scores[0].is_null() && scores[1].is_number());
    assert!(choice["logprobs"]["top_logprobs"][0].is_null());
    assert_eq!(body["usage"]["completion_tokens"], 0);
    let events = stream(
        &server,
        json!({"max_tokens": 0, "echo": true, "logprobs": 1, "stream_options": {"include_usage": true}}),
    )
    .await;
    assert_eq!(text_of(&events, 0), "The cat");
    assert_eq!(events[0]["choices"][0]["logprobs"], choice["logprobs"]);
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 0);
    let refused = server.post("/v1/completions", &with(json!({"max_tokens": 0}))).await;
    assert_eq!(refused.error(), (400, "max_tokens".into()));
}

#[tokio::test]
async fn choices_are_numbered_by_prompt_and_then_by_n() {
    let server = start(Settings::default()).await;
    let body = complete(
        &server,
        json!({"prompt": ["a", "b"], "n": 2, "echo": true, "max_tokens": 3, "return_token_ids": true}),
    )
    .await;
    let choices = body["choices"].as_array().unwrap();
    let starts: Vec<_> = choices.iter().map(|choice| &choice["text"].as_str().unwrap()[..1]).collect();
    assert_eq!(starts, ["a", "a", "b", "b"]);
    assert_eq!(
        choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_eq!(body["usage"]["completion_tokens"], 12);
    assert_eq!(body["usage"]["prompt_tokens"], 2);
    for choice in choices {
        assert_eq!(choice["token_ids"].as_array().unwrap().len(), 3);
        assert_eq!(choice["prompt_token_ids"].as_array().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn stop_reasons_tell_what_stopped() {
    let server = start(Settings::default()).await;
    let whole = complete(&server, json!({"return_token_ids": true})).await;
    let choice = &whole["choices"][0];
    let third = choice["token_ids"][2].as_u64().unwrap();
    let by_token = complete(&server, json!({"stop_token_ids": [third], "return_token_ids": true})).await;
    let by_token = &by_token["choices"][0];
    assert_eq!((&by_token["finish_reason"], &by_token["stop_reason"]), (&json!("stop"), &json!(third)));
    assert_eq!(by_token["token_ids"].as_array().unwrap().len(), 3);
    let names = tokenizer();
    let text = names.token_text(third as u32);
    let stop = text.trim();
    let by_text = complete(&server, json!({"stop": [stop]})).await;
    let by_text = &by_text["choices"][0];
    assert_eq!((&by_text["finish_reason"], &by_text["stop_reason"]), (&json!("stop"), &json!(stop)));
    assert!(!by_text["text"].as_str().unwrap().contains(stop));
    let kept = complete(&server, json!({"stop": stop, "include_stop_str_in_output": true})).await;
    assert!(kept["choices"][0]["text"].as_str().unwrap().ends_with(stop));
    let events = stream(&server, json!({"stop": stop})).await;
    assert_eq!(text_of(&events, 0), by_text["text"].as_str().unwrap());
    assert_eq!(events.last().unwrap()["choices"][0]["stop_reason"], stop);
}

#[tokio::test]
async fn the_models_own_end_has_no_stop_reason() {
    // A vocabulary of nothing but the end.
    let server = start(Settings { vocab: EOS..EOS + 1, ..Settings::default() }).await;
    let choice = &complete(&server, json!({})).await["choices"][0];
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &Value::Null));
    assert_eq!(choice["text"], "");
    let forced = complete(&server, json!({"ignore_eos": true})).await;
    assert_eq!(forced["usage"]["completion_tokens"], 8);
}

#[tokio::test]
async fn prompt_logprobs_begin_with_null() {
    let server = start(Settings::default()).await;
    let body = complete(&server, json!({"prompt": [300, 301, 302], "prompt_logprobs": 2})).await;
    let entries = body["choices"][0]["prompt_logprobs"].as_array().unwrap().clone();
    assert_eq!(entries.len(), 3);
    assert!(entries[0].is_null());
    for (entry, id) in entries[1..].iter().zip([301, 302]) {
        let token = &entry[id.to_string()];
        assert!(token["logprob"].is_number() && token["rank"].is_u64(), "{entry}");
        assert_eq!(token["decoded_token"], tokenizer().token_text(id));
        assert!(entry.as_object().unwrap().len() <= 3);
    }
    let events = stream(&server, json!({"prompt": [300, 301, 302], "prompt_logprobs": 2})).await;
    assert_eq!(events[0]["choices"][0]["prompt_logprobs"], Value::Array(entries));
    assert!(events[1..].iter().all(|event| event["choices"][0].get("prompt_logprobs").is_none()));
}

#[tokio::test]
async fn usage_comes_when_asked_for() {
    let server = start(Settings::default()).await;
    let events = stream(&server, json!({})).await;
    assert!(events.iter().all(|event| event.get("usage").is_none()));
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let events = stream(&server, json!({"stream_options": options})).await;
    let tokens: Vec<_> =
        events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert!(tokens.is_sorted() && tokens.last() == Some(&8), "{tokens:?}");
    let options = json!({"include_usage": false, "continuous_usage_stats": true});
    let events = stream(&server, json!({"stream_options": options})).await;
    assert!(events.iter().all(|event| event.get("usage").is_none()));
}

#[tokio::test]
async fn prompts_are_truncated_on_the_side_asked_for() {
    let server = start(Settings::default()).await;
    let ids = |fields: Value| {
        let server = &server;
        async move {
            let mut body = json!({"prompt": [1, 2, 3, 4, 5], "return_token_ids": true});
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            complete(server, body).await["choices"][0]["prompt_token_ids"].clone()
        }
    };
    assert_eq!(ids(json!({"truncate_prompt_tokens": 2})).await, json!([4, 5]));
    assert_eq!(ids(json!({"truncate_prompt_tokens": 2, "truncation_side": "right"})).await, json!([1, 2]));
    assert_eq!(ids(json!({"truncate_prompt_tokens": 9})).await, json!([1, 2, 3, 4, 5]));
    let long = "the cat sat on the mat. ".repeat(20_000);
    let tail =
        complete(&server, json!({"prompt": long, "truncate_prompt_tokens": -1, "return_token_ids": true}))
            .await;
    let kept = tail["choices"][0]["prompt_token_ids"].as_array().unwrap();
    assert_eq!(kept.len(), MAX_MODEL_LEN as usize - 8);
    let all = tokenizer().encode(&long, true).unwrap();
    assert_eq!(json!(kept), json!(all[all.len() - kept.len()..]));
}

#[tokio::test]
async fn cached_prompt_tokens_are_counted() {
    let server = start(Settings::default()).await;
    let prompt: Vec<u32> = (300..364).collect();
    let first = complete(&server, json!({"prompt": prompt})).await;
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    let again = complete(&server, json!({"prompt": prompt})).await;
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached >= 32 && cached % 16 == 0, "{cached}");
    let salted = complete(&server, json!({"prompt": prompt, "cache_salt": "mine"})).await;
    assert_eq!(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
}
