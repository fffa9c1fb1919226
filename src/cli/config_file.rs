//! `--config FILE`: a YAML map of flag names (with - or _) to values, read into the words that could
//! have been typed instead, so that there is one way to check them.

use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;

/// One entry of the file: a flag's name with dashes, and its values.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Without the leading `--`.
    pub(super) flag: String,
    /// None for `null`: the entry says nothing. Several for a list.
    pub(super) values: Vec<String>,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigFileError {
    /// It cannot be read.
    #[error("--config: cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML.
    #[error("--config: {path} is not YAML: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml_ng::Error,
    },
    /// It is YAML, but not a map of names to values.
    #[error("--config: {path} must be a map of flag names to values, like `max-num-seqs: 64`; {found}", path = path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is there instead.
        found: String,
    },
}

/// Reads a file; an empty one has no entries.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, ConfigFileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigFileError::Read { path: path.into(), source })?;
    entries(&text, path)
}

fn entries(text: &str, path: &Path) -> Result<Vec<Entry>, ConfigFileError> {
    let shape = |found: String| ConfigFileError::Shape { path: path.into(), found };
    let value: Value = serde_yaml_ng::from_str(text)
        .map_err(|source| ConfigFileError::Parse { path: path.into(), source })?;
    let map = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(map) => map,
        other => return Err(shape(format!("it is {}", kind(&other)))),
    };
    let entry = |(key, value): (Value, Value)| {
        let Value::String(key) = key else { return Err(shape(format!("a key is {}", kind(&key)))) };
        let words = match value {
            Value::Sequence(list) => list.iter().map(word).collect(),
            Value::Null => Some(Vec::new()),
            other => word(&other).map(|word| vec![word]),
        };
        let values = words.ok_or_else(|| shape(format!("the value of `{key}` has lists inside a list")))?;
        Ok(Entry { flag: key.replace('_', "-"), values })
    };
    map.into_iter().map(entry).collect()
}

/// A scalar as it would be typed; a map becomes JSON, which is how such flags are typed.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(on) => Some(on.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Mapping(_) => serde_json::to_string(value).ok(),
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "empty",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Sequence(_) => "a list",
        Value::Mapping(_) => "a map",
        Value::Tagged(_) => "a tagged value",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<(String, Vec<String>)>, String> {
        let entries = entries(text, Path::new("q.yaml")).map_err(|e| e.to_string())?;
        Ok(entries.into_iter().map(|e| (e.flag, e.values)).collect())
    }

    #[test]
    fn scalars_and_lists_become_words() {
        let text = "port: 9000\nmax_num_seqs: 64\nenable-prefix-caching: false\nserved-model-name: [a, b]\ntokenizer:\n";
        let words =
            |flag: &str, values: &[&str]| (flag.to_string(), values.iter().map(|v| v.to_string()).collect());
        let expected: Vec<(String, Vec<String>)> = vec![
            words("port", &["9000"]),
            words("max-num-seqs", &["64"]),
            words("enable-prefix-caching", &["false"]),
            words("served-model-name", &["a", "b"]),
            words("tokenizer", &[]),
        ];
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(vec![]));
    }

    #[test]
    fn other_shapes_are_refused_with_what_was_found() {
        for (text, found) in [
            ("- a\n", "a list"),
            ("just words", "a text"),
            ("7: x\n", "a key is a number"),
            ("a: [[1]]", "`a`"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(found) && error.contains("q.yaml"), "{error}");
        }
        assert!(parse("a: b: c").unwrap_err().contains("not YAML"));
    }
}
