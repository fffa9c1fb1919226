//! `/v1/responses` and `/v1/messages` with the demo model, which calls tools in earnest: whole answers,
//! streams, and the next turn.

use serde_json::{Value, json};

use crate::http;
use crate::server::Server;

const QUESTION: &str = "Tell me the time in Delhi.";

fn schema() -> Value {
    json!({"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]})
}

/// Asks for a stream, and gives the data of its events; each has its name twice.
async fn stream(server: &Server, path: &str, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let answer = http::post(server.http, path, &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.text();
    let event = |frame: &str| {
        let (name, data) = frame.split_once("\ndata: ").expect(frame);
        let event: Value = serde_json::from_str(data).expect(data);
        assert_eq!(event["type"], *name.strip_prefix("event: ").expect(name));
        event
    };
    text.split_terminator("\n\n").map(event).collect()
}

fn texts(events: &[Value], kind: &str, pointer: &str) -> String {
    let events = events.iter().filter(|event| event["type"] == kind);
    events.filter_map(|event| event.pointer(pointer)?.as_str()).collect()
}

#[tokio::test]
async fn responses_call_functions_and_go_on_from_their_results() {
    let server = Server::shared(&[]);
    let tool = json!({
        "type": "function", "name": "current_time", "description": "Get the current time in a city",
        "parameters": schema(),
    });
    let body = json!({"input": QUESTION, "temperature": 0, "max_output_tokens": 60, "tools": [tool]});
    let whole = http::post(server.http, "/v1/responses", &body).await.ok();
    let call = &whole["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("current_time")), "{whole}");
    let arguments = call["arguments"].as_str().expect("arguments");
    assert_eq!(serde_json::from_str::<Value>(arguments).ok(), Some(json!({"location": "Delhi"})));
    let events = stream(&server, "/v1/responses", &body).await;
    assert_eq!(texts(&events, "response.function_call_arguments.delta", "/delta"), arguments);
    assert_eq!(events.last().expect("events")["response"]["status"], "completed");
    assert!(events.iter().enumerate().all(|(number, event)| event["sequence_number"] == number));

    let result = json!([{"type": "function_call_output", "call_id": call["call_id"], "output": "{\"time\": \"23:33\"}"}]);
    let mut next = body.clone();
    (next["input"], next["previous_response_id"]) = (result, whole["id"].clone());
    let answer = http::post(server.http, "/v1/responses", &next).await.ok();
    assert_eq!(answer["output"][0]["type"], "message", "{answer}");
}

#[tokio::test]
async fn messages_use_tools_and_go_on_from_their_results() {
    let server = Server::shared(&[]);
    let tool = json!({
        "name": "current_time", "description": "Get the current time in a city", "input_schema": schema(),
    });
    let question = json!({"role": "user", "content": QUESTION});
    let body = json!({"messages": [question], "temperature": 0, "max_tokens": 60, "tools": [tool]});
    let whole = http::post(server.http, "/v1/messages", &body).await.ok();
    let call = &whole["content"][0];
    assert_eq!((&whole["stop_reason"], &call["type"]), (&json!("tool_use"), &json!("tool_use")), "{whole}");
    assert_eq!(call["input"], json!({"location": "Delhi"}));
    let events = stream(&server, "/v1/messages", &body).await;
    let input = texts(&events, "content_block_delta", "/delta/partial_json");
    assert_eq!(serde_json::from_str::<Value>(&input).ok(), Some(call["input"].clone()));
    assert_eq!(texts(&events, "message_delta", "/delta/stop_reason"), "tool_use");

    let result =
        json!({"type": "tool_result", "tool_use_id": call["id"], "content": "{\"time\": \"23:33\"}"});
    let mut next = body.clone();
    next["messages"] = json!([
        question, {"role": "assistant", "content": whole["content"]}, {"role": "user", "content": [result]},
    ]);
    let answer = http::post(server.http, "/v1/messages", &next).await.ok();
    assert_eq!(
        (&answer["stop_reason"], &answer["content"][0]["type"]),
        (&json!("end_turn"), &json!("text")),
        "{answer}"
    );
}
