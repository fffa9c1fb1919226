//! Tool calls: what clients offer ([`Tool`]), and how models write calls ([`ToolFormat`], [`ToolReader`]).

mod calls;
mod format;
mod formats;
mod gemma_call;
mod grammar;
mod headed_call;
mod heads;
mod json;
mod json_call;
mod python_call;
mod reader;
mod tag_sets;
#[cfg(test)]
mod tests;
mod tool;
mod values;
mod xml_call;

pub(super) use calls::Calls;
pub(crate) use format::ToolFormat;
pub(crate) use grammar::{answer, grammar, strict_tag, writable};
pub(super) use reader::ToolReader;
pub(crate) use tool::{MAX_TOOL_NAME_CHARS, MAX_TOOLS, Tool};
