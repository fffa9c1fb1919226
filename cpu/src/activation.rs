//! The MLP's non-linearities, of one projection or of a gate that is multiplied with another.

use quire_model::Activation;

use crate::lanes::{Isa, LANES, Lanes, dispatch, exp, padded};

/// One row of `out = activation(x)`, or of `out = activation(x) * up`.
pub(crate) fn activate_row(isa: Isa, activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    dispatch!(isa, activate_kernel;
        activation: Activation = activation,
        x: &[f32] = x,
        up: Option<&[f32]> = up,
        out: &mut [f32] = out,
    );
}

#[inline(always)]
fn activate_kernel<V: Lanes>(activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    match activation {
        Activation::Silu => map::<V>(x, up, out, silu),
        Activation::Gelu => map::<V>(x, up, out, gelu),
        Activation::GeluTanh => map::<V>(x, up, out, gelu_tanh),
    }
}

#[inline(always)]
fn map<V: Lanes>(x: &[f32], up: Option<&[f32]>, out: &mut [f32], f: impl Fn(V) -> V) {
    let (groups, tail) = x.as_chunks::<LANES>();
    let (outs, out_tail) = out.as_chunks_mut::<LANES>();
    let ups = up.map(|up| up.as_chunks::<LANES>());
    for (index, (x, out)) in groups.iter().zip(outs).enumerate() {
        let activated = f(V::load(x));
        ups.map_or(activated, |(ups, _)| activated.mul(V::load(&ups[index]))).store(out);
    }
    if !tail.is_empty() {
        let activated = f(V::load(&padded(tail)));
        let mut last = [0.0; LANES];
        ups.map_or(activated, |(_, up_tail)| activated.mul(V::load(&padded(up_tail)))).store(&mut last);
        out_tail.copy_from_slice(&last[..tail.len()]);
    }
}

#[inline(always)]
fn silu<V: Lanes>(x: V) -> V {
    x.div(V::splat(1.0).add(exp(V::splat(0.0).sub(x))))
}

#[inline(always)]
fn gelu<V: Lanes>(x: V) -> V {
    let half = x.mul(V::splat(0.5));
    half.mul(erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)))).add(half)
}

/// `(1 + tanh(u)) / 2` is the logistic function of `2 u`, which loses no digits where `u` is small.
#[inline(always)]
fn gelu_tanh<V: Lanes>(x: V) -> V {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769_2;
    let cubic = x.mul(x).mul(V::splat(0.044_715)).mul_add(x, x);
    let exponent = cubic.mul(V::splat(-TWICE_SQRT_2_OVER_PI));
    x.div(V::splat(1.0).add(exp(exponent)))
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
            activate_row(isa, Activation::Gelu, &x, None, &mut out);
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

    /// Against the definitions in f64, with a gate and without, at lengths around those of a vector.
    #[test]
    fn silu_and_the_approximation_of_gelu_are_what_they_are_defined_as() {
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let gelu_tanh = |x: f64| {
            x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) / 2.0
        };
        for (activation, exact) in
            [(Activation::Silu, silu as fn(f64) -> f64), (Activation::GeluTanh, gelu_tanh as fn(f64) -> f64)]
        {
            for width in [1, 15, 16, 701] {
                let gate: Vec<f32> = (0..width).map(|i| (i as f32 * 37.0) % 29.0 - 14.5).collect();
                let up: Vec<f32> = (0..width).map(|i| (i as f32 * 11.0) % 3.0 - 1.0).collect();
                let mut bits = Vec::new();
                for isa in Isa::available() {
                    let (mut plain, mut gated) = (vec![0.0; width], vec![0.0; width]);
                    activate_row(isa, activation, &gate, None, &mut plain);
                    activate_row(isa, activation, &gate, Some(&up), &mut gated);
                    for index in 0..width {
                        let exact = exact(f64::from(gate[index]));
                        let bound = 4e-7 * exact.abs() + 1e-9;
                        assert!(
                            (f64::from(plain[index]) - exact).abs() < bound,
                            "{activation:?}({})",
                            gate[index]
                        );
                        assert_eq!(gated[index], plain[index] * up[index], "{activation:?}({})", gate[index]);
                    }
                    bits.push(plain.into_iter().map(f32::to_bits).collect::<Vec<_>>());
                }
                assert!(bits.windows(2).all(|pair| pair[0] == pair[1]), "instruction sets differ at {width}");
            }
        }
    }
}
