//! The operations whose rows have nothing to do with each other: norms, rotation, activation.

use quire_model::AttentionShape;

use crate::lanes::{Isa, LANES, Lanes, dispatch, exp, padded};

/// `out = x / sqrt(mean(x²) + eps) * weight`, one row.
pub(crate) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    dispatch!(isa, rms_norm_kernel; x: &[f32] = x, weight: &[f32] = weight, eps: f32 = eps, out: &mut [f32] = out);
}

/// `x = x / sqrt(mean(x²) + eps) * weight` for each head in `heads`, which are `weight.len()` wide.
pub(crate) fn head_norm(isa: Isa, heads: &mut [f32], weight: &[f32], eps: f32) {
    dispatch!(isa, head_norm_kernel; heads: &mut [f32] = heads, weight: &[f32] = weight, eps: f32 = eps);
}

/// `out = silu(gate) * up`, one row.
pub(crate) fn silu_mul(isa: Isa, gate: &[f32], up: &[f32], out: &mut [f32]) {
    dispatch!(isa, silu_mul_kernel; gate: &[f32] = gate, up: &[f32] = up, out: &mut [f32] = out);
}

/// Rotates the query and key heads of one token. `angles` is its row of the table: cosines, then sines.
pub(crate) fn rotate(shape: &AttentionShape, angles: &[f32], qkv: &mut [f32]) {
    let (cos, sin) = angles.split_at(shape.head_dim / 2);
    let rotated = (shape.num_heads + shape.num_kv_heads) * shape.head_dim;
    for head in qkv[..rotated].chunks_exact_mut(shape.head_dim) {
        let (low, high) = head.split_at_mut(shape.head_dim / 2);
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

#[inline(always)]
fn inverse_rms<V: Lanes>(x: &[f32], eps: f32) -> f32 {
    let (groups, tail) = x.as_chunks::<LANES>();
    let mut sum = V::splat(0.0);
    for group in groups {
        let x = V::load(group);
        sum = x.mul_add(x, sum);
    }
    if !tail.is_empty() {
        let x = V::load(&padded(tail));
        sum = x.mul_add(x, sum);
    }
    1.0 / (sum.sum() / x.len() as f32 + eps).sqrt()
}

#[inline(always)]
fn rms_norm_kernel<V: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_rms::<V>(x, eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn head_norm_kernel<V: Lanes>(heads: &mut [f32], weight: &[f32], eps: f32) {
    for head in heads.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms::<V>(head, eps);
        for (x, weight) in head.iter_mut().zip(weight) {
            *x = *x * scale * weight;
        }
    }
}

#[inline(always)]
fn silu_mul_kernel<V: Lanes>(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let ((gates, gate_tail), (ups, up_tail)) = (gate.as_chunks::<LANES>(), up.as_chunks::<LANES>());
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
        silu_mul_lanes(V::load(gate), V::load(up)).store(out);
    }
    if !gate_tail.is_empty() {
        let mut last = [0.0; LANES];
        silu_mul_lanes(V::load(&padded(gate_tail)), V::load(&padded(up_tail))).store(&mut last);
        out_tail.copy_from_slice(&last[..gate_tail.len()]);
    }
}

#[inline(always)]
fn silu_mul_lanes<V: Lanes>(gate: V, up: V) -> V {
    let one = V::splat(1.0);
    gate.div(one.add(exp(V::splat(0.0).sub(gate)))).mul(up)
}
