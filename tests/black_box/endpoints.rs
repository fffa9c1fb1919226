//! The small endpoints: models, tokens, versions, health, load and metrics.

use hyper::Method;
use serde_json::{Value, json};

use crate::http;
use crate::server::Server;

#[tokio::test]
async fn models_are_listed() {
    let server = Server::shared(&["--served-model-name", "first", "second", "--max-model-len", "512"]);
    let list = http::get(server.http, "/v1/models").await.ok();
    assert_eq!(list["object"], "list");
    let names: Vec<&str> = list["data"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|card| card["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(names, ["first", "second"]);
    for card in list["data"].as_array().expect("a list") {
        assert_eq!(card["object"], "model");
        assert_eq!(card["max_model_len"], 512);
        assert!(
            card["created"].is_i64() && card["owned_by"].is_string() && card["root"].is_string(),
            "{card}"
        );
        let one =
            http::get(server.http, &format!("/v1/models/{}", card["id"].as_str().expect("an id"))).await;
        assert_eq!(one.ok()["id"], card["id"]);
    }
    // Every name works; the first is in the answer.
    for name in ["first", "second", ""] {
        let body = json!({"model": name, "prompt": "Hello", "max_tokens": 2});
        assert_eq!(http::post(server.http, "/v1/completions", &body).await.ok()["model"], "first");
    }
    let body = json!({"model": "pebble", "prompt": "Hello", "max_tokens": 2});
    assert_eq!(http::post(server.http, "/v1/completions", &body).await.status, 404);
}

#[tokio::test]
async fn tokenize_and_detokenize_are_inverse() {
    let server = Server::shared(&[]);
    let texts = [
        "Once upon a time",
        " leading and trailing ",
        "1234567890",
        "🦊 é ü 漢字 \u{301}\u{200d}",
        "line\nline\r\n\ttab",
        "<|im_start|>user\nHi<|im_end|>\n",
        "\u{0}\u{7f}",
    ];
    for text in texts {
        let body = json!({"prompt": text, "return_token_strs": true});
        let answer = http::post(server.http, "/tokenize", &body).await.ok();
        let tokens = answer["tokens"].as_array().expect("tokens");
        assert_eq!(answer["count"], tokens.len());
        assert_eq!(answer["max_model_len"], 2048);
        assert_eq!(answer["token_strs"].as_array().map(Vec::len), Some(tokens.len()));
        let back = http::post(server.http, "/detokenize", &json!({"tokens": tokens})).await.ok();
        assert_eq!(back["prompt"], text);
    }
    // Chat: what the template makes of it is what a chat request computes.
    let messages =
        json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "70 + 89 = ?"}]);
    let tokens = http::post(server.http, "/tokenize", &json!({"messages": messages})).await.ok();
    let body = json!({"messages": messages, "max_tokens": 1, "return_token_ids": true});
    let chat = http::post(server.http, "/v1/chat/completions", &body).await.ok();
    assert_eq!(tokens["tokens"], chat["prompt_token_ids"]);
    assert_eq!(tokens["count"], chat["usage"]["prompt_tokens"]);
    // Bad input to both.
    for (path, body) in [
        ("/tokenize", json!({})),
        ("/tokenize", json!({"prompt": 5})),
        ("/tokenize", json!({"prompt": "a", "messages": messages})),
        ("/detokenize", json!({})),
        ("/detokenize", json!({"tokens": "a"})),
        ("/detokenize", json!({"tokens": [-1]})),
        ("/detokenize", json!({"tokens": [2048]})),
        ("/detokenize", json!({"tokens": [1.5]})),
    ] {
        let response = http::post(server.http, path, &body).await;
        assert_eq!(response.status, 400, "{path} {body}: {}", response.text());
        assert!(response.json()["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn small_answers() {
    let server = Server::shared(&[]);
    let version = http::get(server.http, "/version").await.ok();
    assert!(version["version"].as_str().is_some_and(|version| !version.is_empty()));
    let load = http::get(server.http, "/load").await.ok();
    assert!(load["server_load"].is_u64(), "{load}");
    assert_eq!(http::get(server.http, "/health").await.body.len(), 0);
    assert_eq!(http::send(server.http, Method::POST, "/ping", &[], "").await.status, 200);
    assert_eq!(http::send(server.http, Method::HEAD, "/health", &[], "").await.status, 200);
}

#[tokio::test]
async fn request_ids_come_back() {
    let server = Server::shared(&["--enable-request-id-headers"]);
    let headers = [("content-type", "application/json"), ("x-request-id", "mine-1")];
    let body = json!({"prompt": "Hello", "max_tokens": 2}).to_string();
    let answer = http::send(server.http, Method::POST, "/v1/completions", &headers, body).await;
    assert_eq!(answer.header("x-request-id"), "mine-1");
    assert_eq!(answer.ok()["id"], "cmpl-mine-1");
    let body =
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "request_id": "mine-2"});
    let answer = http::post(server.http, "/v1/chat/completions", &body).await;
    assert_ne!(answer.header("x-request-id"), "");
    assert_eq!(answer.ok()["id"], "chatcmpl-mine-2");
}

