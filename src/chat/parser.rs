//! [`ChatParser`]: how the text of one request's answers is taken apart, and [`Reading`], the state of doing it.

use std::sync::Arc;

use quire_scheduler::TokenId;

use super::delta::ChatDelta;
use super::reasoning::{ReasoningFormat, ReasoningReader, Start};
use super::setup::ChatSetup;
use super::tools::{Tool, ToolFormat, ToolReader};

/// What the request says of its tools.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model is to answer in text; whatever it writes is content.
    #[default]
    None,
    /// The model may call tools.
    Auto,
    /// The model must call at least one tool.
    Required,
    /// The model must call this one.
    Named(String),
}

/// Says how the answers to one request are read. Cheap to clone: one a sequence.
#[derive(Debug, Default, Clone)]
pub struct ChatParser {
    thoughts: Option<Thoughts>,
    calls: Option<CallParser>,
}

#[derive(Debug, Clone)]
struct Thoughts {
    format: &'static ReasoningFormat,
    start: Start,
    /// Whether they are shown; if not, they are left out.
    shown: bool,
    /// The tokens that begin and end them.
    ends: (Option<TokenId>, Option<TokenId>),
}

#[derive(Debug, Clone)]
struct CallParser {
    format: &'static ToolFormat,
    tools: Arc<[Tool]>,
    only_first: bool,
}

impl ChatParser {
    /// Answers to `prompt` have thoughts in them. `continues` = the prompt ends within the message.
    pub(crate) fn with_reasoning(
        mut self,
        chat: &ChatSetup,
        prompt: &str,
        continues: bool,
        shown: bool,
    ) -> Self {
        self.thoughts = chat.reasoning.map(|format| Thoughts {
            format,
            start: format.start_after(prompt, continues),
            shown,
            ends: chat.reasoning_ends,
        });
        self
    }

    /// Answers may call these tools. `only_first` = all calls but the first are dropped.
    pub(crate) fn with_tools(
        mut self,
        format: &'static ToolFormat,
        tools: Arc<[Tool]>,
        only_first: bool,
    ) -> Self {
        self.calls = Some(CallParser { format, tools, only_first });
        self
    }

    pub(super) fn start(&self) -> Reading {
        let thoughts = self.thoughts.clone().map(|thoughts| {
            let reader = ReasoningReader::new(thoughts.format, thoughts.start);
            ThoughtReading { inside: reader.is_inside(), reader, thoughts, num_tokens: 0 }
        });
        let calls = self
            .calls
            .as_ref()
            .map(|calls| ToolReader::new(calls.format, calls.tools.clone(), calls.only_first));
        Reading { thoughts, calls, rest: String::new() }
    }
}

/// The state of reading one answer.
#[derive(Debug, Default, Clone)]
pub(super) struct Reading {
    thoughts: Option<ThoughtReading>,
    calls: Option<ToolReader>,
    /// Between the two; empty between two pushes.
    rest: String,
}

#[derive(Debug, Clone)]
struct ThoughtReading {
    thoughts: Thoughts,
    reader: ReasoningReader,
    /// The last token belongs to the thoughts, as far as tokens tell.
    inside: bool,
    num_tokens: u32,
}

impl Reading {
    /// Takes `text` in and puts what it means into `delta`, whose tokens are there already. `last` = nothing
    /// follows.
    pub(super) fn push(&mut self, text: &mut String, last: bool, delta: &mut ChatDelta) {
        if let Some(thoughts) = &mut self.thoughts {
            thoughts.push(text, last, delta, &mut self.rest);
        } else {
            std::mem::swap(text, &mut self.rest);
        }
        match &mut self.calls {
            None => std::mem::swap(&mut self.rest, &mut delta.content),
            Some(calls) => {
                calls.push(&self.rest, &mut delta.content, &mut delta.tool_calls);
                if last {
                    calls.finish(&mut delta.content, &mut delta.tool_calls);
                }
                delta.num_tool_calls = calls.num_calls();
            }
        }
        self.rest.clear();
    }
}

impl ThoughtReading {
    fn push(&mut self, text: &str, last: bool, delta: &mut ChatDelta, rest: &mut String) {
        self.count(&delta.token_ids);
        self.reader.push(text, &mut delta.reasoning, rest);
        if last {
            self.reader.finish(&mut delta.reasoning, rest);
        }
        if !self.thoughts.shown {
            delta.reasoning.clear();
        }
        delta.num_reasoning_tokens = self.num_tokens;
    }

    /// Counts the tokens between the markers. Where markers are several tokens, the text decides, which may
    /// lag a few tokens behind.
    fn count(&mut self, token_ids: &[TokenId]) {
        let (begin, end) = self.thoughts.ends;
        if end.is_none() {
            self.num_tokens += if self.reader.is_inside() { token_ids.len() as u32 } else { 0 };
            return;
        }
        for &id in token_ids {
            if Some(id) == begin || Some(id) == end {
                self.inside = Some(id) == begin && self.num_tokens == 0;
            } else if self.inside {
                self.num_tokens += 1;
            }
        }
    }
}
