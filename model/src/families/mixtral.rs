//! Mixtral 8x7B and 8x22B.

use super::config::Config;
use super::decoder::{decoder, set_windows, sliding_window};
use super::mixtures::mixture;
use super::names::{ExpertNames, LLAMA_NAMES, MoeNames, Names, QWEN_MOE_NAMES};
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::moe_spec::RouterScores;
use crate::spec::{MlpSpec, ModelSpec};

pub(super) const MIXTRAL: Family =
    Family { stem: "Mixtral", heads: &[GENERATES], spec: mixtral, names: &MIXTRAL_NAMES };

pub(super) const MIXTRAL_NAMES: Names = Names {
    moe: MoeNames {
        router: "block_sparse_moe.gate",
        experts: ExpertNames::Each("block_sparse_moe.experts", ["w1", "w3", "w2"]),
        ..QWEN_MOE_NAMES
    },
    ..LLAMA_NAMES
};

/// Mistral with a mixture in every layer; the weights of the chosen experts add up to 1.
fn mixtral(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .with_default("rms_norm_eps", 1e-5.into())
        .with_default("rope_theta", 1_000_000.0.into())
        .with_default("num_key_value_heads", 8.into())
        .with_default("num_experts_per_tok", 2.into())
        .with_default("num_local_experts", 8.into());
    let mut spec = decoder(&config)?;
    let moe = mixture(&config, "num_local_experts", "intermediate_size", RouterScores::Softmax, true)?;
    spec.layers.iter_mut().for_each(|layer| layer.mlp = MlpSpec::Moe(moe.clone()));
    set_windows(&config, &mut spec.layers, sliding_window(&config)?, |_| true)?;
    Ok(spec)
}
