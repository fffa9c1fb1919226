//! The events of random answers, checked by a client that trusts nothing; the store's bounds; transcripts.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::input::{Transcript, normalize};
use super::object::{Item, ReasoningSettings, Response, Settings, Status, TextSettings, new_id};
use super::store::{ResponseStore, Stored};
use super::tools::CalledAs;
use super::writer::{ResponseWriter, WriterOptions};
use crate::http::events::Events;
use crate::http::logprobs::TokenNames;
use crate::http::tests::tokenizer;
use crate::http::tests::typed_events::{parse, random_answer, read_twice};
use crate::text::Tokenizer;

fn response(id: &str) -> Response {
    Response {
        id: id.to_owned(),
        object: "response",
        created_at: 0,
        completed_at: None,
        status: Status::InProgress,
        error: None,
        incomplete_details: None,
        model: "m".into(),
        output: Vec::new(),
        usage: None,
        settings: Settings {
            background: false,
            instructions: None,
            max_output_tokens: None,
            max_tool_calls: None,
            metadata: Map::new(),
            parallel_tool_calls: true,
            previous_response_id: None,
            prompt_cache_key: None,
            reasoning: ReasoningSettings::default(),
            safety_identifier: None,
            service_tier: "auto".into(),
            store: false,
            temperature: 1.0,
            text: TextSettings { format: json!({"type": "text"}) },
            tool_choice: "auto".into(),
            tools: Vec::new(),
            top_logprobs: 0,
            top_p: 1.0,
            truncation: "disabled",
            user: None,
        },
    }
}

fn writer(tokenizer: &Tokenizer, events: Events) -> ResponseWriter {
    let called = |namespace: Option<&str>, name: &str, custom| CalledAs {
        namespace: namespace.map(String::from),
        name: name.to_owned(),
        custom,
    };
    let options = WriterOptions {
        names: TokenNames { tokenizer: tokenizer.clone(), as_token_ids: false },
        wants_logprobs: false,
        wants_encrypted_reasoning: true,
        called_as: HashMap::from([
            ("custom".to_owned(), called(None, "custom", true)),
            ("ns__far".to_owned(), called(Some("ns"), "far", false)),
        ]),
        num_prompt_tokens: 7,
        store: None,
    };
    ResponseWriter::new(response("resp_1"), options, events)
}

/// Reads events as a client does that keeps a copy of the response, and gives the last event's response.
fn follow(events: &[Value]) -> Value {
    let (last, rest) = events.split_last().expect("there are events");
    let mut items: Vec<Value> = Vec::new();
    // The item that is open, and what its deltas have made up.
    let mut open: Option<(Value, String)> = None;
    for (number, event) in rest.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
        let kind = event["type"].as_str().unwrap().strip_prefix("response.").unwrap();
        if number < 2 {
            assert_eq!(kind, ["created", "in_progress"][number]);
            assert_eq!(
                (&event["response"]["status"], &event["response"]["output"]),
                (&json!("in_progress"), &json!([]))
            );
            continue;
        }
        assert_eq!(event["output_index"], items.len(), "{event}");
        if kind == "output_item.added" {
            assert!(open.is_none(), "{event}");
            assert_eq!(event["item"]["status"], "in_progress");
            open = Some((event["item"].clone(), String::new()));
            continue;
        }
        let (item, text) = open.as_mut().unwrap_or_else(|| panic!("nothing is open: {event}"));
        let item_type = item["type"].as_str().unwrap();
        if kind == "output_item.done" {
            let done = &event["item"];
            assert_eq!((&done["id"], &done["type"]), (&item["id"], &item["type"]));
            let said = match item_type {
                "function_call" => done["arguments"].as_str(),
                "custom_tool_call" => done["input"].as_str(),
                _ => done["content"][0]["text"].as_str(),
            };
            assert_eq!(said, Some(text.as_str()), "{event}");
            items.push(done.clone());
            open = None;
            continue;
        }
        assert_eq!(event["item_id"], item["id"], "{event}");
        match (item_type, kind) {
            ("message" | "reasoning", "content_part.added") => assert_eq!(event["part"]["text"], ""),
            ("message", "output_text.delta")
            | ("reasoning", "reasoning_text.delta")
            | ("function_call", "function_call_arguments.delta")
            | ("custom_tool_call", "custom_tool_call_input.delta") => {
                text.push_str(event["delta"].as_str().unwrap());
            }
            ("message", "output_text.done") | ("reasoning", "reasoning_text.done") => {
                assert_eq!(event["text"], **text);
            }
            ("message" | "reasoning", "content_part.done") => assert_eq!(event["part"]["text"], **text),
            ("function_call", "function_call_arguments.done") => assert_eq!(event["arguments"], **text),
            ("custom_tool_call", "custom_tool_call_input.done") => assert_eq!(event["input"], **text),
            other => panic!("{other:?} out of place: {event}"),
        }
    }
    assert!(open.is_none());
    assert_eq!(last["sequence_number"], rest.len());
    let response = &last["response"];
    assert_eq!(*last["type"].as_str().unwrap(), format!("response.{}", response["status"].as_str().unwrap()));
    assert_eq!(response["output"], Value::Array(items));
    response.clone()
}

