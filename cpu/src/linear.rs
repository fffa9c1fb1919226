//! `linear`: activations times a weight matrix, `out[rows][n] = x[rows][k] · w[n][k]ᵀ + bias[n]`.
//!
//! Each element of the result is one sum of sixteen lanes over k, in order, closed by one tree. Tiles only
//! decide which of these sums are under way at the same time, so that the bits do not depend on how many
//! rows there are.
//!
//! Packed weights are read from memory packed. Each thread makes some rows of them f32 in a scratch that its
//! cache holds, and multiplies by these as by any others: the bits are those of the dequantised matrix.

use std::ops::Range;

use quire_model::PackedMatrix;

use crate::integer::{self, RoundedRows};
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

/// Where each thread unpacks weights, and activations are rounded. Grown when weights are loaded, never while
/// products are computed.
#[derive(Default)]
pub(crate) struct UnpackScratch {
    weights: Vec<Vec<f32>>,
    /// Of a whole operation.
    rounded: RoundedRows,
    /// Of one thread's part.
    own_rounded: Vec<RoundedRows>,
}

/// The same while products are computed.
#[derive(Clone, Copy)]
pub(crate) struct Unpacked<'a> {
    weights: SharedSlice<'a, Vec<f32>>,
    rounded: SharedSlice<'a, RoundedRows>,
}

impl UnpackScratch {
    /// Makes room for products by that weight, for each thread.
    pub(crate) fn reserve(&mut self, weight: &CpuWeight, num_threads: usize) {
        if let WeightData::Packed(_) = &weight.data {
            let weights = &mut self.weights;
            let len =
                (unpacked_rows(weight.columns) * weight.columns).max(weights.first().map_or(0, Vec::len));
            weights.resize(num_threads, Vec::new());
            weights.iter_mut().for_each(|scratch| scratch.resize(len, 0.0));
        }
        if let WeightData::Integer(matrix) = &weight.data {
            self.own_rounded.resize_with(num_threads, RoundedRows::default);
            integer::reserve(&mut self.rounded, &mut self.own_rounded, matrix);
        }
    }

    /// For one operation.
    pub(crate) fn share(&mut self) -> Unpacked<'_> {
        Unpacked {
            weights: SharedSlice::new(&mut self.weights),
            rounded: SharedSlice::new(&mut self.own_rounded),
        }
    }
}

/// `x` is `[rows][weight.columns]`, `out` `[rows][weight.rows]`; `scratch` has room for `weight`.
pub(crate) fn linear(
    pool: &mut Pool,
    scratch: &mut UnpackScratch,
    isa: Isa,
    rows: usize,
    x: &[f32],
    (weight, bias): (&CpuWeight, Option<&[f32]>),
    out: &mut [f32],
) {
    let (n, k) = (weight.rows, weight.columns);
    if let WeightData::Integer(matrix) = &weight.data {
        let (x, out) = (&x[..rows * k], &mut out[..rows * n]);
        return integer::linear(pool, &mut scratch.rounded, isa, x, (matrix, bias), out);
    }
    let (x, out) = (&x[..rows * k], SharedSlice::new(&mut out[..rows * n]));
    let wanted = num_chunks(pool, rows * n * k);
    let (chunk_columns, unpacked) = (chunk_columns(n, wanted), scratch.share());
    pool.run(n.div_ceil(chunk_columns), &|worker, chunk| {
        let columns = chunk * chunk_columns..n.min((chunk + 1) * chunk_columns);
        let out_at = columns.start;
        let part = Product { rows, x, x_stride: k, bias, columns, out, out_at, out_stride: n };
        product(isa, worker, unpacked, weight, part);
    });
}

/// The product with a matrix of f32 that is no weight of the model: `weight` is `[n][k]`, `x` `[rows][k]`, `out`
/// `[rows][n]`.
pub(crate) fn linear_f32(pool: &mut Pool, isa: Isa, x: &[f32], k: usize, weight: &[f32], out: &mut [f32]) {
    let (rows, n) = (x.len() / k, weight.len() / k);
    let out = SharedSlice::new(&mut out[..rows * n]);
    let chunk_columns = chunk_columns(n, num_chunks(pool, rows * n * k));
    pool.run(n.div_ceil(chunk_columns), &|_, chunk| {
        let columns = chunk * chunk_columns..n.min((chunk + 1) * chunk_columns);
        let first_column = columns.start;
        let (out_at, out_stride) = (first_column, n);
        let product = Product { rows, x, x_stride: k, bias: None, columns, out, out_at, out_stride };
        run(isa, Args { k, first_column, product }, weight);
    });
}

/// Into how many chunks to cut so many products of two numbers.
pub(crate) fn num_chunks(pool: &Pool, num_products: usize) -> usize {
    (num_products / MIN_PRODUCTS_PER_CHUNK).clamp(1, pool.num_threads() * CHUNKS_PER_THREAD)
}

/// Columns in each of about `wanted` chunks of `n`; no chunk but the last has narrow tiles.
pub(crate) fn chunk_columns(n: usize, wanted: usize) -> usize {
    n.div_ceil(wanted).next_multiple_of(8)
}

