//! Random requests: any combination of fields, most of them sensible, some contradicting each other.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use serde_json::{Map, Value, json};

const QUESTIONS: [&str; 8] = [
    "What is the weather in Oslo?",
    "Set a timer for 7 minutes.",
    "Tell me a story about a fox and a lighthouse.",
    "Repeat: 🦊 é 漢字 ñandú",
    "Extract name and age as JSON: Ann is 7.",
    "Spell the word piano.",
    "Who are you?",
    "",
];
const PROMPTS: [&str; 6] = [
    "Once upon a time",
    "🦊 é",
    "漢字",
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "1 + 1 =",
    "a",
];
const STOPS: [&str; 8] = [" the", "e", ".", "\n", "is a", "🦊", "never said by anybody", "}"];

/// A request in the making.
struct Draw<'a> {
    rng: &'a mut StdRng,
    body: Map<String, Value>,
}

impl Draw<'_> {
    /// Adds the field so many times in a hundred.
    fn maybe(&mut self, percent: u32, name: &str, value: impl FnOnce(&mut StdRng) -> Value) {
        if self.rng.random_range(0..100) < percent {
            let value = value(self.rng);
            self.body.insert(name.into(), value);
        }
    }

    fn has(&self, name: &str) -> bool {
        self.body.get(name).is_some_and(|value| !value.is_null())
    }

    fn end(self) -> Value {
        Value::Object(self.body)
    }
}

fn pick<T: Clone>(rng: &mut StdRng, values: &[T]) -> T {
    values.choose(rng).expect("there are some").clone()
}

fn start<'a>(rng: &'a mut StdRng, fixed: Value) -> Draw<'a> {
    let Value::Object(body) = fixed else { unreachable!("an object") };
    let mut draw = Draw { rng, body };
    let temperature = pick(draw.rng, &[json!(0), json!(0.7), json!(1), json!(1.8)]);
    draw.body.insert("temperature".into(), temperature);
    let seed = draw.rng.next_u32();
    draw.body.insert("seed".into(), seed.into());
    draw
}

fn tokens(rng: &mut StdRng, most: usize) -> Value {
    (0..rng.random_range(1..=most)).map(|_| rng.random_range(9..2048)).collect::<Vec<u32>>().into()
}

fn some_stops(rng: &mut StdRng) -> Value {
    (0..rng.random_range(1..4)).map(|_| pick(rng, &STOPS)).collect::<Vec<_>>().into()
}

/// What nearly every API has.
fn sampling(draw: &mut Draw) {
    draw.maybe(20, "top_p", |rng| json!(rng.random_range(0.1..1.0)));
    draw.maybe(20, "top_k", |rng| pick(rng, &[-1, 0, 1, 5, 50]).into());
}

/// The fields that completions and chat have in common.
fn openai(draw: &mut Draw) {
    sampling(draw);
    draw.maybe(95, "max_tokens", |rng| rng.random_range(1..50).into());
    draw.maybe(15, "min_p", |rng| json!(rng.random_range(0.0..0.5)));
    draw.maybe(15, "presence_penalty", |rng| json!(rng.random_range(-2.0..2.0)));
    draw.maybe(15, "frequency_penalty", |rng| json!(rng.random_range(-2.0..2.0)));
    draw.maybe(15, "repetition_penalty", |rng| json!(rng.random_range(0.8..1.5)));
    draw.maybe(25, "stop", |rng| if rng.random() { some_stops(rng) } else { pick(rng, &STOPS).into() });
    draw.maybe(25, "include_stop_str_in_output", |rng| rng.random::<bool>().into());
    draw.maybe(10, "stop_token_ids", |rng| tokens(rng, 200));
    draw.maybe(15, "min_tokens", |rng| rng.random_range(0..8).into());
    draw.maybe(30, "ignore_eos", |rng| rng.random::<bool>().into());
    draw.maybe(10, "logit_bias", |rng| json!({ rng.random_range(9..2048).to_string(): 8.5 }));
    // Bytes and pieces of characters.
    draw.maybe(10, "allowed_token_ids", |_| (9..265).collect::<Vec<u32>>().into());
    draw.maybe(8, "bad_words", |rng| json!([pick(rng, &["the", "fox", "a", "é"])]));
    draw.maybe(20, "skip_special_tokens", |rng| rng.random::<bool>().into());
    draw.maybe(10, "spaces_between_special_tokens", |rng| rng.random::<bool>().into());
    draw.maybe(15, "prompt_logprobs", |rng| rng.random_range(0..3).into());
    draw.maybe(50, "return_token_ids", |rng| rng.random::<bool>().into());
    draw.maybe(15, "return_tokens_as_token_ids", |rng| rng.random::<bool>().into());
    draw.maybe(15, "echo", |rng| rng.random::<bool>().into());
    draw.maybe(
        15,
        "repetition_detection",
        |rng| json!({"max_pattern_size": rng.random_range(1..6), "min_count": rng.random_range(2..4)}),
    );
    draw.maybe(15, "stream_interval", |rng| rng.random_range(1..9).into());
    draw.maybe(15, "truncate_prompt_tokens", |rng| pick(rng, &[-1, 1, 3, 40]).into());
    draw.maybe(10, "truncation_side", |rng| pick(rng, &["left", "right"]).into());
    draw.maybe(10, "cache_salt", |_| "salt".into());
    draw.maybe(10, "priority", |rng| rng.random_range(-2..3).into());
    draw.maybe(
        50,
        "stream_options",
        |rng| json!({"include_usage": true, "continuous_usage_stats": rng.random::<bool>()}),
    );
    if draw.body["temperature"] != json!(0) {
        draw.maybe(30, "n", |rng| rng.random_range(1..4).into());
    }
}

