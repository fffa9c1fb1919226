//! Attention over a compressed latent (MLA): one short vector a token in the cache, which is key and value of all
//! heads at once. Queries are brought into its space before, results out of it afterwards, by each head's own
//! matrix, so that nothing is ever decompressed.

use quire_model::{AttentionShape, Heads, KvScales, LatentInput, LatentShape};

use crate::attention::{PagedKv, Queries, Values, attend};
use crate::device::CpuBackend;
use crate::elementwise::rms_norm;
use crate::kv_cache::{CpuKvCache, with_elements};
use crate::lanes::Isa;
use crate::linear::{Product, UnpackScratch, chunk_columns, num_chunks, product};
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::weight::CpuWeight;

/// Heads of one token that a thread attends with at a time: the cache is read once for all of them, and their
/// scores are what a thread needs memory for.
pub(crate) const HEADS_PER_ITEM: usize = 16;

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
pub(crate) struct LatentToken<'a> {
    pub(crate) isa: Isa,
    pub(crate) shape: &'a LatentShape,
    /// `[latent]`.
    pub(crate) norm: &'a [f32],
    pub(crate) eps: f32,
    /// Room for what goes into the cache.
    pub(crate) row: &'a mut [f32],
}

impl LatentToken<'_> {
    /// The normalised latent and the rotated shared key of a token go to the `entry` of that number in the cache, the
    /// rotated parts of its queries behind the others. `angles` are cosines, then sines.
    pub(crate) fn write(
        &mut self,
        token: usize,
        angles: &[f32],
        input: &LatentInput<'_, Vec<f32>>,
        queries: &mut [f32],
        entry: usize,
        cache: &mut CpuKvCache,
    ) {
        let LatentShape { num_heads, latent_dim, nope_dim, rope_dim, .. } = *self.shape;
        let (cached, query) = (latent_dim + rope_dim, nope_dim + rope_dim);
        let (latent, key) = self.row[..cached].split_at_mut(latent_dim);
        let kv = &input.kv[token * cached..][..cached];
        rms_norm(self.isa, &kv[..latent_dim], self.norm, self.eps, latent);
        rotate(angles, &kv[latent_dim..], key);
        cache.write(entry * cached, &self.row[..cached], self.shape.kv_scale);
        let heads = input.q[token * num_heads * query..][..num_heads * query].chunks_exact(query);
        let queries = queries[token * num_heads * cached..][..num_heads * cached].chunks_exact_mut(cached);
        for (head, out) in heads.zip(queries) {
            rotate(angles, &head[nope_dim..], &mut out[latent_dim..]);
        }
    }
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
    let CpuBackend { pool, isa, limits, step, block_tables, scratch, .. } = backend;
    let (scratch, out) = (SharedSlice::new(scratch), SharedSlice::new(out));
    let (num_heads, per_token) = (shape.num_heads, shape.num_heads.div_ceil(HEADS_PER_ITEM));
    let (block_size, values) = (limits.block_size, Values::InKeys(shape.latent_dim));
    pool.run(step.num_tokens() * per_token, &|worker, item| {
        let (token, first) = (item / per_token, item % per_token * HEADS_PER_ITEM);
        let heads = HEADS_PER_ITEM.min(num_heads - first);
        let slot = step.row_slots()[step.token_rows()[token] as usize] as usize;
        let block_table = &block_tables[slot * limits.max_blocks_per_seq..][..limits.max_blocks_per_seq];
        let queries = Queries {
            kv_head: 0,
            position: step.positions()[token] as usize,
            heads: &queries[(token * num_heads + first) * as_keys.head_dim..][..heads * as_keys.head_dim],
            sinks: &[],
        };
        // SAFETY: no two threads are the same worker at the same time, and each item's heads are computed once.
        #[allow(unsafe_code)]
        let (scratch, out) = unsafe {
            let at = (token * num_heads + first) * shape.latent_dim;
            (&mut scratch.part(worker, 1)[0], out.part(at, heads * shape.latent_dim))
        };
        with_elements!(&kv_cache.data, cache => {
            let kv = PagedKv { cache, scales: kv_cache.scales(as_keys.kv_scales), block_table, block_size, values };
            attend(*isa, &as_keys, kv, queries, &mut scratch.scores, out);
        });
    });
}
