//! `/v1/responses` over a socket: shapes, the order of events, the store.

use serde_json::{Value, json};

use super::typed_events::parse;
use super::*;

const PATH: &str = "/v1/responses";

/// A short request with these fields.
fn with(fields: Value) -> Value {
    let mut body = json!({"input": "hi", "max_output_tokens": 6, "seed": 1});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

async fn create(server: &Server, fields: Value) -> Value {
    let answer = server.post(PATH, &with(fields)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    answer.json()
}

/// The texts and calls of a response: what is left of it without ids.
fn essence(response: &Value) -> Vec<Value> {
    let mut items = response["output"].as_array().unwrap().clone();
    for item in &mut items {
        item.as_object_mut().unwrap().remove("id");
    }
    items
}

#[tokio::test]
async fn a_whole_response_has_openais_fields() {
    let server = start(Settings::default()).await;
    let body =
        create(&server, json!({"metadata": {"a": "b"}, "user": "u", "instructions": "Be brief."})).await;
    let id = body["id"].as_str().unwrap();
    assert!(id.starts_with("resp_"));
    let text = &body["output"][0]["content"][0]["text"];
    assert!(!text.as_str().unwrap().is_empty());
    let prompt =
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let input_tokens = tokenizer().encode(prompt, false).unwrap().len();
    let expected = json!({
        "id": id, "object": "response", "created_at": body["created_at"], "completed_at": null,
        "status": "incomplete", "error": null, "incomplete_details": {"reason": "max_output_tokens"},
        "model": "pebble",
        "output": [{
            "type": "message", "id": body["output"][0]["id"], "role": "assistant", "status": "incomplete",
            "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}],
        }],
        "usage": {
            "input_tokens": input_tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 6, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": input_tokens + 6,
        },
        "background": false, "instructions": "Be brief.", "max_output_tokens": 6, "max_tool_calls": null,
        "metadata": {"a": "b"}, "parallel_tool_calls": true, "previous_response_id": null,
        "prompt_cache_key": null, "reasoning": {"effort": null, "summary": null}, "safety_identifier": null,
        "service_tier": "auto", "store": true, "temperature": 1.0, "text": {"format": {"type": "text"}},
        "tool_choice": "auto", "tools": [], "top_logprobs": 0, "top_p": 1.0, "truncation": "disabled",
        "user": "u",
    });
    assert_eq!(body, expected);
    assert_eq!(server.get(&format!("{PATH}/{id}")).await.json(), body);
}

#[tokio::test]
async fn streams_end_with_the_whole_response() {
    let server = start(Settings::default()).await;
    for fields in [
        json!({}),
        json!({"max_output_tokens": 1}),
        json!({"max_output_tokens": 40, "temperature": 0.7}),
        json!({"top_logprobs": 2, "include": ["message.output_text.logprobs"]}),
        json!({"stop": ["e"], "max_output_tokens": 100}),
    ] {
        let whole = create(&server, fields.clone()).await;
        let mut fields = fields;
        fields["stream"] = true.into();
        let answer = server.post(PATH, &with(fields.clone())).await;
        assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
        let events = parse(&answer.text);
        let last = &events.last().unwrap()["response"];
        assert_eq!(essence(last), essence(&whole), "{fields}");
        assert_eq!(last["status"], whole["status"]);
        let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
        let text: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
        assert_eq!(text, whole["output"][0]["content"][0]["text"].as_str().unwrap());
        let stored = server.get(&format!("{PATH}/{}", last["id"].as_str().unwrap())).await.json();
        assert_eq!(stored, *last);
    }
}

#[tokio::test]
async fn a_conversation_goes_on_from_what_was_stored() {
    let server = start(Settings::default()).await;
    let first = create(&server, json!({"instructions": "Be brief."})).await;
    let second = create(&server, json!({"input": "and?", "previous_response_id": first["id"]})).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let said = first["output"][0]["content"][0]["text"].as_str().unwrap();
    // Instructions are of one request, the conversation of all.
    let same = json!({"input": [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [{"type": "output_text", "text": said}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "and?"}]},
    ]});
    let same = create(&server, same).await;
    assert_eq!(essence(&second), essence(&same));
    assert_eq!(second["usage"]["input_tokens"], same["usage"]["input_tokens"]);
    let referred = json!({"input": [
        {"role": "user", "content": "hi"},
        {"type": "item_reference", "id": first["output"][0]["id"]},
        {"role": "user", "content": "and?"},
    ]});
    assert_eq!(essence(&create(&server, referred).await), essence(&same));

    let path = format!("{PATH}/{}/input_items", second["id"].as_str().unwrap());
    let items = server.get(&format!("{path}?order=asc&limit=2")).await.json();
    assert_eq!((&items["object"], &items["has_more"]), (&json!("list"), &json!(true)));
    assert_eq!(items["data"][0]["content"], json!([{"type": "input_text", "text": "hi"}]));
    assert_eq!(items["data"][1]["id"], first["output"][0]["id"]);
    let after = items["last_id"].as_str().unwrap();
    let rest = server.get(&format!("{path}?order=asc&after={after}")).await.json();
    assert_eq!(rest["data"].as_array().unwrap().len(), 1);
    assert_eq!((&rest["has_more"], &rest["first_id"]), (&json!(false), &rest["last_id"]));
}

