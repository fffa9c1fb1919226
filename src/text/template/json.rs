//! `tojson` as chat templates know it: Python's `json.dumps(value, ensure_ascii=False)`.
//!
//! The prompt must be what the model saw in training, to the byte: Python's separators, its spelling of
//! floats, and no HTML escapes (unlike Jinja2's own filter, which transformers replaces in the same way).

use std::fmt::Write;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::python;

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Option<Value>, Error> {
        match args.get(index) {
            Some(value) => Ok(Some(value.clone())),
            None => kwargs.get::<Option<Value>>(name),
        }
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?.map(indentation).transpose()?.flatten();
    let separators = argument(2, "separators")?.filter(|value| !value.is_none());
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    kwargs.assert_all_used()?;

    let item_separator = if indent.is_some() { "," } else { ", " };
    let (item, key) = match separators {
        Some(pair) => (part(&pair, 0)?, part(&pair, 1)?),
        None => (item_separator.to_string(), ": ".to_string()),
    };
    let mut writer = Writer { out: String::new(), ensure_ascii, indent, item, key, sort_keys, depth: 0 };
    writer.value(value)?;
    Ok(writer.out)
}

/// `indent` is a number of spaces or the string itself; `None` writes one line.
fn indentation(value: Value) -> Result<Option<String>, Error> {
    if value.is_none() || value.is_undefined() {
        return Ok(None);
    }
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_string()));
    }
    let width = i64::try_from(value)?.clamp(0, 64);
    Ok(Some(" ".repeat(width as usize)))
}

fn part(pair: &Value, index: usize) -> Result<String, Error> {
    let part = pair.get_item_by_index(index)?;
    part.as_str().map(String::from).ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, "tojson: separators must be a pair of strings")
    })
}

struct Writer {
    out: String,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
    depth: usize,
}

impl Writer {
    fn value(&mut self, value: &Value) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.number(value)?,
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => self.list(value)?,
            ValueKind::Map => self.map(value)?,
            kind => {
                let message = format!("a value of type {kind} is not JSON serializable");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn number(&mut self, value: &Value) -> Result<(), Error> {
        if value.is_integer() {
            return Ok(write!(self.out, "{value}")?);
        }
        let float = f64::try_from(value.clone())?;
        if float.is_nan() {
            self.out.push_str("NaN");
        } else if float.is_infinite() {
            self.out.push_str(if float > 0.0 { "Infinity" } else { "-Infinity" });
        } else {
            python::write_float(&mut self.out, float)?;
        }
        Ok(())
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        self.out.push('"');
        for c in text.chars() {
            match c {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || (self.ensure_ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}")?;
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
        Ok(())
    }

    fn list(&mut self, list: &Value) -> Result<(), Error> {
        self.open('[')?;
        let mut is_empty = true;
        for item in list.try_iter()? {
            self.next_item(is_empty);
            is_empty = false;
            self.value(&item)?;
        }
        self.close(']', is_empty);
        Ok(())
    }

    fn map(&mut self, map: &Value) -> Result<(), Error> {
        self.open('{')?;
        let mut entries = Vec::new();
        for key in map.try_iter()? {
            entries.push((key_text(&key)?, map.get_item(&key)?));
        }
        if self.sort_keys {
            entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        }
        for (index, (key, value)) in entries.iter().enumerate() {
            self.next_item(index == 0);
            self.string(key)?;
            self.out.push_str(&self.key);
            self.value(value)?;
        }
        self.close('}', entries.is_empty());
        Ok(())
    }

    fn open(&mut self, bracket: char) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > super::MAX_DEPTH {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value nests too deeply"));
        }
        self.out.push(bracket);
        Ok(())
    }

    fn next_item(&mut self, is_first: bool) {
        if !is_first {
            self.out.push_str(&self.item);
        }
        self.new_line();
    }

    fn close(&mut self, bracket: char, is_empty: bool) {
        self.depth -= 1;
        if !is_empty {
            self.new_line();
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            for _ in 0..self.depth {
                self.out.push_str(indent);
            }
        }
    }
}

/// JSON's keys are strings; Python writes other scalars as their JSON text.
fn key_text(key: &Value) -> Result<String, Error> {
    Ok(match key.kind() {
        ValueKind::String => key.as_str().unwrap_or_default().to_string(),
        ValueKind::None => "null".into(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
        ValueKind::Number => python::to_str(key),
        kind => {
            let message = format!("tojson: keys must be scalars, not {kind}");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    })
}
