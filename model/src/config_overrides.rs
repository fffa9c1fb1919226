//! [`with_overrides`]: a config.json as the operator wants it (`--hf-overrides`).

use serde_json::{Map, Value};

use crate::error::ModelError;
use crate::families::parse;

/// The text of a config.json with these fields instead of its own. An object takes the place of single fields of an
/// object of that name, and of everything else as a whole.
pub fn with_overrides(config: &str, overrides: &Map<String, Value>) -> Result<String, ModelError> {
    if overrides.is_empty() {
        return Ok(config.into());
    }
    let mut fields: Map<String, Value> = parse("config.json", config)?;
    merge(&mut fields, overrides);
    Ok(Value::Object(fields).to_string())
}

fn merge(fields: &mut Map<String, Value>, overrides: &Map<String, Value>) {
    for (name, value) in overrides {
        match (fields.get_mut(name), value) {
            (Some(Value::Object(own)), Value::Object(new)) => merge(own, new),
            _ => drop(fields.insert(name.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn single_fields_are_replaced_at_any_depth() {
        let config =
            json!({"a": 1, "rope": {"type": "x", "factor": 2, "deep": {"b": [1, 2]}}, "c": {"d": 1}});
        let overrides = json!({"a": "one", "new": null, "rope": {"factor": 4.0, "deep": {"b": [3]}}, "c": 7});
        let merged = with_overrides(&config.to_string(), overrides.as_object().unwrap()).unwrap();
        let expected = json!({"a": "one", "rope": {"type": "x", "factor": 4.0, "deep": {"b": [3]}}, "c": 7, "new": null});
        assert_eq!(serde_json::from_str::<Value>(&merged).unwrap(), expected);
        assert_eq!(with_overrides("not even JSON", &Map::new()).unwrap(), "not even JSON");
        assert!(with_overrides("[]", overrides.as_object().unwrap()).is_err());
    }
}
