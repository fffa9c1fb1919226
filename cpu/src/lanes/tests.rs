//! The implementations of [`Lanes`] against each other, and `exp` against the standard library's.

use std::array::from_fn;

use super::*;

type Sixteen = [f32; LANES];

/// Reproducible numbers of all magnitudes.
fn numbers(seed: u64) -> Sixteen {
    from_fn(|lane| {
        let bits = (seed * 16 + lane as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let value = f32::from_bits((bits >> 32) as u32);
        if value.is_nan() || value.abs() > 1e30 { (bits as u32 as f32 / 1e8) - 20.0 } else { value }
    })
}

fn operations_kernel<V: Lanes>(a: &Sixteen, b: &Sixteen, results: &mut Vec<Sixteen>) {
    let (x, y) = (V::load(a), V::load(b));
    let bf16s = a.map(bf16::from_f32);
    let f16s = b.map(f16::from_f32);
    let vectors = [
        x.add(y),
        x.sub(y),
        x.mul(y),
        x.div(y),
        x.max(y),
        x.min(y),
        x.mul_add(y, x),
        exp(x),
        x.zero_where_less(y, V::splat(0.5)),
        V::load_bf16(&bf16s),
        V::load_f16(&f16s),
        V::splat(a[3]).shift_into_exponent(),
        V::splat(x.sum()),
        V::splat(x.greatest()),
        V::fold_to_fours([x, y, x.mul(y), x.add(y)]),
        V::sum_fours([x, y, x.mul(y), x.add(y)]),
    ];
    for vector in vectors {
        let mut out = [0.0; LANES];
        vector.store(&mut out);
        results.push(out);
    }
}

fn operations(isa: Isa, a: &Sixteen, b: &Sixteen) -> Vec<[u32; LANES]> {
    let mut results = Vec::new();
    dispatch!(isa, operations_kernel; a: &Sixteen = a, b: &Sixteen = b, results: &mut Vec<Sixteen> = &mut results);
    // Which of several "not a number" comes out is nobody's business.
    results.iter().map(|row| row.map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() })).collect()
}

#[test]
fn instruction_sets_agree_bit_for_bit() {
    let isas = Isa::available();
    println!("compared: {isas:?}");
    let special = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 1e-40, 88.5, -87.4];
    for seed in 0..3_000 {
        let (mut a, mut b) = (numbers(seed), numbers(seed + 10_000));
        if seed % 3 == 0 {
            a[seed as usize % LANES] = special[seed as usize / 3 % special.len()];
            b[(seed as usize + 5) % LANES] = special[seed as usize / 7 % special.len()];
        }
        let expected = operations(Isa::Portable, &a, &b);
        for isa in &isas {
            for (index, (found, expected)) in operations(*isa, &a, &b).iter().zip(&expected).enumerate() {
                assert_eq!(found, expected, "{isa:?}, operation {index}, {a:?}, {b:?}");
            }
        }
    }
}

#[test]
fn sums_of_sixteen_at_once_are_those_of_each() {
    for seed in 0..300 {
        let vectors: [Portable; LANES] = from_fn(|i| Portable::load(&numbers(seed * 100 + i as u64)));
        let folded = from_fn(|j| Portable::fold_to_fours(from_fn(|i| vectors[4 * i + j])));
        let mut found = [0.0; LANES];
        Portable::sum_fours(folded).store(&mut found);
        assert_eq!(found.map(f32::to_bits), vectors.map(|vector| vector.sum().to_bits()), "seed {seed}");
    }
}

fn exp_of(values: &Sixteen) -> Sixteen {
    let mut out = [0.0; LANES];
    exp(Portable::load(values)).store(&mut out);
    out
}

#[test]
fn exp_is_close_and_keeps_what_is_not_finite() {
    let mut worst: f64 = 0.0;
    for step in -87_300..88_300 {
        let x = step as f32 * 1e-3;
        let exact = f64::from(x).exp();
        worst = worst.max((f64::from(exp_of(&[x; LANES])[0]) - exact).abs() / exact);
    }
    assert!(worst < 1.5 * f64::from(f32::EPSILON), "relative error {worst}");
    assert_eq!(exp_of(&[0.0; LANES])[0], 1.0);
    assert_eq!(exp_of(&[f32::NEG_INFINITY; LANES])[0], 0.0);
    assert_eq!(exp_of(&[-1000.0; LANES])[0], 0.0);
    assert!(exp_of(&[1000.0; LANES])[0].is_finite());
    assert!(exp_of(&[f32::NAN; LANES])[0].is_nan());
}
