//! A request's JSON as parsed values: [`Object`]. Bounded in depth and in number of values, so that a
//! body cannot take many times its size in memory; lists of token ids, which may be long, are kept as
//! plain numbers.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::error::ApiError;

/// Values in a body, not counting token ids in prompts.
pub(crate) const MAX_JSON_VALUES: usize = 1 << 20;
/// Prompts in one request (vLLM's VLLM_MAX_COMPLETION_PROMPTS).
pub(crate) const MAX_PROMPTS: usize = 1024;

/// Fields that hold text or token ids.
const PROMPT_FIELDS: [&str; 2] = ["prompt", "tokens"];

/// The outermost object of a body.
#[derive(Debug, Default)]
pub(crate) struct Object {
    /// Every field but those in `prompts`, nulls left out.
    pub(crate) values: Map<String, Value>,
    /// `prompt` and `tokens`.
    pub(crate) prompts: Vec<(&'static str, Prompt)>,
}

/// The forms a prompt can have.
#[derive(Debug, PartialEq)]
pub(crate) enum Prompt {
    /// `"…"`
    Text(String),
    /// `["…", …]`
    Texts(Vec<String>),
    /// `[1, …]`; empty for `[]`.
    Ids(Vec<u32>),
    /// `[[1, …], …]`
    IdLists(Vec<Vec<u32>>),
    /// None of these: where it is wrong (as an index path) and what is wrong.
    Invalid { at: String, message: String },
}

/// Parses a body.
///
/// # Errors
/// 400 if it is not JSON (with line and column), not an object, too deep, or has too many values.
pub(crate) fn parse(body: &[u8]) -> Result<Object, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| {
        ApiError::bad_body(format!("the request body is not valid UTF-8 after byte {}", error.valid_up_to()))
    })?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let parsed = deserializer.deserialize_map(ObjectVisitor);
    let parsed = parsed.and_then(|object| deserializer.end().map(|()| object));
    parsed.map_err(|error| ApiError::bad_body(format!("the request body is not valid JSON: {error}")))
}

/// A value as a prompt, however many it holds.
pub(crate) fn prompt(value: Value) -> Prompt {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let Value::Array(values) = value else {
        return match value {
            Value::String(text) => Prompt::Text(text),
            _ => invalid("", PROMPT_FORMS),
        };
    };
    let wrong = |(index, value): (usize, &Value)| match value {
        Value::Number(id) if !id.is_f64() => {
            invalid(format!("[{index}]"), format!("token id {id} is out of vocabulary"))
        }
        _ => invalid(format!("[{index}]"), ELEMENTS),
    };
    match values.first() {
        None => Prompt::Ids(Vec::new()),
        Some(Value::String(_)) => {
            let text = |(index, value)| match value {
                Value::String(text) => Ok(text),
                _ => Err(invalid(format!("[{index}]"), ELEMENTS)),
            };
            values
                .into_iter()
                .enumerate()
                .map(text)
                .collect::<Result<_, _>>()
                .map_or_else(|e| e, Prompt::Texts)
        }
        Some(Value::Array(_)) => {
            let ids = |(index, value): (usize, &Value)| {
                let list = value.as_array().and_then(|list| list.iter().map(id).collect::<Option<Vec<_>>>());
                list.ok_or_else(|| wrong((index, value)))
            };
            values.iter().enumerate().map(ids).collect::<Result<_, _>>().map_or_else(|e| e, Prompt::IdLists)
        }
        Some(_) => {
            let id = |(index, value)| id(value).ok_or_else(|| wrong((index, value)));
            values.iter().enumerate().map(id).collect::<Result<_, _>>().map_or_else(|e| e, Prompt::Ids)
        }
    }
}

/// How a value is called in messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object::default();
        let budget = Cell::new(MAX_JSON_VALUES);
        while let Some(key) = map.next_key::<String>()? {
            // As in Python, the last of several fields with one name counts.
            if let Some(name) = PROMPT_FIELDS.into_iter().find(|&name| name == key) {
                object.prompts.retain(|(other, _)| *other != name);
                if let Some(prompt) = map.next_value_seed(PromptSeed)? {
                    object.prompts.push((name, prompt));
                }
                continue;
            }
            match map.next_value_seed(ValueSeed(&budget))? {
                Value::Null => drop(object.values.remove(&key)),
                value => drop(object.values.insert(key, value)),
            }
        }
        Ok(object)
    }
}

