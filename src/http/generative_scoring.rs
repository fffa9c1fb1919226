//! `POST /generative_scoring`: how likely a token is to follow a text, such as "yes" after a question about each of
//! many documents.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::future::try_join_all;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use super::error::ApiError;
use super::fields::Fields;
use super::json::{MAX_PROMPTS, Prompt};
use super::openapi::Operation;
use super::prompt::{TruncationSide, token_id_schema, truncate_ids};
use super::reply::{collect, json, now};
use super::sampling::{choose_id, priority, request_id};
use super::usage::Usage;
use super::{HttpState, RequestName};
use crate::engine::TokenLogprobs;
use crate::validate::{MAX_LOGPROB_TOKEN_IDS, RequestFields, SamplingFields, generate_request};

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
struct ScoringRequest {
    model: Option<String>,
    request_id: Option<String>,
    query: Prompt,
    items: Prompt,
    label_token_ids: Vec<i64>,
    /// The labels share the probability of 1 among them; if not, it is that of the whole vocabulary.
    apply_softmax: bool,
    item_first: bool,
    add_special_tokens: bool,
    priority: i32,
    cache_salt: Option<String>,
}

impl ScoringRequest {
    fn read(fields: &mut Fields) -> Self {
        let mut required = |name| {
            fields.text_or_ids(name).unwrap_or_else(|| {
                fields.missing(name);
                Prompt::Ids(Vec::new())
            })
        };
        let (query, items) = (required("query"), required("items"));
        let label_token_ids = fields.ints("label_token_ids").unwrap_or_else(|| {
            fields.missing("label_token_ids");
            Vec::new()
        });
        let ids =
            |app: &crate::app::App| json!({ "type": "array", "items": token_id_schema(app), "minItems": 1 });
        fields.describe("query", |app| json!({ "anyOf": [{ "type": "string" }, ids(app)] }));
        fields.describe("items", |app| {
            let text = json!({ "type": "array", "items": { "type": "string" } });
            let lists = json!({ "type": "array", "items": ids(app) });
            json!({ "anyOf": [text, lists], "minItems": 1, "maxItems": MAX_PROMPTS })
        });
        fields.describe(
            "label_token_ids",
            |app| json!({ "items": token_id_schema(app), "minItems": 1, "maxItems": MAX_LOGPROB_TOKEN_IDS }),
        );
        Self {
            model: fields.string("model"),
            request_id: request_id(fields),
            query,
            items,
            label_token_ids,
            apply_softmax: fields.bool("apply_softmax").unwrap_or(true),
            item_first: fields.bool("item_first").unwrap_or(false),
            add_special_tokens: fields.bool("add_special_tokens").unwrap_or(true),
            priority: priority(fields),
            cache_salt: fields.string("cache_salt"),
        }
    }

    /// The tokens of each prompt, cut off at its end where the context is too short, as in vLLM. Work for the text
    /// pool.
    fn prompts(&self, state: &HttpState) -> Result<Vec<Vec<u32>>, ApiError> {
        let keep = state.app.limits.max_model_len as usize - 1;
        let cut = Some((keep, TruncationSide::Right));
        let query = match &self.query {
            Prompt::Text(text) => state.encoder.encode(text, self.add_special_tokens, cut)?,
            Prompt::Ids(ids) => ids.clone(),
            _ => return Err(ApiError::bad_param("query", "must be a text or a list of token ids")),
        };
        let items = match &self.items {
            Prompt::Texts(texts) => {
                texts.iter().map(|text| state.encoder.encode(text, false, cut)).collect::<Result<_, _>>()?
            }
            Prompt::IdLists(lists) => lists.clone(),
            Prompt::Ids(ids) if ids.is_empty() => Vec::new(),
            _ => {
                return Err(ApiError::bad_param(
                    "items",
                    "must be a list of texts, or of lists of token ids",
                ));
            }
        };
        if items.is_empty() || items.len() > MAX_PROMPTS {
            let message =
                format!("must contain at least one item and at most {MAX_PROMPTS}, got {}", items.len());
            return Err(ApiError::bad_param("items", message));
        }
        let join = |item: Vec<u32>| {
            let mut ids =
                if self.item_first { [item, query.clone()].concat() } else { [&*query, &item].concat() };
            truncate_ids(&mut ids, keep, TruncationSide::Right);
            ids
        };
        Ok(items.into_iter().map(join).collect())
    }
}

