//! [`read`]: a grammar in Lark's notation, looked at before llguidance sees it: schemas within it get our rule
//! for white space, and what repetitions write out is bounded.
//!
//! It reads only as much of the notation as that takes. What it does not know it passes over: saying what is
//! wrong with a grammar is llguidance's part.

use std::collections::HashMap;

use serde_json::Value;

use super::written_out::{self, MAX_LEXEME_CHARS, MAX_RULE_CHARS};
use super::{check_schema, prepared};
use crate::grammar::compiler::GrammarRefusal;

/// The grammar as llguidance gets it.
///
/// # Errors
/// If a schema within it may not be compiled, or a rule stands for a text that is too long.
pub(super) fn read(text: &str) -> Result<String, GrammarRefusal> {
    let mut scanner = Scanner { text, at: 0 };
    let mut tokens = Vec::new();
    let (mut lark, mut copied) = (String::with_capacity(text.len()), 0);
    while let Some((start, token)) = scanner.next_token() {
        match &token {
            Token::Json(schema) => {
                check_schema("the schema in the grammar", schema)?;
                if let Some(schema) = prepared(schema.clone()) {
                    lark.push_str(&text[copied..start]);
                    lark.push_str(&format!("%json {schema}"));
                    copied = scanner.at;
                }
            }
            Token::Regex(pattern) => written_out::check_regex(pattern)?,
            Token::NestedLark => {
                let message = "nested grammars (%lark) are not supported; write out their rules";
                return Err(GrammarRefusal::new(message));
            }
            _ => {}
        }
        tokens.push(token);
    }
    lark.push_str(&text[copied..]);
    Rules::new(tokens).check()?;
    Ok(lark)
}

#[derive(Debug, PartialEq)]
enum Token<'a> {
    Newline,
    Name(&'a str),
    /// Something that stands for so many characters.
    Piece(u64),
    Regex(&'a str),
    Json(Value),
    NestedLark,
    Open,
    Close,
    Bar,
    Colon,
    /// What comes before is there so many times, at least.
    Times(u64),
    Other,
}

struct Scanner<'a> {
    text: &'a str,
    /// Bytes read.
    at: usize,
}

impl<'a> Scanner<'a> {
    /// The next token and where it begins; nothing at the end, or where nothing more can be made of the text.
    fn next_token(&mut self) -> Option<(usize, Token<'a>)> {
        loop {
            let rest = &self.text[self.at..];
            let first = rest.chars().next()?;
            if first == ' ' || first == '\t' {
                self.at += 1;
            } else if first == '#' || rest.starts_with("//") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else {
                let start = self.at;
                return Some((start, self.token(first)?));
            }
        }
    }

    fn token(&mut self, first: char) -> Option<Token<'a>> {
        let rest = &self.text[self.at..];
        let (len, token) = match first {
            '\n' | '\r' => (1, Token::Newline),
            '"' => {
                let inner = quoted(rest, b'"')?;
                (inner.len() + 2, Token::Piece(inner.chars().count() as u64))
            }
            '/' => {
                let inner = quoted(rest, b'/')?;
                let flags = rest[inner.len() + 2..].bytes().take_while(|b| b"imslux".contains(b)).count();
                (inner.len() + 2 + flags, Token::Regex(inner))
            }
            '%' => return self.directive(rest),
            '{' => match times(&rest[1..]) {
                Some((times, len)) => (len + 1, Token::Times(times)),
                None => (1, Token::Open),
            },
            '~' => match leading_number(rest[1..].trim_start()) {
                Some((times, _)) => (1, Token::Times(times)),
                None => (1, Token::Other),
            },
            '(' | '[' => (1, Token::Open),
            ')' | ']' | '}' => (1, Token::Close),
            '|' => (1, Token::Bar),
            ':' if rest.starts_with("::") => (2, Token::Other),
            ':' => (1, Token::Colon),
            '<' => (rest.find('>')? + 1, Token::Piece(1)),
            c if c.is_ascii_alphabetic() || c == '_' => {
                let len = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
                let len = len.unwrap_or(rest.len());
                (len, Token::Name(&rest[..len]))
            }
            c => (c.len_utf8(), Token::Other),
        };
        self.at += len;
        Some(token)
    }

    /// `%json {…}` and its like.
    fn directive(&mut self, rest: &'a str) -> Option<Token<'a>> {
        let len = 1 + rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let word = &rest[..len];
        self.at += len;
        if word == "%lark" {
            return Some(Token::NestedLark);
        }
        if !["%json", "%regex", "%llguidance"].contains(&word) {
            return Some(Token::Other);
        }
        let mut values = serde_json::Deserializer::from_str(&rest[len..]).into_iter::<Value>();
        let value = values.next()?.ok()?;
        self.at += values.byte_offset();
        Some(if word == "%json" { Token::Json(value) } else { Token::Piece(1) })
    }
}

