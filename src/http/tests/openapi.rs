//! `/openapi.json` is what is really there: its paths are the router's, its bodies the readers', its answers
//! what is answered.

use std::collections::BTreeSet;

use serde_json::json;

use super::*;
use crate::http::openapi::document;
use crate::http::routes::routes;

/// (method, path) of what the router has, but for routes that only say that there is nothing.
fn table(app: &App) -> BTreeSet<(String, String)> {
    let routes = routes(app).into_iter().filter(|route| route.describe.is_some());
    routes.map(|route| (route.method.to_string(), route.path.replace("{*", "{"))).collect()
}

fn documented(document: &Value) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        found.extend(methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())));
    }
    found
}

/// Looks up `$ref`s.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(pointer) => document.pointer(pointer.strip_prefix('#').unwrap()).expect(pointer),
        None => schema,
    }
}

#[tokio::test]
async fn paths_are_the_routers() {
    for all in [true, false] {
        let mut settings = Settings::default();
        let config = &mut settings.server;
        (config.ui, config.disable_fastapi_docs, config.enable_admin) = (all, !all, all);
        let server = start(settings).await;
        let document = document(&server.app);
        assert_eq!(documented(&document), table(&server.app));
        for (method, path) in documented(&document) {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let answer = server.send(server.request(method, &path.replace("{id}", "x"), &[], b"")).await;
            assert!(![403, 405, 307].contains(&answer.status.as_u16()), "{path}: {}", answer.text);
            assert!(!answer.text.contains("there is nothing at"), "{path}: {}", answer.text);
        }
    }
}

/// The table is all there is: a route mounted elsewhere would not be described.
#[test]
fn routes_are_mounted_from_the_table_alone() {
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/http"))];
    let mut mounting = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend(Some(path).filter(|path| !path.ends_with("tests")));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let mounts =
                text.matches(concat!(".rou", "te(")).count() + text.matches(concat!(".ne", "st(")).count();
            if mounts > 0 {
                mounting.push((path.file_name().unwrap().to_str().unwrap().to_owned(), mounts));
            }
        }
    }
    // The table, and the whole of it under another path.
    assert_eq!(mounting, [("routes.rs".to_owned(), 2)]);
}

#[tokio::test]
async fn the_document_is_served_unless_turned_off() {
    let server = start(Settings::default()).await;
    let answer = server.get("/openapi.json").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["content-type"]),
        (200, &"application/json".parse().unwrap())
    );
    assert_eq!(answer.json(), document(&server.app));
    assert_eq!(answer.text, server.get("/openapi.json").await.text);
    let mut settings = Settings::default();
    settings.server.disable_fastapi_docs = true;
    assert_eq!(start(settings).await.get("/openapi.json").await.status, 404);
}

#[tokio::test]
async fn keys_are_described_where_they_are_wanted() {
    let mut settings = Settings::default();
    settings.server.api_keys = vec!["key".into()];
    let server = start(settings).await;
    let described = document(&server.app);
    for (method, path) in documented(&described) {
        let operation = &described["paths"][&path][method.to_lowercase()];
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let answer = server.send(server.request(method, &path, &[], b"")).await;
        let guarded = operation["security"] == json!([{"bearer": []}]);
        assert_eq!(answer.status == 401, guarded, "{path}: {}", answer.status);
        assert_eq!(operation["responses"]["401"].is_object(), guarded, "{path}");
    }
    assert_eq!(described["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    let open = start(Settings::default()).await;
    assert!(!document(&open.app).to_string().contains("bearer"));
}

#[tokio::test]
async fn bodies_are_what_readers_ask_for() {
    let server = start(Settings::default()).await;
    let document = document(&server.app);
    let body = |path: &str| {
        let body = &document["paths"][path]["post"]["requestBody"];
        resolve(&document, &body["content"]["application/json"]["schema"]).clone()
    };
    let chat = body("/v1/chat/completions");
    let properties = &chat["properties"];
    assert_eq!(chat["required"], json!(["messages"]));
    assert_eq!(properties["ignore_eos"], json!({"type": ["boolean", "null"]}));
    assert_eq!(properties["temperature"]["maximum"], 2.0);
    assert_eq!(properties["top_p"]["exclusiveMinimum"], 0.0);
    assert_eq!(properties["allowed_token_ids"]["items"]["exclusiveMaximum"], VOCAB_SIZE);
    let options = &properties["stream_options"]["properties"];
    assert_eq!(options["include_usage"], json!({"type": ["boolean", "null"]}));
    assert!(properties.get("prompt").is_none());
    assert_eq!(body("/v1/completions")["required"], json!(["prompt"]));
    // A text, or a conversation.
    let either = &body("/tokenize")["anyOf"];
    assert_eq!((&either[0]["required"], &either[1]["required"]), (&json!(["prompt"]), &json!(["messages"])));
    assert_eq!(either[0]["properties"]["prompt"], json!({"type": "string"}));
    // A field that nobody reads is in no schema, so reading it is what puts it there.
    assert!(!document.to_string().contains("best_of"));
}

#[tokio::test]
async fn every_reference_leads_somewhere() {
    let server = start(Settings::default()).await;
    let document = document(&server.app);
    let text = document.to_string();
    let references: BTreeSet<_> =
        text.split("\"$ref\":\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(references.len() > 5);
    for reference in references {
        assert!(document.pointer(reference.strip_prefix('#').unwrap()).is_some(), "{reference}");
    }
}
