//! `POST /classify`: texts in, the probabilities of the model's labels out.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::request::{Pooled, PooledTexts, PoolingUsage};
use crate::embed::PoolTask;
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::openapi::Operation;
use crate::http::reply::{json, now};
use crate::http::{HttpState, RequestName};

/// The body of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ClassifyResponse {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    data: Vec<Classified>,
    usage: PoolingUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Classified {
    index: usize,
    /// The likeliest, if the model's makers gave it a name.
    label: Option<String>,
    /// One a label; logits if the request wanted no activation.
    probs: Vec<f32>,
    num_classes: usize,
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("The probabilities of the model's labels for each text")
        .takes(|mut fields| drop(PooledTexts::read(&mut fields)))
        .answers::<ClassifyResponse>();
}

/// The handler.
pub(crate) async fn classify(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let texts = PooledTexts::read(&mut fields);
    fields.finish()?;
    let Pooled { id, model, vectors } = texts.run(&state, "classify", name, Some(PoolTask::Classify)).await?;
    let labels = state.app.pooler.as_ref().and_then(|pooler| pooler.labels());
    let usage = PoolingUsage::of(&vectors);
    let data = vectors.into_iter().enumerate().map(|(index, one)| Classified {
        index,
        label: labels.and_then(|labels| labels.names.get(first_of_the_best(&one.values))?.clone()),
        num_classes: one.values.len(),
        probs: one.values,
    });
    Ok(json(&ClassifyResponse { id, object: "list", created: now(), model, data: data.collect(), usage }))
}

fn first_of_the_best(values: &[f32]) -> usize {
    let best = |best: usize, index: usize| if values[index] > values[best] { index } else { best };
    (0..values.len()).fold(0, best)
}
