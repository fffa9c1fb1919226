//! Python's view of values: how they print, and the methods that templates call on them.

use std::fmt::{self, Write};

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use crate::text::TextError;

/// Depth at which printing a value gives up; values from requests are shallower by construction.
const MAX_PRINT_DEPTH: usize = 200;

/// Converts JSON from a request. Objects keep their order.
///
/// # Errors
/// [`TextError::TemplateLimit`] where `value` nests deeper than `max_depth`.
pub(super) fn from_json(value: &serde_json::Value, max_depth: usize) -> Result<Value, TextError> {
    if nests_deeper(value, max_depth) {
        return Err(TextError::TemplateLimit { limit: max_depth as u64, unit: "levels of nested JSON" });
    }
    Ok(Value::from_serialize(value))
}

fn nests_deeper(value: &serde_json::Value, max_depth: usize) -> bool {
    let Some(inner) = max_depth.checked_sub(1) else { return true };
    match value {
        serde_json::Value::Array(items) => items.iter().any(|item| nests_deeper(item, inner)),
        serde_json::Value::Object(map) => map.values().any(|value| nests_deeper(value, inner)),
        _ => false,
    }
}

/// Python's `str(value)`.
pub(super) fn to_str(value: &Value) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail; a value that nests too deeply prints up to there.
    let _ = write_str(&mut text, value);
    text
}

/// Appends Python's `str(value)`; an undefined value prints nothing.
pub(super) fn write_str(out: &mut dyn Write, value: &Value) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None => write_repr(out, value, 0),
    }
}

fn write_repr(out: &mut dyn Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > MAX_PRINT_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => Ok(()),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(float) => write_float(out, float),
            Err(_) => Err(fmt::Error),
        },
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.write_char('[')?;
            for (index, item) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(out, &item, depth + 1)?;
            }
            out.write_char(']')
        }
        ValueKind::Map => {
            out.write_char('{')?;
            for (index, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                out.write_str(if index > 0 { ", " } else { "" })?;
                write_repr(out, &key, depth + 1)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).map_err(|_| fmt::Error)?, depth + 1)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent below 1e-4 and from 1e16
/// on.
pub(super) fn write_float(out: &mut dyn Write, float: f64) -> fmt::Result {
    if float.is_nan() {
        return out.write_str("nan");
    }
    if float.is_infinite() {
        return out.write_str(if float > 0.0 { "inf" } else { "-inf" });
    }
    let scientific = format!("{float:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().map_err(|_| fmt::Error)?;
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return write!(out, "{mantissa}e{sign}{:02}", exponent.abs());
    }
    // Debug keeps the `.0` of a whole number and uses no exponent in this range.
    write!(out, "{float:?}")
}

fn write_quoted(out: &mut dyn Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if is_printable(c) => out.write_char(c)?,
            c if u32::from(c) < 0x100 => write!(out, "\\x{:02x}", u32::from(c))?,
            c if u32::from(c) < 0x10000 => write!(out, "\\u{:04x}", u32::from(c))?,
            c => write!(out, "\\U{:08x}", u32::from(c))?,
        }
    }
    out.write_char(quote)
}

/// Rust escapes the same categories in debug output as Python does in `repr`, apart from quotes and from
/// combining marks that begin a string, hence the letter before it.
fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'') || ['a', c].iter().collect::<String>().escape_debug().count() == 2
}

/// Methods of strings and template-made values. What the compatibility crate does not have, or does in bytes
/// where Python counts characters, is here; the rest is passed on.
pub(super) fn call_method(
    state: &State,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, method, args);
    };
    match method {
        "split" | "rsplit" => split(text, method == "rsplit", args),
        "find" | "rfind" | "index" | "rindex" => find(text, method, args),
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let found =
                if method == "partition" { text.split_once(separator) } else { text.rsplit_once(separator) };
            let parts = match found {
                Some((before, after)) => [before, separator, after],
                None if method == "partition" => [text, "", ""],
                None => ["", "", text],
            };
            Ok(parts.into_iter().map(Value::from).collect())
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Ok(text.strip_prefix(prefix).unwrap_or(text).into())
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Ok(text.strip_suffix(suffix).unwrap_or(text).into())
        }
        "count" => {
            let (needle,): (&str,) = from_args(args)?;
            Ok(text.matches(needle).count().into())
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            state.apply_filter("join", &[values.clone(), Value::from(text)])
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// `str.split` and `str.rsplit` with `sep` and `maxsplit`.
fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (positional, kwargs): (Rest<Value>, Kwargs) = from_args(args)?;
    let separator = match positional.first() {
        Some(separator) => Some(separator.clone()),
        None => kwargs.get::<Option<Value>>("sep")?,
    };
    let max_splits = match positional.get(1) {
        Some(count) => Some(i64::try_from(count.clone())?),
        None => kwargs.get::<Option<i64>>("maxsplit")?,
    };
    kwargs.assert_all_used()?;
    let max_parts =
        max_splits.and_then(|count| usize::try_from(count).ok()).map_or(usize::MAX, |count| count + 1);
    let separator = separator.filter(|separator| !separator.is_none());
    let mut parts: Vec<&str> = match separator.as_ref().map(|separator| separator.as_str()) {
        None => split_whitespace(text, from_right, max_parts),
        Some(None | Some("")) => {
            let message = "split: the separator must be a non-empty string";
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
        Some(Some(separator)) if from_right => text.rsplitn(max_parts, separator).collect(),
        Some(Some(separator)) => text.splitn(max_parts, separator).collect(),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Words between runs of whitespace, in the order in which they are found. The last of at most `max_parts` is
/// all the rest, with the whitespace at its far end.
fn split_whitespace(text: &str, from_right: bool, max_parts: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        rest = if from_right { rest.trim_end() } else { rest.trim_start() };
        if rest.is_empty() {
            return parts;
        }
        let gap = if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        let Some(gap) = gap.filter(|_| parts.len() + 1 < max_parts) else {
            parts.push(rest);
            return parts;
        };
        let width = rest[gap..].chars().next().map_or(0, char::len_utf8);
        let (before, after) = (&rest[..gap], &rest[gap + width..]);
        let (part, others) = if from_right { (after, before) } else { (before, after) };
        parts.push(part);
        rest = others;
    }
}

/// `find` and its relatives, in characters; `index` and `rindex` fail where the others give -1.
fn find(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (needle,): (&str,) = from_args(args)?;
    let found = if method.starts_with('r') { text.rfind(needle) } else { text.find(needle) };
    match found {
        Some(at) => Ok(text[..at].chars().count().into()),
        None if method.ends_with("index") => {
            Err(Error::new(ErrorKind::InvalidOperation, "substring not found"))
        }
        None => Ok((-1).into()),
    }
}