#[derive(Debug, Serialize, JsonSchema)]
struct ScoringResponse<'a> {
    id: String,
    object: &'static str,
    created: i64,
    model: &'a str,
    data: Vec<ItemScore>,
    usage: Usage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct ItemScore {
    index: usize,
    object: &'static str,
    /// The probability of the first label, 0 to 1.
    score: f64,
}

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("How likely a token is to follow each of several texts")
        .takes(|mut fields| drop(ScoringRequest::read(&mut fields)))
        .answers::<ScoringResponse<'_>>();
}

/// The handler.
pub(crate) async fn generative_scoring(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = ScoringRequest::read(&mut fields);
    fields.finish()?;
    let served = state.served(request.model.clone()).await?;
    let field = request.request_id.clone().or(name.given);
    let id = choose_id("generative-scoring", name.sent.as_deref(), field)?;
    let labels = request.label_token_ids.clone();
    let sampling = SamplingFields {
        max_tokens: Some(1),
        temperature: Some(0.0),
        detokenize: Some(false),
        logprobs: Some(labels.len() as i64),
        logprobs_param: "label_token_ids",
        logprob_token_ids: Some(labels),
        ..SamplingFields::default()
    };
    let (salt, rank, softmax) = (request.cache_salt.clone(), request.priority, request.apply_softmax);
    let labels = request.label_token_ids.clone();
    let shared = state.clone();
    let prompts = state.app.text_pool.run(move || request.prompts(&shared)).await??;
    let mut requests = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let fields = RequestFields {
            external_id: id.clone(),
            prompt_token_ids: prompt,
            priority: rank,
            cache_salt: salt.clone(),
            bypass_prefix_cache: false,
            adapter: served.adapter.clone(),
        };
        let checked = generate_request(fields, sampling.clone(), &state.app.limits).map_err(rename)?;
        requests.push(checked);
    }
    let prompt_tokens = requests.iter().map(|request| request.prompt_token_ids.len() as u64).sum();
    let streams = state.submit(requests)?;
    let outputs = try_join_all(streams.into_iter().map(|stream| collect(stream, 1))).await?;
    let mut usage = Usage { prompt_tokens, ..Usage::default() };
    let mut data = Vec::with_capacity(outputs.len());
    for (index, output) in outputs.iter().map(|sequences| &sequences[0]).enumerate() {
        usage.completion_tokens += output.token_ids.len() as u64;
        let entry = output.logprobs.first().ok_or_else(|| ApiError::internal("the request was aborted"))?;
        let score = probability(entry, &labels, softmax);
        data.push(ItemScore { index, object: "score", score });
    }
    Ok(json(&ScoringResponse { id, object: "list", created: now(), model: &served.name, data, usage }))
}

/// The client's name for what the engine calls otherwise.
fn rename(mut error: crate::validate::ParamError) -> crate::validate::ParamError {
    if error.param == "logprob_token_ids" {
        error.message = error.message.replace("logprob_token_ids", "label_token_ids");
        error.param = "label_token_ids".into();
    }
    error
}

/// Of the first label, among all tokens or among the labels.
fn probability(entry: &TokenLogprobs, labels: &[i64], among_labels: bool) -> f64 {
    let known = || {
        let told = entry.top.iter().map(|&(token, logprob)| (i64::from(token), f64::from(logprob)));
        // The token that was generated is told, too.
        told.filter(|(token, _)| labels.contains(token))
    };
    let own = known()
        .find(|(token, _)| Some(token) == labels.first())
        .map_or(f64::NEG_INFINITY, |(_, logprob)| logprob);
    if !among_labels {
        return own.exp();
    }
    let best = known().map(|(_, logprob)| logprob).fold(f64::NEG_INFINITY, f64::max);
    if best == f64::NEG_INFINITY {
        // None of them can follow.
        return 0.0;
    }
    let sum: f64 = known().map(|(_, logprob)| (logprob - best).exp()).sum();
    (own - best).exp() / sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_share_what_there_is_or_not() {
        let entry = TokenLogprobs {
            token: 9,
            logprob: -0.1,
            rank: 1,
            top: vec![(9, -0.1), (5, 0.3f32.ln()), (6, 0.1f32.ln()), (7, f32::NEG_INFINITY)],
        };
        let close = |labels: &[i64], among_labels, expected: f64| {
            let told = probability(&entry, labels, among_labels);
            assert!((told - expected).abs() < 1e-6, "{labels:?}: {told}");
        };
        close(&[5, 6, 7], false, 0.3);
        close(&[5, 6, 7], true, 0.75);
        close(&[6, 5, 7], true, 0.25);
        close(&[7, 5], true, 0.0);
        close(&[7, 5], false, 0.0);
        // None of them can follow.
        close(&[7], true, 0.0);
    }
}
