//! [`GgmlRows`]: rows of ggml's blocks, as they are in a GGUF file.

use std::ops::Range;

use crate::ggml::{GgmlType, decode_row, integer_blocks};
use crate::gguf::GgufTensor;
use crate::quantization::integer_form::IntegerForm;
use crate::quantization::scales::select;

/// A matrix of blocks.
#[derive(Debug, Clone, PartialEq)]
pub struct GgmlRows {
    pub(super) columns: usize,
    kind: GgmlType,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl GgmlRows {
    /// Of rows of `columns` numbers in `bytes`; the error says that these are not whole rows.
    pub fn new(kind: GgmlType, columns: usize, bytes: Vec<u8>) -> Result<Self, String> {
        match kind.row_bytes(columns) {
            Some(row_bytes) if row_bytes > 0 && bytes.len().is_multiple_of(row_bytes) => {
                Ok(Self { columns, kind, row_bytes, bytes })
            }
            _ => Err(format!("{} bytes are not rows of {columns} numbers in {}", bytes.len(), kind.name())),
        }
    }

    /// A copy of a tensor of two dimensions.
    pub(super) fn of(tensor: GgufTensor<'_>) -> Result<Self, String> {
        let [_, columns] = tensor.shape[..] else {
            return Err(format!("has shape {:?}, and is no matrix", tensor.shape));
        };
        Self::new(tensor.kind, columns, tensor.bytes.into_owned())
    }

    pub(super) fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// Of blocks of 32 with one scale; `None` for the others.
    pub(super) fn integer_form(&self) -> Option<IntegerForm> {
        let bits = match self.kind {
            GgmlType::Q8_0 | GgmlType::Q5_0 => 8,
            GgmlType::Q4_0 => 4,
            _ => return None,
        };
        Some(IntegerForm { bits, run: 32, has_offsets: false })
    }

    /// Appends a row's codes, and the scale and offset of each run; gives the length of a run.
    pub(super) fn integer_row(
        &self,
        row: usize,
        codes: &mut Vec<i8>,
        scales: &mut Vec<f32>,
        offsets: &mut Vec<f32>,
    ) -> usize {
        integer_blocks(self.kind, &self.bytes[row * self.row_bytes..][..self.row_bytes], codes, scales);
        offsets.resize(scales.len(), 0.0);
        32
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn format(&self) -> &'static str {
        self.kind.name()
    }

    pub(super) fn select_rows(&self, rows: &[usize]) -> Self {
        Self { bytes: select(&self.bytes, rows, self.row_bytes), ..*self }
    }

    #[inline(always)]
    pub(super) fn decode_row(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        decode_row(self.kind, &self.bytes[row * self.row_bytes..][..self.row_bytes], columns, out);
    }
}
