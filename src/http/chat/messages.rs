//! The messages of a conversation, brought into the one form that chat templates expect: `content` is a
//! string, `arguments` of tool calls are objects. Whatever else a message has is left for the template.

use serde_json::{Map, Value, json};

use crate::http::error::excerpt;
use crate::http::fields::{Fields, expected_got};

/// Checks and converts; errors go to `fields`.
pub(crate) fn read_messages(messages: Vec<Value>, fields: &mut Fields) -> Vec<Value> {
    read_messages_at("messages", messages, fields)
}

/// The same, for messages that are at `path`.
pub(super) fn read_messages_at(path: &str, messages: Vec<Value>, fields: &mut Fields) -> Vec<Value> {
    if messages.is_empty() {
        fields.wrong(path, "at least one message is required");
    }
    let mut converted = Vec::with_capacity(messages.len());
    for (index, message) in messages.into_iter().enumerate() {
        match read_message(message) {
            Ok(message) => converted.push(message),
            Err(Wrong { at, message }) => {
                fields.wrong(format!("{path}[{index}]{at}"), message);
                break;
            }
        }
    }
    converted
}

/// A message, for `/openapi.json`.
pub(super) fn message_schema() -> Value {
    let string = || json!({ "type": "string" });
    let text = |kinds: &[&str], field: &str| {
        json!({
            "type": "object",
            "properties": { "type": { "enum": kinds }, field: { "type": "string" } },
            "required": ["type", field],
        })
    };
    let part = json!({ "anyOf": [
        text(&["text", "input_text", "output_text"], "text"), text(&["refusal"], "refusal"), { "type": "string" },
    ] });
    let content = json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": part }] });
    let arguments =
        json!({ "anyOf": [{ "type": "object" }, { "type": "string", "description": "A JSON object" }] });
    let function = json!({
        "type": "object", "properties": { "name": string(), "arguments": arguments }, "required": ["name"],
    });
    let call = json!({
        "type": "object", "properties": { "id": string(), "type": { "const": "function" }, "function": function },
        "required": ["function"],
    });
    json!({ "anyOf": [
        {
            "type": "object",
            "properties": {
                "role": { "const": "assistant" },
                "content": { "anyOf": [content, { "type": "null" }] },
                "reasoning": { "type": ["string", "null"] },
                "tool_calls": { "type": ["array", "null"], "items": call },
            },
            "required": ["role"],
        },
        {
            "type": "object",
            "properties": {
                "role": { "enum": ["system", "developer", "user", "tool"] },
                "content": content,
                "tool_call_id": { "type": ["string", "null"] },
            },
            "required": ["role", "content"],
        },
    ] })
}

/// Where in a message, and what.
#[derive(Debug)]
struct Wrong {
    at: String,
    message: String,
}

fn wrong<T>(at: impl Into<String>, message: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong { at: at.into(), message: message.into() })
}

fn read_message(message: Value) -> Result<Value, Wrong> {
    let Value::Object(mut message) = message else {
        return wrong("", expected_got("an object", &message));
    };
    message.retain(|_, value| !value.is_null());
    let role = match message.get("role") {
        Some(Value::String(role)) if !role.is_empty() => role.clone(),
        Some(Value::String(_)) => return wrong(".role", "must not be empty"),
        Some(other) => return wrong(".role", expected_got("a string", other)),
        None => return wrong(".role", "this field is required"),
    };
    if role == "developer" {
        // OpenAI's new name for the same thing. Hardly a template knows it, and many drop what they do not
        // know, while those that do know it treat both alike.
        message.insert("role".into(), "system".into());
    }
    let content = match message.remove("content") {
        Some(content) => read_content(content)?,
        None if role == "assistant" => String::new(),
        None => return wrong(".content", "this field is required"),
    };
    message.insert("content".into(), content.into());
    if let Some(calls) = message.get_mut("tool_calls") {
        read_tool_calls(calls)?;
    }
    both_names_of_reasoning(&mut message);
    Ok(Value::Object(message))
}

/// A string, or the texts of a list of parts, one a line.
fn read_content(content: Value) -> Result<String, Wrong> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return wrong(".content", expected_got("a string or a list of parts", &other)),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.into_iter().enumerate() {
        texts.push(
            read_part(part)
                .map_err(|Wrong { at, message }| Wrong { at: format!(".content[{index}]{at}"), message })?,
        );
    }
    Ok(texts.join("\n"))
}

fn read_part(part: Value) -> Result<String, Wrong> {
    let mut part = match part {
        Value::String(text) => return Ok(text),
        Value::Object(part) => part,
        other => return wrong("", expected_got("an object", &other)),
    };
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
    let field = match kind {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        other => {
            let other = excerpt(other);
            return wrong(
                ".type",
                format!("parts of type {other:?} are not supported: the model reads text only"),
            );
        }
    };
    match part.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => wrong(format!(".{field}"), expected_got("a string", &other)),
        None => wrong(format!(".{field}"), "this field is required"),
    }
}

