//! [`JsonCall`]: a call that is a JSON object of a name and arguments.
//!
//! ```text
//! {"name": "get_weather", "arguments": {"city": "Paris"}}
//! ```
//!
//! `parameters` is another word for `arguments`, and `tool_name` for `name`; the two keys come in any order; arguments may be missing (then
//! they are `{}`) or be a string of JSON; all may be wrapped in `{"type": "function", "function": {...}}`. The
//! arguments stream as they come once the name is known.

use serde_json::Value;

use super::calls::{Calls, Step};
use super::json::{JsonStep, JsonText};

/// The state of reading one object.
#[derive(Debug, Default, Clone)]
pub(super) struct JsonCall {
    at: At,
    /// The key or the string being read, as written.
    word: String,
    escaped: bool,
    /// What the string being read is.
    role: Role,
    name: Option<String>,
    /// Arguments that came before the name.
    held: Option<String>,
    json: JsonText,
    /// Objects around the call.
    wrappers: u32,
    begun: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Open,
    KeyOrClose,
    Key,
    Colon,
    Value,
    Text,
    Object,
    Word,
    CommaOrClose,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Role {
    #[default]
    Other,
    Name,
    Arguments,
    Wrapper,
}

impl JsonCall {
    pub(super) fn feed(&mut self, c: char, calls: &mut Calls) -> Step {
        match self.at {
            At::Text => return self.feed_text(c, calls),
            At::Object => return self.feed_object(c, calls),
            At::Key => return self.feed_key(c),
            At::Word => return self.feed_word(c, calls),
            _ if c.is_ascii_whitespace() => return Step::More,
            _ => (),
        }
        self.at = match (self.at, c) {
            (At::Open, '{') => At::KeyOrClose,
            (At::KeyOrClose, '"') => At::Key,
            (At::Colon, ':') => At::Value,
            (At::Value, _) => return self.begin_value(c, calls),
            (At::CommaOrClose, ',') => At::KeyOrClose,
            (At::CommaOrClose | At::KeyOrClose, '}') => return self.close(calls),
            _ => return Step::Foreign,
        };
        Step::More
    }

    fn feed_key(&mut self, c: char) -> Step {
        if !self.string_ends(c) {
            return Step::More;
        }
        self.role = match &*std::mem::take(&mut self.word) {
            "name" | "tool_name" => Role::Name,
            "arguments" | "parameters" => Role::Arguments,
            "function" => Role::Wrapper,
            _ => Role::Other,
        };
        self.at = At::Colon;
        Step::More
    }

    fn begin_value(&mut self, c: char, calls: &mut Calls) -> Step {
        match (self.role, c) {
            (Role::Wrapper, '{') => {
                self.wrappers += 1;
                self.at = At::KeyOrClose;
                Step::More
            }
            (Role::Name, '"') | (_, '"') => {
                self.at = At::Text;
                Step::More
            }
            (Role::Name, _) => Step::Foreign,
            (Role::Arguments, '{') if !self.has_arguments() => {
                if !self.begin_if_named(calls) {
                    return Step::Foreign;
                }
                self.held = (!self.begun).then(String::new);
                self.json = JsonText::default();
                self.at = At::Object;
                self.feed_object(c, calls)
            }
            (Role::Arguments, '[') => Step::Foreign,
            (_, '{' | '[') => {
                self.role = Role::Other;
                self.json = JsonText::default();
                self.at = At::Object;
                self.feed_object(c, calls)
            }
            _ => {
                self.at = At::Word;
                self.feed_word(c, calls)
            }
        }
    }

    fn feed_object(&mut self, c: char, calls: &mut Calls) -> Step {
        // Characters that come one by one are passed on one by one.
        let mut piece = String::new();
        let step = self.json.feed(c, &mut piece);
        if self.role == Role::Arguments {
            match &mut self.held {
                Some(held) => held.push_str(&piece),
                None => calls.arguments(&piece),
            }
        }
        match step {
            JsonStep::Inside => Step::More,
            JsonStep::Foreign => Step::Foreign,
            JsonStep::Last => {
                self.at = At::CommaOrClose;
                Step::More
            }
        }
    }

    fn feed_text(&mut self, c: char, calls: &mut Calls) -> Step {
        if !self.string_ends(c) {
            return Step::More;
        }
        let word = std::mem::take(&mut self.word);
        match self.role {
            Role::Name if self.name.is_none() => {
                let Some(name) = decoded(&word) else { return Step::Foreign };
                self.name = Some(name);
                if let Some(held) = self.held.take() {
                    if !self.begin_if_named(calls) {
                        return Step::Foreign;
                    }
                    calls.arguments(&held);
                }
            }
            Role::Arguments if !self.has_arguments() => {
                let Some(arguments) = decoded(&word).filter(|text| is_object(text)) else {
                    return Step::Foreign;
                };
                if !self.begin_if_named(calls) {
                    return Step::Foreign;
                }
                if self.begun { calls.arguments(&arguments) } else { self.held = Some(arguments) }
            }
            _ => (),
        }
        self.at = At::CommaOrClose;
        Step::More
    }

    /// A number, true, false or null.
    fn feed_word(&mut self, c: char, calls: &mut Calls) -> Step {
        if c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.') {
            self.word.push(c);
            return Step::More;
        }
        let word = std::mem::take(&mut self.word);
        let none = matches!(&*word, "null" | "None");
        if word.is_empty() || (self.role == Role::Arguments && !none) {
            return Step::Foreign;
        }
        self.at = At::CommaOrClose;
        self.feed(c, calls)
    }

    fn close(&mut self, calls: &mut Calls) -> Step {
        if self.wrappers > 0 {
            self.wrappers -= 1;
            self.at = At::CommaOrClose;
            return Step::More;
        }
        if self.begun {
            return Step::Done;
        }
        if self.name.is_none() || !self.begin_if_named(calls) {
            return Step::Foreign;
        }
        calls.arguments("{}");
        Step::Done
    }

    /// False if the name cannot be a function's.
    fn begin_if_named(&mut self, calls: &mut Calls) -> bool {
        let Some(name) = &self.name else { return true };
        self.begun = self.begun || calls.begin(name, None);
        self.begun
    }

    fn has_arguments(&self) -> bool {
        self.begun || self.held.is_some()
    }

    /// Adds to the word, or says that the string has ended.
    fn string_ends(&mut self, c: char) -> bool {
        let ends = c == '"' && !self.escaped;
        self.escaped = c == '\\' && !self.escaped;
        if !ends {
            self.word.push(c);
        }
        ends
    }
}

fn decoded(word: &str) -> Option<String> {
    serde_json::from_str(&format!("\"{word}\"")).ok()
}

fn is_object(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object())
}
