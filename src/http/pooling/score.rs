//! `POST /v1/score`: how near pairs of texts are.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::request::{PoolingFields, PoolingUsage};
use super::scores::{ScoreFields, Scores, Side, scores, texts, texts_schema};
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::openapi::Operation;
use crate::http::reply::{json, now};
use crate::http::{HttpState, RequestName};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct ScoreRequest {
    common: PoolingFields,
    fields: ScoreFields,
    /// One text, or as many as there are in `right`.
    left: Side,
    right: Side,
}

/// The names of the two sides, each with those that it goes with.
const NAMES: [(&str, &[&str]); 3] =
    [("text_1", &["text_2"]), ("data_1", &["data_2"]), ("queries", &["documents", "items"])];

impl ScoreRequest {
    /// Reads the fields; errors stay in `fields`.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        let (left, partners) = NAMES.into_iter().find(|(left, _)| fields.has(left)).unwrap_or(NAMES[0]);
        let right = partners.iter().find(|name| fields.has(name)).unwrap_or(&partners[0]);
        let request = Self {
            left: side(fields, left),
            right: side(fields, right),
            fields: ScoreFields::read(fields),
            common: PoolingFields::read(fields),
        };
        let (some, all) = (request.left.texts.len(), request.right.texts.len());
        if some > 1 && some != all {
            fields.wrong(left, format!("must be one text, or as many as in {right}: got {some} for {all}"));
        }
        request
    }
}

fn side(fields: &mut Fields, param: &'static str) -> Side {
    let texts = texts(fields, param);
    fields.describe(param, |_| texts_schema());
    Side { param, texts }
}

/// The body of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ScoreResponse {
    id: String,
    object: &'static str,
    created: i64,
    model: String,
    data: Vec<ScoreData>,
    usage: PoolingUsage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ScoreData {
    index: usize,
    object: &'static str,
    /// What the model gives, or where it embeds, the cosine, from -1 to 1.
    score: f64,
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("How near pairs of texts are")
        .takes(|mut fields| drop(ScoreRequest::read(&mut fields)))
        .answers::<ScoreResponse>();
}

/// The handler.
pub(crate) async fn score(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let ScoreRequest { common, fields: own, left, right } = ScoreRequest::read(&mut fields);
    fields.finish()?;
    let (model, options) = common.resolve(&state, "embd", name).await?;
    let id = options.request_id.clone();
    let Scores { scores, prompt_tokens } = scores(&state, options, own, left, right).await?;
    let data = scores.into_iter().enumerate();
    let data = data.map(|(index, score)| ScoreData { index, object: "score", score }).collect();
    let usage = PoolingUsage::of_tokens(prompt_tokens);
    Ok(json(&ScoreResponse { id, object: "list", created: now(), model, data, usage }))
}
