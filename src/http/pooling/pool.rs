//! `POST /pooling`: vectors or labels, whichever the model gives, in a form of vLLM's own.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::embeddings::EmbeddingRequest;
use super::encoding::{Vector, bytes_response};
use super::request::{Pooled, PoolingUsage};
use crate::embed::PoolTask;
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
fn read(fields: &mut Fields) -> (Option<String>, EmbeddingRequest) {
    let task = fields.string("task");
    fields.describe("task", |app| {
        let own = app.pooler.as_ref().map_or(PoolTask::Embed, |pooler| pooler.task());
        json!({ "enum": [task_name(own)] })
    });
    (task, EmbeddingRequest::read(fields))
}

fn task_name(task: PoolTask) -> &'static str {
    match task {
        PoolTask::Embed => "embed",
        PoolTask::Classify => "classify",
    }
}

/// The words of the refusal are vLLM's.
fn check_task(asked: Option<&str>, state: &HttpState) -> Result<(), ApiError> {
    let (Some(asked), Some(pooler)) = (asked, &state.app.pooler) else { return Ok(()) };
    let own = task_name(pooler.task());
    let message = match asked {
        _ if asked == own => return Ok(()),
        "plugin" => "No IOProcessor plugin installed.".to_owned(),
        _ => format!("Unsupported task: '{}'. Supported by this model: '{own}'", excerpt(asked)),
    };
    Err(ApiError::bad_param("task", message))
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("What the model makes of each text, in vLLM's form")
        .takes(|mut fields| drop(read(&mut fields)))
        .answers::<PoolingResponse>()
        .answers_bytes();
}

/// The handler.
pub(crate) async fn pooling(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let (task, EmbeddingRequest { texts, encoding }) = read(&mut fields);
    fields.finish()?;
    check_task(task.as_deref(), &state)?;
    let pooled = texts.run(&state, "pool", name, None).await?;
    if encoding.is_bytes() {
        return bytes_response(pooled, encoding);
    }
    let Pooled { id, model, vectors } = pooled;
    let usage = PoolingUsage::of(&vectors);
    let data = vectors.into_iter().enumerate().map(|(index, one)| PoolingData {
        index,
        object: "pooling",
        data: Vector::new(one.values, encoding),
    });
    Ok(json(&PoolingResponse { id, object: "list", created: now(), model, data: data.collect(), usage }))
}
