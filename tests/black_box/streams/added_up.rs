//! Streams folded into whole answers, and what is left out of both because it differs from answer to answer: ids,
//! times, and what the prefix cache happened to hold.

use serde_json::{Map, Value, json};

/// The first place where two answers differ.
pub(super) fn difference(whole: &Value, streamed: &Value) -> Option<String> {
    let (mut at, mut whole, mut streamed) = (String::new(), whole, streamed);
    loop {
        let differs = match (whole, streamed) {
            (Value::Object(a), Value::Object(b)) => {
                let keys = a.keys().chain(b.keys());
                keys.map(|key| (key.clone(), &whole[key], &streamed[key])).find(|(_, a, b)| a != b)
            }
            (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
                let both = a.iter().zip(b).enumerate();
                both.map(|(i, (a, b))| (i.to_string(), a, b)).find(|(_, a, b)| a != b)
            }
            (a, b) if a == b => None,
            (a, b) => return Some(format!("{at}: whole {a}, streamed {b}")),
        };
        let (step, a, b) = differs?;
        at = format!("{at}/{step}");
        (whole, streamed) = (a, b);
    }
}

/// Of an error, in the shape of any API.
pub(super) fn message_of(error: &Value) -> String {
    let error = &error["error"];
    error["message"].as_str().or(error.as_str()).expect("an error says why").to_owned()
}

/// Drops all fields of these names.
fn without(mut value: Value, names: &[&str]) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.retain(|name, _| !names.contains(&&**name));
            map.values_mut().for_each(|value| *value = without(value.take(), names));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| *value = without(value.take(), names)),
        _ => (),
    }
    value
}

const VARIABLE: [&str; 5] = ["id", "created", "object", "cached_tokens", "call_id"];

/// Drops nulls from objects: whole answers have them, chunks mostly not.
fn without_nulls(mut value: Value) -> Value {
    match &mut value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(|value| *value = without_nulls(value.take()));
        }
        Value::Array(list) => list.iter_mut().for_each(|value| *value = without_nulls(value.take())),
        _ => (),
    }
    value
}

/// A whole answer of completions or chat.
pub(super) fn plain(answer: Value) -> Value {
    without_nulls(without(answer, &VARIABLE))
}

/// The data of OpenAI's events; an error among them is the end.
pub(super) fn events(body: &str) -> Result<Vec<Value>, String> {
    let mut frames: Vec<_> = body.split_terminator("\n\n").collect();
    assert_eq!(frames.pop(), Some("data: [DONE]"), "{body}");
    let data = |frame: &str| -> Value {
        serde_json::from_str(frame.strip_prefix("data: ").expect(frame)).expect(frame)
    };
    let events: Vec<_> = frames.into_iter().map(data).collect();
    match events.iter().find(|event| event.get("error").is_some()) {
        Some(error) => Err(message_of(error)),
        None => Ok(events),
    }
}

/// Adds text to text, list to list, member to member; anything else is set once.
fn add(to: &mut Value, more: Value) {
    match (to, more) {
        (_, Value::Null) => (),
        (to @ Value::Null, more) => *to = more,
        (Value::String(to), Value::String(more)) => to.push_str(&more),
        (Value::Array(to), Value::Array(more)) => to.extend(more),
        (Value::Object(to), Value::Object(more)) => {
            more.into_iter().for_each(|(name, more)| add(to.entry(name).or_insert(Value::Null), more));
        }
        (to, more) => panic!("{more} after {to}"),
    }
}

/// The choices of all chunks by index, folded by `fold`; and what the chunks say beside them.
fn choices(events: &[Value], mut fold: impl FnMut(&mut Value, Map<String, Value>)) -> (Vec<Value>, Value) {
    let (mut choices, mut rest) = (Vec::<Value>::new(), json!({}));
    for event in events {
        let mut event = without(event.clone(), &VARIABLE);
        let Value::Array(parts) = event["choices"].take() else { panic!("no choices: {event}") };
        for part in parts {
            let Value::Object(mut part) = part else { panic!("{part}") };
            let index = part.remove("index").and_then(|index| index.as_u64()).expect("an index") as usize;
            if choices.len() <= index {
                choices.resize(index + 1, json!({}));
            }
            let ended = choices[index].get("finish_reason").is_some_and(|reason| !reason.is_null());
            assert!(!ended, "news after the end of choice {index}: {part:?}");
            fold(&mut choices[index], part);
        }
        // The same on all chunks that have them, but for the usage, which grows.
        let Value::Object(event) = event else { unreachable!("an event is an object") };
        for (name, value) in event.into_iter().filter(|(_, value)| !value.is_null()) {
            rest[name] = value;
        }
    }
    for (index, choice) in choices.iter_mut().enumerate() {
        choice["index"] = index.into();
    }
    (choices, rest)
}

