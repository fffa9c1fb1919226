//! [`ChatParser`]: how the text of one request's answers is taken apart, and [`Reading`], the state of doing it.

use std::sync::Arc;

use quire_scheduler::{Grammar, TokenId};

use super::delta::ChatDelta;
use super::reasoning::{ReasoningFormat, ReasoningReader, Start};
use super::setup::ChatSetup;
use super::tools::{Tool, ToolFormat, ToolReader};
use crate::grammar::{ThinkingMarks, ThinkingStart, after_text};
use crate::text::Tokenizer;

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
    /// Reads answers in the formats of these names, whatever the request; `None` if there is no such format.
    /// The answer begins where answers in that format usually do.
    pub fn named(tool_call_parser: Option<&str>, reasoning_parser: Option<&str>) -> Option<Self> {
        let mut parser = Self::default();
        if let Some(name) = reasoning_parser {
            let format = ReasoningFormat::named(name)?;
            let start = format.start_after("", false);
            parser.thoughts = Some(Thoughts { format, start, shown: true, ends: (None, None) });
        }
        match tool_call_parser {
            Some(name) => Some(parser.with_tools(ToolFormat::named(name)?, [].into(), false)),
            None => Some(parser),
        }
    }

    /// The names for `--tool-call-parser`, sorted.
    pub fn tool_call_parsers() -> Vec<&'static str> {
        ToolFormat::names()
    }

    /// The names for `--reasoning-parser`, sorted.
    pub fn reasoning_parsers() -> Vec<&'static str> {
        ReasoningFormat::names()
    }

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

    /// `grammar` for the answer proper: it leaves the thoughts before it free.
    pub(crate) fn after_reasoning(&self, grammar: Grammar, tokenizer: &Tokenizer) -> Grammar {
        let Some(thoughts) = &self.thoughts else { return grammar };
        let Some(end) = thoughts.format.ends().last() else { return grammar };
        match (thoughts.start, thoughts.ends.0) {
            (Start::Inside | Start::InsideOrMarker, _) => after_text(&grammar, end, None, tokenizer),
            (Start::Marker, Some(begin)) => after_text(&grammar, end, Some(begin), tokenizer),
            // A marker of several tokens would have to be allowed letter by letter.
            (Start::Marker, None) | (Start::Outside, _) => grammar,
        }
    }

    /// Where answers to the prompt begin, for a budget of thoughts. `marks` reads how much of them is in the prompt
    /// already, `constrained` = there is a grammar for the answer.
    pub(crate) fn thinking_start(
        &self,
        marks: &ThinkingMarks,
        prompt: &[TokenId],
        constrained: bool,
    ) -> ThinkingStart {
        match &self.thoughts {
            None if constrained => ThinkingStart::Never,
            None | Some(Thoughts { start: Start::Inside, .. }) => marks.start_after(prompt),
            Some(Thoughts { start: Start::InsideOrMarker, .. }) => ThinkingStart::Inside { spent: 0 },
            // The grammar holds from the beginning: see `after_reasoning`.
            Some(Thoughts { start: Start::Marker, ends: (None, _), .. }) if constrained => {
                ThinkingStart::Never
            }
            Some(Thoughts { start: Start::Marker, .. }) => ThinkingStart::Marker,
            Some(Thoughts { start: Start::Outside, .. }) => ThinkingStart::Never,
        }
    }

    /// At the beginning of an answer.
    pub fn start(&self) -> Reading {
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
pub struct Reading {
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
    pub fn push(&mut self, text: &mut String, last: bool, delta: &mut ChatDelta) {
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
