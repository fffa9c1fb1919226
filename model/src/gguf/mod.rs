//! GGUF: a whole model in one file, its settings and tokenizer with it.
//!
//! Nothing beyond this folder and [`crate::ggml`] knows of the format: [`GgufFile`] reads it, its settings are
//! translated into the text of the config.json that the same model has in a Hugging Face folder, and its tensors are
//! handed out by the names that they have there.

mod architecture;
mod config;
mod cursor;
mod file;
mod header;
mod metadata;
mod names;
mod tensors;

pub use file::{GgufFile, split_name};
pub use header::{Header, TensorInfo};
pub use metadata::{Metadata, Value};
pub(crate) use tensors::{GgufTensor, GgufTensors};

#[cfg(test)]
pub(crate) mod tests;
