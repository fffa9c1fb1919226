//! [`RoundedRows`]: activations as integers of 8 bits with a scale for each block of 32, made anew for each product.
//!
//! A scale for each block and not one for each row, because single activations of large models are hundreds of times
//! the others of their row, which would all become 0.

use super::pack::{BLOCK, blocks_of};
use crate::lanes::{Isa, Lanes, dispatch};
use crate::shared::SharedSlice;

/// Activations of 4 columns in an `i32`.
pub(super) const QUADS: usize = BLOCK / 4;

/// Memory for some rows.
#[derive(Default)]
pub(crate) struct RoundedRows {
    /// `[row][block][QUADS]`: four `i8` each, in the order of memory.
    quads: Vec<i32>,
    /// `[row][block]`.
    scales: Vec<f32>,
    /// `[row][block]`: the sum of a block's integers.
    sums: Vec<i32>,
}

/// Rows of one product.
#[derive(Clone, Copy)]
pub(super) struct Activations<'a> {
    pub(super) rows: usize,
    pub(super) blocks: usize,
    quads: &'a [i32],
    scales: &'a [f32],
    sums: &'a [i32],
}

/// One row of them.
#[derive(Clone, Copy)]
pub(super) struct ActivationRow<'a> {
    pub(super) quads: &'a [[i32; QUADS]],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [i32],
}

impl<'a> Activations<'a> {
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> ActivationRow<'a> {
        let blocks = row * self.blocks..(row + 1) * self.blocks;
        ActivationRow {
            quads: &self.quads.as_chunks().0[blocks.clone()],
            scales: &self.scales[blocks.clone()],
            sums: &self.sums[blocks],
        }
    }
}

impl RoundedRows {
    /// Makes room for that many rows of that many columns.
    pub(super) fn reserve(&mut self, rows: usize, columns: usize) {
        let blocks = rows * blocks_of(columns);
        if self.scales.len() < blocks {
            self.quads.resize(blocks * QUADS, 0);
            self.scales.resize(blocks, 0.0);
            self.sums.resize(blocks, 0);
        }
    }

    /// For rounding rows of `columns` on several threads; there is room for `rows` of them.
    pub(super) fn share(&mut self, rows: usize, columns: usize) -> SharedRows<'_> {
        let blocks = blocks_of(columns);
        SharedRows {
            blocks,
            columns,
            quads: SharedSlice::new(&mut self.quads[..rows * blocks * QUADS]),
            scales: SharedSlice::new(&mut self.scales[..rows * blocks]),
            sums: SharedSlice::new(&mut self.sums[..rows * blocks]),
        }
    }

    /// What was rounded.
    pub(super) fn rounded(&self, rows: usize, columns: usize) -> Activations<'_> {
        let blocks = blocks_of(columns);
        let Self { quads, scales, sums } = self;
        Activations { rows, blocks, quads, scales, sums }
    }
}

/// The memory while it is written.
pub(super) struct SharedRows<'a> {
    blocks: usize,
    columns: usize,
    quads: SharedSlice<'a, i32>,
    scales: SharedSlice<'a, f32>,
    sums: SharedSlice<'a, i32>,
}

impl SharedRows<'_> {
    /// Rounds one row.
    ///
    /// # Safety
    /// Each row at most once at a time.
    #[allow(unsafe_code)]
    pub(super) unsafe fn round(&self, isa: Isa, row: usize, x: &[f32]) {
        let first = row * self.blocks;
        // SAFETY: rows do not overlap, and the caller has each only once.
        let (quads, scales, sums) = unsafe {
            (
                self.quads.part(first * QUADS, self.blocks * QUADS),
                self.scales.part(first, self.blocks),
                self.sums.part(first, self.blocks),
            )
        };
        let x = &x[..self.columns];
        dispatch!(isa, round_row; x: &[f32] = x, quads: &mut [i32] = quads, scales: &mut [f32] = scales,
            sums: &mut [i32] = sums);
    }
}

/// Generic only to be compiled for each instruction set: the compiler makes wide loops of it.
#[inline(always)]
fn round_row<V: Lanes>(x: &[f32], quads: &mut [i32], scales: &mut [f32], sums: &mut [i32]) {
    let (blocks, tail) = x.as_chunks::<BLOCK>();
    let mut padded = [0.0; BLOCK];
    padded[..tail.len()].copy_from_slice(tail);
    let blocks = blocks.iter().chain((!tail.is_empty()).then_some(&padded));
    let places = quads.as_chunks_mut::<QUADS>().0.iter_mut().zip(scales).zip(sums);
    for (x, ((quads, scale), sum)) in blocks.zip(places) {
        (*scale, *sum) = round_block(x, quads);
    }
}

/// Gives the scale and the sum. What is not finite makes the scale not finite, and with it the product.
#[inline(always)]
fn round_block(x: &[f32; BLOCK], quads: &mut [i32; QUADS]) -> (f32, i32) {
    // As integers, magnitudes have the same order, and what is not a number is greater than all numbers.
    let greatest = x.iter().fold(0, |greatest: u32, x| greatest.max(x.to_bits() & 0x7fff_ffff));
    let greatest = f32::from_bits(greatest);
    // Below that the quotient would overflow, and nothing of such activations matters.
    let (scale, factor) =
        if greatest < LEAST_MAGNITUDE { (0.0, 0.0) } else { (greatest / 127.0, 127.0 / greatest) };
    let mut codes = [0i8; BLOCK];
    let mut sum = 0;
    for (code, x) in codes.iter_mut().zip(x) {
        // Adding 1.5 * 2^23 rounds to an integer, which then stands in the low bits.
        *code = (x * factor + 12_582_912.0).to_bits() as u8 as i8;
        sum += i32::from(*code);
    }
    for (quad, codes) in quads.iter_mut().zip(codes.as_chunks::<4>().0) {
        *quad = i32::from_ne_bytes(codes.map(|code| code as u8));
    }
    (scale, sum)
}

/// Blocks of nothing greater are taken for 0.
const LEAST_MAGNITUDE: f32 = 1e-30;
