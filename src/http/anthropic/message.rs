//! The message that answers, in Anthropic's shape, and [`MessageWriter`], which makes it out of the deltas of
//! one answer and says each step of it as an event.
//!
//! A whole answer and a stream are made by the same steps; for a whole one the events are discarded.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::error::Detail;
use crate::chat::{ChatDelta, ToolCallDelta};
use crate::engine::{Finish, FinishKind, StopCause};
use crate::http::error::ApiError;
use crate::http::events::Events;
use crate::http::reply::check_finish;

/// One answer.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) r#type: &'static str,
    pub(super) role: &'static str,
    pub(super) model: String,
    pub(super) content: Vec<Block>,
    pub(super) stop_reason: Option<&'static str>,
    /// The stop sequence that came, if one did.
    pub(super) stop_sequence: Option<String>,
    pub(super) usage: MessageUsage,
}

/// Tokens that a message took. The input is counted in three parts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(super) struct MessageUsage {
    /// Computed for this request.
    pub(super) input_tokens: u64,
    /// Always 0: what is computed is kept as well, and counted once.
    pub(super) cache_creation_input_tokens: u64,
    /// Taken from the prefix cache.
    pub(super) cache_read_input_tokens: u64,
    pub(super) output_tokens: u64,
}

/// A part of the content.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Block {
    Thinking { thinking: String, signature: String },
    Text { text: String },
    ToolUse { id: String, name: String, input: Map<String, Value> },
}

