//! The events of random answers, checked by a client that trusts nothing.

use serde_json::{Value, json};

use super::message::MessageWriter;
use crate::http::events::Events;
use crate::http::tests::typed_events::{parse, random_answer, read_twice};

/// Reads events as a client does: the message that they make up.
fn follow(events: &[Value]) -> Value {
    let (mut message, mut open, mut input) = (Value::Null, false, String::new());
    for event in events {
        let index = message["content"].as_array().map_or(0, Vec::len);
        match event["type"].as_str().unwrap() {
            "message_start" => {
                assert!(message.is_null());
                message = event["message"].clone();
            }
            "content_block_start" => {
                assert!(!open && event["index"] == index, "{event}");
                message["content"].as_array_mut().unwrap().push(event["content_block"].clone());
                (open, input) = (true, String::new());
            }
            "content_block_delta" => {
                assert!(open && event["index"] == index - 1, "{event}");
                let block = &mut message["content"][index - 1];
                let (kind, delta) = (event["delta"]["type"].as_str().unwrap(), &event["delta"]);
                let (expected, name) = match kind {
                    "text_delta" => ("text", "text"),
                    "thinking_delta" => ("thinking", "thinking"),
                    "signature_delta" => ("thinking", "signature"),
                    "input_json_delta" => ("tool_use", "partial_json"),
                    other => panic!("{other}"),
                };
                assert_eq!(block["type"], expected, "{event}");
                let more = delta[name].as_str().unwrap();
                if kind == "input_json_delta" {
                    input.push_str(more);
                } else {
                    block[name] = format!("{}{more}", block[name].as_str().unwrap()).into();
                }
            }
            "content_block_stop" => {
                assert!(open && event["index"] == index - 1, "{event}");
                if message["content"][index - 1]["type"] == "tool_use" {
                    message["content"][index - 1]["input"] = serde_json::from_str(&input).unwrap();
                }
                open = false;
            }
            "message_delta" => {
                assert!(!open);
                for name in ["stop_reason", "stop_sequence"] {
                    message[name] = event["delta"][name].clone();
                }
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => assert!(message["stop_reason"].is_string()),
            other => panic!("{other}"),
        }
    }
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    message
}

#[test]
fn every_stream_makes_up_the_message_that_is_given_whole() {
    for seed in 0..500 {
        eprintln!("seed {seed}");
        let writer = |events| MessageWriter::new("msg_1".into(), "m".into(), 10, events);
        let (mut streamed, mut whole) = (writer(Events::default()), writer(Events::discarded()));
        let (mut thinking, mut text, mut calls, mut tokens) = (String::new(), String::new(), 0, 0);
        for delta in &mut random_answer(seed) {
            thinking.push_str(&delta.reasoning);
            text.push_str(&delta.content);
            calls += delta.tool_calls.iter().filter(|call| call.start.is_some()).count();
            tokens += delta.token_ids.len();
            streamed.take(delta).unwrap();
        }
        for delta in &mut random_answer(seed) {
            whole.take(delta).unwrap();
        }
        let whole = serde_json::to_value(whole.into_message()).unwrap();
        assert_eq!(follow(&parse(streamed.events.text())), whole);
        // Nothing of the answer is lost.
        let blocks = whole["content"].as_array().unwrap();
        let texts =
            |kind: &str| -> String { blocks.iter().filter_map(|block| block[kind].as_str()).collect() };
        assert_eq!((texts("thinking"), texts("text")), (thinking, text));
        let inputs: Vec<_> = blocks.iter().filter_map(|block| block.get("input")).collect();
        assert_eq!(inputs, vec![&json!({"input": "a \"b\"\nc", "more": [1, 2.5, {}]}); calls]);
        let usage = json!({
            "input_tokens": 7, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3, "output_tokens": tokens,
        });
        assert_eq!(whole["usage"], usage);
        let reasons: &[&str] = match (calls, whole["stop_sequence"].as_str()) {
            (_, Some("STOP")) => &["stop_sequence"],
            (0, _) => &["end_turn", "max_tokens"],
            _ => &["tool_use", "max_tokens"],
        };
        assert!(reasons.contains(&whole["stop_reason"].as_str().unwrap()), "{whole}");
    }
}

#[test]
fn blocks_come_in_the_order_of_the_text_however_it_is_cut() {
    for seed in 0..300 {
        let [whole, pieces] = read_twice(seed).map(|deltas| {
            let mut writer = MessageWriter::new("msg_1".into(), "m".into(), 10, Events::default());
            deltas.into_iter().for_each(|mut delta| writer.take(&mut delta).unwrap());
            let mut message = follow(&parse(writer.events.text()));
            for block in message["content"].as_array_mut().unwrap() {
                block.as_object_mut().unwrap().remove("id");
            }
            message
        });
        assert_eq!(pieces, whole, "seed {seed}");
    }
}
