//! [`ToolFormat`]: how one family of models writes tool calls, as data.

use std::sync::Arc;

use super::calls::{Calls, Ids, Step};
use super::headed_call::{Head, HeadedCall};
use super::json_call::JsonCall;
use super::tool::Tool;

/// A format. Texts in angle or square brackets are often single tokens, which must then not be left out of the
/// text as special tokens are.
#[derive(Debug)]
pub(crate) struct ToolFormat {
    /// vLLM's names for it (`--tool-call-parser`).
    pub(crate) names: &'static [&'static str],
    /// Markers that begin a section of calls.
    pub(super) open: &'static [&'static str],
    /// A character that begins a section as well, if it is the first of the answer.
    pub(super) bare: Option<char>,
    /// The marker that ends a section; may be empty.
    pub(super) close: &'static str,
    /// Markers that begin a call; if there are none, a call begins by itself.
    pub(super) call_open: &'static [&'static str],
    /// What may stand between calls of a section, besides blanks.
    pub(super) between: &'static [&'static str],
    pub(super) kind: Kind,
    pub(super) ids: Ids,
}

/// What a call looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// See [`JsonCall`].
    Json,
    /// See [`HeadedCall`].
    Headed(Head),
}

impl ToolFormat {
    /// Every marker.
    pub(crate) fn markers(&self) -> impl Iterator<Item = &'static str> {
        self.openers()
            .chain([self.close])
            .chain(self.between.iter().copied())
            .filter(|marker| !marker.is_empty())
    }

    /// Markers that begin something in a text.
    pub(super) fn openers(&self) -> impl Iterator<Item = &'static str> {
        self.open.iter().chain(self.call_open).copied()
    }

    /// Markers that mean something within a section.
    pub(super) fn section_markers(&self) -> impl Iterator<Item = &'static str> {
        let close = Some(self.close).filter(|close| !close.is_empty());
        self.call_open.iter().chain(self.between).copied().chain(close)
    }

    /// Whether a call may begin so.
    pub(super) fn may_begin(&self, text: &str) -> bool {
        match self.kind {
            Kind::Json => text.starts_with('{'),
            Kind::Headed(_) => true,
        }
    }

    pub(super) fn body(&self, _tools: Arc<[Tool]>) -> Body {
        match self.kind {
            Kind::Json => Body::Json(JsonCall::default()),
            Kind::Headed(head) => Body::Headed(HeadedCall::new(head)),
        }
    }
}

/// The state of reading one call.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Json(JsonCall),
    Headed(HeadedCall),
}

impl Body {
    pub(super) fn feed(&mut self, c: char, calls: &mut Calls) -> Step {
        match self {
            Self::Json(call) => call.feed(c, calls),
            Self::Headed(call) => call.feed(c, calls),
        }
    }

    /// What was held back when a foreign character came, and belongs to the text before it.
    pub(super) fn take_rest(&mut self) -> String {
        String::new()
    }

    /// The text has ended within the call.
    pub(super) fn finish(&mut self, _calls: &mut Calls) {}
}
