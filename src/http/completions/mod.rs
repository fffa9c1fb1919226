//! `POST /v1/completions`: text or tokens in, their continuation out.

mod request;
mod response;
mod stream;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::future::try_join_all;

use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::TokenNames;
use super::openapi::Operation;
use super::prompt::truncation;
use super::reply::{Reply, ReplyPrompt, collect, now};
use super::sampling::choose_id;
use super::sse::{self, Dialect, Source};
use super::{HttpState, RequestName};
use crate::validate::{RequestFields, generate_request};

pub(crate) use self::stream::CompletionStream;

pub(crate) use self::request::Work;

use self::request::CompletionRequest;

/// How `/v1/completions` tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("Continues texts or tokens")
        .takes(|fields| drop(CompletionRequest::read(fields)))
        .answers::<response::Completion<'_>>()
        .streams("Events whose data are chunks of the answer; the last one's is [DONE]");
}

/// The handler.
pub(crate) async fn completions(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    let CompletionRequest { common, prompt, echo_only } = CompletionRequest::read(fields)?;
    let app = &*state.app;
    let answers = &app.server.answers;
    let served = state.served(common.model).await?;
    let id = choose_id("cmpl", name.sent.as_deref(), common.request_id.or(name.given))?;
    let mut sampling = common.sampling;

    let work = Work {
        prompt,
        bad_words: common.bad_words,
        add_special_tokens: common.add_special_tokens.unwrap_or(true),
        truncate: truncation(common.truncate, sampling.max_tokens.or(Some(16)), &app.limits)?,
        echo: common.echo,
        structured: common.structured,
    };
    let done = work.run(&state).await?;
    sampling.bad_words_token_ids = done.bad_words;
    sampling.grammar = done.grammar;

    let mut requests = Vec::with_capacity(done.prompts.len());
    let mut reply_prompts = Vec::with_capacity(done.prompts.len());
    for prompt in done.prompts {
        let fields = RequestFields {
            external_id: id.clone(),
            prompt_token_ids: prompt.ids,
            priority: common.priority,
            cache_salt: common.cache_salt.clone(),
            bypass_prefix_cache: false,
            adapter: served.adapter.clone(),
        };
        let request = generate_request(fields, sampling.clone(), &app.limits)?;
        reply_prompts.push(ReplyPrompt {
            ids: request.prompt_token_ids.clone(),
            echo: prompt.echo,
            text: None,
        });
        requests.push(request);
    }
    let n = requests[0].n;
    let streams = state.submit(requests)?;
    let reply = Reply {
        id,
        created: now(),
        model: served.name,
        n,
        prompts: reply_prompts,
        names: TokenNames {
            tokenizer: app.tokenizer.clone(),
            as_token_ids: common.return_tokens_as_token_ids || answers.tokens_as_token_ids,
        },
        wants_logprobs: sampling.logprobs.is_some(),
        wants_prompt_logprobs: sampling.prompt_logprobs.is_some(),
        return_token_ids: common.return_token_ids,
        style: state.style.clone(),
        include_usage: common.include_usage || answers.force_include_usage,
        continuous_usage: common.continuous_usage || answers.force_include_usage,
    };
    if common.stream {
        let dialect = Dialect::Completion(CompletionStream { echo_only });
        let sources = streams.into_iter().map(Source::Output).collect();
        return Ok(sse::response(reply, dialect, sources, app.server.sse_keep_alive_interval));
    }
    let outputs = try_join_all(streams.into_iter().map(|stream| collect(stream, n))).await?;
    Ok(response::whole(&reply, outputs, echo_only))
}
