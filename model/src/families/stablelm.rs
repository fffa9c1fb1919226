//! StableLM-2.

use super::config::Config;
use super::decoder::{decoder, layer_norm};
use super::names::{LLAMA_NAMES, Names};
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{ModelSpec, NormKind, NormSpan, Norms, QkNormSpec};

pub(super) const STABLELM: Family =
    Family { stem: "StableLm", heads: &[GENERATES], spec: stablelm, names: &NAMES };

const NAMES: Names =
    Names { q_norm: "self_attn.q_layernorm.norms.*", k_norm: "self_attn.k_layernorm.norms.*", ..LLAMA_NAMES };

/// LayerNorm, a quarter of each head rotated; the 12B model normalises heads and has its blocks side by side.
fn stablelm(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(&config.with_default("partial_rotary_factor", 0.25.into()))?;
    let bias = config.flag_or("use_qkv_bias", false)?;
    let qk_norm = QkNormSpec { kind: NormKind::Layer, span: NormSpan::EachHead };
    let qk_norm = config.flag_or("qk_layernorm", false)?.then_some(qk_norm);
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        (attention.qkv_bias, attention.qk_norm) = (bias, qk_norm);
    }
    spec.norm = layer_norm(config, "layer_norm_eps")?;
    if config.flag_or("use_parallel_residual", false)? {
        spec.norms = Norms::Parallel { shared: true };
    }
    Ok(spec)
}
