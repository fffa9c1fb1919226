//! Ollama's API with the demo model: tools, forms, and a stream as its clients read it.

use serde_json::{Value, json};

use crate::http;
use crate::server::Server;

fn body(question: &str, more: Value) -> Value {
    let mut body = json!({
        "model": "pebble:latest", "messages": [{"role": "user", "content": question}],
        "options": {"temperature": 0, "num_predict": 60},
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn lines(server: &Server, body: &Value) -> Vec<Value> {
    let response = http::post(server.http, "/api/chat", body).await;
    assert_eq!((response.status, response.header("content-type")), (200, "application/x-ndjson"));
    response.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_tool_call_is_one_whole_in_a_stream_too() {
    let server = Server::shared(&[]);
    let parameters =
        json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
    let tool = json!({"type": "function", "function": {
        "name": "get_weather", "description": "Get the weather in a city", "parameters": parameters}});
    let body = body("What is the weather in Paris?", json!({"tools": [tool]}));
    let lines = lines(&server, &body).await;
    let calls: Vec<_> =
        lines.iter().filter_map(|line| line["message"]["tool_calls"].as_array()).flatten().collect();
    assert_eq!(calls.len(), 1, "{lines:?}");
    let function = json!({"index": 0, "name": "get_weather", "arguments": {"city": "Paris"}});
    assert_eq!(calls[0]["function"], function);
    let end = lines.last().unwrap();
    assert_eq!((&end["done"], &end["done_reason"]), (&json!(true), &json!("stop")));
    let mut whole = body;
    whole["stream"] = false.into();
    let whole = http::post(server.http, "/api/chat", &whole).await.ok();
    assert_eq!(whole["message"]["tool_calls"][0]["function"], function);
    assert_eq!(whole["eval_count"], end["eval_count"]);
}

#[tokio::test]
async fn a_format_is_kept() {
    let server = Server::shared(&[]);
    let schema = json!({"type": "object", "properties": {"sky": {"enum": ["blue", "grey"]}},
        "required": ["sky"], "additionalProperties": false});
    // The model likes to put blanks between the parts, and a schema allows them.
    let options = json!({"temperature": 0, "num_predict": 600});
    let lines = lines(&server, &body("How is the sky?", json!({"format": schema, "options": options}))).await;
    let text: String = lines.iter().map(|line| line["message"]["content"].as_str().unwrap()).collect();
    let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(["blue", "grey"].contains(&answer["sky"].as_str().unwrap()), "{answer}");
}
