//! [`IntegerRows`]: integers of 4 or 8 bits with a scale and a zero point for each group of columns. GPTQ, AWQ,
//! integers of compressed-tensors and bitsandbytes, and `--quantization int8` all become this.

use std::ops::Range;
use std::sync::Arc;

use crate::quantization::integer_form::IntegerForm;
use crate::quantization::scales::{Scales, for_runs, select};

/// Weight `(row, column)` is `(code - zero) * scale`, of the column's group in that row.
#[derive(Debug, Clone, PartialEq)]
pub struct IntegerRows {
    pub(super) columns: usize,
    pub(super) width: CodeWidth,
    /// Row after row; a row begins on a byte. Of two codes in a byte, the low bits hold the even column's.
    pub(super) codes: Vec<u8>,
    pub(super) groups: Groups,
    /// `[rows][groups]`.
    pub(super) scales: Scales,
    pub(super) zeros: Zeros,
}

/// Bits of a code in memory; codes of fewer bits take the next that there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CodeWidth {
    Four,
    Eight,
}

/// Which columns share a scale.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Groups {
    /// So many in a row.
    Runs(usize),
    /// The group of each column (activation order: columns were quantised in an order of their own).
    Index { of_column: Arc<[u32]>, count: usize },
}

/// The code that stands for 0.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Zeros {
    /// Everywhere the same.
    All(i16),
    /// `[rows][groups]`.
    OfGroups(Vec<i16>),
}

impl CodeWidth {
    /// The width that holds codes of so many bits.
    pub(super) fn of_bits(bits: usize) -> Self {
        if bits <= 4 { Self::Four } else { Self::Eight }
    }

    /// Bits of a code, and the code in the middle of their range.
    fn bits_and_middle(self) -> (usize, i16) {
        match self {
            Self::Four => (4, 8),
            Self::Eight => (8, 128),
        }
    }

    fn row_bytes(self, columns: usize) -> usize {
        match self {
            Self::Four => columns.div_ceil(2),
            Self::Eight => columns,
        }
    }
}

impl Groups {
    pub(super) fn count(&self, columns: usize) -> usize {
        match self {
            Self::Runs(width) => columns.div_ceil(*width),
            Self::Index { count, .. } => *count,
        }
    }
}

impl Zeros {
    #[inline(always)]
    fn at(&self, index: usize) -> f32 {
        match self {
            Self::All(zero) => f32::from(*zero),
            Self::OfGroups(zeros) => f32::from(zeros[index]),
        }
    }
}

impl IntegerRows {
    /// Packs `rows` rows of codes, which `code(row, column)` gives.
    pub(super) fn pack(
        (rows, columns): (usize, usize),
        width: CodeWidth,
        mut code: impl FnMut(usize, usize) -> u8,
    ) -> Vec<u8> {
        let mut codes = Vec::with_capacity(rows * width.row_bytes(columns));
        for row in 0..rows {
            match width {
                CodeWidth::Eight => codes.extend((0..columns).map(|column| code(row, column))),
                CodeWidth::Four => codes.extend((0..columns).step_by(2).map(|column| {
                    let high = if column + 1 < columns { code(row, column + 1) } else { 0 };
                    code(row, column) & 15 | high << 4
                })),
            }
        }
        codes
    }

    pub(super) fn rows(&self) -> usize {
        self.codes.len() / self.width.row_bytes(self.columns).max(1)
    }

    pub(super) fn bytes(&self) -> usize {
        let zeros = match &self.zeros {
            Zeros::All(_) => 0,
            Zeros::OfGroups(zeros) => 2 * zeros.len(),
        };
        self.codes.len() + self.scales.bytes() + zeros
    }

    pub(super) fn select_rows(&self, rows: &[usize]) -> Self {
        let groups = self.groups.count(self.columns);
        Self {
            codes: select(&self.codes, rows, self.width.row_bytes(self.columns)),
            scales: self.scales.select(rows, groups),
            zeros: match &self.zeros {
                Zeros::All(zero) => Zeros::All(*zero),
                Zeros::OfGroups(zeros) => Zeros::OfGroups(select(zeros, rows, groups)),
            },
            groups: self.groups.clone(),
            ..*self
        }
    }