/// Any JSON value, as long as the budget lasts.
struct ValueSeed<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.0.get().checked_sub(1) else {
            return Err(D::Error::custom(format!("more than {MAX_JSON_VALUES} values")));
        };
        self.0.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(ValueSeed(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(key) = map.next_key()? {
            values.insert(key, map.next_value_seed(ValueSeed(self.0))?);
        }
        Ok(Value::Object(values))
    }
}

/// A prompt, or `None` for null. Never fails on a wrong type: that is reported with other fields' errors.
struct PromptSeed;

impl<'de> DeserializeSeed<'de> for PromptSeed {
    type Value = Option<Prompt>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Prompt>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PromptSeed {
    type Value = Option<Prompt>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a prompt")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Prompt::Text(text.into())))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Some(invalid("", PROMPT_FORMS)))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Some(invalid("", PROMPT_FORMS)))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Some(invalid("", PROMPT_FORMS)))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Some(invalid("", PROMPT_FORMS)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Some(invalid("", PROMPT_FORMS)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut prompt = match seq.next_element_seed(ElementSeed { ids_allowed: true })? {
            None => return Ok(Some(Prompt::Ids(Vec::new()))),
            Some(Element::Text(text)) => Prompt::Texts(vec![text]),
            Some(Element::Id(id)) => Prompt::Ids(vec![id]),
            Some(Element::Ids(ids)) => Prompt::IdLists(vec![ids]),
            Some(Element::Invalid { at, message }) => Prompt::Invalid { at: format!("[0]{at}"), message },
        };
        let mut index = 1;
        while !matches!(prompt, Prompt::Invalid { .. }) {
            let Some(element) = seq.next_element_seed(ElementSeed { ids_allowed: true })? else {
                return Ok(Some(prompt));
            };
            add_element(&mut prompt, element, index);
            index += 1;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(prompt))
    }
}

/// What lists of prompts are made of.
const ELEMENTS: &str =
    "expected a string or a token id (0 to 4294967295), or a list of those, as in the elements before";
const PROMPT_FORMS: &str = "expected a string, a list of strings, a list of token ids, or a list of those";

fn invalid(at: impl Into<String>, message: impl Into<String>) -> Prompt {
    Prompt::Invalid { at: at.into(), message: message.into() }
}

fn add_element(prompt: &mut Prompt, element: Element, index: usize) {
    let too_many = |len: usize| len >= MAX_PROMPTS;
    match (&mut *prompt, element) {
        (Prompt::Ids(ids), Element::Id(id)) => ids.push(id),
        (Prompt::Texts(texts), Element::Text(text)) if !too_many(texts.len()) => texts.push(text),
        (Prompt::IdLists(lists), Element::Ids(ids)) if !too_many(lists.len()) => lists.push(ids),
        (Prompt::Texts(_), Element::Text(_)) | (Prompt::IdLists(_), Element::Ids(_)) => {
            *prompt = invalid("", format!("at most {MAX_PROMPTS} prompts are allowed in one request"));
        }
        (_, Element::Invalid { at, message }) => {
            *prompt = Prompt::Invalid { at: format!("[{index}]{at}"), message }
        }
        _ => *prompt = invalid(format!("[{index}]"), "all elements must be of the same kind as the first"),
    }
}

/// One element of a list of prompts or of token ids.
enum Element {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
    Invalid { at: String, message: String },
}

impl Element {
    fn wrong(message: impl Into<String>) -> Self {
        Self::Invalid { at: String::new(), message: message.into() }
    }
}

struct ElementSeed {
    /// Whether a list is allowed here: lists of lists go no deeper.
    ids_allowed: bool,
}

