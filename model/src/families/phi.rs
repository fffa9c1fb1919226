//! Phi-3, Phi-3.5-mini, Phi-3.5-MoE, Phi-4 and Phi-4-mini.

use super::config::{Config, invalid, unsupported};
use super::decoder::{decoder, set_windows, sliding_window};
use super::mixtral::MIXTRAL_NAMES;
use super::mixtures::mixture;
use super::names::{LLAMA_NAMES, Names, Stack};
use super::rope::rope_parameters;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::moe_spec::RouterScores;
use crate::spec::{MlpSpec, ModelSpec, NormKind, NormSpec, Positions, RopeScaling, RopeSpec};

pub(super) const PHI3: Family = Family { stem: "Phi3", heads: &[GENERATES], spec: phi3, names: &NAMES };

pub(super) const PHIMOE: Family =
    Family { stem: "Phimoe", heads: &[GENERATES], spec: phimoe, names: &MIXTRAL_NAMES };
/// As the published file has it.
pub(super) const PHI_MOE: Family =
    Family { stem: "PhiMoE", heads: &[GENERATES], spec: phimoe, names: &MIXTRAL_NAMES };

const NAMES: Names = Names {
    qkv: Stack::Stacked("self_attn.qkv_proj"),
    mlp_input: Stack::Stacked("mlp.gate_up_proj"),
    ..LLAMA_NAMES
};

/// Projections are fused, rotations often `longrope` and of a part of the head; a window holds for all layers.
fn phi3(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .with_default("original_max_position_embeddings", 4096.into())
        .with_default("rms_norm_eps", 1e-5.into());
    let mut spec = decoder(&config)?;
    set_windows(&config, &mut spec.layers, sliding_window(&config)?, |_| true)?;
    Ok(spec)
}

/// LayerNorm, biases as settings, and a mixture of two experts a token in every layer.
fn phimoe(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .with_default("rms_norm_eps", 1e-5.into())
        .with_default("rope_theta", 1_000_000.0.into())
        .with_default("num_local_experts", 16.into())
        .with_default("num_experts_per_tok", 2.into());
    config.only("num_experts_per_tok", 2.into(), "2")?;
    let mut spec = decoder(&config)?;
    let scores = RouterScores::SparseMixer { jitter: config.f32_or("router_jitter_noise", 0.01)? };
    let moe = mixture(&config, "num_local_experts", "intermediate_size", scores, false)?;
    let bias = config.flag_or("attention_bias", false)?;
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.output_bias) = (bias, bias);
        layer.mlp = MlpSpec::Moe(moe.clone());
    }
    spec.norm = NormSpec { kind: NormKind::Layer, bias: true, ..spec.norm };
    spec.lm_head_bias = config.flag_or("lm_head_bias", false)?;
    if let (Positions::Rotary(ropes), Some(parameters)) = (&mut spec.positions, rope_parameters(&config)?) {
        ropes.iter_mut().try_for_each(|rope| set_length(rope, &parameters))?;
    }
    set_windows(&config, &mut spec.layers, sliding_window(&config)?, |_| true)?;
    Ok(spec)
}

/// The factor on cosines and sines is given, once for short contexts and once for long ones.
fn set_length(rope: &mut RopeSpec, parameters: &Config) -> Result<(), ModelError> {
    let RopeScaling::Long { attention_factor, .. } = &mut rope.scaling else { return Ok(()) };
    let (short, long) = (parameters.number("short_mscale")?, parameters.number("long_mscale")?);
    match (short, long) {
        (Some(short), Some(long)) if short == long => *attention_factor = long,
        (Some(short), Some(long)) => {
            let found = format!("short_mscale {short}, long_mscale {long}");
            return Err(unsupported("rope_scaling", found, "short_mscale and long_mscale of one value"));
        }
        _ => return Err(invalid("rope_scaling", "short_mscale and long_mscale must be numbers".into())),
    }
    Ok(())
}