/// Some columns of one product, as one thread computes them.
pub(crate) struct Product<'a> {
    pub(crate) rows: usize,
    /// Begins at the first row.
    pub(crate) x: &'a [f32],
    /// From one row of `x` to the next.
    pub(crate) x_stride: usize,
    /// `[weight.rows]`.
    pub(crate) bias: Option<&'a [f32]>,
    /// Rows of the weight.
    pub(crate) columns: Range<usize>,
    pub(crate) out: SharedSlice<'a, f32>,
    /// Where in `out` the first of `columns` of the first row goes. Nobody else may write what this writes.
    pub(crate) out_at: usize,
    /// From one row of `out` to the next.
    pub(crate) out_stride: usize,
}

/// Computes it on this thread, which is that worker of the pool and of those that `unpacked` is for.
pub(crate) fn product(
    isa: Isa,
    worker: usize,
    unpacked: Unpacked<'_>,
    weight: &CpuWeight,
    product: Product<'_>,
) {
    let args = Args { k: weight.columns, first_column: product.columns.start, product };
    match &weight.data {
        WeightData::F32(w) => run(isa, args, w),
        WeightData::Bf16(w) => run(isa, args, w),
        WeightData::F16(w) => run(isa, args, w),
        WeightData::Packed(w) => {
            // SAFETY: no two threads are the same worker at the same time.
            #[allow(unsafe_code)]
            let scratch = unsafe { &mut unpacked.weights.part(worker, 1)[0] };
            dispatch!(isa, packed_kernel; args: &Args<'_> = &args, weight: &PackedMatrix = w,
                scratch: &mut [f32] = scratch);
        }
        WeightData::Integer(w) => {
            // SAFETY: as above.
            #[allow(unsafe_code)]
            let scratch = unsafe { &mut unpacked.rounded.part(worker, 1)[0] };
            integer::product(isa, scratch, w, args.product);
        }
    }
}

struct Args<'a> {
    k: usize,
    first_column: usize,
    product: Product<'a>,
}

fn run<W: Element>(isa: Isa, args: Args<'_>, weight: &[W]) {
    dispatch!(isa, columns_kernel, [W: Element] as [W]; args: &Args<'_> = &args, weight: &[W] = weight);
}

#[inline(always)]
fn columns_kernel<V: Lanes, W: Element>(args: &Args<'_>, weight: &[W]) {
    let block = block_rows(args.k * size_of::<W>());
    for start in args.product.columns.clone().step_by(block) {
        let columns = start..args.product.columns.end.min(start + block);
        let weight = &weight[columns.start * args.k..columns.end * args.k];
        block_kernel::<V, W>(args, weight, &columns);
    }
}

#[inline(always)]
fn packed_kernel<V: Lanes>(args: &Args<'_>, weight: &PackedMatrix, scratch: &mut [f32]) {
    let block = unpacked_rows(args.k);
    for start in args.product.columns.clone().step_by(block) {
        let columns = start..args.product.columns.end.min(start + block);
        let unpacked = &mut scratch[..columns.len() * args.k];
        for (row, out) in columns.clone().zip(unpacked.chunks_exact_mut(args.k.max(1))) {
            weight.decode_row(row, 0..args.k, out);
        }
        block_kernel::<V, f32>(args, unpacked, &columns);
    }
}

/// Weights of `row_bytes` that all rows of `x` pass over before the next are read.
#[inline(always)]
fn block_rows(row_bytes: usize) -> usize {
    (WEIGHT_BLOCK_BYTES / row_bytes.max(1)).max(1).next_multiple_of(8)
}

/// Rows of a packed weight that are unpacked before they are multiplied by.
#[inline(always)]
fn unpacked_rows(columns: usize) -> usize {
    block_rows(columns * size_of::<f32>())
}

/// All rows of `x` times the rows of `weight`, which are those of `columns`.
#[inline(always)]
fn block_kernel<V: Lanes, W: Element>(args: &Args<'_>, weight: &[W], columns: &Range<usize>) {
    let mut row = 0;
    while row < args.product.rows {
        row += match args.product.rows - row {
            1 => rows_kernel::<V, W, 1, 8>(args, weight, row, columns),
            2 => rows_kernel::<V, W, 2, 8>(args, weight, row, columns),
            3 => rows_kernel::<V, W, 3, 4>(args, weight, row, columns),
            _ => rows_kernel::<V, W, 4, 4>(args, weight, row, columns),
        };
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
        tile::<V, W, M, N>(args, &weight[(column - columns.start) * args.k..], row, column);
        column += N;
    }
    while column < columns.end {
        tile::<V, W, M, 1>(args, &weight[(column - columns.start) * args.k..], row, column);
        column += 1;
    }
    M
}

/// `weight` begins with the row of `column`.
#[inline(always)]
fn tile<V: Lanes, W: Element, const M: usize, const N: usize>(
    args: &Args<'_>,
    weight: &[W],
    row: usize,
    column: usize,
) {
    let Args { k, first_column, product } = args;
    let k = *k;
    let x: [_; M] = std::array::from_fn(|m| product.x[(row + m) * product.x_stride..][..k].as_chunks());
    let w: [_; N] = std::array::from_fn(|n| weight[n * k..][..k].as_chunks::<LANES>());
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
    let out_at = product.out_at + column - first_column;
    for (m, sums) in sums.iter().enumerate() {
        // SAFETY: as `Product::out_at` asks, these are written by this call alone.
        #[allow(unsafe_code)]
        let out = unsafe { product.out.part((row + m) * product.out_stride + out_at, N) };
        for (n, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
            *out = sum.sum() + product.bias.map_or(0.0, |bias| bias[column + n]);
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
