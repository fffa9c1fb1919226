//! [`Names`]: what Hugging Face's checkpoints call a model's tensors, and how they are put together there.

use crate::checkpoint::Checkpoint;
use crate::spec::{ClassifierForm, LmHead, ModelSpec};

/// What a family calls its modules. Names of a layer's modules are within the layer; others within the model.
pub(crate) struct Names {
    /// What all names but that of the head may begin with, where the model is stored within its task: the first
    /// where there is a head.
    pub(crate) prefixes: &'static [&'static str],
    pub(crate) embedding: &'static str,
    /// Learned positions.
    pub(crate) positions: &'static str,
    /// Vectors of kinds of text.
    pub(crate) token_types: &'static str,
    /// Norm of the embedding, where the model has one ([`crate::Norms::OfSum`]).
    pub(crate) embedding_norm: &'static str,
    /// Before the number of a layer.
    pub(crate) layers: &'static str,
    /// The norms of a layer.
    pub(crate) norms: NormNames,
    pub(crate) qkv: Stack<3>,
    /// Norms of heads; `*` is the number of a head where each has a tensor.
    pub(crate) q_norm: &'static str,
    pub(crate) k_norm: &'static str,
    /// Scores of seeing nothing.
    pub(crate) sinks: &'static str,
    pub(crate) output: &'static str,
    /// Gate and up; without a gate one name.
    pub(crate) mlp_input: Stack<2>,
    pub(crate) mlp_output: &'static str,
    /// A mixture in the place of the MLP.
    pub(crate) moe: MoeNames,
    /// Latent attention.
    pub(crate) latent: LatentNames,
    /// Out of the last layer.
    pub(crate) final_norm: &'static str,
    /// Of the whole checkpoint, not within the model.
    pub(crate) lm_head: &'static str,
    /// Whether matrices of layers are `[input][output]` (GPT-2) instead of `[output][input]`.
    pub(crate) is_transposed: bool,
    /// Endings of names of tensors that nothing is computed with, since they follow from the config.
    pub(crate) redundant: &'static [&'static str],
    /// Whether there may be layers beyond the model's own, which guess tokens further ahead (DeepSeek-V3) and are not
    /// computed.
    pub(crate) has_next_token_layers: bool,
}

/// A mixture of experts.
#[derive(Clone, Copy)]
pub(crate) struct MoeNames {
    pub(crate) router: &'static str,
    /// A vector, not a module.
    pub(crate) correction_bias: &'static str,
    pub(crate) experts: ExpertNames,
    pub(crate) shared_input: Stack<2>,
    pub(crate) shared_output: &'static str,
    pub(crate) shared_gate: &'static str,
}

