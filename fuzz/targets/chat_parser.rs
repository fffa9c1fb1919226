//! Answers taken apart while they stream, in every format of tool calls and reasoning: the pieces add up to
//! what the whole text gives, and each call begins once.

use quire::chat::{ChatDelta, ChatParser, ToolCallStart};

use super::input::{Input, cut};

const MAX_TEXT_BYTES: usize = 2048;

/// One answer.
#[derive(Debug, Default, PartialEq)]
struct Parts {
    reasoning: String,
    content: String,
    /// Names and arguments; ids are random.
    calls: Vec<(String, String)>,
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
    let shown = whole.reasoning.len() + whole.content.len();
    assert!(shown <= text.len(), "{calls:?} {reasoning:?}: more text than there was in {text:?}");
}

/// One of the names, or none.
fn chosen(names: &[&'static str], byte: u8) -> Option<&'static str> {
    usize::from(byte).checked_sub(1).map(|index| names[index % names.len()])
}

fn parse(parser: &ChatParser, pieces: &[&str]) -> Parts {
    let (mut reading, mut parts) = (parser.start(), Parts::default());
    let last = pieces.len() - 1;
    for (index, piece) in pieces.iter().enumerate() {
        let mut delta = ChatDelta::default();
        reading.push(&mut (*piece).to_owned(), index == last, &mut delta);
        parts.reasoning += &delta.reasoning;
        parts.content += &delta.content;
        for call in delta.tool_calls {
            if let Some(ToolCallStart { name, id }) = call.start {
                assert_eq!(call.index as usize, parts.calls.len(), "calls begin in order");
                assert!(!name.is_empty() && !id.is_empty(), "a call begins with its id and name");
                parts.calls.push((name, String::new()));
            }
            let (_, arguments) = &mut parts.calls[call.index as usize];
            *arguments += &call.arguments;
        }
    }
    parts
}
