//! What a client may say of tools: `tools`, `tool_choice` and `parallel_tool_calls`.

use serde_json::{Value, json};

use crate::chat::{MAX_TOOL_NAME_CHARS, MAX_TOOLS, Tool, ToolChoice};
use crate::http::error::excerpt;
use crate::http::fields::Fields;

/// Tools in all have at most this many bytes as JSON: each is shown to the model and may become a grammar.
const MAX_TOOLS_BYTES: usize = 1 << 20;

/// Reads `tools`, checked, in the form that templates get.
pub(super) fn read_tools(fields: &mut Fields) -> Option<Vec<Value>> {
    let tools = fields.list("tools")?;
    if tools.is_empty() {
        fields.wrong("tools", "must not be empty; leave it out if there are none");
    }
    check_tools(&tools, fields).then_some(tools)
}

/// Whether these, in chat's form, can be used; if not, `fields` knows why.
pub(crate) fn check_tools(tools: &[Value], fields: &mut Fields) -> bool {
    if tools.len() > MAX_TOOLS {
        fields.wrong("tools", format!("at most {MAX_TOOLS} are allowed, got {}", tools.len()));
        return false;
    }
    let num_bytes: usize = tools.iter().map(|tool| tool.to_string().len()).sum();
    if num_bytes > MAX_TOOLS_BYTES {
        fields
            .wrong("tools", format!("at most {MAX_TOOLS_BYTES} bytes of JSON are allowed, got {num_bytes}"));
        return false;
    }
    let mut names: Vec<String> = Vec::with_capacity(tools.len());
    for (index, tool) in tools.iter().enumerate() {
        match Tool::read(tool) {
            Ok(tool) if names.contains(&tool.name) => {
                let message = format!("the name {:?} is there twice", tool.name);
                fields.wrong(format!("tools[{index}].function.name"), message);
                return false;
            }
            Ok(tool) => names.push(tool.name),
            Err(wrong) => {
                fields.wrong(format!("tools[{index}]{}", wrong.at), wrong.message);
                return false;
            }
        }
    }
    true
}

/// Reads `tool_choice`. Where it allows only some of `tools`, the others are taken out.
pub(super) fn read_tool_choice(fields: &mut Fields, tools: &mut Option<Vec<Value>>) -> ToolChoice {
    let had_errors = fields.has_errors();
    let choice = match fields.take("tool_choice").filter(|choice| !choice.is_null()) {
        None if tools.is_some() => return ToolChoice::Auto,
        None => return ToolChoice::None,
        Some(choice) => choice,
    };
    let read = match &choice {
        Value::String(word) => match word.as_str() {
            "none" => return ToolChoice::None,
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            other => Err(format!("must be none, auto, required or a function, got {:?}", excerpt(other))),
        },
        Value::Object(object) => match object.get("type").and_then(Value::as_str) {
            Some("function") => function_name(&choice).map(|name| ToolChoice::Named(name.into())),
            Some("allowed_tools") => allowed_tools(&choice["allowed_tools"], tools),
            _ => Err("must have the type \"function\" or \"allowed_tools\"".into()),
        },
        _ => Err("expected a string or an object".into()),
    };
    if had_errors {
        return ToolChoice::None;
    }
    let checked = read.and_then(|choice| match (&choice, &tools) {
        (_, None) => Err("tool_choice is allowed only when tools are given".into()),
        (ToolChoice::Named(name), Some(tools)) if !tools.iter().any(|tool| name_of(tool) == name) => {
            Err(format!("there is no tool {:?} among the tools", excerpt(name)))
        }
        _ => Ok(choice),
    });
    checked.unwrap_or_else(|message| {
        fields.wrong("tool_choice", message);
        ToolChoice::None
    })
}

/// A tool, for `/openapi.json`.
pub(super) fn tool_schema() -> Value {
    let name = json!({
        "type": "string", "minLength": 1, "maxLength": MAX_TOOL_NAME_CHARS, "pattern": "^[a-zA-Z0-9_.-]+$",
    });
    json!({
        "type": "object",
        "properties": {
            "type": { "const": "function" },
            "function": {
                "type": "object",
                "properties": {
                    "name": name,
                    "description": { "type": "string" },
                    "parameters": { "type": "object" },
                    "strict": { "type": ["boolean", "null"] },
                },
                "required": ["name"],
            },
        },
        "required": ["function"],
    })
}

/// `tool_choice`, for `/openapi.json`.
pub(super) fn tool_choice_schema() -> Value {
    let function = json!({
        "type": "object",
        "properties": {
            "type": { "const": "function" },
            "function": { "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] },
        },
        "required": ["type", "function"],
    });
    let allowed = json!({
        "type": "object",
        "properties": {
            "mode": { "enum": ["auto", "required"] },
            "tools": { "type": "array", "items": function, "minItems": 1 },
        },
        "required": ["mode", "tools"],
    });
    let allowed = json!({
        "type": "object",
        "properties": { "type": { "const": "allowed_tools" }, "allowed_tools": allowed },
        "required": ["type", "allowed_tools"],
    });
    json!({ "anyOf": [{ "enum": ["none", "auto", "required"] }, function, allowed] })
}

/// `{"mode": "auto" | "required", "tools": [{"type": "function", "function": {"name"}}]}`: the model is shown
/// these tools and no others, so that it cannot call them.
fn allowed_tools(allowed: &Value, tools: &mut Option<Vec<Value>>) -> Result<ToolChoice, String> {
    let choice = match allowed["mode"].as_str() {
        Some("auto") => ToolChoice::Auto,
        Some("required") => ToolChoice::Required,
        _ => return Err("allowed_tools.mode must be auto or required".into()),
    };
    let Some(list) = allowed["tools"].as_array().filter(|list| !list.is_empty()) else {
        return Err("allowed_tools.tools must be a list of functions, at least one".into());
    };
    let names = list.iter().map(function_name).collect::<Result<Vec<_>, _>>()?;
    let Some(tools) = tools else { return Ok(choice) };
    if let Some(name) = names.iter().find(|name| !tools.iter().any(|tool| name_of(tool) == **name)) {
        return Err(format!("there is no tool {:?} among the tools", excerpt(name)));
    }
    tools.retain(|tool| names.contains(&name_of(tool)));
    Ok(choice)
}

fn function_name(choice: &Value) -> Result<&str, String> {
    choice["function"]["name"].as_str().ok_or_else(|| "function.name must be a string".into())
}

fn name_of(tool: &Value) -> &str {
    tool["function"]["name"].as_str().unwrap_or_default()
}