/// How experts are stored.
#[derive(Clone, Copy)]
pub(crate) enum ExpertNames {
    /// Each by itself: what comes before its number, and its gate, up and down.
    Each(&'static str, [&'static str; 3]),
    /// All in one tensor `[expert][gate | up][hidden]`, and all in another `[expert][hidden][inner]` (Granite).
    Together([&'static str; 2]),
    /// As gpt-oss has them, in four bits or lying on their sides, gate and up interleaved: what their names begin with.
    OnTheirSides(&'static str),
}

/// Latent attention; the first projection of queries is one of two.
#[derive(Clone, Copy)]
pub(crate) struct LatentNames {
    /// The only projection of queries.
    pub(crate) q: &'static str,
    /// The first of two, the norm between, and the second.
    pub(crate) compressed_q: [&'static str; 3],
    /// To the latent and the shared key.
    pub(crate) kv: &'static str,
    pub(crate) kv_norm: &'static str,
    /// Out of the latent, by head: its key's rows, its value's.
    pub(crate) kv_up: &'static str,
}

/// The norms that a layer may have, by place; only those that [`crate::Norms`] asks for are there.
pub(crate) struct NormNames {
    /// On the way into attention.
    pub(crate) attention: &'static str,
    /// Of what attention gives, or of its sum with what it was given.
    pub(crate) attention_output: &'static str,
    /// On the way into the MLP.
    pub(crate) mlp: &'static str,
    /// Of what the MLP gives, or of its sum.
    pub(crate) mlp_output: &'static str,
    /// On the way into attention and into the MLP where these are side by side and have one each, if the family has
    /// names of their own for that.
    pub(crate) parallel: Option<[&'static str; 2]>,
}

/// How projections of the same input are stored.
#[derive(Clone, Copy)]
pub(crate) enum Stack<const N: usize> {
    /// Each by itself.
    Separate([&'static str; N]),
    /// One after the other in one matrix.
    Stacked(&'static str),
    /// In one matrix, by key-value head: its queries, its key, its value (GPT-NeoX, Falcon); by row: gate, up
    /// (gpt-oss).
    Interleaved(&'static str),
}

/// Llama's, and those of all who took them over.
pub(crate) const LLAMA_NAMES: Names = Names {
    prefixes: &["model.", ""],
    embedding: "embed_tokens",
    positions: "",
    token_types: "",
    embedding_norm: "",
    layers: "layers",
    norms: NormNames {
        attention: "input_layernorm",
        attention_output: "post_attention_layernorm",
        mlp: "post_attention_layernorm",
        mlp_output: "post_feedforward_layernorm",
        parallel: None,
    },
    qkv: Stack::Separate(["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    sinks: "self_attn.sinks",
    output: "self_attn.o_proj",
    mlp_input: Stack::Separate(["mlp.gate_proj", "mlp.up_proj"]),
    mlp_output: "mlp.down_proj",
    final_norm: "norm",
    lm_head: "lm_head",
    moe: QWEN_MOE_NAMES,
    latent: LatentNames {
        q: "self_attn.q_proj",
        compressed_q: ["self_attn.q_a_proj", "self_attn.q_a_layernorm", "self_attn.q_b_proj"],
        kv: "self_attn.kv_a_proj_with_mqa",
        kv_norm: "self_attn.kv_a_layernorm",
        kv_up: "self_attn.kv_b_proj",
    },
    is_transposed: false,
    redundant: &[".rotary_emb.inv_freq"],
    has_next_token_layers: false,
};

/// Of Qwen2-MoE and those who took them over.
pub(crate) const QWEN_MOE_NAMES: MoeNames = MoeNames {
    router: "mlp.gate",
    correction_bias: "mlp.gate.e_score_correction_bias",
    experts: ExpertNames::Each("mlp.experts", ["gate_proj", "up_proj", "down_proj"]),
    shared_input: Stack::Separate(["mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"]),
    shared_output: "mlp.shared_expert.down_proj",
    shared_gate: "mlp.shared_expert_gate",
};

/// BERT's and its relatives'.
pub(crate) const BERT_NAMES: Names = Names {
    prefixes: &["", "bert.", "roberta."],
    embedding: "embeddings.word_embeddings",
    positions: "embeddings.position_embeddings",
    token_types: "embeddings.token_type_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    norms: NormNames {
        attention: "",
        attention_output: "attention.output.LayerNorm",
        mlp: "",
        mlp_output: "output.LayerNorm",
        parallel: None,
    },
    qkv: Stack::Separate(["attention.self.query", "attention.self.key", "attention.self.value"]),
    output: "attention.output.dense",
    mlp_input: Stack::Separate(["", "intermediate.dense"]),
    mlp_output: "output.dense",
    redundant: &["embeddings.position_ids"],
    ..LLAMA_NAMES
};

/// The names in one checkpoint.
pub(crate) struct NamesIn {
    prefix: &'static str,
    pub(crate) of: &'static Names,
}

impl NamesIn {
    /// Those of this checkpoint of this model.
    pub(crate) fn new(names: &'static Names, spec: &ModelSpec, checkpoint: &Checkpoint) -> Self {
        // Only what is stored without a head of its own may be stored without the prefix.
        let possible = if spec.lm_head == LmHead::Own { &names.prefixes[..1] } else { names.prefixes };
        let has = |prefix: &&&str| checkpoint.has(&format!("{prefix}{}.weight", names.embedding));
        let prefix = possible.iter().find(has).unwrap_or(&possible[0]);
        Self { prefix, of: names }
    }

    /// A module of the model.
    pub(crate) fn model(&self, module: &str) -> String {
        format!("{}{module}", self.prefix)
    }

    /// A module of a layer.
    pub(crate) fn layer(&self, index: usize, module: &str) -> String {
        format!("{}{}.{index}.{module}", self.prefix, self.of.layers)
    }

    /// The one or two projections of a classifier's head, in order.
    pub(crate) fn classifier(&self, form: ClassifierForm) -> (Option<String>, String) {
        match form {
            ClassifierForm::Pooler => (Some(self.model("pooler.dense")), "classifier".into()),
            ClassifierForm::TwoLayers => (Some("classifier.dense".into()), "classifier.out_proj".into()),
            ClassifierForm::Linear => (None, "score".into()),
        }
    }

    /// Tensors that older tools wrote though they follow from others (rotary frequencies and numbers of positions
    /// from the config, a copy of a tied head), and heads that nothing is computed with.
    pub(crate) fn is_redundant(&self, name: &str, spec: &ModelSpec) -> bool {
        let head = name.strip_prefix(self.of.lm_head).is_some_and(|rest| rest.starts_with('.'));
        let unused_head = spec.lm_head != LmHead::Own && head;
        let bare = name.strip_prefix(self.prefix).unwrap_or(name);
        let needs_pooler = spec.classifier.is_some_and(|head| head.form == ClassifierForm::Pooler);
        let unused_pooler = !spec.causal && bare.starts_with("pooler.dense.") && !needs_pooler;
        let of_layer =
            || bare.strip_prefix(self.of.layers)?.strip_prefix('.')?.split('.').next()?.parse().ok();
        let beyond = self.of.has_next_token_layers
            && of_layer().is_some_and(|index: usize| index >= spec.layers.len());
        unused_head
            || unused_pooler
            || beyond
            || self.of.redundant.iter().any(|ending| name.ends_with(ending))
    }
}
