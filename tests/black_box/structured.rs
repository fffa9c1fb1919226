//! Structured outputs: whatever the model would have said, the answer has the form that was asked for; alone and
//! in company, whole and streamed, by chance and greedily.

use futures_util::future::join_all;
use quire_proto::vllm;
use quire_proto::vllm::decoding_parameters::{StringChoices, StructuredOutput};
use serde_json::{Value, json};

use crate::server::Server;
use crate::{grpc, http};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Whether a text has the form that was asked for.
type HasForm<'a> = &'a dyn Fn(&str) -> bool;

/// A schema whose texts are short, and an answer's check against it.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "likes": {"type": "array", "items": {"enum": ["cats", "dogs", "tea"]}, "maxItems": 3},
        },
        "required": ["name", "age", "likes"],
        "additionalProperties": false,
    })
}

#[track_caller]
fn assert_matches_schema(text: &str) {
    let answer: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let fields: Vec<_> = answer.as_object().expect("an object").keys().collect();
    assert_eq!(fields, ["name", "age", "likes"], "{text}");
    assert!(answer["name"].as_str().is_some_and(|name| name.chars().count() <= 12), "{text}");
    assert!(answer["age"].as_u64().is_some_and(|age| age <= 150), "{text}");
    let likes = answer["likes"].as_array().expect("a list");
    assert!(
        likes.len() <= 3 && likes.iter().all(|like| ["cats", "dogs", "tea"].iter().any(|l| like == l)),
        "{text}"
    );
}

/// A completion with these fields.
fn completion(fields: &Value) -> Value {
    let mut body = json!({"prompt": "Once upon a time there was", "max_tokens": 400, "temperature": 0});
    for (name, value) in fields.as_object().expect("fields") {
        body[name] = value.clone();
    }
    body
}

fn texts(answer: &Value) -> Vec<String> {
    let choices = answer["choices"].as_array().expect("choices").iter();
    choices.map(|choice| choice["text"].as_str().expect("text").to_owned()).collect()
}

async fn complete(server: &Server, fields: &Value) -> Vec<String> {
    let answer = http::post(server.http, COMPLETIONS, &completion(fields)).await.ok();
    for choice in answer["choices"].as_array().expect("choices") {
        assert_eq!(choice["finish_reason"], "stop", "{answer}");
    }
    texts(&answer)
}

async fn stream(server: &Server, fields: &Value) -> String {
    let mut body = completion(fields);
    body["stream"] = true.into();
    let events = http::stream(server.http, COMPLETIONS, &body).await;
    events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect()
}

#[tokio::test]
async fn json_schemas_hold_for_every_temperature_and_seed() {
    let server = Server::shared(&[]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema()}});
    let mut asked = json!({"response_format": format});
    for seed in 0..8 {
        asked["temperature"] = json!(if seed == 0 { 0.0 } else { 1.0 });
        asked["seed"] = seed.into();
        let whole = complete(&server, &asked).await;
        assert_matches_schema(&whole[0]);
        assert_eq!(stream(&server, &asked).await, whole[0], "seed {seed}");
    }
    asked["n"] = 4.into();
    let several = complete(&server, &asked).await;
    assert_eq!(several.len(), 4);
    several.iter().for_each(|text| assert_matches_schema(text));
}

