//! Why a model cannot be served: one enum, written for the person who chose the model.

use std::path::PathBuf;

use crate::backend::BackendError;

/// What is wrong with a model's files, or with the device that should hold it.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
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
    /// A folder has no weights that can be read.
    #[error("no weights in {dir}: {reason}")]
    NoWeights {
        /// The folder.
        dir: PathBuf,
        /// What there is instead, and what to do.
        reason: String,
    },
    /// The architecture is not implemented.
    #[error("architecture {found:?} is not supported; supported: {supported}")]
    Architecture {
        /// As config.json names it.
        found: String,
        /// Those that are.
        supported: String,
    },
    /// A setting of config.json is missing or has no meaning.
    #[error("config.json: {field}: {reason}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with it, and what is allowed.
        reason: String,
    },
    /// A setting of config.json asks for something that is not implemented.
    #[error("config.json: {field} = {found} is not supported; supported: {supported}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// The values that are.
        supported: &'static str,
    },
    /// The checkpoint lacks a weight that the architecture has.
    #[error("the checkpoint has no tensor {name:?}")]
    MissingTensor {
        /// The weight's name.
        name: String,
    },
    /// The checkpoint has weights that the architecture does not know; running without them would be wrong.
    #[error("the checkpoint has {count} tensors that this architecture does not use, among them {example:?}")]
    UnmappedTensors {
        /// How many.
        count: usize,
        /// The first by name.
        example: String,
    },
    /// A weight does not have the shape that config.json implies.
    #[error("tensor {name:?} has shape {found:?}; config.json implies {expected:?}")]
    Shape {
        /// The weight's name.
        name: String,
        /// In the file.
        found: Vec<usize>,
        /// By the config.
        expected: Vec<usize>,
    },
    /// A weight is stored in a type that cannot be computed with.
    #[error("tensor {name:?} is stored as {found}; supported: F32, BF16, F16")]
    TensorDtype {
        /// The weight's name.
        name: String,
        /// As safetensors names it.
        found: String,
    },
    /// A tensor of packed weights is not what its format says.
    #[error("tensor {name:?} {reason}")]
    PackedTensor {
        /// The tensor's name.
        name: String,
        /// The rest of the sentence: what is wrong, and what is allowed.
        reason: String,
    },
    /// A flag asks for what this model does not go with.
    #[error("{flag} {value}: {reason}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// Why not, and what is allowed.
        reason: String,
    },
    /// Sizes of the runner that contradict each other or the model.
    #[error("{field} = {value} is out of range: {allowed}")]
    Limit {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: usize,
        /// What is allowed, and why.
        allowed: String,
    },
    /// The device refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
