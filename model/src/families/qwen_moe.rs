//! Qwen2-MoE (Qwen1.5-MoE and Qwen2-57B-A14B) and Qwen3-MoE.

use super::config::{Config, invalid};
use super::decoder::{decoder, set_windows, sliding_window};
use super::mixtures::{mixture, with_shared};
use super::names::LLAMA_NAMES;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::moe_spec::{MoeSpec, RouterScores};
use crate::spec::{LayerSpec, MlpSpec, ModelSpec, NormKind, NormSpan, QkNormSpec};

pub(super) const QWEN2_MOE: Family =
    Family { stem: "Qwen2Moe", heads: &[GENERATES], spec: qwen2_moe, names: &LLAMA_NAMES };
pub(super) const QWEN3_MOE: Family =
    Family { stem: "Qwen3Moe", heads: &[GENERATES], spec: qwen3_moe, names: &LLAMA_NAMES };

/// Biases of queries, keys and values unless the config says otherwise; an expert for all tokens, behind a gate.
fn qwen2_moe(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .with_default("num_experts", 60.into())
        .with_default("num_experts_per_tok", 4.into())
        .with_default("moe_intermediate_size", 1408.into());
    let mut spec = decoder(&config)?;
    let bias = config.flag_or("qkv_bias", true)?;
    spec.layers.iter_mut().for_each(|layer| layer.attention.qkv_bias = bias);
    let shared = config.positive_or("shared_expert_intermediate_size", Some(5632))?;
    set_mixtures(&config, &mut spec.layers, &with_shared(qwen_mixture(&config)?, shared, true))?;
    // Every other one of the first layers, unless they are listed.
    let most = config.count("max_window_layers")?.unwrap_or(28);
    set_windows(&config, &mut spec.layers, window(&config)?, |index| index < most && index % 2 == 0)?;
    Ok(spec)
}

/// Heads of queries and keys are normalised; biases are a setting; a window holds for all layers.
fn qwen3_moe(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .renamed("num_local_experts", "num_experts")
        .with_default("num_experts", 128.into())
        .with_default("num_experts_per_tok", 8.into())
        .with_default("moe_intermediate_size", 768.into());
    let mut spec = decoder(&config)?;
    let bias = config.flag_or("attention_bias", false)?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        attention.qk_norm = Some(QkNormSpec { kind: NormKind::Rms, span: NormSpan::Head });
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
    }
    set_mixtures(&config, &mut spec.layers, &qwen_mixture(&config)?)?;
    set_windows(&config, &mut spec.layers, window(&config)?, |_| true)?;
    Ok(spec)
}

fn qwen_mixture(config: &Config) -> Result<MoeSpec, ModelError> {
    let renormalise = config.flag_or("norm_topk_prob", false)?;
    mixture(config, "num_experts", "moe_intermediate_size", RouterScores::Softmax, renormalise)
}

/// The window, where it is switched on.
fn window(config: &Config) -> Result<Option<u32>, ModelError> {
    if config.flag_or("use_sliding_window", false)? { sliding_window(config) } else { Ok(None) }
}

/// A mixture in every `decoder_sparse_step`th layer, but in those of `mlp_only_layers`.
fn set_mixtures(config: &Config, layers: &mut [LayerSpec], moe: &MoeSpec) -> Result<(), ModelError> {
    let step = config.positive_or("decoder_sparse_step", Some(1))?;
    let dense = config.numbers("mlp_only_layers")?.unwrap_or_default();
    if let Some(wrong) = dense.iter().find(|index| index.fract() != 0.0 || **index < 0.0) {
        return Err(invalid("mlp_only_layers", format!("{wrong} is not the number of a layer")));
    }
    for (index, layer) in layers.iter_mut().enumerate() {
        if (index + 1) % step == 0 && !dense.contains(&(index as f64)) {
            layer.mlp = MlpSpec::Moe(moe.clone());
        }
    }
    Ok(())
}
