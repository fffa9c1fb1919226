//! What can go wrong with text, written for the person who sent the request or started the server.

use std::path::PathBuf;

/// Every error of the text layer.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A tokenizer file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why the operating system refused.
        source: std::io::Error,
    },
    /// A tokenizer file is not what its name says.
    #[error("{file} is not valid: {message}")]
    BadFile {
        /// Its name, such as `tokenizer.json`.
        file: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The tokenizer refused the text.
    #[error("the text could not be tokenized: {message}")]
    Encode {
        /// The tokenizer's own words.
        message: String,
    },
    /// The chat template does not parse.
    #[error("chat template, line {line}: {message}")]
    TemplateSyntax {
        /// Line in the template's source, from 1.
        line: usize,
        /// What the parser expected.
        message: String,
    },
    /// The template called `raise_exception`: it rejects these messages.
    #[error("{message}")]
    TemplateRaised {
        /// The template's own words.
        message: String,
    },
    /// The template failed on these messages.
    #[error("chat template, line {line}: {message}")]
    TemplateRender {
        /// Line in the template's source, from 1; 0 where it is not known.
        line: usize,
        /// What failed.
        message: String,
    },
    /// Rendering would have taken more steps or room than one request may have.
    #[error("rendering the chat template exceeded the limit of {limit} {unit}")]
    TemplateLimit {
        /// The limit.
        limit: u64,
        /// What it counts.
        unit: &'static str,
    },
    /// A name that only the server may set was passed in `chat_template_kwargs`.
    #[error("chat_template_kwargs must not contain `{name}`: it is set by the request itself")]
    ReservedKwarg {
        /// The offending name.
        name: String,
    },
    /// `continue_final_message` cannot be honoured.
    #[error("continue_final_message: {reason}")]
    ContinueFinalMessage {
        /// Why not.
        reason: &'static str,
    },
    /// The text pool's queue is full.
    #[error("too many requests are waiting for the tokenizer (limit {max_queued})")]
    Overloaded {
        /// Jobs the queue may hold.
        max_queued: usize,
    },
    /// A job of the text pool panicked. Only this request is affected.
    #[error("text processing failed unexpectedly: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
}
