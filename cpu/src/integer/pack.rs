//! [`IntegerMatrix`]: weights as the integer kernels read them, made once when a model is loaded.
//!
//! Sixteen rows are a panel. Of a panel, memory has the codes of four columns of all rows, then of the next four, so
//! that a register holds what meets the same four activations; of 4 bits, the low halves of 64 bytes are four
//! columns and the high halves the next four.

use half::f16;
use quire_model::PackedMatrix;
use quire_model::quantization::{IntegerForm, IntegerRow};

use crate::lanes::{Element, LANES, Lanes};
use crate::pool::Pool;
use crate::shared::SharedSlice;

/// Columns that share a scale of the activations; all longer runs of weights are made of these.
pub(super) const BLOCK: usize = 32;

/// Bytes of a register of codes.
pub(super) const UNIT: usize = 64;

/// Rows of a panel.
pub(super) const PANEL: usize = LANES;

/// Blocks of a row, the last filled up with columns of no weight.
pub(super) fn blocks_of(columns: usize) -> usize {
    columns.div_ceil(BLOCK)
}

/// A weight matrix of integers of 4 or 8 bits, `code * scale - offset`.
pub(crate) struct IntegerMatrix {
    rows: usize,
    columns: usize,
    pub(super) width: Width,
    /// Blocks that share a scale of the weights; all of a row's if it has one.
    pub(super) run_blocks: usize,
    runs: usize,
    /// `[panel][block][units of a block][UNIT]`.
    codes: Vec<u8>,
    /// `[panel][run][PANEL]`.
    pub(super) scales: Factors,
    /// `[panel][run][PANEL]`, if any is not 0.
    pub(super) offsets: Option<Vec<f32>>,
}

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Four,
    Eight,
}

/// Scales, in 16 bits where that loses nothing.
pub(super) enum Factors {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Factors {
    fn of(values: Vec<f32>) -> Self {
        let rounded: Vec<f16> = values.iter().map(|value| f16::from_f32(*value)).collect();
        let exact = rounded.iter().zip(&values).all(|(rounded, value)| rounded.to_f32() == *value);
        if exact { Self::F16(rounded) } else { Self::F32(values) }
    }

    /// Those of a panel's rows, `index` panels of them from the first.
    #[inline(always)]
    pub(super) fn load<V: Lanes>(&self, index: usize) -> V {
        match self {
            Self::F16(values) => f16::load(&values.as_chunks().0[index]),
            Self::F32(values) => V::load(&values.as_chunks().0[index]),
        }
    }

    fn at(&self, index: usize) -> f32 {
        match self {
            Self::F16(values) => values[index].to_f32(),
            Self::F32(values) => values[index],
        }
    }
}

impl Width {
    /// Units of a block.
    pub(super) fn units(self) -> usize {
        match self {
            Self::Four => BLOCK / 8,
            Self::Eight => BLOCK / 4,
        }
    }
}

impl IntegerMatrix {
    /// The matrix in this form; `None` if its weights are no integers, or its runs are not made of whole blocks.
    pub(crate) fn new(pool: &mut Pool, matrix: &PackedMatrix) -> Option<Self> {
        let form = matrix.integer_form()?;
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let one_run = form.run >= columns;
        if !one_run && !form.run.is_multiple_of(BLOCK) {
            return None;
        }
        let blocks = blocks_of(columns);
        let run_blocks = if one_run { blocks.max(1) } else { form.run / BLOCK };
        let width = if form.bits == 4 { Width::Four } else { Width::Eight };
        let (panels, runs) = (rows.div_ceil(PANEL), blocks.div_ceil(run_blocks));
        let panel_bytes = blocks * width.units() * UNIT;
        let mut codes = vec![0; panels * panel_bytes];
        let mut scales = vec![0.0; panels * runs * PANEL];
        let mut offsets = vec![0.0; if form.has_offsets { scales.len() } else { 0 }];
        let to =
            (SharedSlice::new(&mut codes), SharedSlice::new(&mut scales), SharedSlice::new(&mut offsets));
        pool.run(panels, &|_, panel| {
            let offsets_len = if form.has_offsets { runs * PANEL } else { 0 };
            // SAFETY: each panel is packed once, and panels do not overlap.
            #[allow(unsafe_code)]
            let part = unsafe {
                (
                    to.0.part(panel * panel_bytes, panel_bytes),
                    to.1.part(panel * runs * PANEL, runs * PANEL),
                    to.2.part(panel * offsets_len, offsets_len),
                )
            };
            pack_panel(matrix, form, width, panel, part);
        });
        let (scales, offsets) = (Factors::of(scales), form.has_offsets.then_some(offsets));
        Some(Self { rows, columns, width, run_blocks, runs, codes, scales, offsets })
    }

