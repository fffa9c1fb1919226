//! [`ResponseWriter`]: makes a response out of the deltas of one answer, and says each step of it as an event.
//!
//! A whole answer and a stream are made by the same steps; for a whole one the events are discarded. So what
//! `response.completed` carries is what a client that does not stream would have got.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::object::{
    Content, Failure, IncompleteDetails, Item, OutputTokens, Response, ResponseUsage, Status, new_id,
};
use super::store::{ResponseStore, Stored};
use super::tools::CalledAs;
use crate::chat::{ChatDelta, ToolCallDelta};
use crate::engine::{Finish, FinishKind, TokenLogprobs};
use crate::http::error::ApiError;
use crate::http::events::Events;
use crate::http::logprobs::{ChatLogprobs, ChatToken, TokenNames};
use crate::http::reply::{check_finish, now};

/// Before reasoning in `encrypted_content`. It is not encrypted, and says so: the client has it in clear in
/// `content` anyway, and only wants back in a later request what it may not understand.
pub(super) const CLEAR: &str = "clear:";

/// The state of one response.
#[derive(Debug)]
pub(crate) struct ResponseWriter {
    pub(crate) events: Events,
    sequence_number: u64,
    /// Its last item is being written if `open`.
    response: Response,
    open: bool,
    usage: ResponseUsage,
    options: WriterOptions,
    /// Of tokens whose text has not come yet.
    pending_logprobs: Vec<TokenLogprobs>,
}

/// What a writer must know besides the response.
#[derive(Debug)]
pub(crate) struct WriterOptions {
    pub(super) names: TokenNames,
    pub(super) wants_logprobs: bool,
    /// `include` has `reasoning.encrypted_content`.
    pub(super) wants_encrypted_reasoning: bool,
    /// What calls mean to the client, by the name that the model knows.
    pub(super) called_as: HashMap<String, CalledAs>,
    pub(super) num_prompt_tokens: u64,
    /// Where the response goes when it has ended, with the items it answers.
    pub(super) store: Option<(Arc<ResponseStore>, Vec<Value>)>,
}

/// What events carry besides their name and number.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    Response {
        response: &'a Response,
    },
    Item {
        output_index: usize,
        item: &'a Item,
    },
    Part {
        item_id: &'a str,
        output_index: usize,
        content_index: u32,
        part: &'a Content,
    },
    TextDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: u32,
        delta: &'a str,
        logprobs: &'a [ChatToken],
    },
    TextDone {
        item_id: &'a str,
        output_index: usize,
        content_index: u32,
        text: &'a str,
        logprobs: &'a [ChatToken],
    },
    ReasoningDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: u32,
        delta: &'a str,
    },
    ReasoningDone {
        item_id: &'a str,
        output_index: usize,
        content_index: u32,
        text: &'a str,
    },
    CallDelta {
        item_id: &'a str,
        output_index: usize,
        delta: &'a str,
    },
    CallDone {
        item_id: &'a str,
        output_index: usize,
        name: &'a str,
        arguments: &'a str,
    },
    InputDone {
        item_id: &'a str,
        output_index: usize,
        input: &'a str,
    },
}

impl ResponseWriter {
    /// Goes on with a response that is in progress and has no output yet.
    pub(super) fn new(response: Response, options: WriterOptions, events: Events) -> Self {
        let usage = ResponseUsage { input_tokens: options.num_prompt_tokens, ..ResponseUsage::default() };
        Self {
            events,
            sequence_number: 0,
            response,
            open: false,
            usage,
            options,
            pending_logprobs: Vec::new(),
        }
    }

    /// What comes before the first token.
    pub(crate) fn begin(&mut self) {
        self.say_response("response.created");
        self.say_response("response.in_progress");
    }

    /// Adds what is new.
    ///
    /// # Errors
    /// 500 if the answer failed.
    pub(crate) fn take(&mut self, delta: &mut ChatDelta) -> Result<(), ApiError> {
        if let Some(prompt) = &delta.prompt {
            self.usage.input_tokens_details.cached_tokens = prompt.num_cached_tokens.into();
        }
        self.usage.output_tokens += delta.token_ids.len() as u64;
        self.usage.output_tokens_details =
            OutputTokens { reasoning_tokens: delta.num_reasoning_tokens.into() };
        if !delta.reasoning.is_empty() {
            self.add_reasoning(&delta.reasoning);
        }
        if self.options.wants_logprobs {
            self.pending_logprobs.append(&mut delta.logprobs);
        }
        if !delta.content.is_empty() {
            self.add_text(&delta.content);
        }
        for piece in &delta.tool_calls {
            self.add_call(piece);
        }
        match delta.finish.take() {
            Some(finish) => self.finish(&check_finish(finish)?),
            None => Ok(()),
        }
    }

