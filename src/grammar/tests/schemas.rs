//! JSON schemas of every sort against an outside judge: whatever a schema's masks let through, an independent
//! validator accepts.
//!
//! Two things no automaton of the crate's knows: which years are leap years, and which minutes have a second 60.
//! The schemas of dates and times exclude February and that second by a pattern.

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use serde_json::{Value, json};

use super::walk::draw;
use super::{COMPILER, Constraint, refusal};

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
    let mut ended = 0;
    for (number, schema) in corpus().into_iter().enumerate() {
        let (schemas, index) = validator(&schema);
        let grammar = COMPILER.compile(&Constraint::JsonSchema(schema.clone()));
        let grammar = grammar.unwrap_or_else(|error| panic!("{schema}: {error}"));
        for draw_number in 0..DRAWS {
            let seed = number as u64 * 1000 + draw_number;
            // Recursion has no bound, and now and then the dice go on and on.
            let Some(text) = draw(&grammar, seed, MAX_TOKENS) else { continue };
            ended += 1;
            let parsed: Value = serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("seed {seed}: {schema}: {text}: {error}"));
            if let Err(error) = schemas.validate(&parsed, index) {
                panic!("seed {seed}: {schema}: {text}: {error}");
            }
        }
    }
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

#[test]
fn what_cannot_be_enforced_is_refused_by_name() {
    for (schema, named) in [
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"if": {"type": "string"}, "then": {"maxLength": 1}}), "if"),
        (json!({"type": "wrong"}), "wrong"),
        (json!({"type": "string", "pattern": "("}), "unclosed group"),
        (json!({"type": "string", "pattern": "(?=a)b"}), "look"),
        (json!({"type": "string", "format": "no-such-format"}), "no-such-format"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (json!([1]), "a schema is an object or a boolean"),
        (json!(7), "a schema is an object or a boolean"),
        (json!({}), "the schema is empty"),
    ] {
        let message = refusal(&Constraint::JsonSchema(schema.clone()));
        assert!(message.contains(named), "{schema}: {message}");
        assert!(message.len() < 1000 && !message.contains('\n'), "{message}");
    }
}
