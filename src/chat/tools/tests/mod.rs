//! Every format reads its own example, and reads the same however the text is cut.

mod examples;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use self::examples::EXAMPLES;
use super::formats::JSON_LIST;
use super::*;
use crate::chat::delta::{ChatDelta, Pieces, ToolCallDelta};

/// What a text was taken apart into, without the ids, which are drawn.
#[derive(Debug, Default, PartialEq, Clone)]
struct Read {
    content: String,
    calls: Vec<(String, String)>,
}

fn tools() -> Arc<[Tool]> {
    let tool = |name: &str, parameters: Value| {
        Tool::read(&json!({"type": "function", "function": {"name": name, "parameters": parameters}}))
            .unwrap()
    };
    let properties = json!({
        "city": {"type": "string"}, "days": {"type": "array"}, "metric": {"type": "boolean"},
        "zip": {"type": ["string", "null"]},
    });
    [tool("get_weather", json!({"type": "object", "properties": properties})), tool("now", json!({}))].into()
}

fn read_pieces<'a>(format: &'static ToolFormat, pieces: impl IntoIterator<Item = &'a str>) -> Read {
    let mut reader = ToolReader::new(format, tools(), false);
    let (mut read, mut news) = (Read::default(), Vec::new());
    let mut out = Pieces::default();
    for piece in pieces {
        reader.push(piece, &mut out);
        tell(&mut out, &mut read.content, &mut news);
    }
    reader.finish(&mut out);
    tell(&mut out, &mut read.content, &mut news);
    for piece in news {
        if let Some(start) = piece.start {
            assert_eq!((piece.index as usize, &*piece.arguments), (read.calls.len(), ""));
            assert!(start.id.len() >= 9);
            read.calls.push((start.name, String::new()));
        }
        assert_eq!(piece.index as usize + 1, read.calls.len());
        read.calls.last_mut().unwrap().1.push_str(&piece.arguments);
    }
    assert_eq!(reader.num_calls() as usize, read.calls.len());
    read
}

fn tell(out: &mut Pieces, content: &mut String, calls: &mut Vec<ToolCallDelta>) {
    while !out.is_empty() {
        let mut delta = ChatDelta::default();
        out.tell(&mut delta);
        content.push_str(&delta.content);
        calls.append(&mut delta.tool_calls);
    }
}

/// What calls a text tells, the reader's number of calls and the content.
fn told(mut reader: ToolReader, text: &str, finish: bool) -> (String, Vec<ToolCallDelta>, u32) {
    let (mut out, mut content, mut news) = (Pieces::default(), String::new(), Vec::new());
    reader.push(text, &mut out);
    if finish {
        reader.finish(&mut out);
    }
    tell(&mut out, &mut content, &mut news);
    (content, news, reader.num_calls())
}

fn read(name: &str, text: &str) -> Read {
    read_pieces(ToolFormat::named(name).unwrap(), [text])
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.into(), arguments.into())
}

#[test]
fn every_format_reads_its_example() {
    for (name, text, arguments) in EXAMPLES {
        let expected = Read {
            content: "Let me see.".into(),
            calls: vec![call("get_weather", arguments), call("now", "{}")],
        };
        assert_eq!(read(name, text), expected, "{name}");
    }
    // Those that need no marker, and the twins.
    let calls = vec![call("get_weather", "{\"city\": \"Oslo\"}"), call("now", "{}")];
    for (name, text) in [
        (
            "llama3_json",
            "\n{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}};{\"name\": \"now\"}",
        ),
        ("pythonic", "[get_weather(city='Oslo'), now()]"),
        ("xlam", "[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}, {\"name\": \"now\"}]"),
    ] {
        assert_eq!(read(name, text), Read { content: String::new(), calls: calls.clone() }, "{name}");
    }
    let tested: Vec<_> = EXAMPLES.iter().map(|(name, ..)| *name).chain(["pythonic"]).collect();
    for name in ToolFormat::names() {
        let format = ToolFormat::named(name).unwrap();
        let tested = format.names.iter().any(|name| tested.contains(name));
        assert!(tested || format.is_in_channels(), "{name} has no example");
    }
}

#[test]
fn markers_are_not_beginnings_of_each_other() {
    for name in ToolFormat::names() {
        let format = ToolFormat::named(name).unwrap();
        let markers: Vec<_> = format.openers().collect();
        for (i, a) in markers.iter().enumerate() {
            assert!(markers.iter().enumerate().all(|(j, b)| i == j || !b.starts_with(a)), "{name}: {a}");
        }
    }
}

