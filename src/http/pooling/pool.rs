//! `POST /pooling`: vLLM's own form of embeddings.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::embeddings::{Embedded, EmbeddingRequest, PoolingUsage};
use super::encoding::Vector;
use crate::http::error::{ApiError, excerpt};
use crate::http::fields::Fields;
use crate::http::openapi::Operation;
use crate::http::reply::{json, now};
use crate::http::{HttpState, RequestName};

/// The body of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct PoolingResponse {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    data: Vec<PoolingData>,
    usage: PoolingUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct PoolingData {
    index: usize,
    object: &'static str,
    data: Vector,
}

/// Reads the fields: those of embeddings, and which kind of pooling.
pub(crate) fn read(fields: &mut Fields) -> EmbeddingRequest {
    let task = fields.string("task");
    fields.describe("task", |_| json!({ "enum": ["embed"] }));
    if let Some(other) = task.filter(|task| task != "embed") {
        let message = format!("only \"embed\" (one vector a text) is supported, got {:?}", excerpt(&other));
        fields.wrong("task", message);
    }
    EmbeddingRequest::read(fields)
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("A vector for each text, in vLLM's form")
        .takes(|mut fields| drop(read(&mut fields)))
        .answers::<PoolingResponse>();
}

/// The handler.
pub(crate) async fn pooling(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = read(&mut fields);
    fields.finish()?;
    let Embedded { id, model, embeddings, encoding } = request.run(&state, "pool", name).await?;
    let usage = PoolingUsage::of(&embeddings);
    let data = embeddings.into_iter().enumerate().map(|(index, one)| PoolingData {
        index,
        object: "pooling",
        data: Vector::new(one.values, encoding),
    });
    Ok(json(&PoolingResponse { id, object: "list", created: now(), model, data: data.collect(), usage }))
}
