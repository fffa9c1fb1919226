//! `POST /api/embed`, and `/api/embeddings`, its old form for one text.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::error::OllamaError;
use super::request::{OllamaFields, check_keep_alive};
use super::served;
use crate::embed::{EmbedInput, EmbedOptions, Embedding, Truncation, embed};
use crate::http::fields::Fields;
use crate::http::json::Prompt;
use crate::http::reply::json;
use crate::http::sampling::choose_id;
use crate::http::{HttpState, RequestName};

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Embeddings {
    model: String,
    embeddings: Vec<Vec<f32>>,
    /// Nanoseconds.
    total_duration: u64,
    /// Always 0: the model is loaded before there is anything to answer with.
    load_duration: u64,
    prompt_eval_count: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct OneEmbedding {
    embedding: Vec<f32>,
}

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(super) struct EmbedRequest {
    model: Option<String>,
    inputs: Vec<EmbedInput>,
    truncate: bool,
    dimensions: Option<i64>,
}

/// The handler of `/api/embed`.
pub(crate) async fn embeddings(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    OllamaFields(mut fields): OllamaFields,
) -> Result<Response, OllamaError> {
    let started = Instant::now();
    let request = read(&mut fields);
    fields.finish()?;
    let (model, all) = run(&state, name, request, "input").await?;
    let prompt_eval_count = all.iter().map(|one| one.prompt_tokens).sum();
    let embeddings = all.into_iter().map(|one| one.values).collect();
    let total_duration = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Ok(json(&Embeddings { model, embeddings, total_duration, load_duration: 0, prompt_eval_count }))
}

/// The handler of `/api/embeddings`.
pub(crate) async fn old_embeddings(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    OllamaFields(mut fields): OllamaFields,
) -> Result<Response, OllamaError> {
    let request = read_old(&mut fields);
    fields.finish()?;
    let (_, mut all) = run(&state, name, request, "prompt").await?;
    // There was one input.
    Ok(json(&OneEmbedding { embedding: all.pop().map(|one| one.values).unwrap_or_default() }))
}

async fn run(
    state: &HttpState,
    name: RequestName,
    request: EmbedRequest,
    input_param: &'static str,
) -> Result<(String, Vec<Embedding>), OllamaError> {
    let (model, adapter) = served(state, request.model).await?;
    let options = EmbedOptions {
        request_id: choose_id("ollama", name.sent.as_deref(), name.given)?,
        input_param,
        truncate: request.truncate.then_some(Truncation { max_tokens: None, keep_end: false }),
        dimensions: request.dimensions,
        adapter,
        ..EmbedOptions::default()
    };
    Ok((model, embed(&state.app, request.inputs, &options).await?))
}

/// The body of `/api/embed`.
pub(super) fn read(fields: &mut Fields) -> EmbedRequest {
    let inputs = fields.string_or_strings("input");
    if inputs.is_none() {
        fields.missing("input");
    }
    let inputs = inputs.unwrap_or_default().into_iter().map(EmbedInput::Text).collect();
    // As in Ollama, texts that are too long lose their ends unless that is forbidden.
    let truncate = fields.bool("truncate").unwrap_or(true);
    let dimensions = fields.int("dimensions");
    EmbedRequest { model: model(fields), inputs, truncate, dimensions }
}

/// The body of `/api/embeddings`.
pub(super) fn read_old(fields: &mut Fields) -> EmbedRequest {
    let inputs = match fields.prompt("prompt") {
        Some(Prompt::Text(text)) => vec![EmbedInput::Text(text)],
        Some(_) => {
            fields.wrong("prompt", "expected a string");
            Vec::new()
        }
        None => {
            fields.missing("prompt");
            Vec::new()
        }
    };
    EmbedRequest { model: model(fields), inputs, truncate: true, dimensions: None }
}

/// The model; and `options`, which are about sampling, of which there is none.
fn model(fields: &mut Fields) -> Option<String> {
    check_keep_alive(fields);
    if let Some(options) = fields.take("options")
        && !matches!(options, Value::Object(_))
    {
        fields.wrong("options", "expected an object");
    }
    fields.string("model")
}