#[test]
fn what_is_no_call_stays_content() {
    for (name, text) in [
        ("hermes", "<tool_call>\n{\"name\": 5}\n</tool_call> x"),
        ("hermes", "<tool_call>\n{\"arguments\": {\"a\": 1}}\n</tool_call>"),
        ("hermes", "<tool_call></tool_call>"),
        ("hermes", "<tool_call> not JSON"),
        ("hermes", "<tool_call>\n{\"name\": \"get_weather\", \"argum"),
        ("hermes", "a <tool_ca"),
        ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>"),
        ("hermes", "<tool_call>{\"name\": \"two words\", \"arguments\": {}}</tool_call>"),
        ("llama3_json", "{\"name\": \"Ann\", \"age\": 7}"),
        ("llama3_json", "{\"name\": \"Ann\", \"parameters\": {}}"),
        ("pythonic", "[1] is a citation, [see(it=1)] is not"),
        ("pythonic", "[unknown(a=1)]"),
        ("mistral", "[TOOL_CALLS]"),
        ("qwen3_coder", "<tool_call>\n<function="),
        ("qwen3_coder", "<tool_call>\n{\"name\": \"f\"}\n</tool_call>\n"),
        ("glm45", "<tool_call>{\"name\": \"f\"}</tool_call>"),
        ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>oops{}<｜tool▁calls▁end｜>"),
        ("kimi_k2", "<|tool_calls_section_begin|><|tool_calls_section_end|>"),
        ("gemma4", "<|tool_call>call:bad_func no brace<tool_call|>"),
        ("apertus", "<|tools_prefix|>[]<|tools_suffix|>"),
    ] {
        assert_eq!(read(name, text), Read { content: text.into(), calls: Vec::new() }, "{name}");
    }
}

