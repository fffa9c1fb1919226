//! [`Tool`]: a function that the model may call, as the client describes it.

use serde_json::{Map, Value};

/// A tool of a request, checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    /// The function's name.
    pub(crate) name: String,
    /// The JSON schema of its arguments, an object; absent = none.
    pub(crate) parameters: Option<Map<String, Value>>,
    /// The arguments must keep to the schema.
    pub(crate) strict: bool,
}

/// Why something is not a tool: where in it, and what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BadTool {
    /// Path within the tool: `.function.name`, or empty.
    pub(crate) at: &'static str,
    /// What is wrong and what is allowed.
    pub(crate) message: String,
}

/// Tools that a request may have (OpenAI's limit).
pub(crate) const MAX_TOOLS: usize = 128;
/// Characters of a function's name (OpenAI's limit is 64; tools of agents have longer ones).
pub(crate) const MAX_TOOL_NAME_CHARS: usize = 128;

impl Tool {
    /// Reads OpenAI's form: `{"type": "function", "function": {"name", "parameters", "strict"}}`.
    ///
    /// # Errors
    /// Says what is wrong, and where.
    pub(crate) fn read(tool: &Value) -> Result<Self, BadTool> {
        let wrong = |at, message: &str| Err(BadTool { at, message: message.into() });
        let Some(tool) = tool.as_object() else { return wrong("", "expected an object") };
        match tool.get("type").unwrap_or(&Value::Null) {
            Value::Null => (),
            Value::String(kind) if kind == "function" => (),
            _ => return wrong(".type", "only tools of type \"function\" are supported"),
        }
        let Some(function) = tool.get("function").and_then(Value::as_object) else {
            return wrong(".function", "expected an object with a name");
        };
        let name = match function.get("name") {
            Some(Value::String(name)) => name.clone(),
            _ => return wrong(".function.name", "expected a string"),
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > MAX_TOOL_NAME_CHARS || !name.chars().all(allowed) {
            let message = format!(
                "must be 1 to {MAX_TOOL_NAME_CHARS} characters: letters, digits, underscores, dashes and dots"
            );
            return Err(BadTool { at: ".function.name", message });
        }
        let parameters = match function.get("parameters") {
            None | Some(Value::Null) => None,
            Some(Value::Object(schema)) => Some(schema.clone()),
            Some(_) => return wrong(".function.parameters", "expected an object: a JSON schema"),
        };
        let strict = match function.get("strict") {
            None | Some(Value::Null) => false,
            Some(Value::Bool(strict)) => *strict,
            Some(_) => return wrong(".function.strict", "expected a boolean"),
        };
        Ok(Self { name, parameters, strict })
    }

    /// The schema of one parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<&Value> {
        self.parameters.as_ref()?.get("properties")?.get(name)
    }
}
