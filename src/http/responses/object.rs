//! The response object and its items, as clients get them whole, in events and from the store. The shapes
//! are OpenAI's (`Response` and `ResponseOutputItem` of their published types).

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::http::logprobs::ChatToken;

/// One answer and what was asked for it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Response {
    pub(super) id: String,
    pub(super) object: &'static str,
    /// Seconds since 1970.
    pub(super) created_at: i64,
    pub(super) completed_at: Option<i64>,
    pub(super) status: Status,
    pub(super) error: Option<Failure>,
    pub(super) incomplete_details: Option<IncompleteDetails>,
    pub(super) model: String,
    pub(super) output: Vec<Item>,
    pub(super) usage: Option<ResponseUsage>,
    #[serde(flatten)]
    pub(super) settings: Settings,
}

/// What the client asked for, or what it gets by default, in its own words.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Settings {
    pub(super) background: bool,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<i64>,
    pub(super) max_tool_calls: Option<i64>,
    pub(super) metadata: Map<String, Value>,
    pub(super) parallel_tool_calls: bool,
    pub(super) previous_response_id: Option<String>,
    pub(super) prompt_cache_key: Option<String>,
    pub(super) reasoning: ReasoningSettings,
    pub(super) safety_identifier: Option<String>,
    pub(super) service_tier: String,
    pub(super) store: bool,
    pub(super) temperature: f64,
    pub(super) text: TextSettings,
    pub(super) tool_choice: Value,
    pub(super) tools: Vec<Value>,
    pub(super) top_logprobs: i64,
    pub(super) top_p: f64,
    pub(super) truncation: &'static str,
    pub(super) user: Option<String>,
}

/// `reasoning` of the request.
#[derive(Debug, Clone, Default, Serialize, JsonSchema)]
pub(crate) struct ReasoningSettings {
    pub(super) effort: Option<String>,
    pub(super) summary: Option<String>,
}

/// `text` of the request.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct TextSettings {
    pub(super) format: Value,
}

/// Where a response or an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    InProgress,
    /// Made in the background, and not at its end.
    Queued,
    Completed,
    /// `max_output_tokens` or the context ended it.
    Incomplete,
    Failed,
    Cancelled,
}

/// Why a response is [`Status::Failed`].
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Failure {
    pub(super) code: &'static str,
    pub(super) message: String,
}

/// Why a response is [`Status::Incomplete`].
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct IncompleteDetails {
    pub(super) reason: &'static str,
}

/// Tokens that a response took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct ResponseUsage {
    pub(super) input_tokens: u64,
    pub(super) input_tokens_details: InputTokens,
    pub(super) output_tokens: u64,
    pub(super) output_tokens_details: OutputTokens,
    pub(super) total_tokens: u64,
}

/// Parts of `input_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct InputTokens {
    pub(super) cached_tokens: u64,
    /// Always 0: nobody pays for what is written to this cache.
    pub(super) cache_write_tokens: u64,
}

/// Parts of `output_tokens`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct OutputTokens {
    pub(super) reasoning_tokens: u64,
}

/// What a response is made of.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Item {
    /// What the model thought.
    Reasoning {
        id: String,
        /// Always empty: nothing here writes summaries.
        summary: Vec<String>,
        /// At most one.
        content: Vec<Content>,
        /// If asked for: what brings the reasoning back in a later request.
        encrypted_content: Option<String>,
        status: Status,
    },
    /// What it said.
    Message {
        id: String,
        role: &'static str,
        status: Status,
        /// At most one.
        content: Vec<Content>,
    },
    /// A function it wants to be called.
    FunctionCall {
        id: String,
        call_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        name: String,
        arguments: String,
        status: Status,
    },
    /// A custom tool it wants to be called.
    CustomToolCall {
        id: String,
        call_id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        namespace: Option<String>,
        name: String,
        input: String,
        status: Status,
    },
}

/// Text in an item.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Content {
    OutputText {
        text: String,
        /// Always empty: nothing here cites sources.
        annotations: Vec<String>,
        /// Empty unless asked for.
        logprobs: Vec<ChatToken>,
    },
    ReasoningText {
        text: String,
    },
}

impl Item {
    /// Unique among all items.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. }
            | Self::Message { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::CustomToolCall { id, .. } => id,
        }
    }

    pub(super) fn set_status(&mut self, new: Status) {
        match self {
            Self::Reasoning { status, .. }
            | Self::Message { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::CustomToolCall { status, .. } => *status = new,
        }
    }
}

/// An id that nobody has.
pub(super) fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}