/// After a load that is known to the token, the counters are exact.
#[tokio::test]
async fn metrics_count_exactly() {
    let server = Server::start(&[]);
    let prompt: Vec<u32> = (300..340).collect();
    let total = 5;
    for _ in 0..total {
        let body = json!({"prompt": prompt, "max_tokens": 7, "ignore_eos": true, "n": 1});
        http::post(server.http, "/v1/completions", &body).await.ok();
    }
    let eos = json!({"prompt": prompt, "logit_bias": {"2": 100}, "max_tokens": 7});
    http::post(server.http, "/v1/completions", &eos).await.ok();
    let bad = json!({"prompt": prompt, "max_tokens": 0});
    assert_eq!(http::post(server.http, "/v1/completions", &bad).await.status, 400);
    server.until_idle().await;
    let metrics = server.metrics().await;

    assert_eq!(metrics.value("vllm:prompt_tokens_total"), 6.0 * 40.0);
    assert_eq!(metrics.value("vllm:generation_tokens_total"), 5.0 * 7.0 + 1.0);
    let by_reason =
        |reason| metrics.value_where("vllm:request_success_total", &[("finished_reason", reason)]);
    assert_eq!(by_reason("length"), 5.0);
    assert_eq!(by_reason("stop"), 1.0);
    // Two of three blocks are full and not the last: each request after the first finds them.
    assert_eq!(metrics.value("vllm:prefix_cache_queries_total"), 6.0 * 40.0);
    assert_eq!(metrics.value("vllm:prefix_cache_hits_total"), 5.0 * 32.0);
    assert_eq!(metrics.value("vllm:num_preemptions_total"), 0.0);
    for histogram in [
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_params_max_tokens",
        "request_params_n",
    ] {
        assert_eq!(metrics.value(&format!("vllm:{histogram}_count")), 6.0, "{histogram}");
    }
    // Gaps between tokens: one less than tokens.
    assert_eq!(metrics.value("vllm:inter_token_latency_seconds_count"), 5.0 * 6.0);
    assert_eq!(metrics.value("vllm:request_generation_tokens_sum"), 36.0);
    assert_eq!(metrics.value("vllm:request_prompt_tokens_sum"), 240.0);
    assert_eq!(metrics.value("vllm:iteration_tokens_total_count"), 36.0, "a step for each token");
    assert_eq!(metrics.value("vllm:iteration_tokens_total_sum"), 240.0 - 160.0 + 36.0);
}

/// Dashboards and autoscalers find what they look for, by name, type and label.
#[tokio::test]
async fn metrics_have_vllms_names_and_labels() {
    let server = Server::shared(&[]);
    let response = http::get(server.http, "/metrics").await;
    assert!(response.header("content-type").starts_with("text/plain"), "{:?}", response.headers);
    let metrics = server.metrics().await;
    for (kind, names) in [
        ("gauge", "num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info"),
        (
            "counter",
            "prefix_cache_queries prefix_cache_hits num_preemptions prompt_tokens generation_tokens request_success",
        ),
        (
            "histogram",
            "time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds \
             e2e_request_latency_seconds request_queue_time_seconds request_inference_time_seconds \
             request_prefill_time_seconds request_decode_time_seconds request_prompt_tokens \
             request_generation_tokens request_params_max_tokens request_params_n iteration_tokens_total",
        ),
    ] {
        for name in names.split_whitespace() {
            let name = format!("vllm:{name}");
            let declared = metrics.types.get(&name).or_else(|| metrics.types.get(&format!("{name}_total")));
            assert_eq!(declared.map(String::as_str), Some(kind), "{name}");
        }
    }
    // As in vLLM, this one has the cache's settings for labels and no more.
    let named = |name: &str| name.starts_with("vllm:") && name != "vllm:cache_config_info";
    for sample in metrics.samples.iter().filter(|sample| named(&sample.name)) {
        assert_eq!(sample.labels.get("model_name").map(String::as_str), Some("pebble"), "{sample:?}");
    }
    // Histograms: buckets grow, and the last is all.
    for (name, _) in metrics.types.iter().filter(|(_, kind)| *kind == "histogram") {
        let buckets: Vec<f64> = metrics
            .samples
            .iter()
            .filter(|sample| sample.name == format!("{name}_bucket"))
            .map(|sample| sample.value)
            .collect();
        assert!(buckets.len() > 2 && buckets.is_sorted(), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&metrics.value(&format!("{name}_count"))), "{name}");
    }
    let config = |label: &str| {
        let sample = metrics.samples.iter().find(|sample| sample.name == "vllm:cache_config_info");
        sample.and_then(|sample| sample.labels.get(label)).cloned()
    };
    assert_eq!(config("block_size").as_deref(), Some("16"));
    assert!(config("num_gpu_blocks").is_some_and(|blocks| blocks.parse::<u64>().is_ok_and(|n| n > 0)));
}

/// CORS is off unless it is asked for.
#[tokio::test]
async fn browsers_are_let_in_only_when_allowed() {
    let asks = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    let closed = Server::shared(&[]);
    let answer = http::send(closed.http, Method::OPTIONS, "/v1/completions", &asks, "").await;
    assert_eq!(answer.header("access-control-allow-origin"), "");
    let open = Server::start(&["--allowed-origins", "https://a.example"]);
    let answer = http::send(open.http, Method::OPTIONS, "/v1/completions", &asks, "").await;
    assert_eq!(answer.header("access-control-allow-origin"), "https://a.example");
    let other = [("origin", "https://b.example"), ("access-control-request-method", "POST")];
    let answer = http::send(open.http, Method::OPTIONS, "/v1/completions", &other, "").await;
    assert_ne!(answer.header("access-control-allow-origin"), "https://b.example");
    let _: Value = http::get(open.http, "/v1/models").await.ok();
}
