//! GBNF, the notation of llama.cpp, into Lark: rules (`name ::= …`), alternatives, groups, `*`, `+`, `?`,
//! `{m,n}`, classes of characters, `.`, texts and comments.
//!
//! GBNF knows no tokens: each character may be read in every way the rules allow. Lark's lexer takes the
//! longest token it can. So that both mean the same, a grammar without recursion becomes one single token, and a
//! grammar with recursion becomes tokens of one character each.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use super::lark;
use crate::grammar::compiler::GrammarRefusal;
use crate::grammar::limits::MAX_RULES;

/// Whether the first line that says anything begins a rule of GBNF.
pub(super) fn is_gbnf(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim_start);
    let first = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
    first.is_some_and(|line| line.trim_start_matches(is_name).trim_start().starts_with("::="))
}

/// The same grammar in Lark's notation; its rule `root` is where it begins.
pub(super) fn to_lark(text: &str) -> Result<String, GrammarRefusal> {
    let mut parser = Parser { rest: text, whole: text };
    let rules = parser.rules()?;
    let numbers: HashMap<&str, usize> = rules.iter().enumerate().map(|(i, rule)| (rule.name, i)).collect();
    if numbers.len() < rules.len() {
        let mut seen = HashSet::new();
        let twice = rules.iter().find(|rule| !seen.insert(rule.name)).map_or("", |rule| rule.name);
        return Err(GrammarRefusal(format!("the rule {twice} is defined twice")));
    }
    let Some(&root) = numbers.get("root") else {
        return Err(GrammarRefusal::new("the grammar has no rule named root"));
    };
    for rule in &rules {
        for name in rule.body.names() {
            if !numbers.contains_key(name) {
                return Err(GrammarRefusal(format!(
                    "the rule {} uses {name}, which is not defined",
                    rule.name
                )));
            }
        }
    }
    let writer = Writer { numbers: &numbers, as_tokens: !is_recursive(&rules, &numbers) };
    let mut lark = format!("start: {}\n", writer.name(root));
    for (number, rule) in rules.iter().enumerate() {
        writeln!(lark, "{}: {}", writer.name(number), writer.expression(&rule.body))
            .expect("a String takes all");
    }
    Ok(lark)
}

struct Rule<'a> {
    name: &'a str,
    body: Expression<'a>,
}

enum Expression<'a> {
    Text(String),
    /// The inside of a class in regular-expression notation.
    Class(String),
    Any,
    Name(&'a str),
    Sequence(Vec<Self>),
    Alternatives(Vec<Self>),
    Repeat {
        of: Box<Self>,
        min: u32,
        max: Option<u32>,
    },
}

impl<'a> Expression<'a> {
    fn names(&self) -> Vec<&'a str> {
        match self {
            Self::Name(name) => vec![name],
            Self::Sequence(parts) | Self::Alternatives(parts) => parts.iter().flat_map(Self::names).collect(),
            Self::Repeat { of, .. } => of.names(),
            Self::Text(_) | Self::Class(_) | Self::Any => Vec::new(),
        }
    }
}

/// Whether some rule leads back to itself: what is left when rules without open ends are taken away.
fn is_recursive(rules: &[Rule], numbers: &HashMap<&str, usize>) -> bool {
    let mut uses: Vec<HashSet<usize>> =
        rules.iter().map(|rule| rule.body.names().into_iter().map(|name| numbers[name]).collect()).collect();
    let mut used_by = vec![Vec::new(); rules.len()];
    for (user, used) in uses.iter().enumerate() {
        used.iter().for_each(|&used| used_by[used].push(user));
    }
    let mut closed: Vec<usize> = (0..rules.len()).filter(|&rule| uses[rule].is_empty()).collect();
    let mut num_closed = 0;
    while let Some(rule) = closed.pop() {
        num_closed += 1;
        for &user in &used_by[rule] {
            uses[user].remove(&rule);
            if uses[user].is_empty() {
                closed.push(user);
            }
        }
    }
    num_closed < rules.len()
}

struct Writer<'a> {
    numbers: &'a HashMap<&'a str, usize>,
    /// Rules become the lexer's tokens, and so parts of one large regular expression.
    as_tokens: bool,
}