/// Clients send arguments as a string of JSON; templates want what it says.
fn read_tool_calls(calls: &mut Value) -> Result<(), Wrong> {
    let Value::Array(calls) = calls else { return wrong(".tool_calls", expected_got("a list", calls)) };
    for (index, call) in calls.iter_mut().enumerate() {
        let at = format!(".tool_calls[{index}].function");
        let Some(Value::Object(function)) = call.get_mut("function") else {
            return wrong(at, "expected an object with a name");
        };
        if !function.get("name").is_some_and(Value::is_string) {
            return wrong(format!("{at}.name"), "expected a string");
        }
        let arguments = match function.get("arguments") {
            None | Some(Value::Null) => Value::Object(Map::new()),
            Some(Value::String(text)) if text.trim().is_empty() => Value::Object(Map::new()),
            Some(Value::String(text)) => serde_json::from_str(text).or_else(|error| {
                wrong(format!("{at}.arguments"), format!("this string is not valid JSON: {error}"))
            })?,
            Some(other) => other.clone(),
        };
        if !arguments.is_object() {
            return wrong(format!("{at}.arguments"), expected_got("an object", &arguments));
        }
        function.insert("arguments".into(), arguments);
    }
    Ok(())
}

/// Templates read either name; clients send back the one they got.
fn both_names_of_reasoning(message: &mut Map<String, Value>) {
    for (from, to) in [("reasoning", "reasoning_content"), ("reasoning_content", "reasoning")] {
        if let (Some(text), false) = (message.get(from).cloned(), message.contains_key(to)) {
            message.insert(to.into(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_becomes_a_string() {
        let message = |content: Value| read_message(json!({"role": "user", "content": content})).unwrap();
        assert_eq!(message(json!("hi"))["content"], "hi");
        let parts = json!([{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]);
        assert_eq!(message(parts)["content"], "a\nb\nc");
        assert_eq!(message(json!([]))["content"], "");
    }

    #[test]
    fn null_content_is_for_assistants() {
        let call =
            json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": [1]}"}});
        let message = json!({"role": "assistant", "content": null, "tool_calls": [call]});
        let read = read_message(message).unwrap();
        assert_eq!(read["content"], "");
        assert_eq!(read["tool_calls"][0]["function"]["arguments"], json!({"a": [1]}));
        assert_eq!(read_message(json!({"role": "user", "content": null})).unwrap_err().at, ".content");
        let empty =
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]});
        assert_eq!(read_message(empty).unwrap()["tool_calls"][0]["function"]["arguments"], json!({}));
    }

    #[test]
    fn roles_pass_and_developers_are_systems() {
        assert_eq!(read_message(json!({"role": "developer", "content": "x"})).unwrap()["role"], "system");
        assert_eq!(read_message(json!({"role": "narrator", "content": "x"})).unwrap()["role"], "narrator");
        let tool = json!({"role": "tool", "tool_call_id": "1", "content": "42", "name": null});
        assert_eq!(
            read_message(tool).unwrap(),
            json!({"role": "tool", "tool_call_id": "1", "content": "42"})
        );
    }

    #[test]
    fn wrong_messages_say_where() {
        let image = json!([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]);
        let call = |function: Value| json!({"role": "assistant", "tool_calls": [{"function": function}]});
        for (message, at) in [
            (json!("hi"), ""),
            (json!({"content": "hi"}), ".role"),
            (json!({"role": 1, "content": "hi"}), ".role"),
            (json!({"role": "user"}), ".content"),
            (json!({"role": "user", "content": 5}), ".content"),
            (json!({"role": "user", "content": image}), ".content[1].type"),
            (json!({"role": "user", "content": [{"type": "text"}]}), ".content[0].text"),
            (json!({"role": "user", "content": [{"type": "text", "text": 1}]}), ".content[0].text"),
            (json!({"role": "assistant", "tool_calls": {}}), ".tool_calls"),
            (call(json!({})), ".tool_calls[0].function.name"),
            (call(json!({"name": "f", "arguments": "{"})), ".tool_calls[0].function.arguments"),
            (call(json!({"name": "f", "arguments": "[]"})), ".tool_calls[0].function.arguments"),
        ] {
            assert_eq!(read_message(message.clone()).unwrap_err().at, at, "{message}");
        }
    }

    #[test]
    fn reasoning_has_both_names() {
        let message = json!({"role": "assistant", "content": "a", "reasoning_content": "r"});
        assert_eq!(read_message(message).unwrap()["reasoning"], "r");
    }
}
