//! GPT-2, and GPT-NeoX with Pythia.

use serde_json::json;

use super::config::Config;
use super::decoder::{activation, attention, bare, decoder, head_dim, layer_norm, num_layers};
use super::names::{LLAMA_NAMES, Names, NormNames, Stack};
use super::{Family, GENERATES, LM_HEAD_MODEL};
use crate::error::ModelError;
use crate::spec::{Activation, DenseSpec, LayerSpec, MlpSpec, ModelSpec, Norms, Positions};

pub(super) const GPT2: Family =
    Family { stem: "GPT2", heads: &[LM_HEAD_MODEL], spec: gpt2, names: &GPT2_NAMES };
pub(super) const GPT_NEOX: Family =
    Family { stem: "GPTNeoX", heads: &[GENERATES], spec: gpt_neox, names: &GPT_NEOX_NAMES };

const GPT2_NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    embedding: "wte",
    positions: "wpe",
    layers: "h",
    norms: NormNames { attention: "ln_1", mlp: "ln_2", ..LLAMA_NAMES.norms },
    qkv: Stack::Stacked("attn.c_attn"),
    output: "attn.c_proj",
    mlp_input: Stack::Separate(["", "mlp.c_fc"]),
    mlp_output: "mlp.c_proj",
    final_norm: "ln_f",
    is_transposed: true,
    // Causal masks.
    redundant: &[".attn.bias", ".attn.masked_bias"],
    ..LLAMA_NAMES
};

const GPT_NEOX_NAMES: Names = Names {
    prefixes: &["gpt_neox.", ""],
    embedding: "embed_in",
    qkv: Stack::Interleaved("attention.query_key_value"),
    output: "attention.dense",
    mlp_input: Stack::Separate(["", "mlp.dense_h_to_4h"]),
    mlp_output: "mlp.dense_4h_to_h",
    final_norm: "final_layer_norm",
    lm_head: "embed_out",
    redundant: &[".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq"],
    ..LLAMA_NAMES
};

/// Learned positions, LayerNorm, biases everywhere, matrices the other way round.
fn gpt2(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .renamed("n_embd", "hidden_size")
        .renamed("n_layer", "num_hidden_layers")
        .renamed("n_head", "num_attention_heads")
        .renamed("n_positions", "max_position_embeddings")
        .with_default("tie_word_embeddings", true.into());
    config.only("add_cross_attention", false.into(), "false")?;
    let hidden_size = config.positive("hidden_size")?;
    let mut attention = attention(&config, head_dim(&config, hidden_size)?)?;
    (attention.rope, attention.qkv_bias, attention.output_bias) = (None, true, true);
    if !config.flag_or("scale_attn_weights", true)? {
        attention.scale = 1.0;
    }
    let mlp = MlpSpec::Dense(DenseSpec {
        intermediate_size: config.positive_or("n_inner", Some(4 * hidden_size))?,
        activation: activation(&config, "activation_function", Activation::GeluTanh)?,
        gated: false,
        bias: true,
    });
    let mut layers = vec![LayerSpec { attention, mlp }; num_layers(&config)?];
    if config.flag_or("scale_attn_by_inverse_layer_idx", false)? {
        let attentions = layers.iter_mut().map(|layer| &mut layer.attention);
        attentions.enumerate().for_each(|(index, attention)| attention.scale /= (index + 1) as f32);
    }
    let spec = bare(&config, hidden_size)?;
    Ok(ModelSpec {
        norm: layer_norm(&config, "layer_norm_epsilon")?,
        positions: Positions::Learned { rows: spec.max_position_embeddings, first: 0, types: 0 },
        layers,
        ..spec
    })
}

/// A quarter of each head rotated, and the blocks side by side unless the config says otherwise.
fn gpt_neox(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .renamed("rotary_pct", "partial_rotary_factor")
        .renamed("rotary_emb_base", "rope_theta")
        .with_default("partial_rotary_factor", json!(0.25))
        .with_default("hidden_act", "gelu".into());
    let mut spec = decoder(&config)?;
    let bias = config.flag_or("attention_bias", true)?;
    for LayerSpec { attention, mlp } in &mut spec.layers {
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
        if let MlpSpec::Dense(mlp) = mlp {
            (mlp.gated, mlp.bias) = (false, true);
        }
    }
    spec.norm = layer_norm(&config, "layer_norm_eps")?;
    if config.flag_or("use_parallel_residual", true)? {
        spec.norms = Norms::Parallel { shared: false };
    }
    Ok(spec)
}
