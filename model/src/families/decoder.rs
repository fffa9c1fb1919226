//! The decoder that most families are: Llama's, by the names of fields that most configs share.
//!
//! A family takes it and changes in the [`ModelSpec`] what is different with it.

use super::config::{Config, invalid, unsupported};
use super::rope::rope;
use crate::error::ModelError;
use crate::spec::{
    Activation, AttentionSpec, DenseSpec, LayerSpec, LmHead, MlpSpec, ModelSpec, NormKind, NormSpec, Norms,
    Positions, Scales,
};

/// RMSNorm before the blocks, rotated grouped queries, a gated MLP; no biases, no windows, and the same in all layers.
pub(crate) fn decoder(config: &Config) -> Result<ModelSpec, ModelError> {
    let hidden_size = config.positive("hidden_size")?;
    let attention = attention(config, head_dim(config, hidden_size)?)?;
    let mlp = MlpSpec::Dense(DenseSpec {
        intermediate_size: config.positive("intermediate_size")?,
        activation: activation(config, "hidden_act", Activation::Silu)?,
        gated: true,
        bias: false,
    });
    let rope = rope(config, attention.head_dim)?;
    Ok(ModelSpec {
        layers: vec![LayerSpec { attention, mlp }; num_layers(config)?],
        positions: Positions::Rotary(vec![rope]),
        ..bare(config, hidden_size)?
    })
}

/// What every decoder has; the rest is for the family to fill in.
pub(crate) fn bare(config: &Config, hidden_size: usize) -> Result<ModelSpec, ModelError> {
    let eps = config.f32_or("rms_norm_eps", 1e-6)?;
    Ok(ModelSpec {
        architecture: String::new(),
        dtype: config.dtype()?,
        vocab_size: config.positive("vocab_size")?,
        hidden_size,
        max_position_embeddings: config.positive("max_position_embeddings")?,
        norm: NormSpec { kind: NormKind::Rms, eps, bias: false, offset: 0.0 },
        norms: Norms::Before,
        positions: Positions::Rotary(Vec::new()),
        causal: true,
        layers: Vec::new(),
        scales: Scales::default(),
        lm_head: lm_head(config, false)?,
        lm_head_bias: false,
        quantization: Default::default(),
        classifier: None,
        eos_token_ids: Vec::new(),
    })
}

/// Grouped queries by the usual fields, without biases.
pub(crate) fn attention(config: &Config, head_dim: usize) -> Result<AttentionSpec, ModelError> {
    let num_heads = config.positive("num_attention_heads")?;
    let num_kv_heads = config.positive_or("num_key_value_heads", Some(num_heads))?;
    if !num_heads.is_multiple_of(num_kv_heads) {
        let reason = format!("{num_kv_heads} does not divide num_attention_heads = {num_heads}");
        return Err(invalid("num_key_value_heads", reason));
    }
    Ok(AttentionSpec {
        num_heads,
        num_kv_heads,
        head_dim,
        latent: None,
        rope: Some(0),
        qkv_bias: false,
        output_bias: false,
        qk_norm: None,
        scale: (head_dim as f32).powf(-0.5),
        softcap: None,
        sliding_window: None,
        sinks: false,
    })
}

/// `head_dim`, or what is left of the hidden size for each head.
pub(crate) fn head_dim(config: &Config, hidden_size: usize) -> Result<usize, ModelError> {
    let num_heads = config.positive("num_attention_heads")?;
    if config.get("head_dim").is_none() && !hidden_size.is_multiple_of(num_heads) {
        let reason = format!("missing, and {num_heads} heads do not divide hidden_size = {hidden_size}");
        return Err(invalid("head_dim", reason));
    }
    config.positive_or("head_dim", Some(hidden_size / num_heads))
}

/// Layers, of which there are not absurdly many.
pub(crate) fn num_layers(config: &Config) -> Result<usize, ModelError> {
    const MOST: usize = 4096;
    match config.positive("num_hidden_layers")? {
        n if n <= MOST => Ok(n),
        n => Err(invalid("num_hidden_layers", format!("{n} is not within 1 to {MOST}"))),
    }
}

/// Whether the head is the embedding; `tied` where the config does not say.
pub(crate) fn lm_head(config: &Config, tied: bool) -> Result<LmHead, ModelError> {
    Ok(if config.flag_or("tie_word_embeddings", tied)? { LmHead::Tied } else { LmHead::Own })
}

/// LayerNorm with a bias, and the field of what is added to the variance.
pub(crate) fn layer_norm(config: &Config, eps: &'static str) -> Result<NormSpec, ModelError> {
    Ok(NormSpec { kind: NormKind::Layer, eps: config.f32_or(eps, 1e-5)?, bias: true, offset: 0.0 })
}

/// A non-linearity by transformers' name for it.
pub(crate) fn activation(
    config: &Config,
    field: &'static str,
    default: Activation,
) -> Result<Activation, ModelError> {
    match config.word(field)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(unsupported(field, other, "silu, gelu, gelu_new, gelu_pytorch_tanh")),
    }
}

/// Gives layers their windows: by `layer_types` where that is there, else to those that `by_default` names.
pub(crate) fn set_windows(
    config: &Config,
    layers: &mut [LayerSpec],
    window: Option<u32>,
    by_default: impl Fn(usize) -> bool,
) -> Result<(), ModelError> {
    let slides = match config.words("layer_types")? {
        None => (0..layers.len()).map(by_default).collect(),
        Some(types) => slides(&types, layers.len(), window)?,
    };
    for (layer, slides) in layers.iter_mut().zip(slides) {
        layer.attention.sliding_window = window.filter(|_| slides);
    }
    Ok(())
}

/// `sliding_window`, in tokens.
pub(crate) fn sliding_window(config: &Config) -> Result<Option<u32>, ModelError> {
    match config.count("sliding_window")? {
        Some(0) => Err(invalid("sliding_window", "must be at least 1".into())),
        // What is longer than any sequence is no window.
        window => Ok(window.and_then(|window| u32::try_from(window).ok())),
    }
}

fn slides(types: &[&str], num_layers: usize, window: Option<u32>) -> Result<Vec<bool>, ModelError> {
    if types.len() != num_layers {
        let reason = format!("{} entries for num_hidden_layers = {num_layers}", types.len());
        return Err(invalid("layer_types", reason));
    }
    let slides = |kind: &&str| match (*kind, window) {
        ("full_attention", _) => Ok(false),
        ("sliding_attention", Some(_)) => Ok(true),
        ("sliding_attention", None) => {
            let reason =
                "sliding_attention needs sliding_window (and use_sliding_window where the family has it)";
            Err(invalid("layer_types", reason.into()))
        }
        (other, _) => Err(unsupported("layer_types", other, "full_attention, sliding_attention")),
    };
    types.iter().map(slides).collect()
}
