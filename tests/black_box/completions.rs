//! `/v1/completions`: the shape of answers and streams, and what the fields do.

use serde_json::{Value, json};

use crate::ask::EOS_TOKEN_IDS;
use crate::http;
use crate::server::Server;

const PATH: &str = "/v1/completions";

async fn ask(server: &Server, body: Value) -> Value {
    http::post(server.http, PATH, &body).await.ok()
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().expect("text")
}

fn ids(choice: &Value) -> Vec<u64> {
    choice["token_ids"].as_array().expect("ids").iter().map(|id| id.as_u64().expect("an id")).collect()
}

fn streamed_text(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect()
}

#[tokio::test]
async fn the_shape_of_an_answer() {
    let server = Server::shared(&[]);
    let answer = ask(
        &server,
        json!({"model": "pebble", "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0}),
    )
    .await;
    let keys: Vec<&String> = answer.as_object().expect("an object").keys().collect();
    for key in ["id", "object", "created", "model", "choices", "usage"] {
        assert!(keys.iter().any(|k| *k == key), "{key} is missing in {keys:?}");
    }
    assert!(answer["id"].as_str().is_some_and(|id| id.starts_with("cmpl-") && id.len() > 10));
    assert_eq!(answer["object"], "text_completion");
    assert_eq!(answer["model"], "pebble");
    assert!(answer["created"].as_i64().is_some_and(|at| at > 1_700_000_000));
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["finish_reason"], "length");
    // Explicit nulls, as vLLM has them.
    for null in ["logprobs", "stop_reason", "prompt_logprobs"] {
        assert_eq!(choice.get(null), Some(&Value::Null), "{null}");
    }
    let usage = &answer["usage"];
    assert_eq!(usage["completion_tokens"], 5);
    assert_eq!(
        usage["total_tokens"].as_u64(),
        Some(usage["prompt_tokens"].as_u64().expect("a count") + 5),
        "{usage}"
    );
}

#[tokio::test]
async fn the_default_is_16_tokens() {
    let server = Server::shared(&[]);
    let answer = ask(&server, json!({"prompt": "Once", "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn frames_of_a_stream_are_exact() {
    let server = Server::shared(&[]);
    let body = json!({"prompt": "Once upon a time", "max_tokens": 6, "temperature": 0, "ignore_eos": true, "stream": true});
    let mut open = http::post_open(server.http, PATH, &body).await;
    assert_eq!(open.status, 200);
    assert!(open.headers["content-type"].to_str().expect("ASCII").starts_with("text/event-stream"));
    assert_eq!(open.headers["cache-control"], "no-cache");
    let (mut frames, mut id) = (Vec::new(), None);
    while let Some(frame) = open.frame().await {
        frames.push(frame);
    }
    assert_eq!(frames.pop().as_deref(), Some("data: [DONE]"));
    for (number, frame) in frames.iter().enumerate() {
        assert!(!frame.contains('\n'), "one line a frame: {frame:?}");
        let event: Value = serde_json::from_str(frame.strip_prefix("data: ").expect("data")).expect("JSON");
        assert_eq!(event["object"], "text_completion");
        assert_eq!(event["model"], "pebble");
        // One id for all.
        assert_eq!(id.get_or_insert(event["id"].clone()), &event["id"]);
        let choice = &event["choices"][0];
        assert_eq!(choice["index"], 0);
        let last = number + 1 == frames.len();
        assert_eq!(choice["finish_reason"], if last { json!("length") } else { Value::Null }, "{event}");
        assert!(choice["text"].is_string(), "{event}");
        // Not asked for.
        assert!(event.get("usage").is_none_or(Value::is_null), "{event}");
    }
}

#[tokio::test]
async fn usage_comes_when_and_where_it_is_asked_for() {
    let server = Server::shared(&[]);
    let mut body = json!({"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": true});
    body["stream_options"] = json!({"include_usage": true});
    let events = http::stream(server.http, PATH, &body).await;
    let (last, others) = events.split_last().expect("events");
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["prompt_tokens"], 3);
    assert_eq!(last["usage"]["completion_tokens"], 4);
    assert_eq!(last["usage"]["total_tokens"], 7);
    for event in others {
        assert!(event.get("usage").is_none_or(Value::is_null), "{event}");
        assert_eq!(event["choices"].as_array().map(Vec::len), Some(1));
    }
    body["stream_options"]["continuous_usage_stats"] = true.into();
    let events = http::stream(server.http, PATH, &body).await;
    let counts: Vec<u64> =
        events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().expect("on each")).collect();
    assert!(counts.is_sorted() && counts.last() == Some(&4), "{counts:?}");
    body["stream_options"] = json!({"include_usage": false});
    let events = http::stream(server.http, PATH, &body).await;
    assert!(events.iter().all(|event| event.get("usage").is_none_or(Value::is_null)));
}

/// Random tokens make text that is full of halves of characters.
#[tokio::test]
async fn streams_say_what_whole_answers_say() {
    let server = Server::shared(&[]);
    let mut odd = 0;
    for seed in 0..60 {
        let prompt = ["Once upon a time", "🦊", "é ü 漢", "<|im_start|>user\n", "1 + 1 ="][seed as usize % 5];
        let mut body = json!({
            "prompt": prompt, "seed": seed, "temperature": 2, "max_tokens": 60, "ignore_eos": true,
            "skip_special_tokens": seed % 2 == 0, "return_token_ids": true,
        });
        if seed % 3 == 0 {
            // Bytes and pieces of characters only.
            body["allowed_token_ids"] = json!((9..265).collect::<Vec<u32>>());
        }
        let whole = ask(&server, body.clone()).await;
        let events = http::stream(server.http, PATH, &body).await;
        let streamed: Vec<u64> = events.iter().flat_map(|event| ids(&event["choices"][0])).collect();
        assert_eq!(streamed, ids(&whole["choices"][0]), "seed {seed}");
        assert_eq!(streamed_text(&events), text(&whole), "seed {seed}");
        odd += usize::from(text(&whole).contains('\u{fffd}') || !text(&whole).is_ascii());
        // What cannot be completed by later bytes is shown; half a character at the end of a piece is not.
        for event in &events {
            let piece = event["choices"][0]["text"].as_str().expect("text");
            assert!(text(&whole).contains(piece), "seed {seed}");
        }
    }
    assert!(odd > 10, "only {odd} texts were anything but ASCII");
}

#[tokio::test]
async fn prompts_in_lists_are_answered_in_order() {
    let server = Server::shared(&[]);
    let prompts = ["One", "Two", "Three", "Four"];
    let mut body = json!({"prompt": prompts, "max_tokens": 8, "temperature": 0, "echo": true});
    let batch = ask(&server, body.clone()).await;
    assert_eq!(batch["choices"].as_array().map(Vec::len), Some(4));
    let mut prompt_tokens = 0;
    for (index, prompt) in prompts.iter().enumerate() {
        body["prompt"] = json!(prompt);
        let single = ask(&server, body.clone()).await;
        prompt_tokens += single["usage"]["prompt_tokens"].as_u64().expect("a count");
        let choice = &batch["choices"][index];
        assert_eq!(choice["index"], index);
        assert_eq!(choice["text"], single["choices"][0]["text"]);
        assert!(choice["text"].as_str().expect("text").starts_with(prompt));
    }
    assert_eq!(batch["usage"]["prompt_tokens"], prompt_tokens);
    // With n, choice index = prompt * n + sequence, in streams too.
    let mut body = json!({"prompt": [[5], [6]], "n": 3, "seed": 1, "max_tokens": 3, "ignore_eos": true, "return_token_ids": true});
    let whole = ask(&server, body.clone()).await;
    let indices: Vec<u64> = whole["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|c| c["index"].as_u64().expect("index"))
        .collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    body["stream"] = true.into();
    let mut streamed = vec![Vec::new(); 6];
    for event in http::stream(server.http, PATH, &body).await {
        for choice in event["choices"].as_array().expect("choices") {
            streamed[choice["index"].as_u64().expect("index") as usize].extend(ids(choice));
        }
    }
    for (index, choice) in whole["choices"].as_array().expect("choices").iter().enumerate() {
        assert_eq!(streamed[index], ids(choice), "choice {index}");
    }
}

#[tokio::test]
async fn echo_and_logprobs_cover_prompt_and_output() {
    let server = Server::shared(&[]);
    let prompt = [756_u32, 1663, 22, 465, 644];
    let answer = ask(
        &server,
        json!({"prompt": prompt, "max_tokens": 3, "temperature": 0, "echo": true, "logprobs": 2, "ignore_eos": true}),
    )
    .await;
    let logprobs = &answer["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().map(Vec::len), Some(8), "{list}: {logprobs}");
    }
    // Nothing is known of the first token: nothing comes before it.
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["top_logprobs"][0], Value::Null);
    assert!(logprobs["token_logprobs"].as_array().expect("a list")[1..].iter().all(Value::is_number));
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().expect("a list").iter().map(|t| t.as_str().expect("text")).collect();
    assert_eq!(tokens.concat(), text(&answer));
    let mut offset = 0;
    for (token, at) in tokens.iter().zip(logprobs["text_offset"].as_array().expect("a list")) {
        assert_eq!(at.as_u64(), Some(offset), "{tokens:?}");
        offset += token.chars().count() as u64;
    }
    // The prompt alone, without output: what evaluation harnesses ask for.
    let prompt_only = ask(
        &server,
        json!({"prompt": prompt, "max_tokens": 0, "temperature": 0, "echo": true, "logprobs": 2}),
    )
    .await;
    let alone = &prompt_only["choices"][0]["logprobs"]["token_logprobs"];
    assert_eq!(alone.as_array().map(Vec::len), Some(5));
    assert_eq!(
        alone.as_array().expect("a list")[..],
        logprobs["token_logprobs"].as_array().expect("a list")[..5]
    );
    assert_eq!(prompt_only["usage"]["completion_tokens"], 0);
}

#[tokio::test]
async fn prompt_logprobs_are_what_the_model_would_have_said() {
    let server = Server::shared(&[]);
    let body = json!({"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "logprobs": 3, "ignore_eos": true,
        "return_token_ids": true, "return_tokens_as_token_ids": true});
    let first = ask(&server, body).await;
    let choice = &first["choices"][0];
    let mut all: Vec<u64> = choice["prompt_token_ids"]
        .as_array()
        .expect("ids")
        .iter()
        .map(|id| id.as_u64().expect("an id"))
        .collect();
    let prompt_len = all.len();
    all.extend(ids(choice));
    // Twice, so that the second would find everything in the prefix cache.
    for _ in 0..2 {
        let again =
            ask(&server, json!({"prompt": all, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 3}))
                .await;
        let prompt = again["choices"][0]["prompt_logprobs"].as_array().expect("one entry a token");
        assert_eq!(prompt.len(), all.len());
        assert_eq!(prompt[0], Value::Null);
        for (at, &token) in all.iter().enumerate().skip(1) {
            let entry = &prompt[at][token.to_string()];
            assert!(entry["rank"].as_u64().is_some_and(|rank| rank >= 1), "{entry}");
            assert!(entry["decoded_token"].is_string(), "{entry}");
            if at >= prompt_len {
                let said = &choice["logprobs"]["token_logprobs"][at - prompt_len];
                assert_eq!(&entry["logprob"], said, "token {at}");
                assert_eq!(entry["rank"], 1, "greedy takes the best");
            }
        }
    }
}

#[tokio::test]
async fn several_sequences_are_distinct_and_reproducible() {
    let server = Server::shared(&[]);
    let body = json!({"prompt": "Once upon a time", "n": 8, "seed": 5, "max_tokens": 20, "temperature": 1});
    let texts = |answer: &Value| -> Vec<String> {
        answer["choices"].as_array().expect("choices").iter().map(|c| c["text"].to_string()).collect()
    };
    let first = texts(&ask(&server, body.clone()).await);
    let second = texts(&ask(&server, body.clone()).await);
    assert_eq!(first, second, "the same seed gives the same answers");
    let distinct: std::collections::HashSet<_> = first.iter().collect();
    assert!(distinct.len() >= 7, "{first:?}");
    let mut other = body.clone();
    other["seed"] = 6.into();
    assert_ne!(texts(&ask(&server, other).await), first);
    // Without a seed, answers differ from call to call.
    let mut unseeded = body;
    unseeded.as_object_mut().expect("an object").remove("seed");
    let (a, b) = (ask(&server, unseeded.clone()).await, ask(&server, unseeded).await);
    assert_ne!(texts(&a), texts(&b));
}

#[tokio::test]
async fn end_tokens_stop_unless_ignored() {
    let server = Server::shared(&[]);
    let ask_with = |extra: Value| {
        let mut body = json!({
            "prompt": "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
            "max_tokens": 80, "temperature": 0, "return_token_ids": true,
        });
        body.as_object_mut().expect("an object").extend(extra.as_object().expect("an object").clone());
        ask(&server, body)
    };
    let is_eos = |id: &u64| EOS_TOKEN_IDS.contains(&(*id as u32));
    let plain = ask_with(json!({})).await;
    let choice = &plain["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(choice["stop_reason"], Value::Null, "the model's own end has no reason");
    let plain_ids = ids(choice);
    assert!(
        is_eos(plain_ids.last().expect("tokens")) && plain_ids.iter().filter(|id| is_eos(id)).count() == 1
    );
    assert!(!text(&plain).contains("<|im_end|>"));

    let ignoring = ask_with(json!({"ignore_eos": true})).await;
    assert_eq!(ignoring["choices"][0]["finish_reason"], "length");
    assert_eq!(ignoring["usage"]["completion_tokens"], 80);
    assert!(ids(&ignoring["choices"][0]).starts_with(&plain_ids));

    let at_least = plain_ids.len() + 5;
    let longer = ask_with(json!({"min_tokens": at_least})).await;
    let longer_ids = ids(&longer["choices"][0]);
    assert!(longer_ids.len() >= at_least, "{longer_ids:?}");
    assert!(longer_ids[..at_least].iter().all(|id| !is_eos(id)), "{longer_ids:?}");

    let shown = ask_with(json!({"include_stop_str_in_output": true, "skip_special_tokens": false})).await;
    assert!(text(&shown).ends_with("<|im_end|>"), "{:?}", text(&shown));

    // A token of the answer as a stop token: it ends there, and says by what.
    let stop = plain_ids[4];
    let stopped = ask_with(json!({"stop_token_ids": [stop]})).await;
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["choices"][0]["stop_reason"], stop);
    let first = plain_ids.iter().position(|&id| id == stop).expect("it is there");
    assert_eq!(ids(&stopped["choices"][0]), plain_ids[..=first]);
    assert!(text(&plain).starts_with(text(&stopped)));
}

#[tokio::test]
async fn stop_strings_cut_exactly() {
    let server = Server::shared(&[]);
    let base = json!({"prompt": "Once upon a time", "max_tokens": 60, "temperature": 0, "ignore_eos": true});
    let whole = ask(&server, base.clone()).await;
    let whole = text(&whole).to_owned();
    let chars: Vec<char> = whole.chars().collect();
    // Every window of some lengths: within a token, over two, over many.
    for len in [1, 2, 5, 17] {
        for start in (0..chars.len() - len).step_by(13) {
            let stop: String = chars[start..start + len].iter().collect();
            let at = whole.find(&stop).expect("it is a part");
            for include in [false, true] {
                let mut body = base.clone();
                body["stop"] = json!([stop, "never in the text \u{1}"]);
                body["include_stop_str_in_output"] = include.into();
                let expected = &whole[..if include { at + stop.len() } else { at }];
                let answer = ask(&server, body.clone()).await;
                assert_eq!(text(&answer), expected, "stop at {stop:?}");
                assert_eq!(answer["choices"][0]["finish_reason"], "stop");
                assert_eq!(answer["choices"][0]["stop_reason"], stop);
                let events = http::stream(server.http, PATH, &body).await;
                assert_eq!(streamed_text(&events), expected, "stop at {stop:?}, streamed");
                let last = events.last().expect("events");
                assert_eq!(last["choices"][0]["stop_reason"], stop);
            }
        }
    }
    // The one that is complete first wins, not the one that begins first.
    let (early, late) = (&whole[3..30], &whole[10..13]);
    let mut body = base.clone();
    body["stop"] = json!([early, late]);
    let answer = ask(&server, body).await;
    assert_eq!(answer["choices"][0]["stop_reason"], late);
    // Before min_tokens a stop string does not count.
    let mut body = base;
    body["stop"] = json!(&whole[0..4]);
    body["min_tokens"] = 20.into();
    let answer = ask(&server, body).await;
    assert!(answer["usage"]["completion_tokens"].as_u64() >= Some(20));
}

#[tokio::test]
async fn logits_can_be_pushed() {
    let server = Server::shared(&[]);
    let base = json!({"prompt": "Once upon a time", "max_tokens": 20, "temperature": 0, "return_token_ids": true, "ignore_eos": true});
    let ask_with = |field: &str, value: Value| {
        let mut body = base.clone();
        body[field] = value;
        ask(&server, body)
    };
    let plain = ask(&server, base.clone()).await;
    let plain = ids(&plain["choices"][0]);

    let forced = ask_with("logit_bias", json!({"100": 100})).await;
    assert_eq!(ids(&forced["choices"][0]), [100; 20]);
    let banned = ask_with("logit_bias", json!({plain[0].to_string(): -100})).await;
    assert!(!ids(&banned["choices"][0]).contains(&plain[0]));

    let allowed = ask_with("allowed_token_ids", json!([50, 60, 70])).await;
    assert!(ids(&allowed["choices"][0]).iter().all(|id| [50, 60, 70].contains(id)));

    // A word of the answer, and one of several tokens.
    let word = text_of(&server, &plain[2..4]).await;
    let without = ask_with("bad_words", json!([word.trim()])).await;
    assert!(!text(&without).contains(word.trim()), "{word:?} in {:?}", text(&without));
    assert_eq!(ids(&without["choices"][0])[..2], plain[..2], "nothing changes before it");

    let few = ask_with("presence_penalty", json!(2)).await;
    let distinct = |ids: &[u64]| ids.iter().collect::<std::collections::HashSet<_>>().len();
    assert!(distinct(&ids(&few["choices"][0])) >= distinct(&plain));
    let repeated = ask_with("repetition_penalty", json!(50)).await;
    let repeated = ids(&repeated["choices"][0]);
    assert!(distinct(&repeated) > 18, "{repeated:?}");
    // Greedy in other words.
    for (field, value) in [("top_k", json!(1)), ("top_p", json!(1e-6)), ("min_p", json!(1))] {
        let mut body = base.clone();
        body["temperature"] = json!(1.5);
        body[field] = value;
        assert_eq!(ids(&ask(&server, body).await["choices"][0]), plain, "{field}");
    }
}

async fn text_of(server: &Server, ids: &[u64]) -> String {
    let answer = http::post(server.http, "/detokenize", &json!({"tokens": ids})).await.ok();
    answer["prompt"].as_str().expect("text").to_owned()
}
