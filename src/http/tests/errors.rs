//! Bad input: each a clear answer that names the field, and no harm to others.

use serde_json::{Value, json};

use super::*;

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn merge(mut body: Value, fields: &Value) -> Value {
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn wrong_values_are_named() {
    let server = start(Settings::default()).await;
    let long: Vec<u32> = vec![5; MAX_MODEL_LEN as usize];
    for (fields, status, param) in [
        (json!({"model": "gpt-4"}), 404, "model"),
        (json!({"model": 4}), 400, "model"),
        (json!({"prompt": null}), 400, "prompt"),
        (json!({"prompt": ""}), 400, "prompt"),
        (json!({"prompt": []}), 400, "prompt"),
        (json!({"prompt": [[]]}), 400, "prompt"),
        (json!({"prompt": {"text": "a"}}), 400, "prompt"),
        (json!({"prompt": ["a", 5]}), 400, "prompt[1]"),
        (json!({"prompt": [5, -1]}), 400, "prompt[1]"),
        (json!({"prompt": [VOCAB_SIZE]}), 400, "prompt"),
        (json!({"prompt": long}), 400, "input_tokens"),
        (json!({"prompt": "the cat sat on the mat. ".repeat(1000)}), 400, "input_tokens"),
        (json!({"prompt": [5], "max_tokens": MAX_MODEL_LEN}), 400, "max_tokens"),
        (json!({"max_tokens": 0}), 400, "max_tokens"),
        (json!({"max_tokens": -1}), 400, "max_tokens"),
        (json!({"max_tokens": "16"}), 400, "max_tokens"),
        (json!({"max_tokens": 1.5}), 400, "max_tokens"),
        (json!({"min_tokens": 17}), 400, "min_tokens"),
        (json!({"n": 0}), 400, "n"),
        (json!({"n": 10000}), 400, "n"),
        (json!({"n": 2, "temperature": 0}), 400, "n"),
        (json!({"best_of": 3}), 400, "best_of"),
        (json!({"temperature": 2.1}), 400, "temperature"),
        (json!({"temperature": -1}), 400, "temperature"),
        (json!({"temperature": "hot"}), 400, "temperature"),
        (json!({"top_p": 0}), 400, "top_p"),
        (json!({"top_p": 1.1}), 400, "top_p"),
        (json!({"top_k": -2}), 400, "top_k"),
        (json!({"min_p": 2}), 400, "min_p"),
        (json!({"presence_penalty": 3}), 400, "presence_penalty"),
        (json!({"frequency_penalty": -3}), 400, "frequency_penalty"),
        (json!({"repetition_penalty": 0}), 400, "repetition_penalty"),
        (json!({"repetition_penalty": 5e-324}), 400, "repetition_penalty"),
        (json!({"seed": 1e30}), 400, "seed"),
        (json!({"stop": vec!["x"; 1000]}), 400, "stop"),
        (json!({"stop": ""}), 400, "stop"),
        (json!({"stop": ["a".repeat(5000)]}), 400, "stop"),
        (json!({"stop": 5}), 400, "stop"),
        (json!({"stop_token_ids": [VOCAB_SIZE]}), 400, "stop_token_ids"),
        (json!({"logit_bias": {"999999": 1}}), 400, "logit_bias"),
        (json!({"logit_bias": {"cat": 1}}), 400, "logit_bias"),
        (json!({"allowed_token_ids": []}), 400, "allowed_token_ids"),
        (json!({"bad_words": [""]}), 400, "bad_words"),
        (json!({"bad_words": vec!["w"; 500]}), 400, "bad_words"),
        (json!({"logprobs": 21}), 400, "logprobs"),
        (json!({"logprobs": -2}), 400, "logprobs"),
        (json!({"prompt_logprobs": 21}), 400, "prompt_logprobs"),
        (json!({"cache_salt": "a/b"}), 400, "cache_salt"),
        (json!({"cache_salt": ""}), 400, "cache_salt"),
        (json!({"truncate_prompt_tokens": -2}), 400, "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": 100000}), 400, "truncate_prompt_tokens"),
        (json!({"stream_options": {"include_usage": true}}), 400, "stream_options"),
        (json!({"stream": true, "stream_options": 1}), 400, "stream_options"),
        (json!({"response_format": {"type": "yaml"}}), 400, "response_format.type"),
        (json!({"response_format": "json_object"}), 400, "response_format"),
        (json!({"response_format": {"type": "json_schema"}}), 400, "response_format.json_schema"),
        (json!({"structured_outputs": {}}), 400, "structured_outputs"),
        (json!({"structured_outputs": {"regex": "a", "choice": ["a"]}}), 400, "structured_outputs"),
        (json!({"structured_outputs": {"choice": []}}), 400, "structured_outputs"),
        (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), 400, "guided_regex"),
        (json!({"guided_regex": "("}), 400, "guided_regex"),
        (json!({"guided_whitespace_pattern": " "}), 400, "guided_whitespace_pattern"),
        (json!({"guided_decoding_backend": "magic"}), 400, "guided_decoding_backend"),
        (json!({"prompt_embeds": "abc"}), 400, "prompt_embeds"),
        (json!({"suffix": "end"}), 400, "suffix"),
        (json!({"use_beam_search": true}), 400, "use_beam_search"),
        (json!({"kv_transfer_params": {"a": 1}}), 400, "kv_transfer_params"),
        (json!({"messages": []}), 400, "messages"),
    ] {
        let body = merge(json!({"prompt": "The cat"}), &fields);
        let answer = server.post(COMPLETIONS, &body).await;
        let named = if fields.get("messages").is_some() { "messages" } else { param };
        assert_eq!(answer.error(), (status, named.into()), "{fields}: {}", answer.text);
    }
    server.wait_until_idle().await;
    assert_eq!(server.post(COMPLETIONS, &json!({"prompt": "The cat"})).await.status, 200);
}

