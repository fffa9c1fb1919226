//! Prints what hostile constraints cost: the time to compile each, or why it is refused, and the slowest of its
//! masks, of its matchers' starts and of the tokens taken in.
//!
//! ```text
//! cargo run --release --example grammar_cost -- assets/pebble/model
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire::grammar::{Constraint, GrammarCompiler};
use quire::text::Tokenizer;
use quire::validate::RequestLimits;
use quire_model::SamplingDefaults;
use quire_scheduler::{Grammar, GrammarMatcher, TokenId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// Texts drawn for each constraint, and tokens of each.
const DRAWS: u64 = 4;
const TOKENS: usize = 48;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args().nth(1).map_or_else(|| PathBuf::from("assets/pebble/model"), PathBuf::from);
    let tokenizer = Tokenizer::from_dir(&dir)?;
    let end = tokenizer.eos_token_id().unwrap_or_default();
    let limits = RequestLimits {
        max_model_len: 4096,
        vocab_size: tokenizer.vocab_size() as u32,
        max_logprobs: None,
        eos_token_ids: Arc::new([end]),
        defaults: SamplingDefaults::default(),
        stream_interval: 1,
        thinking: None,
    };
    let compiler = GrammarCompiler::new(&tokenizer, &limits);
    // The first grammar sorts the vocabulary.
    let _ = compiler.compile(&Constraint::JsonObject);
    println!("{:>9} {:>9} {:>9} {:>9}  ms", "compile", "start", "mask", "accept");
    for (name, constraint) in constraints() {
        let started = Instant::now();
        let grammar = compiler.compile(&constraint);
        let compile = started.elapsed();
        match grammar {
            Err(why) => println!("{:>9.1} {:>29}  {name}: {why}", ms(compile), ""),
            Ok(grammar) => {
                let worst = worst(&grammar, &tokenizer, limits.vocab_size);
                let [start, mask, accept] = [worst.start, worst.mask, worst.accept].map(ms);
                println!(
                    "{:>9.1} {start:>9.1} {mask:>9.1} {accept:>9.1}  {name}{}",
                    ms(compile),
                    worst.end.map(|end| format!(" ({end})")).unwrap_or_default()
                );
            }
        }
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[derive(Default)]
struct Worst {
    start: Duration,
    mask: Duration,
    accept: Duration,
    /// Why a text could not go on.
    end: Option<String>,
}

fn worst(grammar: &Grammar, tokenizer: &Tokenizer, vocab_size: u32) -> Worst {
    let mut worst = Worst::default();
    for seed in 0..DRAWS {
        let started = Instant::now();
        let mut matcher = grammar.matcher();
        worst.start = worst.start.max(started.elapsed());
        if let Err(end) = draw(matcher.as_mut(), tokenizer, vocab_size, seed, &mut worst) {
            worst.end = Some(end);
        }
    }
    worst
}

/// Half of the draws prefer the letter a, which keeps repetitions going; the others prefer nothing.
fn draw(
    matcher: &mut dyn GrammarMatcher,
    tokenizer: &Tokenizer,
    vocab_size: u32,
    seed: u64,
    worst: &mut Worst,
) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut mask = vec![0u32; vocab_size.div_ceil(32) as usize];
    let is_end = |id: TokenId| tokenizer.is_special(id);
    for _ in 0..TOKENS {
        let started = Instant::now();
        let filled = matcher.fill_mask(&mut mask);
        worst.mask = worst.mask.max(started.elapsed());
        filled.map_err(|error| error.to_string())?;
        let allowed: Vec<TokenId> = (0..vocab_size)
            .filter(|&id| mask[id as usize / 32] >> (id % 32) & 1 == 1 && !is_end(id))
            .collect();
        let preferred: Vec<TokenId> = allowed
            .iter()
            .copied()
            .filter(|&id| tokenizer.token_bytes(id).iter().all(|&b| b == b'a'))
            .collect();
        let from = if seed.is_multiple_of(2) && !preferred.is_empty() && rng.random_bool(0.8) {
            &preferred
        } else {
            &allowed
        };
        let Some(&token) = from.choose(&mut rng) else { return Ok(()) };
        let started = Instant::now();
        let accepted = matcher.accept(token).and_then(|()| matcher.take_forced(&mut Vec::new()));
        worst.accept = worst.accept.max(started.elapsed());
        accepted.map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn constraints() -> Vec<(String, Constraint)> {
    let mut all = Vec::new();
    let mut add = |name: &str, constraint| all.push((name.chars().take(70).collect::<String>(), constraint));
    for pattern in patterns() {
        add(&format!("regex {pattern}"), Constraint::Regex(pattern.clone()));
        let schema = json!({"type": "string", "pattern": pattern});
        add(&format!("pattern {pattern}"), Constraint::JsonSchema(schema));
    }
    for schema in schemas() {
        add(&format!("json {schema}"), Constraint::JsonSchema(schema));
    }
    for grammar in grammars() {
        add(&format!("grammar {}", grammar.replace('\n', " ; ")), Constraint::Grammar(grammar));
    }
    let choices = (0..1024).map(|i| format!("{i:0>60}")).collect();
    add("choice", Constraint::Choice(choices));
    all
}

fn patterns() -> Vec<String> {
    let fixed = [
        "(a{1000}){1000}",
        "((a{100}){100}){100}",
        "(((a{30}){30}){30}){30}",
        "a{1000000000}",
        "(a{0,1000}){0,1000}",
        "(a?){1000}a{1000}",
        "(a|b)*a(a|b){30}",
        "(a|b)*a(a|b){300}",
        "(a|aa|aaa){1000}",
        "(x+x+)+y",
        "(.*)*(.*)*(.*)*z",
        "(.*a){30}",
        "(.*a){100}",
        "(a*){100}b",
        "(\\p{L}{1,50} ?){1,50}",
        "(.{0,100}a){20}.{0,100}b",
        "((a|ab)(c|bcd)(d*)){100}",
        "[\\p{L}\\p{N}]{1,1000}",
        "(?i)[\\p{L}]{1,200}x{3}",
        ".{1,100000}",
        "(\\w+\\s?)*$",
        "((a{1,100}){1,100}b){1,100}",
        "(.*(ab|ba).*){20}",
        "(a{1,20}b{1,20}){1,2000}",
    ];
    let mut patterns: Vec<String> = fixed.map(String::from).to_vec();
    patterns.push(r"\p{L}{0,50}".repeat(500));
    patterns.push("(a?b?c?)".repeat(1000));
    patterns.push(format!("{}{}", "(.*a|".repeat(60), ")".repeat(60)));
    patterns.push(format!("{}a{}", "(".repeat(60), "{2})".repeat(59) + ")"));
    patterns.push(format!("{}a{}", "(".repeat(20), "{0,3})".repeat(19) + ")"));
    patterns.push((0..200).map(|i| format!(".*x{i}|")).collect::<String>() + "z");
    patterns
}

fn schemas() -> Vec<Value> {
    let wide = |n: usize, property: &dyn Fn(usize) -> Value| -> Value {
        (0..n).map(|i| (format!("property {i}"), property(i))).collect()
    };
    let doubling: Value = (0..40)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (format!("d{i}"), json!({"allOf": [next, next]}))
        })
        .chain([("d40".to_owned(), json!({"type": "string"}))])
        .collect();
    let forking: Value = (0..14)
        .map(|i| {
            let next = json!({"$ref": format!("#/$defs/d{}", i + 1)});
            (
                format!("d{i}"),
                json!({"type": "object", "properties": {"a": next, "b": next}, "required": ["a", "b"]}),
            )
        })
        .chain([("d14".to_owned(), json!({"type": "string"}))])
        .collect();
    let one = |i: usize| json!({"type": "object", "properties": {format!("p{i}"): {"const": i}}, "required": [format!("p{i}")]});
    vec![
        json!({"type": "string", "minLength": 1_000_000_000}),
        json!({"type": "string", "minLength": 100_000, "maxLength": 100_000}),
        json!({"type": "string", "maxLength": 10_000, "pattern": "^(ab?)*$"}),
        json!({"type": "string", "minLength": 500, "maxLength": 1000, "pattern": "(.*a){20}"}),
        json!({"type": "array", "items": {"const": 1}, "minItems": 1_000_000_000}),
        json!({"type": "array", "items": {"const": 1}, "minItems": 20_000, "maxItems": 30_000}),
        json!({"type": "array", "maxItems": 1000, "items": {"type": "array", "maxItems": 1000, "items": {"type": "array", "maxItems": 1000}}}),
        json!({"type": "array", "minItems": 300, "items": {"type": "array", "minItems": 300, "items": {"type": "array", "minItems": 300}}}),
        json!({"type": "array", "minItems": 10_000, "items": {"const": "x".repeat(8000)}, "x-guidance": {"whitespace_flexible": false}}),
        json!({"type": "array", "prefixItems": [{"type": "integer"}, {"const": "x".repeat(8000)}], "minItems": 2}),
        json!({"type": "array", "minItems": 10_000, "items": {"const": 1}, "x-guidance": {"whitespace_flexible": false}}),
        json!({"type": "object", "properties": wide(900, &|_| json!({"type": "string"}))}),
        json!({"type": "object", "minProperties": 1_000_000}),
        json!({"type": "object", "minProperties": 1000, "maxProperties": 2000}),
        json!({"type": "integer", "minimum": -1e300, "maximum": 1e300}),
        json!({"type": "integer", "multipleOf": 4_294_967_291u32}),
        json!({"type": "integer", "multipleOf": 65537, "minimum": 12345678, "maximum": 987654321234u64}),
        json!({"type": "number", "multipleOf": 1e-300}),
        json!({"type": "number", "multipleOf": 0.000001, "minimum": 0.5, "maximum": 1e9}),
        json!({"enum": (0..2000).map(|i| format!("a long value with number {i}")).collect::<Vec<_>>()}),
        json!({"type": "object", "properties": wide(2000, &|_| json!({"type": "string"})), "additionalProperties": false}),
        json!({"type": "object", "properties": wide(2000, &|_| json!({"type": "string"}))}),
        json!({"type": "object", "properties": wide(300, &|i| json!({"type": "string", "pattern": format!("^(a|b)*{i}(a|b){{10}}$")}))}),
        json!({"anyOf": (0..1000).map(one).collect::<Vec<_>>()}),
        json!({"allOf": (0..1000).map(one).collect::<Vec<_>>()}),
        json!({"type": "object", "patternProperties": (0..60).map(|i| (format!("^a.*{i}$"), json!({"const": i}))).collect::<Value>()}),
        json!({"type": "object", "additionalProperties": {"type": "string"}, "patternProperties": {"^(.*a){20}$": true}}),
        json!({"$ref": "#"}),
        json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"$ref": "#/$defs/d0", "$defs": doubling}),
        json!({"$ref": "#/$defs/d0", "$defs": forking}),
        json!({"const": "x".repeat(200_000)}),
        json!({"type": "object", "x-guidance": {"whitespace_pattern": "(a{1000}){1000}"}}),
        json!({"type": "object", "x-guidance": {"whitespace_pattern": "( ?\\n?){1,100}"}}),
        json!({"allOf": [{"type": "string", "pattern": "(.*a){20}"}, {"pattern": "(.*b){20}"}, {"pattern": "(.*c){20}"}]}),
        json!({"anyOf": (0..6).map(|i| json!({"allOf": (0..6).map(|j| json!({"anyOf": [{"required": [format!("a{i}{j}")], "type": "object"}, {"required": [format!("b{i}{j}")], "type": "object"}]})).collect::<Vec<_>>()})).collect::<Vec<_>>()}),
    ]
}

