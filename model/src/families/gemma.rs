//! Gemma 1, 2 and 3 (text).

use serde_json::{Value, json};

use super::config::Config;
use super::decoder::{activation, attention, bare, num_layers, set_windows, sliding_window};
use super::names::{LLAMA_NAMES, Names, NormNames};
use super::rope::rope;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{
    Activation, DenseSpec, LayerSpec, MlpSpec, ModelSpec, NormKind, NormSpan, NormSpec, Norms, Positions,
    QkNormSpec, Scales,
};

pub(super) const GEMMA: Family =
    Family { stem: "Gemma", heads: &[GENERATES], spec: gemma, names: &LLAMA_NAMES };
pub(super) const GEMMA2: Family = Family { stem: "Gemma2", heads: &[GENERATES], spec: gemma2, names: &NAMES };
pub(super) const GEMMA3: Family = Family { stem: "Gemma3", heads: &[GENERATES], spec: gemma3, names: &NAMES };

const NAMES: Names =
    Names { norms: NormNames { mlp: "pre_feedforward_layernorm", ..LLAMA_NAMES.norms }, ..LLAMA_NAMES };

/// The published files say `gelu` and mean its approximation.
fn gemma(config: &Config) -> Result<ModelSpec, ModelError> {
    let approximate = match config.word("hidden_act")? {
        Some("gelu") => Activation::GeluTanh,
        _ => activation(config, "hidden_act", Activation::GeluTanh)?,
    };
    let mut spec = common(config, approximate)?;
    let head_dim = spec.layers[0].attention.head_dim;
    spec.positions = Positions::Rotary(vec![rope(config, head_dim)?]);
    Ok(spec)
}

/// Norms around both blocks, soft caps, and a window in every other layer.
fn gemma2(config: &Config) -> Result<ModelSpec, ModelError> {
    let caps = config
        .unless_said("attn_logit_softcapping", json!(50.0))
        .unless_said("final_logit_softcapping", json!(30.0));
    let mut spec = second(&caps)?;
    let head_dim = spec.layers[0].attention.head_dim;
    spec.positions = Positions::Rotary(vec![rope(config, head_dim)?]);
    set_windows(config, &mut spec.layers, window(config)?, |index| index.is_multiple_of(2))?;
    Ok(spec)
}

/// Norms of heads, and layers with a window have a rotation of their own.
fn gemma3(config: &Config) -> Result<ModelSpec, ModelError> {
    // transformers reads a cap on scores and does not apply it.
    config.only("attn_logit_softcapping", Value::Null, "null")?;
    let mut spec = second(config)?;
    let pattern = config.positive_or("sliding_window_pattern", Some(6))?;
    set_windows(config, &mut spec.layers, window(config)?, |index| !(index + 1).is_multiple_of(pattern))?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        attention.qk_norm = Some(QkNormSpec { kind: NormKind::Rms, span: NormSpan::Head });
        attention.rope = Some(usize::from(attention.sliding_window.is_some()));
    }
    let head_dim = spec.layers[0].attention.head_dim;
    // Newer tools write an object for each kind of layer; in older files there is a base for each.
    let global = config.with_default("rope_theta", json!(1_000_000.0));
    let local = config.number("rope_local_base_freq")?.unwrap_or(10_000.0);
    let local = config.with("rope_theta", json!(local)).with("rope_scaling", Value::Null);
    let ropes = match config.get("rope_parameters").and_then(Value::as_object) {
        None => [rope(&global, head_dim)?, rope(&local, head_dim)?],
        Some(kinds) => {
            let of_kind = |config: &Config, kind: &str| {
                let parameters = kinds.get(kind).cloned().unwrap_or(Value::Null);
                rope(&config.with("rope_parameters", parameters).with("rope_scaling", Value::Null), head_dim)
            };
            [of_kind(&global, "full_attention")?, of_kind(&local, "sliding_attention")?]
        }
    };
    spec.positions = Positions::Rotary(ropes.into());
    Ok(spec)
}

/// What Gemma 2 and 3 share.
fn second(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = common(config, activation(config, "hidden_activation", Activation::GeluTanh)?)?;
    let softcap = config.number("attn_logit_softcapping")?;
    let scalar = config.f32_or("query_pre_attn_scalar", 256.0)?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        attention.scale = scalar.powf(-0.5);
        attention.softcap = softcap.map(|cap| cap as f32);
    }
    spec.norms = Norms::Around;
    spec.scales.logits_softcap = config.number("final_logit_softcapping")?.map(|cap| cap as f32);
    Ok(spec)
}

/// An embedding that is scaled and tied, norms whose weights are stored less one, heads of 256.
fn common(config: &Config, activation: Activation) -> Result<ModelSpec, ModelError> {
    config.only("use_bidirectional_attention", false.into(), "false")?;
    let config = config.with_default("tie_word_embeddings", true.into());
    let hidden_size = config.positive("hidden_size")?;
    let mut attention = attention(&config, config.positive_or("head_dim", Some(256))?)?;
    let bias = config.flag_or("attention_bias", false)?;
    (attention.qkv_bias, attention.output_bias) = (bias, bias);
    let intermediate_size = config.positive("intermediate_size")?;
    let mlp = MlpSpec::Dense(DenseSpec { intermediate_size, activation, gated: true, bias: false });
    let spec = bare(&config, hidden_size)?;
    Ok(ModelSpec {
        norm: NormSpec { offset: 1.0, ..spec.norm },
        scales: Scales { embedding: (hidden_size as f32).sqrt(), ..Scales::default() },
        layers: vec![LayerSpec { attention, mlp }; num_layers(&config)?],
        ..spec
    })
}

fn window(config: &Config) -> Result<Option<u32>, ModelError> {
    sliding_window(&config.unless_said("sliding_window", 4096.into()))
}
