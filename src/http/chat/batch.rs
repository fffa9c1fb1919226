//! `POST /v1/chat/completions/batch`: several conversations in, the next message of each out, in one answer.
//! Choice `i * n + j` is the `j`th answer to conversation `i`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::future::try_join_all;

use super::ChatJob;
use super::request::BatchRequest;
use super::response::{collect_chat, whole};
use crate::chat::Conversation;
use crate::http::error::ApiError;
use crate::http::fields::Fields;
use crate::http::logprobs::TokenNames;
use crate::http::openapi::Operation;
use crate::http::reply::{Reply, ReplyPrompt, now};
use crate::http::sampling::choose_id;
use crate::http::{HttpState, RequestName};

/// How the route tells of itself.
pub(crate) fn describe(op: &mut Operation<'_>) {
    op.about("Answers several conversations")
        .takes(|fields| drop(BatchRequest::read(fields)))
        .answers::<super::response::ChatCompletion<'_>>();
}

/// The handler.
pub(crate) async fn batch(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    fields: Fields,
) -> Result<Response, ApiError> {
    let BatchRequest { request, mut conversations } = BatchRequest::read(fields)?;
    let common = &request.common;
    let served = state.served(common.model.clone()).await?;
    let id = choose_id("chatcmpl", name.sent.as_deref(), common.request_id.clone().or(name.given))?;
    let with = |messages| Conversation { messages, ..request.conversation.clone() };
    let conversations: Vec<_> = conversations.drain(..).map(with).collect();
    let role = &state.app.server.answers.response_role;
    let roles: Vec<_> = conversations.iter().map(|chat| chat.answer_role(role).to_owned()).collect();
    let echo = |(chat, role): (&Conversation, &String)| common.echo.then(|| chat.echo(role)).flatten();
    let echoes: Vec<_> = conversations.iter().zip(&roles).map(echo).collect();
    let jobs = conversations.into_iter().map(|conversation| {
        let job = request.job(id.clone(), conversation);
        ChatJob { adapter: served.adapter.clone(), ..job }
    });
    let prepared = try_join_all(jobs.map(|job| job.prepare(&state))).await?;
    let n = prepared[0].request.n;
    let prompt = |(chat, echo): (&super::PreparedChat, Option<String>)| ReplyPrompt {
        ids: chat.request.prompt_token_ids.clone(),
        echo,
        text: None,
    };
    let prompts = prepared.iter().zip(echoes).map(prompt).collect();
    // Those taken before a refusal are aborted as their streams are dropped.
    let streams = prepared.into_iter().map(|chat| chat.submit(&state)).collect::<Result<Vec<_>, _>>()?;
    let answers = try_join_all(streams.into_iter().map(|stream| collect_chat(stream, n))).await?;
    let reply = Reply {
        id,
        created: now(),
        model: served.name,
        n,
        prompts,
        names: TokenNames {
            tokenizer: state.app.tokenizer.clone(),
            as_token_ids: common.return_tokens_as_token_ids || state.app.server.answers.tokens_as_token_ids,
        },
        wants_logprobs: common.sampling.logprobs.is_some(),
        wants_prompt_logprobs: false,
        return_token_ids: false,
        style: state.style.clone(),
        include_usage: false,
        continuous_usage: false,
    };
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    Ok(whole(&reply, &answers, &roles))
}
