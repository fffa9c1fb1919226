//! Llama 2 to 3.3 and Mistral (7B, Nemo, Small), with all that are stored under their names (SmolLM2, Yi, ...).

use super::config::Config;
use super::decoder::{decoder, set_windows, sliding_window};
use super::names::{LLAMA_NAMES, Names};
use super::{BARE, CLASSIFIES, Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{MlpSpec, ModelSpec};

pub(super) const LLAMA: Family =
    Family { stem: "Llama", heads: &[GENERATES, BARE, CLASSIFIES], spec: llama, names: NAMES };
pub(super) const MISTRAL: Family =
    Family { stem: "Mistral", heads: &[GENERATES, BARE, CLASSIFIES], spec: mistral, names: NAMES };
pub(super) const MINISTRAL: Family =
    Family { stem: "Ministral", heads: &[GENERATES], spec: mistral, names: NAMES };

const NAMES: &Names = &LLAMA_NAMES;

/// Biases are settings; there are windows only where `layer_types` says so.
pub(super) fn llama(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(config)?;
    let (bias, mlp_bias) = (config.flag_or("attention_bias", false)?, config.flag_or("mlp_bias", false)?);
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.output_bias) = (bias, bias);
        if let MlpSpec::Dense(mlp) = &mut layer.mlp {
            mlp.bias = mlp_bias;
        }
    }
    set_windows(config, &mut spec.layers, sliding_window(config)?, |_| false)?;
    Ok(spec)
}

/// No biases; a window holds for all layers unless `layer_types` says otherwise (Ministral).
fn mistral(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(config)?;
    let window = sliding_window(&config.unless_said("sliding_window", 4096.into()))?;
    set_windows(config, &mut spec.layers, window, |_| true)?;
    Ok(spec)
}
