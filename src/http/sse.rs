//! Server-sent events: [`SseBody`] turns the output of a request's prompts into frames.
//!
//! This is the hottest code of the front end, so it writes bytes and nothing else: the part of a frame that
//! is the same in a whole stream is serialised once, text is escaped straight into the buffer, and all
//! that is there at one poll leaves in one piece.

use std::convert::Infallible;
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, BytesMut};
use hyper::body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use crate::chat::{ChatDelta, ChatStream};
use crate::engine::{Finish, OutputDelta, OutputStream, PromptOutput};

use super::chat::ChatWriter;
use super::completions::CompletionStream;
use super::error::ApiError;
use super::inference::TokenWriter;
use super::reply::{Reply, check_finish};
use super::request_metrics::RequestMetrics;
use super::usage::Usage;

/// Above this the buffer is handed to the socket before more is added.
const FULL_BYTES: usize = 64 << 10;

/// What every answer with events carries.
pub(crate) const HEADERS: [(HeaderName, &str); 3] = [
    (CONTENT_TYPE, "text/event-stream; charset=utf-8"),
    (CACHE_CONTROL, "no-cache"),
    // Asks nginx not to hold back what it gets.
    (HeaderName::from_static("x-accel-buffering"), "no"),
];

/// A 200 whose body is a stream of events.
///
/// `sources` are in the order of the prompts in `reply`. A silent stream gets a comment every
/// `keep_alive`, unless that is zero.
pub(crate) fn response(
    reply: Reply,
    dialect: Dialect,
    sources: Vec<Source>,
    keep_alive: Duration,
) -> Response {
    let body = SseBody {
        sources: sources.into_iter().map(Some).collect(),
        frames: Frames::new(reply, dialect),
        buffer: BytesMut::new(),
        keep_alive: (!keep_alive.is_zero()).then(|| (keep_alive, Box::pin(sleep(keep_alive)))),
        ended: false,
    };
    (HEADERS, Body::new(body)).into_response()
}

/// Which API's chunks to write.
#[derive(Debug)]
pub(crate) enum Dialect {
    Completion(CompletionStream),
    Tokens(TokenWriter),
    Chat(ChatWriter),
}

/// What one prompt gives.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "there are a few a stream, and a chat has just one")]
pub(crate) enum Source {
    /// Text as it is.
    Output(OutputStream),
    /// Text taken apart.
    Chat(ChatStream),
}

struct SseBody {
    /// One a prompt; `None` once it has finished. Dropping one aborts it.
    sources: Vec<Option<Source>>,
    frames: Frames,
    buffer: BytesMut,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
    ended: bool,
}

