//! Pieces of Lark's notation: literals of texts and of regular expressions.

use std::fmt::Write;

/// A text in quotes.
pub(super) fn string(text: &str) -> String {
    let mut literal = String::with_capacity(text.len() + 2);
    literal.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => literal.extend(['\\', c]),
            '\n' => literal.push_str("\\n"),
            c if c.is_ascii_control() => {
                write!(literal, "\\u{:04x}", u32::from(c)).expect("a String takes what it is given");
            }
            c => literal.push(c),
        }
    }
    literal.push('"');
    literal
}

/// A regular expression between slashes.
pub(super) fn regex(pattern: &str) -> String {
    format!("/{}/", llguidance::regex_to_lark(pattern, ""))
}

/// The pattern without `^` at its beginning and `$` at its end: where a whole text must match they say nothing,
/// and the automaton has no notion of them.
pub(super) fn without_anchors(pattern: &str) -> &str {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let Some(rest) = pattern.strip_suffix('$') else { return pattern };
    let is_escaped = (rest.len() - rest.trim_end_matches('\\').len()) % 2 == 1;
    if is_escaped { pattern } else { rest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_taken_off_and_escaped_ones_are_not() {
        for (pattern, expected) in
            [("^a$", "a"), ("a", "a"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("^", ""), ("a|b$", "a|b")]
        {
            assert_eq!(without_anchors(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn literals_escape_what_would_end_them() {
        assert_eq!(string("a\"b\\c\nd\u{7f}é"), r#""a\"b\\c\nd\u007fé""#);
        assert_eq!(regex("a/b\n"), r"/a\/b\n/");
    }
}