#[tokio::test]
async fn wrong_chats_are_named() {
    let server = start(Settings::default()).await;
    let image =
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a/"}}]}]);
    for (fields, param) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": ["hi"]}), "messages[0]"),
        (json!({"messages": [{"content": "hi"}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user", "content": null}]}), "messages[0].content"),
        (json!({"messages": image}), "messages[0].content[0].type"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {}}}),
            "response_format.json_schema.schema",
        ),
        (json!({"chat_template": "{{ messages }}"}), "chat_template"),
        (json!({"audio": {"voice": "a"}}), "audio"),
        (json!({"modalities": ["audio"]}), "modalities"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"prompt": "hi"}), "prompt"),
        (json!({"documents": "x"}), "documents"),
        (json!({"chat_template_kwargs": []}), "chat_template_kwargs"),
    ] {
        let body = merge(json!({"messages": [{"role": "user", "content": "hi"}]}), &fields);
        let answer = server.post(CHAT, &body).await;
        assert_eq!(answer.error(), (400, param.into()), "{fields}: {}", answer.text);
    }
    let reserved =
        json!({"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"messages": []}});
    assert_eq!(server.post(CHAT, &reserved).await.error().0, 400);
}

#[tokio::test]
async fn broken_bodies_are_refused() {
    let server = start(Settings::default()).await;
    let deep = format!("{{\"prompt\":\"a\",\"x\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
    for body in [
        &b""[..],
        b"{",
        b"nonsense",
        b"[1]",
        b"{\"prompt\":\"\xff\"}",
        b"{\"prompt\":\"\\ud800\"}",
        deep.as_bytes(),
    ] {
        let answer = server.post_bytes(COMPLETIONS, body).await;
        assert_eq!(answer.error(), (400, "null".into()));
    }
    for content_type in ["application/x-www-form-urlencoded", "text/plain", ""] {
        let headers: &[_] = if content_type.is_empty() { &[] } else { &[("content-type", content_type)] };
        let request = server.request(Method::POST, COMPLETIONS, headers, b"{\"prompt\":\"a\"}");
        let answer = server.send(request).await;
        assert_eq!(answer.status, 400);
        assert!(answer.text.contains("Content-Type"), "{}", answer.text);
    }
}

#[tokio::test]
async fn big_bodies_are_refused_but_read() {
    let server = start(Settings::default()).await;
    // The client writes all of it before it looks at the answer.
    let answer = server.post_bytes(COMPLETIONS, &vec![b' '; 100 << 20]).await;
    assert_eq!(answer.error(), (413, "null".into()));
    let (body, chunks) = (Bytes::from(vec![b' '; 1 << 16]), 64);
    let stream = futures_util::stream::iter((0..chunks).map(move |_| Ok::<_, Infallible>(body.clone())));
    let request = Request::post(format!("http://{}{COMPLETIONS}", server.address))
        .header("content-type", "application/json")
        .body(axum::body::Body::from_stream(stream))
        .unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    assert_eq!(client.request(request).await.unwrap().status(), 413);
}

#[tokio::test]
async fn paths_and_methods() {
    let server = start(Settings::default()).await;
    assert_eq!(server.get("/v1/nothing").await.error().0, 404);
    assert_eq!(server.get("//evil.example/").await.error().0, 404);
    let answer = server.get(COMPLETIONS).await;
    assert_eq!(answer.error().0, 405);
    assert_eq!(answer.headers["allow"], "POST");
    let answer = server.get("/v1/models/?a=b").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["location"]),
        (307, &"/v1/models?a=b".parse().unwrap())
    );
    let head = server.send(server.request(Method::HEAD, "/health", &[], b"")).await;
    assert_eq!((head.status.as_u16(), &*head.text), (200, ""));
}

