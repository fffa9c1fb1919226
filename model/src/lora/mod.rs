//! LoRA adapters in PEFT's format: what they change of a model's products, read and checked.
//!
//! An adapter adds `scaling * (x·Aᵀ)·Bᵀ` to what a linear layer gives for `x`. Here are its files
//! ([`AdapterConfig`], [`LoraWeights::read`]) and the layers it may name ([`LoraTargets`]); the addition is
//! [`crate::Backend::add_lora`]. Whose adapter is whose is decided elsewhere: it comes with the request.

mod config;
mod error;
mod read;
mod targets;

use std::ops::Range;

pub use config::AdapterConfig;
pub use error::LoraError;
pub use targets::{LoraTarget, LoraTargets};

/// The weights of one adapter, in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraWeights {
    /// In order of [`LoraPart::projection`].
    parts: Vec<LoraPart>,
    digest: String,
}

/// What an adapter adds to some columns of one product.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraPart {
    /// Which product of the model: [`LoraTarget::projection`].
    pub projection: usize,
    /// The columns of the result; other layers may share it, as queries, keys and values do.
    pub columns: Range<usize>,
    /// Rows of `a`, columns of `b`.
    pub rank: usize,
    /// Factor on the whole.
    pub scaling: f32,
    /// `[rank][inputs]`.
    pub a: Vec<f32>,
    /// `[columns.len()][rank]`.
    pub b: Vec<f32>,
}

impl LoraWeights {
    fn new(mut parts: Vec<LoraPart>, digest: String) -> Self {
        parts.sort_by_key(|part| (part.projection, part.columns.start));
        Self { parts, digest }
    }

    /// What is added to one product; often nothing.
    pub fn parts(&self, projection: usize) -> &[LoraPart] {
        let first = self.parts.partition_point(|part| part.projection < projection);
        let rest = &self.parts[first..];
        &rest[..rest.partition_point(|part| part.projection == projection)]
    }

    /// Hexadecimal SHA-256 of the files it was read from and of how they were read: the same only of the same weights.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The greatest rank of a part.
    pub fn max_rank(&self) -> usize {
        self.parts.iter().map(|part| part.rank).max().unwrap_or(0)
    }

    /// Bytes of the weights.
    pub fn num_bytes(&self) -> usize {
        self.parts.iter().map(|part| (part.a.len() + part.b.len()) * size_of::<f32>()).sum()
    }
}
