//! `/v1/responses`: OpenAI's newer API. Items in, items out, streamed as typed events; what was answered is
//! kept for a while, so that a later request can go on from it.

pub(crate) mod describe;
mod input;
mod listing;
mod object;
mod request;
mod store;
#[cfg(test)]
mod tests;
mod tools;
mod unsupported;
mod writer;

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response as HttpResponse;
use quire_scheduler::SamplingParams;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::chat::ChatJob;
use super::error::{ApiError, excerpt};
use super::events::{self, EventWriter, Events};
use super::fields::Fields;
use super::logprobs::TokenNames;
use super::reply::{json, now};
use super::sampling::choose_base;
use super::structured::Structured;
use super::{HttpState, RequestName};
use crate::chat::{ChatStream, Conversation};

pub(crate) use self::listing::input_items;
pub(crate) use self::store::ResponseStore;
pub(crate) use self::writer::ResponseWriter;

use self::input::Transcript;
use self::object::{Item, ReasoningSettings, Response, Settings, Status, TextSettings};
use self::request::ResponseRequest;
use self::store::{Cancelled, Stored};
use self::writer::WriterOptions;

/// `POST /v1/responses`.
pub(crate) async fn create(
    State(state): State<Arc<HttpState>>,
    name: RequestName,
    mut fields: Fields,
) -> Result<HttpResponse, ApiError> {
    let mut request = ResponseRequest::read(&mut fields);
    fields.finish_by(&unsupported::RESPONSES)?;
    let served = state.served(request.model.take()).await?;
    let base = choose_base(name.sent.as_deref(), request.request_id.take().or(name.given))?;
    let id = if base.starts_with("resp_") { base } else { format!("resp_{base}") };
    let (history, input) = all_input(&state.responses, &mut request)?;
    let job = chat_job(&mut request, id.clone(), &history, &input)?;
    let job = ChatJob { adapter: served.adapter, ..job };
    let prepared = job.prepare(&state).await?;
    let input = history.into_iter().chain(input).collect();
    let options = WriterOptions {
        names: TokenNames { tokenizer: state.app.tokenizer.clone(), as_token_ids: false },
        wants_logprobs: request.wants_logprobs,
        wants_encrypted_reasoning: request.wants_encrypted_reasoning,
        called_as: std::mem::take(&mut request.tools.called_as),
        num_prompt_tokens: prepared.request.prompt_token_ids.len() as u64,
        store: request.store.then(|| (state.responses.clone(), input)),
    };
    let (streamed, background) = (request.stream, request.background);
    let response = new_response(request, id, served.name, &prepared.request.sampling);
    let stream = prepared.submit(&state)?;
    if streamed {
        let writer = ResponseWriter::new(response, options, Events::default());
        let keep_alive = state.app.server.sse_keep_alive_interval;
        return Ok(events::response(EventWriter::Responses(Box::new(writer)), stream, keep_alive));
    }
    if background {
        return Ok(json(&in_background(&state.responses, response, options, stream)));
    }
    let mut writer = ResponseWriter::new(response, options, Events::discarded());
    collect(&mut writer, stream).await?;
    Ok(json(&writer.into_response()))
}

/// `GET /v1/responses/{id}`.
pub(crate) async fn retrieve(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
    query: Result<Query<RetrieveQuery>, QueryRejection>,
) -> Result<HttpResponse, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::bad_body(rejection.body_text()))?;
    if query.stream == Some(true) {
        let message = "only false is supported: the events of a response are not kept";
        return Err(ApiError::bad_param("stream", message));
    }
    let stored = state.responses.get(&id).ok_or_else(|| ApiError::no_such_response(&id))?;
    Ok(json(&stored.response))
}

/// What may follow the path of [`retrieve`].
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct RetrieveQuery {
    stream: Option<bool>,
}

/// `POST /v1/responses/{id}/cancel`.
pub(crate) async fn cancel(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
) -> Result<HttpResponse, ApiError> {
    match state.responses.cancel(&id) {
        Cancelled::Done(stored) => Ok(json(&stored.response)),
        Cancelled::Unknown => Err(ApiError::no_such_response(&id)),
        Cancelled::NotRunning => {
            // In vLLM's words.
            let message = "Cannot cancel a synchronous response.";
            Err(ApiError::bad_param("response_id", message))
        }
    }
}

/// `DELETE /v1/responses/{id}`.
pub(crate) async fn delete(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
) -> Result<HttpResponse, ApiError> {
    if state.responses.remove(&id) {
        return Ok(json(&Deleted { id, object: "response", deleted: true }));
    }
    Err(ApiError::no_such_response(&id))
}

/// That a response is forgotten.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Deleted {
    id: String,
    object: &'static str,
    deleted: bool,
}

