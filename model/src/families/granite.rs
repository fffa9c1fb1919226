//! Granite 3, Granite-MoE, and Granite-MoE with a shared expert.

use super::config::{Config, invalid};
use super::llama::llama;
use super::mixtures::{mixture, with_shared};
use super::names::{ExpertNames, LLAMA_NAMES, MoeNames, Names, QWEN_MOE_NAMES, Stack};
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::moe_spec::RouterScores;
use crate::spec::{MlpSpec, ModelSpec, Scales};

pub(super) const GRANITE: Family =
    Family { stem: "Granite", heads: &[GENERATES], spec: granite, names: &LLAMA_NAMES };

pub(super) const GRANITE_MOE: Family =
    Family { stem: "GraniteMoe", heads: &[GENERATES], spec: granite_moe, names: &MOE_NAMES };
pub(super) const GRANITE_MOE_SHARED: Family =
    Family { stem: "GraniteMoeShared", heads: &[GENERATES], spec: granite_moe, names: &MOE_NAMES };

const MOE_NAMES: Names = Names {
    moe: MoeNames {
        router: "block_sparse_moe.router.layer",
        experts: ExpertNames::Together(["block_sparse_moe.input_linear", "block_sparse_moe.output_linear"]),
        shared_input: Stack::Stacked("shared_mlp.input_linear"),
        shared_output: "shared_mlp.output_linear",
        ..QWEN_MOE_NAMES
    },
    ..LLAMA_NAMES
};

/// Llama with a factor wherever there is room for one.
fn granite(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = llama(config)?;
    let scale = config.f32_or("attention_multiplier", 1.0)?;
    spec.layers.iter_mut().for_each(|layer| layer.attention.scale = scale);
    spec.scales = scales(config)?;
    Ok(spec)
}

/// The same with a mixture in every layer. Configs with a shared expert say how wide it is.
fn granite_moe(config: &Config) -> Result<ModelSpec, ModelError> {
    let config =
        config.with_default("num_local_experts", 8.into()).with_default("num_experts_per_tok", 2.into());
    let mut spec = granite(&config)?;
    let scores = RouterScores::SoftmaxOfChosen;
    let moe = mixture(&config, "num_local_experts", "intermediate_size", scores, false)?;
    let moe = match config.count("shared_intermediate_size")? {
        None | Some(0) => moe,
        Some(_) => with_shared(moe, config.positive("shared_intermediate_size")?, false),
    };
    spec.layers.iter_mut().for_each(|layer| layer.mlp = MlpSpec::Moe(moe.clone()));
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
