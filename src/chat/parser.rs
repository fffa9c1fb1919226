//! [`ChatParser`]: how the text of one request's answers is taken apart, and [`Reading`], the state of doing it.

use std::sync::Arc;

use quire_scheduler::{Grammar, TokenId};

use super::delta::{ChatDelta, Pieces};
use super::harmony::{self, HarmonyReader};
use super::reasoning::{ReasoningFormat, ReasoningReader, Start};
use super::setup::ChatSetup;
use super::thought_count::{ThoughtCount, ThoughtMarks};
use super::tools::{Tool, ToolFormat, ToolReader};
use crate::grammar::{ThinkingMarks, ThinkingStart, ThoughtTracker, after_text, after_tokens};
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
    /// The message that the prompt has begun, of those that answer in channels.
    begun: Arc<str>,
    marks: ThoughtMarks,
    /// The same as texts.
    thinking: Option<ThinkingMarks>,
}

impl Thoughts {
    /// Counts tokens by the texts of the markers.
    fn tracker(&self) -> Option<ThoughtTracker> {
        let start = match self.start {
            Start::Inside | Start::InsideOrMarker => ThinkingStart::Inside { spent: 0 },
            Start::Marker => ThinkingStart::Marker,
            Start::Outside => ThinkingStart::Never,
        };
        self.thinking.as_ref().map(|marks| ThoughtTracker::new(marks, start))
    }
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
            parser.thoughts = Some(Thoughts {
                format,
                start,
                shown: true,
                begun: "".into(),
                marks: ThoughtMarks::default(),
                thinking: None,
            });
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
            begun: harmony::begun(prompt).into(),
            marks: chat.thought_marks.clone(),
            thinking: chat.thinking().cloned(),
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
        let begin = Some(&*thoughts.marks.begin).filter(|begin| !begin.is_empty());
        if self.channels().is_some() {
            return self.in_channels(grammar, begin, tokenizer);
        }
        let Some(end) = thoughts.format.ends().last() else { return grammar };
        match (thoughts.start, begin) {
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
            Some(Thoughts { start: Start::Marker, marks, .. }) if constrained && marks.begin.is_empty() => {
                ThinkingStart::Never
            }
            Some(Thoughts { start: Start::Marker, .. }) => ThinkingStart::Marker,
            Some(Thoughts { start: Start::Outside, .. }) => ThinkingStart::Never,
        }
    }

    /// `grammar` for the message after the thoughts. That of calls has their headers in it.
    fn in_channels(&self, grammar: Grammar, begin: Option<&[TokenId]>, tokenizer: &Tokenizer) -> Grammar {
        let is_begun = self.channels().is_some_and(|begun| begun.contains(harmony::MESSAGE));
        let Some(begin) = begin.filter(|_| !is_begun) else { return grammar };
        let header = tokenizer.encode(harmony::FINAL_HEADER, false).unwrap_or_default();
        let message = if self.calls.is_some() { grammar } else { after_tokens(&grammar, &header) };
        after_text(&message, harmony::AFTER_THOUGHTS, Some(begin), tokenizer)
    }

    /// At the beginning of an answer.
    pub fn start(&self) -> Reading {
        let (reader, inside) = match self.channels() {
            Some(prompt) => {
                let shown = self.thoughts.as_ref().is_none_or(|thoughts| thoughts.shown);
                let calls = self.calls.as_ref().map(|calls| calls.only_first);
                let reader = HarmonyReader::new(prompt, shown, calls);
                let inside = reader.is_in_thoughts();
                (Reader::Channels(reader), inside)
            }
            None => self.start_staged(),
        };
        let again = matches!(reader, Reader::Channels(_));
        let count = self.thoughts.as_ref().map(|thoughts| {
            ThoughtCount::new(thoughts.marks.clone(), inside, again).tracked_by(thoughts.tracker())
        });
        Reading { reader, count, pieces: Pieces::default() }
    }

    fn start_staged(&self) -> (Reader, bool) {
        let thoughts = self.thoughts.as_ref().map(|thoughts| ThoughtReading {
            reader: ReasoningReader::new(thoughts.format, thoughts.start),
            shown: thoughts.shown,
        });
        let inside = thoughts.as_ref().is_some_and(|thoughts| thoughts.reader.is_inside());
        let calls = self
            .calls
            .as_ref()
            .map(|calls| ToolReader::new(calls.format, calls.tools.clone(), calls.only_first));
        (Reader::Staged { thoughts, calls, rest: String::new() }, inside)
    }

    /// If the answer comes in channels: the message that the prompt has begun.
    fn channels(&self) -> Option<&str> {
        let thoughts = self.thoughts.as_ref().filter(|thoughts| thoughts.format.is_in_channels());
        match &self.calls {
            Some(calls) if !calls.format.is_in_channels() => None,
            None => thoughts.map(|thoughts| &*thoughts.begun),
            Some(_) => Some(thoughts.map_or("", |thoughts| &thoughts.begun)),
        }
    }
}

