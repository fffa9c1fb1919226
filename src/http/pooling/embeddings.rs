//! `POST /v1/embeddings`: texts in, one vector each out.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::encoding::{Encoding, Vector, bytes_response};
use super::request::{Pooled, PooledTexts, PoolingUsage};
use crate::embed::PoolTask;
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::openapi::Operation;
use crate::http::reply::{json, now};
use crate::http::{HttpState, RequestName};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct EmbeddingRequest {
    pub(super) texts: PooledTexts,
    pub(super) encoding: Encoding,
}

impl EmbeddingRequest {
    /// Reads the fields; errors stay in `fields`.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let mut texts = PooledTexts::read(fields);
        texts.dimensions = fields.int("dimensions");
        Self { texts, encoding: Encoding::read(fields) }
    }
}

/// The body of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct EmbeddingResponse {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    data: Vec<EmbeddingData>,
    usage: PoolingUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct EmbeddingData {
    index: usize,
    object: &'static str,
    embedding: Vector,
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("A vector for each text")
        .takes(|mut fields| drop(EmbeddingRequest::read(&mut fields)))
        .answers::<EmbeddingResponse>()
        .answers_bytes();
}

/// The handler.
pub(crate) async fn embeddings(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let EmbeddingRequest { texts, encoding } = EmbeddingRequest::read(&mut fields);
    fields.finish()?;
    let pooled = texts.run(&state, "embd", name, Some(PoolTask::Embed)).await?;
    if encoding.is_bytes() {
        return bytes_response(pooled, encoding);
    }
    let Pooled { id, model, vectors } = pooled;
    let usage = PoolingUsage::of(&vectors);
    let data = vectors.into_iter().enumerate().map(|(index, one)| EmbeddingData {
        index,
        object: "embedding",
        embedding: Vector::new(one.values, encoding),
    });
    Ok(json(&EmbeddingResponse { id, object: "list", created: now(), model, data: data.collect(), usage }))
}
