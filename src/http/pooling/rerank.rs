//! `POST /v1/rerank`: documents in the order in which they fit a query, as Jina's and Cohere's APIs have it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::request::PoolingFields;
use super::scores::{ScoreFields, Scores, Side, scores, texts, texts_schema};
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::openapi::Operation;
use crate::http::reply;
use crate::http::{HttpState, RequestName};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(crate) struct RerankRequest {
    common: PoolingFields,
    fields: ScoreFields,
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
            fields: ScoreFields::read(fields),
            top_n: top_n(fields),
            common: PoolingFields::read(fields),
        }
    }
}

fn documents(fields: &mut Fields) -> Vec<String> {
    let documents = texts(fields, "documents");
    fields.describe("documents", |_| texts_schema());
    documents
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
    usage: RerankUsage,
    results: Vec<RerankResult>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RerankUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct RerankResult {
    /// Place of the document in the request.
    index: usize,
    document: Document,
    /// What the model gives, or where it embeds, the cosine, from -1 to 1.
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
    let RerankRequest { common, fields: own, query, documents, top_n } = RerankRequest::read(&mut fields);
    fields.finish()?;
    let (model, options) = common.resolve(&state, "rerank", name).await?;
    let id = options.request_id.clone();
    let query = Side { param: "query", texts: vec![query] };
    let sides = Side { param: "documents", texts: documents.clone() };
    let Scores { scores, prompt_tokens } = scores(&state, options, own, query, sides).await?;
    let ranked = scores.into_iter().zip(documents).enumerate().map(|(index, (score, text))| RerankResult {
        index,
        document: Document { text, multi_modal: None },
        relevance_score: score,
    });
    let mut results: Vec<_> = ranked.collect();
    // Stable: equals stay in the order of the request.
    results.sort_by(|a, b| b.relevance_score.total_cmp(&a.relevance_score));
    results.truncate(top_n.unwrap_or(usize::MAX));
    let usage = RerankUsage { prompt_tokens, total_tokens: prompt_tokens };
    Ok(reply::json(&RerankResponse { id, model, usage, results }))
}