/// The state of reading one answer.
#[derive(Debug, Clone)]
pub struct Reading {
    reader: Reader,
    count: Option<ThoughtCount>,
    /// Read and not told yet.
    pieces: Pieces,
}

#[derive(Debug, Clone)]
enum Reader {
    /// Thoughts are taken off first, and calls found in the rest.
    Staged {
        thoughts: Option<ThoughtReading>,
        calls: Option<ToolReader>,
        /// Between the two; empty between two pushes.
        rest: String,
    },
    Channels(HarmonyReader),
}

#[derive(Debug, Clone)]
struct ThoughtReading {
    reader: ReasoningReader,
    shown: bool,
}

impl Reading {
    /// Takes in `text`, which `token_ids` have brought. `last` = nothing follows.
    pub fn push(&mut self, text: &str, token_ids: &[TokenId], last: bool) {
        if let Some(count) = &mut self.count {
            count.push(token_ids, self.reader.is_in_thoughts());
        }
        let out = &mut self.pieces;
        match &mut self.reader {
            Reader::Channels(reader) => {
                reader.push(text, out);
                if last {
                    reader.finish(out);
                }
            }
            Reader::Staged { thoughts, calls, rest } => {
                match thoughts {
                    Some(thoughts) => thoughts.push(text, last, out, rest),
                    None => rest.push_str(text),
                }
                match calls {
                    Some(calls) => calls.push(rest, out),
                    None => out.content(rest),
                }
                if let (Some(calls), true) = (calls, last) {
                    calls.finish(out);
                }
                rest.clear();
            }
        }
    }

    /// Moves what has been read into `delta`, whose texts are empty, as far as it can be told in one; false if
    /// more is to be told in the next.
    pub fn tell(&mut self, delta: &mut ChatDelta) -> bool {
        self.pieces.tell(delta);
        delta.num_tool_calls = match &self.reader {
            Reader::Channels(reader) => reader.num_calls(),
            Reader::Staged { calls, .. } => calls.as_ref().map_or(0, ToolReader::num_calls),
        };
        delta.num_reasoning_tokens = self.count.as_ref().map_or(0, ThoughtCount::num_tokens);
        self.pieces.is_empty()
    }
}

impl Reader {
    /// Whether what comes now may be thoughts.
    fn is_in_thoughts(&self) -> bool {
        match self {
            Self::Channels(reader) => reader.is_in_thoughts(),
            Self::Staged { thoughts, .. } => {
                thoughts.as_ref().is_some_and(|thoughts| thoughts.reader.is_inside())
            }
        }
    }
}

impl ThoughtReading {
    fn push(&mut self, text: &str, last: bool, out: &mut Pieces, rest: &mut String) {
        let mut reasoning = String::new();
        self.reader.push(text, &mut reasoning, rest);
        if last {
            self.reader.finish(&mut reasoning, rest);
        }
        if self.shown {
            out.reasoning(&reasoning);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a text that comes at once, as one letter a piece.
    fn told(text: &str) -> (String, u32) {
        let mut reading = ChatParser::named(Some("hermes"), Some("qwen3")).unwrap().start();
        reading.push(text, &[], true);
        let (mut letters, mut more) = (String::new(), true);
        let mut delta = ChatDelta::default();
        while more {
            delta = ChatDelta::default();
            more = !reading.tell(&mut delta);
            letters.push_str(if delta.reasoning.is_empty() { "" } else { "r" });
            letters.push_str(if delta.content.is_empty() { "" } else { "c" });
            letters.extend(delta.tool_calls.iter().filter(|call| call.start.is_some()).map(|_| 'f'));
            letters.push('.');
        }
        (letters, delta.num_tool_calls)
    }

    #[test]
    fn what_comes_at_once_is_told_in_its_order() {
        let call = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
        assert_eq!(told("a"), ("c.".into(), 0));
        assert_eq!(told(&format!("<think>a</think>b{call}{call}")), ("rcff.".into(), 2));
        assert_eq!(told(&format!("a{call}b{call}{call}c")), ("cf.cff.c.".into(), 3));
    }
}
