//! The forward pass, once for all models and devices: from the step's tokens to normalised hidden states.

use crate::backend::{AttentionShape, Backend, BackendError, BufferRole, LayerNorm, QkNorm, StepLimits};
use crate::kv_layout::KvLayout;
use crate::rope::rope_table;
use crate::spec::{Activation, LmHead, ModelSpec};
use crate::step_inputs::PoolRow;
use crate::weights::{LayerWeights, Model, Norm, Projection};

/// What a forward pass writes: scratch for the largest step, and the KV cache. Allocated once.
pub(crate) struct Workspace<B: Backend> {
    /// `[layer]`, each as [`KvLayout`] says.
    kv_cache: Vec<B::Buffer>,
    rope_table: Option<B::Weight>,
    /// `[T][hidden]` the sum of all layers so far.
    residual: B::Buffer,
    /// `[T][hidden]` normalised input of a projection; after the last layer, of the logits.
    normed: B::Buffer,
    /// `[T][hidden]` output of a projection back to the residual stream.
    projected: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    mlp_input: B::Buffer,
    activated: B::Buffer,
    /// `[logits rows][hidden]`; empty if there are no logits.
    gathered: B::Buffer,
    /// `[logits rows][vocab]`; empty likewise.
    pub(crate) logits: B::Buffer,
    /// `[slot][hidden]` what has been pooled of a prompt, where there are no logits.
    pool_state: Option<B::Buffer>,
}

impl<B: Backend> Workspace<B> {
    pub(crate) fn new(
        backend: &mut B,
        spec: &ModelSpec,
        limits: &StepLimits,
        num_blocks: usize,
    ) -> Result<Self, BackendError> {
        let layout = KvLayout::new(spec, limits.block_size);
        let mut kv_cache = Vec::with_capacity(layout.num_layers);
        for _ in 0..layout.num_layers {
            kv_cache.push(backend.alloc(BufferRole::KvCache, num_blocks * layout.block_len())?);
        }
        let tokens = limits.max_num_batched_tokens;
        let pools = spec.lm_head == LmHead::None;
        let logits_rows = if pools { 0 } else { limits.max_logits_rows };
        let pool_state = match pools {
            true => Some(backend.alloc(BufferRole::Residual, limits.max_num_seqs * spec.hidden_size)?),
            false => None,
        };
        let mut activation = |width: usize| backend.alloc(BufferRole::Activation, tokens * width);
        Ok(Self {
            kv_cache,
            normed: activation(spec.hidden_size)?,
            projected: activation(spec.hidden_size)?,
            qkv: activation(spec.qkv_size())?,
            attended: activation(spec.attention_size())?,
            mlp_input: activation(spec.mlp_input_size())?,
            activated: activation(spec.intermediate_size)?,
            residual: backend.alloc(BufferRole::Residual, tokens * spec.hidden_size)?,
            gathered: backend.alloc(BufferRole::Activation, logits_rows * spec.hidden_size)?,
            logits: backend.alloc(BufferRole::Logits, logits_rows * spec.vocab_size)?,
            pool_state,
            rope_table: load_rope_table(backend, spec, limits.max_blocks_per_seq * limits.block_size)?,
        })
    }

    /// Computes the uploaded step's `num_tokens` tokens through all layers, writing the cache. `adapted`: some of its rows have
    /// adapters.
    pub(crate) fn forward(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        num_tokens: usize,
        adapted: bool,
    ) -> Result<(), BackendError> {
        let spec = &model.spec;
        backend.embed(&model.embedding, &mut self.residual)?;
        if let Some(table) = &model.positions {
            backend.add_positions(table, &mut self.residual)?;
        }
        self.first_norm(backend, num_tokens, &model.first_norm, spec.norm_eps)?;
        for (index, layer) in model.layers.iter().enumerate() {
            self.attention(backend, spec, index, layer, num_tokens, adapted)?;
            self.add_norm(backend, num_tokens, &layer.attention_norm, spec.norm_eps)?;
            self.mlp(backend, spec, layer, num_tokens, adapted)?;
            self.add_norm(backend, num_tokens, &layer.mlp_norm, spec.norm_eps)?;
        }
        Ok(())
    }

    /// Logits of a range of the step's rows of logits, into [`Self::logits`].
    pub(crate) fn compute_logits(
        &mut self,
        backend: &mut B,
        model: &Model<B>,
        range: std::ops::Range<usize>,
    ) -> Result<(), BackendError> {
        let head = model.lm_head.as_ref().unwrap_or(&model.embedding);
        let rows = range.len();
        backend.gather(range, model.spec.hidden_size, &self.normed, &mut self.gathered)?;
        backend.linear(rows, &self.gathered, head, None, &mut self.logits)
    }