    /// `None` in activation order: its groups are no runs of columns.
    pub(super) fn integer_form(&self) -> Option<IntegerForm> {
        let Groups::Runs(run) = self.groups else { return None };
        let (bits, middle) = self.width.bits_and_middle();
        let has_offsets = match &self.zeros {
            Zeros::All(zero) => *zero != middle,
            Zeros::OfGroups(zeros) => zeros.iter().any(|zero| *zero != middle),
        };
        Some(IntegerForm { bits, run, has_offsets })
    }

    /// Appends a row's codes, and the scale and offset of each run; gives the length of a run.
    pub(super) fn integer_row(
        &self,
        row: usize,
        codes: &mut Vec<i8>,
        scales: &mut Vec<f32>,
        offsets: &mut Vec<f32>,
    ) -> usize {
        let (_, middle) = self.width.bits_and_middle();
        let row_bytes = self.width.row_bytes(self.columns);
        let stored = &self.codes[row * row_bytes..(row + 1) * row_bytes];
        let signed = |code: u8| (i16::from(code) - middle) as i8;
        match self.width {
            CodeWidth::Eight => codes.extend(stored.iter().map(|code| signed(*code))),
            CodeWidth::Four => {
                codes.extend(stored.iter().flat_map(|pair| [signed(pair & 15), signed(pair >> 4)]));
                codes.truncate(self.columns);
            }
        }
        let groups = self.groups.count(self.columns);
        for group in row * groups..(row + 1) * groups {
            let scale = self.scales.at(group);
            scales.push(scale);
            offsets.push((self.zeros.at(group) - f32::from(middle)) * scale);
        }
        match self.groups {
            Groups::Runs(run) => run,
            Groups::Index { .. } => panic!("integers in activation order have no runs"),
        }
    }

    #[inline(always)]
    pub(super) fn decode_row(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let row_bytes = self.width.row_bytes(self.columns);
        let codes = &self.codes[row * row_bytes..(row + 1) * row_bytes];
        let first_group = row * self.groups.count(self.columns);
        match &self.groups {
            Groups::Runs(width) => for_runs(columns, *width, out, |group, columns, out| {
                let (zero, scale) = (self.zeros.at(first_group + group), self.scales.at(first_group + group));
                self.width.decode(codes, columns, out, |code| (code - zero) * scale);
            }),
            Groups::Index { of_column, .. } => {
                self.width.decode(codes, columns.clone(), out, |code| code);
                for (out, group) in out.iter_mut().zip(&of_column[columns]) {
                    let group = first_group + *group as usize;
                    *out = (*out - self.zeros.at(group)) * self.scales.at(group);
                }
            }
        }
    }
}

impl CodeWidth {
    #[inline(always)]
    fn decode(self, codes: &[u8], columns: Range<usize>, out: &mut [f32], f: impl Fn(f32) -> f32) {
        match self {
            Self::Eight => {
                for (out, code) in out.iter_mut().zip(&codes[columns]) {
                    *out = f(f32::from(*code));
                }
            }
            Self::Four => {
                for_nibbles(codes, columns, out, |low, high| [f(f32::from(low)), f(f32::from(high))])
            }
        }
    }
}

/// Writes `f(low, high)` of each byte of a row of half bytes to `out`, from any column on.
#[inline(always)]
pub(super) fn for_nibbles(
    codes: &[u8],
    columns: Range<usize>,
    out: &mut [f32],
    f: impl Fn(u8, u8) -> [f32; 2],
) {
    let both = |byte: u8| f(byte & 15, byte >> 4);
    let (mut out, mut start) = (out, columns.start);
    if start % 2 == 1 && start < columns.end {
        let (first, rest) = out.split_at_mut(1);
        first[0] = both(codes[start / 2])[1];
        (out, start) = (rest, start + 1);
    }
    let (pairs, tail) = out.as_chunks_mut::<2>();
    let codes = &codes[start / 2..];
    for (pair, byte) in pairs.iter_mut().zip(codes) {
        *pair = both(*byte);
    }
    if let Some(last) = tail.first_mut() {
        *last = both(codes[pairs.len()])[0];
    }
}
