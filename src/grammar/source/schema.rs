//! [`for_each_schema`]: the schemas within a schema, told from what merely looks like one; and [`tighten`], which
//! says of some formats what llguidance does not know.

use serde_json::{Map, Value, json};

/// Keywords whose value is a schema, or a list of schemas.
const SCHEMAS: [&str; 15] = [
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "contains",
    "else",
    "if",
    "items",
    "not",
    "oneOf",
    "prefixItems",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Keywords whose value has names of its own for schemas.
const NAMED_SCHEMAS: [&str; 5] =
    ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// Calls `visit` with the schema and every schema within it. A constant that looks like a schema is none, and a
/// property may have the name of a keyword.
pub(in crate::grammar) fn for_each_schema(
    schema: &mut Map<String, Value>,
    visit: &mut impl FnMut(&mut Map<String, Value>),
) {
    visit(schema);
    for (keyword, value) in schema.iter_mut() {
        match value {
            Value::Object(named) if NAMED_SCHEMAS.contains(&keyword.as_str()) => {
                named
                    .values_mut()
                    .filter_map(Value::as_object_mut)
                    .for_each(|one| for_each_schema(one, visit));
            }
            Value::Object(one) if SCHEMAS.contains(&keyword.as_str()) => for_each_schema(one, visit),
            Value::Array(list) if SCHEMAS.contains(&keyword.as_str()) => {
                list.iter_mut().filter_map(Value::as_object_mut).for_each(|one| for_each_schema(one, visit));
            }
            _ => {}
        }
    }
}

/// What the automata of llguidance let through and the standards do not: 29 February of any year, the second 60
/// of any minute, addresses and names that are too long or only look like international ones.
const FORMATS: [(&str, &str, Option<u64>); 5] = [
    ("date", DATE, None),
    ("date-time", DATE_TIME, None),
    ("time", "^..:..:[0-5]", None),
    ("email", r"^[^@]{1,64}@([A-Za-z0-9]([.-]?[A-Za-z0-9]){0,120}|\[.*\])$", None),
    ("hostname", "^[A-Za-z0-9]([.-]?[A-Za-z0-9])*$", Some(253)),
];
const DATE: &str = r"^(....-(0[13-9]|1[0-2])-..|....-02-([01].|2[0-8])|(..(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)$";
const DATE_TIME: &str = r"^(....-(0[13-9]|1[0-2])-..|....-02-([01].|2[0-8])|(..(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)-02-29)[Tt]..:..:[0-5]";

/// Adds to the schema, and to those within it, what llguidance does not know of their formats.
pub(super) fn tighten(schema: &mut Map<String, Value>) {
    for_each_schema(schema, &mut |schema| {
        let format = schema.get("format").and_then(Value::as_str);
        let Some((_, pattern, max_length)) = FORMATS.iter().find(|(name, ..)| Some(*name) == format) else {
            return;
        };
        let mut also = json!({ "pattern": pattern });
        if let Some(max_length) = max_length {
            also["maxLength"] = (*max_length).into();
        }
        if let Value::Array(all) = schema.entry("allOf").or_insert_with(|| json!([])) {
            all.push(also);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_told_from_constants_and_names() {
        let mut schema = json!({
            "const": {"properties": {"x": {"n": 0}}},
            "default": {"items": {"n": 0}},
            "items": [{"n": 1}, true],
            "properties": {"items": {"n": 2, "not": {"n": 3}}, "enum": {"n": 4}, "a": false},
            "anyOf": [{"additionalProperties": {"n": 5}}],
            "$defs": {"const": {"n": 6}},
        });
        let mut seen = Vec::new();
        for_each_schema(schema.as_object_mut().unwrap(), &mut |one| seen.extend(one.get("n").cloned()));
        seen.sort_by_key(Value::as_u64);
        assert_eq!(Value::from(seen), json!([1, 2, 3, 4, 5, 6]));
    }
}
