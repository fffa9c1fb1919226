//! Anthropic's messages, which are lists of blocks, as a conversation that chat templates understand: calls go
//! to the assistant's message, results become messages of their own, text stays where it is.

use serde_json::{Map, Value, json};

use crate::http::error::excerpt;
use crate::http::fields::expected_got;
use crate::http::part::{Part, Wrong, each, none_of};

/// How the line begins in which Claude Code says anew in every request what it has been billed for. Kept, it
/// would make each request's prompt another one from the first tokens on, and the prefix cache useless.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";

/// Adds a `system` field: a text, or blocks of text.
pub(super) fn push_system(system: Value, messages: &mut Vec<Value>) -> Result<(), Wrong> {
    let text = system_text(system)?;
    if !text.is_empty() {
        messages.push(json!({"role": "system", "content": text}));
    }
    Ok(())
}

/// Adds a message.
pub(super) fn push_message(message: Value, messages: &mut Vec<Value>) -> Result<(), Wrong> {
    let mut message = Part::new(message)?;
    let role = message.name("role")?;
    let content = message.take("content").ok_or_else(|| Part::missing("content"))?;
    let within = |wrong: Wrong| wrong.within(".content");
    match role.as_str() {
        "user" => push_user(content, messages).map_err(within),
        "assistant" => push_assistant(content, messages).map_err(within),
        // Stays in its place: moved to the front it would change the prompt from there on.
        "system" => push_system(content, messages).map_err(within),
        other => Err(none_of("role", "\"user\", \"assistant\" or \"system\"", other)),
    }
}

/// A block of text, for `/openapi.json`.
pub(super) fn text_schema() -> Value {
    let properties = json!({ "type": { "const": "text" }, "text": { "type": "string" } });
    json!({ "type": "object", "properties": properties, "required": ["type", "text"] })
}

/// A message, for `/openapi.json`.
pub(super) fn message_schema() -> Value {
    let id = || json!({ "type": "string", "minLength": 1 });
    let block = |kind: &str, more: Value, required: &[&str]| {
        let mut block = json!({ "type": "object", "properties": more, "required": required });
        block["properties"]["type"] = json!({ "const": kind });
        block
    };
    let results = json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": text_schema() }] });
    let content = |blocks: Value| json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "anyOf": blocks } }] });
    let message = |role: &str, content: Value| {
        let properties = json!({ "role": { "const": role }, "content": content });
        json!({ "type": "object", "properties": properties, "required": ["role", "content"] })
    };
    let result = json!({ "tool_use_id": id(), "content": results, "is_error": { "type": "boolean" } });
    let thinking = json!({ "thinking": { "type": "string" }, "signature": { "type": "string" } });
    let tool_use = json!({ "id": id(), "name": id(), "input": { "type": "object" } });
    let user = content(json!([text_schema(), block("tool_result", result, &["type", "tool_use_id"])]));
    let assistant = content(json!([
        text_schema(),
        block("thinking", thinking, &["type", "thinking"]),
        block("tool_use", tool_use, &["type", "id", "name", "input"]),
    ]));
    let system = content(json!([text_schema()]));
    json!({ "anyOf": [message("user", user), message("assistant", assistant), message("system", system)] })
}

fn system_text(system: Value) -> Result<String, Wrong> {
    let texts = match system {
        Value::String(text) => vec![text],
        other => each("", blocks(other)?, |block| match Block::read(block)? {
            Block::Text(text) | Block::ToolChange(text) => Ok(text),
            other => Err(other.misplaced()),
        })?,
    };
    let kept = texts.iter().map(|text| without_billing(text)).filter(|text| !text.is_empty());
    Ok(kept.collect::<Vec<_>>().join("\n\n"))
}

fn without_billing(text: &str) -> String {
    if !text.contains(BILLING_HEADER) {
        return text.to_owned();
    }
    let lines = text.split('\n').filter(|line| !line.trim_start().starts_with(BILLING_HEADER));
    lines.collect::<Vec<_>>().join("\n")
}

fn push_user(content: Value, messages: &mut Vec<Value>) -> Result<(), Wrong> {
    let mut texts = Vec::new();
    for (index, block) in read_blocks(content)?.enumerate() {
        match block? {
            Block::Text(text) => texts.push(text),
            Block::ToolResult { id, content } => {
                push_text("user", &mut texts, messages);
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
            }
            other => return Err(other.misplaced().within(&format!("[{index}]"))),
        }
    }
    push_text("user", &mut texts, messages);
    Ok(())
}

fn push_text(role: &str, texts: &mut Vec<String>, messages: &mut Vec<Value>) {
    if !texts.is_empty() {
        messages.push(json!({"role": role, "content": texts.join("\n")}));
        texts.clear();
    }
}

