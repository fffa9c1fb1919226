//! [`Names`]: what Hugging Face's checkpoints call a model's tensors.

use crate::checkpoint::Checkpoint;
use crate::spec::{ClassifierForm, LmHead, ModelSpec, Norms};

/// The names of one checkpoint.
pub(crate) struct Names {
    /// What all names but that of the head begin with: the model within its task, if the checkpoint is of both.
    prefix: &'static str,
    family: &'static Family,
}

/// What a family of models calls its modules.
struct Family {
    prefixes: &'static [&'static str],
    embedding: &'static str,
    first_norm: &'static str,
    layers: &'static str,
    qkv: [&'static str; 3],
    output: &'static str,
    mlp_input: &'static [&'static str],
    mlp_output: &'static str,
    /// After attention.
    attention_norm: &'static str,
    /// After the MLP; `None` if that is the next layer's first.
    mlp_norm: Option<&'static str>,
}

const DECODERS: Family = Family {
    prefixes: &["model.", ""],
    embedding: "embed_tokens",
    first_norm: "layers.0.input_layernorm",
    layers: "layers",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    output: "self_attn.o_proj",
    mlp_input: &["mlp.gate_proj", "mlp.up_proj"],
    mlp_output: "mlp.down_proj",
    attention_norm: "post_attention_layernorm",
    mlp_norm: None,
};

const ENCODERS: Family = Family {
    prefixes: &["", "bert.", "roberta."],
    embedding: "embeddings.word_embeddings",
    first_norm: "embeddings.LayerNorm",
    layers: "encoder.layer",
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    output: "attention.output.dense",
    mlp_input: &["intermediate.dense"],
    mlp_output: "output.dense",
    attention_norm: "attention.output.LayerNorm",
    mlp_norm: Some("output.LayerNorm"),
};

/// Modules of one layer.
pub(crate) struct LayerNames {
    pub(crate) qkv: Vec<String>,
    pub(crate) q_norm: String,
    pub(crate) k_norm: String,
    pub(crate) output: String,
    pub(crate) attention_norm: String,
    pub(crate) mlp_input: Vec<String>,
    pub(crate) mlp_output: String,
    pub(crate) mlp_norm: String,
}

impl Names {
    /// Those of this checkpoint of this model.
    pub(crate) fn of(spec: &ModelSpec, checkpoint: &Checkpoint) -> Self {
        let family = match spec.norms {
            Norms::RmsBefore => &DECODERS,
            Norms::LayerAfter => &ENCODERS,
        };
        // Only what is stored without its head may be stored without the prefix.
        let possible = if spec.lm_head == LmHead::None { family.prefixes } else { &family.prefixes[..1] };
        let has = |prefix: &&&str| checkpoint.has(&format!("{prefix}{}.weight", family.embedding));
        let prefix = possible.iter().find(has).unwrap_or(&possible[0]);
        Self { prefix, family }
    }

    pub(crate) fn embedding(&self) -> String {
        format!("{}{}.weight", self.prefix, self.family.embedding)
    }

    pub(crate) fn positions(&self) -> String {
        format!("{}embeddings.position_embeddings.weight", self.prefix)
    }

    pub(crate) fn token_types(&self) -> String {
        format!("{}embeddings.token_type_embeddings.weight", self.prefix)
    }

    pub(crate) fn first_norm(&self) -> String {
        format!("{}{}", self.prefix, self.family.first_norm)
    }

    pub(crate) fn layer(&self, index: usize, num_layers: usize) -> LayerNames {
        let Self { prefix, family } = self;
        let own = |name: &str| format!("{prefix}{}.{index}.{name}", family.layers);
        let all = |names: &[&str]| names.iter().map(|name| own(name)).collect();
        LayerNames {
            qkv: all(&family.qkv),
            q_norm: own("self_attn.q_norm"),
            k_norm: own("self_attn.k_norm"),
            output: own(family.output),
            attention_norm: own(family.attention_norm),
            mlp_input: all(family.mlp_input),
            mlp_output: own(family.mlp_output),
            mlp_norm: match family.mlp_norm {
                Some(name) => own(name),
                None if index + 1 < num_layers => {
                    format!("{prefix}{}.{}.input_layernorm", family.layers, index + 1)
                }
                None => format!("{prefix}norm"),
            },
        }
    }

    /// The one or two projections of a classifier's head, in order.
    pub(crate) fn classifier(&self, form: ClassifierForm) -> (Option<String>, String) {
        match form {
            ClassifierForm::Pooler => (Some(format!("{}pooler.dense", self.prefix)), "classifier".into()),
            ClassifierForm::TwoLayers => (Some("classifier.dense".into()), "classifier.out_proj".into()),
            ClassifierForm::Linear => (None, "score".into()),
        }
    }

    /// Tensors that older tools wrote though they follow from others (rotary frequencies and numbers of positions
    /// from the config, a copy of a tied head), and heads that nothing is computed with.
    pub(crate) fn is_redundant(&self, name: &str, spec: &ModelSpec) -> bool {
        let unused_head = spec.lm_head != LmHead::Own && name == "lm_head.weight";
        let bare = name.strip_prefix(self.prefix).unwrap_or(name);
        let needs_pooler = spec.classifier.is_some_and(|head| head.form == ClassifierForm::Pooler);
        let unused_pooler = bare.starts_with("pooler.dense.") && !needs_pooler;
        let of_encoder = bare == "embeddings.position_ids" || unused_pooler;
        unused_head || name.ends_with(".rotary_emb.inv_freq") || (!spec.causal && of_encoder)
    }
}
