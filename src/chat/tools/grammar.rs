//! Grammars of calls that must be made, in llguidance's dialect of Lark: in the model's own format, so that the
//! conversation goes on as the model knows it.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::format::{ToolFormat, Writes};
use super::formats::JSON_LIST;
use super::tool::Tool;
use crate::text::Tokenizer;

/// A format that [`grammar`] can describe: this one, or else vLLM's list.
pub(crate) fn writable(format: Option<&'static ToolFormat>, tokenizer: &Tokenizer) -> &'static ToolFormat {
    format.filter(|format| writes(format, tokenizer).is_some()).unwrap_or(&JSON_LIST)
}

/// The rule `calls`, of calls to `tools`, at least one; `single` = exactly one. `format` is [`writable`].
pub(crate) fn grammar(format: &ToolFormat, tools: &[Tool], single: bool, tokenizer: &Tokenizer) -> String {
    let Some(writes) = writes(format, tokenizer) else { unreachable!("asked for a writable format") };
    let literal = |text: &str| lark(text, tokenizer);
    let (first, last) = (literal(writes.first), literal(writes.last));
    let more = if single { String::new() } else { format!("({} call)*", literal(writes.between)) };
    let names: Vec<_> = (0..tools.len()).map(|index| format!("call{index}")).collect();
    let mut text = format!("calls: {first} call {more} {last}\ncall: {}\n", names.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
        let [before, middle, after] = writes.call;
        let head = literal(&format!("{before}{}", tool.name));
        let (middle, after) = (literal(middle), literal(after));
        let arguments = arguments(tool);
        write!(
            text,
            "call{index}: {head} {middle} arguments{index} {after}\narguments{index}: %json {arguments}\n"
        )
        .expect("a string can be written to");
    }
    text
}

/// The rule `answer`, of an answer to this JSON schema that is no call. `format` is [`writable`].
pub(crate) fn answer(format: &ToolFormat, schema: &str, tokenizer: &Tokenizer) -> String {
    let head = writes(format, tokenizer).map_or("", |writes| writes.answer);
    format!("answer: {} %json {schema}\n", lark(head, tokenizer))
}

/// A structural tag under which calls to strict tools keep to their schemas, and text stays free. `None` if the
/// format cannot be told so.
pub(crate) fn strict_tag(format: &ToolFormat, tools: &[Tool], tokenizer: &Tokenizer) -> Option<Value> {
    let writes = writes(format, tokenizer)?;
    let [before, middle, after] = writes.call;
    let trigger = format.open.first().filter(|open| before.starts_with(**open))?;
    let is_text = |text: &str| special_tokens(text, tokenizer).is_empty();
    if !writes.first.is_empty()
        || middle.contains("{index}")
        || ![before, middle, after].into_iter().all(is_text)
    {
        return None;
    }
    let structures = tools.iter().map(|tool| {
        let schema = if tool.strict { arguments(tool) } else { json!({"type": "object"}) };
        json!({"begin": format!("{before}{}{middle}", tool.name), "schema": schema, "end": after})
    });
    let structures: Vec<_> = structures.collect();
    Some(json!({"type": "structural_tag", "structures": structures, "triggers": [trigger]}))
}

fn writes(format: &ToolFormat, tokenizer: &Tokenizer) -> Option<&'static Writes> {
    let has = |token: &str| token.is_empty() || tokenizer.token_to_id(token).is_some();
    format.writes.iter().find(|writes| has(writes.needs))
}

/// The schema of a tool's arguments, in the spelling of JSON that templates and models use.
fn arguments(tool: &Tool) -> Value {
    let none =
        || Map::from_iter([("properties".into(), json!({})), ("additionalProperties".into(), false.into())]);
    let mut schema = tool.parameters.clone().unwrap_or_else(none);
    schema.entry("type").or_insert_with(|| "object".into());
    let spelling = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    schema.entry("x-guidance").or_insert(spelling);
    schema.into()
}

/// Special tokens that a text has when tokenized, in order.
fn special_tokens(text: &str, tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = tokenizer.encode(text, false).unwrap_or_default();
    ids.into_iter().filter(|&id| tokenizer.is_special(id)).collect()
}

/// A text as Lark has it: strings, special tokens by number, and a number for `{index}`.
fn lark(text: &str, tokenizer: &Tokenizer) -> String {
    let mut parts = Vec::new();
    let mut rest = text;
    for id in special_tokens(text, tokenizer) {
        let token = tokenizer.token_str(id).unwrap_or_default();
        let Some((before, after)) = rest.split_once(&*token) else { continue };
        push_strings(before, &mut parts);
        parts.push(format!("<[{id}]>"));
        rest = after;
    }
    push_strings(rest, &mut parts);
    parts.join(" ")
}

fn push_strings(text: &str, parts: &mut Vec<String>) {
    for (index, part) in text.split("{index}").enumerate() {
        if index > 0 {
            parts.push("/[0-9]{1,3}/".into());
        }
        if !part.is_empty() {
            parts.push(Value::from(part).to_string());
        }
    }
}