impl Writer<'_> {
    fn name(&self, number: usize) -> String {
        if self.as_tokens { format!("R{number}") } else { format!("r{number}") }
    }

    fn expression(&self, expression: &Expression) -> String {
        let join = |parts: &[Expression], separator: &str| {
            let parts: Vec<_> = parts.iter().map(|part| self.expression(part)).collect();
            format!("({})", parts.join(separator))
        };
        match expression {
            Expression::Text(text) if self.as_tokens || text.is_empty() => lark::string(text),
            Expression::Text(text) => {
                let characters: Vec<_> =
                    text.chars().map(|c| lark::string(c.encode_utf8(&mut [0; 4]))).collect();
                format!("({})", characters.join(" "))
            }
            Expression::Class(class) => format!("/[{class}]/"),
            Expression::Any => "/(?s:.)/".into(),
            Expression::Name(name) => self.name(self.numbers[name]),
            Expression::Sequence(parts) if parts.is_empty() => lark::string(""),
            Expression::Sequence(parts) => join(parts, " "),
            Expression::Alternatives(parts) => join(parts, " | "),
            Expression::Repeat { of, min, max } => {
                // Lark allows one repetition on anything, and no repetition of a repetition.
                let of = match **of {
                    Expression::Repeat { .. } => format!("({})", self.expression(of)),
                    _ => self.expression(of),
                };
                match (min, max) {
                    (0, None) => format!("{of}*"),
                    (1, None) => format!("{of}+"),
                    (0, Some(1)) => format!("{of}?"),
                    (min, None) => format!("{of}{{{min},}}"),
                    (min, Some(max)) => format!("{of}{{{min},{max}}}"),
                }
            }
        }
    }
}

struct Parser<'a> {
    rest: &'a str,
    whole: &'a str,
}

