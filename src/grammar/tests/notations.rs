//! GBNF and structural tags, construct by construct.

use serde_json::{Value, json};

use super::walk::accepts;
use super::{COMPILER, Constraint, refusal};

#[track_caller]
fn check(constraint: &Constraint, accepted: &[&str], rejected: &[&str]) {
    let grammar = COMPILER.compile(constraint).unwrap_or_else(|error| panic!("{constraint:?}: {error}"));
    for text in accepted {
        assert!(accepts(&grammar, text), "{text:?} should be accepted by {constraint:?}");
    }
    for text in rejected {
        assert!(!accepts(&grammar, text), "{text:?} should be rejected by {constraint:?}");
    }
}

#[test]
fn gbnf_constructs() {
    let gbnf = |text: &str| Constraint::Grammar(text.into());
    check(&gbnf("root ::= \"a\" | \"b\"\n  | \"c\""), &["a", "b", "c"], &["ab", ""]);
    check(&gbnf("root ::= (\"x\" \"y\"?)+"), &["x", "xyx"], &["y", ""]);
    check(&gbnf("root ::= [^a-y\\]\\n]{2}"), &["zz", "z1", "é!"], &["za", "z", "z]", "z\n"]);
    check(&gbnf("root ::= [a\\-z-]{2,}"), &["a-z", "--"], &["b", "a"]);
    check(&gbnf("root ::= \"\\x41\\u00e9\\t\\\"\\\\\""), &["Aé\t\"\\"], &["A"]);
    check(&gbnf("root ::= . \"!\" # anything\n# the end"), &["a!", "\n!", "€!"], &["!", "ab!"]);
    check(
        &gbnf("list-of-two ::= item \",\" item\nroot ::= list-of-two\nitem ::= [0-9]+\n"),
        &["1,22"],
        &["1,"],
    );
    // Longest-match lexers get these wrong: the first part must leave something for the second.
    check(&gbnf("root ::= [a-z]* \"x\" [a-z]"), &["xx", "abxy"], &["ab", "x"]);
    check(
        &gbnf("root ::= s\ns ::= \"(\" s \")\" | [a-z]* \"end\""),
        &["end", "((trend))", "endend"],
        &["(end", "en"],
    );
    check(&gbnf("root ::= \"\" | \"a\" root"), &["", "aaa"], &["b"]);
}

#[test]
fn gbnf_is_refused_by_line() {
    for (text, says) in [
        ("root ::= \"a\"\nx ::= (\"b\"", "line 2: expected )"),
        ("root ::= \"a", "line 1: the text has no end"),
        ("root ::= [a", "line 1: the class has no end"),
        ("root ::= []", "line 1: a class must not be empty"),
        ("root ::= [z-a]", "line 1: the range"),
        ("root ::= \"\\q\"", "line 1: the escape \\q"),
        ("root ::= \"a\"{3,1}", "line 1: expected {m}"),
        ("root ::= \"a\"{x}", "line 1: expected {m}"),
        ("root ::= \"a\" )", "line 1: expected a rule"),
        ("root ::= &\"a\"", "line 1: '&' has no meaning here"),
        ("root ::= 'a'", "line 1: '\\'' has no meaning here"),
        ("main ::= \"a\"", "no rule named root"),
        ("root ::= a b\na ::= \"a\"", "the rule root uses b"),
        ("root ::= \"a\"\nroot ::= \"b\"", "the rule root is defined twice"),
    ] {
        let message = refusal(&Constraint::Grammar(text.into()));
        assert!(message.contains(says), "{text:?}: {message}");
    }
}

