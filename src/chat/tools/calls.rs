//! [`Calls`]: the tool calls of one answer, as they are found.

use uuid::Uuid;

use crate::chat::delta::{ToolCallDelta, ToolCallStart};

/// Where the engines that read calls report them.
#[derive(Debug, Default, Clone)]
pub(super) struct Calls {
    /// Calls begun, those that are not reported included.
    num_begun: u32,
    /// Only the first call is reported (`parallel_tool_calls: false`).
    only_first: bool,
    /// If given: names that a call must have, where only its name shows that it is one.
    pub(super) names: Option<Vec<String>>,
    ids: Ids,
    news: Vec<ToolCallDelta>,
}

/// What ids of calls look like.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ids {
    /// `chatcmpl-tool-` and 32 hexadecimal digits, as vLLM's.
    #[default]
    Long,
    /// 9 letters and digits: templates of Mistral's models refuse any other.
    Nine,
}

/// What a body made of a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Taken; the call goes on.
    More,
    /// Taken; the call is complete.
    Done,
    /// Not taken: it cannot be part of the call.
    Foreign,
}

impl Calls {
    pub(super) fn new(ids: Ids, only_first: bool) -> Self {
        Self { ids, only_first, ..Self::default() }
    }

    pub(super) fn num_begun(&self) -> u32 {
        self.num_begun
    }

    /// Calls that were reported.
    pub(super) fn num_reported(&self) -> u32 {
        if self.only_first { self.num_begun.min(1) } else { self.num_begun }
    }

    /// Begins a call, unless this cannot be the name of one. `id` if the model itself has given it one.
    #[must_use]
    pub(super) fn begin(&mut self, name: &str, id: Option<String>) -> bool {
        let allowed = self.names.as_ref().is_none_or(|names| names.iter().any(|known| known == name));
        if !allowed || !is_name(name) {
            return false;
        }
        self.num_begun += 1;
        if self.is_reported() {
            let id = id.unwrap_or_else(|| self.ids.make());
            let start = Some(ToolCallStart { id, name: name.to_owned() });
            self.news.push(ToolCallDelta { index: self.num_begun - 1, start, arguments: String::new() });
        }
        true
    }

    /// Adds to the arguments of the call begun last.
    pub(super) fn arguments(&mut self, text: &str) {
        if text.is_empty() || !self.is_reported() {
            return;
        }
        let index = self.num_begun - 1;
        match self.news.last_mut() {
            Some(last) if last.index == index && last.start.is_none() => last.arguments.push_str(text),
            _ => self.news.push(ToolCallDelta { index, start: None, arguments: text.to_owned() }),
        }
    }

    /// Hands out what is new.
    pub(super) fn take(&mut self, out: &mut Vec<ToolCallDelta>) {
        out.append(&mut self.news);
    }

    fn is_reported(&self) -> bool {
        self.num_begun == self.num_reported()
    }
}

impl Ids {
    fn make(self) -> String {
        match self {
            Self::Long => format!("chatcmpl-tool-{}", Uuid::new_v4().simple()),
            Self::Nine => Uuid::new_v4().simple().to_string()[..9].to_owned(),
        }
    }
}

/// Whether a function may be called so. What OpenAI allows, and what models make of namespaces.
fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/' | '$');
    (1..=256).contains(&name.len()) && name.chars().all(allowed)
}
