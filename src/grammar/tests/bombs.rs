//! Constraints made to hurt: each is refused or served within the limits, and the next one is served as ever.

use std::iter;

use serde_json::{Value, json};

use super::walk::{accepts, draw};
use super::{COMPILER, Constraint, refusal};

/// Runs on a thread with the stack of the text pool's, so that what overflows there overflows here.
fn on_a_small_stack(work: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(work).unwrap();
    thread.join().unwrap();
}

/// Refused or not: if a grammar comes of it, a text can be drawn from it or it says why not.
fn survive(constraint: &Constraint) {
    let Ok(grammar) = COMPILER.compile(constraint) else { return };
    let mut matcher = grammar.matcher();
    let mut mask = vec![0; 66];
    for _ in 0..20 {
        if matcher.fill_mask(&mut mask).is_err() {
            return;
        }
        let Some(word) = mask.iter().position(|&word| word != 0) else { return };
        let token = word as u32 * 32 + mask[word].trailing_zeros();
        if super::ENDS.contains(&token) || matcher.accept(token).is_err() {
            return;
        }
    }
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "null"}), |inner, _| json!({"type": "array", "items": inner}))
}

#[test]
fn deep_schemas() {
    on_a_small_stack(|| {
        assert!(COMPILER.compile(&Constraint::JsonSchema(nested(60))).is_ok());
        assert!(refusal(&Constraint::JsonSchema(nested(100))).contains("levels deep; 64 are allowed"));
        let text = format!("{}{}", "{\"items\":".repeat(10_000), "}".repeat(10_000));
        assert!(Constraint::schema_from_text(&text).unwrap_err().0.contains("recursion limit"));
    });
}

#[test]
fn large_schemas() {
    let names: Vec<_> = (0..20_000).map(|i| format!("a long value with number {i}")).collect();
    assert!(refusal(&Constraint::JsonSchema(json!({"enum": names}))).contains("bytes; 262144 are allowed"));
    survive(&Constraint::JsonSchema(json!({"enum": names[..2000]})));
    let properties: Value =
        names[..2000].iter().map(|name| (name.clone(), json!({"type": "string"}))).collect();
    survive(&Constraint::JsonSchema(
        json!({"type": "object", "properties": properties, "required": names[..2000]}),
    ));
    survive(&Constraint::JsonSchema(
        json!({"type": "array", "items": {"const": 1}, "minItems": 1_000_000_000}),
    ));
    survive(&Constraint::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000})));
    survive(&Constraint::JsonSchema(json!({"type": "integer", "minimum": -1e300, "maximum": 1e300})));
    survive(&Constraint::JsonSchema(json!({"type": "number", "multipleOf": 1e-300})));
}

#[test]
fn patterns_within_schemas() {
    on_a_small_stack(|| {
        for depth in [240, 5000, 50_000] {
            let pattern = format!("{}a{}", "(".repeat(depth), ")?".repeat(depth));
            survive(&Constraint::JsonSchema(json!({"type": "string", "pattern": pattern})));
            survive(&Constraint::JsonSchema(
                json!({"type": "object", "patternProperties": {pattern.clone(): true}}),
            ));
            survive(&Constraint::JsonSchema(
                json!({"const": 1, "x-guidance": {"whitespace_pattern": pattern}}),
            ));
            survive(&Constraint::Grammar(format!("start: /{}a{}/", "[".repeat(depth), "]".repeat(depth))));
        }
        survive(&Constraint::JsonSchema(json!({"type": "string", "pattern": "(a{1000}){1000}"})));
        survive(&Constraint::JsonSchema(json!({"type": "string", "pattern": "(a|b)*a(a|b){40}"})));
    });
}

#[test]
fn references() {
    let remote = json!({"$ref": "https://example.com/schema.json"});
    assert!(refusal(&Constraint::JsonSchema(remote)).contains("example.com"));
    let file = json!({"$ref": "file:///etc/passwd"});
    assert!(refusal(&Constraint::JsonSchema(file)).contains("etc/passwd"));
    survive(&Constraint::JsonSchema(json!({"$ref": "#"})));
    survive(&Constraint::JsonSchema(json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})));
    survive(&Constraint::JsonSchema(
        json!({"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}}),
    ));
    // Each level doubles.
    let defs: Value = (0..40)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({"allOf": [next, next]}))
        })
        .chain(iter::once(("d40".to_owned(), json!({"type": "string"}))))
        .collect();
    on_a_small_stack(move || survive(&Constraint::JsonSchema(json!({"$ref": "#/$defs/d0", "$defs": defs}))));
}

