//! gpt-oss.

use serde_json::{Value, json};

use super::config::Config;
use super::decoder::{decoder, set_windows, sliding_window};
use super::mixtures::mixture;
use super::names::{ExpertNames, LLAMA_NAMES, MoeNames, Names, QWEN_MOE_NAMES};
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::moe_spec::{ExpertActivation, MoeSpec, RouterScores};
use crate::spec::{MlpSpec, ModelSpec};

pub(super) const GPT_OSS: Family =
    Family { stem: "GptOss", heads: &[GENERATES], spec: gpt_oss, names: &NAMES };

const NAMES: Names = Names {
    moe: MoeNames {
        router: "mlp.router",
        experts: ExpertNames::OnTheirSides("mlp.experts"),
        ..QWEN_MOE_NAMES
    },
    ..LLAMA_NAMES
};

/// Biases everywhere, a score of seeing nothing for each head, a window in every other layer, and clamped experts.
fn gpt_oss(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .with_default("head_dim", 64.into())
        .with_default("rms_norm_eps", 1e-5.into())
        .with_default("rope_theta", 150_000.0.into())
        .with_default("rope_scaling", default_rope_scaling())
        .with_default("sliding_window", json!(128))
        .with_default("num_experts_per_tok", 4.into())
        .with_default("num_local_experts", 128.into());
    let mut spec = decoder(&config)?;
    let scores = RouterScores::SoftmaxOfChosen;
    let moe = MoeSpec {
        router_bias: true,
        bias: true,
        activation: ExpertActivation::ClampedSwiGlu {
            alpha: config.f32_or("swiglu_alpha", 1.702)?,
            limit: config.f32_or("swiglu_limit", 7.0)?,
        },
        ..mixture(&config, "num_local_experts", "intermediate_size", scores, false)?
    };
    let bias = config.flag_or("attention_bias", true)?;
    for layer in &mut spec.layers {
        (layer.attention.qkv_bias, layer.attention.output_bias) = (bias, bias);
        layer.attention.sinks = true;
        layer.mlp = MlpSpec::Moe(moe.clone());
    }
    set_windows(&config, &mut spec.layers, sliding_window(&config)?, |index| index % 2 == 0)?;
    Ok(spec)
}

/// What a config.json that says nothing of it means.
fn default_rope_scaling() -> Value {
    json!({
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": false,
        "original_max_position_embeddings": 4096,
    })
}
