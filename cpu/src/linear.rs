//! `linear`: activations times a weight matrix, `out[rows][n] = x[rows][k] · w[n][k]ᵀ + bias[n]`.
//!
//! Each element of the result is one sum of sixteen lanes over k, in order, closed by one tree. Tiles only
//! decide which of these sums are under way at the same time, so that the bits do not depend on how many
//! rows there are.

use std::ops::Range;

use crate::lanes::{Element, Isa, LANES, Lanes, dispatch, padded};
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::weight::{CpuWeight, WeightData};

/// Products of two numbers below which another thread costs more than it saves.
const MIN_PRODUCTS_PER_CHUNK: usize = 65_536;

/// Weights that all rows pass over before the next are read: what a core's second-level cache holds besides
/// some rows of `x`.
const WEIGHT_BLOCK_BYTES: usize = 256 << 10;

/// Chunks to hand out per thread, so that a late thread does not hold up the others.
const CHUNKS_PER_THREAD: usize = 4;

/// `x` is `[rows][weight.columns]`, `out` `[rows][weight.rows]`.
pub(crate) fn linear(
    pool: &mut Pool,
    isa: Isa,
    rows: usize,
    x: &[f32],
    weight: &CpuWeight,
    bias: Option<&[f32]>,
    out: &mut [f32],
) {
    let (n, k) = (weight.rows, weight.columns);
    let (x, out) = (&x[..rows * k], SharedSlice::new(&mut out[..rows * n]));
    let wanted = (rows * n * k / MIN_PRODUCTS_PER_CHUNK).clamp(1, pool.num_threads() * CHUNKS_PER_THREAD);
    // A multiple of the widest tile: no chunk but the last has narrow tiles.
    let chunk_columns = n.div_ceil(wanted).next_multiple_of(8);
    pool.run(n.div_ceil(chunk_columns), &|_, chunk| {
        let columns = chunk * chunk_columns..n.min((chunk + 1) * chunk_columns);
        let args = Args { rows, n, k, x, bias, columns, out };
        match &weight.data {
            WeightData::F32(w) => run(isa, args, w),
            WeightData::Bf16(w) => run(isa, args, w),
            WeightData::F16(w) => run(isa, args, w),
        }
    });
}

/// The product with a matrix of f32 that is no weight of the model: `weight` is `[n][k]`, `x` `[rows][k]`, `out`
/// `[rows][n]`.
pub(crate) fn linear_f32(
    pool: &mut Pool,
    isa: Isa,
    x: &[f32],
    k: usize,
    weight: &[f32],
    out: &mut [f32],
) {
    let (rows, n) = (x.len() / k, weight.len() / k);
    let out = SharedSlice::new(&mut out[..rows * n]);
    let wanted = (rows * n * k / MIN_PRODUCTS_PER_CHUNK).clamp(1, pool.num_threads() * CHUNKS_PER_THREAD);
    let chunk_columns = n.div_ceil(wanted).next_multiple_of(8);
    pool.run(n.div_ceil(chunk_columns), &|_, chunk| {
        let columns = chunk * chunk_columns..n.min((chunk + 1) * chunk_columns);
        run(isa, Args { rows, n, k, x, bias: None, columns, out }, weight);
    });
}

/// Some columns of one product.
struct Args<'a> {
    rows: usize,
    n: usize,
    k: usize,
    x: &'a [f32],
    bias: Option<&'a [f32]>,
    columns: Range<usize>,
    out: SharedSlice<'a, f32>,
}

fn run<W: Element>(isa: Isa, args: Args<'_>, weight: &[W]) {
    dispatch!(isa, columns_kernel, [W: Element] as [W]; args: &Args<'_> = &args, weight: &[W] = weight);
}

#[inline(always)]
fn columns_kernel<V: Lanes, W: Element>(args: &Args<'_>, weight: &[W]) {
    let column_bytes = args.k * size_of::<W>();
    let block = (WEIGHT_BLOCK_BYTES / column_bytes.max(1)).max(1).next_multiple_of(8);
    for start in args.columns.clone().step_by(block) {
        let columns = start..args.columns.end.min(start + block);
        let mut row = 0;
        while row < args.rows {
            row += match args.rows - row {
                1 => rows_kernel::<V, W, 1, 8>(args, weight, row, &columns),
                2 => rows_kernel::<V, W, 2, 8>(args, weight, row, &columns),
                3 => rows_kernel::<V, W, 3, 4>(args, weight, row, &columns),
                _ => rows_kernel::<V, W, 4, 4>(args, weight, row, &columns),
            };
        }
    }
}

/// `M` rows in tiles of `N` columns; gives `M`.
#[inline(always)]
fn rows_kernel<V: Lanes, W: Element, const M: usize, const N: usize>(
    args: &Args<'_>,
    weight: &[W],
    row: usize,
    columns: &Range<usize>,
) -> usize {
    let mut column = columns.start;
    while column + N <= columns.end {
        tile::<V, W, M, N>(args, weight, row, column);
        column += N;
    }
    while column < columns.end {
        tile::<V, W, M, 1>(args, weight, row, column);
        column += 1;
    }
    M
}

#[inline(always)]
fn tile<V: Lanes, W: Element, const M: usize, const N: usize>(
    args: &Args<'_>,
    weight: &[W],
    row: usize,
    column: usize,
) {
    let k = args.k;
    let x: [_; M] = std::array::from_fn(|m| args.x[(row + m) * k..][..k].as_chunks::<LANES>());
    let w: [_; N] = std::array::from_fn(|n| weight[(column + n) * k..][..k].as_chunks::<LANES>());
    let mut sums = [[V::splat(0.0); N]; M];
    for i in 0..k / LANES {
        // SAFETY: all rows have k elements, so k / LANES whole groups.
        #[allow(unsafe_code)]
        let (x, w): ([V; M], [&[W; LANES]; N]) = unsafe {
            (
                std::array::from_fn(|m| V::load(x[m].0.get_unchecked(i))),
                std::array::from_fn(|n| w[n].0.get_unchecked(i)),
            )
        };
        add_products::<V, W, M, N>(&mut sums, x, w);
    }
    if !k.is_multiple_of(LANES) {
        let w_tail: [_; N] = std::array::from_fn(|n| padded(w[n].1));
        let x_tail = std::array::from_fn(|m| V::load(&padded(x[m].1)));
        add_products::<V, W, M, N>(&mut sums, x_tail, w_tail.each_ref());
    }
    for (m, sums) in sums.iter().enumerate() {
        // SAFETY: chunks have disjoint columns, and this one is written by this call alone.
        #[allow(unsafe_code)]
        let out = unsafe { args.out.part((row + m) * args.n + column, N) };
        for (n, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
            *out = sum.sum() + args.bias.map_or(0.0, |bias| bias[column + n]);
        }
    }
}

#[inline(always)]
fn add_products<V: Lanes, W: Element, const M: usize, const N: usize>(
    sums: &mut [[V; N]; M],
    x: [V; M],
    w: [&[W; LANES]; N],
) {
    for n in 0..N {
        let w = W::load::<V>(w[n]);
        for m in 0..M {
            sums[m][n] = x[m].mul_add(w, sums[m][n]);
        }
    }
}
