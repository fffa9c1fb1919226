//! Ollama's API, as far as it is about using a model: chat, generate, embed, and what is there to be used. Clients
//! made for Ollama work with Quire by its address alone.
//!
//! A server has one model, loaded for as long as it lives, so the routes that fetch, make and remove models
//! answer 501, and `keep_alive` is accepted and changes nothing.

mod answer;
pub(crate) mod describe;
pub(crate) mod embed;
mod error;
pub(crate) mod models;
mod ndjson;
mod options;
mod request;

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::Uri;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};

use quire_scheduler::Adapter;

use self::answer::{AnswerWriter, Route};
use self::error::OllamaError;
use self::request::{OllamaFields, OllamaRequest, read_chat, read_generate};
use super::chat::{ChatJob, PreparedChat};
use super::error::{ApiError, excerpt};
use super::logprobs::TokenNames;
use super::sampling::choose_id;
use super::{HttpState, RequestName};

/// `POST /api/chat`: a conversation in, the next message out.
pub(crate) async fn chat(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    OllamaFields(mut fields): OllamaFields,
) -> Result<Response, OllamaError> {
    let request = read_chat(&mut fields);
    fields.finish()?;
    answer(&state, name, request, Route::Chat).await
}

/// `POST /api/generate`: a prompt in, the answer out.
pub(crate) async fn generate(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    OllamaFields(mut fields): OllamaFields,
) -> Result<Response, OllamaError> {
    let request = read_generate(&mut fields);
    fields.finish()?;
    answer(&state, name, request, Route::Generate).await
}

/// The routes that fetch, make and remove models: a model comes with the server and goes with it.
pub(crate) async fn managed(uri: Uri) -> OllamaError {
    let path = excerpt(uri.path());
    let message =
        format!("{path} is not supported: a server has the model that it was started with, and no other");
    ApiError::not_implemented(message).into()
}

async fn answer(
    state: &Arc<HttpState>,
    name: RequestName,
    request: OllamaRequest,
    route: Route,
) -> Result<Response, OllamaError> {
    let started = Instant::now();
    let OllamaRequest { model, stream, job } = request;
    let (model, adapter) = served(state, model).await?;
    let names = TokenNames { tokenizer: state.app.tokenizer.clone(), as_token_ids: false };
    let Some(job) = job else {
        let mut writer = AnswerWriter::new(route, model, names, false, 0, started);
        return Ok(whole(|out| writer.write_end("load", out)));
    };
    let wants_logprobs = job.sampling.logprobs.is_some();
    let id = choose_id("ollama", name.sent.as_deref(), name.given)?;
    // As in Ollama: not a wish that may come to nothing.
    if job.conversation.kwargs.get("enable_thinking") == Some(&true.into())
        && state.app.chat.reasoning.is_none()
    {
        let message = format!("\"{model}\" does not support thinking");
        return Err(ApiError::bad_param("think", message).into());
    }
    let prepared = ChatJob { id, adapter, ..job }.prepare(state).await?;
    let prompt_eval_count = prepared.request.prompt_token_ids.len();
    let mut writer = AnswerWriter::new(route, model, names, wants_logprobs, prompt_eval_count, started);
    if stream {
        return Ok(ndjson::response(prepared.submit(state)?, writer));
    }
    let done_reason = collect(prepared, state, &mut writer).await?;
    Ok(whole(|out| writer.write_end(done_reason, out)))
}

async fn collect(
    prepared: PreparedChat,
    state: &HttpState,
    writer: &mut AnswerWriter,
) -> Result<&'static str, OllamaError> {
    let mut stream = prepared.submit(state)?;
    while let Some(delta) = stream.next().await {
        if let Some(done_reason) = writer.take(delta)? {
            return Ok(done_reason);
        }
    }
    Err(ApiError::internal("the request ended without saying so").into())
}

fn whole(write: impl FnOnce(&mut Vec<u8>)) -> Response {
    let mut body = Vec::new();
    write(&mut body);
    ([(CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

/// The name that the client used, if the model has it, or the adapter of that name: `name` and `name:latest` are the same to Ollama.
async fn served(state: &HttpState, asked: Option<String>) -> Result<(String, Option<Adapter>), OllamaError> {
    let Some(asked) = asked.filter(|name| !name.is_empty()) else {
        return Err(ApiError::bad_param("model", "model is required").into());
    };
    let short = asked.strip_suffix(":latest").unwrap_or(&asked);
    let Some(name) = [&*asked, short].into_iter().find(|name| state.app.serves(name)) else {
        return Err(OllamaError::unknown_model(&asked));
    };
    let adapter = state.app.adapter_of(name).await?;
    Ok((asked, adapter))
}