fn without_ids(mut value: Value) -> Value {
    for item in value["output"].as_array_mut().unwrap() {
        item.as_object_mut().unwrap().remove("id");
    }
    value["completed_at"] = Value::Null;
    value
}

#[test]
fn every_stream_makes_up_the_response_that_is_given_whole() {
    let tokenizer = tokenizer();
    for seed in 0..500 {
        eprintln!("seed {seed}");
        let (mut streamed, mut whole) =
            (writer(&tokenizer, Events::default()), writer(&tokenizer, Events::discarded()));
        streamed.begin();
        let (mut reasoning, mut text, mut calls) = (String::new(), String::new(), 0);
        for delta in &mut random_answer(seed) {
            reasoning.push_str(&delta.reasoning);
            text.push_str(&delta.content);
            calls += delta.tool_calls.iter().filter(|call| call.start.is_some()).count();
            streamed.take(delta).unwrap();
        }
        for delta in &mut random_answer(seed) {
            whole.take(delta).unwrap();
        }
        let last = follow(&parse(streamed.events.text()));
        let whole = serde_json::to_value(whole.into_response()).unwrap();
        assert_eq!(without_ids(last), without_ids(whole.clone()));
        // Nothing of the answer is lost.
        let items = whole["output"].as_array().unwrap();
        let texts = |kind: &str| -> String {
            let items = items.iter().filter(|item| item["type"] == kind);
            items.map(|item| item["content"][0]["text"].as_str().unwrap()).collect()
        };
        assert_eq!((texts("reasoning"), texts("message")), (reasoning, text));
        let called: Vec<_> = items.iter().filter(|item| item.get("call_id").is_some()).collect();
        assert_eq!(called.len(), calls);
        for call in called {
            match call["type"].as_str().unwrap() {
                "custom_tool_call" => assert_eq!(call["input"], "a \"b\"\nc"),
                _ if call["name"] == "far" => assert_eq!(call["namespace"], "ns"),
                _ => assert!(call["name"] == "plain" && call.get("namespace").is_none()),
            }
        }
    }
}

#[test]
fn items_come_in_the_order_of_the_text_however_it_is_cut() {
    let tokenizer = tokenizer();
    for seed in 0..300 {
        let [whole, pieces] = read_twice(seed).map(|deltas| {
            let mut writer = writer(&tokenizer, Events::default());
            writer.begin();
            deltas.into_iter().for_each(|mut delta| writer.take(&mut delta).unwrap());
            let mut response = without_ids(follow(&parse(writer.events.text())));
            for item in response["output"].as_array_mut().unwrap() {
                item.as_object_mut().unwrap().remove("call_id");
            }
            response
        });
        assert_eq!(pieces, whole, "seed {seed}");
    }
}

#[test]
fn the_store_forgets_the_oldest_and_only_them() {
    let store = ResponseStore::default();
    let put = |id: &str, bytes: usize| {
        store.finish(Stored { response: response(id), input: vec![Value::String("x".repeat(bytes))] });
    };
    let has = |id: &str| store.get(id).is_some();
    for i in 0..5000 {
        put(&format!("resp_{i}"), 10);
    }
    assert!(!has("resp_903") && has("resp_904") && has("resp_4999"), "4096 are kept");
    put("resp_904", 10);
    put("resp_new", 10);
    assert!(has("resp_904"), "what is put again is new again");
    for i in 0..3 {
        put(&format!("resp_big_{i}"), 100 << 20);
    }
    assert!(!has("resp_4999") && !has("resp_big_0") && has("resp_big_1") && has("resp_big_2"));
    put("resp_too_big", 300 << 20);
    assert!(!has("resp_too_big"));
    put("resp_after", 10);
    assert!(has("resp_after"));
}

