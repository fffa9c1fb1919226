//! Attention over a compressed latent (MLA): one short vector a token in the cache, which is key and value of all
//! heads at once. Queries are brought into its space before, results out of it afterwards, by each head's own
//! matrix, so that nothing is ever decompressed.

use quire_model::{AttentionShape, LatentShape};

use crate::attention::{PagedKv, Queries, Values, attend};
use crate::elementwise::rms_norm;
use crate::lanes::Isa;
use crate::linear::{Product, UnpackScratch, chunk_columns, num_chunks, product};
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::weight::CpuWeight;

/// Heads of one token that a thread attends with at a time: the cache is read once for all of them, and their
/// scores are what a thread needs memory for.
pub(crate) const HEADS_PER_ITEM: usize = 16;

/// `out[rows][head][0..n] = x[rows][head][0..k] · w[head]ᵀ`, where heads of `x` and `out` may be wider than that.
/// `weight` is `[heads * n][k]`.
pub(crate) fn head_linear(
    pool: &mut Pool,
    scratch: &mut UnpackScratch,
    isa: Isa,
    num_heads: usize,
    x: (&[f32], usize),
    weight: &CpuWeight,
    out: (&mut [f32], usize),
) {
    let ((x, x_width), (out, out_width)) = (x, out);
    let (n, k) = (weight.rows / num_heads, weight.columns);
    let rows = x.len() / (num_heads * x_width);
    let out = SharedSlice::new(out);
    let wanted = num_chunks(pool, rows * weight.rows * k).div_ceil(num_heads);
    let chunk_columns = chunk_columns(n, wanted);
    let per_head = n.div_ceil(chunk_columns);
    let unpacked = scratch.share();
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

/// One token on its way into attention: the normalised latent and the rotated key that all heads share go to
/// `entry` (`[latent | rotated]`), the rotated parts of `query` to `queries` (`[heads][latent | rotated]`). `kv` is
/// `[latent | shared key]`, `query` `[heads][not rotated | rotated]`, `angles` cosines, then sines.
pub(crate) fn latent_row(
    isa: Isa,
    shape: &LatentShape,
    norm: (&[f32], f32),
    angles: &[f32],
    kv: &[f32],
    query: &[f32],
    queries: &mut [f32],
    entry: &mut [f32],
) {
    let LatentShape { latent_dim, nope_dim, rope_dim, .. } = *shape;
    let (latent, key) = entry.split_at_mut(latent_dim);
    rms_norm(isa, &kv[..latent_dim], norm.0, norm.1, latent);
    rotate(angles, &kv[latent_dim..], key);
    let heads = query.chunks_exact(nope_dim + rope_dim).zip(queries.chunks_exact_mut(latent_dim + rope_dim));
    for (query, out) in heads {
        rotate(angles, &query[nope_dim..], &mut out[latent_dim..]);
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

/// One token's heads, some at a time, over the cache `[block][token in block][latent | rotated]`. `heads` is
/// `[some heads][latent | rotated]`, `out` `[some heads][latent]`.
pub(crate) fn attend_latent(
    isa: Isa,
    shape: &LatentShape,
    cache: &[f32],
    (block_table, block_size): (&[u32], usize),
    position: usize,
    heads: &[f32],
    scores: &mut [f32],
    out: &mut [f32],
) {
    let as_keys = AttentionShape {
        num_heads: shape.num_heads,
        num_kv_heads: 1,
        head_dim: shape.latent_dim + shape.rope_dim,
        rotary_dim: 0,
        scale: shape.scale,
        softcap: None,
        sliding_window: None,
        alibi: false,
    };
    let kv = PagedKv { cache, block_table, block_size, values: Values::InKeys(shape.latent_dim) };
    attend(isa, &as_keys, kv, Queries { kv_head: 0, position, heads, sinks: &[] }, scores, out);
}

#[cfg(test)]
mod tests;