#[test]
fn formats_of_structural_tags() {
    let tag = |format: Value| Constraint::StructuralTag(json!({"type": "structural_tag", "format": format}));
    let number =
        json!({"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 99}});
    let word = |word: &str| json!({"type": "const_string", "value": word});
    check(&tag(json!({"type": "sequence", "elements": [word("a"), word("b")]})), &["ab"], &["a", "ba"]);
    check(&tag(json!({"type": "or", "elements": [word("a"), number]})), &["a", "7"], &["b", "700"]);
    check(&tag(json!({"type": "regex", "pattern": "^[ab]+$"})), &["abba"], &["c", ""]);
    let thought = json!({"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"});
    check(&tag(thought.clone()), &["<t></t>", "<t>so < it\nis</t>"], &["<t>a", "a", "<t>a</t>b</t>"]);
    let then = json!({"type": "sequence", "elements": [thought, number]});
    check(&tag(then), &["<t>hm</t>42"], &["<t>hm</t>x", "42"]);
    let open = json!({"type": "sequence", "elements": [number, {"type": "any_text"}]});
    check(&tag(open), &["1", "12 and more"], &["", "x"]);
    let tags = json!([
        {"begin": "<f=a>", "content": number, "end": "</f>"},
        {"type": "tag", "begin": "<f=b>", "content": word("B"), "end": "</f>"},
    ]);
    let separated =
        json!({"type": "tags_with_separator", "tags": tags, "separator": "; ", "at_least_one": true});
    check(&tag(separated), &["<f=a>1</f>", "<f=b>B</f>; <f=a>2</f>"], &["", "<f=a>1</f><f=a>2</f>"]);
    let mut triggered = json!({"type": "triggered_tags", "triggers": ["<f="], "tags": tags});
    let calls = ["<f=a>1</f>", "say <f=b>B</f> and <f=a>2</f>!"];
    check(&tag(triggered.clone()), &[calls[0], calls[1], "", "no call <f"], &["<f=c>", "<f=a>B</f>"]);
    triggered["stop_after_first"] = true.into();
    check(&tag(triggered.clone()), &[calls[0], "plain"], &[calls[1], "<f=c>"]);
    triggered["at_least_one"] = true.into();
    check(&tag(triggered.clone()), &[calls[0]], &["", "plain", calls[1]]);
    triggered["stop_after_first"] = false.into();
    check(&tag(triggered), &[calls[0], "<f=a>1</f> and <f=b>B</f>"], &["", "plain", calls[1]]);
}

#[test]
fn structural_tags_are_refused_by_path() {
    for (tag, says) in [
        (json!({}), "empty"),
        (json!([]), "expected an object"),
        (json!({"type": "structural_tag"}), "expected a format"),
        (json!({"format": {"type": "magic"}}), "format: the format \"magic\" is not supported"),
        (json!({"format": {"type": "grammar", "grammar": "x"}}), "\"grammar\" is not supported"),
        (json!({"format": {"type": "const_string"}}), "format.value: expected a string"),
        (json!({"format": {"type": "const_string", "value": ""}}), "format.value: must not be empty"),
        (json!({"format": {"type": "sequence", "elements": []}}), "format.elements: expected a list"),
        (
            json!({"format": {"type": "sequence", "elements": [{"type": "any_text"}, {"type": "any_text"}]}}),
            "format.elements[0]: any_text",
        ),
        (json!({"format": {"type": "tag", "begin": "<", "end": ">"}}), "format.content: expected an object"),
        (json!({"format": {"type": "json_schema"}}), "format.json_schema: expected a schema"),
        (json!({"structures": [], "triggers": ["<"]}), "structures: expected a list"),
        (
            json!({"structures": [{"begin": "a", "schema": {}, "end": "b"}], "triggers": ["<"]}),
            "begins with none of the triggers",
        ),
        (
            json!({"structures": [{"begin": "<a", "schema": {}, "end": "b"}], "triggers": [""]}),
            "triggers: expected a list of texts",
        ),
        (
            json!({"structures": [{"begin": "<a", "schema": {}, "end": "b"}], "triggers": ["<", "["]}),
            "no tag begins with \"[\"",
        ),
    ] {
        let message = refusal(&Constraint::StructuralTag(tag.clone()));
        assert!(message.contains(says), "{tag}: {message}");
    }
}
