//! [`Scales`]: the factors of a packed matrix, one for each run of a row, in the precision they are stored in.

use crate::quantization::small_float::{bf16, f16};

/// Factors, row after row.
#[derive(Debug, Clone, PartialEq)]
pub enum Scales {
    /// As stored, or as computed from several stored numbers.
    F32(Vec<f32>),
    /// Bit patterns of bf16; powers of two (e8m0) fit without loss.
    Bf16(Vec<u16>),
    /// Bit patterns of IEEE half precision.
    F16(Vec<u16>),
}

impl Scales {
    /// Memory they take.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::F32(values) => 4 * values.len(),
            Self::Bf16(values) | Self::F16(values) => 2 * values.len(),
        }
    }

    /// One of them.
    #[inline(always)]
    pub(super) fn at(&self, index: usize) -> f32 {
        match self {
            Self::F32(values) => values[index],
            Self::Bf16(values) => bf16(values[index]),
            Self::F16(values) => f16(values[index]),
        }
    }

    /// Those of some rows, each of `width` factors.
    pub(super) fn select(&self, rows: &[usize], width: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(select(values, rows, width)),
            Self::Bf16(values) => Self::Bf16(select(values, rows, width)),
            Self::F16(values) => Self::F16(select(values, rows, width)),
        }
    }

    /// The same factors in the order of `order`, which gives for each place where its factor is now.
    pub(super) fn reordered(&self, order: impl Iterator<Item = usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(order.map(|i| values[i]).collect()),
            Self::Bf16(values) => Self::Bf16(order.map(|i| values[i]).collect()),
            Self::F16(values) => Self::F16(order.map(|i| values[i]).collect()),
        }
    }
}

/// Rows of `width` elements, by their numbers.
pub(super) fn select<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
    rows.iter().flat_map(|row| &values[row * width..(row + 1) * width]).copied().collect()
}

/// Calls `f(run, columns, out)` for each run of `width` columns that `columns` touches, with its part of `out`.
#[inline(always)]
pub(super) fn for_runs(
    columns: std::ops::Range<usize>,
    width: usize,
    out: &mut [f32],
    mut f: impl FnMut(usize, std::ops::Range<usize>, &mut [f32]),
) {
    let (mut start, mut rest) = (columns.start, out);
    while start < columns.end {
        let run = start / width;
        let end = ((run + 1) * width).min(columns.end);
        let (now, later) = rest.split_at_mut(end - start);
        f(run, start..end, now);
        (start, rest) = (end, later);
    }
}
