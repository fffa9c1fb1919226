//! Input items as a conversation: [`Transcript`]. What OpenAI keeps as a flat list of items (messages, calls,
//! outputs, reasoning) chat templates want as messages, an assistant's with its calls and its reasoning.

use serde_json::{Map, Value, json};

use super::object::new_id;
use super::tools::name_in;
use super::writer::CLEAR;
use crate::http::error::excerpt;
use crate::http::fields::expected_got;
use crate::http::part::{Part, Wrong, each, none_of};

/// Messages as templates expect them.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    pub(super) messages: Vec<Value>,
}

impl Transcript {
    /// Adds a message of the system. Several at the start become one: hardly a template takes more.
    pub(super) fn push_system(&mut self, text: String) {
        if let [first] = &mut *self.messages
            && first["role"] == "system"
        {
            let joined = format!("{}\n\n{text}", first["content"].as_str().unwrap_or_default());
            first["content"] = joined.into();
            return;
        }
        self.messages.push(json!({"role": "system", "content": text}));
    }

    /// Adds an item that has been through [`normalize`].
    pub(super) fn push(&mut self, item: Value) -> Result<(), Wrong> {
        let mut item = Part::new(item)?;
        match item.required_string("type")?.as_str() {
            "message" => self.push_message(item),
            "reasoning" => self.push_reasoning(item),
            "function_call" => {
                let arguments = item.string("arguments")?.unwrap_or_default();
                self.push_call(item, call_arguments(&arguments))
            }
            "custom_tool_call" => {
                let input = item.required_string("input")?;
                self.push_call(item, json!({"input": input}))
            }
            "function_call_output" | "custom_tool_call_output" => {
                let call_id = item.required_string("call_id")?;
                let output = item.take("output").ok_or_else(|| Part::missing("output"))?;
                let content = read_content("output", output)?;
                self.messages.push(json!({"role": "tool", "tool_call_id": call_id, "content": content}));
                Ok(())
            }
            other => {
                let message = format!(
                    "items of type {:?} are not supported: only messages, reasoning, function and custom tool calls \
                     and their outputs",
                    excerpt(other)
                );
                Err(Wrong::new(".type", message))
            }
        }
    }

    fn push_message(&mut self, mut item: Part) -> Result<(), Wrong> {
        let role = item.name("role")?;
        let content = item.take("content").ok_or_else(|| Part::missing("content"))?;
        let text = read_content("content", content)?;
        match role.as_str() {
            // Hardly a template knows the newer word.
            "system" | "developer" => self.push_system(text),
            "user" => self.messages.push(json!({"role": "user", "content": text})),
            "assistant" => {
                let message = self.assistant(|message| !said_anything(message));
                message.insert("content".into(), text.into());
            }
            other => {
                return Err(none_of("role", "\"user\", \"assistant\", \"system\" or \"developer\"", other));
            }
        }
        Ok(())
    }

    fn push_reasoning(&mut self, mut item: Part) -> Result<(), Wrong> {
        let encrypted = item.string("encrypted_content")?;
        let mut texts = each(".content", item.list("content")?.unwrap_or_default(), read_reasoning)?;
        // Our own reasoning is in clear. That of others is for them alone to read, and a conversation may go
        // on without it.
        if texts.is_empty()
            && let Some(text) = encrypted.as_deref().and_then(|text| text.strip_prefix(CLEAR))
        {
            texts.push(text.to_owned());
        }
        if texts.is_empty() {
            texts = each(".summary", item.list("summary")?.unwrap_or_default(), read_reasoning)?;
        }
        let text = texts.join("\n");
        if text.is_empty() {
            return Ok(());
        }
        let message = self.assistant(|message| !said_anything(message) && !message.contains_key("reasoning"));
        // Templates read either name.
        message.insert("reasoning".into(), text.clone().into());
        message.insert("reasoning_content".into(), text.into());
        Ok(())
    }