/// The inside of what the first byte begins and the next `end` ends that has no backslash before it.
fn quoted(text: &str, end: u8) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut at = 1;
    while *bytes.get(at)? != end {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    text.get(1..at)
}

/// `m}`, `m,}`, `,n}` and `m,n}`: the least number of times, and the length.
fn times(text: &str) -> Option<(u64, usize)> {
    let len = text.find('}')?;
    let inside = &text[..len];
    let is_count = inside.bytes().all(|b| b.is_ascii_digit() || b" \t,".contains(&b));
    let is_count = is_count && inside.bytes().any(|b| b.is_ascii_digit());
    let least = leading_number(inside.trim_start()).map_or(0, |(number, _)| number);
    is_count.then_some((least, len + 1))
}

fn leading_number(text: &str) -> Option<(u64, usize)> {
    let len = text.bytes().take_while(u8::is_ascii_digit).count();
    (len > 0).then(|| (text[..len].parse().unwrap_or(u64::MAX), len))
}

/// How many characters a part of a grammar stands for, at least, along its longest alternative.
enum Size<'a> {
    Chars(u64),
    Rule(&'a str),
    Sum(Vec<Self>),
    Longest(Vec<Self>),
    Times(Box<Self>, u64),
}

struct Rules<'a> {
    sizes: Vec<(&'a str, Size<'a>)>,
    numbers: HashMap<&'a str, usize>,
}

impl<'a> Rules<'a> {
    fn new(tokens: Vec<Token<'a>>) -> Self {
        let mut rules: Vec<(&'a str, Vec<Token<'a>>)> = Vec::new();
        let mut tokens = tokens.into_iter().peekable();
        while tokens.peek().is_some() {
            // `!name`, `?name` and `%override name` define a name as well.
            let line = tokens.by_ref().take_while(|token| *token != Token::Newline);
            let mut line: Vec<_> = line.skip_while(|token| *token == Token::Other).collect();
            let colon = line.iter().position(|token| *token == Token::Colon);
            match (line.first(), colon, rules.last_mut()) {
                (Some(Token::Bar), _, Some((_, rule))) => rule.append(&mut line),
                (Some(Token::Name(name)), Some(colon), _) => rules.push((name, line.split_off(colon))),
                _ => rules.push(("", line)),
            }
        }
        let size = |(name, tokens): (_, Vec<_>)| (name, alternatives(&mut tokens.into_iter()));
        let sizes: Vec<_> = rules.into_iter().map(size).collect();
        let numbers = sizes.iter().enumerate().map(|(number, (name, _))| (*name, number)).collect();
        Self { sizes, numbers }
    }

    fn check(&self) -> Result<(), GrammarRefusal> {
        let mut known = vec![None; self.sizes.len()];
        for (number, (name, _)) in self.sizes.iter().enumerate() {
            let chars = self.chars_of(number, &mut known);
            let is_terminal = name.trim_start_matches('_').starts_with(|c: char| c.is_ascii_uppercase());
            let max = if is_terminal { MAX_LEXEME_CHARS } else { MAX_RULE_CHARS };
            written_out::check(&format!("the rule {name}"), chars, max)?;
        }
        Ok(())
    }

    /// A rule that leads back to itself counts as nothing there.
    fn chars_of(&self, number: usize, known: &mut [Option<u64>]) -> u64 {
        if let Some(chars) = known[number] {
            return chars;
        }
        known[number] = Some(0);
        let chars = self.chars(&self.sizes[number].1, known);
        known[number] = Some(chars);
        chars
    }