    /// The answer has failed: says so to those who read events and to those who ask the store.
    pub(crate) fn fail(&mut self, error: &ApiError) {
        self.response.status = Status::Failed;
        self.response.error = Some(Failure { code: "server_error", message: error.message().to_owned() });
        self.end("response.failed");
    }

    /// What it has become.
    pub(super) fn into_response(self) -> Response {
        self.response
    }

    fn finish(&mut self, finish: &Finish) -> Result<(), ApiError> {
        let (status, event) = match finish.kind {
            FinishKind::Stop | FinishKind::Repetition => (Status::Completed, "response.completed"),
            FinishKind::Length => (Status::Incomplete, "response.incomplete"),
            FinishKind::Abort | FinishKind::Error => {
                return Err(ApiError::internal("the server ended the response before it was complete"));
            }
        };
        self.close(status);
        self.response.status = status;
        if status == Status::Incomplete {
            self.response.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
        }
        self.end(event);
        Ok(())
    }

    /// The last event.
    fn end(&mut self, event: &'static str) {
        self.response.completed_at = (self.response.status == Status::Completed).then(now);
        self.usage.total_tokens = self.usage.input_tokens + self.usage.output_tokens;
        self.response.usage = Some(self.usage);
        if let Some((store, input)) = self.options.store.take() {
            store.finish(Stored { response: self.response.clone(), input });
        }
        self.say_response(event);
    }

    fn add_reasoning(&mut self, delta: &str) {
        if !(self.open && matches!(self.response.output.last(), Some(Item::Reasoning { .. }))) {
            let item = Item::Reasoning {
                id: new_id("rs"),
                summary: Vec::new(),
                content: Vec::new(),
                encrypted_content: None,
                status: Status::InProgress,
            };
            self.begin_item(item);
            self.begin_content(Content::ReasoningText { text: String::new() });
        }
        let output_index = self.output_index();
        let Some(Item::Reasoning { id, content, .. }) = self.response.output.last_mut() else { return };
        let Some(Content::ReasoningText { text }) = content.last_mut() else { return };
        text.push_str(delta);
        let payload = Payload::ReasoningDelta { item_id: id, output_index, content_index: 0, delta };
        say(&mut self.events, &mut self.sequence_number, "response.reasoning_text.delta", &payload);
        // They belong to what is not in the message.
        self.pending_logprobs.clear();
    }

    fn add_text(&mut self, delta: &str) {
        if !(self.open && matches!(self.response.output.last(), Some(Item::Message { .. }))) {
            let id = new_id("msg");
            let item =
                Item::Message { id, role: "assistant", status: Status::InProgress, content: Vec::new() };
            self.begin_item(item);
            self.begin_content(Content::OutputText {
                text: String::new(),
                annotations: Vec::new(),
                logprobs: Vec::new(),
            });
        }
        self.continue_text(delta);
    }

    /// More of the message that is open.
    fn continue_text(&mut self, delta: &str) {
        let new = ChatLogprobs::new(&std::mem::take(&mut self.pending_logprobs), &self.options.names).content;
        let output_index = self.output_index();
        let Some(Item::Message { id, content, .. }) = self.response.output.last_mut() else { return };
        let Some(Content::OutputText { text, logprobs, .. }) = content.last_mut() else { return };
        text.push_str(delta);
        let payload =
            Payload::TextDelta { item_id: id, output_index, content_index: 0, delta, logprobs: &new };
        say(&mut self.events, &mut self.sequence_number, "response.output_text.delta", &payload);
        logprobs.extend(new);
    }

    fn add_call(&mut self, piece: &ToolCallDelta) {
        self.pending_logprobs.clear();
        if let Some(start) = &piece.start {
            let (call_id, status) = (start.id.clone(), Status::InProgress);
            let called_as = self.options.called_as.get(&start.name).cloned();
            let item = match called_as {
                Some(CalledAs { namespace, name, custom: true }) => {
                    let (id, input) = (new_id("ctc"), String::new());
                    Item::CustomToolCall { id, call_id, namespace, name, input, status }
                }
                called_as => {
                    let (id, arguments) = (new_id("fc"), String::new());
                    let (namespace, name) = match called_as {
                        Some(called_as) => (called_as.namespace, called_as.name),
                        None => (None, start.name.clone()),
                    };
                    Item::FunctionCall { id, call_id, namespace, name, arguments, status }
                }
            };
            self.begin_item(item);
        }
        if piece.arguments.is_empty() {
            return;
        }
        let output_index = self.output_index();
        match self.response.output.last_mut() {
            Some(Item::FunctionCall { id, arguments, .. }) => {
                arguments.push_str(&piece.arguments);
                let payload = Payload::CallDelta { item_id: id, output_index, delta: &piece.arguments };
                let name = "response.function_call_arguments.delta";
                say(&mut self.events, &mut self.sequence_number, name, &payload);
            }
            // The input is within a JSON object, which is opened once it is whole.
            Some(Item::CustomToolCall { input, .. }) => input.push_str(&piece.arguments),
            _ => (),
        }
    }

