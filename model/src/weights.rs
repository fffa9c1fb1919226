//! [`Model`]: a [`ModelSpec`] with its weights on a device, loaded by Hugging Face's names.

use std::collections::BTreeSet;

use crate::backend::Backend;
use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::spec::{LmHead, ModelSpec};

/// A model on a device.
pub struct Model<B: Backend> {
    /// What it is.
    pub spec: ModelSpec,
    pub(crate) embedding: B::Weight,
    pub(crate) layers: Vec<LayerWeights<B>>,
    pub(crate) final_norm: B::Weight,
    /// `None` if tied to the embedding, or if there is none.
    pub(crate) lm_head: Option<B::Weight>,
}

/// One layer's weights. Projections of the same input are stacked: one product instead of three.
pub(crate) struct LayerWeights<B: Backend> {
    pub(crate) input_norm: B::Weight,
    pub(crate) qkv: Projection<B>,
    /// Norms of query and key heads.
    pub(crate) qk_norm: Option<(B::Weight, B::Weight)>,
    pub(crate) output: Projection<B>,
    pub(crate) post_attention_norm: B::Weight,
    pub(crate) gate_up: Projection<B>,
    pub(crate) down: Projection<B>,
}

pub(crate) struct Projection<B: Backend> {
    pub(crate) weight: B::Weight,
    pub(crate) bias: Option<B::Weight>,
}

/// How far loading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Layers on the device.
    pub layers: usize,
    /// Layers of the model.
    pub num_layers: usize,
    /// Bytes of weights on the device.
    pub loaded_bytes: usize,
}

impl<B: Backend> Model<B> {
    /// Brings all weights to the device. Fails if the checkpoint lacks one, has one of another shape, or has
    /// one that the model does not use.
    pub fn load(
        backend: &mut B,
        spec: ModelSpec,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self, ModelError> {
        let mut loader = Loader {
            backend,
            checkpoint,
            prefix: prefix(&spec, checkpoint),
            unused: checkpoint.names(),
            loaded_bytes: 0,
        };
        loader.unused.retain(|name| !is_redundant(name, &spec));
        let (vocab, hidden) = (spec.vocab_size, spec.hidden_size);
        let embedding = loader.load(&[(loader.named("embed_tokens.weight"), vocab)], Some(hidden))?;
        let mut layers = Vec::with_capacity(spec.layers.len());
        for index in 0..spec.layers.len() {
            layers.push(loader.layer(&spec, index)?);
            let loaded_bytes = loader.loaded_bytes;
            progress(Progress { layers: index + 1, num_layers: spec.layers.len(), loaded_bytes });
        }
        let final_norm = loader.load(&[(loader.named("norm.weight"), hidden)], None)?;
        let lm_head = match spec.lm_head {
            LmHead::Tied | LmHead::None => None,
            LmHead::Own => Some(loader.load(&[("lm_head.weight".into(), vocab)], Some(hidden))?),
        };
        if let Some(example) = loader.unused.first() {
            return Err(ModelError::UnmappedTensors { count: loader.unused.len(), example: example.clone() });
        }
        Ok(Self { spec, embedding, layers, final_norm, lm_head })
    }
}

/// Tensors that older tools wrote though they follow from others (rotary frequencies from the config, a copy of
/// a tied head), and the head where nothing is generated.
fn is_redundant(name: &str, spec: &ModelSpec) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (spec.lm_head != LmHead::Own && name == "lm_head.weight")
}

/// A checkpoint of the model without its head may name tensors from there on.
fn prefix(spec: &ModelSpec, checkpoint: &Checkpoint) -> &'static str {
    let bare = spec.lm_head == LmHead::None && checkpoint.has("embed_tokens.weight");
    if bare { "" } else { "model." }
}

struct Loader<'a, B: Backend> {
    backend: &'a mut B,
    checkpoint: &'a Checkpoint,
    /// What all names but that of the head begin with.
    prefix: &'static str,
    unused: BTreeSet<String>,
    loaded_bytes: usize,
}

impl<B: Backend> Loader<'_, B> {
    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn layer(&mut self, spec: &ModelSpec, index: usize) -> Result<LayerWeights<B>, ModelError> {
        let attention = &spec.attention;
        let (hidden, inner, head) = (spec.hidden_size, spec.intermediate_size, attention.head_dim);
        let (q, kv) = (attention.num_heads * head, attention.num_kv_heads * head);
        let prefix = self.prefix;
        let own = |name: &str| format!("{prefix}layers.{index}.{name}");
        let qkv = [("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)];
        let gate_up = [("mlp.gate_proj", inner), ("mlp.up_proj", inner)];
        Ok(LayerWeights {
            input_norm: self.load(&[(own("input_layernorm.weight"), hidden)], None)?,
            qkv: self.projection(index, &qkv, hidden, attention.qkv_bias)?,
            qk_norm: match attention.qk_norm {
                true => Some((
                    self.load(&[(own("self_attn.q_norm.weight"), head)], None)?,
                    self.load(&[(own("self_attn.k_norm.weight"), head)], None)?,
                )),
                false => None,
            },
            output: self.projection(index, &[("self_attn.o_proj", hidden)], q, attention.output_bias)?,
            post_attention_norm: self.load(&[(own("post_attention_layernorm.weight"), hidden)], None)?,
            gate_up: self.projection(index, &gate_up, hidden, spec.mlp_bias)?,
            down: self.projection(index, &[("mlp.down_proj", hidden)], inner, spec.mlp_bias)?,
        })
    }

    /// `parts` are (module, output rows).
    fn projection(
        &mut self,
        layer: usize,
        parts: &[(&str, usize)],
        columns: usize,
        has_bias: bool,
    ) -> Result<Projection<B>, ModelError> {
        let prefix = self.prefix;
        let named = |kind: &str| -> Vec<(String, usize)> {
            let full = |name: &str| format!("{prefix}layers.{layer}.{name}.{kind}");
            parts.iter().map(|(name, rows)| (full(name), *rows)).collect()
        };
        let weight = self.load(&named("weight"), Some(columns))?;
        let bias = if has_bias { Some(self.load(&named("bias"), None)?) } else { None };
        Ok(Projection { weight, bias })
    }

    /// Loads tensors of (name, rows), stacked; vectors if there are no columns.
    fn load(&mut self, parts: &[(String, usize)], columns: Option<usize>) -> Result<B::Weight, ModelError> {
        let mut views = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let shape: Vec<usize> = std::iter::once(*rows).chain(columns).collect();
            let view = self.checkpoint.tensor(name, &shape)?;
            self.loaded_bytes += view.shape.iter().product::<usize>() * view.dtype.bytes();
            self.unused.remove(name);
            views.push(view);
        }
        Ok(self.backend.load(&views)?)
    }
}
