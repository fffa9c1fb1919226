//! [`Part`]: one object of a list in a body (an item, a message, a block, a tool), read by name.
//!
//! [`Fields`](super::fields::Fields) reads the body itself; what lies deeper is read here, and what is wrong
//! with it says where: [`Wrong`] gathers its path on the way up.

use serde_json::{Map, Value};

use super::error::{ApiError, excerpt};
use super::fields::expected_got;

/// Something in a list of the body cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Where, from the value that was read on: `.content[1].type`.
    pub(crate) at: String,
    /// What is wrong and what is allowed.
    pub(crate) message: String,
}

impl Wrong {
    /// Of what is at `at`.
    pub(crate) fn new(at: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at: at.into(), message: message.into() }
    }

    /// The same, seen from what contains it.
    pub(crate) fn within(mut self, outer: &str) -> Self {
        self.at.insert_str(0, outer);
        self
    }
}

impl From<Wrong> for ApiError {
    fn from(Wrong { at, message }: Wrong) -> Self {
        Self::bad_body(format!("1 validation error: {at}: {message}")).about(at)
    }
}

/// What is left of an object to read. Nulls count as not given.
#[derive(Debug)]
pub(crate) struct Part(Map<String, Value>);

impl Part {
    /// Of a value that must be an object.
    pub(crate) fn new(value: Value) -> Result<Self, Wrong> {
        match value {
            Value::Object(mut map) => {
                map.retain(|_, value| !value.is_null());
                Ok(Self(map))
            }
            other => Err(Wrong::new("", expected_got("an object", &other))),
        }
    }

    /// A string, if there is one.
    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, Wrong> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Wrong::new(format!(".{name}"), expected_got("a string", &other))),
        }
    }

    /// A string that must be there.
    pub(crate) fn required_string(&mut self, name: &str) -> Result<String, Wrong> {
        self.string(name)?.ok_or_else(|| Self::missing(name))
    }

    /// A name: a string that must be there and not be empty.
    pub(crate) fn name(&mut self, name: &str) -> Result<String, Wrong> {
        match self.required_string(name)? {
            text if text.is_empty() => Err(Wrong::new(format!(".{name}"), "must not be empty")),
            text => Ok(text),
        }
    }

    /// true or false; false if it is not there.
    pub(crate) fn flag(&mut self, name: &str) -> Result<bool, Wrong> {
        match self.0.remove(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(Wrong::new(format!(".{name}"), expected_got("a boolean", &other))),
        }
    }

    /// A list, if there is one.
    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, Wrong> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(other) => Err(Wrong::new(format!(".{name}"), expected_got("a list", &other))),
        }
    }

    /// An object, if there is one.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, Wrong> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(map)),
            Some(other) => Err(Wrong::new(format!(".{name}"), expected_got("an object", &other))),
        }
    }

    /// Anything.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.remove(name)
    }

    /// That `name` is missing.
    pub(crate) fn missing(name: &str) -> Wrong {
        Wrong::new(format!(".{name}"), "this field is required")
    }
}

/// Reads every value of the list called `name`; what is wrong is said with its place in the list.
pub(crate) fn each<T>(
    name: &str,
    values: Vec<Value>,
    mut read: impl FnMut(Value) -> Result<T, Wrong>,
) -> Result<Vec<T>, Wrong> {
    let numbered = values.into_iter().enumerate();
    numbered
        .map(|(index, value)| read(value).map_err(|wrong| wrong.within(&format!("{name}[{index}]"))))
        .collect()
}

/// A value of `field` that is none of those allowed.
pub(crate) fn none_of(field: &str, allowed: &str, got: &str) -> Wrong {
    Wrong::new(format!(".{field}"), format!("expected {allowed}, got {:?}", excerpt(got)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_says_where() {
        let read = |value: Value| -> Result<String, Wrong> {
            let mut part = Part::new(value)?;
            part.flag("loud")?;
            let inner = part.list("parts")?.unwrap_or_default();
            each(".parts", inner, |value| Part::new(value)?.name("name"))?;
            part.required_string("text")
        };
        assert_eq!(read(json!({"text": "a", "loud": null, "parts": [{"name": "b"}]})).as_deref(), Ok("a"));
        for (value, at) in [
            (json!([]), ""),
            (json!({}), ".text"),
            (json!({"text": 1}), ".text"),
            (json!({"loud": "yes"}), ".loud"),
            (json!({"parts": {}}), ".parts"),
            (json!({"parts": [{"name": "b"}, {"name": ""}]}), ".parts[1].name"),
            (json!({"parts": [7]}), ".parts[0]"),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().at, at, "{value}");
        }
    }

    #[test]
    fn it_becomes_an_error_with_its_path() {
        let json = ApiError::from(Wrong::new(".type", "no").within("input[2]")).to_json();
        assert!(json.contains(r#""param":"input[2].type""#) && json.contains("\"code\":400"), "{json}");
    }
}
