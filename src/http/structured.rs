//! Structured outputs: what the fields of a request say about the form of its answer. `response_format`
//! (OpenAI's), `structured_outputs` (vLLM's) and `guided_…` (vLLM's names before 0.12); one kind in all.

use quire_scheduler::Grammar;
use serde_json::{Map, Value};

use super::error::{ApiError, excerpt};
use super::fields::{Fields, expected_got};
use crate::grammar::{Constraint, GrammarCompiler, GrammarRefusal, JsonOptions};

/// The form that a request asks for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Structured {
    pub(crate) constraint: Constraint,
    /// The field that asks for it, such as `structured_outputs.regex`.
    pub(crate) param: String,
}

/// Reads all fields about the form of the answer; errors stay in `fields`.
pub(crate) fn read(fields: &mut Fields) -> Option<Structured> {
    let mut found = Found::default();
    response_format(fields, &mut found);
    structured_outputs(fields, &mut found);
    guided(fields, &mut found);
    let Found { structured, options, second } = found;
    if let Some((field, second)) = second {
        let first = structured.map(|structured| structured.param).unwrap_or_default();
        fields.wrong(field, format!("{second} and {first} are given; an answer has one form"));
        return None;
    }
    let Some((field, options)) = options else { return structured };
    with_options(structured, field, &options, fields)
}

impl Structured {
    /// The constraint, and the field that asks for it.
    pub(crate) fn into_parts(self) -> (Constraint, String) {
        (self.constraint, self.param)
    }
}

/// The grammar for a constraint that the field `param` asks for. Takes milliseconds, and longer the first time:
/// for the text pool. An error's `param` is the outermost field, as in OpenAI's API and vLLM's; its message says
/// the rest.
pub(crate) fn compile(
    grammars: &GrammarCompiler,
    constraint: &Constraint,
    param: &str,
) -> Result<Grammar, ApiError> {
    let outermost = param.split('.').next().unwrap_or(param);
    let grammar = grammars.compile(constraint);
    grammar.map_err(|GrammarRefusal(why)| ApiError::bad_param(outermost, format!("{param}: {why}")))
}