    fn chars(&self, size: &Size, known: &mut [Option<u64>]) -> u64 {
        match size {
            Size::Chars(chars) => *chars,
            Size::Rule(name) => self.numbers.get(name).map_or(1, |&number| self.chars_of(number, known)),
            Size::Sum(parts) => parts.iter().map(|part| self.chars(part, known)).fold(0, u64::saturating_add),
            Size::Longest(parts) => parts.iter().map(|part| self.chars(part, known)).max().unwrap_or(0),
            Size::Times(part, times) => self.chars(part, known).saturating_mul((*times).max(1)),
        }
    }
}

/// Up to the bracket that closes them, or the end.
fn alternatives<'a>(tokens: &mut impl Iterator<Item = Token<'a>>) -> Size<'a> {
    let (mut longest, mut sum) = (Vec::new(), Vec::new());
    while let Some(token) = tokens.next() {
        match token {
            Token::Close => break,
            Token::Bar => longest.push(Size::Sum(std::mem::take(&mut sum))),
            Token::Open => sum.push(alternatives(tokens)),
            Token::Name(name) => sum.push(Size::Rule(name)),
            Token::Piece(chars) => sum.push(Size::Chars(chars)),
            Token::Regex(pattern) => sum.push(Size::Chars(written_out::regex_chars(pattern).unwrap_or(1))),
            Token::Times(times) => {
                if let Some(last) = sum.pop() {
                    sum.push(Size::Times(Box::new(last), times));
                }
            }
            Token::Json(_) => sum.push(Size::Chars(1)),
            Token::Newline | Token::Colon | Token::NestedLark | Token::Other => {}
        }
    }
    longest.push(Size::Sum(sum));
    Size::Longest(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The characters of the rule `start`.
    fn start(text: &str) -> u64 {
        let mut scanner = Scanner { text, at: 0 };
        let tokens: Vec<_> = std::iter::from_fn(|| scanner.next_token()).map(|(_, token)| token).collect();
        assert_eq!(scanner.at, text.len(), "all is read: {text}");
        let rules = Rules::new(tokens);
        rules.chars_of(rules.numbers["start"], &mut vec![None; rules.sizes.len()])
    }

    #[test]
    fn repetitions_are_written_out_through_rules() {
        for (text, chars) in [
            ("start: \"abc\" /d{4}/", 7),
            ("start: a{10} // \"nothing\"\na: B ~ 20\nB: \"x\" \"\\\"y\"", 800),
            ("start: (\"a\" | \"bcd\" # or\n", 3),
            ("start: \"a\"\n  | \"bb\"{3,}\n", 6),
            ("start: [\"a\"] \"b\"{,9} x*\nx: \"cc\"", 4),
            ("!start: \"(\" start \")\" | \"\"", 2),
            ("?start.5[lazy, stop=\"x{9}\"]: A\nA: /[\\/x]/ | \"a\"..\"z\" ", 2),
            ("start: %json {\"const\": \"a{7}\\\"\"} \"b\"", 2),
            ("start: <special> %regex {\"substring_chars\": \"x\"} @name", 3),
        ] {
            assert_eq!(start(text), chars, "{text}");
        }
        let doubling: String = (0..70).map(|i| format!("r{i}: r{} r{}\n", i + 1, i + 1)).collect();
        assert_eq!(start(&format!("start: r0\n{doubling}r70: \"x\"")), u64::MAX);
    }

    #[test]
    fn schemas_get_the_rule_for_white_space_and_all_else_stays() {
        let text = "start: \"%json {}\" x # %json {\nx: %json {\"type\": \"object\"} /[\"]/ // end\n";
        let read = read(text).unwrap();
        let (before, rest) = read.split_once("x: %json ").unwrap();
        assert_eq!(before, "start: \"%json {}\" x # %json {\n");
        assert!(
            rest.starts_with("{\"type\":\"object\",\"x-guidance\"") && rest.ends_with("} /[\"]/ // end\n")
        );
        assert_eq!(super::read(&read).unwrap(), read, "it is done once");
        assert_eq!(super::read("start: %json true").unwrap().matches("whitespace").count(), 1);
    }
}
