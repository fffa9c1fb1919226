//! Tools in `/v1/chat/completions`. The simulated model writes nonsense, but obeys grammars: where it must call, it
//! calls.

use serde_json::{Value, json};

use super::*;
use crate::chat::ToolFormat;

const PATH: &str = "/v1/chat/completions";

fn tools() -> Value {
    let tool = |name: &str, words: [&str; 2]| {
        let unit = json!({"enum": words});
        let parameters = json!({"type": "object", "properties": {"unit": unit}, "required": ["unit"], "additionalProperties": false});
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    };
    json!([tool("heat", ["celsius", "kelvin"]), tool("weigh", ["gram", "tonne"])])
}

fn with(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "tools": tools(), "max_tokens": 200, "seed": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn settings(tool_call_parser: Option<&str>) -> Settings {
    let chat = ChatConfig { tool_call_parser: tool_call_parser.map(String::from), ..ChatConfig::default() };
    Settings { chat, ..Settings::default() }
}

/// Checks a whole answer's calls, and gives them as names and arguments.
#[track_caller]
fn calls(choice: &Value) -> Vec<(String, String)> {
    let calls = choice["message"]["tool_calls"].as_array().expect("calls");
    let call = |call: &Value| {
        assert!(call["id"].as_str().is_some_and(|id| id.len() >= 9) && call["type"] == "function", "{call}");
        let text = |field: &str| call["function"][field].as_str().unwrap().to_owned();
        (text("name"), text("arguments"))
    };
    calls.iter().map(call).collect()
}

/// What the chunks of a stream add up to: content, and calls as names and arguments.
fn added_up(events: &[Value]) -> (String, Vec<(String, String)>) {
    let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for delta in events.iter().map(|event| &event["choices"][0]["delta"]) {
        content.push_str(delta["content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().expect("an index") as usize;
            let arguments = call["function"]["arguments"].as_str().expect("arguments");
            if let Some(id) = call.get("id") {
                assert!(id.as_str().is_some_and(|id| !id.is_empty()) && call["type"] == "function", "{call}");
                assert_eq!((index, arguments), (calls.len(), ""), "{call}");
                calls.push((call["function"]["name"].as_str().unwrap().to_owned(), String::new()));
            } else {
                assert!(call.get("type").is_none() && call["function"].get("name").is_none(), "{call}");
            }
            calls[index].1.push_str(arguments);
        }
    }
    (content, calls)
}

#[tokio::test]
async fn a_call_that_must_be_made_is_made_in_every_format() {
    let formats = ToolFormat::names().into_iter().map(Some).chain([None]);
    for name in formats {
        let server = start(settings(name)).await;
        for (choice, names) in [
            (json!("required"), &["heat", "weigh"][..]),
            (json!({"type": "function", "function": {"name": "weigh"}}), &["weigh"]),
        ] {
            let body = with(json!({"tool_choice": choice, "parallel_tool_calls": false}));
            let answer = server.post(PATH, &body).await;
            assert_eq!(answer.status, 200, "{name:?}: {}", answer.text);
            let choice = answer.json()["choices"][0].clone();
            assert_eq!(choice["finish_reason"], "tool_calls", "{name:?}: {choice}");
            assert_eq!(choice["message"]["content"], Value::Null, "{name:?}: {choice}");
            let whole = calls(&choice);
            assert_eq!(whole.len(), 1);
            let (called, arguments) = &whole[0];
            assert!(names.contains(&&**called), "{name:?}: {called}");
            let arguments: Value = serde_json::from_str(arguments).expect(arguments);
            let units = if called == "heat" { ["celsius", "kelvin"] } else { ["gram", "tonne"] };
            assert!(units.contains(&arguments["unit"].as_str().unwrap()), "{name:?}: {arguments}");
            let mut streamed = body;
            streamed["stream"] = true.into();
            let events = server.post(PATH, &streamed).await.events();
            assert_eq!(added_up(&events), (String::new(), whole), "{name:?}");
        }
    }
}

#[tokio::test]
async fn calls_are_parallel_unless_told_otherwise() {
    let server = start(Settings::default()).await;
    let mut most = 0;
    for seed in 0..6 {
        let body = with(json!({"tool_choice": "required", "seed": seed}));
        let answer = server.post(PATH, &body).await.json();
        most = most.max(calls(&answer["choices"][0]).len());
        let mut streamed = body;
        streamed["stream"] = true.into();
        let events = server.post(PATH, &streamed).await.events();
        assert_eq!(added_up(&events).1, calls(&answer["choices"][0]), "seed {seed}");
        let (last, others) = events.split_last().unwrap();
        assert_eq!(last["choices"][0]["delta"], json!({}));
        assert_eq!(last["choices"][0]["finish_reason"], answer["choices"][0]["finish_reason"]);
        assert!(others.iter().all(|event| event["choices"][0]["finish_reason"].is_null()));
    }
    assert!(most > 1, "never more than one");
}

#[tokio::test]
async fn a_form_of_the_answer_and_tools() {
    let server = start(Settings::default()).await;
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": ["yes", "no"]}}});
    for seed in 0..4 {
        let body = with(json!({"response_format": format, "seed": seed, "parallel_tool_calls": false}));
        let answer = server.post(PATH, &body).await.json();
        let message = &answer["choices"][0]["message"];
        let is_answer = ["\"yes\"", "\"no\""].contains(&message["content"].as_str().unwrap_or_default());
        assert!(is_answer || calls(&answer["choices"][0]).len() == 1, "{answer}");
    }
    let refused =
        server.post(PATH, &with(json!({"response_format": format, "tool_choice": "required"}))).await;
    assert_eq!(refused.error(), (400, "response_format".into()));
    let refused = server.post(PATH, &with(json!({"structured_outputs": {"regex": "a"}}))).await;
    assert_eq!(refused.error(), (400, "structured_outputs".into()));
    server
        .post(PATH, &with(json!({"structured_outputs": {"regex": "a"}, "tool_choice": "none"})))
        .await
        .json();
}

#[tokio::test]
async fn strict_tools_keep_to_their_schemas() {
    let server = start(Settings::default()).await;
    let mut body = with(json!({"max_tokens": 20}));
    body["tools"][0]["function"]["strict"] = true.into();
    assert_eq!(server.post(PATH, &body).await.status, 200);
    // A format that cannot be told so.
    let server = start(settings(Some("pythonic"))).await;
    assert_eq!(server.post(PATH, &body).await.error(), (400, "tools".into()));
    body["tool_choice"] = "required".into();
    assert_eq!(server.post(PATH, &body).await.status, 200);
}

#[tokio::test]
async fn without_a_parser_a_model_may_not_call_but_must() {
    let mut settings = settings(None);
    settings.chat_template = Some("{{ messages[0].content }}".into());
    let server = start(settings).await;
    assert_eq!(server.post(PATH, &with(json!({}))).await.error(), (400, "tool_choice".into()));
    assert_eq!(server.post(PATH, &with(json!({"tool_choice": "none"}))).await.status, 200);
    let answer =
        server.post(PATH, &with(json!({"tool_choice": "required", "parallel_tool_calls": false}))).await;
    assert_eq!(calls(&answer.json()["choices"][0]).len(), 1);
}

#[tokio::test]
async fn tools_can_be_kept_from_the_model() {
    let tokens = async |server: &Server, fields: Value| {
        server.post(PATH, &with(fields)).await.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let none = json!({"tool_choice": "none"});
    let shown = tokens(&start(Settings::default()).await, none.clone()).await;
    let mut settings = Settings::default();
    settings.chat.exclude_tools_when_tool_choice_none = true;
    let server = start(settings).await;
    let kept = tokens(&server, none).await;
    assert!(kept + 50 < shown, "{kept} {shown}");
    assert_eq!(tokens(&server, json!({})).await, shown);
}

#[tokio::test]
async fn reasoning_is_told_apart_and_comes_before_the_grammar() {
    let mut settings = Settings::default();
    settings.chat.reasoning_parser = Some("deepseek_r1".into());
    let server = start(settings).await;
    // The nonsense of this model ends no thoughts.
    let mut body = with(json!({"tools": null, "max_tokens": 20}));
    let answer = server.post(PATH, &body).await.json();
    let message = &answer["choices"][0]["message"];
    let thoughts = message["reasoning"].as_str().unwrap().to_owned();
    assert!(!thoughts.is_empty() && message["content"] == "", "{answer}");
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 20);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let events = server.post(PATH, &body).await.events();
    let streamed = events.iter().filter_map(|event| event["choices"][0]["delta"]["reasoning"].as_str());
    assert_eq!(streamed.collect::<String>(), thoughts);
    assert_eq!(added_up(&events[..events.len() - 1]).0, "");
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens_details"]["reasoning_tokens"], 20);
    // Left out if not wanted, but counted.
    let hidden = with(json!({"tools": null, "max_tokens": 20, "include_reasoning": false}));
    let answer = server.post(PATH, &hidden).await.json();
    assert_eq!(answer["choices"][0]["message"]["reasoning"], Value::Null);
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 20);
    // Where the prompt has ended the thoughts, the grammar holds at once; else it waits.
    let choice = json!({"tools": null, "structured_outputs": {"choice": ["yes"]}, "max_tokens": 20});
    let answer = server.post(PATH, &with(choice.clone())).await.json();
    assert_ne!(answer["choices"][0]["message"]["reasoning"], "yes");
    let mut ended = with(choice);
    ended["messages"] =
        json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hm.</think>"}]);
    ended["continue_final_message"] = true.into();
    let answer = server.post(PATH, &ended).await.json();
    assert_eq!(answer["choices"][0]["message"]["content"], "yes");
}