    fn begin_item(&mut self, item: Item) {
        self.close(Status::Completed);
        self.open = true;
        self.response.output.push(item);
        self.say_item("response.output_item.added");
    }

    fn begin_content(&mut self, part: Content) {
        let output_index = self.output_index();
        let Some(item) = self.response.output.last_mut() else { return };
        let payload = Payload::Part { item_id: item.id(), output_index, content_index: 0, part: &part };
        say(&mut self.events, &mut self.sequence_number, "response.content_part.added", &payload);
        if let Item::Reasoning { content, .. } | Item::Message { content, .. } = item {
            content.push(part);
        }
    }

    /// Ends the item that is open, if there is one.
    fn close(&mut self, status: Status) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let message = matches!(self.response.output.last(), Some(Item::Message { .. }));
        if message && !self.pending_logprobs.is_empty() {
            // Of tokens without text, as end tokens are.
            self.continue_text("");
        }
        let output_index = self.output_index();
        let Some(item) = self.response.output.last_mut() else { return };
        item.set_status(status);
        if let Item::Reasoning { content, encrypted_content, .. } = item
            && let Some(Content::ReasoningText { text }) = content.last()
        {
            *encrypted_content = self.options.wants_encrypted_reasoning.then(|| format!("{CLEAR}{text}"));
        }
        if let Item::CustomToolCall { input, .. } = item {
            *input = custom_input(input);
        }
        say_done(&mut self.events, &mut self.sequence_number, item, output_index);
        self.say_item("response.output_item.done");
    }

    /// Of the item that is open.
    fn output_index(&self) -> usize {
        self.response.output.len().saturating_sub(1)
    }

    fn say_item(&mut self, name: &'static str) {
        let output_index = self.output_index();
        if let Some(item) = self.response.output.last() {
            let payload = Payload::Item { output_index, item };
            say(&mut self.events, &mut self.sequence_number, name, &payload);
        }
    }

    fn say_response(&mut self, name: &'static str) {
        let payload = Payload::Response { response: &self.response };
        say(&mut self.events, &mut self.sequence_number, name, &payload);
    }
}

fn say(events: &mut Events, sequence_number: &mut u64, name: &'static str, payload: &Payload<'_>) {
    events.put(name, Some(*sequence_number), payload);
    *sequence_number += 1;
}

/// The events that repeat what the deltas of an item made up.
fn say_done(events: &mut Events, number: &mut u64, item: &Item, output_index: usize) {
    let (item_id, content_index) = (item.id(), 0);
    match item {
        Item::Reasoning { content, .. } | Item::Message { content, .. } => {
            let Some(part) = content.last() else { return };
            match part {
                Content::ReasoningText { text } => {
                    let payload = Payload::ReasoningDone { item_id, output_index, content_index, text };
                    say(events, number, "response.reasoning_text.done", &payload);
                }
                Content::OutputText { text, logprobs, .. } => {
                    let payload = Payload::TextDone { item_id, output_index, content_index, text, logprobs };
                    say(events, number, "response.output_text.done", &payload);
                }
            }
            let payload = Payload::Part { item_id, output_index, content_index, part };
            say(events, number, "response.content_part.done", &payload);
        }
        Item::FunctionCall { name, arguments, .. } => {
            let payload = Payload::CallDone { item_id, output_index, name, arguments };
            say(events, number, "response.function_call_arguments.done", &payload);
        }
        Item::CustomToolCall { input, .. } => {
            let payload = Payload::CallDelta { item_id, output_index, delta: input };
            say(events, number, "response.custom_tool_call_input.delta", &payload);
            let payload = Payload::InputDone { item_id, output_index, input };
            say(events, number, "response.custom_tool_call_input.done", &payload);
        }
    }
}

/// What the model means for a custom tool, out of the arguments `{"input": "..."}` of the function that
/// stands for it. Arguments that were cut short or are something else are passed as they are: the tool's
/// owner can make more of them than we can.
fn custom_input(arguments: &str) -> String {
    match serde_json::from_str::<Value>(arguments) {
        Ok(Value::Object(mut object)) => match object.remove("input") {
            Some(Value::String(input)) => input,
            _ => arguments.to_owned(),
        },
        _ => arguments.to_owned(),
    }
}
