//! What an answer must look like: [`Constraint`], as every API can ask for it.

use serde_json::Value;

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
