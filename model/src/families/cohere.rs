//! Command-R, Command-R+ and Command-R7B.

use serde_json::json;

use super::config::Config;
use super::decoder::{decoder, layer_norm, set_windows, sliding_window};
use super::names::LLAMA_NAMES;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{ModelSpec, NormKind, NormSpan, NormSpec, Norms, Positions, QkNormSpec};

pub(super) const COHERE: Family =
    Family { stem: "Cohere", heads: &[GENERATES], spec: cohere, names: &LLAMA_NAMES };
pub(super) const COHERE2: Family =
    Family { stem: "Cohere2", heads: &[GENERATES], spec: cohere2, names: &LLAMA_NAMES };

/// The larger models normalise heads.
fn cohere(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = common(&config.with_default("rope_theta", json!(500_000.0)))?;
    let qk_norm = QkNormSpec { kind: NormKind::Layer, span: NormSpan::EachHead };
    let qk_norm = config.flag_or("use_qk_norm", false)?.then_some(qk_norm);
    spec.layers.iter_mut().for_each(|layer| layer.attention.qk_norm = qk_norm);
    Ok(spec)
}

/// Three layers with a window and a rotation, then one that sees all and does not rotate.
fn cohere2(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = common(config)?;
    let window = sliding_window(&config.unless_said("sliding_window", 4096.into()))?;
    let pattern = config.positive_or("sliding_window_pattern", Some(4))?;
    set_windows(config, &mut spec.layers, window, |index| !(index + 1).is_multiple_of(pattern))?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        attention.rope = attention.sliding_window.map(|_| 0);
    }
    Ok(spec)
}

/// LayerNorm without biases, the blocks side by side behind one of them, neighbours rotated, logits scaled.
fn common(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(&config.with_default("tie_word_embeddings", true.into()))?;
    let bias = config.flag_or("attention_bias", false)?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
    }
    if let Positions::Rotary(ropes) = &mut spec.positions {
        ropes.iter_mut().for_each(|rope| rope.interleaved = true);
    }
    spec.norm = NormSpec { bias: false, ..layer_norm(config, "layer_norm_eps")? };
    spec.norms = Norms::Parallel { shared: true };
    spec.scales.logits = config.f32_or("logit_scale", 0.0625)?;
    Ok(spec)
}
