//! `/v1/messages`: Anthropic's API, as its SDKs and Claude Code speak it.

mod conversation;
mod error;
mod message;
mod request;
#[cfg(test)]
mod tests;
mod unsupported;

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use super::chat::ChatJob;
use super::error::ApiError;
use super::events::{self, EventWriter, Events};
use super::fields::Fields;
use super::openapi::Operation;
use super::reply::json;
use super::sampling::choose_base;
use super::structured::Structured;
use super::{HttpState, RequestName};
use crate::chat::ToolChoice;

pub(crate) use self::error::shape_errors;
pub(crate) use self::message::MessageWriter;

use self::error::ErrorBody;
use self::message::Message;
use self::request::MessageRequest;

/// How `/v1/messages` tells of itself.
pub(crate) fn describe_messages(op: &mut Operation<'_>) {
    op.errors_are::<ErrorBody<'_>>()
        .about("Answers a conversation, in Anthropic's way")
        .takes(|mut fields| drop(MessageRequest::read(&mut fields)))
        .answers::<Message>()
        .streams("Events named by their type, from message_start to message_stop");
}

/// How `/v1/messages/count_tokens` tells of itself.
pub(crate) fn describe_count_tokens(op: &mut Operation<'_>) {
    op.errors_are::<ErrorBody<'_>>()
        .about("How many tokens a conversation has")
        .takes(|mut fields| drop(MessageRequest::read_prompt(&mut fields)))
        .answers::<TokenCount>();
}

/// `POST /v1/messages`.
pub(crate) async fn messages(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let mut request = MessageRequest::read(&mut fields);
    fields.finish_by(&unsupported::MESSAGES)?;
    if state.app.limits.thinking.is_none() {
        // Clients set a budget for any model; one that does not think keeps to it.
        request.sampling.thinking_token_budget = None;
    }
    let served = state.served(request.model).await?;
    let base = choose_base(name.sent.as_deref(), request.request_id.or(name.given))?;
    let id = if base.starts_with("msg_") { base } else { format!("msg_{base}") };
    let (constraint, constraint_param) = request.structured.map(Structured::into_parts).unzip();
    let job = ChatJob {
        id: id.clone(),
        conversation: request.conversation,
        tool_choice: request.tool_choice,
        single_tool_call: request.single_tool_call,
        include_reasoning: request.include_reasoning,
        constraint,
        constraint_param: constraint_param.unwrap_or_default(),
        sampling: request.sampling,
        priority: request.priority,
        cache_salt: request.cache_salt,
        adapter: served.adapter,
        ..ChatJob::default()
    };
    let prepared = job.prepare(&state).await?;
    let num_prompt_tokens = prepared.request.prompt_token_ids.len() as u64;
    let mut stream = prepared.submit(&state)?;
    if request.stream {
        let writer = MessageWriter::new(id, served.name, num_prompt_tokens, Events::default());
        let keep_alive = state.app.server.sse_keep_alive_interval;
        return Ok(events::response(EventWriter::Messages(Box::new(writer)), stream, keep_alive));
    }
    let mut writer = MessageWriter::new(id, served.name, num_prompt_tokens, Events::discarded());
    while let Some(delta) = stream.next().await {
        writer.take(delta)?;
    }
    Ok(json(&writer.into_message()))
}

/// `POST /v1/messages/count_tokens`.
pub(crate) async fn count_tokens(
    State(state): State<Arc<HttpState>>,
    mut fields: Fields,
) -> Result<Response, ApiError> {
    let request = MessageRequest::read_prompt(&mut fields);
    // The rest of a whole request may be there, too.
    fields.int("max_tokens");
    fields.finish_by(&unsupported::MESSAGES)?;
    state.check_model(request.model.as_deref())?;
    let shared = state.clone();
    let mut conversation = request.conversation;
    state.app.chat.complete(&mut conversation, request.tool_choice != ToolChoice::None);
    let work = move || -> Result<_, ApiError> {
        let text = shared.render(&conversation)?;
        shared.encoder.encode(&text, false, None)
    };
    let ids = state.app.text_pool.run(work).await??;
    Ok(json(&TokenCount { input_tokens: ids.len() as u64 }))
}

/// How many tokens a prompt has.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct TokenCount {
    input_tokens: u64,
}
