//! Quantisation at load (`--quantization`): a full-precision matrix made a packed one, a row at a time.

use crate::checkpoint::TensorView;
use crate::quantization::codebook::{Codebook, CodebookRows};
use crate::quantization::float8::Float8Rows;
use crate::quantization::integers::{CodeWidth, Groups, IntegerRows, Zeros};
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::scales::Scales;
use crate::quantization::small_float::to_e4m3;
use crate::spec::Dtype;

/// What full-precision weights are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtLoad {
    /// Symmetric integers with a scale for each row.
    Int8,
    /// e4m3 with a scale for each row.
    Fp8,
    /// The sixteen quantiles of a normal distribution, with a scale for each 64 columns (QLoRA's NF4).
    Nf4,
}

/// Columns of a block of NF4.
const NF4_BLOCK: usize = 64;

/// The numbers that NF4's codes stand for.
#[rustfmt::skip]
const NF4: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

/// The matrix, as rows of its last dimension, with its weights rounded. The error, the end of a sentence, says why
/// it cannot be.
pub fn quantize(tensor: &TensorView<'_>, to: AtLoad) -> Result<PackedMatrix, String> {
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let bytes = tensor.bytes_as(Dtype::F32);
    let rows = bytes.chunks_exact(4 * columns.max(1)).map(|row| -> Vec<f32> {
        row.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    });
    Ok(match to {
        AtLoad::Int8 => int8(rows, columns),
        AtLoad::Fp8 => fp8(rows, columns),
        AtLoad::Nf4 => nf4(rows, columns),
    }
    .into())
}

fn int8(rows: impl Iterator<Item = Vec<f32>>, columns: usize) -> PackedRows {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in rows {
        let scale = scale_of(&row, 127.0);
        codes.extend(row.iter().map(|weight| ((weight / scale).round_ties_even() as i32 + 128) as u8));
        scales.push(scale);
    }
    let (width, groups) = (CodeWidth::Eight, Groups::Runs(columns.max(1)));
    let (scales, zeros) = (Scales::F32(scales), Zeros::All(128));
    PackedRows::Integers(IntegerRows { columns, width, codes, groups, scales, zeros })
}

fn fp8(rows: impl Iterator<Item = Vec<f32>>, columns: usize) -> PackedRows {
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in rows {
        let scale = scale_of(&row, 448.0);
        codes.extend(row.iter().map(|weight| to_e4m3(weight / scale)));
        scales.push(scale);
    }
    let scale_rows = (0..scales.len() as u32).collect();
    let (block, scales) = (columns.max(1), Scales::F32(scales));
    PackedRows::Float8(Float8Rows { columns, codes, scale_rows, block, scales })
}

fn nf4(rows: impl Iterator<Item = Vec<f32>>, columns: usize) -> PackedRows {
    let between: [f32; 15] = std::array::from_fn(|code| (NF4[code] + NF4[code + 1]) / 2.0);
    let (mut codes, mut scales) = (Vec::new(), Vec::new());
    for row in rows {
        let first = scales.len();
        scales.extend(row.chunks(NF4_BLOCK).map(|block| scale_of(block, 1.0)));
        let code = |_, column: usize| {
            let value = row[column] / scales[first + column / NF4_BLOCK];
            between.iter().map(|bound| u8::from(*bound < value)).sum()
        };
        codes.extend(IntegerRows::pack((1, columns), CodeWidth::Four, code));
    }
    let table = Codebook::new(&NF4);
    PackedRows::Codebook(CodebookRows {
        columns,
        codes,
        table,
        block: NF4_BLOCK,
        scales: Scales::F32(scales),
    })
}

/// What makes the greatest magnitude `greatest`; 1 where all are 0.
fn scale_of(weights: &[f32], greatest: f32) -> f32 {
    let magnitude = weights.iter().fold(0.0f32, |greatest, weight| greatest.max(weight.abs()));
    // A scale below the normal range would make quotients inexact, and nothing of such weights matters.
    if magnitude / greatest < f32::MIN_POSITIVE { 1.0 } else { magnitude / greatest }
}