fn form(rng: &mut StdRng) -> (&'static str, Value) {
    let schema = json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer"}}, "required": ["name", "age"], "additionalProperties": false});
    match rng.random_range(0..5) {
        0 => ("response_format", json!({"type": "json_object"})),
        1 => (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
        ),
        2 => ("structured_outputs", json!({"choice": ["good", "bad", "so so"]})),
        3 => ("structured_outputs", json!({"regex": "[a-f]{3,9}(🦊|é)!"})),
        _ => ("response_format", json!({"type": "text"})),
    }
}

fn maybe_form(draw: &mut Draw, percent: u32) {
    let (name, value) = form(draw.rng);
    draw.maybe(percent, name, |_| value);
}

pub(super) fn completion(rng: &mut StdRng) -> Value {
    let prompt = match rng.random_range(0..4) {
        0 => json!([pick(rng, &PROMPTS), pick(rng, &PROMPTS)]),
        1 => tokens(rng, 20),
        _ => pick(rng, &PROMPTS).into(),
    };
    let mut draw = start(rng, json!({ "prompt": prompt }));
    openai(&mut draw);
    draw.maybe(30, "logprobs", |rng| rng.random_range(0..4).into());
    maybe_form(&mut draw, 15);
    if draw.has("logprobs") {
        draw.maybe(30, "logprob_token_ids", |rng| tokens(rng, 5));
        // The scores of a prompt come with its first choice, so this cannot be streamed.
        draw.body.remove("n").filter(|_| draw.has("echo"));
    } else if draw.body.get("echo") == Some(&json!(true)) {
        draw.maybe(20, "max_tokens", |_| 0.into());
        draw.body.remove("min_tokens");
    }
    draw.end()
}

fn tool(name: &str, about: &str, argument: &str, kind: &str) -> Value {
    let parameters =
        json!({"type": "object", "properties": {argument: {"type": kind}}, "required": [argument]});
    json!({"name": name, "description": about, "parameters": parameters})
}

fn functions() -> [Value; 2] {
    [
        tool("get_weather", "Get the weather in a city", "city", "string"),
        tool("set_timer", "Start a timer", "minutes", "integer"),
    ]
}

fn messages(rng: &mut StdRng) -> Vec<Value> {
    let mut messages = Vec::new();
    if rng.random_range(0..4) == 0 {
        messages.push(json!({"role": "system", "content": "Be brief."}));
    }
    messages.push(json!({"role": "user", "content": pick(rng, &QUESTIONS)}));
    messages
}

pub(super) fn chat(rng: &mut StdRng) -> Value {
    let messages = messages(rng);
    let mut draw = start(rng, json!({ "messages": messages }));
    openai(&mut draw);
    draw.maybe(30, "logprobs", |rng| rng.random::<bool>().into());
    if draw.body.get("logprobs") == Some(&json!(true)) {
        draw.maybe(70, "top_logprobs", |rng| rng.random_range(0..4).into());
        draw.maybe(20, "logprob_token_ids", |rng| tokens(rng, 5));
    }
    draw.maybe(15, "return_prompt_text", |rng| rng.random::<bool>().into());
    draw.maybe(10, "max_completion_tokens", |rng| rng.random_range(1..60).into());
    if draw.rng.random_range(0..3) == 0 {
        let tools = functions().map(|function| json!({"type": "function", "function": function}));
        draw.body.insert("tools".into(), tools.to_vec().into());
        draw.maybe(60, "tool_choice", |rng| {
            let named = json!({"type": "function", "function": {"name": "set_timer"}});
            pick(rng, &[json!("auto"), json!("required"), json!("none"), named])
        });
        draw.maybe(30, "parallel_tool_calls", |rng| rng.random::<bool>().into());
        draw.body.insert("max_tokens".into(), 80.into());
    } else {
        maybe_form(&mut draw, 20);
        if draw.rng.random_range(0..5) == 0 {
            let last = json!({"role": "assistant", "content": "It is said that"});
            draw.body["messages"].as_array_mut().expect("a list").push(last);
            draw.body.insert("continue_final_message".into(), true.into());
            draw.body.insert("add_generation_prompt".into(), false.into());
        }
    }
    draw.end()
}

