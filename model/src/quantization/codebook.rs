//! [`CodebookRows`]: half a byte a weight, an index into a table of sixteen numbers, with a scale for each block of
//! columns. NF4 and FP4 of bitsandbytes, MXFP4, NVFP4 and `--quantization nf4` all become this.

use std::ops::Range;
use std::sync::Arc;

use crate::quantization::integers::for_nibbles;
use crate::quantization::scales::{Scales, for_runs, select};

/// Weight `(row, column)` is `table[code] * scale`, of the column's block in that row.
#[derive(Debug, Clone, PartialEq)]
pub struct CodebookRows {
    pub(super) columns: usize,
    /// Row after row; a row begins on a byte, and the low bits of a byte hold the even column's code.
    pub(super) codes: Vec<u8>,
    pub(super) table: Codebook,
    /// Columns that share a scale.
    pub(super) block: usize,
    /// `[rows][columns.div_ceil(block)]`.
    pub(super) scales: Scales,
}

/// Sixteen numbers, kept as what each byte means: one load for two weights.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Codebook(Arc<[[f32; 2]; 256]>);

impl Codebook {
    pub(super) fn new(values: &[f32; 16]) -> Self {
        Self(Arc::new(std::array::from_fn(|byte| [values[byte & 15], values[byte >> 4]])))
    }
}

/// The two signs' eight magnitudes of a float of one bit of fraction and two of exponent (OCP's E2M1).
pub(super) const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

impl CodebookRows {
    /// Of blocks that run on over the ends of rows: `scales` are those of each `block` weights of all rows together.
    pub(super) fn in_stream(
        columns: usize,
        codes: Vec<u8>,
        table: Codebook,
        block: usize,
        scales: &[f32],
    ) -> Self {
        let rows = codes.len() / columns.div_ceil(2).max(1);
        // The widest run that never crosses a row or a block: the block, where it divides the row.
        let run = greatest_common_divisor(columns, block);
        let scale = |index: usize| scales[index * run / block];
        let scales = Scales::F32((0..rows * columns / run).map(scale).collect());
        Self { columns, codes, table, block: run, scales }
    }

    pub(super) fn rows(&self) -> usize {
        self.codes.len() / self.columns.div_ceil(2).max(1)
    }

    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + self.scales.bytes()
    }

    pub(super) fn select_rows(&self, rows: &[usize]) -> Self {
        Self {
            codes: select(&self.codes, rows, self.columns.div_ceil(2)),
            scales: self.scales.select(rows, self.columns.div_ceil(self.block)),
            table: self.table.clone(),
            ..*self
        }
    }

    #[inline(always)]
    pub(super) fn decode_row(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let row_bytes = self.columns.div_ceil(2);
        let codes = &self.codes[row * row_bytes..(row + 1) * row_bytes];
        let first_block = row * self.columns.div_ceil(self.block);
        for_runs(columns, self.block, out, |block, columns, out| {
            for_nibbles(codes, columns, out, |low, high| self.table.0[usize::from(low | high << 4)]);
            let scale = self.scales.at(first_block + block);
            out.iter_mut().for_each(|out| *out *= scale);
        });
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a.max(1) } else { greatest_common_divisor(b, a % b) }
}
