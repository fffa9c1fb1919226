//! `POST /v1/chat/completions`: a conversation in, the next message out.

mod messages;
mod request;
mod response;
mod stream;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::TokenNames;
use super::prompt::truncation;
use super::reply::{Reply, ReplyPrompt, collect, now};
use super::sampling::choose_id;
use super::sse::{self, Dialect};
use super::{HttpState, RequestName};
use crate::validate::{RequestFields, generate_request};

pub(crate) use self::request::Conversation;
pub(crate) use self::stream::ChatStream;

use self::request::ChatRequest;

/// The handler.
pub(crate) async fn chat_completions(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    let ChatRequest { common, conversation } = ChatRequest::read(fields)?;
    let app = &*state.app;
    let model = state.served_name(common.model)?;
    let id = choose_id("chatcmpl", name.sent.as_deref(), common.request_id.or(name.given))?;
    let mut sampling = common.sampling;

    let role = conversation.answer_role().to_owned();
    let echo = common.echo.then(|| conversation.echo(&role)).flatten();
    let truncate = truncation(common.truncate, sampling.max_tokens, &app.limits)?;
    let add_special_tokens = common.add_special_tokens.unwrap_or(false);
    let (shared, bad_words) = (state.clone(), common.bad_words);
    let work = move || -> Result<_, ApiError> {
        let text = conversation.render(shared.chat_template()?)?;
        let ids = shared.encoder.encode(&text, add_special_tokens, truncate)?;
        Ok((ids, shared.encoder.bad_words(&bad_words)?))
    };
    let (ids, bad_words) = app.text_pool.run(work).await??;
    sampling.bad_words_token_ids = bad_words;

    let wants_logprobs = sampling.logprobs.is_some();
    let wants_prompt_logprobs = sampling.prompt_logprobs.is_some();
    let fields = RequestFields {
        external_id: id.clone(),
        prompt_token_ids: ids,
        priority: common.priority,
        cache_salt: common.cache_salt,
        bypass_prefix_cache: false,
    };
    let request = generate_request(fields, sampling, &app.limits)?;
    let n = request.n;
    let prompts = vec![ReplyPrompt { ids: request.prompt_token_ids.clone(), echo }];
    let mut streams = state.submit(vec![request])?;
    let reply = Reply {
        id,
        created: now(),
        model,
        n,
        prompts,
        names: TokenNames {
            tokenizer: app.tokenizer.clone(),
            as_token_ids: common.return_tokens_as_token_ids,
        },
        wants_logprobs,
        wants_prompt_logprobs,
        return_token_ids: common.return_token_ids,
        include_usage: common.include_usage,
        continuous_usage: common.continuous_usage,
    };
    if common.stream {
        let dialect = Dialect::Chat(ChatStream { role });
        return Ok(sse::response(reply, dialect, streams, app.server.sse_keep_alive_interval));
    }
    let outputs = vec![collect(streams.remove(0), n).await?];
    Ok(response::whole(&reply, &outputs, &role))
}
