//! [`XmlCall`]: a call whose parameters stand between tags, each value as plain text.
//!
//! ```text
//! <function=get_weather>
//! <parameter=city>
//! Paris
//! </parameter>
//! </function>
//! ```
//!
//! The arguments are made into JSON: a value is a string where the tool's schema says so (and streams), else
//! JSON if it is any, else a string.

use std::sync::Arc;

use super::calls::{Calls, Step};
use super::json::{push_escaped, push_json_text};
use super::tool::Tool;
use super::values::{Kind, as_json, kind_of};
use crate::chat::window::{Look, Window};

/// The tags of one format. What begins a call has been read before.
#[derive(Debug)]
pub(super) struct XmlTags {
    /// Ends the name, if no parameter and not the end of the call does.
    pub(super) name_end: &'static str,
    /// Ends what stands after the name, if anything does.
    pub(super) head_end: &'static str,
    pub(super) key_open: &'static str,
    pub(super) key_close: &'static str,
    /// Between key and value, if there is anything; whether the value is a string, if that tells.
    pub(super) value_open: &'static [(&'static str, Option<bool>)],
    /// Other text may stand before that, such as types that say no more than the value itself.
    pub(super) skips_to_value: bool,
    pub(super) value_close: &'static str,
    pub(super) call_close: &'static str,
    pub(super) edges: Edges,
}

/// What does not belong to a value at its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Edges {
    /// Everything does.
    Kept,
    /// One line break: values are on lines of their own.
    LineBreak,
    /// All blanks.
    Blanks,
}

impl XmlTags {
    /// Every tag; those that a format has not are empty.
    pub(super) fn markers(&self) -> Vec<&'static str> {
        let fixed =
            [self.name_end, self.head_end, self.key_open, self.key_close, self.value_close, self.call_close];
        self.value_open.iter().map(|(marker, _)| *marker).chain(fixed).collect()
    }
}

/// The state of reading one call.
#[derive(Debug, Clone)]
pub(super) struct XmlCall {
    tags: &'static XmlTags,
    tools: Arc<[Tool]>,
    at: At,
    window: Window,
    name: String,
    key: String,
    kind: Kind,
    /// A value that is not passed on before it is whole.
    value: String,
    /// Within a value that streams: nothing of it was seen.
    is_empty: bool,
    /// Blanks that may be the value's last.
    blanks: String,
    num_parameters: usize,
    /// What was held back when a foreign character came.
    rest: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Name,
    Head,
    Between,
    Key,
    ValueOpen,
    Value,
}

impl XmlCall {
    pub(super) fn new(tags: &'static XmlTags, tools: Arc<[Tool]>) -> Self {
        Self {
            tags,
            tools,
            at: At::Name,
            window: Window::default(),
            name: String::new(),
            key: String::new(),
            kind: Kind::Any,
            value: String::new(),
            is_empty: true,
            blanks: String::new(),
            num_parameters: 0,
            rest: String::new(),
        }
    }

    pub(super) fn feed(&mut self, c: char, calls: &mut Calls) -> Step {
        if matches!(self.at, At::Between | At::ValueOpen) && self.window.is_empty() && c.is_whitespace() {
            return Step::More;
        }
        self.window.push(c);
        loop {
            match self.window.look(self.markers()) {
                Look::Beginning => return Step::More,
                Look::Whole(marker) => {
                    self.window.take();
                    return self.pass(marker, calls);
                }
                Look::Neither if self.at == At::Between => return self.break_off(calls),
                Look::Neither if self.at == At::ValueOpen && !self.tags.skips_to_value => {
                    return self.break_off(calls);
                }
                Look::Neither => {
                    let Some(first) = self.window.pop_first() else { return Step::More };
                    if !self.take(first, calls) {
                        return Step::Foreign;
                    }
                }
            }
        }
    }

    /// What was held back, once a foreign character has come.
    pub(super) fn take_rest(&mut self) -> String {
        std::mem::take(&mut self.rest)
    }

    /// The text has ended within the call: what there is of a value is passed on, and nothing closed.
    pub(super) fn finish(&mut self, calls: &mut Calls) {
        if self.at != At::Value {
            return;
        }
        let held = self.window.take();
        let held = if self.kind == Kind::Text { held } else { std::mem::take(&mut self.value) + &held };
        self.kind = Kind::Text;
        held.chars().for_each(|c| self.take_text(c, calls));
    }

