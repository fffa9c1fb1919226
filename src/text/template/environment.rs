//! The minijinja environment that chat templates expect: the one of `transformers`, as far as templates can
//! see.

use std::fmt;
use std::time::SystemTime;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::{json, python, strftime};

/// The message of a template's `raise_exception`.
#[derive(Debug)]
pub(super) struct RaisedByTemplate(pub(super) String);

impl fmt::Display for RaisedByTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RaisedByTemplate {}

/// An environment that prints, compares and computes like Jinja2 under Python, as far as templates can tell.
///
/// Known differences: tuples print as lists; `~` spells lists, dicts and very large or small floats in
/// minijinja's way; `%` does not format strings; a list or string that is empty cannot be reversed with
/// `[::-1]`; filters that no chat template needs are missing (`wordcount`, `truncate`, `center`, `urlize`,
/// `random`) and so are string methods for padding (`zfill`, `center`) and Jinja2's `cycler`, `joiner` and
/// `lipsum`.
pub(super) fn python_like() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(python::call_method);
    env.set_formatter(|out, _state, value| Ok(python::write_str(out, value)?));

    env.add_filter("tojson", json::tojson);
    env.add_filter("string", |value: &Value| python::to_str(value));
    env.add_filter("join", join);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_function("raise_exception", raise_exception);

    // Python's numbers include booleans, and its strings and dicts are iterable and have a length.
    let is_collection = |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
    };
    env.add_test("sequence", move |value: &Value| is_collection(value) || value.is_undefined());
    env.add_test("iterable", move |value: &Value| is_collection(value) || value.is_undefined());
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
    env
}

/// The function `strftime_now(format)`, at a fixed time.
pub(super) fn strftime_now(now: SystemTime) -> Value {
    Value::from_function(move |format: &str| strftime::strftime(format, now))
}

/// Finds an error of type `T` below `error`.
pub(super) fn source_of<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// Replaces `{% generation %}` and `{% endgeneration %}`, which mark the answer's text for training and do
/// nothing when serving, by a `with` block: it has the same scope and the same whitespace rules.
pub(super) fn without_generation_tags(source: &str) -> String {
    let mut output = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        output.push_str(before);
        rest = tag;
        let inner = tag.trim_start_matches(['-', '+']).trim_start();
        let name_len = inner.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (name, after) = inner.split_at(name_len);
        let ends = after.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        let replacement = match name {
            "generation" if ends => "with",
            "endgeneration" if ends => "endwith",
            _ => continue,
        };
        output.push_str(&tag[..tag.len() - inner.len()]);
        output.push_str(replacement);
        rest = after;
    }
    output + rest
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = python::to_str(message);
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(RaisedByTemplate(message)))
}

/// Jinja2's `int(default=0, base=10)`: what does not parse becomes the default.
fn int(value: &Value, default: Option<Value>, base: Option<u32>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0));
    let base = base.or(kwargs.get("base")?).unwrap_or(10);
    kwargs.assert_all_used()?;
    if value.is_integer() {
        return Ok(value.clone());
    }
    let digits = value.as_str().map(str::trim);
    let parsed = digits.filter(|_| (2..=36).contains(&base)).and_then(|text| {
        let prefix = match base {
            2 => "0b",
            8 => "0o",
            16 => "0x",
            _ => "",
        };
        i128::from_str_radix(text.strip_prefix(prefix).unwrap_or(text), base).ok()
    });
    let truncated = || to_float(value).filter(|float| float.abs() < 1e38).map(|float| float as i128);
    Ok(parsed.or_else(truncated).map_or(default, Value::from))
}

/// Jinja2's `float(default=0.0)`.
fn float(value: &Value, default: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = default.or(kwargs.get("default")?).unwrap_or_else(|| Value::from(0.0));
    kwargs.assert_all_used()?;
    Ok(to_float(value).map_or(default, Value::from))
}

fn to_float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::String => value.as_str()?.trim().parse().ok(),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        _ => f64::try_from(value.clone()).ok(),
    }
}

/// Jinja2's undefined value is an empty collection.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() { Ok(0) } else { minijinja::filters::length(value) }
}

/// Jinja2's `join(d="", attribute=None)`, printing like Python.
fn join(state: &State, values: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let separator = match args.first() {
        Some(separator) => Some(separator.clone()),
        None => kwargs.get::<Option<Value>>("d")?,
    };
    let separator = separator.map_or_else(String::new, |separator| python::to_str(&separator));
    let attribute: Option<&str> = kwargs.get("attribute")?;
    kwargs.assert_all_used()?;
    let values = match attribute {
        Some(attribute) => {
            let options: Kwargs = [("attribute", Value::from(attribute))].into_iter().collect();
            state.apply_filter("map", &[values.clone(), options.into()])?
        }
        None => values.clone(),
    };
    let mut joined = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        if index > 0 {
            joined.push_str(&separator);
        }
        python::write_str(&mut joined, &value)?;
    }
    Ok(joined)
}
