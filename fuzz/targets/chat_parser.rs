//! Answers taken apart: in pieces the same as whole, by every parser of tool calls and reasoning.

use quire::chat::{ChatDelta, ChatParser};

use super::input::{Input, cut};

const MAX_TEXT_BYTES: usize = 4096;

/// One byte for each parser, the places to cut, and the text.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mut choose =
        |names: Vec<&'static str>| names.get(usize::from(input.byte()) % (names.len() + 1)).copied();
    let tools = choose(ChatParser::tool_call_parsers());
    let reasoning = choose(ChatParser::reasoning_parsers());
    let parser = ChatParser::named(tools, reasoning).expect("these names are known");
    let cuts = input.piece();
    let text = input.text();
    let text = &text[..text.floor_char_boundary(MAX_TEXT_BYTES)];

    let whole = read(&parser, &[text]);
    assert_eq!(read(&parser, &cut(text, cuts)), whole, "{tools:?} {reasoning:?} {text:?}");
    if reasoning.is_none() && whole.calls.is_empty() {
        assert_eq!(whole.content, text, "{tools:?}: something was lost");
    }
}

#[derive(Debug, Default, PartialEq)]
struct Read {
    reasoning: String,
    content: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
}

fn read(parser: &ChatParser, pieces: &[&str]) -> Read {
    let (mut reading, mut read) = (parser.start(), Read::default());
    for (index, piece) in pieces.iter().enumerate() {
        let mut delta = ChatDelta::default();
        reading.push(&mut (*piece).to_owned(), index + 1 == pieces.len(), &mut delta);
        read.reasoning.push_str(&delta.reasoning);
        read.content.push_str(&delta.content);
        for call in delta.tool_calls {
            if let Some(start) = call.start {
                read.calls.push((start.name, String::new()));
            }
            read.calls[call.index as usize].1.push_str(&call.arguments);
        }
        assert_eq!(delta.num_tool_calls as usize, read.calls.len());
    }
    read
}
