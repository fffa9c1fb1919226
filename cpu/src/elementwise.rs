//! The operations whose rows have nothing to do with each other: norms, rotation, activations.

use quire_model::{AttentionShape, NormKind};

use crate::attention::soft_cap;
use crate::lanes::{Isa, LANES, Lanes, dispatch, exp, padded};

/// `out = x / sqrt(mean(x²) + eps) * weight`, one row.
pub(crate) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    dispatch!(isa, rms_norm_kernel; x: &[f32] = x, weight: &[f32] = weight, eps: f32 = eps, out: &mut [f32] = out);
}

/// Normalises each `width` numbers of `x`, with the first `width` of `weight` each time, or with the next ones if there
/// are that many. Nothing is added at the end.
pub(crate) fn norm_spans(isa: Isa, kind: NormKind, width: usize, x: &mut [f32], weight: &[f32], eps: f32) {
    dispatch!(isa, norm_spans_kernel;
        kind: NormKind = kind,
        width: usize = width,
        x: &mut [f32] = x,
        weight: &[f32] = weight,
        eps: f32 = eps,
    );
}

/// `row = (row - mean) / sqrt(variance + eps) * weight + bias`, one row.
pub(crate) fn layer_norm(isa: Isa, row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    dispatch!(isa, layer_norm_kernel; row: &mut [f32] = row, weight: &[f32] = weight, bias: &[f32] = bias, eps: f32 = eps);
}

/// `x = cap(factor * x)`, where `cap(x)` is `c * tanh(x / c)` if there is a `c`.
pub(crate) fn scale(isa: Isa, factor: f32, softcap: Option<f32>, x: &mut [f32]) {
    dispatch!(isa, scale_kernel; factor: f32 = factor, softcap: Option<f32> = softcap, x: &mut [f32] = x);
}

/// `x *= sigmoid(gate)`, one row.
pub(crate) fn gate_row(isa: Isa, gate: f32, x: &mut [f32]) {
    dispatch!(isa, gate_row_kernel; gate: f32 = gate, x: &mut [f32] = x);
}

/// Rotates the first numbers of the query and key heads of one token. `angles` is its row of the table: cosines, then
/// sines.
pub(crate) fn rotate(shape: &AttentionShape, angles: &[f32], qkv: &mut [f32]) {
    let (cos, sin) = angles.split_at(shape.rotary_dim / 2);
    let rotated = (shape.num_heads + shape.num_kv_heads) * shape.head_dim;
    for head in qkv[..rotated].chunks_exact_mut(shape.head_dim) {
        let (low, high) = head[..shape.rotary_dim].split_at_mut(shape.rotary_dim / 2);
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
fn norm_spans_kernel<V: Lanes>(kind: NormKind, width: usize, x: &mut [f32], weight: &[f32], eps: f32) {
    for (span, weight) in x.chunks_exact_mut(width).zip(weight.chunks_exact(width).cycle()) {
        let (mean, scale) = match kind {
            NormKind::Rms => (0.0, inverse_rms::<V>(span, eps)),
            NormKind::Layer => mean_and_inverse_deviation::<V>(span, eps),
        };
        for (x, weight) in span.iter_mut().zip(weight) {
            *x = (*x - mean) * scale * weight;
        }
    }
}

#[inline(always)]
fn scale_kernel<V: Lanes>(factor: f32, softcap: Option<f32>, x: &mut [f32]) {
    let scaled = |x: V| match softcap {
        None => x.mul(V::splat(factor)),
        Some(cap) => soft_cap(x.mul(V::splat(factor)), V::splat(cap)),
    };
    let (groups, tail) = x.as_chunks_mut::<LANES>();
    groups.iter_mut().for_each(|group| scaled(V::load(group)).store(group));
    if !tail.is_empty() {
        let mut last = [0.0; LANES];
        scaled(V::load(&padded(tail))).store(&mut last);
        tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[inline(always)]
fn gate_row_kernel<V: Lanes>(gate: f32, x: &mut [f32]) {
    let one = V::splat(1.0);
    let mut factor = [0.0; LANES];
    one.div(one.add(exp(V::splat(-gate)))).store(&mut factor);
    x.iter_mut().for_each(|x| *x *= factor[0]);
}

/// The sum of `f(x)` over a row.
#[inline(always)]
fn sum_of<V: Lanes>(row: &[f32], f: impl Fn(V) -> V) -> f32 {
    let (groups, tail) = row.as_chunks::<LANES>();
    let mut sum = V::splat(0.0);
    for group in groups {
        sum = sum.add(f(V::load(group)));
    }
    let tail = tail.iter().map(|x| {
        // Alone in all lanes, for the places that fill up a group would have to stay out of the sum.
        let mut lanes = [0.0; LANES];
        f(V::splat(*x)).store(&mut lanes);
        lanes[0]
    });
    tail.fold(sum.sum(), |sum, x| sum + x)
}

#[inline(always)]
fn mean_and_inverse_deviation<V: Lanes>(row: &[f32], eps: f32) -> (f32, f32) {
    let count = row.len() as f32;
    let mean = sum_of::<V>(row, |x| x) / count;
    let centre = V::splat(mean);
    let variance = sum_of::<V>(row, |x| x.sub(centre).mul(x.sub(centre))) / count;
    (mean, 1.0 / (variance + eps).sqrt())
}

#[inline(always)]
fn layer_norm_kernel<V: Lanes>(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let (mean, scale) = mean_and_inverse_deviation::<V>(row, eps);
    for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * weight + bias;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_has_mean_and_variance_of_its_parameters() {
        for width in [1, 15, 16, 37] {
            let row: Vec<f32> = (0..width).map(|i| ((i * i) % 11) as f32 - 3.0).collect();
            let (weight, bias) = (vec![2.0; width], vec![0.5; width]);
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
            let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
            let mut bits = Vec::new();
            for isa in Isa::available() {
                let mut found = row.clone();
                layer_norm(isa, &mut found, &weight, &bias, 1e-5);
                for (x, found) in row.iter().zip(&found) {
                    let exact = (f64::from(*x) - mean) / (variance + 1e-5).sqrt() * 2.0 + 0.5;
                    assert!((f64::from(*found) - exact).abs() < 1e-5, "{isa:?}, width {width}");
                }
                bits.push(found.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            }
            assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "instruction sets differ at {width}");
        }
    }
}
