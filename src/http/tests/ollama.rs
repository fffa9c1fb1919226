//! Ollama's routes: lines, whole answers, names, refusals.

use serde_json::{Value, json};

use super::*;

fn chat(fields: Value) -> Value {
    let mut body = json!({
        "model": "pebble", "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 6, "seed": 1},
    });
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn generate(fields: Value) -> Value {
    let mut body = json!({"model": "pebble", "prompt": "hi", "options": {"num_predict": 6, "seed": 1}});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// The lines of a stream; the last one must say that it is the last, and no other.
#[track_caller]
fn lines(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    assert!(answer.text.ends_with('\n'));
    let lines: Vec<Value> = answer.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let done: Vec<_> = lines.iter().map(|line| line["done"] == true).collect();
    assert_eq!(done.iter().position(|done| *done), Some(lines.len() - 1), "{}", answer.text);
    lines
}

fn error(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    assert_eq!(body.as_object().unwrap().len(), 1, "{}", answer.text);
    (answer.status.as_u16(), body["error"].as_str().expect("a string").to_owned())
}

#[tokio::test]
async fn streams_are_lines_and_add_up_to_the_whole_answer() {
    // Slow enough that tokens do not grow together before they are read.
    let cost = StepCost { step_us: 5000.0, token_us: 0.0, sleep: true };
    let server = start(Settings { cost: Some(cost), ..Settings::default() }).await;
    for (path, body, text) in [
        ("/api/chat", chat(json!({})), "/message/content"),
        ("/api/generate", generate(json!({"system": "Be brief."})), "/response"),
        ("/api/generate", generate(json!({"raw": true})), "/response"),
    ] {
        let mut whole = body.clone();
        whole["stream"] = false.into();
        let whole = server.post(path, &whole).await.json();
        // Streaming is the default.
        let lines = lines(&server.post(path, &body).await);
        // What has come by the time the socket is written to is one line, and the end is one of its own.
        assert!(lines.len() >= 2);
        let pieces = lines.iter().map(|line| line.pointer(text).unwrap().as_str().unwrap());
        assert_eq!(pieces.collect::<String>(), whole.pointer(text).unwrap().as_str().unwrap());
        let end = lines.last().unwrap();
        for last in [&whole, end] {
            assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("length")), "{last}");
            assert_eq!((&last["eval_count"], &last["model"]), (&json!(6), &json!("pebble")));
            assert_eq!(last["load_duration"], 0);
            let ns = |name: &str| last[name].as_u64().unwrap();
            assert_eq!(ns("total_duration"), ns("prompt_eval_duration") + ns("eval_duration"));
            assert!(ns("prompt_eval_duration") > 0);
            let created = last["created_at"].as_str().unwrap();
            assert!(created.ends_with('Z') && created.as_bytes()[10] == b'T', "{created}");
        }
        assert_eq!(end["prompt_eval_count"], whole["prompt_eval_count"]);
        assert!(lines[0].get("done_reason").is_none() && lines[0].get("eval_count").is_none());
    }
    server.wait_until_idle().await;
}

#[tokio::test]
async fn chat_and_generate_see_what_openais_routes_see() {
    let server = start(Settings::default()).await;
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]);
    let openai =
        json!({"messages": messages, "max_tokens": 6, "seed": 1, "logprobs": true, "top_logprobs": 2});
    let openai = server.post("/v1/chat/completions", &openai).await.json();
    let logprobs = json!({"stream": false, "logprobs": true, "top_logprobs": 2});
    let mut body = chat(logprobs.clone());
    body["messages"] = messages;
    let chat = server.post("/api/chat", &body).await.json();
    assert_eq!(chat["message"]["role"], "assistant");
    assert_eq!(chat["message"]["content"], openai["choices"][0]["message"]["content"]);
    assert_eq!(chat["prompt_eval_count"], openai["usage"]["prompt_tokens"]);
    assert_eq!(chat["logprobs"], openai["choices"][0]["logprobs"]["content"]);
    let mut body = generate(logprobs);
    body["system"] = "Be brief.".into();
    let generated = server.post("/api/generate", &body).await.json();
    assert_eq!(generated["response"], chat["message"]["content"]);
    let raw = server.post("/api/generate", &generate(json!({"raw": true, "stream": false}))).await.json();
    let openai = json!({"prompt": "hi", "max_tokens": 6, "seed": 1});
    let openai = server.post("/v1/completions", &openai).await.json();
    assert_eq!(raw["response"], openai["choices"][0]["text"]);
}

#[tokio::test]
async fn nothing_to_answer_means_load() {
    let server = start(Settings::default()).await;
    for (path, body) in [
        ("/api/generate", json!({"model": "pebble"})),
        ("/api/generate", json!({"model": "pebble:latest", "prompt": "", "keep_alive": "5m"})),
        ("/api/chat", json!({"model": "pebble", "messages": [], "keep_alive": 0})),
    ] {
        let answer = server.post(path, &body).await.json();
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("load")), "{answer}");
        assert_eq!(answer["eval_count"], 0);
    }
}

