//! Attention over a compressed latent (MLA): one short vector a token in the cache, which is key and value of all
//! heads at once. Queries are brought into its space before, results out of it afterwards, by each head's own
//! matrix, so that nothing is ever decompressed.

use quire_model::{AttentionShape, Heads, KvScales, LatentInput, LatentShape};

use crate::attention::{Kv, Layer, Values};
use crate::attention_step::Step;
use crate::device::{CpuBackend, MIN_WORK_PER_CHUNK};
use crate::elementwise::rms_norm;
use crate::kv_cache::{CpuKvCache, with_elements, with_writer};
use crate::lanes::Isa;
use crate::linear::{Product, UnpackScratch, chunk_columns, num_chunks, product};
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::weight::CpuWeight;

/// `out[rows][head][..n] = x[rows][head][..k] · w[head]ᵀ`, where heads of `x` and `out` may be wider than that.
/// `weight` is `[heads * n][k]`, and `x` no longer than its rows.
pub(crate) fn head_linear(
    pool: &mut Pool,
    scratch: &mut UnpackScratch,
    isa: Isa,
    heads: Heads,
    x: &[f32],
    weight: &CpuWeight,
    out: &mut [f32],
) {
    let Heads { num_heads, x_width, out_width } = heads;
    let (n, k) = (weight.rows / num_heads, weight.columns);
    let rows = x.len() / (num_heads * x_width);
    let (out, unpacked) = (SharedSlice::new(out), scratch.share());
    let wanted = num_chunks(pool, rows * weight.rows * k).div_ceil(num_heads);
    let chunk_columns = chunk_columns(n, wanted);
    let per_head = n.div_ceil(chunk_columns);
    pool.run(num_heads * per_head, &|worker, chunk| {
        let (head, start) = (chunk / per_head, chunk % per_head * chunk_columns);
        let part = Product {
            rows,
            x: &x[head * x_width..],
            x_stride: num_heads * x_width,
            bias: None,
            columns: head * n + start..head * n + n.min(start + chunk_columns),
            out,
            out_at: head * out_width + start,
            out_stride: num_heads * out_width,
        };
        product(isa, worker, unpacked, weight, part);
    });
}

/// How a token's latent and queries get into the cache and in front of it.
#[derive(Clone, Copy)]
pub(crate) struct LatentToken<'a> {
    pub(crate) isa: Isa,
    pub(crate) shape: &'a LatentShape,
    /// `[latent]`.
    pub(crate) norm: &'a [f32],
    pub(crate) eps: f32,
}

impl LatentToken<'_> {
    /// The normalised latent and the rotated shared key of a token become its `row` of the cache, the rotated parts of
    /// its queries go behind the others. `angles` are cosines, then sines.
    fn compute(&self, angles: &[f32], kv: &[f32], q: &[f32], row: &mut [f32], queries: &mut [f32]) {
        let LatentShape { latent_dim, nope_dim, rope_dim, .. } = *self.shape;
        let (latent, key) = row.split_at_mut(latent_dim);
        rms_norm(self.isa, &kv[..latent_dim], self.norm, self.eps, latent);
        rotate(angles, &kv[latent_dim..], key);
        let queries = queries.chunks_exact_mut(latent_dim + rope_dim);
        for (head, out) in q.chunks_exact(nope_dim + rope_dim).zip(queries) {
            rotate(angles, &head[nope_dim..], &mut out[latent_dim..]);
        }
    }
}

/// Does this for all tokens of the step. `angles` is `[position][cosines | sines]`.
pub(crate) fn write_latents(
    backend: &mut CpuBackend,
    token: LatentToken<'_>,
    angles: &[f32],
    input: &LatentInput<'_, Vec<f32>>,
    queries: &mut [f32],
    kv_cache: &mut CpuKvCache,
) {
    let LatentShape { num_heads, latent_dim, nope_dim, rope_dim, kv_scale, .. } = *token.shape;
    let (cached, q_len) = (latent_dim + rope_dim, num_heads * (nope_dim + rope_dim));
    let CpuBackend { pool, limits, step, block_tables, attention, .. } = backend;
    attention.reserve(cached, pool.num_threads());
    let (room, queries) = (attention.rooms(), SharedSlice::new(queries));
    let num_tokens = step.num_tokens();
    let per_chunk = (MIN_WORK_PER_CHUNK / (4 * (cached + num_heads * rope_dim))).max(1);
    with_writer!(kv_cache, cache => pool.run(num_tokens.div_ceil(per_chunk), &|worker, chunk| {
        for index in chunk * per_chunk..num_tokens.min((chunk + 1) * per_chunk) {
            let position = step.positions()[index] as usize;
            let slot = step.row_slots()[step.token_rows()[index] as usize] as usize;
            let block = block_tables[slot * limits.max_blocks_per_seq + position / limits.block_size] as usize;
            let entry = block * limits.block_size + position % limits.block_size;
            // SAFETY: no two threads are the same worker at the same time; each token is computed once and has a place
            // of its own in the cache.
            #[allow(unsafe_code)]
            unsafe {
                let row = &mut room.part(worker, 1)[0].row()[..cached];
                let queries = queries.part(index * num_heads * cached, num_heads * cached);
                let (kv, q) = (&input.kv[index * cached..][..cached], &input.q[index * q_len..][..q_len]);
                token.compute(&angles[position * rope_dim..][..rope_dim], kv, q, row, queries);
                cache.write(entry * cached, row, kv_scale);
            }
        }
    }));
}

fn rotate(angles: &[f32], x: &[f32], out: &mut [f32]) {
    let half = x.len() / 2;
    let ((cos, sin), (low, high)) = (angles.split_at(half), x.split_at(half));
    for i in 0..half {
        out[i] = low[i] * cos[i] - high[i] * sin[i];
        out[half + i] = high[i] * cos[i] + low[i] * sin[i];
    }
}

/// Attention of all heads of the step's tokens over the cache `[block][token in block][latent | rotated]`.
/// `queries` is `[T][heads][latent | rotated]`, `out` `[T][heads][latent]`.
pub(crate) fn attend_latents(
    backend: &mut CpuBackend,
    shape: &LatentShape,
    queries: &[f32],
    kv_cache: &CpuKvCache,
    out: &mut [f32],
) {
    let as_keys = AttentionShape {
        num_heads: shape.num_heads,
        num_kv_heads: 1,
        head_dim: shape.latent_dim + shape.rope_dim,
        rotary_dim: shape.rope_dim,
        scale: shape.scale,
        softcap: None,
        sliding_window: None,
        alibi: false,
        kv_group: 0,
        kv_scales: KvScales { key: shape.kv_scale, value: shape.kv_scale },
    };
    let CpuBackend { pool, isa, limits, step, block_tables, attention, .. } = backend;
    let blocks_per_table = limits.max_blocks_per_seq;
    let step = Step { inputs: step, block_tables, blocks_per_table };
    with_elements!(&kv_cache.data, data => {
        let scales = kv_cache.scales(as_keys.kv_scales);
        let kv = Kv {
            block_stride: limits.block_size * as_keys.head_dim,
            values: Values::InKeys(shape.latent_dim),
            ..Kv::of_blocks(&as_keys, data, scales, limits.block_size)
        };
        let query_stride = shape.num_heads * as_keys.head_dim;
        let layer = Layer { shape: &as_keys, queries, query_stride, sinks: &[], kv };
        attention.attend(pool, *isa, step, &layer, out);
    });
}