#[tokio::test]
async fn every_kind_has_its_form() {
    let server = Server::shared(&[]);
    let is_number = |text: &str| text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_colour = |text: &str| ["red", "green", "blue"].contains(&text);
    let sum = "root ::= n \"+\" n \"=\" n\nn ::= [0-9]{1,2}\n";
    let is_sum = |text: &str| text.split_once('+').is_some_and(|(_, rest)| rest.contains('='));
    let tag = json!({"format": {"type": "tag", "begin": "<n>", "content": {"type": "json_schema", "json_schema": {"type": "integer", "minimum": 0, "maximum": 99}}, "end": "</n>"}});
    let is_tag = |text: &str| {
        text.strip_prefix("<n>").and_then(|rest| rest.strip_suffix("</n>")?.parse::<u8>().ok()).is_some()
    };
    let is_object = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    let kinds: [(Value, HasForm); 9] = [
        (json!({"structured_outputs": {"regex": "[0-9]{3}"}}), &is_number),
        (json!({"guided_regex": "[0-9]{3}"}), &is_number),
        (json!({"structured_outputs": {"choice": ["red", "green", "blue"]}}), &is_colour),
        (json!({"guided_choice": ["red", "green", "blue"]}), &is_colour),
        (json!({"structured_outputs": {"grammar": sum}}), &is_sum),
        (json!({"guided_grammar": "start: /[0-9]{1,2}\\+[0-9]{1,2}=[0-9]{1,3}/\n"}), &is_sum),
        (json!({"structured_outputs": {"structural_tag": tag}}), &is_tag),
        (
            json!({"structured_outputs": {"json": {"type": "object", "maxProperties": 1, "additionalProperties": {"type": "boolean"}}}}),
            &is_object,
        ),
        (json!({"structured_outputs": {"json": "{\"const\": {}}"}}), &is_object),
    ];
    for (fields, has_form) in kinds {
        for temperature in [0.0, 1.0] {
            let mut fields = fields.clone();
            fields["temperature"] = temperature.into();
            fields["seed"] = 1.into();
            let text = complete(&server, &fields).await.remove(0);
            assert!(has_form(&text), "{fields}: {text}");
            assert_eq!(stream(&server, &fields).await, text, "{fields}");
        }
    }
}

#[tokio::test]
async fn a_json_object_is_json_as_far_as_it_goes() {
    let server = Server::shared(&[]);
    for seed in 0..4 {
        let body =
            completion(&json!({"response_format": {"type": "json_object"}, "temperature": 1, "seed": seed}));
        let answer = http::post(server.http, COMPLETIONS, &body).await.ok();
        let text = texts(&answer).remove(0);
        match answer["choices"][0]["finish_reason"].as_str() {
            Some("stop") => {
                assert!(serde_json::from_str::<Value>(&text).is_ok_and(|value| value.is_object()), "{text}")
            }
            _ => assert!(text.starts_with('{'), "{text}"),
        }
    }
}

#[tokio::test]
async fn chat_answers_have_their_form() {
    let server = Server::shared(&[]);
    let mut body = json!({
        "messages": [{"role": "user", "content": "Who are you?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema()}},
        "temperature": 1,
        "seed": 3,
    });
    let answer = http::post(server.http, CHAT, &body).await.ok();
    let content = answer["choices"][0]["message"]["content"].as_str().expect("content").to_owned();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    assert_matches_schema(&content);
    body["stream"] = true.into();
    let events = http::stream(server.http, CHAT, &body).await;
    let streamed: String =
        events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(streamed, content);
}

#[tokio::test]
async fn ignore_eos_puts_the_end_off_and_no_further() {
    let server = Server::shared(&[]);
    let asked = json!({"structured_outputs": {"regex": "(ab){1,5}"}, "ignore_eos": true});
    assert_eq!(complete(&server, &asked).await, ["ababababab"]);
}

#[tokio::test]
async fn others_do_not_notice() {
    let server = Server::shared(&[]);
    let plain = json!({"max_tokens": 60, "ignore_eos": true, "temperature": 1, "seed": 5});
    let format = json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema()}});
    let structured = json!({"response_format": format, "temperature": 1, "seed": 11});
    let ask =
        async |fields: &Value| texts(&http::post(server.http, COMPLETIONS, &completion(fields)).await.ok());
    let (alone, structured_alone) = (ask(&plain).await, ask(&structured).await);
    let together = join_all((0..12).map(|i| ask(if i % 2 == 0 { &plain } else { &structured }))).await;
    for (i, text) in together.iter().enumerate() {
        assert_eq!(text, if i % 2 == 0 { &alone } else { &structured_alone });
    }
}