    /// Memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        let scales = match &self.scales {
            Factors::F16(values) => size_of_val(&values[..]),
            Factors::F32(values) => size_of_val(&values[..]),
        };
        self.codes.len() + scales + self.offsets.as_ref().map_or(0, |offsets| size_of_val(&offsets[..]))
    }

    /// The weights of one row.
    pub(crate) fn decode_row(&self, row: usize, out: &mut [f32]) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let codes = self.panel(panel);
        for (column, out) in out.iter_mut().enumerate() {
            let (unit, shift, less) = place(self.width, column);
            let code = codes[unit][lane * 4 + column % 4] >> shift;
            let code = if self.width == Width::Four { code & 15 } else { code };
            let run = self.run_index(panel, column / BLOCK / self.run_blocks) * PANEL + lane;
            let offset = self.offsets.as_ref().map_or(0.0, |offsets| offsets[run]);
            *out = f32::from(i16::from(code) - less) * self.scales.at(run) - offset;
        }
    }

    /// The codes of a panel.
    #[inline(always)]
    pub(super) fn panel(&self, panel: usize) -> &[[u8; UNIT]] {
        let len = blocks_of(self.columns) * self.width.units();
        &self.codes.as_chunks().0[panel * len..][..len]
    }

    /// Where the scales of a panel's run are, in panels.
    #[inline(always)]
    pub(super) fn run_index(&self, panel: usize, run: usize) -> usize {
        panel * self.runs + run
    }

    /// Whether a row has one scale and nothing else.
    pub(super) fn has_one_run(&self) -> bool {
        self.runs <= 1 && self.offsets.is_none()
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn columns(&self) -> usize {
        self.columns
    }
}

/// Where a column's codes are: their unit, the bits below them, and by how much they are above their true value.
fn place(width: Width, column: usize) -> (usize, usize, i16) {
    match width {
        Width::Eight => (column / 4, 0, 128),
        Width::Four => (column / 8, column / 4 % 2 * 4, 8),
    }
}

fn pack_panel(
    matrix: &PackedMatrix,
    form: IntegerForm,
    width: Width,
    panel: usize,
    (codes, scales, offsets): (&mut [u8], &mut [f32], &mut [f32]),
) {
    let units = codes.as_chunks_mut::<UNIT>().0;
    let mut stored = IntegerRow::default();
    for lane in 0..PANEL.min(matrix.rows() - panel * PANEL) {
        matrix.integer_row(form, panel * PANEL + lane, &mut stored);
        for (column, code) in stored.codes.iter().enumerate() {
            let (unit, shift, more) = place(width, column);
            let code = (i16::from(*code) + more) as u8;
            units[unit][lane * 4 + column % 4] |= code << shift;
        }
        for (run, scale) in stored.scales.iter().enumerate() {
            scales[run * PANEL + lane] = *scale;
        }
        if form.has_offsets {
            for (run, offset) in stored.offsets.iter().enumerate() {
                offsets[run * PANEL + lane] = *offset;
            }
        }
    }
}
