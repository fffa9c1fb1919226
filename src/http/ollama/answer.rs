//! [`AnswerWriter`]: what the model says, as Ollama's lines: `/api/chat` with messages, `/api/generate` with
//! plain text. A whole answer is one line that has everything.

use std::time::{Instant, SystemTime};

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::error::OllamaError;
use crate::chat::{ChatDelta, ToolCallDelta};
use crate::engine::{Finish, FinishKind, TokenLogprobs};
use crate::http::error::ApiError;
use crate::http::logprobs::{ChatLogprobs, ChatToken, TokenNames};
use crate::http::reply::check_finish;
use crate::text::strftime;

/// Which route answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Chat,
    Generate,
}

/// A line of `/api/chat`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaChatLine")]
pub(super) struct ChatLine<'a> {
    model: &'a str,
    created_at: String,
    message: Message<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<ChatToken>>,
    done: bool,
    #[serde(flatten)]
    end: Option<End>,
}

/// A line of `/api/generate`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaGenerateLine")]
pub(super) struct GenerateLine<'a> {
    model: &'a str,
    created_at: String,
    response: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<ChatToken>>,
    done: bool,
    #[serde(flatten)]
    end: Option<End>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaMessage")]
struct Message<'a> {
    role: &'static str,
    content: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    thinking: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    tool_calls: &'a [ToolCall],
}

/// A whole call: Ollama's streams have no pieces of arguments.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaToolCall")]
struct ToolCall {
    id: String,
    function: Function,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaFunction")]
struct Function {
    index: u32,
    name: String,
    arguments: Value,
}

/// What the last line says besides; durations in nanoseconds.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "OllamaEnd")]
struct End {
    done_reason: &'static str,
    total_duration: u64,
    /// Always 0: the model is loaded before there is anything to answer with.
    load_duration: u64,
    prompt_eval_count: usize,
    /// From the arrival to the first token, waiting for other requests included.
    prompt_eval_duration: u64,
    eval_count: usize,
    eval_duration: u64,
}

/// Writes the lines of one answer.
#[derive(Debug)]
pub(super) struct AnswerWriter {
    pub(super) route: Route,
    /// The name that the client used.
    pub(super) model: String,
    pub(super) names: TokenNames,
    pub(super) wants_logprobs: bool,
    pub(super) prompt_eval_count: usize,
    pub(super) started: Instant,
    first_token: Option<Instant>,
    eval_count: usize,
    news: News,
}

/// What has come and is not written yet.
#[derive(Debug, Default)]
struct News {
    thinking: String,
    text: String,
    logprobs: Vec<TokenLogprobs>,
    calls: Vec<ToolCall>,
    /// The call that is coming in, and its arguments so far.
    open: Option<(ToolCall, String)>,
}

impl AnswerWriter {
    pub(super) fn new(
        route: Route,
        model: String,
        names: TokenNames,
        wants_logprobs: bool,
        prompt_eval_count: usize,
        started: Instant,
    ) -> Self {
        let news = News::default();
        Self {
            route,
            model,
            names,
            wants_logprobs,
            prompt_eval_count,
            started,
            first_token: None,
            eval_count: 0,
            news,
        }
    }

    /// Takes in what is new; with the end, gives the reason for it.
    ///
    /// # Errors
    /// 500 if the answer failed, 503 if the server ended it: Ollama has no word for half an answer.
    pub(super) fn take(&mut self, delta: &mut ChatDelta) -> Result<Option<&'static str>, OllamaError> {
        if !delta.token_ids.is_empty() {
            self.first_token.get_or_insert_with(Instant::now);
        }
        self.eval_count += delta.token_ids.len();
        self.news.thinking.push_str(&delta.reasoning);
        self.news.text.push_str(&delta.content);
        self.news.logprobs.append(&mut delta.logprobs);
        delta.tool_calls.drain(..).for_each(|piece| self.news.take_call(piece));
        let Some(finish) = delta.finish.take() else { return Ok(None) };
        self.news.close_call();
        done_reason(finish).map(Some)
    }

    /// Writes what has come since the last line, if anything has.
    pub(super) fn write_news(&mut self, out: &mut Vec<u8>) {
        if !self.news.is_empty() {
            self.write(None, out);
        }
    }

    /// Writes the last line, with all that is not written yet.
    pub(super) fn write_end(&mut self, done_reason: &'static str, out: &mut Vec<u8>) {
        let nanos = |from: Instant, to: Instant| u64::try_from((to - from).as_nanos()).unwrap_or(u64::MAX);
        let now = Instant::now();
        let first_token = self.first_token.unwrap_or(now);
        let end = End {
            done_reason,
            total_duration: nanos(self.started, now),
            load_duration: 0,
            prompt_eval_count: self.prompt_eval_count,
            prompt_eval_duration: nanos(self.started, first_token),
            eval_count: self.eval_count,
            eval_duration: nanos(first_token, now),
        };
        self.write(Some(end), out);
    }

    fn write(&mut self, end: Option<End>, out: &mut Vec<u8>) {
        let news = std::mem::take(&mut self.news);
        let logprobs = self.wants_logprobs && !news.logprobs.is_empty();
        let logprobs = logprobs.then(|| ChatLogprobs::new(&news.logprobs, &self.names).content);
        let (model, created_at, done) = (&*self.model, timestamp(SystemTime::now()), end.is_some());
        let written = match self.route {
            Route::Chat => {
                let message = Message {
                    role: "assistant",
                    content: &news.text,
                    thinking: &news.thinking,
                    tool_calls: &news.calls,
                };
                serde_json::to_writer(
                    &mut *out,
                    &ChatLine { model, created_at, message, logprobs, done, end },
                )
            }
            Route::Generate => {
                let (response, thinking) = (&*news.text, &*news.thinking);
                let line = GenerateLine { model, created_at, response, thinking, logprobs, done, end };
                serde_json::to_writer(&mut *out, &line)
            }
        };
        written.expect("a buffer in memory can be written to");
        out.push(b'\n');
        self.news.open = news.open;
    }
}

impl News {
    fn is_empty(&self) -> bool {
        self.thinking.is_empty() && self.text.is_empty() && self.logprobs.is_empty() && self.calls.is_empty()
    }

    fn take_call(&mut self, piece: ToolCallDelta) {
        if let Some(start) = piece.start {
            self.close_call();
            let function = Function { index: piece.index, name: start.name, arguments: Value::Null };
            self.open = Some((ToolCall { id: start.id, function }, String::new()));
        }
        if let Some((_, arguments)) = &mut self.open {
            arguments.push_str(&piece.arguments);
        }
    }

    /// The call that was coming in is whole, unless the answer was cut off in the middle of it: then there is
    /// nothing that could be called, and `done_reason` says why.
    fn close_call(&mut self) {
        let Some((mut call, arguments)) = self.open.take() else { return };
        if let Ok(arguments @ Value::Object(_)) = serde_json::from_str(&arguments) {
            call.function.arguments = arguments;
            self.calls.push(call);
        }
    }
}

/// RFC 3339, in UTC.
pub(super) fn timestamp(time: SystemTime) -> String {
    strftime("%Y-%m-%dT%H:%M:%S.%fZ", time)
}

fn done_reason(finish: Finish) -> Result<&'static str, OllamaError> {
    match check_finish(finish)?.kind {
        FinishKind::Abort => Err(ApiError::unavailable("the server ended this request early").into()),
        FinishKind::Length => Ok("length"),
        FinishKind::Stop | FinishKind::Repetition | FinishKind::Error => Ok("stop"),
    }
}
