//! From GGUF's names of tensors to Hugging Face's, and what converters did to the numbers on the way.

use super::architecture::{Architecture, Kind};

/// How a tensor differs from the one in a Hugging Face folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Not at all.
    None,
    /// In each head of queries, or of keys, the rows of the two halves alternate.
    QueryRows,
    /// The same of keys.
    KeyRows,
    /// One was added.
    PlusOne,
}

/// What a tensor is called in a Hugging Face folder. `None` if it is not known, or if its numbers are settings there.
pub(super) fn hf_name(architecture: Architecture, name: &str) -> Option<(String, Change)> {
    let (module, ending) = name.rsplit_once('.')?;
    if !["weight", "bias"].contains(&ending) {
        return None;
    }
    let kind = architecture.kind;
    let norm = if matches!(kind, Kind::Gemma | Kind::Gemma2) { Change::PlusOne } else { Change::None };
    let (module, change) = match module {
        "token_embd" => ("model.embed_tokens".to_owned(), Change::None),
        "output_norm" => ("model.norm".to_owned(), norm),
        "output" => ("lm_head".to_owned(), Change::None),
        _ => {
            let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
            let (module, change) = layer_module(kind, module, norm)?;
            (format!("model.layers.{layer}.{module}"), change)
        }
    };
    Some((format!("{module}.{ending}"), change))
}

fn layer_module(kind: Kind, module: &str, norm: Change) -> Option<(&'static str, Change)> {
    let (query, key) = match kind {
        Kind::Llama => (Change::QueryRows, Change::KeyRows),
        _ => (Change::None, Change::None),
    };
    Some(match (module, kind) {
        ("attn_norm", _) => ("input_layernorm", norm),
        ("attn_q", _) => ("self_attn.q_proj", query),
        ("attn_k", _) => ("self_attn.k_proj", key),
        ("attn_v", _) => ("self_attn.v_proj", Change::None),
        ("attn_qkv", Kind::Phi3) => ("self_attn.qkv_proj", Change::None),
        ("attn_output", _) => ("self_attn.o_proj", Change::None),
        ("attn_q_norm", _) => ("self_attn.q_norm", norm),
        ("attn_k_norm", _) => ("self_attn.k_norm", norm),
        ("post_attention_norm", Kind::Gemma2) => ("post_attention_layernorm", norm),
        ("ffn_norm", Kind::Gemma2) => ("pre_feedforward_layernorm", norm),
        ("post_ffw_norm", Kind::Gemma2) => ("post_feedforward_layernorm", norm),
        ("ffn_norm", _) => ("post_attention_layernorm", norm),
        ("ffn_up", Kind::Phi3) => ("mlp.gate_up_proj", Change::None),
        ("ffn_gate", _) => ("mlp.gate_proj", Change::None),
        ("ffn_up", _) => ("mlp.up_proj", Change::None),
        ("ffn_down", _) => ("mlp.down_proj", Change::None),
        _ => return None,
    })
}

/// Tensors whose numbers are settings in a Hugging Face folder, or follow from them.
pub(super) fn is_setting(name: &str) -> bool {
    [LLAMA_FACTORS, LONG_FACTORS, SHORT_FACTORS].contains(&name) || name.ends_with(".attn_rot_embd.weight")
}

/// What each frequency of the rotation is divided by (Llama 3.1).
pub(super) const LLAMA_FACTORS: &str = "rope_freqs.weight";
/// The same for long contexts (Phi-3).
pub(super) const LONG_FACTORS: &str = "rope_factors_long.weight";
/// And for short ones.
pub(super) const SHORT_FACTORS: &str = "rope_factors_short.weight";

/// Where the rows of one head of width `dim` are, so that those of its first half come first again.
pub(super) fn halves_first(dim: usize) -> impl Iterator<Item = usize> {
    (0..dim).map(move |row| row % (dim / 2) * 2 + row / (dim / 2))
}
