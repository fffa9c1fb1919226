//! [`ChatDelta`]: news of one answer, taken apart into what a client wants to see apart.

use quire_scheduler::TokenId;

use crate::engine::{Finish, FinishKind, PromptOutput, TokenLogprobs};

/// What is new of one of a request's `n` answers.
#[derive(Debug, Default)]
pub struct ChatDelta {
    /// Which of the `n`.
    pub index: u32,
    /// Set on the first delta of an answer.
    pub prompt: Option<PromptOutput>,
    /// What the model thought before it answered. Comes before any content.
    pub reasoning: String,
    /// The answer's text.
    pub content: String,
    /// Tool calls begun or continued, in order.
    pub tool_calls: Vec<ToolCallDelta>,
    /// New tokens, whatever became of them.
    pub token_ids: Vec<TokenId>,
    /// One a token of `token_ids` if asked for, else empty.
    pub logprobs: Vec<TokenLogprobs>,
    /// Set on the last delta of an answer.
    pub finish: Option<Finish>,
    /// Tool calls begun in this answer so far.
    pub num_tool_calls: u32,
    /// Tokens of reasoning in this answer so far.
    pub num_reasoning_tokens: u32,
}

impl ChatDelta {
    /// OpenAI's word for the end, if this is the last delta: an answer that stopped after calling tools ends
    /// with `tool_calls`.
    pub fn finish_reason(&self) -> Option<&'static str> {
        let finish = self.finish.as_ref()?;
        Some(match finish.kind {
            FinishKind::Stop if self.num_tool_calls > 0 => "tool_calls",
            kind => kind.as_str(),
        })
    }

    /// Whether there is anything but tokens in it.
    pub fn is_silent(&self) -> bool {
        self.reasoning.is_empty()
            && self.content.is_empty()
            && self.tool_calls.is_empty()
            && self.logprobs.is_empty()
            && self.finish.is_none()
    }
}

/// A piece of one tool call.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ToolCallDelta {
    /// Which call of the answer, from 0.
    pub index: u32,
    /// Its id and the function's name; on the first piece of a call and on no other.
    pub start: Option<ToolCallStart>,
    /// More of the arguments: the pieces of a call make up one JSON object, as text.
    pub arguments: String,
}

/// How a tool call begins.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct ToolCallStart {
    /// Unique, as `chatcmpl-tool-` and 32 hexadecimal digits.
    pub id: String,
    /// The function.
    pub name: String,
}