#[tokio::test]
async fn a_full_server_says_so_at_once() {
    let slow = StepCost { step_us: 50_000.0, token_us: 0.0, sleep: true };
    let server = start(Settings { max_num_queued_reqs: 2, cost: Some(slow), ..Settings::default() }).await;
    let body = json!({"prompt": "a", "n": 3, "seed": 1});
    let answer = server.post(COMPLETIONS, &body).await;
    assert_eq!(answer.error().0, 503);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["error"]["type"], "Service Unavailable");
    // Of several prompts none remains if the last does not fit.
    let body = json!({"prompt": ["a", "b", "c"], "max_tokens": 400});
    assert_eq!(server.post(COMPLETIONS, &body).await.error().0, 503);
    server.wait_until_idle().await;
    server.app.engine.start_draining();
    let answer = server.post(COMPLETIONS, &json!({"prompt": "a"})).await;
    assert_eq!((answer.error().0, &answer.headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(server.get("/ready").await.status, 503);
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn failed_requests_are_500_or_an_error_frame() {
    let failures = SimFailures { row: 10_000, ..SimFailures::default() };
    let server = start(Settings { failures, ..Settings::default() }).await;
    let answer = server.post(COMPLETIONS, &json!({"prompt": "a"})).await;
    assert_eq!(answer.error(), (500, "null".into()));
    assert_eq!(answer.json()["error"]["type"], "InternalServerError");
    let events = server.post(COMPLETIONS, &json!({"prompt": "a", "stream": true})).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], 500);
    server.wait_until_idle().await;
}

/// Before the first token, and after some: the choice has ended where `min_tokens` does not let it end.
#[tokio::test]
async fn requests_that_contradict_themselves_are_400_or_an_error_frame() {
    let server = start(Settings::default()).await;
    for fields in [
        json!({"guided_choice": ["yes"], "allowed_token_ids": [1]}),
        json!({"guided_choice": ["yes"], "min_tokens": 40, "max_tokens": 50}),
    ] {
        let mut body = fields.clone();
        body["prompt"] = "a".into();
        let answer = server.post(COMPLETIONS, &body).await;
        assert_eq!(answer.error(), (400, "null".into()), "{fields}: {}", answer.text);
        assert!(answer.text.contains("grammar"), "{}", answer.text);
        body["stream"] = true.into();
        let events = server.post(COMPLETIONS, &body).await.events();
        assert_eq!(events.last().unwrap()["error"]["code"], 400, "{fields}: {events:?}");
        assert_eq!(events.last().unwrap()["error"]["type"], "BadRequestError");
    }
    server.wait_until_idle().await;
}

#[tokio::test]
async fn what_vllm_has_and_quire_has_not_is_501() {
    let server = start(Settings::default()).await;
    for path in ["/v1/audio/transcriptions", "/v1/decisions", "/cohere/v2/chat", "/v1/systemone"] {
        let answer = server.post(path, &json!({})).await;
        assert_eq!(answer.error(), (501, "null".into()), "{path}");
        assert_eq!(answer.json()["error"]["type"], "NotImplementedError");
        assert!(answer.text.contains(path), "{}", answer.text);
    }
    assert_eq!(server.get("/kv_event_sources").await.json(), json!({}));
}
