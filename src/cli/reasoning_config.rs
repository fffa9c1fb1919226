//! `--reasoning-config`: vLLM's JSON about the markers of reasoning.

use serde_json::{Map, Value};

use crate::config::ReasoningConfig;

/// Reads the JSON; the error is a sentence.
pub(super) fn parse_reasoning_config(text: &str) -> Result<ReasoningConfig, String> {
    let mut fields: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("must be a JSON object: {error}"))?;
    let mut marker = |name: &str| match fields.remove(name) {
        Some(Value::String(marker)) if !marker.is_empty() => Ok(marker),
        Some(_) => Err(format!("{name} must be a string that is not empty")),
        None => Err(format!("{name} is missing")),
    };
    let config = ReasoningConfig { begin: marker("reasoning_start_str")?, end: marker("reasoning_end_str")? };
    match fields.keys().next() {
        Some(name) => {
            Err(format!("{name} is not supported; supported: reasoning_start_str, reasoning_end_str"))
        }
        None => Ok(config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_markers_are_read_and_the_rest_is_refused_by_name() {
        let both = r#"{"reasoning_start_str":"<t>","reasoning_end_str":"</t>"}"#;
        let expected = ReasoningConfig { begin: "<t>".into(), end: "</t>".into() };
        assert_eq!(parse_reasoning_config(both).unwrap(), expected);
        for (json, told) in [
            ("<think>", "JSON"),
            (r#"{"reasoning_start_str":"<t>"}"#, "reasoning_end_str"),
            (r#"{"reasoning_end_str":"<t>"}"#, "reasoning_start_str"),
            (r#"{"reasoning_start_str":"","reasoning_end_str":"b"}"#, "reasoning_start_str"),
            (r#"{"reasoning_start_str":"a","reasoning_end_str":"b","budget":3}"#, "budget"),
        ] {
            let error = parse_reasoning_config(json).unwrap_err();
            assert!(error.contains(told), "{json}: {error}");
        }
    }
}
