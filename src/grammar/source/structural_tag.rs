//! Structural tags into Lark: text in which certain tags, once begun, must hold certain things. Both forms of
//! vLLM's: the old one (`structures` and `triggers`) and the new one (`format`).
//!
//! Of the new one's formats, those that map cleanly: `const_string`, `json_schema`, `regex`, `any_text`,
//! `sequence`, `or`, `tag`, `triggered_tags`, `tags_with_separator`. Others are refused by name.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::lark;
use crate::grammar::compiler::GrammarRefusal;
use crate::grammar::limits::MAX_CHOICES;

/// The grammar of a structural tag, in Lark's notation.
pub(super) fn to_lark(tag: &Value) -> Result<String, GrammarRefusal> {
    let tag = tag.as_object().ok_or_else(|| refuse("", "expected an object"))?;
    let mut writer = Writer::default();
    let start = match tag.get("format") {
        Some(format) => writer.format(format, "format", Place::End)?,
        None if tag.contains_key("structures") => {
            writer.format(&from_structures(tag)?, "structures", Place::End)?
        }
        None => return Err(refuse("", "expected a format, or structures and triggers")),
    };
    Ok(format!("start: {start}\n{}", writer.rules))
}

/// The old form in the words of the new one.
fn from_structures(tag: &Map<String, Value>) -> Result<Value, GrammarRefusal> {
    let structures = list(tag, "structures", "")?;
    let tags = structures.iter().map(|structure| {
        json!({
            "begin": structure["begin"],
            "content": {"type": "json_schema", "json_schema": structure["schema"]},
            "end": structure["end"],
        })
    });
    let tags: Vec<Value> = tags.collect();
    Ok(json!({"type": "triggered_tags", "triggers": tag.get("triggers"), "tags": tags}))
}

/// What follows a format, which decides how far free text may go.
#[derive(Clone, Copy, PartialEq)]
enum Place<'a> {
    /// The end of the output.
    End,
    /// The end of a tag.
    Before(&'a str),
    /// Something else.
    Middle,
}

#[derive(Default)]
struct Writer {
    rules: String,
    num_rules: usize,
}

impl Writer {
    /// A format as an expression; `path` says where it stands.
    fn format(&mut self, format: &Value, path: &str, place: Place) -> Result<String, GrammarRefusal> {
        let Some(object) = format.as_object() else { return Err(refuse(path, "expected an object")) };
        match text(object, "type", path)? {
            "const_string" => non_empty(text(object, "value", path)?, &format!("{path}.value")),
            "json_schema" => json_schema(object.get("json_schema"), path),
            "regex" => {
                let pattern = text(object, "pattern", path)?;
                non_empty(pattern, &format!("{path}.pattern"))?;
                Ok(lark::regex(lark::without_anchors(pattern)))
            }
            "any_text" => self.any_text(path, place),
            "sequence" => self.sequence(object, path, place),
            "or" => {
                let elements = self.elements(object, "elements", path, |_| place)?;
                Ok(format!("({})", elements.join(" | ")))
            }
            "tag" => self.tag(object, "", path),
            "triggered_tags" => self.triggered_tags(object, path, place),
            "tags_with_separator" => self.tags_with_separator(object, path),
            other => Err(refuse(path, &format!("the format {other:?} is not supported"))),
        }
    }