    fn push_call(&mut self, mut item: Part, arguments: Value) -> Result<(), Wrong> {
        let (id, name) = (item.name("call_id")?, item.name("name")?);
        let name = name_in(item.string("namespace")?.as_deref(), &name);
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let message = self.assistant(|_| true);
        match message.get_mut("tool_calls") {
            Some(Value::Array(calls)) => calls.push(call),
            _ => drop(message.insert("tool_calls".into(), json!([call]))),
        }
        Ok(())
    }

    /// The assistant's message that is last, if what is to be added `fits` it, or else a new one.
    fn assistant(&mut self, fits: impl Fn(&Map<String, Value>) -> bool) -> &mut Map<String, Value> {
        let last = self.messages.last().and_then(Value::as_object);
        if !last.is_some_and(|message| message["role"] == "assistant" && fits(message)) {
            self.messages.push(json!({"role": "assistant", "content": ""}));
        }
        self.messages.last_mut().and_then(Value::as_object_mut).expect("every message is an object")
    }
}

/// Brings an item of a request into the one form that is stored, listed and read: `type` and `id` are there,
/// and `content` of messages is a list.
pub(super) fn normalize(item: Value) -> Result<Value, Wrong> {
    let Value::Object(mut item) = item else {
        return Err(Wrong::new("", expected_got("an object", &item)));
    };
    item.retain(|_, value| !value.is_null());
    let kind = match item.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(other) => return Err(Wrong::new(".type", expected_got("a string", other))),
        None if item.contains_key("role") => "message".to_owned(),
        // OpenAI's types let a reference go without its type.
        None if item.len() == 1 && item.contains_key("id") => "item_reference".to_owned(),
        None => return Err(Wrong::new(".type", "this field is required")),
    };
    if kind == "message"
        && let Some(Value::String(text)) = item.get("content")
    {
        let part = if item.get("role").is_some_and(|role| role == "assistant") {
            json!({"type": "output_text", "text": text, "annotations": []})
        } else {
            json!({"type": "input_text", "text": text})
        };
        item.insert("content".into(), json!([part]));
    }
    let prefix = match kind.as_str() {
        "message" => "msg",
        "reasoning" => "rs",
        "function_call" | "function_call_output" => "fc",
        _ => "ctc",
    };
    item.insert("type".into(), kind.into());
    item.entry("id").or_insert_with(|| new_id(prefix).into());
    item.entry("status").or_insert("completed".into());
    Ok(Value::Object(item))
}

/// A message of the user who says just this.
pub(super) fn user_message(text: String) -> Value {
    json!({"role": "user", "content": text})
}

fn said_anything(message: &Map<String, Value>) -> bool {
    message.contains_key("tool_calls") || message.get("content").is_some_and(|content| content != "")
}

/// A string, or the texts of a list of parts, one a line.
fn read_content(name: &str, content: Value) -> Result<String, Wrong> {
    let at = format!(".{name}");
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => Ok(each(&at, parts, read_part)?.join("\n")),
        other => Err(Wrong::new(at, expected_got("a string or a list of parts", &other))),
    }
}

fn read_part(part: Value) -> Result<String, Wrong> {
    let mut part = Part::new(part)?;
    match part.required_string("type")?.as_str() {
        "input_text" | "output_text" | "text" => part.required_string("text"),
        "refusal" => part.required_string("refusal"),
        other => {
            let other = excerpt(other);
            let message = format!("parts of type {other:?} are not supported: the model reads text only");
            Err(Wrong::new(".type", message))
        }
    }
}

fn read_reasoning(part: Value) -> Result<String, Wrong> {
    Part::new(part)?.required_string("text")
}

/// Clients send arguments as a string of JSON; templates want what it says. What a model wrote that is no
/// object stays as it wrote it: the conversation, in which it is told so, must be able to go on.
fn call_arguments(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(Value::Object(arguments)) => Value::Object(arguments),
        _ if text.trim().is_empty() => json!({}),
        _ => text.into(),
    }
}
