//! OLMo-2.

use super::config::Config;
use super::decoder::decoder;
use super::names::LLAMA_NAMES;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::{ModelSpec, NormKind, NormSpan, Norms, QkNormSpec};

pub(super) const OLMO2: Family =
    Family { stem: "Olmo2", heads: &[GENERATES], spec: olmo2, names: &LLAMA_NAMES };

/// Norms of what blocks give instead of what they get, and of all heads of queries, and of keys, as one.
fn olmo2(config: &Config) -> Result<ModelSpec, ModelError> {
    let mut spec = decoder(&config.with_default("rms_norm_eps", 1e-5.into()))?;
    let bias = config.flag_or("attention_bias", false)?;
    for attention in spec.layers.iter_mut().map(|layer| &mut layer.attention) {
        attention.qk_norm = Some(QkNormSpec { kind: NormKind::Rms, span: NormSpan::Whole });
        (attention.qkv_bias, attention.output_bias) = (bias, bias);
    }
    spec.norms = Norms::After;
    Ok(spec)
}