fn push_assistant(content: Value, messages: &mut Vec<Value>) -> Result<(), Wrong> {
    let (mut texts, mut thoughts, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for (index, block) in read_blocks(content)?.enumerate() {
        match block? {
            Block::Text(text) => texts.push(text),
            Block::Thinking(text) => thoughts.push(text),
            Block::ToolUse { id, name, input } => calls
                .push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}})),
            Block::Hidden => (),
            other @ (Block::ToolResult { .. } | Block::ToolChange(_)) => {
                return Err(other.misplaced().within(&format!("[{index}]")));
            }
        }
    }
    let mut message = json!({"role": "assistant", "content": texts.join("\n")});
    if !thoughts.is_empty() {
        // Templates read either name.
        let thoughts = thoughts.join("\n");
        message["reasoning"] = thoughts.clone().into();
        message["reasoning_content"] = thoughts.into();
    }
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    messages.push(message);
    Ok(())
}

/// A block of a message.
enum Block {
    Text(String),
    Thinking(String),
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
    ToolResult {
        id: String,
        content: String,
    },
    /// Thoughts that only their author can read.
    Hidden,
    /// What the system has to say of a tool in the middle of a conversation.
    ToolChange(String),
}

/// The blocks of a text or of a list, each read with its place.
fn read_blocks(content: Value) -> Result<impl Iterator<Item = Result<Block, Wrong>>, Wrong> {
    let numbered = blocks(content)?.into_iter().enumerate();
    Ok(numbered.map(|(index, block)| Block::read(block).map_err(|wrong| wrong.within(&format!("[{index}]")))))
}

fn blocks(content: Value) -> Result<Vec<Value>, Wrong> {
    match content {
        Value::String(text) => Ok(vec![json!({"type": "text", "text": text})]),
        Value::Array(blocks) => Ok(blocks),
        other => Err(Wrong::new("", expected_got("a string or a list of blocks", &other))),
    }
}

impl Block {
    fn read(block: Value) -> Result<Self, Wrong> {
        let mut block = Part::new(block)?;
        Ok(match block.required_string("type")?.as_str() {
            "text" => Self::Text(block.required_string("text")?),
            "thinking" => {
                // Nobody has to be convinced by it; but it is a string.
                block.string("signature")?;
                Self::Thinking(block.required_string("thinking")?)
            }
            "redacted_thinking" => Self::Hidden,
            "tool_use" => Self::ToolUse {
                id: block.name("id")?,
                name: block.name("name")?,
                input: block.object("input")?.unwrap_or_default(),
            },
            "tool_result" => {
                Self::ToolResult { id: block.name("tool_use_id")?, content: read_result(&mut block)? }
            }
            "tool_addition" => Self::ToolChange(ready(&changed_tool(&mut block)?)),
            "tool_removal" => {
                Self::ToolChange(format!("The tool {} is not available any more.", changed_tool(&mut block)?))
            }
            other => return Err(unsupported(other)),
        })
    }

    /// The error for a block where it has no place.
    fn misplaced(&self) -> Wrong {
        let (kind, place) = match self {
            Self::Text(_) => ("text", "in messages"),
            Self::Thinking(_) | Self::Hidden => ("thinking", "in messages of the assistant"),
            Self::ToolUse { .. } => ("tool_use", "in messages of the assistant"),
            Self::ToolResult { .. } => ("tool_result", "in messages of the user"),
            Self::ToolChange(_) => ("tool_addition", "in messages of the system"),
        };
        Wrong::new("", format!("blocks of type {kind:?} are allowed only {place}"))
    }
}

fn unsupported(kind: &str) -> Wrong {
    let kind = excerpt(kind);
    Wrong::new(".type", format!("blocks of type {kind:?} are not supported: the model reads text only"))
}

/// `content` of a result. Templates have no other way to say that a tool failed than its text.
fn read_result(block: &mut Part) -> Result<String, Wrong> {
    let failed = block.flag("is_error")?;
    let content = block.take("content").unwrap_or_else(|| "".into());
    let blocks = blocks(content).map_err(|wrong| wrong.within(".content"))?;
    let texts = each(".content", blocks, |block| {
        let mut block = Part::new(block)?;
        match block.required_string("type")?.as_str() {
            "text" => block.required_string("text"),
            "tool_reference" => Ok(ready(&block.name("tool_name")?)),
            other => Err(unsupported(other)),
        }
    })?;
    let text = texts.join("\n");
    Ok(if failed { format!("Error: {text}") } else { text })
}

/// What the model is told when a tool comes into play: all tools of the request are in the prompt from the
/// beginning on, so that the prompt stays the same.
fn ready(tool: &str) -> String {
    format!("The tool {tool} is ready.")
}

fn changed_tool(block: &mut Part) -> Result<String, Wrong> {
    let tool = block.take("tool").ok_or_else(|| Part::missing("tool"))?;
    let read = |tool| {
        let mut tool = Part::new(tool)?;
        match tool.required_string("type")?.as_str() {
            "tool_reference" => tool.name("name"),
            other => Err(none_of("type", "\"tool_reference\"", other)),
        }
    };
    read(tool).map_err(|wrong: Wrong| wrong.within(".tool"))
}
