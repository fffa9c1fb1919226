//! [`ChatParser`]: how the text of one model's answers is taken apart, chosen once a request.

use super::delta::ChatDelta;

/// What the request says of its tools.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model is to answer in text; whatever it writes is content.
    #[default]
    None,
    /// The model may call tools.
    Auto,
    /// The model must call at least one tool.
    Required,
    /// The model must call this one.
    Named(String),
}

/// Says how the answers to one request are read. Cheap to clone: one a sequence.
#[derive(Debug, Default, Clone)]
pub struct ChatParser {}

/// The state of reading one answer.
#[derive(Debug, Default, Clone)]
pub(super) struct Reading {}

impl ChatParser {
    pub(super) fn start(&self) -> Reading {
        Reading {}
    }
}

impl Reading {
    /// Takes `text` in and puts what it means into `delta`. `last` = nothing follows.
    pub(super) fn push(&mut self, text: &mut String, _last: bool, delta: &mut ChatDelta) {
        std::mem::swap(text, &mut delta.content);
    }
}
