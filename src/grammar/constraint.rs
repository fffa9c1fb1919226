//! [`Constraint`]: the form of an output, and the [`JsonOptions`] that a request may put on JSON.

use serde_json::{Map, Value, json};

use super::compiler::GrammarRefusal;
use super::source::for_each_schema;

/// The form of an output, by one of vLLM's kinds.
#[derive(Debug, Clone, PartialEq)]
pub enum Constraint {
    /// A JSON document that this schema accepts.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A text that this regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of this grammar, in Lark's notation or in GBNF.
    Grammar(String),
    /// Text in which certain tags, once begun, must hold certain things.
    StructuralTag(Value),
}

impl Constraint {
    /// A schema that a client wrote as text.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn schema_from_text(text: &str) -> Result<Self, GrammarRefusal> {
        parse("the schema", text).map(Self::JsonSchema)
    }

    /// A structural tag that a client wrote as text.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn structural_tag_from_text(text: &str) -> Result<Self, GrammarRefusal> {
        parse("the structural tag", text).map(Self::StructuralTag)
    }
}

fn parse(what: &str, text: &str) -> Result<Value, GrammarRefusal> {
    if text.trim().is_empty() {
        return Err(GrammarRefusal(format!("{what} is empty")));
    }
    serde_json::from_str(text).map_err(|error| GrammarRefusal(format!("{what} is not valid JSON: {error}")))
}

/// Details of how JSON is to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JsonOptions {
    /// No white space between tokens.
    pub disable_any_whitespace: bool,
    /// Objects that name their properties have no others, unless the schema says otherwise.
    pub disable_additional_properties: bool,
    /// A regular expression for the white space between tokens.
    pub whitespace_pattern: Option<String>,
}

impl JsonOptions {
    /// Whether nothing is asked for.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The schema with the options in it. `None` where the schema is neither an object nor a boolean.
    pub fn apply(&self, schema: Value) -> Option<Value> {
        let mut schema = match schema {
            Value::Object(schema) => schema,
            // `true` and `false` have no room for options.
            Value::Bool(true) => Map::new(),
            Value::Bool(false) => Map::from_iter([("not".to_owned(), json!({}))]),
            _ => return None,
        };
        if self.disable_additional_properties {
            close_objects(&mut schema);
        }
        let mut guidance = Map::new();
        if self.disable_any_whitespace {
            guidance.insert("whitespace_flexible".into(), false.into());
        }
        if let Some(pattern) = &self.whitespace_pattern {
            guidance.insert("whitespace_pattern".into(), pattern.as_str().into());
        }
        if !guidance.is_empty() {
            schema.insert(GUIDANCE.into(), guidance.into());
        }
        Some(schema.into())
    }
}

/// Where llguidance looks for options within a schema.
pub(super) const GUIDANCE: &str = "x-guidance";

/// What vLLM does for `disable_additional_properties`, wherever in the schema an object names its properties.
fn close_objects(schema: &mut Map<String, Value>) {
    for_each_schema(schema, &mut |schema| {
        let names_properties = schema.contains_key("properties") || schema.contains_key("patternProperties");
        if names_properties && !schema.contains_key("additionalProperties") {
            schema.insert("additionalProperties".into(), false.into());
        }
    });
}