impl<'de> DeserializeSeed<'de> for ElementSeed {
    type Value = Element;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Element, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ElementSeed {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token id or a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.into()))
    }

    fn visit_u64<E>(self, id: u64) -> Result<Element, E> {
        Ok(match u32::try_from(id) {
            Ok(id) => Element::Id(id),
            Err(_) => Element::wrong(format!("token id {id} is out of vocabulary")),
        })
    }

    fn visit_i64<E>(self, id: i64) -> Result<Element, E> {
        Ok(Element::wrong(format!("token id {id} is out of vocabulary")))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Element, E> {
        Ok(Element::wrong("expected an integer, got a number"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Element, E> {
        Ok(Element::wrong("expected a string or a token id, got a boolean"))
    }

    fn visit_unit<E>(self) -> Result<Element, E> {
        Ok(Element::wrong("expected a string or a token id, got null"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Element, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Element::wrong("expected a string or a token id, got an object"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
        let mut ids = Vec::new();
        let mut wrong = (!self.ids_allowed).then(|| Element::wrong("expected a token id, got a list"));
        while wrong.is_none() {
            match seq.next_element_seed(ElementSeed { ids_allowed: false })? {
                Some(Element::Id(id)) => ids.push(id),
                None => return Ok(Element::Ids(ids)),
                Some(Element::Invalid { message, .. }) => {
                    wrong = Some(Element::Invalid { at: format!("[{}]", ids.len()), message });
                }
                Some(_) => {
                    let at = format!("[{}]", ids.len());
                    wrong = Some(Element::Invalid { at, message: "expected a token id".into() });
                }
            }
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(wrong.unwrap_or(Element::Ids(ids)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(json: &str) -> Option<Prompt> {
        let body = format!(r#"{{"prompt":{json}}}"#);
        parse(body.as_bytes()).unwrap().prompts.pop().map(|(_, prompt)| prompt)
    }

    #[test]
    fn prompts_have_four_forms() {
        assert_eq!(prompt("null"), None);
        assert_eq!(prompt(r#""a\u00e9""#), Some(Prompt::Text("aé".into())));
        assert_eq!(prompt(r#"["a","b"]"#), Some(Prompt::Texts(vec!["a".into(), "b".into()])));
        assert_eq!(prompt("[1,2]"), Some(Prompt::Ids(vec![1, 2])));
        assert_eq!(prompt("[[1],[2,3]]"), Some(Prompt::IdLists(vec![vec![1], vec![2, 3]])));
        assert_eq!(prompt("[]"), Some(Prompt::Ids(vec![])));
    }

    #[test]
    fn wrong_prompts_say_where() {
        for (json, at) in [
            ("3", ""),
            ("true", ""),
            ("1.5", ""),
            (r#"{"a":[1]}"#, ""),
            (r#"["a",1]"#, "[1]"),
            ("[1,-1]", "[1]"),
            ("[1,2.5]", "[1]"),
            ("[4294967296]", "[0]"),
            ("[null]", "[0]"),
            ("[[1],[2,null]]", "[1][1]"),
            ("[[1],[2,[3]]]", "[1][1]"),
            (r#"[[1],["a"]]"#, "[1][0]"),
            (r#"[{"a":1},[2]]"#, "[0]"),
        ] {
            match prompt(json) {
                Some(Prompt::Invalid { at: found, .. }) => assert_eq!(found, at, "{json}"),
                other => panic!("{json}: {other:?}"),
            }
        }
        let many = format!("[{}\"a\"]", "\"a\",".repeat(MAX_PROMPTS));
        assert!(matches!(prompt(&many), Some(Prompt::Invalid { .. })));
    }

    #[test]
    fn nulls_are_unset_and_the_last_of_two_counts() {
        let object = parse(br#"{"a":1,"b":null,"a":null,"prompt":"x","prompt":"y","c":{"d":null}}"#).unwrap();
        assert_eq!(object.values.keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!(object.prompts, [("prompt", Prompt::Text("y".into()))]);
    }

    #[test]
    fn hostile_bodies_are_refused() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let many = format!("{{\"a\":[{}0]}}", "0,".repeat(MAX_JSON_VALUES));
        let bodies =
            [&b""[..], b"{", b"[]", b"3", b"{} x", b"{\"a\":\"\xff\"}", b"\xef\xbb\xbf{}", b"{\"a\":NaN}"];
        for body in bodies.into_iter().chain([deep.as_bytes(), many.as_bytes()]) {
            let error = parse(body).unwrap_err();
            assert!(error.to_json().contains("\"code\":400"), "{}", error.to_json());
        }
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(prompt(&deep), Some(Prompt::Invalid { .. })));
    }
}
