//! The operations whose rows have nothing to do with each other: norms, rotation, activations.

use quire_model::AttentionShape;

use crate::attention::soft_cap;
use crate::lanes::{Isa, LANES, Lanes, dispatch, exp, padded};

/// `out = x / sqrt(mean(x²) + eps) * weight`, one row.
pub(crate) fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    dispatch!(isa, rms_norm_kernel; x: &[f32] = x, weight: &[f32] = weight, eps: f32 = eps, out: &mut [f32] = out);
}

/// `x = x / sqrt(mean(x²) + eps) * weight` for each head in `heads`, which are `weight.len()` wide.
pub(crate) fn head_norm(isa: Isa, heads: &mut [f32], weight: &[f32], eps: f32) {
    dispatch!(isa, head_norm_kernel; heads: &mut [f32] = heads, weight: &[f32] = weight, eps: f32 = eps);
}

/// `row = (row - mean) / sqrt(variance + eps) * weight + bias`, one row.
pub(crate) fn layer_norm(isa: Isa, row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    dispatch!(isa, layer_norm_kernel; row: &mut [f32] = row, weight: &[f32] = weight, bias: &[f32] = bias, eps: f32 = eps);
}

/// `out = x * (1 + erf(x / sqrt 2)) / 2`, one row.
pub(crate) fn gelu(isa: Isa, x: &[f32], out: &mut [f32]) {
    dispatch!(isa, gelu_kernel; x: &[f32] = x, out: &mut [f32] = out);
}

/// `out = silu(gate) * up`, one row of `[gate | up]`.
pub(crate) fn silu_mul(isa: Isa, gate_up: &[f32], out: &mut [f32]) {
    let (gate, up) = gate_up.split_at(out.len());
    dispatch!(isa, silu_mul_kernel; gate: &[f32] = gate, up: &[f32] = up, out: &mut [f32] = out);
}

/// `x = cap(factor * x)`, where `cap(x)` is `c * tanh(x / c)` if there is a `c`.
pub(crate) fn scale(isa: Isa, factor: f32, softcap: Option<f32>, x: &mut [f32]) {
    dispatch!(isa, scale_kernel; factor: f32 = factor, softcap: Option<f32> = softcap, x: &mut [f32] = x);
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
fn head_norm_kernel<V: Lanes>(heads: &mut [f32], weight: &[f32], eps: f32) {
    for head in heads.chunks_exact_mut(weight.len()) {
        let scale = inverse_rms::<V>(head, eps);
        for (x, weight) in head.iter_mut().zip(weight) {
            *x = *x * scale * weight;
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
fn layer_norm_kernel<V: Lanes>(row: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let count = row.len() as f32;
    let mean = sum_of::<V>(row, |x| x) / count;
    let centre = V::splat(mean);
    let variance = sum_of::<V>(row, |x| x.sub(centre).mul(x.sub(centre))) / count;
    let scale = 1.0 / (variance + eps).sqrt();
    for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * scale * weight + bias;
    }
}

#[inline(always)]
fn gelu_kernel<V: Lanes>(x: &[f32], out: &mut [f32]) {
    let (groups, tail) = x.as_chunks::<LANES>();
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    for (x, out) in groups.iter().zip(outs) {
        gelu_lanes(V::load(x)).store(out);
    }
    if !tail.is_empty() {
        let mut last = [0.0; LANES];
        gelu_lanes(V::load(&padded(tail))).store(&mut last);
        out_tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[inline(always)]
fn gelu_lanes<V: Lanes>(x: V) -> V {
    let half = x.mul(V::splat(0.5));
    half.mul(erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)))).add(half)
}

/// The error function to 3e-7: `x * p(x²) / q(x²)` within ±4 and constant beyond, where it is 1 to that
/// accuracy. The polynomials are those of Eigen's and XLA's `erf` for float32.
#[inline(always)]
fn erf<V: Lanes>(x: V) -> V {
    // In this order of operands, what is not a number stays so.
    let x = V::splat(4.0).min(V::splat(-4.0).max(x));
    let square = x.mul(x);
    let polynomial = |coefficients: &[f32]| {
        coefficients.iter().fold(V::splat(0.0), |sum, c| sum.mul_add(square, V::splat(*c)))
    };
    let numerator = polynomial(&[
        -2.726_142_3e-10,
        2.770_681_5e-8,
        -2.101_024_1e-6,
        -5.692_506_4e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ]);
    let denominator =
        polynomial(&[-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827e-3, -7.373_329_2e-3, -1.426_473_9e-2]);
    x.mul(numerator).div(denominator)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Taylor series in f64: terms below e^16 leave more digits than are needed.
    fn exact_erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn gelu_is_that_of_the_error_function() {
        let x: Vec<f32> = (-700..=700).map(|i| i as f32 / 100.0).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; x.len()];
            gelu(isa, &x, &mut out);
            for (x, found) in x.iter().zip(&out) {
                let x = f64::from(*x);
                // The series does not reach further out, and there the function is 1 to 1e-9.
                let erf = if x.abs() < 5.5 { exact_erf(x / std::f64::consts::SQRT_2) } else { x.signum() };
                let exact = x * (1.0 + erf) / 2.0;
                // What the error function is off by, and rounding.
                let bound = 3e-7 * (x.abs() / 2.0) + 2e-7;
                assert!(
                    (f64::from(*found) - exact).abs() < bound,
                    "{isa:?}: gelu({x}) = {found}, not {exact}"
                );
            }
        }
    }

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
