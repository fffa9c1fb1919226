//! Text on both sides of the model: tokenizer, chat template, incremental detokenizer and stop strings.
//!
//! Nothing here knows a socket, a request or a device. The front end runs the expensive jobs (templates,
//! encoding) on the [`TextPool`]; the output thread owns one [`Detokenizer`] and one [`StopMatcher`] per
//! stream.

mod archive;
mod convert;
mod detokenizer;
mod error;
mod pieces;
mod pool;
mod stop;
mod template;
mod tokenizer;

pub use archive::TokenizerFiles;
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use pool::TextPool;
pub use stop::StopMatcher;
pub(crate) use template::strftime;
pub use template::{ChatInput, ChatTemplate, render_own};
pub use tokenizer::{Keep, SpecialTokens, Tokenizer, Tokens};

#[cfg(test)]
mod tests;
