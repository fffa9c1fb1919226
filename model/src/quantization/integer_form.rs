//! [`IntegerForm`]: packed matrices as signed integers with a scale for each run of columns, for kernels that multiply
//! integers. Every format that is that by nature is given in it without loss: integers of GPTQ (without activation
//! order), AWQ, compressed-tensors and bitsandbytes, and ggml's blocks of 32 with one scale.

use crate::quantization::packed::{PackedMatrix, PackedRows};

/// How [`PackedMatrix::integer_row`] gives rows: a weight is `code * scale - offset`, where scale and offset are
/// those of its run of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IntegerForm {
    /// 4 or 8: codes are -8 to 7, or -128 to 127.
    pub bits: usize,
    /// Columns in a run; a row's last may be shorter.
    pub run: usize,
    /// Whether any offset is not 0.
    pub has_offsets: bool,
}

impl IntegerForm {
    /// What both can be given as; `None` where the runs of neither are made of the other's.
    fn with(self, other: Self) -> Option<Self> {
        let (short, long) = (self.run.min(other.run), self.run.max(other.run));
        long.is_multiple_of(short).then_some(Self {
            bits: self.bits.max(other.bits),
            run: short,
            has_offsets: self.has_offsets || other.has_offsets,
        })
    }
}

/// One row in an [`IntegerForm`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct IntegerRow {
    /// `[columns]`.
    pub codes: Vec<i8>,
    /// `[runs]`.
    pub scales: Vec<f32>,
    /// `[runs]`; all 0 without offsets.
    pub offsets: Vec<f32>,
}

impl PackedMatrix {
    /// The form that all rows can be given in, if they are integers at all.
    pub fn integer_form(&self) -> Option<IntegerForm> {
        let mut forms = self.forms().map(|rows| match rows {
            PackedRows::Integers(rows) => rows.integer_form(),
            PackedRows::Ggml(rows) => rows.integer_form(),
            PackedRows::Float8(_) | PackedRows::Codebook(_) | PackedRows::Plain(_) => None,
        });
        let first = forms.next()??;
        forms.try_fold(first, |all, form| all.with(form?))
    }

    /// Writes one row to `out`, whose vectors are made as long as they must be. `form` is the matrix's own.
    ///
    /// # Panics
    /// If the row is not made of integers.
    pub fn integer_row(&self, form: IntegerForm, row: usize, out: &mut IntegerRow) {
        let (part, row) = self.locate(row);
        let IntegerRow { codes, scales, offsets } = out;
        codes.clear();
        scales.clear();
        offsets.clear();
        let runs = self.columns().div_ceil(form.run);
        let own_run = match part {
            PackedRows::Integers(rows) => rows.integer_row(row, codes, scales, offsets),
            PackedRows::Ggml(rows) => rows.integer_row(row, codes, scales, offsets),
            PackedRows::Float8(_) | PackedRows::Codebook(_) | PackedRows::Plain(_) => {
                panic!("a matrix that is not made of integers")
            }
        };
        // Longer runs than those asked for: the same scale for each part of them.
        for values in [scales, offsets] {
            let own = values.clone();
            values.clear();
            values.extend((0..runs).map(|run| own[run * form.run / own_run]));
        }
    }
}