    /// Pools what [`Self::forward`] gave for these rows.
    pub(crate) fn pool(
        &mut self,
        backend: &mut B,
        spec: &ModelSpec,
        rows: &[PoolRow],
    ) -> Result<(), BackendError> {
        match &mut self.pool_state {
            Some(state) if !rows.is_empty() => backend.pool(rows, spec.hidden_size, &self.normed, state),
            _ => Ok(()),
        }
    }

    fn first_norm(
        &mut self,
        backend: &mut B,
        rows: usize,
        norm: &Norm<B>,
        eps: f32,
    ) -> Result<(), BackendError> {
        match norm {
            Norm::Rms(weight) => backend.rms_norm(rows, &self.residual, weight, eps, &mut self.normed),
            Norm::Layer { weight, bias } => {
                backend.layer_norm(rows, &self.residual, LayerNorm { weight, bias, eps }, &mut self.normed)
            }
        }
    }

    /// Adds what a block gave to what it was given. Where norms come before a block, what was given is the sum of
    /// all blocks so far; where they come after, it is the normalised input.
    fn add_norm(
        &mut self,
        backend: &mut B,
        rows: usize,
        norm: &Norm<B>,
        eps: f32,
    ) -> Result<(), BackendError> {
        let (x, normed) = (&self.projected, &mut self.normed);
        match norm {
            Norm::Rms(weight) => backend.add_rms_norm(rows, x, &mut self.residual, weight, eps, normed),
            Norm::Layer { weight, bias } => {
                backend.add_layer_norm(rows, x, LayerNorm { weight, bias, eps }, normed)
            }
        }
    }

    fn attention(
        &mut self,
        backend: &mut B,
        spec: &ModelSpec,
        index: usize,
        layer: &LayerWeights<B>,
        rows: usize,
        adapted: bool,
    ) -> Result<(), BackendError> {
        let shape = AttentionShape {
            num_heads: spec.attention.num_heads,
            num_kv_heads: spec.attention.num_kv_heads,
            head_dim: spec.attention.head_dim,
            scale: spec.attention.scale,
            softcap: spec.attention.softcap,
            sliding_window: spec.layers[index].sliding_window,
        };
        let qkv = &mut self.qkv;
        project(backend, rows, &layer.qkv, &self.normed, qkv, adapted)?;
        match &self.rope_table {
            None => backend.full_attention(&shape, qkv, &mut self.attended)?,
            Some(table) => {
                let kv_cache = &mut self.kv_cache[index];
                let qk_norm = layer.qk_norm.as_ref().map(|(q_weight, k_weight)| QkNorm {
                    q_weight,
                    k_weight,
                    eps: spec.norm_eps,
                });
                backend.rope_and_cache(&shape, qk_norm, table, qkv, kv_cache)?;
                backend.paged_attention(&shape, qkv, kv_cache, &mut self.attended)?;
            }
        }
        let output = &layer.output;
        project(backend, rows, output, &self.attended, &mut self.projected, adapted)
    }

    fn mlp(
        &mut self,
        backend: &mut B,
        spec: &ModelSpec,
        layer: &LayerWeights<B>,
        rows: usize,
        adapted: bool,
    ) -> Result<(), BackendError> {
        let (input, output, inner) = (&layer.mlp_input, &layer.mlp_output, spec.intermediate_size);
        project(backend, rows, input, &self.normed, &mut self.mlp_input, adapted)?;
        match spec.activation {
            Activation::Silu => backend.silu_mul(rows, inner, &self.mlp_input, &mut self.activated)?,
            Activation::Gelu => backend.gelu(rows, inner, &self.mlp_input, &mut self.activated)?,
        }
        project(backend, rows, output, &self.activated, &mut self.projected, adapted)
    }
}

/// A product, and what adapters add to it.
fn project<B: Backend>(
    backend: &mut B,
    rows: usize,
    projection: &Projection<B>,
    x: &B::Buffer,
    out: &mut B::Buffer,
    adapted: bool,
) -> Result<(), BackendError> {
    let Projection { number, width, weight, bias } = projection;
    backend.linear(rows, x, weight, bias.as_ref(), out)?;
    if adapted { backend.add_lora(*number, *width, x, out) } else { Ok(()) }
}

/// Only causal models rotate: see [`ModelSpec::causal`].
fn load_rope_table<B: Backend>(
    backend: &mut B,
    spec: &ModelSpec,
    num_positions: usize,
) -> Result<Option<B::Weight>, BackendError> {
    let head_dim = spec.attention.head_dim;
    let table = |rope| backend.load_table(&rope_table(rope, head_dim, num_positions), head_dim);
    spec.rope().map(table).transpose()
}
