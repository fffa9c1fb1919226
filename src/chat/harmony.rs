//! [`HarmonyReader`]: takes apart the answers of models that write in channels (OpenAI's harmony, of gpt-oss).
//!
//! ```text
//! <|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather
//! <|constrain|>json<|message|>{"city": "Paris"}<|call|>
//! ```
//!
//! An answer is one message or more, each with a header. What its channel and recipient say is told apart here:
//! `analysis` is reasoning; a function as the recipient makes it a call, whatever the channel; `final`, and
//! `commentary` to nobody, is content. Calls of OpenAI's own tools, which are not offered here, are left out. Two
//! messages of reasoning, or of content, are set apart by a line break, as vLLM does. What has no header that can
//! be understood is content.

use super::delta::Pieces;
use super::tools::Calls;
use super::window::{Look, Window};

/// The state of reading one answer.
#[derive(Debug, Clone)]
pub(super) struct HarmonyReader {
    at: At,
    /// The header as far as the prompt has written it.
    begun: String,
    /// The rest of it.
    header: String,
    window: Window,
    /// At the end of arguments: nobody's text, unless something follows.
    blanks: String,
    calls: Calls,
    may_call: bool,
    shows_reasoning: bool,
    has_reasoning: bool,
    has_content: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Header,
    /// In a message of which `empty` = nothing was seen.
    Message {
        kind: Kind,
        empty: bool,
    },
}

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Content,
    Arguments,
    LeftOut,
}

const START: &str = "<|start|>";
/// Ends a header.
pub(super) const MESSAGE: &str = "<|message|>";
/// Of an answer to the user.
pub(super) const FINAL_HEADER: &str = "<|channel|>final<|message|>";
/// Between thoughts and the header of the next message.
pub(super) const AFTER_THOUGHTS: &str = "<|end|><|start|>assistant";
/// After a message.
const ENDS: [&str; 3] = ["<|end|>", "<|call|>", "<|return|>"];
/// What a header may begin with, besides blanks.
const HEADER_BEGINS: [&str; 9] =
    ["<|channel|>", "<|constrain|>", "assistant", "to=", START, MESSAGE, ENDS[0], ENDS[1], ENDS[2]];
const MAX_HEADER_BYTES: usize = 512;

/// The message that a prompt has begun, from its header on, as far as it goes; empty if there is none.
pub(super) fn begun(prompt: &str) -> &str {
    prompt.rfind(START).map_or("", |at| &prompt[at + START.len()..])
}

impl HarmonyReader {
    /// `prompt` = the message that the prompt has [begun]. `calls` = the model may call; only the first call
    /// counts if that is true.
    pub(super) fn new(prompt: &str, shows_reasoning: bool, calls: Option<bool>) -> Self {
        let mut reader = Self {
            at: At::Header,
            begun: String::new(),
            header: String::new(),
            window: Window::default(),
            blanks: String::new(),
            calls: Calls::of_vllm(calls.unwrap_or_default()),
            may_call: calls.is_some(),
            shows_reasoning,
            has_reasoning: false,
            has_content: false,
        };
        match prompt.split_once(MESSAGE) {
            Some((_, text)) if ENDS.iter().any(|end| text.contains(end)) => (),
            Some((header, _)) => reader.begin_message(header),
            None => reader.begun = prompt.chars().take(MAX_HEADER_BYTES).collect(),
        }
        reader
    }

    /// Whether what comes now is thoughts.
    pub(super) fn is_in_thoughts(&self) -> bool {
        matches!(self.at, At::Message { kind: Kind::Reasoning, .. })
    }

    /// Calls begun so far.
    pub(super) fn num_calls(&self) -> u32 {
        self.calls.num_reported()
    }

    /// Takes text in and gives out what it means.
    pub(super) fn push(&mut self, text: &str, out: &mut Pieces) {
        self.calls.exchange(out);
        text.chars().for_each(|c| self.feed(c));
        self.calls.exchange(out);
    }

    /// Nothing follows: gives out what was held back. A header that is cut short is nobody's text.
    pub(super) fn finish(&mut self, out: &mut Pieces) {
        self.calls.exchange(out);
        if self.at == At::Header {
            let header = std::mem::take(&mut self.header);
            if !header.contains("|>") {
                self.fall_back(&header);
            }
        }
        let held = self.window.take();
        held.chars().for_each(|c| self.text(c));
        self.end_message();
        self.calls.exchange(out);
    }

    fn feed(&mut self, c: char) {
        match self.at {
            At::Header => self.feed_header(c),
            At::Message { .. } => self.feed_message(c),
        }
    }

    fn feed_header(&mut self, c: char) {
        self.header.push(c);
        let header = self.header.trim_start();
        let is_header = header.chars().all(is_of_header)
            && HEADER_BEGINS.iter().any(|begin| begin.starts_with(header) || header.starts_with(begin))
            && header.len() <= MAX_HEADER_BYTES;
        if let Some(header) = self.header.strip_suffix(MESSAGE) {
            let header = std::mem::take(&mut self.begun) + header;
            self.header.clear();
            self.begin_message(&header);
        } else if self.header.ends_with(START) || ENDS.contains(&header) {
            self.begun.clear();
            self.header.clear();
        } else if !is_header {
            let header = std::mem::take(&mut self.header);
            self.fall_back(&header);
        }
    }

