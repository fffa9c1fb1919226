//! [`Calls`]: the tool calls of one answer, as they are found, and the text between them.

use uuid::Uuid;

use crate::chat::delta::{Pieces, ToolCallStart};

/// Where the engines that read calls report them.
#[derive(Debug, Default, Clone)]
pub(in crate::chat) struct Calls {
    /// Calls begun, those that are not reported included.
    num_begun: u32,
    /// Only the first call is reported (`parallel_tool_calls: false`).
    only_first: bool,
    /// If given: names that a call must have, where only its name shows that it is one.
    pub(super) names: Option<Vec<String>>,
    ids: Ids,
    news: Pieces,
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

    /// With ids as vLLM's.
    pub(in crate::chat) fn of_vllm(only_first: bool) -> Self {
        Self::new(Ids::Long, only_first)
    }

    pub(super) fn num_begun(&self) -> u32 {
        self.num_begun
    }

    /// Calls that were reported.
    pub(in crate::chat) fn num_reported(&self) -> u32 {
        if self.only_first { self.num_begun.min(1) } else { self.num_begun }
    }

    /// Begins a call, unless this cannot be the name of one. `id` if the model itself has given it one.
    #[must_use]
    pub(in crate::chat) fn begin(&mut self, name: &str, id: Option<String>) -> bool {
        let allowed = self.names.as_ref().is_none_or(|names| names.iter().any(|known| known == name));
        if !allowed || !is_name(name) {
            return false;
        }
        self.num_begun += 1;
        if self.is_reported() {
            let id = id.unwrap_or_else(|| self.ids.make());
            self.news.call(self.num_begun - 1, ToolCallStart { id, name: name.to_owned() });
        }
        true
    }

    /// Adds to the arguments of the call begun last.
    pub(in crate::chat) fn arguments(&mut self, text: &str) {
        if text.is_empty() || !self.is_reported() {
            return;
        }
        self.news.arguments(self.num_begun - 1, text);
    }

    /// Adds to what was thought around the calls.
    pub(in crate::chat) fn reasoning(&mut self, text: &str) {
        self.news.reasoning(text);
    }

    /// Adds to the text around the calls.
    pub(in crate::chat) fn content(&mut self, text: &str) {
        self.news.content(text);
    }

    /// What is found goes to `pieces`, and what has been found is in it.
    pub(in crate::chat) fn exchange(&mut self, pieces: &mut Pieces) {
        std::mem::swap(&mut self.news, pieces);
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
