//! [`ToolReader`]: finds the tool calls in an answer.
//!
//! All formats have one frame. A marker opens a section; in it come calls, with separators and blanks between
//! them; a marker, or anything else, ends it. What a call looks like is the matter of a [`Body`].
//!
//! Whatever turns out not to be a call is content, with the marker before it. A call counts as one from the
//! moment its name is known and its arguments begin: from then on its arguments are passed on as they come,
//! even if they break off. Blanks next to calls belong to them.

use std::sync::Arc;

use super::calls::{Calls, Step};
use super::format::{Body, ToolFormat};
use super::tool::Tool;
use crate::chat::delta::Pieces;
use crate::chat::window::{Look, Window};

/// The state of reading one answer.
#[derive(Debug, Clone)]
pub(in crate::chat) struct ToolReader {
    format: &'static ToolFormat,
    tools: Arc<[Tool]>,
    calls: Calls,
    at: At,
    window: Window,
    /// What was taken for the beginning of a call and may yet be content.
    raw: String,
    /// The section has had a call.
    has_called: bool,
    /// Blanks of which it is not known yet whether a call follows.
    blanks: String,
    /// There was content.
    has_content: bool,
}

#[derive(Debug, Clone)]
enum At {
    Text,
    Section,
    /// After the marker of a call, before anything of it.
    Opened,
    /// `begun` = it is certain that this is a call.
    Call {
        body: Box<Body>,
        begun: bool,
    },
}

impl ToolReader {
    pub(in crate::chat) fn new(format: &'static ToolFormat, tools: Arc<[Tool]>, only_first: bool) -> Self {
        Self {
            format,
            tools,
            calls: Calls::new(format.ids, only_first),
            at: At::Text,
            window: Window::default(),
            raw: String::new(),
            has_called: false,
            blanks: String::new(),
            has_content: false,
        }
    }

    /// Calls begun so far.
    pub(in crate::chat) fn num_calls(&self) -> u32 {
        self.calls.num_reported()
    }

    /// Takes text in and gives out what it means.
    pub(in crate::chat) fn push(&mut self, text: &str, out: &mut Pieces) {
        self.calls.exchange(out);
        self.feed_all(text);
        self.calls.exchange(out);
    }

    /// Nothing follows: gives out what was held back.
    pub(in crate::chat) fn finish(&mut self, out: &mut Pieces) {
        self.calls.exchange(out);
        match std::mem::replace(&mut self.at, At::Text) {
            At::Text => (),
            At::Section => self.leave_section(),
            At::Call { mut body, begun: true } => body.finish(&mut self.calls),
            At::Opened | At::Call { begun: false, .. } => self.give_up(),
        }
        let held = self.window.take();
        self.content(&held);
        if self.calls.num_begun() == 0 {
            self.calls.content(&self.blanks);
        }
        self.blanks.clear();
        self.calls.exchange(out);
    }

    fn feed(&mut self, c: char) {
        match &self.at {
            At::Text => self.feed_text(c),
            At::Section => self.feed_section(c),
            At::Opened if c.is_whitespace() => self.raw.push(c),
            At::Opened => {
                self.at = At::Call { body: Box::new(self.format.body(c, &self.tools)), begun: false };
                self.feed_call(c);
            }
            At::Call { .. } => self.feed_call(c),
        }
    }

    fn feed_all(&mut self, text: &str) {
        text.chars().for_each(|c| self.feed(c));
    }

    fn feed_text(&mut self, c: char) {
        self.window.push(c);
        loop {
            match self.window.look(self.format.openers()) {
                Look::Beginning => return,
                Look::Whole(marker) => {
                    self.window.take();
                    self.open(marker);
                    return;
                }
                Look::Neither if self.is_bare_section() => {
                    // Nothing but its look and its name will show that this is a call.
                    let held = self.window.take();
                    self.open("");
                    self.calls.names = Some(self.tools.iter().map(|tool| tool.name.clone()).collect());
                    return self.feed_all(&held);
                }
                Look::Neither => {
                    let Some(first) = self.window.pop_first() else { return };
                    self.content(first.encode_utf8(&mut [0; 4]));
                }
            }
        }
    }

    /// Whether the window begins a section that no marker announces.
    fn is_bare_section(&self) -> bool {
        let may_be = !self.has_content && self.calls.num_begun() == 0;
        may_be && self.window.first().is_some_and(|first| self.format.bare == Some(first))
    }

    fn open(&mut self, marker: &str) {
        self.raw.push_str(marker);
        self.has_called = false;
        self.calls.names = None;
        self.at = At::Section;
        if self.format.call_open.contains(&marker) {
            self.begin_call();
        }
    }

    fn feed_section(&mut self, c: char) {
        if self.window.is_empty() && c.is_whitespace() {
            self.raw.push(c);
            return;
        }
        self.window.push(c);
        match self.window.look(self.format.section_markers()) {
            Look::Beginning => (),
            Look::Whole(marker) => self.pass(marker),
            Look::Neither => {
                if let Some(marker) = self.window.longest(self.format.section_markers()) {
                    return self.pass(marker);
                }
                let held = self.window.take();
                if self.format.call_open.is_empty() && self.format.may_begin(&held) {
                    self.begin_call();
                } else {
                    self.leave_section();
                }
                self.feed_all(&held);
            }
        }
    }

    /// The window begins with a marker of sections.
    fn pass(&mut self, marker: &'static str) {
        let held = self.window.take();
        self.raw.push_str(marker);
        if self.format.call_open.contains(&marker) {
            self.begin_call();
        } else if self.format.close == marker {
            if self.has_called {
                self.raw.clear();
            }
            self.leave_section();
        }
        self.feed_all(&held[marker.len()..]);
    }

    fn begin_call(&mut self) {
        if self.has_called {
            // Separators after a call: nobody's text.
            self.raw.clear();
        }
        self.at = At::Opened;
    }

    fn feed_call(&mut self, c: char) {
        let At::Call { body, begun } = &mut self.at else { unreachable!("called in a call only") };
        let num_begun = self.calls.num_begun();
        let step = body.feed(c, &mut self.calls);
        if self.calls.num_begun() > num_begun {
            *begun = true;
            self.has_called = true;
            self.raw.clear();
            self.blanks.clear();
        }
        match step {
            Step::More if *begun => (),
            Step::More => self.raw.push(c),
            Step::Done => self.at = At::Section,
            Step::Foreign => {
                let rest = body.take_rest();
                if *begun {
                    self.at = At::Section;
                } else {
                    self.give_up();
                }
                self.feed_all(&rest);
                self.feed(c);
            }
        }
    }

    /// What was taken for a call is none.
    fn give_up(&mut self) {
        let raw = std::mem::take(&mut self.raw);
        self.content(&raw);
        self.at = At::Text;
    }

    fn leave_section(&mut self) {
        if self.has_called {
            let raw = std::mem::take(&mut self.raw);
            self.blanks.extend(raw.chars().filter(|c| c.is_whitespace()));
            self.at = At::Text;
        } else {
            self.give_up();
        }
    }

    fn content(&mut self, text: &str) {
        for c in text.chars() {
            if c.is_whitespace() {
                self.blanks.push(c);
            } else {
                self.has_content = true;
                self.blanks.push(c);
                self.calls.content(&self.blanks);
                self.blanks.clear();
            }
        }
    }
}