#[derive(Default)]
struct Found {
    structured: Option<Structured>,
    /// With the field they came in.
    options: Option<(&'static str, JsonOptions)>,
    /// The outermost field and the whole name of a second form.
    second: Option<(&'static str, String)>,
}

impl Found {
    fn add(&mut self, field: &'static str, name: &str, constraint: Constraint) {
        let param = if name.is_empty() { field.to_owned() } else { format!("{field}.{name}") };
        match &self.structured {
            None => self.structured = Some(Structured { constraint, param }),
            Some(_) => self.second = Some((field, param)),
        }
    }

    fn add_options(&mut self, field: &'static str, options: JsonOptions) {
        if !options.is_default() {
            self.options = Some((field, options));
        }
    }
}

fn with_options(
    structured: Option<Structured>,
    field: &str,
    options: &JsonOptions,
    fields: &mut Fields,
) -> Option<Structured> {
    let Some(Structured { constraint, param }) = structured else {
        fields.wrong(field, "it says how to write JSON, and JSON is not asked for");
        return None;
    };
    let schema = match constraint {
        Constraint::JsonSchema(schema) => schema,
        Constraint::JsonObject => serde_json::json!({"type": "object"}),
        _ => {
            fields.wrong(field, format!("options for JSON have no meaning with {param}"));
            return None;
        }
    };
    if !matches!(schema, Value::Object(_) | Value::Bool(_)) {
        // The compiler says what is wrong with it.
        return Some(Structured { constraint: Constraint::JsonSchema(schema), param });
    }
    let constraint = Constraint::JsonSchema(options.apply(schema)?);
    Some(Structured { constraint, param })
}

/// The forms of `response_format`, for `/openapi.json`.
fn format_schema() -> Value {
    let of = |kind: &str, more: Value| {
        let mut form = serde_json::json!({ "type": "object", "properties": more, "required": ["type"] });
        form["properties"]["type"] = serde_json::json!({ "const": kind });
        form
    };
    let schema = serde_json::json!({
        "type": "object",
        "properties": {
            "name": { "type": "string" },
            "description": { "type": "string" },
            "schema": { "type": ["object", "boolean"] },
            "strict": { "type": "boolean" },
        },
        "required": ["schema"],
    });
    let mut json_schema = of("json_schema", serde_json::json!({ "json_schema": schema }));
    json_schema["required"] = serde_json::json!(["type", "json_schema"]);
    let nothing = serde_json::json!({});
    let tag = of(
        "structural_tag",
        serde_json::json!({ "structures": { "type": "array" }, "triggers": { "type": "array" } }),
    );
    serde_json::json!({ "anyOf": [of("text", nothing.clone()), of("json_object", nothing), json_schema, tag] })
}

fn response_format(fields: &mut Fields, found: &mut Found) {
    const FIELD: &str = "response_format";
    let Some(mut format) = fields.nested(FIELD) else { return };
    let kind = format.string("type");
    let json_schema = format.nested("json_schema");
    fields.describe(FIELD, |_| format_schema());
    let structures = format.list("structures");
    let triggers = format.list("triggers");
    let tag = format.take("format");
    match kind.as_deref() {
        None => format.missing("type"),
        Some("text") => {}
        Some("json_object") => found.add(FIELD, "", Constraint::JsonObject),
        Some("json_schema") => match json_schema {
            None => format.missing("json_schema"),
            Some(mut json_schema) => {
                let schema = json_schema.take("schema");
                // Labels, and a wish that is always granted.
                let _ = (json_schema.string("name"), json_schema.string("description"));
                let _ = json_schema.bool("strict");
                match schema {
                    None => json_schema.missing("schema"),
                    Some(schema) => found.add(FIELD, "json_schema.schema", Constraint::JsonSchema(schema)),
                }
                format.absorb(json_schema);
            }
        },
        Some("structural_tag") => {
            let parts = [
                ("format", tag),
                ("structures", structures.map(Value::from)),
                ("triggers", triggers.map(Value::from)),
            ];
            let parts = parts.into_iter().filter_map(|(name, part)| Some((name.to_owned(), part?)));
            found.add(FIELD, "", Constraint::StructuralTag(parts.collect::<Map<_, _>>().into()));
        }
        Some(other) => {
            let message = format!(
                "must be \"text\", \"json_object\", \"json_schema\" or \"structural_tag\", got {:?}",
                excerpt(other)
            );
            format.wrong("type", message);
        }
    }
    fields.absorb(format);
}

fn structured_outputs(fields: &mut Fields, found: &mut Found) {
    const FIELD: &str = "structured_outputs";
    let Some(mut outputs) = fields.nested(FIELD) else { return };
    let before = found.structured.is_some();
    if let Some(constraint) =
        json_or_text(&mut outputs, "json", Constraint::schema_from_text, Constraint::JsonSchema)
    {
        found.add(FIELD, "json", constraint);
    }
    if let Some(pattern) = outputs.string("regex") {
        found.add(FIELD, "regex", Constraint::Regex(pattern));
    }
    if let Some(choices) = outputs.strings("choice") {
        found.add(FIELD, "choice", Constraint::Choice(choices));
    }
    if let Some(grammar) = outputs.string("grammar") {
        found.add(FIELD, "grammar", Constraint::Grammar(grammar));
    }
    if outputs.bool("json_object") == Some(true) {
        found.add(FIELD, "json_object", Constraint::JsonObject);
    }
    let (from_text, from_value) = (Constraint::structural_tag_from_text, Constraint::StructuralTag);
    if let Some(constraint) = json_or_text(&mut outputs, "structural_tag", from_text, from_value) {
        found.add(FIELD, "structural_tag", constraint);
    }
    let options = JsonOptions {
        disable_any_whitespace: outputs.bool("disable_any_whitespace").unwrap_or(false),
        disable_additional_properties: outputs.bool("disable_additional_properties").unwrap_or(false),
        whitespace_pattern: outputs.string("whitespace_pattern"),
    };
    let is_given = before || found.structured.is_some() || !options.is_default();
    found.add_options(FIELD, options);
    fields.absorb(outputs);
    if !is_given && !fields.is_wrong() {
        fields.wrong(FIELD, "one of json, regex, choice, grammar, json_object and structural_tag is needed");
    }
}

fn guided(fields: &mut Fields, found: &mut Found) {
    let json = json_or_text(fields, "guided_json", Constraint::schema_from_text, Constraint::JsonSchema);
    if let Some(constraint) = json {
        found.add("guided_json", "", constraint);
    }
    if let Some(pattern) = fields.string("guided_regex") {
        found.add("guided_regex", "", Constraint::Regex(pattern));
    }
    if let Some(choices) = fields.strings("guided_choice") {
        found.add("guided_choice", "", Constraint::Choice(choices));
    }
    if let Some(grammar) = fields.string("guided_grammar") {
        found.add("guided_grammar", "", Constraint::Grammar(grammar));
    }
    let whitespace_pattern = fields.string("guided_whitespace_pattern");
    found.add_options(
        "guided_whitespace_pattern",
        JsonOptions { whitespace_pattern, ..JsonOptions::default() },
    );
    guided_decoding_backend(fields);
}

/// There is one backend, and each of vLLM's would produce the same set of answers: a name is a hint. Options
/// behind a colon are not.
fn guided_decoding_backend(fields: &mut Fields) {
    const NAMES: [&str; 5] = ["auto", "guidance", "xgrammar", "outlines", "lm-format-enforcer"];
    if let Some(name) = fields.string("guided_decoding_backend")
        && !NAMES.contains(&name.as_str())
    {
        let message = format!("must be one of {}, got {:?}", NAMES.join(", "), excerpt(&name));
        fields.wrong("guided_decoding_backend", message);
    }
}

/// A field that is an object, or the same as text.
fn json_or_text(
    fields: &mut Fields,
    name: &str,
    from_text: impl Fn(&str) -> Result<Constraint, GrammarRefusal>,
    from_value: impl Fn(Value) -> Constraint,
) -> Option<Constraint> {
    match fields.take(name)? {
        Value::String(text) => match from_text(&text) {
            Ok(constraint) => Some(constraint),
            Err(GrammarRefusal(why)) => {
                fields.wrong(name, why);
                None
            }
        },
        value @ (Value::Object(_) | Value::Bool(_)) => Some(from_value(value)),
        other => {
            fields.wrong(name, expected_got("an object or its text", &other));
            None
        }
    }
}