fn answer(choices: Vec<Value>, mut rest: Value) -> Value {
    rest["choices"] = choices.into();
    without_nulls(rest)
}

/// A stream of `/v1/completions`.
pub(super) fn completion(events: &[Value]) -> Result<Value, String> {
    let (mut choices, rest) = choices(events, |choice, part| add(choice, part.into()));
    // The prompt is scored for its first choice alone, and that is told once.
    let mut of_prompt = Value::Null;
    let mut prompt_ids = Value::Null;
    for choice in &mut choices {
        if choice["prompt_token_ids"] != prompt_ids || !choice["prompt_logprobs"].is_null() {
            (of_prompt, prompt_ids) = (choice["prompt_logprobs"].clone(), choice["prompt_token_ids"].clone());
        }
        if choice["prompt_logprobs"].is_null() {
            choice["prompt_logprobs"] = of_prompt.clone();
        }
    }
    Ok(answer(choices, rest))
}

/// A stream of `/v1/chat/completions`.
pub(super) fn chat(events: &[Value]) -> Result<Value, String> {
    let (mut choices, mut rest) = choices(events, |choice, mut part| {
        let Some(Value::Object(mut delta)) = part.remove("delta") else { panic!("no delta: {part:?}") };
        let calls = delta.remove("tool_calls");
        let message = &mut choice["message"];
        add(message, delta.into());
        for mut call in calls.iter().filter_map(Value::as_array).flatten().cloned() {
            let call_index = call["index"].take().as_u64().expect("which call") as usize;
            if message["tool_calls"].is_null() {
                message["tool_calls"] = json!([]);
            }
            let list = message["tool_calls"].as_array_mut().expect("a list");
            assert!(call_index <= list.len(), "call {call_index} of {list:?}");
            if list.len() == call_index {
                list.push(Value::Null);
            }
            add(&mut list[call_index], without_nulls(call));
        }
        add(choice, part.into());
    });
    for choice in &mut choices {
        let message = &mut choice["message"];
        if message["content"] == "" && !message["tool_calls"].is_null() {
            message["content"] = Value::Null;
        }
    }
    // On the first chunk of each choice.
    if let Some(scores) = events.iter().map(|e| &e["prompt_logprobs"]).find(|scores| !scores.is_null()) {
        rest["prompt_logprobs"] = scores.clone();
    }
    Ok(answer(choices, rest))
}

/// The data of typed events, each of which has its name twice.
fn typed(body: &str) -> Vec<Value> {
    let event = |frame: &str| {
        let (name, data) = frame.split_once("\ndata: ").expect(frame);
        let event: Value = serde_json::from_str(data).expect(data);
        assert_eq!(event["type"], *name.strip_prefix("event: ").expect(name));
        event
    };
    body.split_terminator("\n\n").map(event).collect()
}

/// A whole answer of `/v1/responses`.
pub(super) fn plain_response(answer: Value) -> Value {
    without(answer, &["id", "call_id", "created_at", "completed_at", "cached_tokens"])
}

