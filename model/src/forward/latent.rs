//! Latent attention in the forward pass, in the absorbed form: queries go into the latent's space and results come out
//! of it, and the cache is never decompressed.

use super::{Pass, Workspace, project};
use crate::backend::{Backend, BackendError, BufferRole, Heads, LatentInput, LatentNorm};
use crate::latent_spec::{LatentShape, LatentSpec};
use crate::spec::{LayerSpec, ModelSpec, Norms};
use crate::weights::LayerWeights;

/// What latent attention writes besides what grouped attention does.
pub(super) struct LatentBuffers<B: Backend> {
    /// `[T][q_lora_rank]` compressed queries, normalised.
    compressed: B::Buffer,
    /// `[T][heads][not rotated | rotated]`.
    q: B::Buffer,
    /// `[T][latent | shared key]`.
    kv: B::Buffer,
    /// `[T][heads][in the latent's space | rotated]`.
    queries: B::Buffer,
    /// `[T][heads][latent]`.
    attended: B::Buffer,
}

impl<B: Backend> LatentBuffers<B> {
    /// Memory for steps of up to `tokens` tokens; `None` if no layer has latent attention.
    pub(super) fn new(
        backend: &mut B,
        spec: &ModelSpec,
        tokens: usize,
    ) -> Result<Option<Self>, BackendError> {
        if spec.layers.iter().all(|layer| layer.attention.latent.is_none()) {
            return Ok(None);
        }
        let mut buffer = |size: fn(&LatentSpec, usize) -> usize| {
            let of_layer = |layer: &LayerSpec| {
                layer.attention.latent.map_or(0, |latent| size(&latent, layer.attention.num_heads))
            };
            backend.alloc(BufferRole::Activation, tokens * spec.max_of_layers(of_layer))
        };
        Ok(Some(Self {
            compressed: buffer(|latent, _| latent.q_lora_rank.unwrap_or(0))?,
            q: buffer(|latent, heads| heads * latent.query_dim())?,
            kv: buffer(|latent, _| latent.cached_dim())?,
            queries: buffer(|latent, heads| heads * latent.cached_dim())?,
            attended: buffer(|latent, heads| heads * latent.kv_lora_rank)?,
        }))
    }
}

impl<B: Backend> Pass<'_, B> {
    /// What attention gives, into `attended`, of a layer whose first projection of queries is in `qkv`.
    pub(super) fn latent_attention(
        &mut self,
        index: usize,
        layer: &LayerSpec,
        latent: &LatentSpec,
        weights: &LayerWeights<B>,
    ) -> Result<(), BackendError> {
        let Self { backend, model, rows, adapted, workspace } = self;
        let Workspace {
            residual,
            normed,
            qkv,
            attended,
            kv_cache,
            kv_groups,
            rope_tables,
            latent: Some(buffers),
            ..
        } = &mut **workspace
        else {
            unreachable!("latent attention has its buffers")
        };
        let (Some(of_latent), Some(rope)) = (&weights.latent, layer.attention.rope) else {
            unreachable!("latent attention has its weights and a rotation")
        };
        let (rows, spec) = (*rows, &model.spec);
        let (shape, eps) = (LatentShape::of(&layer.attention, latent, weights.kv_scales), spec.norm.eps);
        let x = if spec.norms == Norms::After { residual } else { normed };
        let q = match &of_latent.queries {
            None => &*qkv,
            Some((norm, second)) => {
                backend.rms_norm(rows, qkv, norm, eps, &mut buffers.compressed)?;
                project(*backend, rows, *adapted, second, &buffers.compressed, &mut buffers.q)?;
                &buffers.q
            }
        };
        project(*backend, rows, *adapted, &of_latent.kv, x, &mut buffers.kv)?;
        let heads = |x_width, out_width| Heads { num_heads: shape.num_heads, x_width, out_width };
        let into = heads(latent.query_dim(), latent.cached_dim());
        backend.head_linear(rows, into, q, &of_latent.into_latent, &mut buffers.queries)?;
        let norm = LatentNorm { weight: &of_latent.kv_norm, eps };
        let input = LatentInput { q, kv: &buffers.kv };
        let (table, cache) = (&rope_tables[rope], &mut kv_cache[kv_groups.place(index).buffer]);
        backend.latent_and_cache(&shape, norm, table, input, &mut buffers.queries, cache)?;
        backend.latent_attention(&shape, &buffers.queries, cache, &mut buffers.attended)?;
        let out_of = heads(latent.kv_lora_rank, latent.v_head_dim);
        backend.head_linear(rows, out_of, &buffers.attended, &of_latent.out_of_latent, attended)
    }
}
