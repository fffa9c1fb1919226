//! [`ResponseStore`]: the responses that clients may ask for again, in memory and bounded. The oldest go
//! first, and all go with the process: a store that outlives it would be a database.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::task::AbortHandle;

use super::object::{Item, Response, Status};

/// Responses kept at most.
const MAX_RESPONSES: usize = 4096;
/// Bytes they may take together, roughly: text is counted, and something for each value around it.
const MAX_BYTES: usize = 256 << 20;

/// A response and what it answers.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) response: Response,
    /// All items before the response's own, those of earlier responses included.
    pub(super) input: Vec<Value>,
}

/// Shared by all requests.
#[derive(Debug, Default)]
pub(crate) struct ResponseStore(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<String, Entry>,
    /// Ids in the order they came, also of entries that have gone since.
    order: VecDeque<String>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    stored: Arc<Stored>,
    bytes: usize,
    /// Of a response that is made in the background and has not ended.
    task: Option<AbortHandle>,
}

/// What became of a wish to cancel.
#[derive(Debug)]
pub(super) enum Cancelled {
    /// It was being made, and is no longer.
    Done(Arc<Stored>),
    /// It had ended, or somebody is waiting for it.
    NotRunning,
    /// There is no such response.
    Unknown,
}

impl ResponseStore {
    /// Takes in a response that is made in the background by `task`.
    pub(super) fn begin(&self, stored: Stored, task: AbortHandle) {
        self.lock().insert(stored, Some(task));
    }

    /// Takes in a response that has ended. One that was made in the background and has been cancelled,
    /// deleted or evicted meanwhile is not wanted any more.
    pub(super) fn finish(&self, stored: Stored) {
        let mut inner = self.lock();
        let running = inner.entries.get(&stored.response.id).is_some_and(|entry| entry.task.is_some());
        if running || !stored.response.settings.background {
            inner.insert(stored, None);
        }
    }

    pub(super) fn get(&self, id: &str) -> Option<Arc<Stored>> {
        self.lock().entries.get(id).map(|entry| entry.stored.clone())
    }

    /// Ends the making of a response.
    pub(super) fn cancel(&self, id: &str) -> Cancelled {
        let mut inner = self.lock();
        let Some(entry) = inner.entries.get_mut(id) else { return Cancelled::Unknown };
        let Some(task) = entry.task.take() else { return Cancelled::NotRunning };
        task.abort();
        let response = Response { status: Status::Cancelled, ..entry.stored.response.clone() };
        entry.stored = Arc::new(Stored { response, input: entry.stored.input.clone() });
        Cancelled::Done(entry.stored.clone())
    }

    /// Forgets a response; false if it is not known.
    pub(super) fn remove(&self, id: &str) -> bool {
        self.lock().remove(id)
    }

    /// The output item with this id, of any response.
    pub(super) fn item(&self, id: &str) -> Option<Item> {
        let inner = self.lock();
        let mut items = inner.entries.values().flat_map(|entry| &entry.stored.response.output);
        items.find(|item| item.id() == id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing in here is left half done where it could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert(&mut self, stored: Stored, task: Option<AbortHandle>) {
        let id = stored.response.id.clone();
        self.remove(&id);
        let bytes = bytes_of(&stored);
        self.bytes += bytes;
        self.order.push_back(id.clone());
        self.entries.insert(id, Entry { stored: Arc::new(stored), bytes, task });
        while self.bytes > MAX_BYTES || self.entries.len() > MAX_RESPONSES {
            let Some(oldest) = self.order.front().cloned() else { break };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some(entry) = self.entries.remove(id) else { return false };
        self.bytes -= entry.bytes;
        if let Some(place) = self.order.iter().position(|other| other == id) {
            self.order.remove(place);
        }
        if let Some(task) = entry.task {
            task.abort();
        }
        true
    }
}

/// For every value or field, on top of its text.
const BYTES_A_VALUE: usize = 64;

fn bytes_of(stored: &Stored) -> usize {
    let Stored { response, input } = stored;
    let output: usize = response.output.iter().map(item_bytes).sum();
    let settings = &response.settings;
    let values = input.iter().chain(&settings.tools).chain(settings.metadata.values());
    let instructions = settings.instructions.as_ref().map_or(0, String::len);
    values.map(value_bytes).sum::<usize>() + output + instructions + 16 * BYTES_A_VALUE
}

fn item_bytes(item: &Item) -> usize {
    use super::object::Content;
    let content_bytes = |content: &Content| match content {
        Content::ReasoningText { text } => text.len(),
        // A token with its alternatives; few ask for them.
        Content::OutputText { text, logprobs, .. } => text.len() + logprobs.len() * 32 * BYTES_A_VALUE,
    };
    8 * BYTES_A_VALUE
        + match item {
            Item::Reasoning { content, .. } | Item::Message { content, .. } => {
                content.iter().map(content_bytes).sum()
            }
            Item::FunctionCall { arguments: text, .. } | Item::CustomToolCall { input: text, .. } => {
                text.len()
            }
        }
}

fn value_bytes(value: &Value) -> usize {
    BYTES_A_VALUE
        + match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.iter().map(value_bytes).sum(),
            Value::Object(map) => map.iter().map(|(name, value)| name.len() + value_bytes(value)).sum(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        }
}
