//! Qwen2, Qwen2.5 and Qwen3.

use super::config::Config;
use super::decoder::{decoder, set_windows, sliding_window};
use super::names::LLAMA_NAMES;
use super::{BARE, CLASSIFIES, Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{ModelSpec, NormKind, NormSpan, QkNormSpec};

pub(super) const QWEN2: Family =
    Family { stem: "Qwen2", heads: &[GENERATES, BARE, CLASSIFIES], spec: qwen2, names: &LLAMA_NAMES };
pub(super) const QWEN3: Family =
    Family { stem: "Qwen3", heads: &[GENERATES, BARE, CLASSIFIES], spec: qwen3, names: &LLAMA_NAMES };

/// Queries, keys and values have biases, always.
fn qwen2(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(config)?;
    spec.layers.iter_mut().for_each(|layer| layer.attention.qkv_bias = true);
    with_windows(config, spec)
}

/// Heads of queries and keys are normalised; biases are a setting, and a head is 128 wide unless that says otherwise.
fn qwen3(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(&config.with_default("head_dim", 128.into()))?;
    let bias = config.flag_or("attention_bias", false)?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        attention.qk_norm = Some(QkNormSpec { kind: NormKind::Rms, span: NormSpan::Head });
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
    }
    with_windows(config, spec)
}

/// A switch, and a first layer from which on there is a window.
fn with_windows(config: &Config, mut spec: ModelSpec) -> Result<ModelSpec, ModelError> {
    let switched_on = config.flag_or("use_sliding_window", false)?;
    let config = config.unless_said("sliding_window", 4096.into());
    let window = if switched_on { sliding_window(&config)? } else { None };
    let first = config.count("max_window_layers")?.unwrap_or(28);
    set_windows(&config, &mut spec.layers, window, |index| index >= first)?;
    Ok(spec)
}
