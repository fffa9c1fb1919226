//! `/generative_scoring` and `/invocations`.

use serde_json::json;

use super::*;

fn body(fields: Value) -> Value {
    let mut body =
        json!({"query": "The cat", "items": [" sat", " ran away"], "label_token_ids": [500, 600, 700]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn each_item_has_a_score() {
    let server = start(Settings::default()).await;
    let answer = server.post("/generative_scoring", &body(json!({"apply_softmax": false}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let scored = answer.json();
    assert!(scored["id"].as_str().unwrap().starts_with("generative-scoring-"));
    assert_eq!((&scored["object"], scored["data"].as_array().unwrap().len()), (&json!("list"), 2));
    assert_eq!(scored["usage"]["completion_tokens"], 2);
    for item in scored["data"].as_array().unwrap() {
        assert!((0.0..=1.0).contains(&item["score"].as_f64().unwrap()), "{scored}");
    }
}

#[tokio::test]
async fn what_cannot_be_scored_is_named() {
    let server = start(Settings::default()).await;
    for (fields, param) in [
        (json!({"items": []}), "items"),
        (json!({"items": "one"}), "items"),
        (json!({"items": ["a", 5]}), "items[1]"),
        (json!({"query": ["a"]}), "query"),
        (json!({"query": null}), "query"),
        (json!({"query": "", "items": [""]}), "prompt"),
        (json!({"label_token_ids": null}), "label_token_ids"),
        (json!({"label_token_ids": []}), "label_token_ids"),
        (json!({"label_token_ids": [9_999_999_999u64]}), "label_token_ids"),
        (json!({"label_token_ids": vec![5; 129]}), "label_token_ids"),
    ] {
        let answer = server.post("/generative_scoring", &body(fields.clone())).await;
        assert_eq!(answer.error(), (400, param.into()), "{fields}: {}", answer.text);
        assert!(!answer.text.contains("logprob"), "{}", answer.text);
    }
}

#[tokio::test]
async fn a_body_finds_its_route() {
    let server = start(Settings::default()).await;
    let chat = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "seed": 5});
    let completion = json!({"prompt": "The cat", "max_tokens": 3, "seed": 5});
    for (path, body) in [("/v1/chat/completions", chat), ("/v1/completions", completion)] {
        let (straight, invoked) =
            (server.post(path, &body).await.json(), server.post("/invocations", &body).await.json());
        assert_eq!(straight["choices"], invoked["choices"]);
        assert_eq!(
            straight.as_object().unwrap().keys().collect::<Vec<_>>(),
            invoked.as_object().unwrap().keys().collect::<Vec<_>>()
        );
    }
    let answer = server.post("/invocations", &json!({"input": "x"})).await;
    assert_eq!(answer.error(), (400, "null".into()));
    assert!(answer.text.contains("Cannot find suitable handler"), "{}", answer.text);
}
