//! Pooled requests on the release binary: every door gives the same vector, and they live and end as all others do.

use std::time::Duration;

use quire_proto::vllm::grpc::engine::vllm_engine_client::VllmEngineClient;
use quire_proto::vllm::grpc::engine::{EmbedRequest, TokenizedInput};
use serde_json::{Value, json};
use tonic::Code;

use crate::server::Server;
use crate::{grpc, http};

const POOLED: &[&str] = &["--runner", "pooling", "--enable-admin"];

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number") as f32).collect()
}

async fn tokens(server: &Server, text: &str) -> Vec<u32> {
    let answer = http::post(server.http, "/tokenize", &json!({ "prompt": text })).await.ok();
    answer["tokens"].as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[tokio::test]
async fn every_door_gives_the_same_vector() {
    let server = Server::shared(POOLED);
    let text = "Once upon a time there was a fox.";
    let ids = tokens(&server, text).await;
    let answer = http::post(server.http, "/v1/embeddings", &json!({ "input": text })).await.ok();
    let expected = floats(&answer["data"][0]["embedding"]);
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    for (path, body, vector) in [
        ("/v1/embeddings", json!({ "input": ids }), "/data/0/embedding"),
        ("/pooling", json!({ "input": text }), "/data/0/data"),
        ("/v2/embed", json!({ "texts": [text] }), "/embeddings/float/0"),
        ("/invocations", json!({ "input": text }), "/data/0/embedding"),
        ("/api/embed", json!({ "model": "pebble", "input": [text] }), "/embeddings/0"),
        ("/api/embeddings", json!({ "model": "pebble", "prompt": text }), "/embedding"),
    ] {
        let answer = http::post(server.http, path, &body).await.ok();
        assert_eq!(floats(answer.pointer(vector).expect(path)), expected, "{path}");
    }
    let mut client = VllmEngineClient::new(grpc::channel(server.grpc).await);
    let request = |input_ids| EmbedRequest {
        request_id: "one".into(),
        tokenized: Some(TokenizedInput { input_ids, ..Default::default() }),
    };
    let answer = client.embed(request(ids.clone())).await.expect("a vector").into_inner();
    assert_eq!((answer.embedding, answer.prompt_tokens), (expected, ids.len() as u32));
    for wrong in [Vec::new(), vec![4_000_000], vec![300; 100_000]] {
        assert_eq!(client.embed(request(wrong)).await.expect_err("refused").code(), Code::InvalidArgument);
    }
    let described = http::get(server.http, "/openapi.json").await.ok();
    for path in
        ["/v1/embeddings", "/v2/embed", "/pooling", "/score", "/rerank", "/api/embed", "/api/embeddings"]
    {
        assert!(described["paths"][path]["post"].is_object(), "{path}");
    }
    assert!(
        described["paths"].get("/classify").is_none() && described["paths"].get("/v1/completions").is_none()
    );
}

#[tokio::test]
async fn invariant_7_what_is_too_long_or_too_much_is_refused_at_once() {
    let server = Server::start(&[POOLED, &["--max-num-queued-reqs", "8"]].concat());
    for input in [json!(vec![300; 100_000]), json!("stone ".repeat(100_000))] {
        for more in [json!({}), json!({ "model": "pebble" })] {
            let mut body = more;
            body["input"] = input.clone();
            let answer = http::post(server.http, "/v1/embeddings", &body).await;
            assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("input")));
            assert!(answer.text().contains("maximum context length is"), "{}", answer.text());
        }
    }
    let documents = json!({ "query": "x", "documents": ["stone ".repeat(100_000)] });
    let answer = http::post(server.http, "/rerank", &documents).await;
    assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("documents")));
    let many = http::post(server.http, "/v1/embeddings", &json!({ "input": vec!["a"; 9] })).await;
    assert_eq!(many.status, 503, "{}", many.text());
    assert_ne!(many.header("retry-after"), "");
    http::post(server.http, "/v1/embeddings", &json!({ "input": vec!["a"; 8] })).await.ok();
    server.until_idle().await;
}

/// A request that is held, and what is done to the server once it is there.
async fn while_held(server: &Server, act: impl Future<Output = ()>) -> http::Response {
    assert_eq!(http::post(server.http, "/pause?mode=keep", &json!({})).await.status, 200);
    let body = json!({ "input": ["one", "two", "three"], "request_id": "held" });
    let (answer, ()) = tokio::join!(http::post(server.http, "/v1/embeddings", &body), async {
        while server.metrics().await.value("vllm:num_requests_waiting") < 3.0 {}
        act.await;
    });
    answer
}

#[tokio::test]
async fn invariant_6_pooled_requests_end_once_in_a_pause_an_abort_and_a_shutdown() {
    let server = Server::start(POOLED);
    let body = json!({ "input": ["one", "two", "three"] });
    let expected = http::post(server.http, "/v1/embeddings", &body).await.ok();
    let resumed = while_held(&server, async {
        assert_eq!(http::post(server.http, "/resume", &json!({})).await.status, 200);
    });
    assert_eq!(resumed.await.ok()["data"], expected["data"]);
    let aborted = while_held(&server, async {
        let ids = json!({ "request_ids": ["embd-held"] });
        assert_eq!(http::post(server.http, "/abort_requests", &ids).await.ok()["num_aborted"], 3);
    });
    let aborted = aborted.await;
    assert_eq!(aborted.status, 503, "{}", aborted.text());
    assert!(aborted.text().contains("aborted"), "{}", aborted.text());
    assert_eq!(http::post(server.http, "/resume", &json!({})).await.status, 200);
    server.until_idle().await;
    // A shutdown ends the pause, and drains.
    let drained = while_held(&server, async { server.signal("TERM") }).await;
    assert_eq!(drained.ok()["data"], expected["data"]);
    assert!(server.wait_for_exit(Duration::from_secs(30)).await.success());
}