    /// What was taken for a header is none.
    fn fall_back(&mut self, text: &str) {
        self.at = At::Message { kind: Kind::Content, empty: true };
        text.chars().for_each(|c| self.feed_message(c));
    }

    fn begin_message(&mut self, header: &str) {
        let kind = match recipient(header) {
            Some(name) if is_function(name) => {
                let name = name.strip_prefix("functions.").unwrap_or(name);
                match self.may_call {
                    true if self.calls.begin(name, None) => Kind::Arguments,
                    true => Kind::Content,
                    false => Kind::LeftOut,
                }
            }
            recipient => match channel(header) {
                "analysis" => Kind::Reasoning,
                _ if recipient.is_some() => Kind::LeftOut,
                _ => Kind::Content,
            },
        };
        self.at = At::Message { kind, empty: true };
    }

    fn feed_message(&mut self, c: char) {
        self.window.push(c);
        loop {
            match self.window.look(ENDS.into_iter().chain([START])) {
                Look::Beginning => return,
                Look::Whole(_) => {
                    self.window.take();
                    self.end_message();
                    self.at = At::Header;
                    return;
                }
                Look::Neither => {
                    let Some(first) = self.window.pop_first() else { return };
                    self.text(first);
                }
            }
        }
    }

    /// A character of a message.
    fn text(&mut self, c: char) {
        let At::Message { kind, empty } = &mut self.at else { return };
        let (kind, first) = (*kind, std::mem::take(empty));
        let mut bytes = [0; 4];
        let text: &str = c.encode_utf8(&mut bytes);
        match kind {
            Kind::LeftOut => (),
            Kind::Reasoning if !self.shows_reasoning => (),
            Kind::Reasoning => {
                if std::mem::replace(&mut self.has_reasoning, true) && first {
                    self.calls.reasoning("\n");
                }
                self.calls.reasoning(text);
            }
            Kind::Content => {
                if std::mem::replace(&mut self.has_content, true) && first {
                    self.calls.content("\n");
                }
                self.calls.content(text);
            }
            Kind::Arguments if c.is_whitespace() => {
                // Blanks before and after the object do not count.
                if !first {
                    self.blanks.push(c);
                }
                self.at = At::Message { kind, empty: first };
            }
            Kind::Arguments => {
                self.blanks.push(c);
                self.calls.arguments(&self.blanks);
                self.blanks.clear();
            }
        }
    }

    fn end_message(&mut self) {
        self.blanks.clear();
        if self.at == (At::Message { kind: Kind::Arguments, empty: true }) {
            self.calls.arguments("{}");
        }
    }
}

fn is_of_header(c: char) -> bool {
    c.is_alphanumeric() || c == ' ' || "<|>_-.:=/$".contains(c)
}

/// The word after the channel's marker; empty if there is none.
fn channel(header: &str) -> &str {
    let (_, rest) = header.split_once("<|channel|>").unwrap_or_default();
    word(rest)
}

/// To whom the message goes, if to anybody.
fn recipient(header: &str) -> Option<&str> {
    let (_, rest) = header.split_once("to=")?;
    Some(word(rest)).filter(|recipient| !recipient.is_empty())
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(text.len());
    &text[..end]
}

