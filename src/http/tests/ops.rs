//! Keys, CORS, request ids, models, tokenisation, probes.

use serde_json::{Value, json};

use super::*;

#[tokio::test]
async fn models_are_listed_by_all_their_names() {
    let server = start(Settings::default()).await;
    let body = server.get("/v1/models").await.json();
    assert_eq!(body["object"], "list");
    let card = &body["data"][1];
    assert_eq!((&card["id"], &card["object"]), (&json!("org/pebble"), &json!("model")));
    assert_eq!(
        (&card["owned_by"], &card["root"], &card["parent"]),
        (&json!("vllm"), &json!("pebble"), &Value::Null)
    );
    assert_eq!((&card["max_model_len"], &card["created"]), (&json!(MAX_MODEL_LEN), &json!(1_700_000_000)));
    let permission = card["permission"][0].as_object().unwrap();
    assert_eq!(permission.len(), 12);
    assert!(permission["id"].as_str().unwrap().starts_with("modelperm-"));
    assert_eq!(server.get("/v1/models/org/pebble").await.json()["id"], "org/pebble");
    assert_eq!(server.get("/v1/models/org%2Fpebble").await.json()["id"], "org/pebble");
    assert_eq!(server.get("/v1/models/other").await.error(), (404, "model".into()));
}