#[tokio::test]
async fn models_are_described() {
    let server = start(Settings::default()).await;
    assert!(server.get("/api/version").await.json()["version"].is_string());
    let tags = server.get("/api/tags").await.json();
    let names: Vec<_> = tags["models"].as_array().unwrap().iter().map(|tag| tag["name"].clone()).collect();
    assert_eq!(names, ["pebble:latest", "org/pebble:latest"]);
    let tag = &tags["models"][0];
    assert_eq!(tag["digest"].as_str().unwrap().len(), 64);
    assert_eq!(tag["modified_at"], "2023-11-14T22:13:20.000000Z");
    assert_eq!(
        (&tag["details"]["family"], &tag["details"]["parameter_size"]),
        (&json!("llama"), &json!("1.2M"))
    );
    let running = server.get("/api/ps").await.json();
    assert_eq!(running["models"][0]["context_length"], MAX_MODEL_LEN);
    for field in ["model", "name"] {
        let shown = server.post("/api/show", &json!({field: "org/pebble:latest"})).await.json();
        assert_eq!(shown["model_info"]["llama.context_length"], MAX_MODEL_LEN);
        assert_eq!(shown["capabilities"][0], "completion");
    }
}

#[tokio::test]
async fn errors_have_ollamas_shape() {
    let server = start(Settings::default()).await;
    for path in ["/api/chat", "/api/generate", "/api/show"] {
        let (status, message) = error(&server.post(path, &json!({"model": "gpt"})).await);
        assert_eq!((status, &*message), (404, "model 'gpt' not found"), "{path}");
        let (status, message) = error(&server.post(path, &json!({})).await);
        assert_eq!((status, &*message), (400, "model is required"), "{path}");
        assert_eq!(error(&server.post_bytes(path, b"{").await).0, 400);
    }
    for (body, field) in [
        (chat(json!({"format": "xml"})), "format"),
        (chat(json!({"think": "hard"})), "think"),
        (chat(json!({"think": true})), "does not support thinking"),
        (
            chat(json!({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]})),
            "messages[0].images",
        ),
        (chat(json!({"messages": [{"content": "x"}]})), "messages[0].role"),
        (chat(json!({"options": {"mirostat": 2}})), "options.mirostat"),
        (chat(json!({"options": {"temperature": 9}})), "temperature"),
        (chat(json!({"keep_alive": []})), "keep_alive"),
        (chat(json!({"stream": "yes"})), "stream"),
    ] {
        let (status, message) = error(&server.post("/api/chat", &body).await);
        assert!(status == 400 && message.contains(field), "{field}: {message}");
    }
    for (field, value) in [
        ("suffix", json!("x")),
        ("template", json!("{{ .Prompt }}")),
        ("context", json!([1, 2])),
        ("images", json!(["aGk="])),
        ("prompt", json!([1])),
    ] {
        let (status, message) = error(&server.post("/api/generate", &generate(json!({field: value}))).await);
        assert!(status == 400 && message.contains(field), "{field}: {message}");
    }
    // The server generates; see --runner.
    for (path, body) in [
        ("/api/embed", json!({"model": "pebble", "input": ["a", "b"]})),
        ("/api/embeddings", json!({"model": "pebble", "prompt": "a"})),
    ] {
        let (status, message) = error(&server.post(path, &body).await);
        assert!(status == 404 && message.contains("--runner"), "{path}: {message}");
    }
    for path in ["/api/pull", "/api/create", "/api/push", "/api/copy"] {
        assert_eq!(error(&server.post(path, &json!({})).await).0, 501, "{path}");
    }
    let request = server.request(Method::DELETE, "/api/delete", &[], b"{}");
    assert_eq!(error(&server.send(request).await).0, 501);
    let request = server.request(Method::HEAD, "/api/blobs/sha256:00", &[], b"");
    assert_eq!(server.send(request).await.status, 501);
}

#[tokio::test]
async fn json_needs_no_content_type_but_from_browsers() {
    let server = start(Settings::default()).await;
    let body = chat(json!({"stream": false})).to_string();
    let form = ("content-type", "application/x-www-form-urlencoded");
    let answer = server.send(server.request(Method::POST, "/api/chat", &[form], body.as_bytes())).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let headers = [form, ("origin", "http://evil.example")];
    let answer = server.send(server.request(Method::POST, "/api/chat", &headers, body.as_bytes())).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn a_request_that_the_server_ends_is_an_error() {
    let cost = StepCost { step_us: 2000.0, token_us: 0.0, sleep: true };
    let server = start(Settings { cost: Some(cost), ..Settings::default() }).await;
    for stream in [true, false] {
        let body = chat(json!({"stream": stream, "options": {"num_predict": 400}}));
        let (answer, ()) = tokio::join!(server.post("/api/chat", &body), async {
            while server.app.engine.num_in_flight() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            server.app.engine.abort_all();
        });
        assert_eq!(answer.status, if stream { 200 } else { 503 }, "{}", answer.text);
        let last: Value = serde_json::from_str(answer.text.lines().last().unwrap()).unwrap();
        assert!(last["error"].as_str().unwrap().contains("ended"), "{last}");
    }
    server.wait_until_idle().await;
}
