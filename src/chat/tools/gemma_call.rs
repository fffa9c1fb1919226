//! [`GemmaCall`]: a call as Gemma writes it, which is JSON with a token for quotes and bare keys.
//!
//! ```text
//! get_weather{city:<|"|>Paris<|"|>,days:[1,2]}
//! get_weather{city:<escape>Paris<escape>,days:<escape>[1, 2]<escape>}
//! ```
//!
//! The arguments are made into JSON while they come.

use std::sync::Arc;

use super::calls::{Calls, Step};
use super::json::{push_escaped, push_json_text};
use super::tool::Tool;
use super::values::{self, as_json};
use crate::chat::window::{Look, Window};

/// Objects and lists in each other.
const MAX_DEPTH: usize = 64;

/// What differs between the models of the family.
#[derive(Debug)]
pub(super) struct GemmaQuotes {
    pub(super) quote: &'static str,
    /// Everything stands in quotes, so that the tool's schema must tell what is a string.
    pub(super) around_all: bool,
}

/// The state of reading one call, whose beginning has been read.
#[derive(Debug, Clone)]
pub(super) struct GemmaCall {
    quotes: &'static GemmaQuotes,
    tools: Arc<[Tool]>,
    at: At,
    name: String,
    key: String,
    open: Vec<Open>,
    /// Something was written since the innermost was opened.
    comma: bool,
    window: Window,
    /// A value that is not passed on before it is whole.
    value: String,
    streams: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Name,
    /// Before a key, or the end of the object.
    Key,
    QuotedKey,
    Colon,
    Value,
    Quoted,
    /// A value without quotes.
    Bare,
    After,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Object,
    List,
}

impl GemmaCall {
    pub(super) fn new(quotes: &'static GemmaQuotes, tools: Arc<[Tool]>) -> Self {
        Self {
            quotes,
            tools,
            at: At::Name,
            name: String::new(),
            key: String::new(),
            open: Vec::new(),
            comma: false,
            window: Window::default(),
            value: String::new(),
            streams: true,
        }
    }

    pub(super) fn feed(&mut self, c: char, calls: &mut Calls) -> Step {
        match self.at {
            At::Name => self.feed_name(c, calls),
            At::Quoted | At::QuotedKey => self.feed_quoted(c, calls),
            At::Bare => self.feed_bare(c, calls),
            _ if c.is_whitespace() && self.window.is_empty() && self.key.is_empty() => Step::More,
            At::Key => self.feed_key(c, calls),
            At::Colon if c == ':' => self.begin_value(calls),
            At::Value => self.feed_value(c, calls),
            At::After => self.after(c, calls),
            At::Colon => Step::Foreign,
        }
    }

    /// The text has ended within the call.
    pub(super) fn finish(&mut self, calls: &mut Calls) {
        let held = self.window.take();
        if self.at == At::Quoted && self.streams {
            self.pass_on(&held, calls);
        }
    }

    fn feed_name(&mut self, c: char, calls: &mut Calls) -> Step {
        if c != '{' {
            self.name.push(c);
            return if self.name.len() <= 256 && c != '<' { Step::More } else { Step::Foreign };
        }
        if !calls.begin(self.name.trim(), None) {
            return Step::Foreign;
        }
        self.begin(Open::Object, calls);
        Step::More
    }