/// Whether this is one of the client's functions. Models leave out the namespace now and then.
fn is_function(recipient: &str) -> bool {
    let namespace = recipient.split('.').next().unwrap_or_default();
    !matches!(namespace, "assistant" | "python" | "browser" | "container")
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;
    use crate::chat::{ChatDelta, ToolCallDelta};

    /// What an answer is told as: one letter for what it is, and the text.
    fn read<'a>(prompt: &str, pieces: impl IntoIterator<Item = &'a str>) -> Vec<(char, String)> {
        let mut reader = HarmonyReader::new(begun(prompt), true, Some(false));
        let mut out = Pieces::default();
        pieces.into_iter().for_each(|piece| reader.push(piece, &mut out));
        reader.finish(&mut out);
        let mut told: Vec<(char, String)> = Vec::new();
        while !out.is_empty() {
            let mut delta = ChatDelta::default();
            out.tell(&mut delta);
            told.extend([('r', delta.reasoning), ('c', delta.content)]);
            for ToolCallDelta { start, arguments, .. } in delta.tool_calls {
                told.extend(start.map(|start| ('f', start.name)));
                told.push(('a', arguments));
            }
        }
        told.retain(|(_, text)| !text.is_empty());
        told
    }

    fn whole(text: &str) -> Vec<(char, String)> {
        let whole = read("<|start|>assistant", [text]);
        let by_char = text.char_indices().map(|(at, c)| &text[at..at + c.len_utf8()]);
        assert_eq!(read("<|start|>assistant", by_char), whole, "{text}");
        whole
    }

    #[track_caller]
    fn check(text: &str, expected: &[(char, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(kind, text)| (*kind, text.to_string())).collect();
        assert_eq!(whole(text), expected, "{text}");
    }

    #[test]
    fn messages_are_what_their_headers_say() {
        check(
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.",
            &[('r', "Hm."), ('c', "Yes.")],
        );
        // The recipient after the channel, or before it; with and without the constraint and the namespace.
        for header in [
            "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
            "<|start|>assistant to=functions.f<|channel|>commentary<|constrain|>json<|message|>",
            "<|start|>assistant to=functions.f<|channel|>analysis json<|message|>",
            "<|start|>assistant<|channel|>final to=f<|message|>",
        ] {
            let text =
                format!("<|channel|>analysis<|message|>Hm.<|end|>{header} {{\"a\": \"b c\"}}\n<|call|>");
            check(&text, &[('r', "Hm."), ('f', "f"), ('a', "{\"a\": \"b c\"}")]);
        }
        check(" to=functions.a.b<|channel|>commentary<|message|><|call|>", &[('f', "a.b"), ('a', "{}")]);
        check(
            "<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|end|>",
            &[('c', "Let me see."), ('f', "f"), ('a', "{}")],
        );
        check("<|channel|>final <|constrain|>json<|message|>{\"a\": 1}<|end|>", &[('c', "{\"a\": 1}")]);
        // Of OpenAI's own tools.
        check(
            "<|channel|>commentary to=browser.open<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>x",
            &[('c', "x")],
        );
        check("<|channel|>analysis to=python code<|message|>1+1<|call|>", &[('r', "1+1")]);
    }

    #[test]
    fn the_order_is_kept() {
        check(
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>\
             <|start|>assistant<|channel|>final<|message|>b<|end|><|start|>assistant<|channel|>analysis<|message|>c<|end|>\
             <|start|>assistant to=functions.g<|channel|>commentary<|message|>{}<|call|>",
            &[('r', "a"), ('f', "f"), ('a', "{}"), ('c', "b"), ('r', "\nc"), ('f', "g"), ('a', "{}")],
        );
    }

    #[test]
    fn what_is_broken_is_content() {
        check("Hello, <b>", &[('c', "Hello, <b>")]);
        check("assistants", &[('c', "assistants")]);
        check("<|channel|>final {\"answer\": \"hi\"}", &[('c', "<|channel|>final {\"answer\": \"hi\"}")]);
        check(
            "<|channel|>analysis<|message|>a<|end|><|return|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            &[('r', "a"), ('c', "b")],
        );
        check("<|channel|>final<|message|>a <|e", &[('c', "a <|e")]);
        // A message that lacks its end, and a header that lacks its own.
        check("<|channel|>final<|message|>a<|start|>assistant<|channel|>final<|message|>b", &[('c', "a\nb")]);
        check("<|channel|>ana", &[]);
    }

    #[test]
    fn a_message_may_begin_in_the_prompt() {
        for (prompt, text, expected) in [
            (
                "<|start|>user<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>It",
                " is.",
                ('c', " is."),
            ),
            ("<|start|>assistant<|channel|>analysis", "<|message|>Hm.<|end|>", ('r', "Hm.")),
            (
                "<|start|>assistant<|channel|>final<|message|>x<|end|>",
                "<|channel|>final<|message|>y",
                ('c', "y"),
            ),
            ("[INST] hi", "<|channel|>final<|message|>y", ('c', "y")),
        ] {
            assert_eq!(read(prompt, [text]), [(expected.0, expected.1.into())], "{prompt}");
        }
    }

    #[test]
    fn the_stream_reads_what_the_whole_reads() {
        let parts = [
            "<|start|>",
            "assistant",
            "<|channel|>",
            "analysis",
            "final",
            "commentary",
            "<|message|>",
            "<|end|>",
            "<|call|>",
            "<|return|>",
            " to=functions.f",
            " to=python",
            "<|constrain|>json",
            "{\"a\": 1}",
            " ",
            "\n",
            "é",
            "<|",
        ];
        for seed in 0..3000 {
            let mut rng = StdRng::seed_from_u64(seed);
            let text: String =
                (0..rng.random_range(0..14)).map(|_| parts[rng.random_range(0..parts.len())]).collect();
            let told = whole(&text);
            let shown: usize =
                told.iter().filter(|(kind, _)| "rc".contains(*kind)).map(|(_, text)| text.len()).sum();
            assert!(shown <= text.len(), "seed {seed}: {text:?}: {told:?}");
        }
    }

    #[test]
    fn what_nobody_may_see_is_left_out() {
        let mut reader = HarmonyReader::new("assistant", false, None);
        let mut out = Pieces::default();
        reader.push("<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{}<|call|>", &mut out);
        reader.finish(&mut out);
        assert!(out.is_empty() && reader.num_calls() == 0);
    }
}
