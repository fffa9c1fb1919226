//! `vllm.Inference`: one call is one request to the engine; the answer is read from its
//! [`OutputStream`] as fast as the client takes it, with nothing in between.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, stream};
use quire_proto::vllm::generate_request::Prompt;
use quire_proto::vllm::{GenerateRequest, GenerateResponse, inference_server};
use quire_scheduler::TokenId;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Request, Response, Status};

use super::status::{invalid, invalid_field, not_taken, not_tokenized};
use super::structured;
use super::translate::{self, Shape};
use crate::app::App;
use crate::engine::{FinishKind, OutputDelta, OutputStream, PromptOutput, SubmitError};
use crate::validate::generate_request;

const REQUEST_ID: &str = "x-request-id";
const DATA_PARALLEL_RANK: &str = "x-data-parallel-rank";

/// How much earlier than the client's deadline the server stops: tonic's own timer, which covers only
/// unary calls and answers with CANCELLED, must not be first.
const DEADLINE_MARGIN: Duration = Duration::from_millis(3);

/// The service.
#[derive(Debug)]
pub(super) struct Inference(Arc<App>);

impl Inference {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self(app)
    }
}

#[tonic::async_trait]
impl inference_server::Inference for Inference {
    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<GenerateResponse>, Status> {
        if request.get_ref().sampling.is_some_and(|sampling| sampling.num_sequences > 1) {
            let message = "one answer holds one sequence; use GenerateStream for more";
            return Err(invalid_field("sampling.num_sequences", message));
        }
        let (mut call, request_id) = accept(&self.0, request).await?;
        let whole = guarded(call.whole()).await?;
        Ok(with_request_id(whole, request_id))
    }

    type GenerateStreamStream = Pin<Box<dyn Stream<Item = Result<GenerateResponse, Status>> + Send>>;

