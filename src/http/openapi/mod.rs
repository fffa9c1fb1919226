//! `GET /openapi.json`: what is really there, made from what really answers.
//!
//! The paths are the table of routes, the same one that the router is made of; bodies are what the readers
//! of bodies ask for ([`recorder`]); answers are the types that are serialised. Made when first asked for.

mod operation;
mod recorder;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::routes::{Route, routes};
use super::{HttpState, auth};
use crate::app::App;

pub(crate) use self::operation::{Describe, Operation};
pub(crate) use self::recorder::Recorder;

/// The handler.
pub(crate) async fn openapi(State(state): State<Arc<HttpState>>) -> Response {
    let document = state.openapi.get_or_init(|| Bytes::from(document(&state.app).to_string()));
    ([(CONTENT_TYPE, "application/json")], document.clone()).into_response()
}

/// How `/openapi.json` tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("This description, in OpenAPI 3.1").answers::<Map<String, Value>>();
}

/// The description of a server with these settings.
pub(crate) fn document(app: &Arc<App>) -> Value {
    let mut settings = SchemaSettings::draft2020_12().for_serialize();
    settings.definitions_path = "/components/schemas".into();
    let mut types = settings.into_generator();
    let mut paths = Map::new();
    let guarded = !app.server.api_keys.is_empty();
    for route in routes(app) {
        let Some(describe) = route.describe else { continue };
        let mut operation = Operation::new(app, &mut types);
        describe(&mut operation);
        if guarded && !auth::is_open(route.path) {
            operation.guarded();
        }
        let entry = paths.entry(openapi_path(route.path)).or_insert_with(|| json!({}));
        entry[method_name(&route)] = operation.finish(operation_id(&route), tag(route.path));
    }
    let mut components = json!({ "schemas": types.take_definitions(true) });
    if guarded {
        components["securitySchemes"] = json!({ "bearer": { "type": "http", "scheme": "bearer" } });
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Quire", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": components,
    })
}

fn method_name(route: &Route) -> String {
    route.method.as_str().to_ascii_lowercase()
}

/// `{*id}`, which takes slashes as well, is `{id}` in OpenAPI.
fn openapi_path(path: &str) -> String {
    path.replace("{*", "{")
}

/// `post_v1_chat_completions`: unlike a name of our own, it stays the same as long as the route does.
fn operation_id(route: &Route) -> String {
    let words = route.path.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.fold(method_name(route), |id, word| format!("{id}_{word}"))
}

/// Whose API a route belongs to, by which documents are folded up.
fn tag(path: &str) -> &'static str {
    match path.split('/').nth(1) {
        Some("v1") => "v1",
        Some("api") => "ollama",
        _ => "server",
    }
}
