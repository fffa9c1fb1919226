//! [`PythonCall`]: a call as Python writes it, with keyword arguments and literals.
//!
//! ```text
//! get_weather(city='Paris', days=[1, 2], metric=True)
//! ```
//!
//! The arguments are made into JSON while they come. Nothing is evaluated.

use super::calls::{Calls, Step};
use super::json::{push_escaped, push_json_text};

/// Lists and dictionaries in each other.
const MAX_DEPTH: usize = 64;

/// The state of reading one call.
#[derive(Debug, Default, Clone)]
pub(super) struct PythonCall {
    at: At,
    name: String,
    key: String,
    begun: bool,
    /// What is open within an argument.
    open: Vec<Open>,
    /// A comma was seen: it is written when something follows.
    comma: bool,
    /// A number, True, False or None.
    word: String,
    quote: char,
    escape: Escape,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Name,
    KeyOrClose,
    Equals,
    Value,
    Word,
    Text,
    AfterValue,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    List,
    Tuple,
    /// In a dictionary, before the colon.
    Key,
    /// After it.
    Item,
}

/// Within a string.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Escape {
    #[default]
    None,
    Backslash,
    /// Of `\x`, `\u` or `\U`: digits to come, and the number so far.
    Digits(u32, u32),
}

impl PythonCall {
    pub(super) fn feed(&mut self, c: char, calls: &mut Calls) -> Step {
        match self.at {
            At::Text => return self.feed_text(c, calls),
            At::Word => return self.feed_word(c, calls),
            At::Name => return self.feed_name(c),
            At::KeyOrClose if is_word(c) => {
                self.key.push(c);
                return Step::More;
            }
            _ if c.is_whitespace() && (self.at != At::KeyOrClose || self.key.is_empty()) => {
                return Step::More;
            }
            At::KeyOrClose if c.is_whitespace() => self.at = At::Equals,
            At::KeyOrClose | At::Equals if c == '=' && !self.key.is_empty() => {
                return self.begin_argument(calls);
            }
            At::KeyOrClose if c == ')' && self.key.is_empty() => return self.close(calls),
            At::Value => return self.begin_value(c, calls),
            At::AfterValue => return self.after_value(c, calls),
            At::KeyOrClose | At::Equals => return Step::Foreign,
        }
        Step::More
    }

    fn feed_name(&mut self, c: char) -> Step {
        if c == '(' && !self.name.is_empty() {
            self.at = At::KeyOrClose;
        } else if (is_word(c) || c == '.')
            && !(self.name.is_empty() && c.is_ascii_digit())
            && self.name.len() < 256
        {
            self.name.push(c);
        } else {
            return Step::Foreign;
        }
        Step::More
    }

    fn begin_argument(&mut self, calls: &mut Calls) -> Step {
        let opener = if self.begun { ", \"" } else { "{\"" };
        if !self.begin(calls) {
            return Step::Foreign;
        }
        let mut text = String::from(opener);
        push_json_text(&std::mem::take(&mut self.key), &mut text);
        text.push_str("\": ");
        calls.arguments(&text);
        self.comma = false;
        self.at = At::Value;
        Step::More
    }

    fn begin(&mut self, calls: &mut Calls) -> bool {
        self.begun = self.begun || calls.begin(&self.name, None);
        self.begun
    }

    fn close(&mut self, calls: &mut Calls) -> Step {
        let text = if self.begun { "}" } else { "{}" };
        if !self.begin(calls) {
            return Step::Foreign;
        }
        calls.arguments(text);
        Step::Done
    }

    fn begin_value(&mut self, c: char, calls: &mut Calls) -> Step {
        let is_key = self.open.last() == Some(&Open::Key);
        let opened = match c {
            '[' => Some((Open::List, "[")),
            '(' => Some((Open::Tuple, "[")),
            '{' => Some((Open::Key, "{")),
            _ => None,
        };
        if let Some((open, text)) = opened {
            if is_key || self.open.len() >= MAX_DEPTH {
                return Step::Foreign;
            }
            self.separate(calls);
            calls.arguments(text);
            self.open.push(open);
            return Step::More;
        }
        match c {
            '\'' | '"' => {
                self.separate(calls);
                calls.arguments("\"");
                self.quote = c;
                self.at = At::Text;
                Step::More
            }
            // After a comma, or in something empty.
            ']' | '}' if self.open.last() != Some(&Open::Item) => self.close_inner(c, calls),
            ')' if self.open.last() == Some(&Open::Tuple) => self.close_inner(c, calls),
            _ if is_word(c) || matches!(c, '+' | '-' | '.') => {
                self.separate(calls);
                self.word.push(c);
                self.at = At::Word;
                Step::More
            }
            _ => Step::Foreign,
        }
    }

