//! [`Float8Rows`]: floats of 8 bits (e4m3) with a scale for each block of rows and columns, whatever the block:
//! the whole tensor, a row (channel), or a square of DeepSeek's.

use std::ops::Range;

use crate::quantization::scales::{Scales, for_runs, select};
use crate::quantization::small_float::e4m3;

/// Weight `(row, column)` is `e4m3 * scale`, of its block.
#[derive(Debug, Clone, PartialEq)]
pub struct Float8Rows {
    pub(super) columns: usize,
    /// Row after row.
    pub(super) codes: Vec<u8>,
    /// The row of `scales` for each row.
    pub(super) scale_rows: Vec<u32>,
    /// Columns that share a scale.
    pub(super) block: usize,
    /// `[rows of scales][columns.div_ceil(block)]`.
    pub(super) scales: Scales,
}

impl Float8Rows {
    pub(super) fn rows(&self) -> usize {
        self.scale_rows.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.scale_rows.len() + self.scales.bytes()
    }

    pub(super) fn select_rows(&self, rows: &[usize]) -> Self {
        Self {
            codes: select(&self.codes, rows, self.columns),
            scale_rows: select(&self.scale_rows, rows, 1),
            scales: self.scales.clone(),
            ..*self
        }
    }

    #[inline(always)]
    pub(super) fn decode_row(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let codes = &self.codes[row * self.columns..(row + 1) * self.columns];
        let first_block = self.scale_rows[row] as usize * self.columns.div_ceil(self.block);
        for_runs(columns, self.block, out, |block, columns, out| {
            let scale = self.scales.at(first_block + block);
            for (out, code) in out.iter_mut().zip(&codes[columns]) {
                *out = e4m3(*code) * scale;
            }
        });
    }
}