    fn elements<'a>(
        &mut self,
        object: &Map<String, Value>,
        name: &str,
        path: &str,
        place: impl Fn(usize) -> Place<'a>,
    ) -> Result<Vec<String>, GrammarRefusal> {
        let elements = list(object, name, path)?;
        let element =
            |(index, element)| self.format(element, &format!("{path}.{name}[{index}]"), place(index));
        elements.iter().enumerate().map(element).collect()
    }

    fn sequence(
        &mut self,
        object: &Map<String, Value>,
        path: &str,
        place: Place,
    ) -> Result<String, GrammarRefusal> {
        let last = list(object, "elements", path)?.len() - 1;
        let place = |index| if index == last { place } else { Place::Middle };
        Ok(format!("({})", self.elements(object, "elements", path, place)?.join(" ")))
    }

    /// Any text, up to and with what ends it.
    fn any_text(&mut self, path: &str, place: Place) -> Result<String, GrammarRefusal> {
        match place {
            Place::End => Ok("/(?s:.*)/".into()),
            Place::Before(end) => {
                let rule = format!("/(?s:.*)/ {}", lark::string(end));
                Ok(self.rule("[lazy]", &rule))
            }
            Place::Middle => Err(refuse(path, "any_text must be all that is in a tag, or end the output")),
        }
    }

    /// A tag of which `begun` has been written already.
    fn tag(&mut self, tag: &Map<String, Value>, begun: &str, path: &str) -> Result<String, GrammarRefusal> {
        let begin = &text(tag, "begin", path)?[begun.len()..];
        let end = text(tag, "end", path)?;
        let content = tag.get("content").unwrap_or(&Value::Null);
        let path = format!("{path}.content");
        let place = if end.is_empty() { Place::Middle } else { Place::Before(end) };
        let has_end = content["type"] == "any_text";
        let place = if has_end { place } else { Place::Middle };
        let content = self.format(content, &path, place)?;
        let end = if has_end { "" } else { end };
        let literal = |text: &str| if text.is_empty() { String::new() } else { lark::string(text) };
        Ok(format!("({} {content} {})", literal(begin), literal(end)))
    }

    fn tags(&mut self, object: &Map<String, Value>, path: &str) -> Result<Vec<String>, GrammarRefusal> {
        let tags = list(object, "tags", path)?.iter().enumerate();
        tags.map(|(index, tag)| self.tag(as_tag(tag, path)?, "", &format!("{path}.tags[{index}]"))).collect()
    }

    fn tags_with_separator(
        &mut self,
        object: &Map<String, Value>,
        path: &str,
    ) -> Result<String, GrammarRefusal> {
        let tag = format!("({})", self.tags(object, path)?.join(" | "));
        let separator = lark::string(text(object, "separator", path)?);
        let tags = match flag(object, "stop_after_first", path)? {
            true => tag,
            false => format!("({tag} ({separator} {tag})*)"),
        };
        Ok(if flag(object, "at_least_one", path)? { tags } else { format!("{tags}?") })
    }

    /// Free text; whenever one of the triggers has come, one of the tags that begin with it.
    fn triggered_tags(
        &mut self,
        object: &Map<String, Value>,
        path: &str,
        place: Place,
    ) -> Result<String, GrammarRefusal> {
        if place != Place::End {
            return Err(refuse(path, "triggered_tags must end the output"));
        }
        let triggers: Vec<&str> = list(object, "triggers", path)?.iter().filter_map(Value::as_str).collect();
        if triggers.len() != list(object, "triggers", path)?.len() || triggers.contains(&"") {
            return Err(refuse(&format!("{path}.triggers"), "expected a list of texts that are not empty"));
        }
        let mut by_trigger = vec![Vec::new(); triggers.len()];
        for (index, tag) in list(object, "tags", path)?.iter().enumerate() {
            let path = format!("{path}.tags[{index}]");
            let tag = as_tag(tag, &path)?;
            let begin = text(tag, "begin", &path)?;
            let Some(trigger) = triggers.iter().position(|&trigger| begin.starts_with(trigger)) else {
                return Err(refuse(&format!("{path}.begin"), "it begins with none of the triggers"));
            };
            by_trigger[trigger].push(self.tag(tag, triggers[trigger], &path)?);
        }
        let mut groups = Vec::new();
        for (trigger, tags) in triggers.iter().zip(by_trigger) {
            if tags.is_empty() {
                return Err(refuse(&format!("{path}.triggers"), &format!("no tag begins with {trigger:?}")));
            }
            let before = self.rule("[lazy]", &format!("/(?s:.*)/ {}", lark::string(trigger)));
            groups.push(self.rule("", &format!("{before} ({})", tags.join(" | "))));
        }
        let group = format!("({})", groups.join(" | "));
        let text = format!("{}?", self.text_without(&triggers));
        let stop = flag(object, "stop_after_first", path)?;
        if !flag(object, "at_least_one", path)? {
            return Ok(if stop { format!("({group} | {text})") } else { format!("({group}* {text})") });
        }
        let first = format!("({})", self.tags(object, path)?.join(" | "));
        Ok(if stop { first } else { format!("({first} {group}* {text})") })
    }

    /// A token: at least one character of text in which none of the triggers occurs.
    fn text_without(&mut self, triggers: &[&str]) -> String {
        let triggers: Vec<_> = triggers.iter().map(|trigger| lark::string(trigger)).collect();
        self.num_rules += 1;
        let name = format!("T{}", self.num_rules);
        let triggers = triggers.join(" | ");
        writeln!(self.rules, "{name}: /(?s:.+)/ & ~(/(?s:.*)/ ({triggers}) /(?s:.*)/)")
            .expect("a String takes all");
        name
    }

    /// Adds a rule and gives its name.
    fn rule(&mut self, attributes: &str, body: &str) -> String {
        self.num_rules += 1;
        let name = format!("t{}", self.num_rules);
        writeln!(self.rules, "{name}{attributes}: {body}").expect("a String takes all");
        name
    }
}

fn json_schema(schema: Option<&Value>, path: &str) -> Result<String, GrammarRefusal> {
    match schema {
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(format!("%json {schema}")),
        _ => Err(refuse(&format!("{path}.json_schema"), "expected a schema")),
    }
}

fn as_tag<'a>(tag: &'a Value, path: &str) -> Result<&'a Map<String, Value>, GrammarRefusal> {
    tag.as_object().ok_or_else(|| refuse(path, "expected an object"))
}

fn non_empty(text: &str, path: &str) -> Result<String, GrammarRefusal> {
    if text.is_empty() {
        return Err(refuse(path, "must not be empty"));
    }
    Ok(lark::string(text))
}

fn text<'a>(object: &'a Map<String, Value>, name: &str, path: &str) -> Result<&'a str, GrammarRefusal> {
    let text = object.get(name).and_then(Value::as_str);
    text.ok_or_else(|| refuse(&format!("{path}.{name}"), "expected a string"))
}

fn flag(object: &Map<String, Value>, name: &str, path: &str) -> Result<bool, GrammarRefusal> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(refuse(&format!("{path}.{name}"), "expected a boolean")),
    }
}

fn list<'a>(object: &'a Map<String, Value>, name: &str, path: &str) -> Result<&'a [Value], GrammarRefusal> {
    match object.get(name).and_then(Value::as_array) {
        Some(list) if !list.is_empty() && list.len() <= MAX_CHOICES => Ok(list),
        _ => Err(refuse(&format!("{path}.{name}"), &format!("expected a list of 1 to {MAX_CHOICES}"))),
    }
}

fn refuse(path: &str, what: &str) -> GrammarRefusal {
    let path = path.trim_start_matches('.');
    GrammarRefusal(if path.is_empty() { what.to_owned() } else { format!("{path}: {what}") })
}
