//! Routes for operators: closed unless opened, and what they do.

use serde_json::json;

use super::*;

const ROUTES: [(&str, Method); 9] = [
    ("/pause", Method::POST),
    ("/resume", Method::POST),
    ("/is_paused", Method::GET),
    ("/sleep?level=0", Method::POST),
    ("/wake_up", Method::POST),
    ("/is_sleeping", Method::GET),
    ("/reset_prefix_cache", Method::POST),
    ("/abort_requests", Method::POST),
    ("/server_info", Method::GET),
];

async fn open() -> Server {
    let mut settings = Settings::default();
    settings.server.enable_admin = true;
    start(settings).await
}

async fn call(server: &Server, method: Method, path: &str) -> Answer {
    let headers = [("content-type", "application/json")];
    server.send(server.request(method, path, &headers, b"{}")).await
}

#[tokio::test]
async fn the_routes_are_closed_unless_enabled() {
    let server = start(Settings::default()).await;
    for (path, method) in &ROUTES {
        let answer = call(&server, method.clone(), path).await;
        assert_eq!(answer.error(), (403, "null".into()), "{path}");
        assert!(answer.text.contains("--enable-admin"), "{}", answer.text);
    }
    assert!(!server.app.engine.is_paused());
    let server = open().await;
    for (path, method) in &ROUTES {
        let answer = call(&server, method.clone(), path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_paused_server_is_alive_but_not_ready_and_answers_later() {
    let server = open().await;
    for (begin, end, asked) in [
        ("/pause?mode=wait", "/resume", "/is_paused"),
        ("/pause?mode=keep&clear_cache=false", "/resume", "/is_paused"),
        ("/pause", "/resume", "/is_paused"),
        ("/sleep?level=0&mode=keep", "/wake_up", "/is_sleeping"),
    ] {
        assert_eq!(call(&server, Method::POST, begin).await.status, 200, "{begin}");
        assert_eq!(server.get(asked).await.json(), json!({&asked[1..]: true}));
        assert_eq!(server.get("/ready").await.error().0, 503);
        assert_eq!(server.get("/health").await.status, 200);
        let body = json!({"prompt": "a", "max_tokens": 3});
        let (answer, ()) = tokio::join!(server.post("/v1/completions", &body), async {
            while server.app.engine.stats().scheduler().num_waiting_deferred == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(call(&server, Method::POST, end).await.status, 200);
        });
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(server.get(asked).await.json(), json!({&asked[1..]: false}));
        assert_eq!(server.get("/ready").await.status, 200);
    }
    server.wait_until_idle().await;
}

#[tokio::test]
async fn wrong_parameters_are_named() {
    let server = open().await;
    for (path, status, param) in [
        ("/pause?mode=soon", 400, "mode"),
        ("/pause?mode=keep&clear_cache=true", 400, "clear_cache"),
        ("/pause?clear_cache=perhaps", 400, "clear_cache"),
        ("/sleep", 501, "level"),
        ("/sleep?level=1", 501, "level"),
        ("/sleep?level=2&mode=wait", 501, "level"),
        ("/sleep?level=3", 400, "level"),
        ("/reset_prefix_cache?reset_running_requests=true", 400, "reset_running_requests"),
        ("/reset_prefix_cache?reset_external=1", 400, "reset_external"),
    ] {
        let answer = call(&server, Method::POST, path).await;
        assert_eq!(answer.error(), (status, param.into()), "{path}");
    }
    let wrong = server.post("/abort_requests", &json!({"request_ids": "one"})).await;
    assert_eq!(wrong.error(), (400, "request_ids".into()));
    assert!(!server.app.engine.is_paused());
}

#[tokio::test]
async fn requests_are_aborted_by_name_or_all_at_once() {
    let mut settings = Settings {
        cost: Some(StepCost { step_us: 2000.0, token_us: 0.0, sleep: true }),
        ..Settings::default()
    };
    settings.server.enable_admin = true;
    let server = start(settings).await;
    for (abort, expected) in [(json!({"request_ids": ["cmpl-one", "cmpl-none"]}), 1), (json!({}), 1)] {
        let body = json!({"prompt": "a", "max_tokens": 400, "request_id": "one"});
        let (answer, ()) = tokio::join!(server.post("/v1/completions", &body), async {
            while server.app.engine.stats().scheduler().num_running == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let answer = server.post("/abort_requests", &abort).await.json();
            assert_eq!(answer, json!({"num_aborted": expected}));
        });
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "abort");
        server.wait_until_idle().await;
    }
}

#[tokio::test]
async fn the_prefix_cache_is_forgotten() {
    let server = open().await;
    let prompt: Vec<u32> = (300..400).collect();
    let body = json!({"prompt": prompt, "max_tokens": 1});
    let cached = async || {
        let answer = server.post("/v1/completions", &body).await.json();
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached().await, 0);
    assert!(cached().await > 0);
    server.wait_until_idle().await;
    let reset = call(&server, Method::POST, "/reset_prefix_cache").await.json();
    assert_eq!(reset, json!({"success": true}));
    assert_eq!(cached().await, 0);
    let info = server.get("/server_info").await.json();
    assert_eq!((&info["model"], &info["is_paused"]), (&json!("pebble"), &json!(false)));
}
