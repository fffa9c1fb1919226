//! Adapters as clients see them: listed as models, named by requests, loaded and unloaded.

use serde_json::json;

use super::*;
use crate::adapters::AdapterLimits;
use crate::adapters::tests::{Copied, LIMITS, adapters, pirate};

async fn serve(runtime_updates: bool) -> Server {
    let adapters = adapters(AdapterLimits { runtime_updates, ..LIMITS });
    adapters.load("pirate", &pirate(), None, false).await.unwrap();
    let mut settings = Settings { adapters: Some(adapters), ..Settings::default() };
    settings.server.enable_scale_out = true;
    start(settings).await
}

/// The text is that of the simulated model, which depends on the adapter.
async fn text(server: &Server, model: &str) -> Value {
    let body = json!({"model": model, "prompt": "a story", "max_tokens": 8, "seed": 1});
    let json = server.post("/v1/completions", &body).await.json();
    let name = if model == "org/pebble" { "pebble" } else { model };
    assert_eq!(json["model"], name, "{json}");
    json["choices"][0]["text"].clone()
}

#[tokio::test]
async fn adapters_are_models_with_a_parent() {
    let server = serve(false).await;
    let list = server.get("/v1/models").await.json();
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|card| card["id"].clone()).collect();
    assert_eq!(ids, ["pebble", "org/pebble", "pirate"]);
    let card = server.get("/v1/models/pirate").await.json();
    assert_eq!(card["parent"], "pebble");
    assert_eq!((&card["root"], &card["max_model_len"]), (&json!(pirate()), &Value::Null));
    assert_eq!(server.get("/v1/models/other").await.error(), (404, "model".into()));
    let tags = server.get("/api/tags").await.json();
    assert_eq!(tags["models"][2]["name"], "pirate:latest");
}

/// Every API takes an adapter for a model, and answers by its name.
#[tokio::test]
async fn every_api_knows_adapters_by_name() {
    let server = serve(false).await;
    let base = text(&server, "pebble").await;
    assert_eq!(text(&server, "org/pebble").await, base);
    assert_ne!(text(&server, "pirate").await, base);
    let messages = json!([{"role": "user", "content": "hello"}]);
    for (path, mut body) in [
        ("/v1/completions", json!({"prompt": "a"})),
        ("/v1/chat/completions", json!({"messages": messages})),
        ("/v1/chat/completions/batch", json!({"messages": [messages]})),
        ("/v1/responses", json!({"input": "hello"})),
        ("/v1/messages", json!({"messages": messages, "max_tokens": 4})),
        ("/api/chat", json!({"messages": messages, "stream": false})),
        ("/api/generate", json!({"prompt": "a", "stream": false})),
        ("/generative_scoring", json!({"query": "a", "items": ["b"], "label_token_ids": [1, 2]})),
        ("/tokenize", json!({"prompt": "a"})),
    ] {
        body["model"] = json!("pirate");
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        if path != "/tokenize" {
            assert_eq!(answer.json()["model"], "pirate", "{path}: {}", answer.text);
        }
        body["model"] = json!("parrot");
        let answer = server.post(path, &body).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text);
    }
    let answer = server.post("/v1/completions", &json!({"model": "parrot", "prompt": "a"})).await;
    assert!(answer.text.contains("Valid aliases: pebble, org/pebble, pirate"), "{}", answer.text);
}

#[tokio::test]
async fn the_routes_are_closed_unless_the_operator_opens_them() {
    for server in [serve(false).await, start(Settings::default()).await] {
        for path in ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] {
            let answer = server.post(path, &json!({"lora_name": "a", "lora_path": "/a"})).await;
            assert_eq!(answer.error(), (404, "null".into()), "{path}");
            assert!(answer.text.contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING"), "{}", answer.text);
        }
        assert!(!server.get("/openapi.json").await.text.contains("load_lora_adapter"));
    }
    assert!(serve(true).await.get("/openapi.json").await.text.contains("unload_lora_adapter"));
}

#[tokio::test]
async fn loading_and_unloading_answer_as_vllm() {
    let server = serve(true).await;
    let (load, unload) = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter");
    let copy = Copied::new("http");
    let base = text(&server, "pebble").await;
    let answer = server.post(load, &json!({"lora_name": "b", "lora_path": copy.path()})).await;
    assert_eq!(
        (answer.status.as_u16(), &*answer.text),
        (200, "Success: LoRA adapter 'b' added successfully.")
    );
    let first = text(&server, "b").await;
    assert!(first != base && first == text(&server, "pirate").await, "the files are the same");
    copy.set("lora_alpha", 5.into());
    let again = json!({"lora_name": "b", "lora_path": copy.path(), "load_inplace": true});
    assert_eq!(server.post(load, &again).await.status, 200);
    assert_ne!(text(&server, "b").await, first);
    for (path, body, status, kind, told) in [
        (
            load,
            json!({"lora_name": "c"}),
            400,
            "InvalidUserInput",
            "Both 'lora_name' and 'lora_path' must be",
        ),
        (load, json!({"lora_name": "", "lora_path": "/a"}), 400, "InvalidUserInput", "must be provided"),
        (load, json!({"lora_name": "b", "lora_path": "/a"}), 400, "InvalidUserInput", "already been loaded"),
        (
            load,
            json!({"lora_name": "pebble", "lora_path": "/a"}),
            400,
            "InvalidUserInput",
            "the model itself",
        ),
        (load, json!({"lora_name": "c", "lora_path": "/a"}), 404, "NotFoundError", "No adapter found for /a"),
        (unload, json!({}), 400, "InvalidUserInput", "'lora_name' needs to be provided"),
        (unload, json!({"lora_name": "c"}), 404, "NotFoundError", "'c' cannot be found"),
        (unload, json!({"lora_name": "b", "lora_int_id": 7}), 404, "NotFoundError", "'b' cannot be found"),
    ] {
        let answer = server.post(path, &body).await;
        assert_eq!(answer.error().0, status, "{path} {body}: {}", answer.text);
        assert_eq!(answer.json()["error"]["type"], kind, "{path} {body}");
        assert!(answer.text.contains(told), "{path} {body}: {}", answer.text);
    }
    assert_eq!(
        server.post(load, &json!({"lora_name": "c", "lora_path": 1})).await.error(),
        (400, "lora_path".into())
    );
    for (field, value, told) in [
        ("r", json!(1024), "is greater than max_lora_rank"),
        ("use_dora", json!(true), "DoRA adapter loading is not implemented yet"),
        ("modules_to_save", json!(["lm_head"]), "only supports modules_to_save being None"),
    ] {
        let bad = Copied::new(field);
        bad.set(field, value);
        let answer = server.post(load, &json!({"lora_name": "bad", "lora_path": bad.path()})).await;
        assert_eq!(answer.error().0, 500, "{field}: {}", answer.text);
        assert!(answer.text.contains(told), "{field}: {}", answer.text);
    }
    let answer = server.post(unload, &json!({"lora_name": "b"})).await;
    assert_eq!(answer.text, "Success: LoRA adapter 'b' removed successfully.");
    assert_eq!(server.post("/v1/completions", &json!({"model": "b", "prompt": "a"})).await.status, 404);
}
