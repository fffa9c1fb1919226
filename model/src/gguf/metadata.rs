//! [`Metadata`]: the keys of a GGUF file, asked for by name and type.

use std::collections::BTreeMap;

/// Bytes of a word at most.
const MAX_WORD_BYTES: usize = 256;

/// What a key has.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any of the eight types of integers.
    Integer(i128),
    /// f32 or f64.
    Float(f64),
    /// A boolean.
    Flag(bool),
    /// A string.
    Text(String),
    /// An array of numbers (integers beyond 2^53 rounded) or booleans.
    Numbers(Vec<f64>),
    /// An array of strings.
    Texts(Vec<String>),
}

/// All keys. Who asks for one as what it is not gets an error that names it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metadata {
    entries: BTreeMap<String, Value>,
}

impl Metadata {
    /// Of these entries.
    pub fn new(entries: BTreeMap<String, Value>) -> Self {
        Self { entries }
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// A string.
    pub fn text(&self, key: &str) -> Result<Option<&str>, String> {
        self.get(key, "a string", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A string that names one of a few things, and is not longer than such names are: errors repeat it.
    pub fn word(&self, key: &str) -> Result<Option<&str>, String> {
        match self.text(key)? {
            Some(text) if text.len() > MAX_WORD_BYTES => {
                Err(format!("key {key:?}: a string of {} bytes, not a name", text.len()))
            }
            word => Ok(word),
        }
    }

    /// An integer that is not negative.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, String> {
        self.get(key, "an integer, and not negative", |value| match value {
            Value::Integer(integer) => u64::try_from(*integer).ok(),
            _ => None,
        })
    }

    /// The same, or one for each layer if all are the same.
    pub fn integer_of_layers(&self, key: &str) -> Result<Option<u64>, String> {
        match self.entries.get(key) {
            Some(Value::Numbers(numbers)) => match &numbers[..] {
                [first, rest @ ..]
                    if *first >= 0.0 && first.fract() == 0.0 && rest.iter().all(|number| number == first) =>
                {
                    Ok(Some(*first as u64))
                }
                _ => Err(format!("key {key:?}: layers that differ are not supported")),
            },
            _ => self.integer(key),
        }
    }

    /// A finite number, whole or not.
    pub fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.get(key, "a finite number", |value| match value {
            Value::Integer(_) | Value::Float(_) => value.as_number().filter(|number| number.is_finite()),
            _ => None,
        })
    }

    /// A boolean.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, String> {
        self.get(key, "true or false", |value| match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, String> {
        self.get(key, "an array of strings", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// An array of numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<&[f64]>, String> {
        self.get(key, "an array of numbers", |value| match value {
            Value::Numbers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.entries.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| format!("key {key:?}: {} is not {wanted}", value.short()))
    }
}

impl Value {
    /// A single number or boolean as a number.
    pub(super) fn as_number(&self) -> Option<f64> {
        match self {
            Self::Integer(integer) => Some(*integer as f64),
            Self::Float(float) => Some(*float),
            Self::Flag(flag) => Some(u8::from(*flag).into()),
            Self::Text(_) | Self::Numbers(_) | Self::Texts(_) => None,
        }
    }

    fn short(&self) -> String {
        match self {
            Self::Integer(integer) => integer.to_string(),
            Self::Float(float) => float.to_string(),
            Self::Flag(flag) => flag.to_string(),
            Self::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Self::Numbers(numbers) => format!("an array of {} numbers", numbers.len()),
            Self::Texts(texts) => format!("an array of {} strings", texts.len()),
        }
    }
}