#[tokio::test]
async fn probes_answer() {
    let server = start(Settings::default()).await;
    for path in ["/health", "/ready", "/ping"] {
        let answer = server.get(path).await;
        assert_eq!((answer.status.as_u16(), &*answer.text), (200, ""), "{path}");
    }
    assert_eq!(server.post_bytes("/ping", b"").await.status, 200);
    assert_eq!(server.get("/version").await.json(), json!({"version": env!("CARGO_PKG_VERSION")}));
    assert_eq!(server.get("/load").await.json(), json!({"server_load": 0}));
    server.get("/made/up").await;
    let metrics = server.get("/metrics").await;
    let counted =
        |labels: [&str; 2]| metrics.text.lines().any(|line| labels.iter().all(|label| line.contains(label)));
    assert!(counted([r#"handler="/health""#, r#"status="2xx""#]), "{}", metrics.text);
    assert!(counted([r#"handler="none""#, r#"status="4xx""#]) && !metrics.text.contains("made"));
    assert!(metrics.headers["content-type"].to_str().unwrap().starts_with("text/plain; version=0.0.4"));
}

#[tokio::test]
async fn health_is_about_progress() {
    let stuck = StepCost { step_us: 1_500_000.0, token_us: 0.0, sleep: true };
    let mut settings = Settings { cost: Some(stuck), ..Settings::default() };
    settings.server.stall_timeout = Duration::from_millis(300);
    let server = start(settings).await;
    let body = json!({"prompt": "a", "max_tokens": 2});
    let (answer, ()) = tokio::join!(server.post("/v1/completions", &body), async {
        tokio::time::sleep(Duration::from_millis(800)).await;
        assert_eq!(server.get("/health").await.error().0, 503);
    });
    assert_eq!(answer.status, 200);
    server.wait_until_idle().await;
    assert_eq!(server.get("/health").await.status, 200);
}

#[tokio::test]
async fn keys_guard_all_but_the_probes() {
    let mut settings = Settings::default();
    settings.server.api_keys = vec!["one".into(), "two".into()];
    let server = start(settings).await;
    let get = |path: &'static str, key: Option<&'static str>| {
        let headers: Vec<_> = key.map(|key| ("authorization", key)).into_iter().collect();
        server.send(server.request(Method::GET, path, &headers, b""))
    };
    for path in
        ["/v1/models", "/v1/models/pebble", "/load", "/nothing", "//v1/models", "/v1/models/", "/%761/models"]
    {
        for key in [None, Some("Bearer wrong"), Some("one"), Some("Bearer")] {
            let answer = get(path, key).await;
            assert_eq!(
                (answer.status.as_u16(), &*answer.text),
                (401, r#"{"error":"Unauthorized"}"#),
                "{path}"
            );
        }
    }
    for path in ["/health", "/ready", "/ping", "/version", "/metrics"] {
        assert_eq!(get(path, None).await.status, 200, "{path}");
    }
    assert_eq!(get("/v1/models", Some("Bearer two")).await.status, 200);
    let options = server.send(server.request(Method::OPTIONS, "/v1/models", &[], b"")).await;
    assert_eq!(options.status, 405);
    // The Host header has no say in it.
    let request = server.request(Method::GET, "/v1/models", &[("host", "x/health")], b"");
    let client = Client::builder(TokioExecutor::new()).set_host(false).build_http::<Full<Bytes>>();
    assert_ne!(client.request(request).await.unwrap().status(), 200);
}

#[tokio::test]
async fn origins_are_allowed_if_listed() {
    let mut settings = Settings::default();
    settings.server.cors = CorsConfig {
        origins: vec!["http://app.example".into()],
        methods: vec!["*".into()],
        headers: vec!["*".into()],
        credentials: false,
    };
    settings.server.api_keys = vec!["key".into()];
    let server = start(settings).await;
    for (origin, allowed) in [("http://app.example", true), ("http://evil.example", false)] {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "x"),
        ];
        let answer = server.send(server.request(Method::OPTIONS, "/v1/completions", &headers, b"")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.headers.contains_key("access-control-allow-origin"), allowed);
    }
}

#[tokio::test]
async fn request_ids_are_used_and_echoed_if_enabled() {
    let mut settings = Settings::default();
    settings.server.enable_request_id_headers = true;
    let server = start(settings).await;
    let headers = [("content-type", "application/json"), ("x-request-id", "mine")];
    let body = br#"{"prompt":"a","request_id":"other"}"#;
    let answer = server.send(server.request(Method::POST, "/v1/completions", &headers, body)).await;
    assert_eq!(answer.headers["x-request-id"], "mine");
    assert_eq!(answer.json()["id"], "cmpl-mine");
    let answer = server.post("/v1/completions", &json!({"prompt": "a"})).await;
    let id = answer.headers["x-request-id"].to_str().unwrap();
    assert_eq!(answer.json()["id"], format!("cmpl-{id}"));
    let plain = start(Settings::default()).await;
    assert!(!plain.get("/health").await.headers.contains_key("x-request-id"));
}

#[tokio::test]
async fn texts_go_to_tokens_and_back() {
    let server = start(Settings::default()).await;
    let body =
        server.post("/tokenize", &json!({"prompt": "The cat", "return_token_strs": true})).await.json();
    let ids = tokenizer().encode("The cat", true).unwrap();
    assert_eq!(body["tokens"], json!(ids));
    assert_eq!((&body["count"], &body["max_model_len"]), (&json!(ids.len()), &json!(MAX_MODEL_LEN)));
    assert_eq!(body["token_strs"].as_array().unwrap().len(), ids.len());
    assert!(server.post("/tokenize", &json!({"prompt": "x"})).await.json()["token_strs"].is_null());
    let back = server.post("/detokenize", &json!({"model": "pebble", "tokens": ids})).await.json();
    assert_eq!(back, json!({"prompt": "The cat"}));
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    let chat = server.post("/tokenize", &chat).await.json();
    let text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(chat["tokens"], json!(tokenizer().encode(text, false).unwrap()));
    let back = server.post("/detokenize", &json!({"tokens": chat["tokens"]})).await.json();
    assert_eq!(back["prompt"], text);
    assert_eq!(server.post("/detokenize", &json!({"tokens": []})).await.json(), json!({"prompt": ""}));
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": [1, 2]}), "prompt"),
        ("/tokenize", json!({"prompt": "the cat sat on the mat. ".repeat(5000)}), "input_tokens"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens[0]"),
        ("/detokenize", json!({"tokens": [VOCAB_SIZE]}), "tokens"),
    ] {
        assert_eq!(server.post(path, &body).await.error(), (400, param.into()), "{body}");
    }
    assert_eq!(server.post("/tokenize", &json!({"model": "x", "prompt": "a"})).await.error().0, 404);
}

#[tokio::test]
async fn a_panic_fails_its_own_request() {
    use axum::middleware::from_fn;
    let router: axum::Router = axum::Router::new()
        .route(
            "/",
            axum::routing::get(async || {
                if true {
                    panic!("on purpose")
                }
            }),
        )
        .layer(from_fn(crate::http::catch_panic));
    let request = Request::get("/").body(axum::body::Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(router, request).await.unwrap();
    assert_eq!(response.status(), 500);
}

#[tokio::test]
async fn every_route_is_also_under_the_root_path() {
    let mut settings = Settings::default();
    settings.server.root_path = "/llm".into();
    settings.server.api_keys = vec!["k".into()];
    let server = start(settings).await;
    for prefix in ["", "/llm"] {
        let path = format!("{prefix}/v1/models");
        assert_eq!(server.get(&path).await.status, 401, "{path}");
        let request = server.request(Method::GET, &path, &[("authorization", "Bearer k")], b"");
        assert_eq!(server.send(request).await.status, 200, "{path}");
        assert_eq!(server.get(&format!("{prefix}/health")).await.status, 200);
        let slashed = server.request(Method::GET, &format!("{path}/"), &[("authorization", "Bearer k")], b"");
        let answer = server.send(slashed).await;
        assert_eq!((answer.status.as_u16(), answer.headers["location"].to_str().unwrap()), (307, &*path));
    }
    let nothing = server.request(Method::GET, "/llmx/health", &[("authorization", "Bearer k")], b"");
    assert_eq!(server.send(nothing).await.status, 404);
}

#[tokio::test]
async fn browsers_with_credentials_hear_their_own_origin() {
    let mut settings = Settings::default();
    let all = || vec!["*".to_owned()];
    settings.server.cors =
        CorsConfig { origins: all(), methods: vec!["POST".into()], headers: all(), credentials: true };
    let server = start(settings).await;
    let asked = [
        ("origin", "http://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "x-a"),
    ];
    let answer = server.send(server.request(Method::OPTIONS, "/v1/models", &asked, b"")).await;
    for (name, value) in [
        ("access-control-allow-origin", "http://app.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "x-a"),
    ] {
        assert_eq!(answer.headers[name], value, "{name}");
    }
}

#[tokio::test]
async fn the_tokenizer_is_shown_if_that_is_wanted() {
    let server = start(Settings::default()).await;
    assert_eq!(server.get("/tokenizer_info").await.error(), (404, "null".into()));
    let mut settings = Settings::default();
    settings.server.enable_tokenizer_info_endpoint = true;
    let info = start(settings).await.get("/tokenizer_info").await.json();
    assert_eq!(info["tokenizer_class"], "PreTrainedTokenizerFast");
    assert_eq!(info["chat_template"], tokenizer().chat_template_source().unwrap());
    assert!(info["eos_token"].is_string(), "{info}");
    let tokens = info["added_tokens_decoder"].as_object().unwrap();
    assert!(!tokens.is_empty() && tokens.values().all(Value::is_string), "{info}");
}