#[test]
fn broken_calls_lose_nothing() {
    // After what was no call, a call is still found.
    let twice = "<tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call> Done.";
    let expected = Read { content: "<tool_call> Done.".into(), calls: vec![call("now", "{}")] };
    assert_eq!(read("hermes", twice), expected);
    // A second call that is none.
    let second = "<tool_call>{\"name\": \"now\", \"arguments\": {}}{\"na</tool_call>";
    let expected = Read { content: "{\"na</tool_call>".into(), calls: vec![call("now", "{}")] };
    assert_eq!(read("hermes", second), expected);
    // Arguments that break off, by the end of the text or of the call.
    let cut = "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": \"b";
    assert_eq!(read("hermes", cut).calls, [call("now", "{\"a\": \"b")]);
    let closed = "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": [1</tool_call>Hm";
    assert_eq!(read("hermes", closed), Read { content: "Hm".into(), calls: vec![call("now", "{\"a\": [1")] });
    // Line breaks in strings.
    let lines = "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": \"b\nc\"}}</tool_call>";
    assert_eq!(read("hermes", lines).calls, [call("now", "{\"a\": \"b\\nc\"}")]);
    // Text between tags of parameters ends the call.
    let text = "<tool_call><function=now><parameter=a>1</parameter> oops </function></tool_call>";
    let expected =
        Read { content: "oops </function></tool_call>".into(), calls: vec![call("now", "{\"a\": 1}")] };
    assert_eq!(read("qwen3_coder", text), expected);
}

#[test]
fn values_between_tags_become_json() {
    let value = |key: &str, value: &str| {
        let text = format!(
            "<tool_call><function=get_weather>\n<parameter={key}>\n{value}\n</parameter></function></tool_call>"
        );
        let read = read("qwen3_coder", &text);
        assert_eq!(read.calls.len(), 1, "{text}");
        let json: Value = serde_json::from_str(&read.calls[0].1).unwrap();
        json[key].clone()
    };
    assert_eq!(value("city", "12"), json!("12"));
    assert_eq!(value("city", "\n\"a\" < b\\\n\n</para x\n"), json!("\n\"a\" < b\\\n\n</para x\n"));
    assert_eq!(value("metric", "True"), json!(true));
    assert_eq!(value("metric", "perhaps"), json!("perhaps"));
    assert_eq!(value("days", "[1, {\"a\": null}]"), json!([1, {"a": null}]));
    assert_eq!((value("zip", "null"), value("zip", "75001")), (json!(null), json!("75001")));
    assert_eq!((value("other", "1.5"), value("other", "a b")), (json!(1.5), json!("a b")));
}

#[test]
fn blanks_around_values_are_what_the_format_says() {
    let city = |name: &str, before: &str, after: &str| {
        let (_, text, _) = EXAMPLES.iter().find(|(other, ..)| *other == name).unwrap();
        let calls = read(name, &text.replace("Paris", &format!("{before}P\n\n s{after}"))).calls;
        serde_json::from_str::<Value>(&calls[0].1).unwrap()["city"].as_str().unwrap().to_owned()
    };
    for (name, before, after, expected) in [
        ("seed_oss", "\n\n ", " \n\n", "\n P\n\n s \n"),
        ("mimo", "\n", "\n", "\nP\n\n s\n"),
        ("glm47", "  ", "\n ", "  P\n\n s\n "),
        ("step3", " \n", "\n\n ", "P\n\n s"),
        ("gemma4", " ", "\n", " P\n\n s\n"),
    ] {
        assert_eq!(city(name, before, after), expected, "{name}");
    }
}

#[test]
fn gemmas_notation_becomes_json() {
    let arguments = |text: &str| {
        let read = read("gemma4", &format!("<|tool_call>call:f{{{text}}}<tool_call|>"));
        assert_eq!((&*read.content, read.calls.len()), ("", 1), "{text}");
        serde_json::from_str::<Value>(&read.calls[0].1).unwrap_or_else(|e| panic!("{text}: {e}: {read:?}"))
    };
    for (text, expected) in [
        ("", json!({})),
        (
            "a:<|\"|>x \"y\" {z}, <b>\n<|\"|>, b : 1.5 ,c:true,d:null",
            json!({"a": "x \"y\" {z}, <b>\n", "b": 1.5, "c": true, "d": null}),
        ),
        (
            "a:{b:{c:[1,{d:<|\"|>x<|\"|>},[]]}},<|\"|>e f<|\"|>:{}",
            json!({"a": {"b": {"c": [1, {"d": "x"}, []]}}, "e f": {}}),
        ),
        ("a:north west", json!({"a": "north west"})),
    ] {
        assert_eq!(arguments(text), expected, "{text}");
    }
    // A function's schema decides where everything is in quotes.
    let call = "<start_function_call>call:get_weather{city:<escape>12<escape>,metric:<escape>true<escape>,x:<escape>a b<escape>}<end_function_call>";
    assert_eq!(read("functiongemma", call).calls[0].1, r#"{"city": "12", "metric": true, "x": "a b"}"#);
}

#[test]
fn python_becomes_json() {
    let value = |python: &str| {
        let read = read("olmo3", &format!("<function_calls>f(x={python})</function_calls>"));
        assert_eq!(read.calls.len(), 1, "{python}");
        let json: Value =
            serde_json::from_str(&read.calls[0].1).unwrap_or_else(|e| panic!("{python}: {e}: {read:?}"));
        json["x"].clone()
    };
    for (python, expected) in [
        ("1", json!(1)),
        ("-1.5e3", json!(-1500.0)),
        (".5", json!(0.5)),
        ("1_000", json!(1000)),
        ("None", json!(null)),
        ("'it\\'s \"x\"\\n'", json!("it's \"x\"\n")),
        ("\"\\u00e9\\x41\\U0001F600\\d\"", json!("éA😀\\d")),
        ("[]", json!([])),
        ("[1, [2, (3,)], {},]", json!([1, [2, [3]], {}])),
        ("{'a': {1: True}, 'b': 'c',}", json!({"a": {"1": true}, "b": "c"})),
        ("name", json!("name")),
        ("'[a(b=1), </function_calls>'", json!("[a(b=1), </function_calls>")),
    ] {
        assert_eq!(value(python), expected, "{python}");
    }
    for broken in ["f(x={1})", "f(x=[1)", "f(1)", "f(x y)", "f(x={[1]: 2})", "f(x='a' 'b')"] {
        let text = format!("<function_calls>{broken} end</function_calls>");
        let calls = read("olmo3", &text).calls;
        assert!(
            calls.iter().all(|(_, text)| serde_json::from_str::<Value>(text).is_err()),
            "{broken}: {calls:?}"
        );
    }
}

#[test]
fn ids_are_what_templates_want() {
    let id = |name: &str, text: &str| {
        let reader = ToolReader::new(ToolFormat::named(name).unwrap(), tools(), false);
        let (_, news, _) = told(reader, text, false);
        news[0].start.clone().unwrap().id
    };
    let hermes = id("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {");
    let digits = hermes.strip_prefix("chatcmpl-tool-").unwrap();
    assert!(digits.len() == 32 && digits.chars().all(|c| c.is_ascii_hexdigit()), "{hermes}");
    assert_eq!(id("mistral", "[TOOL_CALLS]f[ARGS]{").len(), 9);
    assert_eq!(id("mistral", "[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"), "abcdefghi");
    let kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:3<|tool_call_argument_begin|>{";
    assert_eq!(id("kimi_k2", kimi), "functions.f:3");
}

#[test]
fn only_the_first_call_if_asked_for() {
    for (name, text, arguments) in EXAMPLES {
        let reader = ToolReader::new(ToolFormat::named(name).unwrap(), tools(), true);
        let (content, news, num_calls) = told(reader, text, true);
        assert_eq!((num_calls, &*content), (1, "Let me see."), "{name}");
        let told: String = news.iter().map(|piece| &*piece.arguments).collect();
        assert_eq!(told, *arguments, "{name}");
    }
}

#[test]
fn arguments_stream_as_they_come() {
    for (name, text, arguments) in EXAMPLES.iter().filter(|(name, ..)| !matches!(*name, "jamba" | "longcat"))
    {
        let reader = ToolReader::new(ToolFormat::named(name).unwrap(), tools(), false);
        let paris = text.find("Paris").unwrap();
        let (_, news, _) = told(reader, &text[..paris + 3], false);
        let told: String = news.iter().map(|piece| &*piece.arguments).collect();
        let expected = &arguments[..arguments.find("Paris").unwrap() + 3];
        assert_eq!(told, expected, "{name}");
    }
}

/// For any text and any way to cut it.
#[test]
fn the_stream_reads_what_the_whole_reads() {
    for seed in 0..400 {
        let mut rng = StdRng::seed_from_u64(seed);
        for name in ToolFormat::names().into_iter().chain(["list"]) {
            let format = ToolFormat::named(name).unwrap_or(&JSON_LIST);
            let text = some_text(&mut rng, name);
            let whole = read_pieces(format, [&*text]);
            let pieces = cut(&mut rng, &text);
            let told = || format!("seed {seed}, {name}: {pieces:?}");
            assert_eq!(read_pieces(format, pieces.iter().copied()), whole, "{}", told());
            if whole.calls.is_empty() {
                assert_eq!(whole.content, text, "{}", told());
            }
            let mut rest = text.chars();
            assert!(whole.content.chars().all(|c| rest.any(|other| other == c)), "{}: {whole:?}", told());
        }
    }
}

/// Examples, mostly of this format, cut, mixed and damaged.
fn some_text(rng: &mut StdRng, name: &str) -> String {
    let own: Vec<_> = EXAMPLES.iter().filter(|(other, ..)| *other == name).collect();
    let mut text: Vec<char> = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let of_others = own.is_empty() || rng.random_ratio(1, 5);
        let example = if of_others { &EXAMPLES[rng.random_range(0..EXAMPLES.len())] } else { own[0] };
        let example: Vec<char> = example.1.chars().collect();
        let from = if rng.random() { rng.random_range(0..example.len()) } else { 0 };
        let to = if rng.random() { rng.random_range(from..=example.len()) } else { example.len() };
        text.extend(&example[from..to]);
    }
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..=text.len());
        let noise =
            ['<', '{', '}', '"', '\\', '[', ']', ' ', '\n', ':', ',', '(', ')', '=', 'x', 'é', '｜', '\''];
        match rng.random_range(0..3) {
            0 => text.insert(at, noise[rng.random_range(0..noise.len())]),
            1 if at < text.len() => text[at] = noise[rng.random_range(0..noise.len())],
            _ if at < text.len() => drop(text.remove(at)),
            _ => (),
        }
    }
    text.into_iter().collect()
}

fn cut<'a>(rng: &mut StdRng, text: &'a str) -> Vec<&'a str> {
    let most = [1, 4, 40][rng.random_range(0..3)];
    let mut pieces = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let num_chars = rng.random_range(1..=most);
        let at = rest.char_indices().nth(num_chars).map_or(rest.len(), |(at, _)| at);
        let (piece, others) = rest.split_at(at);
        pieces.push(piece);
        rest = others;
    }
    pieces
}
