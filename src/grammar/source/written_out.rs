//! How long the texts are that a constraint cannot do without: its repetitions written out as often as they
//! must come, along the longest alternative.
//!
//! `(a{1000}){1000}` is fifteen characters that stand for a million. What must come is taken in at once,
//! whatever its length, and each character is a state of the automaton; so its length is bounded here, before
//! anything is compiled. What merely may come costs nothing until it does, and then each mask has its bound.

use regex_syntax::hir::{Hir, HirKind};
use serde_json::{Map, Value};

use crate::grammar::compiler::GrammarRefusal;

/// Characters of one lexeme: a regular expression, a text in quotes, a terminal of a grammar.
pub(super) const MAX_LEXEME_CHARS: u64 = 8 << 10;
/// Characters of a rule, which is made of lexemes; and of a constant in a schema.
pub(super) const MAX_RULE_CHARS: u64 = 64 << 10;

/// Characters of a constant that a list may hold any number of times.
const MANY_ITEMS_CHARS: u64 = 256;
/// Properties of one object that may be there or not.
const MAX_OPTIONAL_PROPERTIES: usize = 900;

/// Refuses what is too long.
pub(super) fn check(what: &str, chars: u64, max: u64) -> Result<(), GrammarRefusal> {
    if chars > max {
        return Err(GrammarRefusal(format!(
            "{what} stands for {chars} characters when its repetitions are written out; {max} are allowed"
        )));
    }
    Ok(())
}

/// Refuses a regular expression that is too long.
pub(super) fn check_regex(pattern: &str) -> Result<(), GrammarRefusal> {
    let chars = regex_chars(pattern).unwrap_or(0);
    check(&format!("the regular expression {}", excerpt(pattern)), chars, MAX_LEXEME_CHARS)
}

/// `None` if it is no regular expression, which the compiler says better.
pub(super) fn regex_chars(pattern: &str) -> Option<u64> {
    Some(hir_chars(&regex_syntax::parse(pattern).ok()?))
}

/// The parser's own limit bounds the depth.
fn hir_chars(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(_) => 1,
        HirKind::Repetition(repetition) => {
            hir_chars(&repetition.sub).saturating_mul(repetition.min.max(1).into())
        }
        HirKind::Capture(capture) => hir_chars(&capture.sub),
        HirKind::Concat(parts) => parts.iter().map(hir_chars).fold(0, u64::saturating_add),
        HirKind::Alternation(parts) => parts.iter().map(hir_chars).max().unwrap_or(0),
    }
}

/// Refuses a schema with a pattern or a constant that is too long, also if it is so long only because a list must
/// hold it many times, and an object of too many properties.
pub(super) fn check_schema(schema: &Value) -> Result<(), GrammarRefusal> {
    let mut rest = vec![schema];
    let (mut longest, mut items) = (0, 1u64);
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(object) => {
                for keyword in ["pattern", "whitespace_pattern"] {
                    if let Some(pattern) = object.get(keyword).and_then(Value::as_str) {
                        check_regex(pattern)?;
                    }
                }
                for pattern in
                    object.get("patternProperties").and_then(Value::as_object).into_iter().flatten()
                {
                    check_regex(pattern.0)?;
                }
                let choices = object.get("enum").and_then(Value::as_array).into_iter().flatten();
                for constant in object.get("const").into_iter().chain(choices) {
                    longest = longest.max(check_constant(constant)?);
                }
                items =
                    items.saturating_mul(object.get("minItems").and_then(Value::as_u64).unwrap_or(1).max(1));
                check_properties(object)?;
                rest.extend(object.values());
            }
            Value::Array(items) => rest.extend(items),
            _ => {}
        }
    }
    // Items have a bound of their own, and what is short is within it.
    let what = format!("a constant of {longest} characters in lists of {items} items");
    if longest > MANY_ITEMS_CHARS {
        check(&what, longest.saturating_mul(items), MAX_RULE_CHARS)?;
    }
    Ok(())
}

/// The parser thinks of all properties that may come next at once.
fn check_properties(schema: &Map<String, Value>) -> Result<(), GrammarRefusal> {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return Ok(()) };
    for name in properties.keys() {
        check("a property's name", name.len() as u64, MAX_LEXEME_CHARS)?;
    }
    let required = schema.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    let optional = properties.len().saturating_sub(required);
    if optional > MAX_OPTIONAL_PROPERTIES {
        return Err(GrammarRefusal(format!(
            "an object has {optional} properties that are not required; {MAX_OPTIONAL_PROPERTIES} are allowed"
        )));
    }
    Ok(())
}

/// Gives its length.
fn check_constant(constant: &Value) -> Result<u64, GrammarRefusal> {
    let mut rest = vec![constant];
    let mut chars = 0;
    while let Some(value) = rest.pop() {
        match value {
            Value::String(text) => {
                check("a constant text", text.len() as u64, MAX_LEXEME_CHARS)?;
                chars += text.len() as u64;
            }
            Value::Array(items) => rest.extend(items),
            Value::Object(object) => rest.extend(object.values()),
            _ => chars += 1,
        }
    }
    check("a constant", chars, MAX_RULE_CHARS)?;
    Ok(chars)
}

/// The beginning of a text that may be long.
fn excerpt(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let mut excerpt: String = text.chars().take(MAX_CHARS).collect();
    if excerpt.len() < text.len() {
        excerpt.push('…');
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_come_is_counted_and_what_may_come_is_not() {
        for (pattern, chars) in [
            ("", Some(0)),
            ("abc", Some(3)),
            ("a{1000}", Some(1000)),
            ("(a{1000}){1000}", Some(1_000_000)),
            ("(?:(ab){3}|c){2}d", Some(13)),
            ("a{5,}b*", Some(6)),
            ("[a-z]{0,1000}", Some(1)),
            (r"\p{L}{7}\{9}", Some(10)),
            ("((((a{60000}){60000}){60000}){60000}){60000}", Some(u64::MAX)),
            ("(", None),
        ] {
            assert_eq!(regex_chars(pattern), chars, "{pattern}");
        }
    }
}
