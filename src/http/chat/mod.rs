//! `POST /v1/chat/completions`: a conversation in, the next message out.

pub(crate) mod batch;
mod calling;
mod job;
mod messages;
mod request;
mod response;
mod stream;
mod tools;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::error::ApiError;
use super::fields::Fields;
use super::logprobs::TokenNames;
use super::openapi::Operation;
use super::reply::{Reply, ReplyPrompt, now};
use super::sampling::choose_id;
use super::sse::{self, Dialect, Source};
use super::{HttpState, RequestName};

pub(crate) use self::job::{ChatJob, PreparedChat};
pub(crate) use self::messages::read_messages;
pub(crate) use self::request::read_conversation;
pub(crate) use self::response::collect_chat;
pub(crate) use self::stream::ChatWriter;
pub(crate) use self::tools::check_tools;

use self::request::ChatRequest;

/// How `/v1/chat/completions` tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("Answers a conversation")
        .takes(|fields| drop(ChatRequest::read(fields)))
        .answers::<response::ChatCompletion<'_>>()
        .streams("Events whose data are chunks of the answer; the last one's is [DONE]");
}

/// The handler.
pub(crate) async fn chat_completions(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    let mut request = ChatRequest::read(fields)?;
    let conversation = std::mem::take(&mut request.conversation);
    let common = &mut request.common;
    let app = &*state.app;
    let answers = &app.server.answers;
    let served = state.served(common.model.take()).await?;
    let id = choose_id("chatcmpl", name.sent.as_deref(), common.request_id.take().or(name.given))?;
    let role = conversation.answer_role(&answers.response_role).to_owned();
    let echo = common.echo.then(|| conversation.echo(&role)).flatten();
    let wants_logprobs = common.sampling.logprobs.is_some();
    let wants_prompt_logprobs = common.sampling.prompt_logprobs.is_some();
    let job = ChatJob { adapter: served.adapter, ..request.job(id.clone(), conversation) };
    let (common, return_prompt_text) = (request.common, request.return_prompt_text);
    let mut prepared = job.prepare(&state).await?;
    let n = prepared.request.n;
    let text = return_prompt_text.then(|| std::mem::take(&mut prepared.prompt_text));
    let reply = Reply {
        id,
        created: now(),
        model: served.name,
        n,
        prompts: vec![ReplyPrompt { ids: prepared.request.prompt_token_ids.clone(), echo, text }],
        names: TokenNames {
            tokenizer: app.tokenizer.clone(),
            as_token_ids: common.return_tokens_as_token_ids || answers.tokens_as_token_ids,
        },
        wants_logprobs,
        wants_prompt_logprobs,
        return_token_ids: common.return_token_ids,
        style: state.style.clone(),
        include_usage: common.include_usage || answers.force_include_usage,
        continuous_usage: common.continuous_usage || answers.force_include_usage,
    };
    let stream = prepared.submit(&state)?;
    if common.stream {
        let dialect = Dialect::Chat(ChatWriter { role });
        return Ok(sse::response(
            reply,
            dialect,
            vec![Source::Chat(stream)],
            app.server.sse_keep_alive_interval,
        ));
    }
    let answers = collect_chat(stream, n).await?;
    Ok(response::whole(&reply, &answers, &[role]))
}
