//! [`LoraError`]: why an adapter cannot be used, for the person who chose it.

use std::path::PathBuf;

/// What is wrong with an adapter's files.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// There is no adapter in that folder.
    #[error("no adapter is in {path}: it has no {file}")]
    Missing {
        /// The folder.
        path: PathBuf,
        /// What is looked for.
        file: &'static str,
    },
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is not what its name says (JSON, safetensors).
    #[error("{path} is damaged: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's words.
        reason: String,
    },
    /// A setting of adapter_config.json is missing, has no meaning or asks for what is not built.
    #[error("adapter_config.json: {field}: {reason}")]
    Config {
        /// The field.
        field: String,
        /// What is wrong with it, and what is allowed.
        reason: String,
    },
    /// A tensor cannot be used: it changes nothing that adapters can change here, or has no partner.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// As the file calls it.
        name: String,
        /// What is wrong with it, and what is allowed.
        reason: String,
    },
    /// A tensor does not fit the layer that it names.
    #[error("tensor {name:?} has shape {found:?}, expected {expected}")]
    Shape {
        /// As the file calls it.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// More than the server was started for.
    #[error("LoRA rank {rank} is greater than max_lora_rank {most}.")]
    Rank {
        /// The adapter's.
        rank: usize,
        /// `--max-lora-rank`.
        most: usize,
    },
}
