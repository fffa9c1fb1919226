//! `POST /inference/v1/generate` and `/inference/v1/abort_requests`: tokens in, tokens out, for gateways that
//! have a tokenizer of their own. Behind `--enable-scale-out`, as in vLLM.

mod logprobs;
mod request;
mod response;
mod stream;

use std::sync::Arc;

use axum::extract::State;
use axum::http::Uri;
use axum::response::Response;

use super::completions::Work;
use super::error::{ApiError, excerpt};
use super::fields::Fields;
use super::json::Prompt;
use super::logprobs::TokenNames;
use super::openapi::Operation;
use super::reply::{Reply, ReplyPrompt, collect, json, now};
use super::sampling::choose_base;
use super::sse::{self, Dialect, Source};
use super::{HttpState, RequestName};
use crate::validate::{RequestFields, generate_request};

pub(crate) use self::stream::TokenWriter;

use self::request::{TokensRequest, read_abort};
use self::response::Aborted;

/// How `/inference/v1/generate` tells of itself.
pub(crate) fn describe_generate(op: &mut Operation<'_>) {
    op.about("Continues tokens with tokens")
        .takes(|fields| drop(TokensRequest::read(fields)))
        .answers::<response::Generation<'_>>()
        .streams("Events whose data are chunks of the answer; the last one's is [DONE]");
}

/// How `/inference/v1/abort_requests` tells of itself.
pub(crate) fn describe_abort(op: &mut Operation<'_>) {
    op.about("Ends requests by their ids").takes(|fields| drop(read_abort(fields))).answers::<Aborted>();
}

/// What the routes answer unless they were opened.
pub(crate) async fn forbidden(uri: Uri) -> ApiError {
    let path = excerpt(uri.path());
    ApiError::forbidden(format!("{path} is for gateways; start the server with --enable-scale-out"))
}

/// The handler of `/inference/v1/generate`.
pub(crate) async fn generate(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    let request = TokensRequest::read(fields)?;
    let app = &*state.app;
    let served = state.served(request.model).await?;
    let id = choose_base(name.sent.as_deref(), request.request_id.or(name.given))?;
    let work = Work {
        prompt: Prompt::Ids(request.token_ids),
        bad_words: request.bad_words,
        add_special_tokens: false,
        truncate: None,
        echo: false,
        structured: request.structured,
    };
    let mut done = work.run(&state).await?;
    let mut sampling = request.sampling;
    sampling.bad_words_token_ids = done.bad_words;
    sampling.grammar = done.grammar;
    let (wants_logprobs, wants_prompt_logprobs) =
        (sampling.logprobs.is_some(), sampling.prompt_logprobs.is_some());
    let fields = RequestFields {
        external_id: id.clone(),
        prompt_token_ids: done.prompts.swap_remove(0).ids,
        priority: request.priority,
        cache_salt: request.cache_salt,
        bypass_prefix_cache: false,
        adapter: served.adapter,
    };
    let prepared = generate_request(fields, sampling, &app.limits)?;
    let n = prepared.n;
    let reply = Reply {
        id,
        created: now(),
        model: served.name,
        n,
        prompts: vec![ReplyPrompt { ids: prepared.prompt_token_ids.clone(), echo: None, text: None }],
        names: TokenNames { tokenizer: app.tokenizer.clone(), as_token_ids: !request.text },
        wants_logprobs,
        wants_prompt_logprobs,
        return_token_ids: true,
        style: state.style.clone(),
        include_usage: request.include_usage,
        continuous_usage: request.continuous_usage,
    };
    let stream = state.submit(vec![prepared])?.remove(0);
    if request.stream {
        let dialect = Dialect::Tokens(TokenWriter { text: request.text });
        let keep_alive = app.server.sse_keep_alive_interval;
        return Ok(sse::response(reply, dialect, vec![Source::Output(stream)], keep_alive));
    }
    let outputs = collect(stream, n).await?;
    Ok(response::whole(&reply, outputs, request.text))
}

/// The handler of `/inference/v1/abort_requests`.
pub(crate) async fn abort_requests(
    State(state): State<Arc<HttpState>>,
    fields: Fields,
) -> Result<Response, ApiError> {
    let ids = read_abort(fields)?;
    let num_aborted = ids.iter().map(|id| state.app.engine.abort(id)).sum();
    Ok(json(&Aborted { num_aborted }))
}