fn grammars() -> Vec<String> {
    let doubling: String = (0..60).map(|i| format!("R{i}: R{} R{}\n", i + 1, i + 1)).collect();
    let chain = |rule: &str, is: &str| -> String {
        (0..2000)
            .map(|i| format!("{rule}{i}{is} {rule}{}\n", i + 1))
            .chain([format!("{rule}2000{is} \"x\"\n")])
            .collect()
    };
    vec![
        format!("start: R0\n{doubling}R60: \"x\"\n"),
        format!("start: r0\n{}r60: \"x\"\n", doubling.to_lowercase()),
        format!("start: r0\n{}", chain("r", ":")),
        format!("start: R0\n{}", chain("R", ":")),
        format!("root ::= r0\n{}", chain("r", " ::=")),
        "start: (\"a\"{1,1000}){1,1000}\n".into(),
        "start: ((\"a\" \"b\"?){1000}){1000}\n".into(),
        "start: A{1000}\nA: /a{1000}/\n".into(),
        "start: A\nA: B{1000}\nB: /a{1000}/\n".into(),
        "start: a{500}\na: b{500}\nb: \"x\"{500}\n".into(),
        "start: a{0,500}\na: b{0,500}\nb: \"x\"{0,500}\n".into(),
        "start: x x x x x\nx: \"a\" | x x | \"\"\n".into(),
        "start: x\nx: x x x x x x x x | \"a\" | \"b\" | \"\"\n".into(),
        "start: x{100}\nx: /a*/ | /[ab]*/ | \"a\" x\n".into(),
        "root ::= (\"a\"{1000}){1000} root?\n".into(),
        "root ::= (\"a\"{1000}){1000}\n".into(),
        "root ::= x x x x x x\nx ::= \"a\" | x x | [a-z] x\n".into(),
        format!("start: {}\n", (0..2000).map(|i| format!("\"word{i}\"")).collect::<Vec<_>>().join(" | ")),
        format!(
            "start: w+\nw: {}\n",
            (0..1000).map(|i| format!("/[a-z]*{i}/")).collect::<Vec<_>>().join(" | ")
        ),
        "start: A\nA: /(.*a){15}/ & /(.*b){15}/ & ~/(.*c){15}/\n".into(),
        "start: /(?s:.*)/ & ~/(?s:.*)(a{1000}){1000}(?s:.*)/\n".into(),
        "start: %json {\"type\": \"string\", \"pattern\": \"(a{1000}){1000}\"}\n".into(),
        "start: %regex { \"substring_chars\": \"abcabcabdabcabcabdabcabcabd\" }\n".into(),
        format!("start: %regex {{ \"substring_chars\": \"{}\" }}\n", "abcabd".repeat(5000)),
        format!("start: %regex {{ \"substring_words\": \"{}\" }}\n", "aa ab ".repeat(5000)),
        "start: (%json {\"type\":\"object\"}){200}\n".into(),
        format!("start: r\nr: \"(\" r \"{}\" | \"a\" | r \"a\"\n", "x".repeat(8000)),
    ]
}
