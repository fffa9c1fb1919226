//! Answers taken apart while they stream, in every format of tool calls and reasoning: the pieces add up to
//! what the whole text gives, and each call begins once.

use quire::chat::{ChatDelta, ChatParser, ToolCallStart};

use super::input::{Input, cut};

const MAX_TEXT_BYTES: usize = 2048;

/// One piece of an answer as clients are told it: reasoning, content, the name of a call (ids are random) or
/// arguments.
#[derive(Debug, PartialEq)]
enum Part {
    Reasoning(String),
    Content(String),
    Name(String),
    Arguments(String),
}

/// One byte for the format of calls, one for that of reasoning, the places to cut, and the text.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let calls = chosen(&ChatParser::tool_call_parsers(), input.byte());
    let reasoning = chosen(&ChatParser::reasoning_parsers(), input.byte());
    let parser = ChatParser::named(calls, reasoning).expect("these names come from the list");
    let cuts = input.piece();
    let text = input.text();
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];
    let whole = parse(&parser, &[text]);
    let streamed = parse(&parser, &cut(text, cuts));
    assert_eq!(streamed, whole, "{calls:?} {reasoning:?}: {text:?}");
    let shown = |part: &Part| match part {
        Part::Reasoning(text) | Part::Content(text) => text.len(),
        Part::Name(_) | Part::Arguments(_) => 0,
    };
    let shown: usize = whole.iter().map(shown).sum();
    assert!(shown <= text.len(), "{calls:?} {reasoning:?}: more text than there was in {text:?}");
}

/// One of the names, or none.
fn chosen(names: &[&'static str], byte: u8) -> Option<&'static str> {
    usize::from(byte).checked_sub(1).map(|index| names[index % names.len()])
}

fn parse(parser: &ChatParser, pieces: &[&str]) -> Vec<Part> {
    let (mut reading, mut parts, mut num_calls) = (parser.start(), Vec::new(), 0);
    let last = pieces.len() - 1;
    for (index, piece) in pieces.iter().enumerate() {
        reading.push(piece, &[], index == last);
        let mut more = true;
        while more {
            let mut delta = ChatDelta::default();
            more = !reading.tell(&mut delta);
            add(&mut parts, Part::Reasoning(delta.reasoning));
            add(&mut parts, Part::Content(delta.content));
            for call in delta.tool_calls {
                if let Some(ToolCallStart { name, id }) = call.start {
                    assert_eq!(call.index, num_calls, "calls begin in order");
                    assert!(!name.is_empty() && !id.is_empty(), "a call begins with its id and name");
                    num_calls += 1;
                    parts.push(Part::Name(name));
                }
                assert_eq!(call.index + 1, num_calls, "a call is told before the next begins");
                add(&mut parts, Part::Arguments(call.arguments));
            }
        }
    }
    parts
}

/// Adds to the last part, if that is of the same kind.
fn add(parts: &mut Vec<Part>, part: Part) {
    match (parts.last_mut(), part) {
        (_, Part::Reasoning(text) | Part::Content(text) | Part::Arguments(text)) if text.is_empty() => (),
        (Some(Part::Reasoning(last)), Part::Reasoning(text))
        | (Some(Part::Content(last)), Part::Content(text))
        | (Some(Part::Arguments(last)), Part::Arguments(text)) => last.push_str(&text),
        (_, part) => parts.push(part),
    }
}
