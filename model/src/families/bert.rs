//! BERT, RoBERTa and XLM-RoBERTa: encoders, which are there to be pooled.

use super::config::{Config, invalid};
use super::decoder::{bare, num_layers};
use super::names::BERT_NAMES;
use super::{BARE, CLASSIFIES, Family};
use crate::error::ModelError;
use crate::spec::{
    Activation, AttentionSpec, DenseSpec, LayerSpec, LmHead, MlpSpec, ModelSpec, NormKind, NormSpec, Norms,
    Positions,
};

pub(super) const BERT: Family =
    Family { stem: "Bert", heads: &[BARE, CLASSIFIES], spec: bert, names: &BERT_NAMES };
pub(super) const ROBERTA: Family =
    Family { stem: "Roberta", heads: &[BARE, CLASSIFIES], spec: roberta, names: &BERT_NAMES };
pub(super) const XLM_ROBERTA: Family =
    Family { stem: "XLMRoberta", heads: &[BARE, CLASSIFIES], spec: roberta, names: &BERT_NAMES };

fn bert(config: &Config) -> Result<ModelSpec, ModelError> {
    encoder(config, 0)
}

/// RoBERTa counts positions from the padding token's id on, and the first one stands for padding itself.
fn roberta(config: &Config) -> Result<ModelSpec, ModelError> {
    encoder(config, config.count("pad_token_id")?.unwrap_or(1) + 1)
}

/// An encoder whose table of positions begins with `first` rows that are nobody's.
fn encoder(config: &Config, first: usize) -> Result<ModelSpec, ModelError> {
    config.only("hidden_act", "gelu".into(), "gelu")?;
    config.only("position_embedding_type", "absolute".into(), "absolute")?;
    config.only("is_decoder", false.into(), "false")?;
    config.only("add_cross_attention", false.into(), "false")?;
    let (hidden_size, num_heads) = (config.positive("hidden_size")?, config.positive("num_attention_heads")?);
    if !hidden_size.is_multiple_of(num_heads) {
        let reason = format!("{num_heads} does not divide hidden_size = {hidden_size}");
        return Err(invalid("num_attention_heads", reason));
    }
    let head_dim = hidden_size / num_heads;
    let rows = config.positive("max_position_embeddings")?;
    let max_position_embeddings = rows.checked_sub(first).filter(|rows| *rows > 0).ok_or_else(|| {
        invalid("max_position_embeddings", format!("{rows} leaves no position beside {first} for padding"))
    })?;
    let attention = AttentionSpec {
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        latent: None,
        rope: None,
        qkv_bias: true,
        output_bias: true,
        qk_norm: None,
        scale: (head_dim as f32).powf(-0.5),
        softcap: None,
        sliding_window: None,
        sinks: false,
    };
    let mlp = MlpSpec::Dense(DenseSpec {
        intermediate_size: config.positive("intermediate_size")?,
        activation: Activation::Gelu,
        gated: false,
        bias: true,
    });
    let eps = config.f32_or("layer_norm_eps", 1e-12)?;
    let types = config.positive_or("type_vocab_size", Some(2))?;
    Ok(ModelSpec {
        max_position_embeddings,
        norm: NormSpec { kind: NormKind::Layer, eps, bias: true, offset: 0.0 },
        norms: Norms::OfSum,
        positions: Positions::Learned { rows, first, types },
        causal: false,
        layers: vec![LayerSpec { attention, mlp }; num_layers(config)?],
        lm_head: LmHead::None,
        ..bare(config, hidden_size)?
    })
}