    fn feed_key(&mut self, c: char, calls: &mut Calls) -> Step {
        match c {
            '}' if self.key.is_empty() && self.window.is_empty() => return self.end(Open::Object, calls),
            ',' if self.key.is_empty() && self.window.is_empty() => return Step::More,
            ':' if !self.key.is_empty() => return self.begin_value(calls),
            _ => (),
        }
        if self.key.is_empty() {
            self.window.push(c);
            match self.window.look([self.quotes.quote]) {
                Look::Beginning => return Step::More,
                Look::Whole(_) => {
                    self.window.take();
                    self.at = At::QuotedKey;
                    return Step::More;
                }
                Look::Neither => self.key = self.window.take(),
            }
        } else {
            self.key.push(c);
        }
        let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '$' | ' ');
        if self.key.chars().all(allowed) { Step::More } else { Step::Foreign }
    }

    fn begin_value(&mut self, calls: &mut Calls) -> Step {
        let mut text = String::from("\"");
        push_json_text(self.key.trim(), &mut text);
        text.push_str("\": ");
        self.separate(calls);
        calls.arguments(&text);
        self.comma = false;
        let tool = self.tools.iter().find(|tool| tool.name == self.name.trim());
        let schema = tool.and_then(|tool| tool.parameter(self.key.trim()));
        let is_text = schema.is_some_and(|schema| values::kind_of(schema) == values::Kind::Text);
        self.streams = !self.quotes.around_all || is_text;
        self.key.clear();
        self.at = At::Value;
        Step::More
    }

    fn feed_value(&mut self, c: char, calls: &mut Calls) -> Step {
        if self.window.is_empty() {
            match c {
                '{' => return self.begin(Open::Object, calls),
                '[' => return self.begin(Open::List, calls),
                ']' if self.open.last() == Some(&Open::List) => return self.end(Open::List, calls),
                ',' | '}' | ']' | ':' => return Step::Foreign,
                _ => (),
            }
        }
        self.window.push(c);
        match self.window.look([self.quotes.quote]) {
            Look::Beginning => Step::More,
            Look::Whole(_) => {
                self.window.take();
                self.separate(calls);
                if self.streams {
                    calls.arguments("\"");
                }
                self.at = At::Quoted;
                Step::More
            }
            Look::Neither => {
                self.separate(calls);
                self.at = At::Bare;
                let held = self.window.take();
                let mut steps = held.chars().map(|c| self.feed_bare(c, calls));
                steps.find(|step| *step != Step::More).unwrap_or(Step::More)
            }
        }
    }

    fn feed_quoted(&mut self, c: char, calls: &mut Calls) -> Step {
        self.window.push(c);
        loop {
            match self.window.look([self.quotes.quote]) {
                Look::Beginning => return Step::More,
                Look::Whole(_) => {
                    self.window.take();
                    self.end_quoted(calls);
                    return Step::More;
                }
                Look::Neither => {
                    let Some(first) = self.window.pop_first() else { return Step::More };
                    self.pass_on(first.encode_utf8(&mut [0; 4]), calls);
                }
            }
        }
    }

    fn pass_on(&mut self, text: &str, calls: &mut Calls) {
        if self.at == At::QuotedKey {
            self.key.push_str(text);
        } else if self.streams {
            let mut escaped = String::new();
            text.chars().for_each(|c| push_escaped(c, &mut escaped));
            calls.arguments(&escaped);
        } else {
            self.value.push_str(text);
        }
    }

    fn end_quoted(&mut self, calls: &mut Calls) {
        if self.at == At::QuotedKey {
            self.at = At::Colon;
            return;
        }
        if self.streams {
            calls.arguments("\"");
        } else {
            calls.arguments(&as_json_or_text(&std::mem::take(&mut self.value)));
        }
        self.at = At::After;
    }

    fn feed_bare(&mut self, c: char, calls: &mut Calls) -> Step {
        if !matches!(c, ',' | '}' | ']') {
            self.value.push(c);
            return if c == '<' { Step::Foreign } else { Step::More };
        }
        calls.arguments(&as_json_or_text(&std::mem::take(&mut self.value)));
        self.at = At::After;
        self.after(c, calls)
    }

    fn after(&mut self, c: char, calls: &mut Calls) -> Step {
        match (c, self.open.last()) {
            (',', Some(Open::Object)) => self.at = At::Key,
            (',', Some(Open::List)) => self.at = At::Value,
            ('}', Some(Open::Object)) => return self.end(Open::Object, calls),
            (']', Some(Open::List)) => return self.end(Open::List, calls),
            _ => return Step::Foreign,
        }
        Step::More
    }

    fn begin(&mut self, open: Open, calls: &mut Calls) -> Step {
        if self.open.len() >= MAX_DEPTH {
            return Step::Foreign;
        }
        self.separate(calls);
        calls.arguments(if open == Open::Object { "{" } else { "[" });
        self.at = if open == Open::Object { At::Key } else { At::Value };
        self.open.push(open);
        self.comma = false;
        Step::More
    }

    fn end(&mut self, open: Open, calls: &mut Calls) -> Step {
        calls.arguments(if open == Open::Object { "}" } else { "]" });
        self.open.pop();
        self.comma = true;
        self.at = At::After;
        if self.open.is_empty() { Step::Done } else { Step::More }
    }

    /// Writes the comma before what comes, if something came before.
    fn separate(&mut self, calls: &mut Calls) {
        if std::mem::replace(&mut self.comma, true) {
            calls.arguments(", ");
        }
    }
}

fn as_json_or_text(value: &str) -> String {
    as_json(value).unwrap_or_else(|| {
        let mut json = String::from("\"");
        push_json_text(value.trim(), &mut json);
        json.push('"');
        json
    })
}
