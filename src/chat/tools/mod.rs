//! Tool calls: what clients offer ([`Tool`]), and how models write calls ([`ToolFormat`], [`ToolReader`]).

mod calls;
mod format;
mod formats;
mod headed_call;
mod json;
mod json_call;
mod reader;
mod tool;

pub(crate) use format::ToolFormat;
pub(super) use reader::ToolReader;
pub(crate) use tool::{MAX_TOOLS, Tool};