#[test]
fn regular_expressions() {
    let regex = |pattern: String| Constraint::Regex(pattern);
    on_a_small_stack(move || {
        for pattern in
            ["(a{1000}){1000}", "((a{100}){100}){100}", "(a|b)*a(a|b){30}", "(x+x+)+y", "(.*)*(.*)*(.*)*z"]
        {
            survive(&regex(pattern.into()));
        }
        survive(&regex(format!("{}a{}", "(".repeat(127), ")?".repeat(127))));
        survive(&regex(iter::repeat_n(r"\p{L}{0,50}", 500).collect()));
        assert!(
            refusal(&regex(format!("{}a{}", "(".repeat(1000), ")".repeat(1000)))).contains("levels deep")
        );
        assert!(refusal(&regex("a".repeat(9000))).contains("bytes; 8192 are allowed"));
        assert!(refusal(&regex("a\0".into())).contains("NUL"));
        assert!(refusal(&regex(" ".into())).contains("empty"));
        assert!(!refusal(&regex("(".into())).is_empty());
        assert!(!refusal(&regex("[^\\s\\S]".into())).is_empty(), "nothing matches it");
    });
}

#[test]
fn choices() {
    let many = |n: usize| Constraint::Choice((0..n).map(|i| format!("choice {i}")).collect());
    assert!(accepts(&COMPILER.compile(&many(1024)).unwrap(), "choice 1023"));
    assert!(refusal(&many(10_000)).contains("1024 are allowed"));
    assert!(refusal(&Constraint::Choice(vec!["x".repeat(70_000)])).contains("bytes; 65536 are allowed"));
    assert!(refusal(&Constraint::Choice(Vec::new())).contains("nothing to choose"));
    assert!(refusal(&Constraint::Choice(vec!["a".into(), String::new()])).contains("choice 1 is empty"));
}

#[test]
fn grammars() {
    let grammar = |text: String| Constraint::Grammar(text);
    on_a_small_stack(move || {
        for text in ["", "  \n", "\0", "no grammar at all", "start: missing", "start: start", "root ::= root"]
        {
            assert!(!refusal(&grammar(text.into())).is_empty(), "{text:?}");
        }
        let left = COMPILER.compile(&grammar("start: start \"a\" | \"b\"\n".into())).unwrap();
        assert!(accepts(&left, "baaaa"));
        let ambiguous =
            COMPILER.compile(&grammar("start: x x x x x\nx: \"a\" | x x | \"\"\n".into())).unwrap();
        draw(&ambiguous, 1, 50);
        let chain = |rule: &str, is: &str, last: &str| -> String {
            (0..2000)
                .map(|i| format!("{rule}{i}{is} {rule}{}\n", i + 1))
                .chain([format!("{rule}2000{is} {last}\n")])
                .collect()
        };
        survive(&grammar(format!("start: r0\n{}", chain("r", ":", "\"x\""))));
        survive(&grammar(format!("start: R0\n{}", chain("R", ":", "\"x\""))));
        survive(&grammar(format!("root ::= r0\n{}", chain("r", " ::=", "\"x\""))));
        let doubling: String = (0..60).map(|i| format!("R{i}: R{} R{}\n", i + 1, i + 1)).collect();
        survive(&grammar(format!("start: R0\n{doubling}R60: \"x\"\n")));
        survive(&grammar(format!("start: r0\n{}r60: \"x\"\n", doubling.to_lowercase())));
        survive(&grammar("start: (\"a\"{1,1000}){1,1000}\n".into()));
        survive(&grammar("root ::= (\"a\"{1000}){1000} root?\n".into()));
        assert!(
            refusal(&grammar(format!("start: {}\"a\"{}", "(".repeat(5000), ")".repeat(5000))))
                .contains("levels deep")
        );
        assert!(refusal(&grammar((0..5000).map(|i| format!("r{i}: \"a\"\n")).collect())).contains("rules"));
        let braces = format!("start: %json {}{}", "{\"items\":".repeat(5000), "}".repeat(5000));
        assert!(!refusal(&grammar(braces)).is_empty());
    });
}

