//! JSON schemas of every sort against an outside judge: whatever a schema's masks let through, an independent
//! validator accepts.

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use serde_json::{Value, json};

use super::walk::{accepts, draw};
use super::{COMPILER, Constraint, JsonOptions, refusal};

/// Texts drawn for each schema.
const DRAWS: u64 = 12;
const MAX_TOKENS: usize = 2000;

fn corpus() -> Vec<Value> {
    serde_json::from_str(include_str!("schemas.json")).unwrap()
}

fn validator(schema: &Value) -> (Schemas, SchemaIndex) {
    let mut schemas = Schemas::new();
    let mut compiler = Compiler::new();
    compiler.set_default_draft(Draft::V2020_12);
    compiler.enable_format_assertions();
    compiler.add_resource("schema.json", schema.clone()).unwrap();
    let index =
        compiler.compile("schema.json", &mut schemas).unwrap_or_else(|error| panic!("{schema}: {error}"));
    (schemas, index)
}

#[test]
fn what_the_masks_let_through_is_valid() {
    let (mut ended, mut wrong) = (0, Vec::new());
    for (number, schema) in corpus().into_iter().enumerate() {
        let (schemas, index) = validator(&schema);
        let grammar = match COMPILER.compile(&Constraint::JsonSchema(schema.clone())) {
            Ok(grammar) => grammar,
            Err(error) => {
                wrong.push(format!("{schema}: {error}"));
                continue;
            }
        };
        for draw_number in 0..DRAWS {
            let seed = number as u64 * 1000 + draw_number;
            // Recursion has no bound, and now and then the dice go on and on.
            let Some(text) = draw(&grammar, seed, MAX_TOKENS) else { continue };
            ended += 1;
            match serde_json::from_str::<Value>(&text) {
                Err(error) => wrong.push(format!("seed {seed}: {schema}: {text}: {error}")),
                Ok(value) => {
                    if let Err(error) = schemas.validate(&value, index) {
                        wrong.push(format!("seed {seed}: {schema}: {text}: {error}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let drawn = corpus().len() as u64 * DRAWS;
    assert!(ended * 10 >= drawn * 9, "only {ended} of {drawn} texts ended");
}

#[test]
fn json_objects_are_objects() {
    let grammar = COMPILER.compile(&Constraint::JsonObject).unwrap();
    let texts: Vec<_> = (0..20).filter_map(|seed| draw(&grammar, seed, MAX_TOKENS)).collect();
    assert!(texts.len() > 10, "only {} texts ended", texts.len());
    for text in texts {
        assert!(serde_json::from_str::<Value>(&text).unwrap().is_object(), "{text}");
    }
}

/// Every keyword that constrains and that no automaton stands for, and what else is known and refused.
#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    for keyword in [
        "not",
        "if",
        "then",
        "else",
        "dependentRequired",
        "dependentSchemas",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$dynamicAnchor",
    ] {
        let schema = json!({ keyword: {"type": "string"}, "title": "with a keyword that is known" });
        let message = refusal(&Constraint::JsonSchema(schema.clone()));
        assert!(
            message.contains(&format!("{keyword:?}").replace('"', "\\\"")) || message.contains(keyword),
            "{message}"
        );
        let nested = json!({"type": "object", "properties": {"a": {"anyOf": [{"type": "null"}, schema]}}});
        assert!(refusal(&Constraint::JsonSchema(nested)).contains(keyword), "{keyword} within");
    }
    for format in [
        "idn-email",
        "idn-hostname",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "uri-reference",
        "uri-template",
        "no-such-format",
    ] {
        let message = refusal(&Constraint::JsonSchema(json!({"type": "string", "format": format})));
        assert!(message.contains(format), "{message}");
    }
    for (schema, named) in [
        (json!({"type": "wrong"}), "wrong"),
        (json!({"type": "string", "pattern": "("}), "unclosed group"),
        (json!({"type": "string", "pattern": "(?=a)b"}), "look"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (json!({"patternProperties": {"a": true, "b": false}}), "patternProperty"),
        (json!({"anyOf": [false]}), "false"),
        (json!(false), "not"),
        (json!({"minItems": 1.5}), "minItems"),
        (json!([1]), "a schema is an object or a boolean"),
        (json!(7), "a schema is an object or a boolean"),
        (json!({}), "the schema is empty"),
    ] {
        let message = refusal(&Constraint::JsonSchema(schema.clone()));
        assert!(message.contains(named), "{schema}: {message}");
        assert!(message.len() < 1000 && !message.contains('\n'), "{message}");
    }
}

#[test]
fn formats_allow_what_the_standards_do() {
    for (format, valid, invalid) in [
        (
            "date",
            &["2024-02-29", "2000-02-29", "1999-12-31"][..],
            &["2023-02-29", "1900-02-29", "2023-02-30"][..],
        ),
        (
            "date-time",
            &["2024-02-29T23:59:59Z", "1990-01-02t03:04:05.6+07:00"],
            &["2023-02-29T00:00:00Z", "2024-01-01T00:00:60Z"],
        ),
        ("time", &["23:59:59Z", "00:00:00.25-08:00"], &["23:59:60Z", "24:00:00Z"]),
        ("hostname", &["a", "www.example.com", "a-b.c1"], &["-a", "a-", "xn--x", "a..b"]),
        ("email", &["joe.bloggs@example.com", "a@b"], &["a@", "@b", "a@-b"]),
    ] {
        let grammar = COMPILER.compile(&Constraint::JsonSchema(json!({"format": format}))).unwrap();
        let quoted = |text: &str| Value::from(text).to_string();
        valid.iter().for_each(|text| assert!(accepts(&grammar, &quoted(text)), "{format}: {text}"));
        invalid.iter().for_each(|text| assert!(!accepts(&grammar, &quoted(text)), "{format}: {text}"));
        let long = format!("{}@b", "x".repeat(65));
        assert!(format != "email" || !accepts(&grammar, &quoted(&long)));
    }
}

/// A constant that looks like a schema stays what it is.
#[test]
fn constants_are_not_schemas() {
    let constant = json!({"properties": {"a": 1}, "format": "date"});
    let options = JsonOptions { disable_additional_properties: true, ..JsonOptions::default() };
    let schema = options.apply(json!({"const": constant})).unwrap();
    let grammar = COMPILER.compile(&Constraint::JsonSchema(schema)).unwrap();
    let text = draw(&grammar, 1, MAX_TOKENS).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), constant);
}
