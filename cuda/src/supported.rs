//! Which models this device can compute: [`check`] names what a model asks for that no kernel does yet, before any
//! weight is read.

use quire_model::{
    Activation, AttentionSpec, BackendError, DenseSpec, LayerSpec, LmHead, MlpSpec, ModelSpec, NormKind,
    NormSpan, NormSpec, Norms, Positions, Scales,
};

use crate::refusal::refusal;

/// Refuses a model by all that is missing here.
pub(crate) fn check(spec: &ModelSpec) -> Result<(), BackendError> {
    let missing = missing(spec);
    if missing.is_empty() {
        return Ok(());
    }
    let reason = format!(
        "{} needs {}, which {} not built for this device yet; use --device cpu",
        spec.architecture,
        missing.join(", "),
        if missing.len() == 1 { "is" } else { "are" }
    );
    Err(refusal(reason))
}

fn missing(spec: &ModelSpec) -> Vec<String> {
    let any = |asks: fn(&LayerSpec) -> bool| spec.layers.iter().any(asks);
    let first = spec.layers.first();
    let differ = |layer: &LayerSpec| first.is_some_and(|first| !same_sizes(first, layer));
    let NormSpec { kind, offset, .. } = spec.norm;
    [
        (spec.lm_head == LmHead::None, "pooling"),
        (!spec.causal, "attention that looks ahead"),
        (kind != NormKind::Rms, "LayerNorm"),
        (offset != 0.0, "norm weights that are stored less one"),
        (spec.norms != Norms::Before, "norms elsewhere than before each block"),
        (!matches!(spec.positions, Positions::Rotary(_)), "positions other than rotary ones"),
        (any(|layer| layer.attention.rope.is_none()), "attention without rotation"),
        (turns_partly(spec), "rotation of a part of each head"),
        (any(|layer| layer.attention.latent.is_some()), "latent attention"),
        (any(|layer| layer.attention.sinks), "attention sinks"),
        (any(norms_heads_otherwise), "norms of queries and keys other than RMSNorm of each head"),
        (any(|layer| matches!(layer.mlp, MlpSpec::Moe(_))), "mixtures of experts"),
        (any(activates_otherwise), "an MLP other than SiLU with a gate"),
        (spec.scales != Scales::default(), "scales of the embedding, the residual stream or the logits"),
        (spec.layers.iter().any(differ), "layers of different sizes"),
    ]
    .into_iter()
    .filter(|(is_missing, _)| *is_missing)
    .map(|(_, what)| what.to_owned())
    .chain(spec.quantization.name().map(|name| format!("products by quantised weights ({name})")))
    .collect()
}

fn turns_partly(spec: &ModelSpec) -> bool {
    let partly = |attention: &AttentionSpec| {
        let rope = attention.rope.and_then(|rope| spec.ropes().get(rope));
        rope.is_some_and(|rope| rope.dim != attention.head_dim)
    };
    spec.layers.iter().any(|layer| partly(&layer.attention))
}

fn norms_heads_otherwise(layer: &LayerSpec) -> bool {
    layer.attention.qk_norm.is_some_and(|norm| (norm.kind, norm.span) != (NormKind::Rms, NormSpan::Head))
}

fn activates_otherwise(layer: &LayerSpec) -> bool {
    let other = |mlp: &DenseSpec| (mlp.activation, mlp.gated) != (Activation::Silu, true);
    layer.mlp.dense().is_some_and(other)
}

/// Windows may differ from layer to layer.
fn same_sizes(one: &LayerSpec, other: &LayerSpec) -> bool {
    let sizes = |layer: &LayerSpec| {
        let AttentionSpec { num_heads, num_kv_heads, head_dim, .. } = layer.attention;
        (num_heads, num_kv_heads, head_dim, layer.mlp.dense().map(|mlp| mlp.intermediate_size))
    };
    sizes(one) == sizes(other)
}
