//! Granite 3.

use super::config::{Config, invalid};
use super::llama::llama;
use super::names::LLAMA_NAMES;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{ModelSpec, Scales};

pub(super) const GRANITE: Family =
    Family { stem: "Granite", heads: &[GENERATES], spec: granite, names: &LLAMA_NAMES };

/// Llama with a factor wherever there is room for one.
fn granite(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = llama(config)?;
    let scale = config.f32_or("attention_multiplier", 1.0)?;
    spec.layers.iter_mut().for_each(|layer| layer.attention.scale = scale);
    spec.scales = scales(config)?;
    Ok(spec)
}

/// Granite's multipliers.
pub(super) fn scales(config: &Config) -> Result<Scales, ModelError> {
    let divisor = config.f32_or("logits_scaling", 1.0)?;
    if divisor <= 0.0 {
        return Err(invalid("logits_scaling", format!("{divisor} is not positive")));
    }
    Ok(Scales {
        embedding: config.f32_or("embedding_multiplier", 1.0)?,
        residual: config.f32_or("residual_multiplier", 1.0)?,
        logits: 1.0 / divisor,
        logits_softcap: None,
    })
}
