//! How large and how deep a constraint may be. Everything a client sends is checked here before it is parsed:
//! the parsers behind recurse, and the stack is not theirs to fill.

use llguidance::api::ParserLimits;
use serde_json::Value;

/// Bytes of a schema, a grammar or a structural tag, written as compact text.
pub(super) const MAX_SOURCE_BYTES: usize = 256 << 10;
/// Bytes of a regular expression.
pub(super) const MAX_REGEX_BYTES: usize = 8 << 10;
/// Texts to choose from.
pub(super) const MAX_CHOICES: usize = 1024;
/// Bytes of all texts to choose from.
pub(super) const MAX_CHOICE_BYTES: usize = 64 << 10;
/// Levels of lists and objects in a schema (vLLM's number).
pub(super) const MAX_JSON_DEPTH: usize = 64;
/// Levels of brackets in a regular expression or a grammar.
pub(super) const MAX_BRACKET_DEPTH: usize = 128;
/// Rules of a grammar: each may lead to the next, one level deeper.
pub(super) const MAX_RULES: usize = 2048;

/// What llguidance may spend on one grammar: some 200 ms to compile it, 20 ms for a mask, 30 MB for a
/// sequence's automaton. A sequence that needs more ends with an error. `precompute_large_lexemes` stays on:
/// what llguidance does before its first mask is bounded by nothing else.
pub(super) fn parser_limits() -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: 200_000,
        step_lexer_fuel: 50_000,
        step_max_items: 20_000,
        max_items_in_row: 4_000,
        max_lexer_states: 20_000,
        // What a client hears is about its grammar, not about the parser's state.
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Levels of lists and objects in a value; a plain value has none.
pub(super) fn json_depth(value: &Value) -> usize {
    let (mut deepest, mut rest) = (0, vec![(value, 0)]);
    while let Some((value, depth)) = rest.pop() {
        let depth = match value {
            Value::Object(map) => {
                rest.extend(map.values().map(|value| (value, depth + 1)));
                depth + 1
            }
            Value::Array(items) => {
                rest.extend(items.iter().map(|value| (value, depth + 1)));
                depth + 1
            }
            _ => depth,
        };
        deepest = deepest.max(depth);
    }
    deepest
}

/// Levels of brackets in a text, those within quotes counted as well: quotes differ from notation to notation,
/// and no text anyone writes comes near the limit.
pub(super) fn bracket_depth(text: &str) -> usize {
    let (mut deepest, mut depth) = (0, 0usize);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}
