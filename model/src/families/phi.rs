//! Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini.

use super::config::Config;
use super::decoder::{decoder, set_windows, sliding_window};
use super::names::{LLAMA_NAMES, Names, Stack};
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::ModelSpec;

pub(super) const PHI3: Family = Family { stem: "Phi3", heads: &[GENERATES], spec: phi3, names: &NAMES };

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