#[tokio::test]
async fn what_is_not_stored_is_not_found() {
    let server = start(Settings::default()).await;
    let kept = create(&server, json!({})).await["id"].as_str().unwrap().to_owned();
    let id = create(&server, json!({"store": false})).await["id"].as_str().unwrap().to_owned();
    for path in [format!("{PATH}/{id}"), format!("{PATH}/{id}/input_items"), format!("{PATH}/resp_x")] {
        assert_eq!(server.get(&path).await.error(), (404, "null".into()), "{path}");
    }
    let answer = server.post(PATH, &with(json!({"previous_response_id": id}))).await;
    assert_eq!(answer.error(), (404, "previous_response_id".into()));
    let delete = |id: &str| server.request(Method::DELETE, &format!("{PATH}/{id}"), &[], b"");
    let deleted = server.send(delete(&kept)).await.json();
    assert_eq!(deleted, json!({"id": kept, "object": "response", "deleted": true}));
    assert_eq!(server.send(delete(&kept)).await.status, 404);
    assert_eq!(server.get(&format!("{PATH}/{kept}")).await.status, 404);
}

#[tokio::test]
async fn a_response_in_the_background_can_be_waited_for_and_cancelled() {
    let cost = Some(StepCost { step_us: 20_000.0, token_us: 0.0, sleep: true });
    let server = start(Settings { cost, ..Settings::default() }).await;
    let begun = create(&server, json!({"background": true, "max_output_tokens": 3})).await;
    assert_eq!((&begun["status"], &begun["output"]), (&json!("queued"), &json!([])));
    let path = format!("{PATH}/{}", begun["id"].as_str().unwrap());
    let mut now = begun;
    while now["status"] == "queued" {
        tokio::time::sleep(Duration::from_millis(5)).await;
        now = server.get(&path).await.json();
    }
    assert_eq!((&now["status"], &now["usage"]["output_tokens"]), (&json!("incomplete"), &json!(3)));
    let cancel = async |path: &str| server.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(cancel(&path).await.error(), (400, "response_id".into()));
    assert_eq!(cancel(&format!("{PATH}/resp_x")).await.status, 404);

    let long = json!({"background": true, "max_output_tokens": 400, "ignore_eos": true});
    for delete in [false, true] {
        let begun = create(&server, long.clone()).await;
        let path = format!("{PATH}/{}", begun["id"].as_str().unwrap());
        if delete {
            server.send(server.request(Method::DELETE, &path, &[], b"")).await;
            assert_eq!(server.get(&path).await.status, 404);
        } else {
            assert_eq!(cancel(&path).await.json()["status"], "cancelled");
            assert_eq!(server.get(&path).await.json()["status"], "cancelled");
            let on = with(json!({"previous_response_id": begun["id"]}));
            assert_eq!(server.post(PATH, &on).await.error(), (400, "previous_response_id".into()));
        }
        server.wait_until_idle().await;
    }
}

