//! Structured outputs: what the fields of a request say about the form of its answer. `response_format`
//! (OpenAI's), `structured_outputs` (vLLM's) and `guided_…` (vLLM's names before 0.12); one kind in all.

use quire_scheduler::Grammar;
use serde_json::{Map, Value, json};

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
        Constraint::JsonObject => json!({"type": "object"}),
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

fn response_format(fields: &mut Fields, found: &mut Found) {
    const FIELD: &str = "response_format";
    const KINDS: [&str; 4] = ["text", "json_object", "json_schema", "structural_tag"];
    let Some(mut format) = fields.nested(FIELD) else { return };
    let kind = format.string("type");
    format.describe("type", |_| json!({ "enum": KINDS }));
    let schema = format.nested("json_schema").map(|mut json_schema| {
        // Labels, and a wish that is always granted.
        json_schema.string("name");
        json_schema.string("description");
        json_schema.bool("strict");
        let schema = json_schema.take("schema");
        if schema.is_none() && kind.as_deref() == Some("json_schema") {
            json_schema.missing("schema");
        }
        format.absorb(json_schema);
        schema
    });
    let tag = [
        ("format", format.take("format")),
        ("structures", format.list("structures").map(Value::from)),
        ("triggers", format.list("triggers").map(Value::from)),
    ];
    match kind.as_deref() {
        None => format.missing("type"),
        Some("text") => {}
        Some("json_object") => found.add(FIELD, "", Constraint::JsonObject),
        Some("json_schema") => match schema {
            None => format.missing("json_schema"),
            Some(None) => {}
            Some(Some(schema)) => found.add(FIELD, "json_schema.schema", Constraint::JsonSchema(schema)),
        },
        Some("structural_tag") => {
            let parts = tag.into_iter().filter_map(|(name, part)| Some((name.to_owned(), part?)));
            found.add(FIELD, "", Constraint::StructuralTag(parts.collect::<Map<_, _>>().into()));
        }
        Some(other) => {
            format.wrong("type", format!("must be one of {}, got {:?}", KINDS.join(", "), excerpt(other)));
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
    if !is_given && !fields.has_errors() {
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
    let name = fields.string("guided_decoding_backend");
    fields.describe("guided_decoding_backend", |_| json!({ "enum": NAMES }));
    if let Some(name) = name
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
    let value = fields.take(name);
    fields.describe(name, |_| json!({ "anyOf": [{ "type": "object" }, { "type": "string" }] }));
    match value? {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json;

    fn read_all(body: &Value) -> (Option<Structured>, Result<(), String>) {
        let mut fields = Fields::new(json::parse(body.to_string().as_bytes()).unwrap());
        let structured = read(&mut fields);
        (structured, fields.finish().map_err(|error| error.to_json()))
    }

    #[track_caller]
    fn accepted(body: Value) -> Option<(Constraint, String)> {
        let (structured, end) = read_all(&body);
        end.unwrap_or_else(|error| panic!("{body}: {error}"));
        structured.map(Structured::into_parts)
    }

    #[test]
    fn every_kind_by_every_name() {
        let schema = json!({"type": "integer"});
        let json = |param: &str| Some((Constraint::JsonSchema(schema.clone()), param.to_owned()));
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": true}});
        assert_eq!(accepted(json!({"response_format": format})), json("response_format.json_schema.schema"));
        assert_eq!(
            accepted(json!({"structured_outputs": {"json": schema}})),
            json("structured_outputs.json")
        );
        let text = schema.to_string();
        assert_eq!(accepted(json!({"structured_outputs": {"json": text}})), json("structured_outputs.json"));
        assert_eq!(accepted(json!({"guided_json": schema})), json("guided_json"));

        let object = |param: &str| Some((Constraint::JsonObject, param.to_owned()));
        assert_eq!(accepted(json!({"response_format": {"type": "json_object"}})), object("response_format"));
        let asked = json!({"structured_outputs": {"json_object": true}});
        assert_eq!(accepted(asked), object("structured_outputs.json_object"));

        let regex = |param: &str| Some((Constraint::Regex("a+".into()), param.to_owned()));
        assert_eq!(
            accepted(json!({"structured_outputs": {"regex": "a+"}})),
            regex("structured_outputs.regex")
        );
        assert_eq!(accepted(json!({"guided_regex": "a+"})), regex("guided_regex"));

        let choice = |param: &str| Some((Constraint::Choice(vec!["a".into(), "b".into()]), param.to_owned()));
        let asked = json!({"structured_outputs": {"choice": ["a", "b"]}});
        assert_eq!(accepted(asked), choice("structured_outputs.choice"));
        assert_eq!(accepted(json!({"guided_choice": ["a", "b"]})), choice("guided_choice"));

        let grammar = |param: &str| Some((Constraint::Grammar("g".into()), param.to_owned()));
        assert_eq!(
            accepted(json!({"structured_outputs": {"grammar": "g"}})),
            grammar("structured_outputs.grammar")
        );
        let asked = json!({"guided_grammar": "g", "guided_decoding_backend": "xgrammar"});
        assert_eq!(accepted(asked), grammar("guided_grammar"));

        let tag = json!({"structures": [], "triggers": []});
        let mut format = tag.clone();
        format["type"] = "structural_tag".into();
        let expected = |param: &str| Some((Constraint::StructuralTag(tag.clone()), param.to_owned()));
        assert_eq!(accepted(json!({"response_format": format})), expected("response_format"));
        let asked = json!({"structured_outputs": {"structural_tag": tag.to_string()}});
        assert_eq!(accepted(asked), expected("structured_outputs.structural_tag"));
    }

    #[test]
    fn nothing_is_asked_for() {
        for body in [
            json!({}),
            json!({"response_format": null, "structured_outputs": null, "guided_json": null}),
            json!({"response_format": {"type": "text"}}),
            json!({"guided_decoding_backend": "auto"}),
        ] {
            assert_eq!(accepted(body), None);
        }
    }

    #[test]
    fn options_become_part_of_the_schema() {
        let format = json!({"type": "json_object"});
        let options = json!({"disable_any_whitespace": true});
        let asked = accepted(json!({"response_format": format, "structured_outputs": options})).unwrap().0;
        let schema = json!({"type": "object", "x-guidance": {"whitespace_flexible": false}});
        assert_eq!(asked, Constraint::JsonSchema(schema));

        let schema = json!({"properties": {"a": {"properties": {}}, "b": {"additionalProperties": true, "properties": {}}}});
        let outputs =
            json!({"json": schema, "disable_additional_properties": true, "whitespace_pattern": " ?"});
        let Constraint::JsonSchema(schema) = accepted(json!({"structured_outputs": outputs})).unwrap().0
        else {
            panic!("a schema was asked for")
        };
        assert_eq!(schema["additionalProperties"], false);
        assert_eq!(schema["properties"]["a"]["additionalProperties"], false);
        assert_eq!(schema["properties"]["b"]["additionalProperties"], true);
        assert_eq!(schema["x-guidance"]["whitespace_pattern"], " ?");
    }

    #[test]
    fn errors_name_their_field() {
        for (body, param) in [
            (json!({"response_format": {}}), "response_format.type"),
            (json!({"response_format": {"type": "xml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"structured_outputs": {}}), "structured_outputs"),
            (json!({"structured_outputs": {"json_object": false}}), "structured_outputs"),
            (json!({"structured_outputs": {"regex": 1}}), "structured_outputs.regex"),
            (json!({"structured_outputs": {"json": "{"}}), "structured_outputs.json"),
            (json!({"structured_outputs": {"json": [1]}}), "structured_outputs.json"),
            (json!({"structured_outputs": {"choice": ["a", 1]}}), "structured_outputs.choice[1]"),
            (json!({"structured_outputs": {"regex": "a", "json_object": true}}), "structured_outputs"),
            (json!({"response_format": {"type": "json_object"}, "guided_regex": "a"}), "guided_regex"),
            (json!({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}), "structured_outputs"),
            (json!({"guided_whitespace_pattern": " "}), "guided_whitespace_pattern"),
            (json!({"guided_decoding_backend": "xgrammar:no-fallback"}), "guided_decoding_backend"),
        ] {
            let error = read_all(&body).1.expect_err("it should be refused");
            assert!(error.contains(&format!("\"param\":\"{param}\"")), "{body}: {error}");
        }
    }
}
