//! Bodies broken at random, for every route that takes one: whatever comes, the answer is one that the document
//! allows, and the server goes on.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Map, json};

use super::*;
use crate::http::openapi::document;

const ROUNDS: u64 = 40;

/// Something for each kind of route; what a route does not know it ignores or refuses.
fn bodies() -> Vec<Value> {
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}});
    vec![
        json!({"prompt": "a", "max_tokens": 2, "logprobs": 1, "stop": ["x"], "logit_bias": {"5": 1}}),
        json!({"messages": messages, "max_tokens": 2, "tools": [tool], "stream": true, "stream_options": {"include_usage": true}}),
        json!({"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 2, "store": false, "text": {"format": {"type": "text"}}}),
        json!({"tokens": [300, 301], "model": "pebble"}),
    ]
}

/// A value that nobody expects.
fn odd(rng: &mut StdRng) -> Value {
    let odd = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0),
        json!(1e308),
        json!(0.5),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}"),
        json!("🦊".repeat(40)),
        json!([]),
        json!([null]),
        json!([[[[]]]]),
        json!({}),
        json!({"": {"": null}}),
    ];
    odd[rng.random_range(0..odd.len())].clone()
}

/// Changes one thing somewhere in the value.
fn mutate(value: &mut Value, names: &[String], rng: &mut StdRng) {
    let deeper = rng.random_bool(0.6);
    match value {
        Value::Object(map) if !map.is_empty() && deeper => {
            let index = rng.random_range(0..map.len());
            mutate(map.values_mut().nth(index).expect("it is there"), names, rng);
        }
        Value::Object(map) => change_field(map, names, rng),
        Value::Array(list) if !list.is_empty() && deeper => {
            let index = rng.random_range(0..list.len());
            mutate(&mut list[index], names, rng);
        }
        other => *other = odd(rng),
    }
}

fn change_field(map: &mut Map<String, Value>, names: &[String], rng: &mut StdRng) {
    let name = &names[rng.random_range(0..names.len())];
    if rng.random_bool(0.2) {
        map.remove(name);
    } else {
        map.insert(name.clone(), odd(rng));
    }
}

/// Names of all fields in all schemas.
fn names(schema: &Value, found: &mut Vec<String>) {
    if let Some(properties) = schema["properties"].as_object() {
        found.extend(properties.keys().cloned());
    }
    match schema {
        Value::Object(map) => map.values().for_each(|value| names(value, found)),
        Value::Array(list) => list.iter().for_each(|value| names(value, found)),
        _ => (),
    }
}

#[tokio::test]
async fn broken_bodies_get_answers_that_the_document_allows() {
    let seed = rand::random::<u32>().into();
    let server = start(Settings::default()).await;
    let document = document(&server.app);
    let mut rng = StdRng::seed_from_u64(seed);
    for (path, methods) in document["paths"].as_object().unwrap() {
        let operation = &methods["post"];
        if !operation["requestBody"].is_object() {
            continue;
        }
        let mut known = Vec::new();
        names(&operation["requestBody"], &mut known);
        for round in 0..ROUNDS {
            let bodies = bodies();
            let mut body = bodies[rng.random_range(0..bodies.len())].clone();
            (0..rng.random_range(1..4)).for_each(|_| mutate(&mut body, &known, &mut rng));
            let mut bytes = body.to_string().into_bytes();
            if round % 8 == 0 {
                let index = rng.random_range(0..bytes.len());
                bytes[index] = rng.random();
            }
            let answer = server.post_bytes(path, &bytes).await;
            let context = format!("seed {seed}: {path} {}: {}", String::from_utf8_lossy(&bytes), answer.text);
            assert!(answer.status.as_u16() < 500, "{context}");
            let allowed = &operation["responses"][answer.status.as_str()]["content"];
            let media_type = answer.headers["content-type"].to_str().unwrap();
            assert!(allowed[media_type.split(';').next().unwrap()].is_object(), "{context}");
            if answer.status != 200 {
                let error = answer.json()["error"].clone();
                // A string is Ollama's shape.
                let shaped = error["message"].is_string() && error["type"].is_string();
                assert!(shaped || error.is_string() && path.starts_with("/api/"), "{context}");
            }
        }
    }
    server.wait_until_idle().await;
    assert_eq!(server.get("/health").await.status, 200);
}
