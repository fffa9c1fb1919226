//! [`NdjsonBody`]: an answer as a stream of lines, each a JSON object.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;

use super::answer::AnswerWriter;
use super::error::OllamaError;
use crate::chat::ChatStream;
use crate::http::error::ApiError;

/// Above this the buffer is handed to the socket before more is added.
const FULL_BYTES: usize = 64 << 10;

/// A 200 whose body is a stream of lines.
pub(super) fn response(stream: ChatStream, writer: AnswerWriter) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/x-ndjson"),
        (CACHE_CONTROL, "no-cache"),
        // Asks nginx not to hold back what it gets.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::new(NdjsonBody { stream: Some(stream), writer, buffer: Vec::new() })).into_response()
}

struct NdjsonBody {
    /// `None` once it has ended. Dropping it aborts the request.
    stream: Option<ChatStream>,
    writer: AnswerWriter,
    buffer: Vec<u8>,
}

impl hyper::body::Body for NdjsonBody {
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
            this.end_with(&ApiError::internal("internal error while writing the stream").into());
        }
        if !this.buffer.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.buffer).into()))));
        }
        if this.stream.is_none() { Poll::Ready(None) } else { Poll::Pending }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_none() && self.buffer.is_empty()
    }
}

impl NdjsonBody {
    /// Writes all the news there are, one line each, and the end if that was the last.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while let Some(stream) = &mut self.stream
            && self.buffer.len() < FULL_BYTES
        {
            match stream.poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(None) => self.stream = None,
                Poll::Ready(Some(delta)) => match self.writer.take(delta) {
                    Err(error) => self.end_with(&error),
                    Ok(None) => self.writer.write_news(&mut self.buffer),
                    Ok(Some(done_reason)) => {
                        // Clients that show pieces do not look for one in the last line.
                        self.writer.write_news(&mut self.buffer);
                        self.writer.write_end(done_reason, &mut self.buffer);
                        self.stream = None;
                    }
                },
            }
        }
    }

    fn end_with(&mut self, error: &OllamaError) {
        self.stream = None;
        self.buffer.extend_from_slice(error.to_json().as_bytes());
        self.buffer.push(b'\n');
    }
}