    fn markers(&self) -> impl Iterator<Item = &'static str> + use<> {
        let tags = self.tags;
        let fixed: [&str; 3] = match self.at {
            At::Name => [tags.name_end, tags.key_open, tags.call_close],
            At::Head => [tags.head_end, "", ""],
            At::Between => [tags.key_open, tags.call_close, ""],
            At::Key => [tags.key_close, "", ""],
            At::Value => [tags.value_close, "", ""],
            At::ValueOpen => [""; 3],
        };
        let opens = if self.at == At::ValueOpen { tags.value_open } else { &[] };
        fixed.into_iter().filter(|marker| !marker.is_empty()).chain(opens.iter().map(|(marker, _)| *marker))
    }

    /// A marker has come.
    fn pass(&mut self, marker: &'static str, calls: &mut Calls) -> Step {
        if self.at == At::Name {
            if self.name.trim().is_empty() && marker == self.tags.name_end {
                return Step::More;
            }
            if !calls.begin(self.name.trim(), None) {
                return Step::Foreign;
            }
            self.at = At::Between;
            if marker == self.tags.name_end {
                self.at = if self.tags.head_end.is_empty() { At::Between } else { At::Head };
                return Step::More;
            }
        }
        match self.at {
            At::Between if marker == self.tags.call_close => {
                calls.arguments(if self.num_parameters == 0 { "{}" } else { "}" });
                return Step::Done;
            }
            At::Head => self.at = At::Between,
            At::Name | At::Between => self.at = At::Key,
            At::Key if self.tags.value_open.is_empty() => self.begin_value(None, calls),
            At::Key => self.at = At::ValueOpen,
            At::ValueOpen => {
                let open = self.tags.value_open.iter().find(|(open, _)| *open == marker);
                self.begin_value(open.and_then(|(_, is_text)| *is_text), calls);
            }
            At::Value => self.end_value(calls),
        }
        Step::More
    }

    /// A character that is part of no marker; false if the call cannot have it.
    fn take(&mut self, c: char, calls: &mut Calls) -> bool {
        match self.at {
            At::Name => {
                self.name.push(c);
                return self.name.len() <= 256 && !matches!(c, '<' | '{');
            }
            At::Key => self.key.push(c),
            At::Value if self.kind == Kind::Text => self.take_text(c, calls),
            At::Value => self.value.push(c),
            At::Head | At::Between | At::ValueOpen => (),
        }
        true
    }

    fn begin_value(&mut self, is_text: Option<bool>, calls: &mut Calls) {
        let key = std::mem::take(&mut self.key);
        let tool = self.tools.iter().find(|tool| tool.name == self.name.trim());
        let schema = tool.and_then(|tool| tool.parameter(key.trim()));
        self.kind = match is_text {
            Some(true) => Kind::Text,
            Some(false) => Kind::Any,
            None => schema.map_or(Kind::Any, kind_of),
        };
        let mut text = String::from(if self.num_parameters == 0 { "{\"" } else { ", \"" });
        push_json_text(key.trim(), &mut text);
        text.push_str("\": ");
        if self.kind == Kind::Text {
            text.push('"');
        }
        calls.arguments(&text);
        self.num_parameters += 1;
        self.is_empty = true;
        self.blanks.clear();
        self.at = At::Value;
    }

    fn take_text(&mut self, c: char, calls: &mut Calls) {
        let edges = self.tags.edges;
        let may_be_edge = match edges {
            Edges::Kept => false,
            Edges::LineBreak => c == '\n',
            Edges::Blanks => c.is_whitespace(),
        };
        if std::mem::take(&mut self.is_empty) && may_be_edge {
            self.is_empty = edges == Edges::Blanks;
            return;
        }
        if may_be_edge && edges == Edges::Blanks {
            self.blanks.push(c);
            return;
        }
        // Of several line breaks only the last is held back.
        let mut text = String::new();
        push_json_text(&std::mem::take(&mut self.blanks), &mut text);
        if may_be_edge {
            self.blanks.push(c);
        } else {
            push_escaped(c, &mut text);
        }
        calls.arguments(&text);
    }

    fn end_value(&mut self, calls: &mut Calls) {
        let value = std::mem::take(&mut self.value);
        match self.kind {
            Kind::Text => calls.arguments("\""),
            Kind::TextOrNull if !matches!(value.trim(), "null" | "None") => {
                calls.arguments(&self.as_string(&value));
            }
            _ => {
                let json = as_json(&value).unwrap_or_else(|| self.as_string(&value));
                calls.arguments(&json);
            }
        }
        self.at = At::Between;
    }

    fn as_string(&self, value: &str) -> String {
        let value = match self.tags.edges {
            Edges::Kept => value,
            Edges::Blanks => value.trim(),
            Edges::LineBreak => {
                let value = value.strip_prefix('\n').unwrap_or(value);
                value.strip_suffix('\n').unwrap_or(value)
            }
        };
        let mut json = String::from("\"");
        push_json_text(value, &mut json);
        json.push('"');
        json
    }

    /// Something comes that has no place between parameters. Those that are there are whole.
    fn break_off(&mut self, calls: &mut Calls) -> Step {
        if self.at == At::Between {
            calls.arguments(if self.num_parameters == 0 { "{}" } else { "}" });
        }
        self.rest = self.window.take();
        // The last character is the one that we are asked about.
        self.rest.pop();
        Step::Foreign
    }
}
