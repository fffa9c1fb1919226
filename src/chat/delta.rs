//! [`ChatDelta`]: news of one answer, taken apart into what a client wants to see apart; and [`Pieces`], which
//! keep the order in which the model wrote them.

use std::collections::VecDeque;

use quire_scheduler::TokenId;

use crate::engine::{Finish, FinishKind, PromptOutput, TokenLogprobs};

/// What is new of one of a request's `n` answers. What the model wrote comes in the order of the fields: reasoning,
/// then content, then tool calls; what it wrote in another order is told in several deltas.
#[derive(Debug, Default)]
pub struct ChatDelta {
    /// Which of the `n`.
    pub index: u32,
    /// Set on the first delta of an answer.
    pub prompt: Option<PromptOutput>,
    /// What the model thought.
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

/// What a text was taken apart into, in the order of the text, until it is told.
#[derive(Debug, Default, Clone)]
pub(super) struct Pieces {
    pieces: VecDeque<Piece>,
}

#[derive(Debug, Clone)]
enum Piece {
    Reasoning(String),
    Content(String),
    Call(ToolCallDelta),
}

impl Pieces {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        match self.pieces.back_mut() {
            _ if text.is_empty() => (),
            Some(Piece::Reasoning(last)) => last.push_str(text),
            _ => self.pieces.push_back(Piece::Reasoning(text.to_owned())),
        }
    }

    pub(super) fn content(&mut self, text: &str) {
        match self.pieces.back_mut() {
            _ if text.is_empty() => (),
            Some(Piece::Content(last)) => last.push_str(text),
            _ => self.pieces.push_back(Piece::Content(text.to_owned())),
        }
    }

    /// Call number `index` begins.
    pub(super) fn call(&mut self, index: u32, start: ToolCallStart) {
        let start = Some(start);
        self.pieces.push_back(Piece::Call(ToolCallDelta { index, start, arguments: String::new() }));
    }

    /// More arguments of call number `index`.
    pub(super) fn arguments(&mut self, index: u32, text: &str) {
        match self.pieces.back_mut() {
            Some(Piece::Call(last)) if last.index == index && last.start.is_none() => {
                last.arguments.push_str(text);
            }
            _ => {
                let arguments = text.to_owned();
                self.pieces.push_back(Piece::Call(ToolCallDelta { index, start: None, arguments }));
            }
        }
    }

    /// Moves into `delta`, which has no text yet, as much as it can tell in the right order.
    pub(super) fn tell(&mut self, delta: &mut ChatDelta) {
        while let Some(piece) = self.pieces.front_mut() {
            let fits = match piece {
                Piece::Reasoning(_) => delta.reasoning.is_empty() && delta.content.is_empty(),
                Piece::Content(_) => delta.content.is_empty(),
                Piece::Call(_) => true,
            };
            if !fits || (!matches!(piece, Piece::Call(_)) && !delta.tool_calls.is_empty()) {
                return;
            }
            match self.pieces.pop_front() {
                Some(Piece::Reasoning(text)) => delta.reasoning = text,
                Some(Piece::Content(text)) => delta.content = text,
                Some(Piece::Call(call)) => delta.tool_calls.push(call),
                None => (),
            }
        }
    }
}
