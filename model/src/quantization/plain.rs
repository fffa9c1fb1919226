//! [`PlainRows`]: rows that are not packed, for matrices that are stacked with packed ones (a checkpoint may leave
//! one of three fused projections unquantised).

use std::ops::Range;

use crate::checkpoint::TensorView;
use crate::quantization::scales::select;
use crate::quantization::small_float::{bf16, f16};
use crate::spec::Dtype;

/// Elements as stored, little-endian.
#[derive(Debug, Clone, PartialEq)]
pub struct PlainRows {
    pub(super) columns: usize,
    dtype: Dtype,
    bytes: Vec<u8>,
}

impl PlainRows {
    /// A copy of a tensor, as rows of its last dimension.
    pub fn new(tensor: &TensorView<'_>) -> Self {
        let columns = tensor.shape.last().copied().unwrap_or(1);
        Self { columns, dtype: tensor.dtype, bytes: tensor.bytes().into_owned() }
    }

    pub(super) fn rows(&self) -> usize {
        self.bytes.len() / (self.columns * self.dtype.bytes()).max(1)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn select_rows(&self, rows: &[usize]) -> Self {
        Self { bytes: select(&self.bytes, rows, self.columns * self.dtype.bytes()), ..*self }
    }

    #[inline(always)]
    pub(super) fn decode_row(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let first = row * self.columns;
        let size = self.dtype.bytes();
        let bytes = &self.bytes[(first + columns.start) * size..(first + columns.end) * size];
        match self.dtype {
            Dtype::F32 => widen(bytes, out, f32::from_le_bytes),
            Dtype::Bf16 => widen(bytes, out, |bytes| bf16(u16::from_le_bytes(bytes))),
            Dtype::F16 => widen(bytes, out, |bytes| f16(u16::from_le_bytes(bytes))),
        }
    }
}

#[inline(always)]
fn widen<const N: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn([u8; N]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *out = f(*bytes);
    }
}