/// Fifteen characters that stand for a million, in every notation: what must come is counted before anything is
/// compiled.
#[test]
fn what_must_come_is_bounded_in_every_notation() {
    const BOMB: &str = "(a{1000}){1000}";
    let lark = |text: String| Constraint::Grammar(text);
    let tag = json!({"format": {"type": "tag", "begin": "<", "content": {"type": "regex", "pattern": BOMB}, "end": ">"}});
    let constant = json!({"type": "array", "minItems": 10_000, "items": {"const": "x".repeat(8000)}});
    for constraint in [
        Constraint::Regex(BOMB.into()),
        Constraint::JsonSchema(json!({"type": "string", "pattern": BOMB})),
        Constraint::JsonSchema(json!({"type": "object", "patternProperties": {BOMB: true}})),
        Constraint::JsonSchema(json!({"type": "object", "x-guidance": {"whitespace_pattern": BOMB}})),
        Constraint::JsonSchema(json!({"const": "x".repeat(10_000)})),
        Constraint::JsonSchema(json!({"const": vec!["x".repeat(8000); 10]})),
        Constraint::JsonSchema(constant),
        Constraint::StructuralTag(tag),
        lark(format!("start: /{BOMB}/")),
        lark("start: A\nA: B{1000}\nB: \"a\"{1000}".into()),
        lark("start: a{300}\na: b ~ 300\nb: \"x\"{300,}".into()),
        lark(format!("start: %json {{\"type\": \"string\", \"pattern\": \"{BOMB}\"}}")),
        lark("root ::= (\"a\"{1000}){1000}".into()),
        lark("root ::= x{1000} root?\nx ::= \"a\"{1000}".into()),
    ] {
        let why = refusal(&constraint);
        assert!(why.contains("written out; "), "{constraint:?}: {why}");
    }
    let properties: Value = (0..2000).map(|i| (format!("p{i}"), json!(true))).collect();
    let why = refusal(&Constraint::JsonSchema(json!({"type": "object", "properties": properties})));
    assert!(why.contains("2000 properties that are not required; 900 are allowed"), "{why}");
    assert!(refusal(&lark("start: %lark {\nstart: \"a\"\n}".into())).contains("%lark"));
}

/// A text within the limits can be drawn to its end: no mask, and no run of forced tokens, needs more steps than
/// it may take.
#[test]
fn what_is_allowed_can_be_served() {
    let long = "x".repeat(8000);
    let items = json!([{"type": "integer"}, {"const": long}]);
    for (constraint, text) in [
        (Constraint::Regex("ya{8000}".into()), format!("y{}", "a".repeat(8000))),
        (Constraint::JsonSchema(json!({"type": "array", "prefixItems": items, "minItems": 2})), long.clone()),
        (Constraint::JsonSchema(json!({"const": [long, long]})), long.clone()),
        (Constraint::Grammar(format!("start: \"{long}\"{{8}}")), long.repeat(8)),
    ] {
        let grammar = COMPILER.compile(&constraint).unwrap_or_else(|error| panic!("{error}"));
        let drawn = draw(&grammar, 1, 100_000).expect("it ends");
        assert!(drawn.contains(&text), "{} characters", drawn.len());
    }
    let names: Vec<_> = (0..900).map(|i| format!("property {i}")).collect();
    let properties: Value = names.iter().map(|name| (name.clone(), json!({"type": "null"}))).collect();
    let schema = json!({"type": "object", "properties": properties});
    let grammar = COMPILER.compile(&Constraint::JsonSchema(schema)).unwrap();
    assert!(accepts(&grammar, "{\"property 3\": null, \"property 899\": null}"));
}

#[test]
fn white_space_in_json_is_bounded_in_every_notation() {
    let schema = json!({"type": "array", "items": {"type": "integer"}});
    let tag = json!({"format": {"type": "json_schema", "json_schema": schema}});
    for constraint in [
        Constraint::JsonSchema(schema.clone()),
        Constraint::Grammar(format!("start: %json {schema}")),
        Constraint::StructuralTag(tag),
    ] {
        let grammar = COMPILER.compile(&constraint).unwrap();
        let padded = |spaces: usize| format!("[{}1]", " ".repeat(spaces));
        assert!(accepts(&grammar, &padded(32)) && !accepts(&grammar, &padded(33)), "{constraint:?}");
    }
}
