//! Chat, behind every wire that chats: the [`Conversation`] as the template gets it, and the [`ChatStream`]
//! of what the model answered, taken apart into reasoning, content and tool calls.
//!
//! OpenAI's chat and responses, Anthropic's messages and Ollama's chat all translate into the one and out of
//! the other, so that a model's way of writing tool calls is understood in one place.

mod conversation;
mod delta;
mod harmony;
mod harmony_messages;
mod parser;
mod reasoning;
mod setup;
mod stream;
mod thought_count;
mod tools;
mod window;

pub use conversation::Conversation;
pub use delta::{ChatDelta, ToolCallDelta, ToolCallStart};
pub use parser::{ChatParser, Reading, ToolChoice};
pub use setup::{ChatSetup, ChatSetupError};
pub use stream::ChatStream;
pub(crate) use tools::{
    MAX_TOOL_NAME_CHARS, MAX_TOOLS, Tool, ToolFormat, answer, grammar, strict_tag, writable,
};
