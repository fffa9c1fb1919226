//! The page, its headers, and the counters that it shows.

use serde_json::json;

use super::*;

const FILES: [&str; 3] = ["/", "/quire/page.css", "/quire/page.js"];

async fn as_browser(server: &Server, path: &str) -> Answer {
    let headers = [("accept", "text/html,application/xhtml+xml,*/*;q=0.8")];
    server.send(server.request(Method::GET, path, &headers, b"")).await
}

#[tokio::test]
async fn browsers_get_a_page_that_loads_nothing_from_elsewhere() {
    let server = start(Settings::default()).await;
    let mut bytes = 0;
    for (path, media_type) in FILES.into_iter().zip(["text/html", "text/css", "text/javascript"]) {
        let answer = as_browser(&server, path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(answer.headers["content-type"], format!("{media_type}; charset=utf-8").as_str());
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
        assert_eq!(answer.headers["x-frame-options"], "DENY");
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; "), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        // The namespace of the icon is a name, not an address that anybody fetches.
        let text = answer.text.replace("http://www.w3.org/2000/svg", "");
        assert!(!text.contains("://"), "{path}");
        assert!(
            !text.contains("innerHTML") && !text.contains("<script>") && !text.contains("style=\""),
            "{path}"
        );
        bytes += text.len();
    }
    assert!(bytes < 40 << 10, "{bytes} bytes");
}

#[tokio::test]
async fn programs_get_a_word() {
    let server = start(Settings::default()).await;
    let answer = server.get("/").await;
    assert_eq!((answer.status.as_u16(), &*answer.text), (200, "Ollama is running"));
    assert_eq!(answer.headers["vary"], "accept");
    let head = server.send(server.request(Method::HEAD, "/", &[], b"")).await;
    assert_eq!((head.status.as_u16(), &*head.text), (200, ""));
}

#[tokio::test]
async fn there_is_no_page_without_ui() {
    let mut settings = Settings::default();
    settings.server.ui = false;
    let server = start(settings).await;
    for path in FILES.into_iter().chain(["/quire/state"]) {
        assert_eq!(as_browser(&server, path).await.error().0, 404, "{path}");
    }
}

#[tokio::test]
async fn files_are_open_and_the_state_is_not() {
    let mut settings = Settings::default();
    settings.server.api_keys = vec!["key".into()];
    let server = start(settings).await;
    for path in FILES {
        assert_eq!(as_browser(&server, path).await.status, 200, "{path}");
    }
    assert_eq!(server.get("/quire/state").await.status, 401);
    let headers = [("authorization", "Bearer key")];
    assert_eq!(server.send(server.request(Method::GET, "/quire/state", &headers, b"")).await.status, 200);
}

#[tokio::test]
async fn the_state_is_the_engines() {
    let server = start(Settings::default()).await;
    let before = server.get("/quire/state").await.json();
    let zeros = ["running", "waiting", "prompt_tokens_total", "generation_tokens_total", "steps_total"];
    for name in zeros {
        assert_eq!(before[name], 0, "{name}");
    }
    assert_eq!(before["kv_blocks"], json!({"total": 1024, "used": 0, "cached": 0, "block_size": 16}));
    assert_eq!((&before["model"], &before["draining"]), (&json!("pebble"), &json!(false)));
    let prompt: Vec<u32> = (300..340).collect();
    server.post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 8, "ignore_eos": true})).await;
    server.wait_until_idle().await;
    let after = server.get("/quire/state").await.json();
    assert_eq!((&after["prompt_tokens_total"], &after["generation_tokens_total"]), (&json!(40), &json!(8)));
    // 47 tokens are computed (the last is never fed back): two full blocks stay.
    assert_eq!(after["kv_blocks"], json!({"total": 1024, "used": 0, "cached": 2, "block_size": 16}));
    assert!(after["steps_total"].as_u64().unwrap() >= 8 && after["uptime_s"].as_f64().unwrap() > 0.0);
}
