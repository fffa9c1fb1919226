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
    /// It is a vector instead of a matrix of one row.
    Vector,
    /// It is the matrix of this number in a tensor of all experts'.
    Expert(usize),
}

/// What a tensor is called in a Hugging Face folder, with what to undo: one name, or one for each expert; none if it is
/// not known.
pub(super) fn hf_names(architecture: Architecture, name: &str) -> Vec<(String, Change)> {
    match expert_names(architecture, name) {
        Some(names) => names,
        None => hf_name(architecture, name).into_iter().collect(),
    }
}

/// Of `blk.L.ffn_gate_exps.weight`, which has all experts of a layer, or `blk.L.ffn_gate.E.weight`, as older files
/// have them.
fn expert_names(architecture: Architecture, name: &str) -> Option<Vec<(String, Change)>> {
    let rest = name.strip_prefix("blk.")?.strip_suffix(".weight")?;
    let (layer, module) = rest.split_once('.')?;
    let modules = match architecture.kind {
        Kind::Llama => [("ffn_gate", "w1"), ("ffn_up", "w3"), ("ffn_down", "w2")],
        _ => [("ffn_gate", "gate_proj"), ("ffn_up", "up_proj"), ("ffn_down", "down_proj")],
    };
    let block = if architecture.kind == Kind::Llama { "block_sparse_moe" } else { "mlp" };
    let (own, expert) = match module.strip_suffix("_exps") {
        Some(own) => (own, None),
        None => module.split_once('.').map(|(own, expert)| (own, Some(expert)))?,
    };
    let (_, module) = modules.iter().find(|(known, _)| *known == own)?;
    let of = |expert: &str| format!("model.layers.{layer}.{block}.experts.{expert}.{module}.weight");
    Some(match expert {
        Some(expert) => vec![(of(expert), Change::None)],
        None => {
            let all = 0..architecture.num_experts as usize;
            all.map(|expert| (of(&expert.to_string()), Change::Expert(expert))).collect()
        }
    })
}

fn hf_name(architecture: Architecture, name: &str) -> Option<(String, Change)> {
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
        ("ffn_gate_inp", Kind::Llama) => ("block_sparse_moe.gate", Change::None),
        ("ffn_gate_inp", _) => ("mlp.gate", Change::None),
        ("ffn_gate_shexp", _) => ("mlp.shared_expert.gate_proj", Change::None),
        ("ffn_up_shexp", _) => ("mlp.shared_expert.up_proj", Change::None),
        ("ffn_down_shexp", _) => ("mlp.shared_expert.down_proj", Change::None),
        ("ffn_gate_inp_shexp", _) => ("mlp.shared_expert_gate", Change::Vector),
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