#[tokio::test]
async fn wrong_fields_are_named() {
    let server = start(Settings::default()).await;
    let tool = |tool: Value| json!({"tools": [tool]});
    let item = |item: Value| json!({"input": [{"role": "user", "content": "a"}, item]});
    for (fields, status, param) in [
        (json!({"input": null}), 400, "input"),
        (json!({"input": 5}), 400, "input"),
        (json!({"input": []}), 400, "input"),
        (json!({"input": ["a"]}), 400, "input[0]"),
        (item(json!({})), 400, "input[1].type"),
        (item(json!({"role": "cook", "content": "a"})), 400, "input[1].role"),
        (item(json!({"role": "user"})), 400, "input[1].content"),
        (
            item(json!({"role": "user", "content": [{"type": "input_image"}]})),
            400,
            "input[1].content[0].type",
        ),
        (item(json!({"role": "user", "content": [{"type": "input_text"}]})), 400, "input[1].content[0].text"),
        (item(json!({"type": "function_call", "name": "f"})), 400, "input[1].call_id"),
        (item(json!({"type": "function_call_output", "call_id": "1"})), 400, "input[1].output"),
        (item(json!({"type": "web_search_call"})), 400, "input[1].type"),
        (item(json!({"type": "item_reference", "id": "msg_x"})), 404, "input[1].id"),
        (json!({"model": "gpt-5"}), 404, "model"),
        (json!({"max_output_tokens": 0}), 400, "max_output_tokens"),
        (json!({"max_output_tokens": 100_000}), 400, "max_output_tokens"),
        (json!({"temperature": 3}), 400, "temperature"),
        (json!({"top_logprobs": 21}), 400, "top_logprobs"),
        (json!({"include": ["file_search_call.results"]}), 400, "include[0]"),
        (json!({"truncation": "some"}), 400, "truncation"),
        (json!({"text": {"format": {"type": "xml"}}}), 400, "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "a"}}}), 400, "text.format.schema"),
        (json!({"text": {"verbosity": "low"}}), 400, "text.verbosity"),
        (json!({"reasoning": {"summary": "detailed"}}), 400, "reasoning.summary"),
        (json!({"background": true, "stream": true}), 400, "background"),
        (json!({"background": true, "store": false}), 400, "background"),
        (json!({"conversation": "c"}), 400, "conversation"),
        (json!({"prompt": {"id": "p"}}), 400, "prompt"),
        (json!({"max_tokens": 5}), 400, "max_tokens"),
        (json!({"messages": []}), 400, "messages"),
        (json!({"stream_options": {"include_obfuscation": true}}), 400, "stream_options.include_obfuscation"),
        (json!({"tool_choice": "required"}), 400, "tool_choice"),
        (json!({"tool_choice": {"type": "function", "name": "f"}}), 400, "tool_choice.name"),
        (tool(json!({"type": "web_search"})), 400, "tools[0].type"),
        (tool(json!({"type": "mcp", "server_label": "a"})), 400, "tools[0].type"),
        (tool(json!({"type": "function"})), 400, "tools[0].name"),
        (tool(json!({"type": "custom", "name": "f", "format": {"type": "x"}})), 400, "tools[0].format.type"),
        (
            tool(json!({"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]})),
            400,
            "tools[0].tools[0].type",
        ),
    ] {
        assert_eq!(
            server.post(PATH, &with(fields.clone())).await.error(),
            (status, param.into()),
            "{fields}"
        );
    }
    let harmless = json!({
        "prompt_cache_key": "k", "client_metadata": {"a": 1}, "service_tier": "auto", "truncation": "auto",
        "reasoning": {"effort": "low", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "text": {"format": {"type": "text"}, "verbosity": "medium"}, "stream_options": null,
        "tools": [{"type": "web_search", "external_web_access": false}], "never_heard_of": 1,
    });
    create(&server, harmless).await;
    assert_eq!(server.get(&format!("{PATH}/x?stream=maybe")).await.status, 400);
    assert_eq!(server.get(&format!("{PATH}/x?stream=true")).await.error(), (400, "stream".into()));
    server.wait_until_idle().await;
}

#[tokio::test]
async fn a_failure_is_an_event() {
    let settings = || Settings {
        failures: SimFailures { row: 10_000, ..SimFailures::default() },
        ..Settings::default()
    };
    let answer = start(settings()).await.post(PATH, &with(json!({"stream": true}))).await;
    let events = parse(&answer.text);
    let types: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["response.created", "response.in_progress", "response.failed"]);
    let response = &events[2]["response"];
    assert_eq!((&response["status"], &response["error"]["code"]), (&json!("failed"), &json!("server_error")));
    assert_eq!(start(settings()).await.post(PATH, &with(json!({}))).await.status, 500);
}
