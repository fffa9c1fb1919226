//! The forward pass, once for all models and devices: from the step's tokens to normalised hidden states.

mod latent;
mod moe;

use crate::backend::{AttentionShape, Backend, BackendError, BufferRole, LayerNorm, QkNorm, StepLimits};
use crate::forward::latent::LatentBuffers;
use crate::forward::moe::MoeBuffers;
use crate::kv_groups::{KvGroups, KvPlace};
use crate::rope::rope_table;
use crate::runner::RunnerConfig;
use crate::spec::{DenseSpec, LayerSpec, LmHead, MlpSpec, ModelSpec, Norms};
use crate::step_inputs::PoolRow;
use crate::weights::{DenseWeights, LayerWeights, MlpWeights, Model, Norm, Projection};

/// What a forward pass writes: scratch for the largest step, and the KV cache. Allocated once.
pub(crate) struct Workspace<B: Backend> {
    /// Each as [`crate::KvLayout`] says.
    kv_cache: Vec<B::KvCache>,
    /// Which of them is whose.
    kv_groups: KvGroups,
    /// One for each rotation.
    rope_tables: Vec<B::Weight>,
    /// `[T][hidden]` the sum of all layers so far.
    residual: B::Buffer,
    /// `[T][hidden]` normalised input of a block; after the last layer, of the logits.
    normed: B::Buffer,
    /// `[T][hidden]` output of a block.
    projected: B::Buffer,
    /// `[T][hidden]` the same normalised, where that is done.
    normed_output: Option<B::Buffer>,
    qkv: B::Buffer,
    attended: B::Buffer,
    /// What latent attention needs besides, if there is any.
    latent: Option<LatentBuffers<B>>,
    mlp_input: B::Buffer,
    activated: B::Buffer,
    /// What mixtures of experts need besides, if there are any.
    moe: Option<MoeBuffers<B>>,
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
        config: &RunnerConfig,
        kv_groups: KvGroups,
    ) -> Result<Self, BackendError> {
        let layout = kv_groups.layout(spec, limits.block_size);
        let mut kv_cache = Vec::with_capacity(layout.layers.len());
        for kept in &layout.layers {
            let vectors = config.num_blocks * layout.block_size * kept.vectors();
            kv_cache.push(backend.alloc_kv_cache(vectors, kept.head_dim)?);
        }
        let mut rope_tables = Vec::with_capacity(spec.ropes().len());
        for rope in spec.ropes() {
            let num_positions = limits.max_blocks_per_seq * limits.block_size;
            let table = rope_table(rope, config.max_model_len, num_positions);
            rope_tables.push(backend.load_table(&table, rope.dim)?);
        }
        let tokens = limits.max_num_batched_tokens;
        let pools = spec.lm_head == LmHead::None;
        let logits_rows = if pools { 0 } else { limits.max_logits_rows };
        let pool_state = match pools {
            true => Some(backend.alloc(BufferRole::Residual, limits.max_num_seqs * spec.hidden_size)?),
            false => None,
        };
        let latent = LatentBuffers::new(backend, spec, tokens)?;
        let moe = MoeBuffers::new(backend, spec, tokens)?;
        let mut activation = |width: usize| backend.alloc(BufferRole::Activation, tokens * width);
        let normed_output = match spec.norms {
            Norms::After | Norms::Around => Some(activation(spec.hidden_size)?),
            Norms::Before | Norms::OfSum | Norms::Parallel { .. } => None,
        };
        let dense =
            |size: fn(&DenseSpec) -> usize| spec.max_of_layers(|layer| layer.mlp.dense().map_or(0, size));
        Ok(Self {
            kv_cache,
            kv_groups,
            rope_tables,
            normed: activation(spec.hidden_size)?,
            projected: activation(spec.hidden_size)?,
            normed_output,
            qkv: activation(spec.max_of_layers(|layer| layer.attention.qkv_size()))?,
            attended: activation(spec.max_of_layers(|layer| layer.attention.output_size()))?,
            latent,
            mlp_input: activation(dense(|mlp| mlp.input_size()))?,
            activated: activation(dense(|mlp| mlp.intermediate_size))?,
            moe,
            residual: backend.alloc(BufferRole::Residual, tokens * spec.hidden_size)?,
            gathered: backend.alloc(BufferRole::Activation, logits_rows * spec.hidden_size)?,
            logits: backend.alloc(BufferRole::Logits, logits_rows * spec.vocab_size)?,
            pool_state,
        })
    }

    /// Computes the uploaded step's `num_tokens` tokens through all layers, writing the cache. `adapted`: some are of requests with
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
        if spec.scales.embedding != 1.0 {
            let len = num_tokens * spec.hidden_size;
            backend.scale(len, spec.scales.embedding, None, &mut self.residual)?;
        }
        if let Some(table) = &model.positions {
            backend.add_positions(table, &mut self.residual)?;
        }
        let mut pass = Pass { backend, model, rows: num_tokens, adapted, workspace: self };
        let first = model.layers.first().and_then(|layer| layer.norms.attention.as_ref());
        if let Some(norm) = model.embedding_norm.as_ref().or(first) {
            pass.norm_residual(norm)?;
        }
        for (index, layer) in model.layers.iter().enumerate() {
            pass.layer(index, layer)?;
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
        let (spec, rows) = (&model.spec, range.len());
        let weight = model.lm_head.weight.as_ref().unwrap_or(&model.embedding);
        backend.gather(range, spec.hidden_size, &self.normed, &mut self.gathered)?;
        backend.linear(rows, &self.gathered, weight, model.lm_head.bias.as_ref(), &mut self.logits)?;
        let (factor, softcap) = (spec.scales.logits, spec.scales.logits_softcap);
        match factor == 1.0 && softcap.is_none() {
            true => Ok(()),
            false => backend.scale(rows * spec.vocab_size, factor, softcap, &mut self.logits),
        }
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
}