impl hyper::body::Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let filled = catch_unwind(AssertUnwindSafe(|| this.fill(cx)));
        if filled.is_err() {
            // Of this request alone; other streams of an HTTP/2 connection live on.
            this.end_with(&ApiError::internal("internal error while writing the stream"));
        }
        if this.buffer.is_empty() && !this.is_silent_for_long(cx) {
            return Poll::Pending;
        }
        if let Some((interval, timer)) = &mut this.keep_alive {
            timer.as_mut().reset(Instant::now() + *interval);
        }
        Poll::Ready(Some(Ok(Frame::data(this.buffer.split().freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

impl SseBody {
    /// Writes all the news there are, and the end if that was the last.
    fn fill(&mut self, cx: &mut Context<'_>) {
        for prompt in 0..self.sources.len() {
            while let Some(source) = &mut self.sources[prompt] {
                let (frames, buffer) = (&mut self.frames, &mut self.buffer);
                let written = match source {
                    Source::Output(stream) => stream
                        .poll_next(cx)
                        .map(|delta| delta.map(|delta| frames.write(prompt, delta, buffer))),
                    Source::Chat(stream) => {
                        stream.poll_next(cx).map(|delta| delta.map(|delta| frames.write_chat(delta, buffer)))
                    }
                };
                match written {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(()))) => (),
                    Poll::Ready(Some(Err(error))) => return self.end_with(&error),
                    Poll::Ready(None) => self.sources[prompt] = None,
                }
                if self.buffer.len() >= FULL_BYTES {
                    // Being ready, we are polled again at once.
                    return;
                }
            }
        }
        if self.sources.iter().all(Option::is_none) {
            self.frames.write_end(&mut self.buffer);
            self.ended = true;
        }
    }

    fn end_with(&mut self, error: &ApiError) {
        self.sources.clear();
        self.buffer.put_slice(b"data: ");
        self.buffer.put_slice(error.to_json().as_bytes());
        self.buffer.put_slice(b"\n\ndata: [DONE]\n\n");
        self.ended = true;
    }

    /// If so, a comment is in the buffer.
    fn is_silent_for_long(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((_, timer)) = &mut self.keep_alive else { return false };
        let elapsed = timer.as_mut().poll(cx).is_ready();
        if elapsed {
            self.buffer.put_slice(b": keep-alive\n\n");
        }
        elapsed
    }
}

/// Writes the chunks of one stream.
struct Frames {
    dialect: Dialect,
    pen: Pen,
    choices: Vec<Choice>,
    usage: Usage,
    /// Of the only choice, once it has ended.
    metrics: Option<RequestMetrics>,
}

/// What is known of one choice.
#[derive(Debug, Default, Clone)]
pub(crate) struct Choice {
    /// Its first chunk has been written.
    pub(crate) started: bool,
    pub(crate) completion_tokens: u64,
    pub(crate) reasoning_tokens: u64,
    pub(crate) cached_tokens: u64,
    /// Characters of tokens in logprobs so far.
    pub(crate) next_offset: usize,
}

impl Frames {
    fn new(reply: Reply, dialect: Dialect) -> Self {
        let choices = vec![Choice::default(); reply.prompts.len() * reply.n as usize];
        let cached_tokens = reply.cached_tokens(0);
        let usage = Usage { prompt_tokens: reply.prompt_tokens(), cached_tokens, ..Usage::default() };
        let object = match &dialect {
            Dialect::Completion(_) => "text_completion",
            Dialect::Tokens(_) => {
                return Self { pen: Pen::of_tokens(reply), dialect, choices, usage, metrics: None };
            }
            Dialect::Chat(_) => "chat.completion.chunk",
        };
        Self { dialect, pen: Pen::new(reply, object), choices, usage, metrics: None }
    }

    /// Writes one delta of prompt number `prompt`, or says that the sequence failed.
    fn write(&mut self, prompt: usize, delta: &mut OutputDelta, out: &mut BytesMut) -> Result<(), ApiError> {
        let index = prompt * self.pen.reply.n as usize + delta.index as usize;
        let hidden = matches!(&self.dialect, Dialect::Completion(stream) if stream.echo_only);
        let num_tokens = if hidden { 0 } else { delta.token_ids.len() };
        let choice = &mut self.choices[index];
        let first = delta.index == 0;
        count(choice, &mut self.usage, first, delta.prompt.as_ref(), num_tokens, &mut delta.finish)?;
        self.metrics = self.pen.reply.metrics(delta.finish.as_ref());
        match &self.dialect {
            Dialect::Completion(stream) => stream.write(&self.pen, prompt, index, choice, delta, out),
            Dialect::Tokens(stream) => stream.write(&self.pen, index, choice, delta, out),
            Dialect::Chat(_) => unreachable!("chats give chat deltas"),
        }
        Ok(())
    }

    /// Writes one delta of the only conversation, or says that the answer failed.
    fn write_chat(&mut self, delta: &mut ChatDelta, out: &mut BytesMut) -> Result<(), ApiError> {
        let Dialect::Chat(stream) = &self.dialect else { unreachable!("completions give no chat deltas") };
        let index = delta.index as usize;
        let choice = &mut self.choices[index];
        let (first, num_tokens) = (index == 0, delta.token_ids.len());
        count(choice, &mut self.usage, first, delta.prompt.as_ref(), num_tokens, &mut delta.finish)?;
        self.metrics = self.pen.reply.metrics(delta.finish.as_ref());
        let reasoning_tokens = u64::from(delta.num_reasoning_tokens);
        self.usage.reasoning_tokens += reasoning_tokens - choice.reasoning_tokens;
        choice.reasoning_tokens = reasoning_tokens;
        stream.write(&self.pen, 0, index, choice, delta, out);
        Ok(())
    }

    fn write_end(&self, out: &mut BytesMut) {
        if self.pen.reply.include_usage {
            out.put_slice(&self.pen.envelope);
            out.put_slice(b"],\"usage\":");
            put_json(out, &self.usage);
            if !matches!(self.dialect, Dialect::Tokens(_)) {
                self.pen.write_fingerprint(out);
                if let Some(metrics) = &self.metrics {
                    out.put_slice(b",\"metrics\":");
                    put_json(out, metrics);
                }
            }
            out.put_slice(b"}\n\n");
        }
        out.put_slice(b"data: [DONE]\n\n");
    }
}

/// Adds a delta to what is known of its choice and of the request. `first` = the prompt's first choice, with
/// which the prompt is counted.
fn count(
    choice: &mut Choice,
    usage: &mut Usage,
    first: bool,
    prompt: Option<&PromptOutput>,
    num_tokens: usize,
    finish: &mut Option<Finish>,
) -> Result<(), ApiError> {
    if let Some(ended) = finish.take() {
        *finish = Some(check_finish(ended)?);
    }
    if let Some(prompt) = prompt {
        choice.cached_tokens = u64::from(prompt.num_cached_tokens);
        if let Some(cached_tokens) = usage.cached_tokens.as_mut().filter(|_| first) {
            *cached_tokens += choice.cached_tokens;
        }
    }
    choice.completion_tokens += num_tokens as u64;
    usage.completion_tokens += num_tokens as u64;
    Ok(())
}

/// Writes what all chunks of a stream have in common.
#[derive(Debug)]
pub(crate) struct Pen {
    pub(crate) reply: Reply,
    /// From `data: ` to `"choices":[`.
    envelope: Vec<u8>,
}

impl Pen {
    pub(crate) fn new(reply: Reply, object: &str) -> Self {
        #[derive(Serialize)]
        struct Head<'a> {
            id: &'a str,
            object: &'a str,
            created: i64,
            model: &'a str,
        }
        let envelope = envelope(&Head { id: &reply.id, object, created: reply.created, model: &reply.model });
        Self { reply, envelope }
    }

    /// For streams of tokens, whose chunks say nothing of themselves but the request's id.
    fn of_tokens(reply: Reply) -> Self {
        #[derive(Serialize)]
        struct Head<'a> {
            request_id: &'a str,
        }
        let envelope = envelope(&Head { request_id: &reply.id });
        Self { reply, envelope }
    }

    /// Whether a delta without text, logprobs or an end need not be written.
    pub(crate) fn may_skip(&self, delta: &OutputDelta) -> bool {
        let silent = delta.text.is_empty() && delta.logprobs.is_empty() && delta.finish.is_none();
        silent && self.may_skip_tokens()
    }

    /// Whether news that are tokens and nothing else need not be written.
    pub(crate) fn may_skip_tokens(&self) -> bool {
        !self.reply.return_token_ids && !self.reply.continuous_usage
    }

    /// Up to and with the index of the choice.
    pub(crate) fn begin(&self, index: usize, out: &mut BytesMut) {
        out.put_slice(&self.envelope);
        out.put_slice(b"{\"index\":");
        put_int(out, index as u64);
    }

    fn write_fingerprint(&self, out: &mut BytesMut) {
        if let Some(fingerprint) = &self.reply.style.fingerprint {
            out.put_slice(b",\"system_fingerprint\":");
            put_json(out, &**fingerprint);
        }
    }

    /// From the end of the choices list on. `last` = the choice has ended.
    pub(crate) fn end(&self, prompt: usize, choice: &Choice, last: bool, out: &mut BytesMut) {
        if last {
            self.write_fingerprint(out);
        }
        if self.reply.continuous_usage {
            let usage = Usage {
                prompt_tokens: self.reply.prompts[prompt].ids.len() as u64,
                cached_tokens: self.reply.cached_tokens(choice.cached_tokens),
                completion_tokens: choice.completion_tokens,
                reasoning_tokens: choice.reasoning_tokens,
            };
            out.put_slice(b",\"usage\":");
            put_json(out, &usage);
        } else if self.reply.include_usage {
            out.put_slice(b",\"usage\":null");
        }
        out.put_slice(b"}\n\n");
    }
}

/// A frame up to `"choices":[`, beginning with the fields of `head`.
fn envelope(head: &impl Serialize) -> Vec<u8> {
    let mut envelope = b"data: ".to_vec();
    envelope.extend(serde_json::to_vec(head).expect("strings and numbers serialise"));
    envelope.pop();
    envelope.extend_from_slice(b",\"choices\":[");
    envelope
}

/// Appends a value as JSON.
pub(crate) fn put_json(out: &mut BytesMut, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out.writer(), value).expect("a buffer in memory can be written to");
}

fn put_int(out: &mut BytesMut, value: u64) {
    match u8::try_from(value) {
        Ok(digit @ 0..=9) => out.put_u8(b'0' + digit),
        _ => write!(out, "{value}").expect("a buffer in memory can be written to"),
    }
}
