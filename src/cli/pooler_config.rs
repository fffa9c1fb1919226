//! `--pooler-config`: vLLM's JSON about pooling.

use quire_scheduler::Pooling;
use serde_json::{Map, Value};

use crate::config::PoolerOverrides;

/// Reads the JSON. Old names of vLLM's fields are understood; fields that ask for what is not there are refused.
pub(super) fn parse_pooler_config(text: &str) -> Result<PoolerOverrides, String> {
    let fields: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| format!("must be a JSON object: {error}"))?;
    let mut overrides = PoolerOverrides::default();
    for (name, value) in fields {
        match (&*name, value) {
            (_, Value::Null) => {}
            ("seq_pooling_type" | "pooling_type", Value::String(kind)) => {
                overrides.pooling = Some(pooling(&name, &kind)?);
            }
            ("use_activation" | "normalize", Value::Bool(normalize)) => overrides.normalize = Some(normalize),
            ("seq_pooling_type" | "pooling_type", _) => return Err(format!("{name} must be a string")),
            ("use_activation" | "normalize", _) => return Err(format!("{name} must be true or false")),
            _ => return Err(format!("{name} is not supported; supported: seq_pooling_type, use_activation")),
        }
    }
    Ok(overrides)
}

fn pooling(field: &str, kind: &str) -> Result<Pooling, String> {
    match kind.to_ascii_uppercase().as_str() {
        "LAST" => Ok(Pooling::Last),
        "CLS" => Ok(Pooling::Cls),
        "MEAN" => Ok(Pooling::Mean),
        _ => Err(format!("{field} must be LAST, CLS or MEAN, got {kind:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vllms_names_old_and_new() {
        let all = parse_pooler_config(r#"{"seq_pooling_type":"MEAN","use_activation":false}"#).unwrap();
        assert_eq!(all, PoolerOverrides { pooling: Some(Pooling::Mean), normalize: Some(false) });
        let old = parse_pooler_config(r#"{"pooling_type":"last","normalize":true}"#).unwrap();
        assert_eq!(old, PoolerOverrides { pooling: Some(Pooling::Last), normalize: Some(true) });
        assert_eq!(parse_pooler_config(r#"{"pooling_type":null}"#).unwrap(), PoolerOverrides::default());
    }

    #[test]
    fn the_rest_is_refused_by_name() {
        for (json, told) in [
            ("MEAN", "JSON"),
            ("[]", "JSON"),
            (r#"{"pooling_type":"ALL"}"#, "pooling_type"),
            (r#"{"seq_pooling_type":1}"#, "seq_pooling_type"),
            (r#"{"use_activation":"yes"}"#, "use_activation"),
            (r#"{"step_tag_id":3}"#, "step_tag_id"),
        ] {
            let error = parse_pooler_config(json).unwrap_err();
            assert!(error.contains(told), "{json}: {error}");
        }
    }
}