/// What is new in a block.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::enum_variant_names, reason = "the names are the wire's")]
enum BlockDelta<'a> {
    ThinkingDelta { thinking: &'a str },
    SignatureDelta { signature: &'a str },
    TextDelta { text: &'a str },
    InputJsonDelta { partial_json: &'a str },
}

/// What events carry besides their name.
#[derive(Serialize)]
#[serde(untagged)]
enum Payload<'a> {
    MessageStart { message: &'a Message },
    BlockStart { index: usize, content_block: &'a Block },
    BlockDelta { index: usize, delta: BlockDelta<'a> },
    BlockStop { index: usize },
    MessageDelta { delta: StopDelta<'a>, usage: &'a MessageUsage },
    Error { error: Detail<'a> },
}

#[derive(Serialize)]
struct StopDelta<'a> {
    stop_reason: Option<&'a str>,
    stop_sequence: Option<&'a str>,
}

/// The state of one message.
#[derive(Debug)]
pub(crate) struct MessageWriter {
    pub(crate) events: Events,
    /// Its last block is being written if `open`.
    message: Message,
    open: bool,
    started: bool,
    num_prompt_tokens: u64,
    /// Of the tool call that is open: JSON as far as it has come.
    input: String,
}

impl MessageWriter {
    pub(super) fn new(id: String, model: String, num_prompt_tokens: u64, events: Events) -> Self {
        let message = Message {
            id,
            r#type: "message",
            role: "assistant",
            model,
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage { input_tokens: num_prompt_tokens, ..MessageUsage::default() },
        };
        Self { events, message, open: false, started: false, num_prompt_tokens, input: String::new() }
    }

    /// A sign of life.
    pub(crate) fn ping(&mut self) {
        self.events.put("ping", None, &json!({}));
    }

    /// Adds what is new.
    ///
    /// # Errors
    /// 500 if the answer failed.
    pub(crate) fn take(&mut self, delta: &mut ChatDelta) -> Result<(), ApiError> {
        let usage = &mut self.message.usage;
        if let Some(prompt) = &delta.prompt {
            usage.cache_read_input_tokens = prompt.num_cached_tokens.into();
            usage.input_tokens = self.num_prompt_tokens.saturating_sub(usage.cache_read_input_tokens);
        }
        if !std::mem::replace(&mut self.started, true) {
            self.events.put("message_start", None, &Payload::MessageStart { message: &self.message });
        }
        self.message.usage.output_tokens += delta.token_ids.len() as u64;
        if !delta.reasoning.is_empty() {
            self.add_thinking(&delta.reasoning);
        }
        if !delta.content.is_empty() {
            self.add_text(&delta.content);
        }
        for piece in &delta.tool_calls {
            self.add_call(piece);
        }
        let reason = delta.finish_reason();
        match delta.finish.take() {
            Some(finish) => self.finish(check_finish(finish)?, reason),
            None => Ok(()),
        }
    }

    /// The answer has failed.
    pub(crate) fn fail(&mut self, error: &ApiError) {
        let error = Detail::new(error.status(), error.message());
        self.events.put("error", None, &Payload::Error { error });
    }

    /// What it has become.
    pub(super) fn into_message(self) -> Message {
        self.message
    }

    fn finish(&mut self, finish: Finish, reason: Option<&str>) -> Result<(), ApiError> {
        self.close();
        self.message.stop_reason = Some(match (finish.kind, finish.stop, reason) {
            (FinishKind::Abort | FinishKind::Error, ..) => {
                return Err(ApiError::internal("the server ended the message before it was complete"));
            }
            (FinishKind::Length, ..) => "max_tokens",
            (FinishKind::Stop, Some(StopCause::Text(text)), _) => {
                self.message.stop_sequence = Some(text.to_string());
                "stop_sequence"
            }
            (FinishKind::Stop, _, Some("tool_calls")) => "tool_use",
            (FinishKind::Stop | FinishKind::Repetition, ..) => "end_turn",
        });
        let Message { stop_reason, stop_sequence, usage, .. } = &self.message;
        let delta = StopDelta { stop_reason: *stop_reason, stop_sequence: stop_sequence.as_deref() };
        self.events.put("message_delta", None, &Payload::MessageDelta { delta, usage });
        self.events.put("message_stop", None, &json!({}));
        Ok(())
    }

    fn add_thinking(&mut self, more: &str) {
        if !(self.open && matches!(self.message.content.last(), Some(Block::Thinking { .. }))) {
            self.begin(Block::Thinking { thinking: String::new(), signature: String::new() });
        }
        self.say_delta(BlockDelta::ThinkingDelta { thinking: more });
        if let Some(Block::Thinking { thinking, .. }) = self.message.content.last_mut() {
            thinking.push_str(more);
        }
    }

    fn add_text(&mut self, more: &str) {
        if !(self.open && matches!(self.message.content.last(), Some(Block::Text { .. }))) {
            self.begin(Block::Text { text: String::new() });
        }
        self.say_delta(BlockDelta::TextDelta { text: more });
        if let Some(Block::Text { text }) = self.message.content.last_mut() {
            text.push_str(more);
        }
    }

    fn add_call(&mut self, piece: &ToolCallDelta) {
        if let Some(start) = &piece.start {
            self.begin(Block::ToolUse { id: start.id.clone(), name: start.name.clone(), input: Map::new() });
        }
        if !piece.arguments.is_empty() {
            self.input.push_str(&piece.arguments);
            self.say_delta(BlockDelta::InputJsonDelta { partial_json: &piece.arguments });
        }
    }

    fn begin(&mut self, block: Block) {
        self.close();
        self.open = true;
        let index = self.message.content.len();
        self.events.put("content_block_start", None, &Payload::BlockStart { index, content_block: &block });
        self.message.content.push(block);
    }

    /// Ends the block that is open, if there is one.
    fn close(&mut self) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        match self.message.content.last_mut() {
            Some(Block::Thinking { thinking, signature }) => {
                *signature = sign(thinking);
                let signature = signature.clone();
                self.say_delta(BlockDelta::SignatureDelta { signature: &signature });
            }
            // What was cut short is no object yet; a client that streams has seen as much of it as there is.
            Some(Block::ToolUse { input, .. }) => {
                *input = serde_json::from_str(&std::mem::take(&mut self.input)).unwrap_or_default();
            }
            Some(Block::Text { .. }) | None => (),
        }
        let index = self.message.content.len() - 1;
        self.events.put("content_block_stop", None, &Payload::BlockStop { index });
    }

    fn say_delta(&mut self, delta: BlockDelta<'_>) {
        let index = self.message.content.len() - 1;
        self.events.put("content_block_delta", None, &Payload::BlockDelta { index, delta });
    }
}

/// Clients send thinking back only if it bears a signature. Nobody has to be convinced of anything here, so
/// it is a checksum.
fn sign(thinking: &str) -> String {
    Sha256::digest(thinking.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
