//! Tokenizers that come in another form, as the text of the `tokenizer.json` and `tokenizer_config.json` that the same
//! tokenizer has in a Hugging Face folder: what works with these files then works with all.

mod gguf;
mod json;
mod merges;
mod sentencepiece;
mod splits;

use serde_json::Value;

pub use gguf::from_gguf;
pub use sentencepiece::from_sentencepiece;

/// A tokenizer in Hugging Face's form.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// tokenizer.json.
    pub tokenizer: Value,
    /// tokenizer_config.json: special tokens and chat templates.
    pub config: Value,
}

#[cfg(test)]
mod tests;