/// One forward pass under way.
struct Pass<'a, B: Backend> {
    backend: &'a mut B,
    model: &'a Model<B>,
    /// Tokens of the step.
    rows: usize,
    /// Whether some of them are of requests with adapters.
    adapted: bool,
    workspace: &'a mut Workspace<B>,
}

impl<B: Backend> Pass<'_, B> {
    /// Takes the residual stream through a layer. Between layers, `normed` is the input of the next one's attention,
    /// unless that reads the residual stream itself.
    fn layer(&mut self, index: usize, layer: &LayerWeights<B>) -> Result<(), BackendError> {
        let spec = &self.model.spec.layers[index];
        let next =
            self.model.layers.get(index + 1).map_or(&self.model.final_norm, |next| &next.norms.attention);
        self.attention(index, spec, layer)?;
        match self.model.spec.norms {
            Norms::OfSum => {
                self.norm_sum(&layer.norms.attention_output)?;
                self.mlp(spec, layer)?;
                self.norm_sum(&layer.norms.mlp_output)
            }
            Norms::Parallel { .. } => {
                if let Some(norm) = &layer.norms.mlp {
                    self.norm_residual(norm)?;
                }
                self.add(None, None)?;
                self.mlp(spec, layer)?;
                self.add(None, next.as_ref())
            }
            Norms::Before | Norms::After | Norms::Around => {
                self.add(layer.norms.attention_output.as_ref(), layer.norms.mlp.as_ref())?;
                self.mlp(spec, layer)?;
                self.add(layer.norms.mlp_output.as_ref(), next.as_ref())
            }
        }
    }

    fn norm_residual(&mut self, norm: &Norm<B>) -> Result<(), BackendError> {
        let Workspace { residual, normed, .. } = &mut *self.workspace;
        run_norm(self.backend, self.rows, residual, norm, self.model.spec.norm.eps, normed)
    }

    /// `normed = norm(normed + projected)`: what a block was given is its normalised input.
    fn norm_sum(&mut self, norm: &Option<Norm<B>>) -> Result<(), BackendError> {
        let Workspace { projected, normed, .. } = &mut *self.workspace;
        let eps = self.model.spec.norm.eps;
        match norm {
            Some(Norm::Layer { weight, bias }) => {
                self.backend.add_layer_norm(self.rows, projected, LayerNorm { weight, bias, eps }, normed)
            }
            _ => Err(self.backend.not_built("RMSNorm of a sum")),
        }
    }

    /// Adds what a block gave to the residual stream, normalised by `output` if that is there, and normalises the sum
    /// by `next` for whoever reads it.
    fn add(&mut self, output: Option<&Norm<B>>, next: Option<&Norm<B>>) -> Result<(), BackendError> {
        let Self { backend, model, rows, workspace, .. } = self;
        let Workspace { residual, normed, projected, normed_output, .. } = &mut **workspace;
        let (rows, spec) = (*rows, &model.spec);
        let (len, eps) = (rows * spec.hidden_size, spec.norm.eps);
        let added = match (output, normed_output) {
            (Some(norm), Some(normed_output)) => {
                run_norm(*backend, rows, projected, norm, eps, normed_output)?;
                normed_output
            }
            _ => projected,
        };
        if spec.scales.residual != 1.0 {
            backend.scale(len, spec.scales.residual, None, added)?;
        }
        match next {
            Some(Norm::Rms(weight)) => backend.add_rms_norm(rows, added, residual, weight, eps, normed),
            Some(norm @ Norm::Layer { .. }) => {
                backend.add(len, added, residual)?;
                run_norm(*backend, rows, residual, norm, eps, normed)
            }
            None => backend.add(len, added, residual),
        }
    }

    fn attention(
        &mut self,
        index: usize,
        layer: &LayerSpec,
        weights: &LayerWeights<B>,
    ) -> Result<(), BackendError> {
        let Self { backend, model, rows, adapted, workspace } = self;
        let Workspace { residual, normed, qkv, .. } = &mut **workspace;
        let input = if model.spec.norms == Norms::After { residual } else { normed };
        project(*backend, *rows, *adapted, &weights.qkv, input, qkv)?;
        match &layer.attention.latent {
            None => self.grouped_attention(index, layer, weights)?,
            Some(latent) => self.latent_attention(index, layer, latent, weights)?,
        }
        let Self { backend, rows, adapted, workspace, .. } = self;
        let Workspace { attended, projected, .. } = &mut **workspace;
        project(*backend, *rows, *adapted, &weights.output, attended, projected)
    }

    /// What attention makes of `qkv`, into `attended`.
    fn grouped_attention(
        &mut self,
        index: usize,
        layer: &LayerSpec,
        weights: &LayerWeights<B>,
    ) -> Result<(), BackendError> {
        let Self { backend, model, workspace, .. } = self;
        let spec = &model.spec;
        let Workspace { qkv, attended, kv_cache, kv_groups, rope_tables, .. } = &mut **workspace;
        let KvPlace { group: kv_group, buffer } = kv_groups.place(index);
        let of_layer = AttentionShape::of(spec, &layer.attention);
        let shape = AttentionShape { kv_group, kv_scales: weights.kv_scales, ..of_layer };
        if spec.causal {
            let qk_norm = layer.attention.qk_norm.zip(weights.qk_norm.as_ref());
            let qk_norm = qk_norm.map(|(norm, (q_weight, k_weight))| QkNorm {
                kind: norm.kind,
                span: norm.span,
                q_weight,
                k_weight,
                eps: spec.norm.eps,
            });
            let table = layer.attention.rope.map(|rope| &rope_tables[rope]);
            backend.rope_and_cache(&shape, qk_norm, table, qkv, &mut kv_cache[buffer])?;
            backend.paged_attention(&shape, weights.sinks.as_ref(), qkv, &kv_cache[buffer], attended)
        } else {
            backend.full_attention(&shape, qkv, attended)
        }
    }

    fn mlp(&mut self, layer: &LayerSpec, weights: &LayerWeights<B>) -> Result<(), BackendError> {
        match (&layer.mlp, &weights.mlp) {
            (MlpSpec::Dense(mlp), MlpWeights::Dense(weights)) => self.dense(mlp, weights),
            (MlpSpec::Moe(moe), MlpWeights::Moe(weights)) => self.moe(moe, weights),
            _ => unreachable!("weights are loaded by the spec"),
        }
    }

    /// An MLP that all tokens use, into `projected`.
    fn dense(&mut self, mlp: &DenseSpec, weights: &DenseWeights<B>) -> Result<(), BackendError> {
        let Self { backend, model, rows, adapted, workspace } = self;
        let Workspace { residual, normed, projected, mlp_input, activated, .. } = &mut **workspace;
        let DenseWeights { input, output } = weights;
        let x = if model.spec.norms == Norms::After { residual } else { normed };
        let (rows, inner) = (*rows, mlp.intermediate_size);
        project(*backend, rows, *adapted, input, x, mlp_input)?;
        backend.activate(rows, inner, mlp.activation, mlp.gated, mlp_input, activated)?;
        project(*backend, rows, *adapted, output, activated, projected)
    }
}

/// A product, and what adapters add to it.
fn project<B: Backend>(
    backend: &mut B,
    rows: usize,
    adapted: bool,
    projection: &Projection<B>,
    x: &B::Buffer,
    out: &mut B::Buffer,
) -> Result<(), BackendError> {
    let Projection { number, width, weight, bias } = projection;
    backend.linear(rows, x, weight, bias.as_ref(), out)?;
    if adapted { backend.add_lora(*number, *width, x, out) } else { Ok(()) }
}

fn run_norm<B: Backend>(
    backend: &mut B,
    rows: usize,
    x: &B::Buffer,
    norm: &Norm<B>,
    eps: f32,
    out: &mut B::Buffer,
) -> Result<(), BackendError> {
    match norm {
        Norm::Rms(weight) => backend.rms_norm(rows, x, weight, eps, out),
        Norm::Layer { weight, bias } => backend.layer_norm(rows, x, LayerNorm { weight, bias, eps }, out),
    }
}
