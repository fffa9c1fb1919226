//! [`Config`]: the fields of a config.json, read by name.
//!
//! A family asks for what it knows. A field that is there and is not what it should be is an error that names it;
//! `null` is the same as absent, as in transformers.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::spec::Dtype;

/// A config.json.
pub(crate) struct Config {
    fields: Map<String, Value>,
}

impl Config {
    /// Reads the text of a config.json.
    pub(crate) fn parse(text: &str) -> Result<Self, ModelError> {
        Ok(Self { fields: parse("config.json", text)? })
    }

    /// Another object with such fields, such as one within this.
    pub(crate) fn of(fields: Map<String, Value>) -> Self {
        Self { fields }
    }

    /// The same with a family's own default for a field.
    pub(crate) fn with_default(&self, field: &str, value: Value) -> Self {
        let mut fields = self.fields.clone();
        if self.get(field).is_none() {
            fields.insert(field.into(), value);
        }
        Self { fields }
    }

    /// The same with a default for a field of which `null` says that there is none.
    pub(crate) fn unless_said(&self, field: &str, value: Value) -> Self {
        match self.fields.contains_key(field) {
            true => Self { fields: self.fields.clone() },
            false => self.with(field, value),
        }
    }

    /// The same with a field set, whatever it was.
    pub(crate) fn with(&self, field: &str, value: Value) -> Self {
        let mut fields = self.fields.clone();
        fields.insert(field.into(), value);
        Self { fields }
    }

    /// The same with a family's own name for a field replaced by the common one, if it is there.
    pub(crate) fn renamed(&self, own: &str, common: &str) -> Self {
        match self.get(own) {
            Some(value) => self.with(common, value.clone()),
            None => Self { fields: self.fields.clone() },
        }
    }

    /// A field that is there and not `null`.
    pub(crate) fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// The one entry of `architectures`.
    pub(crate) fn architecture(&self) -> Result<&str, ModelError> {
        let names = self.get("architectures").and_then(Value::as_array);
        match names.map(Vec::as_slice) {
            Some([Value::String(name)]) => Ok(name),
            _ => {
                let found = self.get("architectures").unwrap_or(&Value::Null);
                Err(invalid("architectures", format!("must name exactly one architecture, not {found}")))
            }
        }
    }

    /// A number of things.
    pub(crate) fn count(&self, field: &'static str) -> Result<Option<usize>, ModelError> {
        self.read(field, "a whole number", |value| value.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A number of things of which there must be at least one.
    pub(crate) fn positive(&self, field: &'static str) -> Result<usize, ModelError> {
        self.positive_or(field, None)
    }

    /// The same with transformers' default.
    pub(crate) fn positive_or(
        &self,
        field: &'static str,
        default: Option<usize>,
    ) -> Result<usize, ModelError> {
        match self.count(field)?.or(default) {
            Some(n) if (1..=LARGEST).contains(&n) => Ok(n),
            Some(n) => Err(invalid(field, format!("{n} is not within 1 to {LARGEST}"))),
            None => Err(invalid(field, "missing".into())),
        }
    }

    /// A finite number.
    pub(crate) fn number(&self, field: &'static str) -> Result<Option<f64>, ModelError> {
        self.read(field, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A finite number with transformers' default.
    pub(crate) fn f32_or(&self, field: &'static str, default: f32) -> Result<f32, ModelError> {
        Ok(self.number(field)?.map_or(default, |number| number as f32))
    }

    /// A switch with transformers' default.
    pub(crate) fn flag_or(&self, field: &'static str, default: bool) -> Result<bool, ModelError> {
        Ok(self.read(field, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A word.
    pub(crate) fn word(&self, field: &'static str) -> Result<Option<&str>, ModelError> {
        self.read(field, "a string", Value::as_str)
    }

    /// A list of words.
    pub(crate) fn words(&self, field: &'static str) -> Result<Option<Vec<&str>>, ModelError> {
        self.read(field, "a list of strings", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A list of numbers.
    pub(crate) fn numbers(&self, field: &'static str) -> Result<Option<Vec<f64>>, ModelError> {
        self.read(field, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// Refuses every value of a setting but the one that is computed, which is also what its absence means.
    pub(crate) fn only(
        &self,
        field: &'static str,
        value: Value,
        words: &'static str,
    ) -> Result<(), ModelError> {
        match self.get(field) {
            Some(found) if *found != value => Err(unsupported(field, found, words)),
            _ => Ok(()),
        }
    }

    /// What the weights are stored in: `dtype`, or `torch_dtype` in older files.
    pub(crate) fn dtype(&self) -> Result<Dtype, ModelError> {
        match self.word("dtype")?.or(self.word("torch_dtype")?) {
            None | Some("float32") => Ok(Dtype::F32),
            Some("bfloat16") => Ok(Dtype::Bf16),
            Some("float16") => Ok(Dtype::F16),
            Some(other) => Err(unsupported("dtype", other, "float32, bfloat16, float16")),
        }
    }

    fn read<'a, T>(
        &'a self,
        field: &'static str,
        what: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        let read = read(value).ok_or_else(|| invalid(field, format!("{} is not {what}", brief(value))))?;
        Ok(Some(read))
    }
}

/// A file's JSON.
pub(crate) fn parse<'a, T: Deserialize<'a>>(name: &str, text: &'a str) -> Result<T, ModelError> {
    serde_json::from_str(text)
        .map_err(|error| ModelError::Malformed { path: name.into(), reason: error.to_string() })
}

/// The greatest size that is taken for one: products of two of them stay far from overflow.
const LARGEST: usize = 1 << 28;

/// A value that a field must not have.
pub(crate) fn invalid(field: &'static str, reason: String) -> ModelError {
    ModelError::Config { field, reason }
}

/// A value that means something which is not computed here.
pub(crate) fn unsupported(field: &'static str, found: impl ToString, supported: &'static str) -> ModelError {
    ModelError::Unsupported { field, found: brief(found), supported }
}

/// The beginning of a value's text, enough to recognise it by.
fn brief(value: impl ToString) -> String {
    let text = value.to_string();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
