//! `POST /v1/rerank`: documents in the order in which they fit a query, as Jina's and Cohere's APIs have it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use super::embeddings::PoolingUsage;
use super::request::PoolingFields;
use super::similarity::{Side, cosine, embed_both};
use crate::http::error::ApiError;
use crate::http::fields::{Fields, expected_got};
use crate::http::openapi::Operation;
use crate::http::reply;
use crate::http::{HttpState, RequestName};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct RerankRequest {
    common: PoolingFields,
    query: String,
    documents: Vec<String>,
    /// Results to give, best first; `None` = all.
    top_n: Option<usize>,
}

impl RerankRequest {
    /// Reads the fields; errors stay in `fields`.
    pub(crate) fn read(fields: &mut Fields) -> Self {
        Self {
            query: fields.string("query").unwrap_or_else(|| {
                fields.missing("query");
                String::new()
            }),
            documents: documents(fields),
            top_n: top_n(fields),
            common: PoolingFields::read(fields),
        }
    }
}

/// Texts, or objects with one in `text`.
fn documents(fields: &mut Fields) -> Vec<String> {
    let Some(values) = fields.list("documents") else {
        fields.missing("documents");
        return Vec::new();
    };
    let mut texts = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let text = match value {
            Value::Object(mut document) => document.remove("text").unwrap_or(Value::Object(document)),
            other => other,
        };
        match text {
            Value::String(text) => texts.push(text),
            other => {
                let message = expected_got("a string or an object with a text", &other);
                fields.wrong(format!("documents[{index}]"), message);
                break;
            }
        }
    }
    texts
}

/// 0 means all, as in vLLM.
fn top_n(fields: &mut Fields) -> Option<usize> {
    let top_n = fields.int("top_n");
    fields.describe("top_n", |_| json!({ "minimum": 0 }));
    let top_n = top_n?;
    if top_n < 0 {
        fields.wrong("top_n", format!("must be at least 1, or 0 for all, got {top_n}"));
    }
    usize::try_from(top_n).ok().filter(|&top_n| top_n > 0)
}

/// The body of an answer.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct RerankResponse {
    id: String,
    model: String,
    usage: PoolingUsage,
    results: Vec<RerankResult>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RerankResult {
    /// Place of the document in the request.
    index: usize,
    document: Document,
    /// -1 to 1.
    relevance_score: f64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Document {
    text: String,
    /// What is not text; always null here.
    multi_modal: Option<()>,
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("Documents in the order in which they fit a query")
        .takes(|mut fields| drop(RerankRequest::read(&mut fields)))
        .answers::<RerankResponse>();
}

/// The handler.
pub(crate) async fn rerank(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let RerankRequest { common, query, documents, top_n } = RerankRequest::read(&mut fields);
    fields.finish()?;
    let (model, options) = common.resolve(&state, "rerank", name)?;
    let query = Side { param: "query", texts: vec![query] };
    let sides = Side { param: "documents", texts: documents.clone() };
    let (query, embeddings) = embed_both(&state, &options, query, sides).await?;
    let usage = PoolingUsage::of(query.iter().chain(&embeddings));
    let ranked =
        embeddings.iter().zip(documents).enumerate().map(|(index, (embedding, text))| RerankResult {
            index,
            document: Document { text, multi_modal: None },
            relevance_score: cosine(&query[0], embedding),
        });
    let mut results: Vec<_> = ranked.collect();
    // Stable: equals stay in the order of the request.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(top_n.unwrap_or(usize::MAX));
    Ok(reply::json(&RerankResponse { id: options.request_id, model, usage, results }))
}
