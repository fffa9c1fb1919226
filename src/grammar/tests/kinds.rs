//! Each kind of constraint.

use serde_json::json;

use super::walk::{accepts, draw};
use super::{COMPILER, Constraint};

/// The constraint lets exactly the first texts through.
#[track_caller]
fn check(constraint: &Constraint, accepted: &[&str], rejected: &[&str]) {
    let grammar = COMPILER.compile(constraint).unwrap();
    for text in accepted {
        assert!(accepts(&grammar, text), "{text:?} should be accepted by {constraint:?}");
    }
    for text in rejected {
        assert!(!accepts(&grammar, text), "{text:?} should be rejected by {constraint:?}");
    }
}

#[test]
fn regular_expressions_match_whole_texts() {
    let regex = |pattern: &str| Constraint::Regex(pattern.into());
    check(&regex(r"\d{3}-\d{2}"), &["123-45"], &["123-4", "123-456", "x123-45", ""]);
    check(&regex("^(yes|no)$"), &["yes", "no"], &["yes no", "maybe"]);
    check(&regex(r"[^/]+/\w+\n?"), &["a/b", "Zürich/x\n"], &["a", "a/b/c"]);
    check(&regex("a*"), &["", "aaaa"], &["b"]);
}

#[test]
fn a_choice_is_one_of_the_texts() {
    let choices = ["red", "reddish", "\"quoted\"\n", "naïve"].map(String::from);
    check(
        &Constraint::Choice(choices.into()),
        &["red", "reddish", "\"quoted\"\n", "naïve"],
        &["re", "green", "redred"],
    );
}

#[test]
fn json_objects_and_schemas() {
    check(&Constraint::JsonObject, &["{}", r#"{"a": [1, 2.5, null, "x"]}"#], &["[]", "1", "{", r#"{"a"}"#]);
    let schema = json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0}},
        "required": ["name"],
        "additionalProperties": false,
    });
    check(
        &Constraint::JsonSchema(schema),
        &[r#"{"name": "Ann", "age": 3}"#, "{\n  \"name\": \"Ann\"\n}"],
        &[
            r#"{"age": 3}"#,
            r#"{"name": "Barbara"}"#,
            r#"{"name": "Ann", "age": -1}"#,
            r#"{"name": "Ann", "x": 1}"#,
        ],
    );
}

#[test]
fn lark_with_schemas_inside() {
    let grammar = "start: \"<tool_call>\\n\" call \"\\n</tool_call>\"\ncall: %json {\"type\": \"object\"}\n";
    check(
        &Constraint::Grammar(grammar.into()),
        &["<tool_call>\n{\"a\": 1}\n</tool_call>"],
        &["{\"a\": 1}", "<tool_call>\n1\n</tool_call>"],
    );
}

#[test]
fn gbnf_without_and_with_recursion() {
    let flat = "# a move\nroot ::= move (\" \" move)*\nmove ::= [a-h] [1-8] \"x\"? | \"O-O\" # castles\n";
    check(&Constraint::Grammar(flat.into()), &["e4", "e4x d5", "O-O e4"], &["e9", "e4 ", "O-"]);
    let sums = "root ::= expr\nexpr ::= term ([-+*/] term)*\nterm ::= [0-9]{1,3} | \"(\" expr \")\"\n";
    check(&Constraint::Grammar(sums.into()), &["1", "(12+3)*4", "((7))"], &["1+", "(1", "1234", "()"]);
}

#[test]
fn structural_tags() {
    let tag = json!({
        "type": "structural_tag",
        "structures": [{"begin": "<f=add>", "schema": {"type": "integer"}, "end": "</f>"}],
        "triggers": ["<f="],
    });
    check(
        &Constraint::StructuralTag(tag),
        &["plain", "", "so <f=add>12</f> and <f=add>3</f> it is", "<f"],
        &["<f=sub>1</f>", "<f=add>x</f>", "<f=add>1"],
    );
}

#[test]
fn outputs_end() {
    for (seed, pattern) in [(1, "(ab|c){2,5}"), (2, "x"), (3, r"[a-z]{0,9}\.")] {
        let grammar = COMPILER.compile(&Constraint::Regex(pattern.into())).unwrap();
        let text = draw(&grammar, seed, 200).expect("it ends");
        assert!(accepts(&grammar, &text), "{pattern}: {text}");
    }
}