pub(super) fn thinking_chat(rng: &mut StdRng) -> Value {
    let body = chat(rng);
    let Value::Object(body) = body else { unreachable!("an object") };
    let mut draw = Draw { rng, body };
    draw.maybe(75, "thinking_token_budget", |rng| rng.random_range(-1..12).into());
    draw.maybe(30, "include_reasoning", |rng| rng.random::<bool>().into());
    draw.end()
}

pub(super) fn response(rng: &mut StdRng) -> Value {
    let input = pick(rng, &QUESTIONS[..7]);
    let mut draw = start(rng, json!({ "input": input }));
    sampling(&mut draw);
    draw.maybe(95, "max_output_tokens", |rng| rng.random_range(1..60).into());
    draw.maybe(20, "instructions", |_| "Be brief.".into());
    draw.maybe(20, "stop", some_stops);
    draw.maybe(20, "ignore_eos", |rng| rng.random::<bool>().into());
    draw.maybe(20, "include_reasoning", |rng| rng.random::<bool>().into());
    if draw.rng.random_range(0..3) == 0 {
        let typed = functions().map(|mut function| {
            function["type"] = "function".into();
            function
        });
        draw.body.insert("tools".into(), typed.to_vec().into());
        draw.maybe(50, "tool_choice", |rng| pick(rng, &["auto", "required", "none"]).into());
        draw.maybe(20, "parallel_tool_calls", |rng| rng.random::<bool>().into());
    } else {
        draw.maybe(20, "text", |_| json!({"format": {"type": "json_object"}}));
        draw.maybe(20, "include", |_| json!(["message.output_text.logprobs"]));
        draw.maybe(20, "top_logprobs", |rng| rng.random_range(0..4).into());
    }
    draw.end()
}

pub(super) fn message(rng: &mut StdRng) -> Value {
    let question = json!({"role": "user", "content": pick(rng, &QUESTIONS[..7])});
    let max_tokens = rng.random_range(1..60);
    let mut draw = start(rng, json!({"messages": [question], "max_tokens": max_tokens}));
    sampling(&mut draw);
    draw.maybe(20, "system", |_| "Be brief.".into());
    draw.maybe(30, "stop_sequences", some_stops);
    draw.maybe(20, "ignore_eos", |rng| rng.random::<bool>().into());
    draw.maybe(40, "thinking", |rng| {
        pick(rng, &[json!({"type": "disabled"}), json!({"type": "enabled", "budget_tokens": 9})])
    });
    if draw.rng.random_range(0..3) == 0 {
        let tools = functions().map(|function| {
            json!({"name": function["name"], "description": function["description"],
                "input_schema": function["parameters"]})
        });
        draw.body.insert("tools".into(), tools.to_vec().into());
        draw.maybe(60, "tool_choice", |rng| json!({"type": pick(rng, &["auto", "any", "none"])}));
    }
    draw.end()
}

/// Ollama's options, instead of the fields themselves.
fn with_options(draw: &mut Draw) {
    let mut options = Map::new();
    for name in ["temperature", "seed", "top_p", "top_k"] {
        options.extend(draw.body.remove(name).map(|value| (name.to_owned(), value)));
    }
    options.insert("num_predict".into(), draw.rng.random_range(1..60).into());
    if draw.rng.random_range(0..4) == 0 {
        options.insert("stop".into(), some_stops(draw.rng));
    }
    draw.body.insert("options".into(), options.into());
    draw.maybe(15, "format", |_| "json".into());
    draw.maybe(20, "logprobs", |rng| rng.random::<bool>().into());
}

pub(super) fn ollama_chat(rng: &mut StdRng) -> Value {
    let messages = messages(rng);
    let mut draw = start(rng, json!({"model": "pebble", "messages": messages}));
    sampling(&mut draw);
    with_options(&mut draw);
    draw.maybe(30, "think", |rng| rng.random::<bool>().into());
    if !draw.has("format") {
        let tools = functions().map(|function| json!({"type": "function", "function": function}));
        draw.maybe(30, "tools", |_| tools.to_vec().into());
    }
    draw.end()
}

pub(super) fn ollama_generate(rng: &mut StdRng) -> Value {
    let prompt = pick(rng, &QUESTIONS[..7]);
    let mut draw = start(rng, json!({"model": "pebble", "prompt": prompt}));
    sampling(&mut draw);
    with_options(&mut draw);
    draw.maybe(30, "raw", |rng| rng.random::<bool>().into());
    draw.end()
}
