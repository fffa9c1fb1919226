//! OpenELM, whose layers grow: each has its own numbers of heads and its own width of the MLP.

use serde_json::Value;

use super::config::{Config, invalid};
use super::decoder::{attention, bare};
use super::names::{LLAMA_NAMES, Names, NormNames, Stack};
use super::rope::rope;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{
    Activation, DenseSpec, LayerSpec, MlpSpec, ModelSpec, NormKind, NormSpan, Positions, QkNormSpec,
};

pub(super) const OPENELM: Family =
    Family { stem: "OpenELM", heads: &[GENERATES], spec: openelm, names: &NAMES };

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    embedding: "token_embeddings",
    norms: NormNames { attention: "attn_norm", mlp: "ffn_norm", ..LLAMA_NAMES.norms },
    qkv: Stack::Stacked("attn.qkv_proj"),
    q_norm: "attn.q_norm",
    k_norm: "attn.k_norm",
    output: "attn.out_proj",
    mlp_input: Stack::Stacked("ffn.proj_1"),
    mlp_output: "ffn.proj_2",
    ..LLAMA_NAMES
};

fn openelm(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .renamed("model_dim", "hidden_size")
        .renamed("num_transformer_layers", "num_hidden_layers")
        .renamed("max_context_length", "max_position_embeddings")
        .renamed("rope_freq_constant", "rope_theta")
        .renamed("share_input_output_layers", "tie_word_embeddings");
    config.only("ffn_with_glu", true.into(), "true")?;
    config.only("activation_fn_name", "swish".into(), "swish")?;
    config.only("normalization_layer_name", "rms_norm".into(), "rms_norm")?;
    let hidden_size = config.positive("hidden_size")?;
    let head_dim = config.positive("head_dim")?;
    let qk_norm = QkNormSpec { kind: NormKind::Rms, span: NormSpan::Head };
    let qk_norm = config.flag_or("normalize_qk_projections", false)?.then_some(qk_norm);
    let layers = (0..super::decoder::num_layers(&config)?).map(|index| {
        let heads = config
            .with("num_attention_heads", entry(&config, "num_query_heads", index)?)
            .with("num_key_value_heads", entry(&config, "num_kv_heads", index)?);
        let mut attention = attention(&heads, head_dim)?;
        attention.qk_norm = qk_norm;
        let mlp = MlpSpec::Dense(DenseSpec {
            intermediate_size: width(&config, index, hidden_size)?,
            activation: Activation::Silu,
            gated: true,
            bias: false,
        });
        Ok(LayerSpec { attention, mlp })
    });
    Ok(ModelSpec {
        layers: layers.collect::<Result<_, ModelError>>()?,
        positions: Positions::Rotary(vec![rope(&config, head_dim)?]),
        ..bare(&config, hidden_size)?
    })
}

/// One layer's entry of a list.
fn entry(config: &Config, field: &'static str, index: usize) -> Result<Value, ModelError> {
    let list = config.get(field).and_then(Value::as_array);
    let entry = list.and_then(|list| list.get(index));
    entry.cloned().ok_or_else(|| invalid(field, format!("must be a list with an entry for layer {index}")))
}

/// The multiple of `ffn_dim_divisor` nearest to a layer's multiple of the hidden size, but not less than nine tenths
/// of that.
fn width(config: &Config, index: usize, hidden_size: usize) -> Result<usize, ModelError> {
    let divisor = config.positive_or("ffn_dim_divisor", Some(256))?;
    let multiplier = entry(config, "ffn_multipliers", index)?.as_f64().filter(|x| (0.0..1e6).contains(x));
    let Some(multiplier) = multiplier else {
        return Err(invalid("ffn_multipliers", format!("layer {index} has none that is a number")));
    };
    let wanted = multiplier * hidden_size as f64;
    let nearest = ((wanted + divisor as f64 / 2.0) as usize / divisor * divisor).max(divisor);
    Ok(if (nearest as f64) < 0.9 * wanted { nearest + divisor } else { nearest })
}