    fn after_value(&mut self, c: char, calls: &mut Calls) -> Step {
        match (c, self.open.last_mut()) {
            (',', None) => self.at = At::KeyOrClose,
            (')', None) => return self.close(calls),
            (':', Some(inner @ Open::Key)) => {
                *inner = Open::Item;
                calls.arguments(": ");
                self.at = At::Value;
            }
            (',', Some(inner)) if *inner != Open::Key => {
                if *inner == Open::Item {
                    *inner = Open::Key;
                }
                self.comma = true;
                self.at = At::Value;
            }
            (')' | ']' | '}', Some(_)) => return self.close_inner(c, calls),
            _ => return Step::Foreign,
        }
        Step::More
    }

    fn close_inner(&mut self, c: char, calls: &mut Calls) -> Step {
        let after_value = self.at == At::AfterValue;
        let text = match (self.open.last(), c) {
            (Some(Open::List), ']') | (Some(Open::Tuple), ')') => "]",
            (Some(Open::Item), '}') => "}",
            // Not a key without its value.
            (Some(Open::Key), '}') if !after_value => "}",
            _ => return Step::Foreign,
        };
        self.open.pop();
        self.comma = false;
        calls.arguments(text);
        self.at = At::AfterValue;
        Step::More
    }

    fn separate(&mut self, calls: &mut Calls) {
        if std::mem::take(&mut self.comma) {
            calls.arguments(", ");
        }
    }

    fn feed_word(&mut self, c: char, calls: &mut Calls) -> Step {
        if is_word(c) || matches!(c, '+' | '-' | '.') {
            self.word.push(c);
            return Step::More;
        }
        let word = std::mem::take(&mut self.word);
        let is_key = self.open.last() == Some(&Open::Key);
        calls.arguments(&word_as_json(&word, is_key));
        self.at = At::AfterValue;
        self.feed(c, calls)
    }

    fn feed_text(&mut self, c: char, calls: &mut Calls) -> Step {
        let mut text = String::new();
        match self.escape {
            Escape::None if c == self.quote => {
                text.push('"');
                self.at = At::AfterValue;
            }
            Escape::None if c == '\\' => self.escape = Escape::Backslash,
            Escape::None => push_escaped(c, &mut text),
            Escape::Backslash => {
                self.escape = Escape::None;
                match c {
                    'x' => self.escape = Escape::Digits(2, 0),
                    'u' => self.escape = Escape::Digits(4, 0),
                    'U' => self.escape = Escape::Digits(8, 0),
                    '\n' => (),
                    'n' => text.push_str("\\n"),
                    't' => text.push_str("\\t"),
                    'r' => text.push_str("\\r"),
                    '\\' | '\'' | '"' => push_escaped(c, &mut text),
                    // Python keeps the backslash of what it does not know.
                    other => {
                        text.push_str("\\\\");
                        push_escaped(other, &mut text);
                    }
                }
            }
            Escape::Digits(left, number) => match c.to_digit(16) {
                Some(digit) => {
                    let number = number.wrapping_shl(4) | digit;
                    self.escape = if left > 1 { Escape::Digits(left - 1, number) } else { Escape::None };
                    if left == 1 {
                        push_escaped(char::from_u32(number).unwrap_or('\u{FFFD}'), &mut text);
                    }
                }
                None => {
                    self.escape = Escape::None;
                    text.push('\u{FFFD}');
                    calls.arguments(&text);
                    return self.feed_text(c, calls);
                }
            },
        }
        calls.arguments(&text);
        Step::More
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn word_as_json(word: &str, is_key: bool) -> String {
    let number = word.replace('_', "");
    let is_number = |text: &str| serde_json::from_str::<serde_json::Number>(text).is_ok();
    match word {
        _ if is_key => (),
        "True" | "true" => return "true".into(),
        "False" | "false" => return "false".into(),
        "None" | "null" => return "null".into(),
        _ if is_number(word) => return word.into(),
        _ if is_number(&number) => return number,
        _ => {
            if let Some(number) = number.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                return number.to_string();
            }
        }
    }
    let mut json = String::from("\"");
    push_json_text(word, &mut json);
    json.push('"');
    json
}
