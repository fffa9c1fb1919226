//! [`ChatParser`]: how the text of one request's answers is taken apart, and [`Reading`], the state of doing it.

use std::sync::Arc;

use quire_scheduler::{Grammar, TokenId};

use super::delta::ChatDelta;
use super::reasoning::{ReasoningFormat, ReasoningReader, Start};
use super::setup::ChatSetup;
use super::tools::{Tool, ToolFormat, ToolReader};
use crate::grammar::{ThinkingMarks, ThinkingStart, ThoughtTracker, after_text};
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
    /// The token that begins them, if it is one.
    begin: Option<TokenId>,
    /// How they are counted.
    marks: Option<ThinkingMarks>,
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
            parser.thoughts = Some(Thoughts { format, start, shown: true, begin: None, marks: None });
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
            begin: chat.reasoning_begin,
            marks: chat.thinking().cloned(),
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
        match (thoughts.start, thoughts.begin) {
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
            Some(Thoughts { start: Start::Marker, begin: None, .. }) if constrained => ThinkingStart::Never,
            Some(Thoughts { start: Start::Marker, .. }) => ThinkingStart::Marker,
            Some(Thoughts { start: Start::Outside, .. }) => ThinkingStart::Never,
        }
    }

    /// At the beginning of an answer.
    pub fn start(&self) -> Reading {
        let thoughts = self.thoughts.clone().map(|thoughts| {
            let reader = ReasoningReader::new(thoughts.format, thoughts.start);
            let tracker = thoughts.marks.as_ref().map(|marks| {
                let start = match thoughts.start {
                    Start::Inside | Start::InsideOrMarker => ThinkingStart::Inside { spent: 0 },
                    Start::Marker => ThinkingStart::Marker,
                    Start::Outside => ThinkingStart::Never,
                };
                ThoughtTracker::new(marks, start)
            });
            ThoughtReading { reader, shown: thoughts.shown, tracker }
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
    reader: ReasoningReader,
    shown: bool,
    /// Counts; by tokens, so that it does not matter which of them come together.
    tracker: Option<ThoughtTracker>,
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
        if let Some(tracker) = &mut self.tracker {
            delta.token_ids.iter().for_each(|&token| tracker.take(token));
            delta.num_reasoning_tokens = tracker.num_tokens();
        }
        self.reader.push(text, &mut delta.reasoning, rest);
        if last {
            self.reader.finish(&mut delta.reasoning, rest);
        }
        if !self.shown {
            delta.reasoning.clear();
        }
    }
}
