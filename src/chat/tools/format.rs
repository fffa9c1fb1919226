//! [`ToolFormat`]: how one family of models writes tool calls, as data.

use std::sync::Arc;

use super::calls::{Calls, Ids, Step};
use super::gemma_call::{GemmaCall, GemmaQuotes};
use super::headed_call::{Head, HeadedCall};
use super::json_call::JsonCall;
use super::python_call::PythonCall;
use super::tool::Tool;
use super::xml_call::{XmlCall, XmlTags};

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
    /// Further markers, within calls, besides those that `kind` has.
    pub(super) within: &'static [&'static str],
    pub(super) kind: Kind,
    pub(super) ids: Ids,
    /// How a call that must be made is written, for the first of these that the tokenizer can write; empty if no
    /// grammar describes it.
    pub(super) writes: &'static [Writes],
}

/// The texts around names and arguments.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writes {
    /// A token that the vocabulary must have.
    pub(super) needs: &'static str,
    pub(super) first: &'static str,
    /// Before the name, between name and arguments (`{index}` stands for any number), after the arguments.
    pub(super) call: [&'static str; 3],
    pub(super) between: &'static str,
    pub(super) last: &'static str,
    /// Before an answer in JSON.
    pub(super) answer: &'static str,
}

impl Writes {
    pub(super) const NONE: Self =
        Self { needs: "", first: "", call: [""; 3], between: "", last: "", answer: "" };
}

/// What a call looks like.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// See [`JsonCall`].
    Json,
    /// See [`HeadedCall`].
    Headed(Head),
    /// As `Json` if the call begins with a brace, else as `Headed`.
    JsonOrHeaded(Head),
    /// See [`XmlCall`].
    Xml(&'static XmlTags),
    /// As `Json` if the call begins with a brace, else as `Xml`.
    JsonOrXml(&'static XmlTags),
    /// See [`PythonCall`].
    Python,
    /// See [`GemmaCall`].
    Gemma(&'static GemmaQuotes),
    /// Calls are messages to a function: the whole answer is read by
    /// [`HarmonyReader`](crate::chat::harmony::HarmonyReader).
    Channels,
}

impl ToolFormat {
    /// Whether the whole answer comes in channels, its calls with it.
    pub(crate) fn is_in_channels(&self) -> bool {
        matches!(self.kind, Kind::Channels)
    }

    /// Every marker.
    pub(crate) fn markers(&self) -> impl Iterator<Item = &'static str> {
        let of_kind = match self.kind {
            Kind::Xml(tags) | Kind::JsonOrXml(tags) => tags.markers(),
            Kind::Gemma(quotes) => vec![quotes.quote],
            Kind::Json | Kind::Headed(_) | Kind::JsonOrHeaded(_) | Kind::Python | Kind::Channels => {
                Vec::new()
            }
        };
        self.openers()
            .chain([self.close])
            .chain(self.between.iter().chain(self.within).copied())
            .chain(of_kind)
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
            Kind::Python => text.starts_with(|c: char| c.is_alphabetic() || c == '_'),
            Kind::Headed(_) | Kind::JsonOrHeaded(_) | Kind::Xml(_) | Kind::JsonOrXml(_) | Kind::Gemma(_) => {
                true
            }
            Kind::Channels => false,
        }
    }

    /// To read a call that begins with `c`.
    pub(super) fn body(&self, c: char, tools: &Arc<[Tool]>) -> Body {
        match self.kind {
            Kind::Json => Body::Json(JsonCall::default()),
            Kind::JsonOrHeaded(_) | Kind::JsonOrXml(_) if c == '{' => Body::Json(JsonCall::default()),
            Kind::Headed(head) | Kind::JsonOrHeaded(head) => Body::Headed(HeadedCall::new(head)),
            Kind::Xml(tags) | Kind::JsonOrXml(tags) => Body::Xml(XmlCall::new(tags, tools.clone())),
            Kind::Python => Body::Python(PythonCall::default()),
            Kind::Gemma(quotes) => Body::Gemma(GemmaCall::new(quotes, tools.clone())),
            Kind::Channels => unreachable!("no marker begins a call"),
        }
    }
}

/// The state of reading one call.
#[derive(Debug, Clone)]
pub(super) enum Body {
    Json(JsonCall),
    Headed(HeadedCall),
    Xml(XmlCall),
    Python(PythonCall),
    Gemma(GemmaCall),
}

impl Body {
    pub(super) fn feed(&mut self, c: char, calls: &mut Calls) -> Step {
        match self {
            Self::Json(call) => call.feed(c, calls),
            Self::Headed(call) => call.feed(c, calls),
            Self::Xml(call) => call.feed(c, calls),
            Self::Python(call) => call.feed(c, calls),
            Self::Gemma(call) => call.feed(c, calls),
        }
    }

    /// What was held back when a foreign character came to a call that had begun: it belongs to the text after it.
    pub(super) fn take_rest(&mut self) -> String {
        match self {
            Self::Xml(call) => call.take_rest(),
            Self::Json(_) | Self::Headed(_) | Self::Python(_) | Self::Gemma(_) => String::new(),
        }
    }

    /// The text has ended within the call.
    pub(super) fn finish(&mut self, calls: &mut Calls) {
        match self {
            Self::Xml(call) => call.finish(calls),
            Self::Gemma(call) => call.finish(calls),
            Self::Json(_) | Self::Headed(_) | Self::Python(_) => (),
        }
    }
}
