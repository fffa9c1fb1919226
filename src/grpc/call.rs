//! What all calls that generate have in common, whatever their dialect: the metadata they bear, their way to the
//! engine, their deadline, and that a panic ends one call and no other.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, Stream, stream};
use quire_scheduler::TokenId;
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Response, Status};

use super::status::{FieldPath, invalid, invalid_field, not_taken, not_tokenized};
use crate::app::App;
use crate::engine::{FinishError, FinishKind, GenerateRequest, OutputDelta, OutputStream};
use crate::text::TextError;

const REQUEST_ID: &str = "x-request-id";
const DATA_PARALLEL_RANK: &str = "x-data-parallel-rank";

/// How much earlier than the client's deadline the server stops, so that its word is the one that arrives.
const DEADLINE_MARGIN: Duration = Duration::from_millis(3);

/// The messages of a streamed answer.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the metadata of a call says.
#[derive(Debug)]
pub(super) struct Caller {
    /// The client's name for the request, or ours.
    pub(super) request_id: String,
    /// To be sent back.
    echo: Option<MetadataValue<Ascii>>,
    deadline: Option<Instant>,
}

impl Caller {
    /// Reads the metadata. The name of the request is `request_id`, `x-request-id` or a new one.
    pub(super) fn read(metadata: &MetadataMap, request_id: String) -> Result<Self, Status> {
        check_rank(metadata)?;
        let deadline = timeout(metadata)?.map(|timeout| Instant::now() + timeout);
        let echo = metadata.get(REQUEST_ID).cloned();
        let request_id = [Some(request_id), echo.as_ref().and_then(|id| id.to_str().ok().map(String::from))]
            .into_iter()
            .flatten()
            .find(|id| !id.is_empty())
            .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        Ok(Self { request_id, echo, deadline })
    }

    /// Waits for something other than a [`Generation`], until the deadline.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        match self.deadline {
            None => Ok(work.await),
            Some(deadline) => timeout_at(deadline, work).await.map_err(|_| Failure::Deadline.into()),
        }
    }

    /// The answer, with `x-request-id` if the call had one.
    pub(super) fn answer<T>(self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        if let Some(id) = self.echo {
            response.metadata_mut().insert(REQUEST_ID, id);
        }
        response
    }

    /// Hands a checked request to the engine.
    pub(super) fn submit(&self, app: &App, request: GenerateRequest) -> Result<Generation, Status> {
        if app.server.enable_log_requests {
            tracing::info!(
                request_id = &*request.external_id,
                prompt_tokens = request.prompt_token_ids.len(),
                n = request.n,
                sampling = ?request.sampling,
                "gRPC request"
            );
        }
        let prompt_token_ids = request.prompt_token_ids.clone();
        let stream = app.engine.submit(request).map_err(|error| {
            app.metrics.on_refusal(&error);
            not_taken(&error)
        })?;
        let deadline = self.deadline.map(|at| Box::pin(sleep_until(at)));
        Ok(Generation { stream, prompt_token_ids, deadline })
    }
}

/// A request in the engine. Dropping it aborts what has not finished.
#[derive(Debug)]
pub(super) struct Generation {
    stream: OutputStream,
    pub(super) prompt_token_ids: Arc<[TokenId]>,
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Why a request that was taken gives no more.
#[derive(Debug)]
pub(super) enum Failure {
    /// The client's deadline has passed.
    Deadline,
    /// It failed in the engine.
    Engine(FinishError),
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Deadline => Status::deadline_exceeded("the call's deadline has passed"),
            Failure::Engine(FinishError::OfRequest(reason)) => Status::invalid_argument(&*reason),
            Failure::Engine(FinishError::OfServer(reason)) => Status::internal(&*reason),
        }
    }
}

impl Generation {
    /// News of the request; `None` once all its sequences have ended.
    pub(super) async fn next(&mut self) -> Result<Option<&mut OutputDelta>, Failure> {
        let delta = match &mut self.deadline {
            None => self.stream.next().await,
            Some(deadline) => tokio::select! {
                biased;
                () = deadline => return Err(Failure::Deadline),
                delta = self.stream.next() => delta,
            },
        };
        if let Some(finish) = delta.as_ref().and_then(|delta| delta.finish.as_ref())
            && finish.kind == FinishKind::Error
        {
            let unknown = || FinishError::OfServer("the request failed".into());
            return Err(Failure::Engine(finish.error.clone().unwrap_or_else(unknown)));
        }
        Ok(delta)
    }
}

/// Tokens of a prompt's text, special tokens of the model added. `field` is where the text was.
pub(super) async fn tokenize(app: &App, text: String, field: &str) -> Result<Vec<TokenId>, Status> {
    let tokenizer = app.tokenizer.clone();
    let encoded = app.text_pool.run(move || tokenizer.encode(&text, true)).await;
    encoded.and_then(|tokens| tokens).map_err(|error: TextError| not_tokenized(&error, field))
}

/// Checks a request against the limits; `path` says where [`crate::validate`]'s names are in this dialect.
pub(super) fn checked(
    app: &App,
    fields: crate::validate::RequestFields,
    sampling: crate::validate::SamplingFields,
    path: FieldPath,
) -> Result<GenerateRequest, Status> {
    let checked = crate::validate::generate_request(fields, sampling, &app.limits);
    checked.map_err(|error| invalid(&error, path))
}

/// Keeps the last tokens of a prompt.
pub(super) fn truncate(prompt: &mut Vec<TokenId>, keep: usize) {
    let excess = prompt.len().saturating_sub(keep);
    prompt.drain(..excess);
}

/// The streamed answer whose messages `next` gives until it has no more. An error is the last of them: after it
/// there is no state to go on with, and dropping that aborts what has not finished.
pub(super) fn messages<C, T, N>(call: C, next: impl Fn(C) -> N + Send + 'static) -> Messages<T>
where
    C: Send + 'static,
    T: Send + 'static,
    N: Future<Output = (Result<Option<T>, Status>, C)> + Send + 'static,
{
    Box::pin(stream::unfold((Some(call), next), |(call, next)| async move {
        match guarded(next(call?).map(Ok)).await {
            Ok((Ok(Some(message)), call)) => Some((Ok(message), (Some(call), next))),
            Ok((Ok(None), _)) => None,
            Ok((Err(status), _)) | Err(status) => Some((Err(status), (None, next))),
        }
    }))
}

/// Turns a panic into a status, so that it ends this call and no other.
pub(super) async fn guarded<T>(work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let ended = AssertUnwindSafe(work).catch_unwind().await;
    ended.unwrap_or_else(|_| Err(Status::internal("internal error while answering this request")))
}

/// There is one engine: rank 0.
fn check_rank(metadata: &MetadataMap) -> Result<(), Status> {
    let Some(value) = metadata.get(DATA_PARALLEL_RANK) else { return Ok(()) };
    match value.to_str().ok().and_then(|text| text.parse::<u32>().ok()) {
        Some(rank) => check_rank_number(DATA_PARALLEL_RANK, i64::from(rank)),
        None => Err(invalid_field(DATA_PARALLEL_RANK, "not a number")),
    }
}

/// The same, of a number in a message.
pub(super) fn check_rank_number(field: &str, rank: i64) -> Result<(), Status> {
    match rank {
        0 => Ok(()),
        _ => Err(invalid_field(field, &format!("rank {rank} does not exist; there is only 0"))),
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