/// A stream of `/v1/responses`: the response at its end, whose texts are those of the deltas.
pub(super) fn response(body: &str) -> Result<Value, String> {
    let events = typed(body);
    let last = events.last().expect("events");
    if last["type"] == "error" || last["type"] == "response.failed" {
        let error = if last["type"] == "error" { last } else { &last["response"]["error"] };
        return Err(error["message"]
            .as_str()
            .or(error["error"]["message"].as_str())
            .expect("why")
            .to_owned());
    }
    let mut output = last["response"]["output"].clone();
    for event in &events {
        let (kind, delta) = (event["type"].as_str().expect("a type"), event["delta"].as_str());
        let (Some(delta), Some(index)) = (delta, event["output_index"].as_u64()) else { continue };
        let part = event["content_index"].as_u64().unwrap_or(0) as usize;
        let item = &mut output[index as usize];
        let text = match kind {
            "response.output_text.delta" | "response.reasoning_text.delta" => {
                &mut item["content"][part]["text"]
            }
            "response.function_call_arguments.delta" => &mut item["arguments"],
            other => panic!("a delta of {other}"),
        };
        let rest = text.as_str().and_then(|text| text.strip_prefix(delta)).map(str::to_owned);
        *text = rest.unwrap_or_else(|| panic!("{delta:?} is not what follows: {text}")).into();
    }
    for item in output.as_array().expect("items") {
        let mut texts: Vec<_> =
            item["content"].as_array().into_iter().flatten().map(|part| &part["text"]).collect();
        texts.extend(item.get("arguments"));
        assert!(texts.iter().all(|text| **text == ""), "not told in deltas: {item}");
    }
    Ok(plain_response(last["response"].clone()))
}

/// A whole answer of `/v1/messages`.
pub(super) fn plain_message(answer: Value) -> Value {
    without(
        answer,
        &["id", "signature", "cache_read_input_tokens", "input_tokens", "cache_creation_input_tokens"],
    )
}

/// A stream of `/v1/messages`.
pub(super) fn message(body: &str) -> Result<Value, String> {
    let mut message = Value::Null;
    let mut inputs = Vec::<String>::new();
    for event in typed(body) {
        let index = event["index"].as_u64().unwrap_or(0) as usize;
        match event["type"].as_str().expect("a type") {
            "error" => return Err(message_of(&event)),
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                let blocks = message["content"].as_array_mut().expect("blocks");
                assert_eq!(blocks.len(), index, "blocks come in order");
                blocks.push(event["content_block"].clone());
                inputs.push(String::new());
            }
            "content_block_delta" => {
                let (delta, block) = (&event["delta"], &mut message["content"][index]);
                match delta["type"].as_str().expect("a type") {
                    "text_delta" => add(&mut block["text"], delta["text"].clone()),
                    "thinking_delta" => add(&mut block["thinking"], delta["thinking"].clone()),
                    "signature_delta" => block["signature"] = delta["signature"].clone(),
                    "input_json_delta" => {
                        inputs[index].push_str(delta["partial_json"].as_str().expect("text"))
                    }
                    other => panic!("a delta of {other}"),
                }
            }
            "content_block_stop" if message["content"][index]["type"] == "tool_use" => {
                message["content"][index]["input"] =
                    serde_json::from_str(&inputs[index]).unwrap_or(json!({}));
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"]["output_tokens"] = event["usage"]["output_tokens"].clone();
            }
            _ => (),
        }
    }
    Ok(plain_message(message))
}

/// A whole answer of Ollama's API.
pub(super) fn plain_ollama(answer: Value) -> Value {
    let times = ["created_at", "total_duration", "load_duration", "prompt_eval_duration", "eval_duration"];
    without_nulls(without(without(answer, &times), &["id", "context"]))
}

/// A stream of Ollama's API, whose text is in the field `content`.
pub(super) fn ollama(body: &str, content: &str) -> Result<Value, String> {
    let mut whole = json!({});
    for line in body.lines() {
        let line: Value = serde_json::from_str(line).expect(line);
        if line.get("error").is_some() {
            return Err(message_of(&line));
        }
        let Value::Object(line) = plain_ollama(line) else { panic!("not an object") };
        for (name, mut value) in line {
            if let Some(role) = value.get_mut("role").map(Value::take) {
                value.as_object_mut().expect("an object").remove("role");
                whole["message"]["role"] = role;
            }
            match &*name {
                name if name == content => add(&mut whole[name], value),
                "thinking" | "logprobs" => add(&mut whole[&*name], value),
                _ => whole[&*name] = value,
            }
        }
    }
    Ok(whole)
}
