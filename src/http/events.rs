//! Server-sent events with names: [`EventBody`], for the APIs whose streams are made of typed events
//! (`event: TYPE`, `data: {"type": TYPE, ...}`) rather than of chunks.
//!
//! What the events are is said by a writer of the API; this file owns the frames, the silence between them
//! and the ends. A failure after the head has gone out becomes an event, never a broken connection.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, BytesMut};
use hyper::body::Frame;
use serde::Serialize;
use tokio::time::{Instant, Sleep, sleep};

use crate::chat::{ChatDelta, ChatStream};

use super::anthropic::MessageWriter;
use super::error::ApiError;
use super::responses::ResponseWriter;
use super::sse;

/// Above this the buffer is handed to the socket before more is added.
const FULL_BYTES: usize = 64 << 10;

/// A 200 whose body is a stream of events. A silent stream gets a sign of life every `keep_alive`, unless
/// that is zero.
pub(crate) fn response(mut writer: EventWriter, stream: ChatStream, keep_alive: Duration) -> Response {
    writer.begin();
    let body = EventBody {
        stream: Some(stream),
        writer,
        keep_alive: (!keep_alive.is_zero()).then(|| (keep_alive, Box::pin(sleep(keep_alive)))),
    };
    (sse::HEADERS, Body::new(body)).into_response()
}

/// Which API's events to write.
#[derive(Debug)]
pub(crate) enum EventWriter {
    Responses(Box<ResponseWriter>),
    Messages(Box<MessageWriter>),
}

impl EventWriter {
    /// What is said before anything is known of the answer.
    fn begin(&mut self) {
        match self {
            Self::Responses(writer) => writer.begin(),
            // Its first event counts the tokens that came from the cache, which the first delta tells.
            Self::Messages(_) => (),
        }
    }

    fn take(&mut self, delta: &mut ChatDelta) -> Result<(), ApiError> {
        match self {
            Self::Responses(writer) => writer.take(delta),
            Self::Messages(writer) => writer.take(delta),
        }
    }

    fn fail(&mut self, error: &ApiError) {
        match self {
            Self::Responses(writer) => writer.fail(error),
            Self::Messages(writer) => writer.fail(error),
        }
    }

    fn keep_alive(&mut self) {
        match self {
            Self::Responses(writer) => writer.events.put_comment(),
            Self::Messages(writer) => writer.ping(),
        }
    }

    fn buffer(&mut self) -> &mut BytesMut {
        match self {
            Self::Responses(writer) => &mut writer.events.buffer,
            Self::Messages(writer) => &mut writer.events.buffer,
        }
    }
}

/// The events that wait for the socket, or nothing where nobody reads them.
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: BytesMut,
    discard: bool,
}

impl Events {
    /// For an answer that is collected as a whole: it is built in the same way, only silently.
    pub(crate) fn discarded() -> Self {
        Self { discard: true, ..Self::default() }
    }

    /// Adds an event. `payload` must serialise as an object; `type` and, if given, `sequence_number` go
    /// before its fields.
    pub(crate) fn put(&mut self, name: &str, sequence_number: Option<u64>, payload: &impl Serialize) {
        if self.discard {
            return;
        }
        let out = &mut self.buffer;
        for text in ["event: ", name, "\ndata: {\"type\":\"", name, "\""] {
            out.put_slice(text.as_bytes());
        }
        if let Some(number) = sequence_number {
            out.put_slice(b",\"sequence_number\":");
            sse::put_json(out, &number);
        }
        let start = out.len();
        sse::put_json(out, payload);
        if out.len() == start + 2 {
            out.truncate(start);
            out.put_u8(b'}');
        } else {
            out[start] = b',';
        }
        out.put_slice(b"\n\n");
    }

    /// Adds what every client reads over.
    pub(crate) fn put_comment(&mut self) {
        self.buffer.put_slice(b": keep-alive\n\n");
    }

    /// What has been written so far, as text.
    #[cfg(test)]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.buffer).unwrap()
    }
}

struct EventBody {
    /// `None` once it has ended. Dropping it aborts it.
    stream: Option<ChatStream>,
    writer: EventWriter,
    keep_alive: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let filled = catch_unwind(AssertUnwindSafe(|| this.fill(cx)));
        if filled.is_err() {
            // Of this request alone; other streams of an HTTP/2 connection live on.
            this.end_with(&ApiError::internal("internal error while writing the stream"));
        }
        if this.writer.buffer().is_empty() {
            if this.stream.is_none() {
                return Poll::Ready(None);
            }
            if !this.is_silent_for_long(cx) {
                return Poll::Pending;
            }
        }
        if let Some((interval, timer)) = &mut this.keep_alive {
            timer.as_mut().reset(Instant::now() + *interval);
        }
        Poll::Ready(Some(Ok(Frame::data(this.writer.buffer().split().freeze()))))
    }

    fn is_end_stream(&self) -> bool {
        false
    }
}

impl EventBody {
    /// Writes all the news there are.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while let Some(stream) = &mut self.stream {
            match stream.poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.stream = None,
                Poll::Ready(Some(delta)) => {
                    if let Err(error) = self.writer.take(delta) {
                        return self.end_with(&error);
                    }
                }
            }
            if self.writer.buffer().len() >= FULL_BYTES {
                // Being ready, we are polled again at once.
                return;
            }
        }
    }

    fn end_with(&mut self, error: &ApiError) {
        self.stream = None;
        self.writer.fail(error);
    }

    /// If so, a sign of life is in the buffer.
    fn is_silent_for_long(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((_, timer)) = &mut self.keep_alive else { return false };
        let elapsed = timer.as_mut().poll(cx).is_ready();
        if elapsed {
            self.writer.keep_alive();
        }
        elapsed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_have_their_name_twice() {
        let mut events = Events::default();
        events.put("ping", None, &json!({}));
        events.put("a.b", Some(7), &json!({"delta": "x\ny"}));
        let expected = "event: ping\ndata: {\"type\":\"ping\"}\n\n\
                        event: a.b\ndata: {\"type\":\"a.b\",\"sequence_number\":7,\"delta\":\"x\\ny\"}\n\n";
        assert_eq!(events.text(), expected);
        let mut nobody = Events::discarded();
        nobody.put("ping", None, &json!({}));
        assert_eq!(nobody.text(), "");
    }
}
