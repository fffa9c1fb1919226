//! Constraints as llguidance's two notations, JSON Schema and Lark; checked for size and depth on the way.

mod gbnf;
mod lark;
mod lark_text;
mod schema;
mod structural_tag;
mod written_out;

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

pub(super) use schema::for_each_schema;

use super::compiler::GrammarRefusal;
use super::constraint::{Constraint, GUIDANCE, JsonOptions};
use super::limits::{
    MAX_BRACKET_DEPTH, MAX_CHOICE_BYTES, MAX_CHOICES, MAX_JSON_DEPTH, MAX_REGEX_BYTES, MAX_RULES,
    MAX_SOURCE_BYTES, bracket_depth, json_depth,
};

/// White space between the tokens of JSON, where the request says nothing about it: enough for a document
/// that is laid out in lines. Without a bound, a model that likes spaces never comes to the next token.
const WHITESPACE: &str = r"[\x20\x0A\x0D\x09]{1,32}";

/// A constraint that may be compiled.
pub(super) struct Source {
    /// Two constraints with the same key mean the same.
    pub(super) key: String,
    pub(super) grammar: TopLevelGrammar,
}

/// Checks the constraint's size and form, and puts it into one of llguidance's notations.
pub(super) fn read(constraint: &Constraint) -> Result<Source, GrammarRefusal> {
    match constraint {
        Constraint::JsonSchema(schema) => json_schema(schema),
        Constraint::JsonObject => json_schema(&json!({"type": "object"})),
        Constraint::Regex(pattern) => regex(pattern),
        Constraint::Choice(choices) => choice(choices),
        Constraint::Grammar(text) => grammar(text),
        Constraint::StructuralTag(tag) => {
            check_json("the structural tag", tag)?;
            from_lark(&structural_tag::to_lark(tag)?)
        }
    }
}

fn json_schema(schema: &Value) -> Result<Source, GrammarRefusal> {
    check_schema("the schema", schema)?;
    let schema =
        prepared(schema.clone()).ok_or_else(|| GrammarRefusal::new("a schema is an object or a boolean"))?;
    Ok(Source { key: format!("json {schema}"), grammar: TopLevelGrammar::from_json_schema(schema) })
}

/// The schema with its formats made whole, and with our rule for white space unless it has its own.
fn prepared(schema: Value) -> Option<Value> {
    let mut schema = JsonOptions::default().apply(schema)?;
    let object = schema.as_object_mut()?;
    schema::tighten(object);
    let options = object.entry(GUIDANCE).or_insert_with(|| json!({}));
    if let Some(options) = options.as_object_mut()
        && options.get("whitespace_flexible") != Some(&Value::Bool(false))
    {
        options.entry("whitespace_pattern").or_insert_with(|| WHITESPACE.into());
    }
    Some(schema)
}

fn check_schema(what: &str, schema: &Value) -> Result<(), GrammarRefusal> {
    check_json(what, schema)?;
    written_out::check_schema(schema)
}

fn check_json(what: &str, value: &Value) -> Result<(), GrammarRefusal> {
    if value.as_object().is_some_and(|object| object.is_empty()) {
        return Err(GrammarRefusal(format!("{what} is empty")));
    }
    let depth = json_depth(value);
    if depth > MAX_JSON_DEPTH {
        return Err(GrammarRefusal(format!(
            "{what} is nested {depth} levels deep; {MAX_JSON_DEPTH} are allowed"
        )));
    }
    check_bytes(what, value.to_string().len(), MAX_SOURCE_BYTES)
}

fn check_bytes(what: &str, bytes: usize, max: usize) -> Result<(), GrammarRefusal> {
    if bytes > max {
        return Err(GrammarRefusal(format!("{what} has {bytes} bytes; {max} are allowed")));
    }
    Ok(())
}

fn check_text(what: &str, text: &str, max_bytes: usize) -> Result<(), GrammarRefusal> {
    if text.trim().is_empty() {
        return Err(GrammarRefusal(format!("{what} is empty")));
    }
    if text.contains('\0') {
        return Err(GrammarRefusal(format!("{what} must not contain NUL")));
    }
    check_bytes(what, text.len(), max_bytes)?;
    let depth = bracket_depth(text);
    if depth > MAX_BRACKET_DEPTH {
        let message = format!("{what} has brackets {depth} levels deep; {MAX_BRACKET_DEPTH} are allowed");
        return Err(GrammarRefusal(message));
    }
    Ok(())
}

fn regex(pattern: &str) -> Result<Source, GrammarRefusal> {
    check_text("the regular expression", pattern, MAX_REGEX_BYTES)?;
    let literal = lark::regex(lark::without_anchors(pattern));
    from_lark(&format!("start: {literal}\n"))
}

fn choice(choices: &[String]) -> Result<Source, GrammarRefusal> {
    if choices.is_empty() {
        return Err(GrammarRefusal::new("there is nothing to choose from"));
    }
    if choices.len() > MAX_CHOICES {
        return Err(GrammarRefusal(format!(
            "there are {} choices; {MAX_CHOICES} are allowed",
            choices.len()
        )));
    }
    if let Some(index) = choices.iter().position(String::is_empty) {
        return Err(GrammarRefusal(format!("choice {index} is empty")));
    }
    check_bytes("the choices", choices.iter().map(String::len).sum(), MAX_CHOICE_BYTES)?;
    let choices: Vec<_> = choices.iter().map(|choice| lark::string(choice)).collect();
    // One token of the lexer: the automaton of all choices knows which are still possible.
    from_lark(&format!("start: CHOICE\nCHOICE: {}\n", choices.join(" | ")))
}

fn grammar(text: &str) -> Result<Source, GrammarRefusal> {
    check_text("the grammar", text, MAX_SOURCE_BYTES)?;
    if gbnf::is_gbnf(text) {
        return from_lark(&gbnf::to_lark(text)?);
    }
    let rules = text.lines().filter(|line| line.contains(':')).count();
    if rules > MAX_RULES {
        return Err(GrammarRefusal(format!("the grammar has {rules} rules; {MAX_RULES} are allowed")));
    }
    from_lark(text)
}

fn from_lark(text: &str) -> Result<Source, GrammarRefusal> {
    let text = lark_text::read(text)?;
    Ok(Source { key: format!("lark {text}"), grammar: TopLevelGrammar::from_lark(text) })
}
