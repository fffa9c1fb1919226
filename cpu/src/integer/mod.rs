//! Products of integers: weights of 8 bits or fewer as they are stored, activations rounded to 8 bits
//! (`--activation-dtype int8`). What is lost is the rounding of activations, half of a 127th of the greatest of 32;
//! the products themselves are exact.

mod activations;
mod dots;
mod kernel;
mod pack;

pub(crate) use activations::RoundedRows;
use kernel::{Target, multiply};
pub(crate) use pack::IntegerMatrix;
use pack::PANEL;

use crate::lanes::Isa;
use crate::linear::{Product, num_chunks};
use crate::pool::Pool;
use crate::shared::SharedSlice;

/// Rows of `x` that are rounded before they are multiplied: more are computed in several passes over the weight.
const PASS_ROWS: usize = 256;

/// Rows that one thread rounds for itself.
const OWN_ROWS: usize = 32;

/// An operation on integers is so much faster than one on f32 that fewer threads are worth it.
const WORK_RATIO: usize = 4;

/// Rows of `x` below which one thread rounds them all.
const MIN_ROUNDED_PER_CHUNK: usize = 32_768;

/// Makes room for passes by a matrix.
pub(crate) fn reserve(shared: &mut RoundedRows, own: &mut [RoundedRows], matrix: &IntegerMatrix) {
    shared.reserve(PASS_ROWS, matrix.columns());
    own.iter_mut().for_each(|own| own.reserve(OWN_ROWS, matrix.columns()));
}

/// `out[rows][weight.rows] = x[rows][weight.columns] * weight + bias`; there is room in `scratch` for passes by it.
pub(crate) fn linear(
    pool: &mut Pool,
    scratch: &mut RoundedRows,
    isa: Isa,
    x: &[f32],
    (weight, bias): (&IntegerMatrix, Option<&[f32]>),
    out: &mut [f32],
) {
    let (n, k) = (weight.rows(), weight.columns());
    for (x, out) in x.chunks(PASS_ROWS * k).zip(out.chunks_mut(PASS_ROWS * n)) {
        let rows = x.len() / k;
        let shared = scratch.share(rows, k);
        let rows_per_chunk = MIN_ROUNDED_PER_CHUNK.div_ceil(k);
        pool.run(rows.div_ceil(rows_per_chunk), &|_, chunk| {
            for row in chunk * rows_per_chunk..rows.min((chunk + 1) * rows_per_chunk) {
                // SAFETY: each row is rounded once.
                #[allow(unsafe_code)]
                unsafe {
                    shared.round(isa, row, &x[row * k..]);
                }
            }
        });
        let (x, out) = (scratch.rounded(rows, k), SharedSlice::new(out));
        let wanted = num_chunks(pool, rows * n * k / WORK_RATIO);
        let chunk_columns = n.div_ceil(wanted).next_multiple_of(4 * PANEL);
        pool.run(n.div_ceil(chunk_columns), &|_, chunk| {
            let columns = chunk * chunk_columns..n.min((chunk + 1) * chunk_columns);
            let to = Target { bias, out, out_at: columns.start, out_stride: n };
            multiply(isa, x, weight, columns, to);
        });
    }
}

/// Some columns of a product on this thread, which rounds the rows by itself. Nobody else uses `scratch`.
pub(crate) fn product(isa: Isa, scratch: &mut RoundedRows, weight: &IntegerMatrix, product: Product<'_>) {
    let Product { rows, x, x_stride, bias, columns, out, out_at, out_stride } = product;
    let k = weight.columns();
    for first in (0..rows).step_by(OWN_ROWS) {
        let count = OWN_ROWS.min(rows - first);
        let shared = scratch.share(count, k);
        for row in 0..count {
            // SAFETY: each row is rounded once.
            #[allow(unsafe_code)]
            unsafe {
                shared.round(isa, row, &x[(first + row) * x_stride..]);
            }
        }
        let to = Target { bias, out, out_at: out_at + first * out_stride, out_stride };
        multiply(isa, scratch.rounded(count, k), weight, columns.clone(), to);
    }
}
