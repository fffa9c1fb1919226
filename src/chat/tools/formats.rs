//! The table of formats, each with an example.

use super::calls::Ids;
use super::format::{Kind, ToolFormat};

const JSON: ToolFormat = ToolFormat {
    names: &[],
    open: &[],
    bare: None,
    close: "",
    call_open: &[],
    between: &["[", "]", ","],
    kind: Kind::Json,
    ids: Ids::Long,
};

const FORMATS: &[ToolFormat] = &[
    // <tool_call>
    // {"name": "get_weather", "arguments": {"city": "Paris"}}
    // </tool_call>
    ToolFormat {
        names: &["hermes", "qwen3_json", "granite4"],
        open: &["<tool_call>"],
        close: "</tool_call>",
        ..JSON
    },
];

impl ToolFormat {
    /// The format of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.names.contains(&name))
    }

    /// All names, sorted.
    pub(crate) fn names() -> Vec<&'static str> {
        let mut names: Vec<_> = FORMATS.iter().flat_map(|format| format.names).copied().collect();
        names.sort_unstable();
        names
    }
}