fn messages(items: Value) -> Vec<Value> {
    let mut transcript = Transcript::default();
    for item in items.as_array().unwrap() {
        transcript.push(normalize(item.clone()).unwrap()).unwrap();
    }
    transcript.messages
}

#[test]
fn items_become_the_messages_that_they_make_up() {
    let items = json!([
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "A"}]},
        {"role": "system", "content": "B"},
        {"role": "user", "content": "look"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me."}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"a\":1}"},
        {"type": "custom_tool_call", "call_id": "2", "name": "patch", "input": "*** x"},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "custom_tool_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "clear:aha"},
        {"type": "function_call", "call_id": "3", "name": "far", "namespace": "ns", "arguments": "cut {"},
        {"type": "function_call_output", "call_id": "3", "output": "bad"},
        {"type": "reasoning", "id": "rs_3", "summary": [], "encrypted_content": "gAAAAAB"},
        {"role": "assistant", "content": "So."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "developer", "content": "C"},
    ]);
    let call = |id: &str, name: &str, arguments: Value| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let expected = json!([
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": "Let me.", "reasoning": "hm", "reasoning_content": "hm",
         "tool_calls": [call("1", "f", json!({"a": 1})), call("2", "patch", json!({"input": "*** x"}))]},
        {"role": "tool", "tool_call_id": "1", "content": "one"},
        {"role": "tool", "tool_call_id": "2", "content": "two"},
        {"role": "assistant", "content": "", "reasoning": "aha", "reasoning_content": "aha",
         "tool_calls": [call("3", "ns__far", json!("cut {"))]},
        {"role": "tool", "tool_call_id": "3", "content": "bad"},
        {"role": "assistant", "content": "So."},
        {"role": "assistant", "content": "No."},
        {"role": "system", "content": "C"},
    ]);
    assert_eq!(Value::Array(messages(items)), expected);
}

#[test]
fn what_was_answered_can_be_sent_back() {
    let tokenizer = tokenizer();
    for seed in 0..200 {
        eprintln!("seed {seed}");
        let mut writer = writer(&tokenizer, Events::discarded());
        let (mut reasoning, mut text, mut calls) = (String::new(), String::new(), 0);
        for delta in &mut random_answer(seed) {
            reasoning.push_str(&delta.reasoning);
            text.push_str(&delta.content);
            calls += delta.tool_calls.iter().filter(|call| call.start.is_some()).count();
            writer.take(delta).unwrap();
        }
        let items: Vec<_> = writer
            .into_response()
            .output
            .iter()
            .map(|item: &Item| serde_json::to_value(item).unwrap())
            .collect();
        let messages = messages(items.into());
        let joined =
            |name: &str| -> String { messages.iter().filter_map(|message| message[name].as_str()).collect() };
        assert_eq!((joined("reasoning"), joined("content")), (reasoning, text));
        let sent = messages.iter().filter_map(|message| message["tool_calls"].as_array());
        let names: Vec<_> = sent.flatten().map(|call| call["function"]["name"].as_str().unwrap()).collect();
        assert_eq!(names.len(), calls);
        assert!(names.iter().all(|name| ["plain", "custom", "ns__far"].contains(name)), "{names:?}");
    }
}

#[test]
fn items_have_ids_of_their_kind() {
    assert_ne!(new_id("msg"), new_id("msg"));
    let read = |item: Value| normalize(item).unwrap();
    assert!(read(json!({"role": "user", "content": "a"}))["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(read(json!({"id": "rs_1"}))["type"], "item_reference");
    assert_eq!(read(json!({"id": "x", "role": "user", "content": "a"}))["id"], "x");
    let user = read(json!({"role": "user", "content": "a", "type": null}));
    assert_eq!(user["content"], json!([{"type": "input_text", "text": "a"}]));
    assert_eq!(normalize(json!("a")).unwrap_err().at, "");
    assert_eq!(normalize(json!({"name": "f"})).unwrap_err().at, ".type");
}
