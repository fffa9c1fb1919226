//! [`SamplingDefaults`]: how the model's makers suggest to sample, from generation_config.json.

use serde::Deserialize;

use crate::error::ModelError;
use crate::families::config::parse;

/// The fields of generation_config.json that vLLM takes as defaults for requests; `None` where absent.
/// Ranges are not checked here: a request's own checks apply to what results.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct SamplingDefaults {
    /// Softmax temperature.
    pub temperature: Option<f64>,
    /// Nucleus size.
    pub top_p: Option<f64>,
    /// Tokens kept.
    pub top_k: Option<i64>,
    /// Fraction of the best token's probability.
    pub min_p: Option<f64>,
    /// Factor on logits of tokens seen.
    pub repetition_penalty: Option<f64>,
    /// Caps the output of every request.
    pub max_new_tokens: Option<u32>,
}

impl SamplingDefaults {
    /// Reads the text of generation_config.json.
    pub fn from_json(generation_config: &str) -> Result<Self, ModelError> {
        parse("generation_config.json", generation_config)
    }

    /// The same, with what is absent taken from `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            temperature: self.temperature.or(other.temperature),
            top_p: self.top_p.or(other.top_p),
            top_k: self.top_k.or(other.top_k),
            min_p: self.min_p.or(other.min_p),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            max_new_tokens: self.max_new_tokens.or(other.max_new_tokens),
        }
    }
}
