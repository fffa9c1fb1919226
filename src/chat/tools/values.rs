//! Values that a model writes as plain text: what they may be, and what they are as JSON.

use serde_json::Value;

/// What a value may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    TextOrNull,
    Any,
}

/// What a parameter with this schema may be.
pub(super) fn kind_of(schema: &Value) -> Kind {
    let is_text = |value: &Value| value == "string";
    match &schema["type"] {
        Value::String(kind) if kind == "string" => Kind::Text,
        Value::Array(kinds) if kinds.iter().any(is_text) => {
            if kinds.iter().all(|kind| is_text(kind) || kind == "null") {
                Kind::TextOrNull
            } else {
                Kind::Any
            }
        }
        Value::Null if schema["enum"].as_array().is_some_and(|all| all.iter().all(Value::is_string)) => {
            Kind::Text
        }
        _ => Kind::Any,
    }
}

/// The value as JSON, if it is any; Python's words are understood.
pub(super) fn as_json(value: &str) -> Option<String> {
    let value = value.trim();
    match value {
        "True" => Some("true".into()),
        "False" => Some("false".into()),
        "None" => Some("null".into()),
        _ => serde_json::from_str::<Value>(value).is_ok().then(|| value.to_owned()),
    }
}
