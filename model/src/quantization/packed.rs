//! [`PackedMatrix`]: a weight matrix in the form it is stored in, a few bits a weight. Devices multiply by it
//! without ever holding all of it in f32.
//!
//! The many formats on disk become a few in memory, one variant of [`PackedRows`] each. What a weight *is* is
//! said once, by [`PackedMatrix::decode_row`]: it is the reference, and a product by a packed matrix is bit for
//! bit the product by what it gives.

use std::ops::Range;

use crate::quantization::codebook::CodebookRows;
use crate::quantization::float8::Float8Rows;
use crate::quantization::ggml::GgmlRows;
use crate::quantization::integers::IntegerRows;
use crate::quantization::plain::PlainRows;

/// `[rows][columns]`. Rows may be in several forms, since stacked matrices need not agree.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedMatrix {
    columns: usize,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq)]
struct Part {
    /// The row after its last.
    end: usize,
    rows: PackedRows,
}

/// Rows of one form.
#[derive(Debug, Clone, PartialEq)]
pub enum PackedRows {
    /// Integers of 4 or 8 bits, with a scale and a zero point for each group.
    Integers(IntegerRows),
    /// Floats of 8 bits, with a scale for each block.
    Float8(Float8Rows),
    /// Indices into sixteen numbers, with a scale for each block.
    Codebook(CodebookRows),
    /// Blocks of a GGUF file, as they are there.
    Ggml(GgmlRows),
    /// Not packed, but stacked with what is.
    Plain(PlainRows),
}

/// Where [`PackedMatrix::decode_row`] may begin in a row: at a multiple of this, the widest block of any format.
pub const DECODE_ALIGNMENT: usize = 256;

impl PackedMatrix {
    /// All rows of one form.
    pub fn new(rows: PackedRows) -> Self {
        Self { columns: rows.columns(), parts: vec![Part { end: rows.rows(), rows }] }
    }

    /// Matrices one below the other, of the same number of columns.
    pub fn stack(matrices: Vec<Self>) -> Self {
        let columns = matrices.first().map_or(0, Self::columns);
        let (mut parts, mut end) = (Vec::with_capacity(matrices.len()), 0);
        for matrix in matrices {
            assert_eq!(matrix.columns, columns, "matrices that do not stack");
            for part in matrix.parts {
                end += part.rows.rows();
                parts.push(Part { end, rows: part.rows });
            }
        }
        Self { columns, parts }
    }

    /// Number of rows: what a product by it gives.
    pub fn rows(&self) -> usize {
        self.parts.last().map_or(0, |part| part.end)
    }

    /// Number of columns: what a product by it takes.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.rows.bytes()).sum()
    }

    /// For messages: the form of the first rows.
    pub fn format(&self) -> &'static str {
        self.parts.first().map_or("nothing", |part| part.rows.format())
    }

    /// A matrix of these rows, in this order; a row may come more than once. A number past the last row panics.
    pub fn select_rows(&self, rows: &[usize]) -> Self {
        let mut selected: Vec<Part> = Vec::new();
        let mut rest = rows;
        let mut end = 0;
        while let Some(first) = rest.first() {
            let (part, begin) = self.part_of(*first);
            let within = |row: &&usize| (begin..self.parts[part].end).contains(row);
            let run = rest.iter().take_while(within).count();
            let local: Vec<usize> = rest[..run].iter().map(|row| row - begin).collect();
            end += run;
            selected.push(Part { end, rows: self.parts[part].rows.select_rows(&local) });
            rest = &rest[run..];
        }
        Self { columns: self.columns, parts: selected }
    }

    /// Writes the weights of one row to `out`, which is as long as `columns`. `columns` begins at a multiple of
    /// [`DECODE_ALIGNMENT`], and ends at one or at the end of the row.
    ///
    /// This is inlined wherever it is called, to be compiled for the caller's instruction set.
    #[inline(always)]
    pub fn decode_row(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let (part, begin) = self.part_of(row);
        match &self.parts[part].rows {
            PackedRows::Integers(rows) => rows.decode_row(row - begin, columns, out),
            PackedRows::Float8(rows) => rows.decode_row(row - begin, columns, out),
            PackedRows::Codebook(rows) => rows.decode_row(row - begin, columns, out),
            PackedRows::Ggml(rows) => rows.decode_row(row - begin, columns, out),
            PackedRows::Plain(rows) => rows.decode_row(row - begin, columns, out),
        }
    }

    /// All weights, row after row: what tests compare with.
    pub fn dequantize(&self) -> Vec<f32> {
        let mut all = vec![0.0; self.rows() * self.columns];
        for (row, out) in all.chunks_exact_mut(self.columns.max(1)).enumerate() {
            self.decode_row(row, 0..self.columns, out);
        }
        all
    }

    /// The rows of each form.
    pub(super) fn forms(&self) -> impl Iterator<Item = &PackedRows> {
        self.parts.iter().map(|part| &part.rows)
    }

    /// The part that has a row, and which of its rows that is.
    pub(super) fn locate(&self, row: usize) -> (&PackedRows, usize) {
        let (part, begin) = self.part_of(row);
        (&self.parts[part].rows, row - begin)
    }

    /// The part that has a row, and that part's first row.
    #[inline(always)]
    fn part_of(&self, row: usize) -> (usize, usize) {
        let part = self.parts.partition_point(|part| part.end <= row);
        (part, if part == 0 { 0 } else { self.parts[part - 1].end })
    }
}

impl From<PackedRows> for PackedMatrix {
    fn from(rows: PackedRows) -> Self {
        Self::new(rows)
    }
}

impl PackedRows {
    fn rows(&self) -> usize {
        match self {
            Self::Integers(rows) => rows.rows(),
            Self::Float8(rows) => rows.rows(),
            Self::Codebook(rows) => rows.rows(),
            Self::Ggml(rows) => rows.rows(),
            Self::Plain(rows) => rows.rows(),
        }
    }

    fn columns(&self) -> usize {
        match self {
            Self::Integers(rows) => rows.columns,
            Self::Float8(rows) => rows.columns,
            Self::Codebook(rows) => rows.columns,
            Self::Ggml(rows) => rows.columns,
            Self::Plain(rows) => rows.columns,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Integers(rows) => rows.bytes(),
            Self::Float8(rows) => rows.bytes(),
            Self::Codebook(rows) => rows.bytes(),
            Self::Ggml(rows) => rows.bytes(),
            Self::Plain(rows) => rows.bytes(),
        }
    }

    fn format(&self) -> &'static str {
        match self {
            Self::Integers(_) => "packed integers",
            Self::Float8(_) => "floats of 8 bits",
            Self::Codebook(_) => "codes of 4 bits",
            Self::Ggml(rows) => rows.format(),
            Self::Plain(_) => "unpacked",
        }
    }

    fn select_rows(&self, selected: &[usize]) -> Self {
        match self {
            Self::Integers(rows) => Self::Integers(rows.select_rows(selected)),
            Self::Float8(rows) => Self::Float8(rows.select_rows(selected)),
            Self::Codebook(rows) => Self::Codebook(rows.select_rows(selected)),
            Self::Ggml(rows) => Self::Ggml(rows.select_rows(selected)),
            Self::Plain(rows) => Self::Plain(rows.select_rows(selected)),
        }
    }
}