#[tokio::test]
async fn bad_forms_are_refused_with_their_field() {
    let server = Server::shared(&[]);
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}});
    for (fields, param, says) in [
        (format(json!({"type": "no such type"})), "response_format", "no such type"),
        (format(json!({"type": "array", "uniqueItems": true})), "response_format", "uniqueItems"),
        (format(json!({"$ref": "https://example.com/x"})), "response_format", "example.com"),
        (format(json!({})), "response_format", "empty"),
        (json!({"structured_outputs": {"regex": "(a"}}), "structured_outputs", "regex"),
        (json!({"structured_outputs": {"regex": "a\u{0}"}}), "structured_outputs", "NUL"),
        (json!({"structured_outputs": {"grammar": ""}}), "structured_outputs", "empty"),
        (json!({"structured_outputs": {"grammar": "root ::= other"}}), "structured_outputs", "other"),
        (json!({"structured_outputs": {"choice": []}}), "structured_outputs", "choice"),
        (json!({"guided_choice": vec!["x"; 10_000]}), "guided_choice", "1024"),
        (json!({"guided_json": "{"}), "guided_json", "JSON"),
        (json!({"guided_regex": "a", "guided_choice": ["a"]}), "guided_choice", "guided_regex"),
    ] {
        let answer = http::post(server.http, COMPLETIONS, &completion(&fields)).await;
        let (status, error) = (answer.status, answer.json());
        assert_eq!(status, 400, "{fields}: {error}");
        assert_eq!(error["error"]["param"], param, "{error}");
        assert!(error["error"]["message"].as_str().is_some_and(|message| message.contains(says)), "{error}");
    }
    assert_eq!(complete(&server, &json!({"guided_choice": ["fine"]})).await, ["fine"]);
}

#[tokio::test]
async fn grpc_has_all_kinds() {
    let server = Server::shared(&[]);
    let choices = StringChoices { choices: vec!["yes".into(), "no".into()] };
    for (kind, forms) in [
        (StructuredOutput::Json("{\"enum\": [\"yes\", \"no\"]}".into()), ["\"yes\"", "\"no\""]),
        (StructuredOutput::Regex("yes|no".into()), ["yes", "no"]),
        (StructuredOutput::Choice(choices), ["yes", "no"]),
        (StructuredOutput::Grammar("root ::= \"yes\" | \"no\"".into()), ["yes", "no"]),
        (StructuredOutput::StructuralTag("{\"format\": {\"type\": \"or\", \"elements\": [{\"type\": \"const_string\", \"value\": \"yes\"}, {\"type\": \"const_string\", \"value\": \"no\"}]}}".into()), ["yes", "no"]),
    ] {
        let request = vllm::GenerateRequest {
            prompt: Some(grpc::text("Once upon a time")),
            decoding: Some(vllm::DecodingParameters { structured_output: Some(kind.clone()), ..Default::default() }),
            stopping: Some(vllm::StoppingCriteria { max_new_tokens: 30, ..Default::default() }),
            response: Some(vllm::ResponseOptions { output_text: Some(true), ..Default::default() }),
            ..Default::default()
        };
        let text = grpc::generate(server.grpc, request).await.outputs.expect("outputs").text;
        assert!(forms.contains(&text.as_str()), "{kind:?}: {text}");
    }
}

/// What contradicts itself is the client's doing, and is told so.
#[tokio::test]
async fn parameters_that_leave_nothing_are_refused() {
    let server = Server::shared(&[]);
    for fields in [
        json!({"structured_outputs": {"regex": "[0-9]{3}"}, "allowed_token_ids": [2000]}),
        json!({"allowed_token_ids": [2000], "bad_words": ["x"], "logit_bias": {"2000": -100}, "min_tokens": 2,
            "stop_token_ids": [2000]}),
    ] {
        let mut body = json!({"prompt": "a", "max_tokens": 4});
        body.as_object_mut().expect("an object").extend(fields.as_object().expect("an object").clone());
        let answer = http::post(server.http, COMPLETIONS, &body).await;
        assert_eq!(answer.status, 400, "{fields}: {}", answer.text());
    }
    // After some tokens, on both ports: the choice has ended where `min_tokens` does not let it end.
    let fields = json!({"prompt": "a", "max_tokens": 50, "min_tokens": 40, "guided_choice": ["yes"]});
    let answer = http::post(server.http, COMPLETIONS, &fields).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.text().contains("the grammar allows no token here"), "{}", answer.text());
    let choices = StringChoices { choices: vec!["yes".into()] };
    let kind = Some(StructuredOutput::Choice(choices));
    let request = vllm::GenerateRequest {
        prompt: Some(grpc::text("a")),
        decoding: Some(vllm::DecodingParameters { structured_output: kind, ..Default::default() }),
        stopping: Some(vllm::StoppingCriteria {
            max_new_tokens: 50,
            min_new_tokens: 40,
            ..Default::default()
        }),
        ..Default::default()
    };
    let status = grpc::inference(server.grpc).await.generate(request).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
}
