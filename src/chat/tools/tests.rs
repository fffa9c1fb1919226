//! Every format reads its own example, and reads the same however the text is cut.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

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

/// For each format: a text with content, a call of `get_weather` and one of `now`, and what the arguments of the
/// first are as text.
const EXAMPLES: &[(&str, &str, &str)] = &[
    (
        "hermes",
        "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}\n\
         </tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "longcat",
        "Let me see. <longcat_tool_call>{\"arguments\":{\"city\":\"Paris\",\"days\":[1,2]}, \"name\":\"get_weather\"}\
         </longcat_tool_call><longcat_tool_call>{\"name\": \"now\"}</longcat_tool_call>",
        r#"{"city":"Paris","days":[1,2]}"#,
    ),
    (
        "llama3_json",
        "Let me see.<|python_tag|>{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \
         \"days\": [1, 2]}}; {\"name\": \"now\", \"parameters\": {}}",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "mistral",
        "Let me see.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\", \"days\": [1, 2]}[TOOL_CALLS]now{}",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "mistral",
        "Let me see.[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}, \
         {\"name\": \"now\", \"arguments\": {}}]",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "llama4_pythonic",
        "Let me see.<|python_start|>[get_weather(city='Paris', days=[1, 2]), now()]<|python_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "olmo3",
        "Let me see.\n<function_calls>\nget_weather(city=\"Paris\", days=(1, 2,))\nnow()\n</function_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "lfm2",
        "Let me see.<|tool_call_start|>[get_weather(city=\"Paris\",days=[1,2]), now()]<|tool_call_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "qwen3_coder",
        "Let me see.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n[1, 2]\n\
         </parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "seed_oss",
        "Let me see.<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n<parameter=days>[1, 2]\
         </parameter>\n</function>\n</seed:tool_call><seed:tool_call><function=now></function></seed:tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "minimax_m2",
        "Let me see.\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n\
         <parameter name=\"days\">[1, 2]</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "glm45",
        "Let me see.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n\
         <arg_value>[1, 2]</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "glm47",
        "Let me see.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key>\
         <arg_value>[1, 2]</arg_value></tool_call><tool_call>now</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v32",
        "Let me see.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" \
         string=\"true\">Paris</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">[1, 2]</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "step3",
        "Let me see.<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=\"get_weather\">\n\
         <steptml:parameter name=\"city\">Paris</steptml:parameter><steptml:parameter name=\"days\">[1, 2]</steptml:parameter>\
         </steptml:invoke><｜tool_call_end｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=\"now\">\
         </steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v3",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n\
         {\"city\": \"Paris\", \"days\": [1, 2]}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n\
         ```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v31",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\", \"days\": [1, 2]}\
         <｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "kimi_k2",
        "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>\
         {\"city\": \"Paris\", \"days\": [1, 2]}<|tool_call_end|><|tool_call_begin|>functions.now:1\
         <|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "granite",
        "Let me see.<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}, \
         {\"name\": \"now\", \"arguments\": null}]",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "granite-20b-fc",
        "Let me see.<function_call> {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}\n\
         <function_call> {\"name\": \"now\", \"arguments\": {}}",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "jamba",
        "Let me see.<tool_calls>[\n{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Paris\\\", \\\"days\\\": [1, 2]}\"},\n\
         {\"name\": \"now\", \"arguments\": {}}\n]</tool_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "phi4_mini_json",
        "Let me see. functools[{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"arguments\": \
         {\"city\": \"Paris\", \"days\": [1, 2]}}}, {\"name\": \"now\", \"arguments\": {}}]",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "internlm",
        "Let me see.<|action_start|><|plugin|>\n{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": [1, 2]}}\n\
         <|action_end|>\n<|action_start|> <|plugin|>{\"name\": \"now\", \"parameters\": {}}<|action_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "xlam",
        "Let me see.\n```json\n[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}, \
         {\"name\": \"now\", \"arguments\": {}}]\n```",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
];

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
