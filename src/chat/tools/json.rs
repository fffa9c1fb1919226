//! [`JsonText`]: follows a JSON object or list through a text, to know where it ends, without reading it.

/// The state after some of the text.
#[derive(Debug, Default, Clone)]
pub(super) struct JsonText {
    depth: u32,
    in_string: bool,
    escaped: bool,
}

/// What a character was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonStep {
    /// Part of the value.
    Inside,
    /// Its last character.
    Last,
    /// Nothing that JSON may have there: the value has broken off before it.
    Foreign,
}

impl JsonText {
    /// Takes one character; the first must open an object or a list. It is copied to `out` as it is, but for
    /// control characters in strings: models write line breaks there, which JSON wants escaped.
    pub(super) fn feed(&mut self, c: char, out: &mut String) -> JsonStep {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => (),
            }
            if c < ' ' {
                push_escaped(c, out)
            } else {
                out.push(c)
            }
            return JsonStep::Inside;
        }
        match c {
            '"' => self.in_string = true,
            '{' | '[' => self.depth += 1,
            '}' | ']' => self.depth = self.depth.saturating_sub(1),
            ',' | ':' | '+' | '-' | '.' | '\'' | '_' => (),
            _ if c.is_ascii_alphanumeric() || c.is_ascii_whitespace() => (),
            _ => return JsonStep::Foreign,
        }
        out.push(c);
        if self.depth == 0 { JsonStep::Last } else { JsonStep::Inside }
    }
}

/// Appends `text` as it stands in a JSON string, without the quotes.
pub(super) fn push_json_text(text: &str, out: &mut String) {
    text.chars().for_each(|c| push_escaped(c, out));
}

/// Appends `c` as it stands in a JSON string.
pub(super) fn push_escaped(c: char, out: &mut String) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        c if c < ' ' => {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            out.push_str("\\u00");
            out.push(DIGITS[c as usize >> 4].into());
            out.push(DIGITS[c as usize & 15].into());
        }
        c => out.push(c),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_end_where_they_close() {
        let read = |text: &str| {
            let (mut json, mut out) = (JsonText::default(), String::new());
            let end = text.chars().map(|c| json.feed(c, &mut out)).find(|step| *step != JsonStep::Inside);
            (end, out)
        };
        assert_eq!(
            read("{\"a\": [1, \"}\\\"\"]} x"),
            (Some(JsonStep::Last), "{\"a\": [1, \"}\\\"\"]}".into())
        );
        assert_eq!(read("{\"a\": \"b\nc\u{1}\"}").1, "{\"a\": \"b\\nc\\u0001\"}");
        assert_eq!(read("{\"a\": <"), (Some(JsonStep::Foreign), "{\"a\": ".into()));
        assert_eq!(read("{\"a").0, None);
    }
}