/// The items of earlier responses, and those of this request with its references resolved.
fn all_input(
    store: &ResponseStore,
    request: &mut ResponseRequest,
) -> Result<(Vec<Value>, Vec<Value>), ApiError> {
    let mut input = std::mem::take(&mut request.input);
    for (index, item) in input.iter_mut().enumerate().filter(|(_, item)| item["type"] == "item_reference") {
        let id = item["id"].as_str().unwrap_or_default();
        let Some(found) = store.item(id) else {
            let message = format!("there is no item {:?} in a response that is stored", excerpt(id));
            return Err(ApiError::not_found(message).about(format!("input[{index}].id")));
        };
        *item = to_value(&found);
    }
    let Some(id) = &request.previous_response_id else { return Ok((Vec::new(), input)) };
    let previous =
        store.get(id).ok_or_else(|| ApiError::no_such_response(id).about("previous_response_id"))?;
    let Stored { response, input: earlier } = &*previous;
    if !matches!(response.status, Status::Completed | Status::Incomplete) {
        let message = format!("the response {:?} has no answer to go on from", excerpt(id));
        return Err(ApiError::bad_param("previous_response_id", message));
    }
    let history = earlier.iter().cloned().chain(response.output.iter().map(to_value)).collect();
    Ok((history, input))
}

fn to_value(item: &Item) -> Value {
    serde_json::to_value(item).expect("strings, numbers and lists serialise")
}

/// Takes out of the request what the model is to work on.
fn chat_job(
    request: &mut ResponseRequest,
    id: String,
    history: &[Value],
    input: &[Value],
) -> Result<ChatJob, ApiError> {
    let mut transcript = Transcript::default();
    if let Some(instructions) = &request.instructions {
        transcript.push_system(instructions.clone());
    }
    for item in history {
        transcript.push(item.clone())?;
    }
    for (index, item) in input.iter().enumerate() {
        transcript.push(item.clone()).map_err(|wrong| wrong.within(&format!("input[{index}]")))?;
    }
    if transcript.messages.is_empty() {
        return Err(ApiError::bad_param("input", "at least one item is required"));
    }
    let mut kwargs = std::mem::take(&mut request.chat_template_kwargs);
    if let Some(effort) = &request.effort {
        // It is up to the template what comes of it, as in vLLM.
        kwargs.entry("reasoning_effort").or_insert(effort.as_str().into());
    }
    let tools = std::mem::take(&mut request.tools.functions);
    let structured = request.structured.take().map(Structured::into_parts);
    let (constraint, constraint_param) = structured.unzip();
    Ok(ChatJob {
        id,
        conversation: Conversation {
            messages: transcript.messages,
            tools: Some(tools).filter(|tools| !tools.is_empty()),
            add_generation_prompt: true,
            kwargs,
            ..Conversation::default()
        },
        tool_choice: std::mem::take(&mut request.tools.choice),
        single_tool_call: !request.parallel_tool_calls,
        include_reasoning: request.include_reasoning,
        constraint,
        constraint_param: constraint_param.unwrap_or_default(),
        sampling: std::mem::take(&mut request.sampling),
        priority: request.priority,
        cache_salt: request.cache_salt.take(),
        truncate: request.truncate,
        ..ChatJob::default()
    })
}

/// The response before its first token.
fn new_response(request: ResponseRequest, id: String, model: String, sampling: &SamplingParams) -> Response {
    // By way of text, so that 0.7 stays 0.7.
    let exactly = |value: f32| value.to_string().parse().unwrap_or(f64::from(value));
    let ResponseRequest { tools, echoed, .. } = request;
    let settings = Settings {
        background: request.background,
        instructions: request.instructions,
        max_output_tokens: request.max_output_tokens,
        max_tool_calls: echoed.max_tool_calls,
        metadata: echoed.metadata,
        parallel_tool_calls: request.parallel_tool_calls,
        previous_response_id: request.previous_response_id,
        prompt_cache_key: echoed.prompt_cache_key,
        reasoning: ReasoningSettings { effort: request.effort, summary: request.summary },
        safety_identifier: echoed.safety_identifier,
        service_tier: echoed.service_tier.unwrap_or_else(|| "auto".into()),
        store: request.store,
        temperature: exactly(sampling.temperature),
        text: TextSettings { format: request.format },
        tool_choice: tools.sent_choice,
        tools: tools.sent,
        top_logprobs: request.top_logprobs,
        top_p: exactly(sampling.top_p),
        truncation: if request.truncate.is_some() { "auto" } else { "disabled" },
        user: echoed.user,
    };
    Response {
        id,
        object: "response",
        created_at: now(),
        completed_at: None,
        status: Status::InProgress,
        error: None,
        incomplete_details: None,
        model,
        output: Vec::new(),
        usage: None,
        settings,
    }
}

async fn collect(writer: &mut ResponseWriter, mut stream: ChatStream) -> Result<(), ApiError> {
    while let Some(delta) = stream.next().await {
        writer.take(delta)?;
    }
    Ok(())
}

/// Goes on with the response after the client has its id. As many run as the engine takes.
fn in_background(
    store: &Arc<ResponseStore>,
    response: Response,
    options: WriterOptions,
    stream: ChatStream,
) -> Response {
    let input = options.store.as_ref().map(|(_, input)| input.clone()).unwrap_or_default();
    // Until it has ended: nobody is told how far it is.
    let begun = Response { status: Status::Queued, ..response.clone() };
    let mut writer = ResponseWriter::new(response, options, Events::discarded());
    let (stored, wait) = oneshot::channel();
    let task = tokio::spawn(async move {
        // Its end must not come before its beginning.
        let _ = wait.await;
        if let Err(error) = collect(&mut writer, stream).await {
            writer.fail(&error);
        }
    });
    store.begin(Stored { response: begun.clone(), input }, task.abort_handle());
    let _ = stored.send(());
    begun
}