impl<'a> Parser<'a> {
    fn rules(&mut self) -> Result<Vec<Rule<'a>>, GrammarRefusal> {
        let mut rules = Vec::new();
        self.skip();
        while !self.rest.is_empty() {
            let Some(name) = self.rule_head() else {
                return Err(self.refuse("expected a rule, name ::= …"));
            };
            rules.push(Rule { name, body: self.alternatives()? });
            if rules.len() > MAX_RULES {
                return Err(GrammarRefusal(format!("the grammar has more than {MAX_RULES} rules")));
            }
        }
        Ok(rules)
    }

    /// `name ::=`, if that is what comes next.
    fn rule_head(&mut self) -> Option<&'a str> {
        let (name, rest) = split_name(self.rest);
        let rest = rest.trim_start_matches([' ', '\t']).strip_prefix("::=")?;
        if name.is_empty() {
            return None;
        }
        self.rest = rest;
        self.skip();
        Some(name)
    }

    fn alternatives(&mut self) -> Result<Expression<'a>, GrammarRefusal> {
        let mut alternatives = vec![self.sequence()?];
        while self.take("|") {
            alternatives.push(self.sequence()?);
        }
        Ok(match alternatives.len() {
            1 => alternatives.remove(0),
            _ => Expression::Alternatives(alternatives),
        })
    }

    fn sequence(&mut self) -> Result<Expression<'a>, GrammarRefusal> {
        let mut parts = Vec::new();
        while let Some(part) = self.part()? {
            let part = self.repeated(part)?;
            parts.push(part);
        }
        Ok(match parts.len() {
            1 => parts.remove(0),
            _ => Expression::Sequence(parts),
        })
    }

    /// What a sequence is made of; `None` at its end.
    fn part(&mut self) -> Result<Option<Expression<'a>>, GrammarRefusal> {
        let Some(first) = self.rest.chars().next() else { return Ok(None) };
        let part = match first {
            '|' | ')' => return Ok(None),
            '"' => self.text()?,
            '[' => self.class()?,
            '.' => {
                self.rest = &self.rest[1..];
                Expression::Any
            }
            '(' => {
                self.rest = &self.rest[1..];
                self.skip();
                let inner = self.alternatives()?;
                if !self.rest.starts_with(')') {
                    return Err(self.refuse("expected )"));
                }
                self.rest = &self.rest[1..];
                inner
            }
            c if is_name(c) => {
                let (name, rest) = split_name(self.rest);
                if rest.trim_start_matches([' ', '\t']).starts_with("::=") {
                    return Ok(None);
                }
                self.rest = rest;
                Expression::Name(name)
            }
            c => return Err(self.refuse(&format!("{c:?} has no meaning here"))),
        };
        Ok(Some(part))
    }

    fn repeated(&mut self, mut part: Expression<'a>) -> Result<Expression<'a>, GrammarRefusal> {
        loop {
            self.skip();
            let (min, max) = match self.rest.chars().next() {
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some('?') => (0, Some(1)),
                Some('{') => self.bounds()?,
                _ => return Ok(part),
            };
            self.rest = &self.rest[1..];
            part = Expression::Repeat { of: Box::new(part), min, max };
        }
    }

    /// `{m}`, `{m,}`, `{m,n}`, up to the closing bracket.
    fn bounds(&mut self) -> Result<(u32, Option<u32>), GrammarRefusal> {
        let Some(end) = self.rest.find('}') else { return Err(self.refuse("expected }")) };
        let inside = &self.rest[1..end];
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let bounds = match inside.split_once(',') {
            None => number(inside).map(|n| (n, Some(n))),
            Some((min, max)) if max.trim().is_empty() => number(min).map(|min| (min, None)),
            Some((min, max)) => number(min).zip(number(max)).map(|(min, max)| (min, Some(max))),
        };
        let bounds = bounds.filter(|&(min, max)| max.is_none_or(|max| min <= max));
        let bounds = bounds.ok_or_else(|| self.refuse("expected {m}, {m,} or {m,n}"))?;
        self.rest = &self.rest[end..];
        Ok(bounds)
    }

    fn text(&mut self) -> Result<Expression<'a>, GrammarRefusal> {
        self.rest = &self.rest[1..];
        let mut text = String::new();
        loop {
            if let Some(rest) = self.rest.strip_prefix('"') {
                self.rest = rest;
                return Ok(Expression::Text(text));
            }
            text.push(self.character("the text has no end")?);
        }
    }

    fn class(&mut self) -> Result<Expression<'a>, GrammarRefusal> {
        self.rest = &self.rest[1..];
        let mut class = String::new();
        if let Some(rest) = self.rest.strip_prefix('^') {
            self.rest = rest;
            class.push('^');
        }
        let is_empty = self.rest.starts_with(']');
        while !self.rest.starts_with(']') {
            let from = self.character("the class has no end")?;
            write!(class, r"\x{{{:x}}}", u32::from(from)).expect("a String takes all");
            if self.rest.starts_with('-') && !self.rest.starts_with("-]") {
                self.rest = &self.rest[1..];
                let to = self.character("the class has no end")?;
                if to < from {
                    return Err(self.refuse(&format!("the range {from:?} to {to:?} is empty")));
                }
                write!(class, r"-\x{{{:x}}}", u32::from(to)).expect("a String takes all");
            }
        }
        self.rest = &self.rest[1..];
        if is_empty {
            return Err(self.refuse("a class must not be empty"));
        }
        Ok(Expression::Class(class))
    }

    /// One character of a text or a class.
    fn character(&mut self, unfinished: &str) -> Result<char, GrammarRefusal> {
        let mut chars = self.rest.chars();
        let c = chars.next().filter(|&c| c != '\n').ok_or_else(|| self.refuse(unfinished))?;
        if c != '\\' {
            self.rest = chars.as_str();
            return Ok(c);
        }
        let escape = chars.next().ok_or_else(|| self.refuse(unfinished))?;
        let rest = chars.as_str();
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let c = match escape {
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            '"' | '\\' | '[' | ']' | '-' | '^' | '/' | '\'' => Some(escape),
            _ if digits > 0 => rest
                .get(..digits)
                .and_then(|hex| u32::from_str_radix(hex, 16).ok())
                .and_then(char::from_u32)
                .filter(|&c| c != '\0'),
            _ => None,
        };
        let c = c.ok_or_else(|| self.refuse(&format!("the escape \\{escape} is not known here")))?;
        self.rest = &rest[digits..];
        Ok(c)
    }

    fn take(&mut self, what: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(what) else { return false };
        self.rest = rest;
        self.skip();
        true
    }

    /// Over white space and comments.
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
        }
    }

    fn refuse(&self, what: &str) -> GrammarRefusal {
        let read = &self.whole[..self.whole.len() - self.rest.len()];
        GrammarRefusal(format!("line {}: {what}", read.matches('\n').count() + 1))
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

fn split_name(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()))
}