    async fn generate_stream(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (call, request_id) = accept(&self.0, request).await?;
        let messages = stream::unfold(Some(Box::new(call)), |call| async move {
            let mut call = call?;
            // After an error there is no state to go on with: dropping it aborts what has not finished.
            match guarded(call.next()).await {
                Ok(Some(message)) => Some((Ok(message), Some(call))),
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(with_request_id(Box::pin(messages), request_id))
    }
}

/// Turns a panic into a status, so that it ends this call and no other.
async fn guarded<T>(work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    ended.unwrap_or_else(|_| Err(Status::internal("internal error while answering this request")))
}

fn with_request_id<T>(message: T, request_id: Option<MetadataValue<Ascii>>) -> Response<T> {
    let mut response = Response::new(message);
    if let Some(id) = request_id {
        response.metadata_mut().insert(REQUEST_ID, id);
    }
    response
}

/// Checks a call and hands it to the engine. Also gives the `x-request-id` to echo.
async fn accept(
    app: &App,
    request: Request<GenerateRequest>,
) -> Result<(Call, Option<MetadataValue<Ascii>>), Status> {
    let (metadata, _, mut request) = request.into_parts();
    check_rank(&metadata)?;
    let deadline = timeout(&metadata)?.map(|timeout| Instant::now() + timeout);
    let echo = metadata.get(REQUEST_ID).cloned();
    let request_id = std::mem::take(&mut request.request_id);
    let request_id = [Some(request_id), echo.as_ref().and_then(|id| id.to_str().ok().map(String::from))]
        .into_iter()
        .flatten()
        .find(|id| !id.is_empty())
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let call = guarded(submit(app, request, request_id, deadline)).await?;
    Ok((call, echo))
}

async fn submit(
    app: &App,
    mut request: GenerateRequest,
    request_id: String,
    deadline: Option<Instant>,
) -> Result<Call, Status> {
    if !app.model.is_served(&request.model) {
        let message = format!("model {:?} is not served here; {:?} is", request.model, app.model.name());
        return Err(Status::not_found(message));
    }
    translate::refuse_unsupported(&request)?;
    let kind = request.decoding.as_mut().and_then(|decoding| decoding.structured_output.take());
    let constraint = structured::constraint(kind)?;
    let (mut sampling, shape) = translate::sampling(&mut request, &app.limits.defaults)?;
    sampling.grammar = structured::compile(app, constraint).await?;
    let prompt = tokenize(app, request.prompt.take()).await?;
    let session_id = request.session_id.take();
    let fields = translate::request_fields(request, request_id, prompt);
    let request = generate_request(fields, sampling, &app.limits).map_err(|error| invalid(&error))?;
    if app.server.enable_log_requests {
        tracing::info!(
            request_id = &*request.external_id,
            session_id,
            prompt_tokens = request.prompt_token_ids.len(),
            n = request.n,
            sampling = ?request.sampling,
            "gRPC request"
        );
    }
    let prompt_token_ids = request.prompt_token_ids.clone();
    let n = request.n;
    let stream = app.engine.submit(request).map_err(|error| {
        if let SubmitError::Overloaded { .. } = error {
            app.metrics.on_rejection("max_num_queued_reqs");
        }
        not_taken(&error)
    })?;
    Ok(Call {
        stream,
        shape,
        prompt_token_ids,
        num_cached_tokens: vec![0; n as usize],
        prompt_sent: false,
        ready: VecDeque::new(),
        deadline: deadline.map(|at| Box::pin(sleep_until(at))),
    })
}

async fn tokenize(app: &App, prompt: Option<Prompt>) -> Result<Vec<TokenId>, Status> {
    match prompt {
        Some(Prompt::TokenIds(tokens)) => Ok(tokens.ids),
        Some(Prompt::Text(text)) => {
            let tokenizer = app.tokenizer.clone();
            let encoded = app.text_pool.run(move || tokenizer.encode(&text, true)).await;
            encoded.and_then(|tokens| tokens).map_err(|error| not_tokenized(&error))
        }
        None => Err(invalid_field("prompt", "one of text and token_ids is needed")),
    }
}

/// One request on its way back.
struct Call {
    stream: OutputStream,
    shape: Shape,
    prompt_token_ids: Arc<[TokenId]>,
    /// By sequence; known from its first delta, sent with its last.
    num_cached_tokens: Vec<u32>,
    prompt_sent: bool,
    /// Messages to send before the engine is asked again; while the prompt's facts have not been sent,
    /// messages that must wait for them.
    ready: VecDeque<GenerateResponse>,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Call {
    /// The next message of a stream; `None` after the last.
    async fn next(&mut self) -> Result<Option<GenerateResponse>, Status> {
        loop {
            if self.prompt_sent
                && let Some(message) = self.ready.pop_front()
            {
                return Ok(Some(message));
            }
            let Some(delta) = next_delta(&mut self.stream, &mut self.deadline).await? else {
                return Ok(None);
            };
            let prompt = delta.prompt.take();
            if let Some(prompt) = &prompt {
                self.num_cached_tokens[delta.index as usize] = prompt.num_cached_tokens;
            }
            let num_cached_tokens = self.num_cached_tokens[delta.index as usize];
            let is_first = delta.index == 0 || !self.shape.needs_prompt_logprobs();
            let outputs = self.shape.sequence_output(delta, num_cached_tokens);
            let message = GenerateResponse { prompt_info: None, outputs: Some(outputs) };
            if self.prompt_sent {
                return Ok(Some(message));
            }
            self.ready.push_back(message);
            if is_first {
                self.prompt_sent = true;
                let info = self.shape.prompt_info(&self.prompt_token_ids, &prompt.unwrap_or_default());
                return Ok(Some(GenerateResponse { prompt_info: Some(info), outputs: None }));
            }
        }
    }

    /// All of sequence 0 in one message.
    async fn whole(&mut self) -> Result<GenerateResponse, Status> {
        let mut prompt = PromptOutput::default();
        let mut whole = quire_proto::vllm::SequenceOutput::default();
        while let Some(delta) = next_delta(&mut self.stream, &mut self.deadline).await? {
            if let Some(first) = delta.prompt.take() {
                prompt = first;
            }
            translate::append(&mut whole, self.shape.sequence_output(delta, prompt.num_cached_tokens));
        }
        let prompt_info = self.shape.prompt_info(&self.prompt_token_ids, &prompt);
        Ok(GenerateResponse { prompt_info: Some(prompt_info), outputs: Some(whole) })
    }
}

/// News of the request; an error if it failed or took too long.
async fn next_delta<'a>(
    stream: &'a mut OutputStream,
    deadline: &mut Option<Pin<Box<Sleep>>>,
) -> Result<Option<&'a mut OutputDelta>, Status> {
    let delta = match deadline {
        None => stream.next().await,
        Some(deadline) => tokio::select! {
            biased;
            () = deadline => return Err(Status::deadline_exceeded("the call's deadline has passed")),
            delta = stream.next() => delta,
        },
    };
    if let Some(finish) = delta.as_ref().and_then(|delta| delta.finish.as_ref())
        && finish.kind == FinishKind::Error
    {
        return Err(Status::internal(finish.error.as_deref().unwrap_or("the request failed")));
    }
    Ok(delta)
}

/// There is one engine: rank 0.
fn check_rank(metadata: &MetadataMap) -> Result<(), Status> {
    let Some(value) = metadata.get(DATA_PARALLEL_RANK) else { return Ok(()) };
    match value.to_str().ok().and_then(|text| text.parse::<u32>().ok()) {
        Some(0) => Ok(()),
        Some(rank) => {
            Err(invalid_field(DATA_PARALLEL_RANK, &format!("rank {rank} does not exist; there is only 0")))
        }
        None => Err(invalid_field(DATA_PARALLEL_RANK, "not a number")),
    }
}

/// `grpc-timeout` (gRPC over HTTP/2: at most 8 digits and a unit), less [`DEADLINE_MARGIN`].
fn timeout(metadata: &MetadataMap) -> Result<Option<Duration>, Status> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse_timeout);
    match parsed {
        Some(timeout) => Ok(Some(timeout.saturating_sub(DEADLINE_MARGIN))),
        None => Err(invalid_field("grpc-timeout", "not a timeout; say 1 to 8 digits and H, M, S, m, u or n")),
    }
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}
