//! `/generative_scoring`: the scores are the model's own probabilities.

use serde_json::{Value, json};

use crate::http;
use crate::server::Server;

async fn scores(server: &Server, fields: Value) -> Vec<f64> {
    let mut body =
        json!({"query": "The cat", "items": [" sat", " ran away"], "label_token_ids": [500, 600, 700]});
    body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
    let answer = http::post(server.http, "/generative_scoring", &body).await.ok();
    let data = answer["data"].as_array().expect("a list").iter();
    data.map(|item| item["score"].as_f64().expect("a number")).collect()
}

async fn tokens(server: &Server, text: &str) -> Vec<Value> {
    let body = json!({"prompt": text, "add_special_tokens": false});
    let answer = http::post(server.http, "/tokenize", &body).await.ok();
    answer["tokens"].as_array().expect("a list").clone()
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-5
}

#[tokio::test]
async fn labels_are_as_likely_as_completions_say() {
    let server = Server::shared(&[]);
    let (query, items) = (
        tokens(&server, "The cat").await,
        [tokens(&server, " sat").await, tokens(&server, " ran away").await],
    );
    let of_all = scores(&server, json!({"apply_softmax": false})).await;
    for (item, score) in items.iter().zip(&of_all) {
        let prompt = [query.clone(), item.clone()].concat();
        let body = json!({"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 3,
            "logprob_token_ids": [500, 600, 700], "return_tokens_as_token_ids": true});
        let completion = http::post(server.http, "/v1/completions", &body).await.ok();
        let logprob = completion["choices"][0]["logprobs"]["top_logprobs"][0]["token_id:500"].as_f64();
        assert!(close(logprob.expect("told").exp(), *score), "{completion} {score}");
    }
    // Among the labels, the scores of all of them make 1.
    let mut sum = 0.0;
    for labels in [[500, 600, 700], [600, 700, 500], [700, 500, 600]] {
        sum += scores(&server, json!({"label_token_ids": labels})).await[0];
    }
    assert!(close(sum, 1.0), "{sum}");
    // Tokens do as well as texts, and the item can go first.
    let texts = scores(&server, json!({})).await;
    assert_eq!(scores(&server, json!({"query": query, "items": items})).await, texts);
    let turned = json!({"query": " sat", "items": ["The cat"], "item_first": true});
    assert_eq!(scores(&server, turned).await, texts[..1]);
}
