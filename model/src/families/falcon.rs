//! Falcon: RW, 7B, 40B, 180B and 2 11B. (Falcon 3 is stored as Llama.)

use super::config::{Config, invalid};
use super::decoder::{activation, attention, bare, head_dim, layer_norm, num_layers};
use super::names::{LLAMA_NAMES, Names, NormNames, Stack};
use super::rope::rope;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{Activation, DenseSpec, LayerSpec, MlpSpec, ModelSpec, Norms, Positions};

pub(super) const FALCON: Family = Family { stem: "Falcon", heads: &[GENERATES], spec: falcon, names: &NAMES };

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    embedding: "word_embeddings",
    layers: "h",
    norms: NormNames {
        attention: "input_layernorm",
        mlp: "post_attention_layernorm",
        parallel: Some(["ln_attn", "ln_mlp"]),
        ..LLAMA_NAMES.norms
    },
    qkv: Stack::Interleaved("self_attention.query_key_value"),
    output: "self_attention.dense",
    mlp_input: Stack::Separate(["", "mlp.dense_h_to_4h"]),
    mlp_output: "mlp.dense_4h_to_h",
    final_norm: "ln_f",
    ..LLAMA_NAMES
};

/// LayerNorm, one bias switch for all, GELU without a gate. How many key-value heads and norms there are, and whether
/// the blocks are side by side, follows from three switches that came one after the other.
fn falcon(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .renamed("n_embed", "hidden_size")
        .with_default("tie_word_embeddings", true.into())
        .with_default("max_position_embeddings", 2048.into());
    let hidden_size = config.positive("hidden_size")?;
    let is_new = config.flag_or("new_decoder_architecture", false)?;
    let is_parallel = config.flag_or("parallel_attn", true)?;
    let num_heads = config.positive("num_attention_heads")?;
    let num_kv_heads = match (is_new, config.flag_or("multi_query", true)?) {
        (true, _) => config.positive_or("num_kv_heads", Some(num_heads))?,
        (false, true) => 1,
        (false, false) => num_heads,
    };
    let own_norms = config.count("num_ln_in_parallel_attn")?.unwrap_or(2) == 2;
    let norms = match (is_new, is_parallel) {
        (true, false) => {
            let reason = "must be true with new_decoder_architecture".into();
            return Err(invalid("parallel_attn", reason));
        }
        (false, false) => Norms::Before,
        (_, true) => Norms::Parallel { shared: !(is_new && own_norms) },
    };
    let bias = config.flag_or("bias", false)?;
    let of_kv = config.with("num_key_value_heads", num_kv_heads.into());
    let mut attention = attention(&of_kv, head_dim(&config, hidden_size)?)?;
    (attention.qkv_bias, attention.output_bias) = (bias, bias);
    let positions = match config.flag_or("alibi", false)? {
        true => Positions::Alibi,
        false => Positions::Rotary(vec![rope(&config, attention.head_dim)?]),
    };
    if positions == Positions::Alibi {
        attention.rope = None;
    }
    let mlp = MlpSpec::Dense(DenseSpec {
        intermediate_size: config.positive_or("ffn_hidden_size", Some(4 * hidden_size))?,
        activation: activation(&config, "activation", Activation::Gelu)?,
        gated: false,
        bias,
    });
    Ok(ModelSpec {
        norm: layer_norm(&config, "layer_norm_epsilon")?,
        norms,
        positions,
        layers: vec![LayerSpec { attention, mlp }; num_layers(&config)?],
        ..bare(&config, hidden_size)?
    })
}
