//! OLMo-2 and OLMoE.

use serde_json::Value;

use super::config::Config;
use super::decoder::decoder;
use super::mixtures::mixture;
use super::names::LLAMA_NAMES;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::moe_spec::RouterScores;
use crate::spec::{MlpSpec, ModelSpec, NormKind, NormSpan, Norms, QkNormSpec};

pub(super) const OLMO2: Family =
    Family { stem: "Olmo2", heads: &[GENERATES], spec: olmo2, names: &LLAMA_NAMES };

pub(super) const OLMOE: Family =
    Family { stem: "Olmoe", heads: &[GENERATES], spec: olmoe, names: &LLAMA_NAMES };

/// Norms of what blocks give instead of what they get, and of all heads of queries, and of keys, as one.
fn olmo2(config: &Config) -> Result<ModelSpec, ModelError> {
    Ok(ModelSpec { norms: Norms::After, ..with_whole_norms(config)? })
}

/// Norms of all heads of queries, and of keys, as one, and a mixture in every layer.
fn olmoe(config: &Config) -> Result<ModelSpec, ModelError> {
    // No published model clips its queries, keys and values.
    config.only("clip_qkv", Value::Null, "null")?;
    let config = config.with_default("num_experts", 64.into()).with_default("num_experts_per_tok", 8.into());
    let mut spec = with_whole_norms(&config)?;
    let renormalise = config.flag_or("norm_topk_prob", false)?;
    let moe = mixture(&config, "num_experts", "intermediate_size", RouterScores::Softmax, renormalise)?;
    spec.layers.iter_mut().for_each(|layer| layer.mlp = MlpSpec::Moe(moe.clone()));
    Ok(spec)
}

fn with_whole_norms(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(&config.with_default("rms_norm_eps", 1e-5.into()))?;
    let bias = config.flag_or("attention_bias", false)?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        attention.qk_norm = Some(QkNormSpec { kind: NormKind::Rms, span: NormSpan::Whole });
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
    }
    Ok(spec)
}
