//! Quantisation at load (`--quantization`): a full-precision matrix made a packed one, by all cores.

use crate::checkpoint::TensorView;
use crate::ggml::{self, GgmlType};
use crate::quantization::codebook::{Codebook, CodebookRows};
use crate::quantization::float8::Float8Rows;
use crate::quantization::ggml::GgmlRows;
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
    /// The sixteen quantiles of a normal distribution, with a scale for each 64 weights (QLoRA's NF4, as bitsandbytes
    /// makes it).
    Nf4,
    /// ggml's 8 bits with a scale for each 32 columns.
    Q8_0,
    /// ggml's 4 bits with a scale for each 32 columns.
    Q4_0,
    /// ggml's 4 bits with scales and least values in blocks of 256 columns. Where these do not divide the columns,
    /// Q5_0, as llama.cpp does.
    Q4K,
}

/// Weights of a block of NF4; blocks run on over the ends of rows.
const NF4_BLOCK: usize = 64;

/// The numbers that NF4's codes stand for.
#[rustfmt::skip]
const NF4: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

/// Weights below which another thread is not worth its start.
const MIN_PER_THREAD: usize = 1 << 16;

impl AtLoad {
    /// Those of `--quantization`.
    pub const NAMES: &str = "int8, fp8, nf4, q8_0, q4_0, q4_k";

    /// The way of that name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "int8" => Self::Int8,
            "fp8" => Self::Fp8,
            // What vLLM makes of full-precision weights under this name.
            "nf4" | "bitsandbytes" => Self::Nf4,
            "q8_0" => Self::Q8_0,
            "q4_0" => Self::Q4_0,
            "q4_k" => Self::Q4K,
            _ => return None,
        })
    }

    /// Its usual name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Nf4 => "nf4",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
        }
    }

    /// The type that rows of that many columns get, if it is one of ggml's.
    fn ggml_type(self, columns: usize) -> Option<GgmlType> {
        let types: &[GgmlType] = match self {
            Self::Q8_0 => &[GgmlType::Q8_0],
            Self::Q4_0 => &[GgmlType::Q4_0],
            Self::Q4K => &[GgmlType::Q4K, GgmlType::Q5_0],
            Self::Int8 | Self::Fp8 | Self::Nf4 => &[],
        };
        types.iter().copied().find(|kind| kind.row_bytes(columns).is_some())
    }
}

/// A matrix of rows of the tensor's last dimension, its weights rounded; `None` if its rows are not whole blocks of the
/// format, and it stays as it is. The error, the end of a sentence, says what went wrong.
pub fn quantize(tensor: &TensorView<'_>, to: AtLoad) -> Result<Option<PackedMatrix>, String> {
    let columns = tensor.shape.last().copied().unwrap_or(1).max(1);
    let bytes = tensor.bytes_as(Dtype::F32);
    let values: Vec<f32> = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    drop(bytes);
    Ok(Some(match to {
        AtLoad::Int8 => int8(&values, columns).into(),
        AtLoad::Fp8 => fp8(&values, columns).into(),
        AtLoad::Nf4 => nf4(&values, columns).into(),
        AtLoad::Q8_0 | AtLoad::Q4_0 | AtLoad::Q4K => match to.ggml_type(columns) {
            Some(kind) => PackedRows::Ggml(blocks(&values, columns, kind)?).into(),
            None => return Ok(None),
        },
    }))
}

fn int8(values: &[f32], columns: usize) -> PackedRows {
    let (codes, scales) =
        by_rows(values, columns, 127.0, |quotient| (quotient.round_ties_even() as i32 + 128) as u8);
    let (width, groups) = (CodeWidth::Eight, Groups::Runs(columns));
    PackedRows::Integers(IntegerRows { columns, width, codes, groups, scales, zeros: Zeros::All(128) })
}

fn fp8(values: &[f32], columns: usize) -> PackedRows {
    let (codes, scales) = by_rows(values, columns, 448.0, to_e4m3);
    let scale_rows = (0..(values.len() / columns) as u32).collect();
    PackedRows::Float8(Float8Rows { columns, codes, scale_rows, block: columns, scales })
}

/// A byte for each weight, which is divided by what makes the row's greatest magnitude `greatest`.
fn by_rows(
    values: &[f32],
    columns: usize,
    greatest: f32,
    code: impl Fn(f32) -> u8 + Sync,
) -> (Vec<u8>, Scales) {
    let parts = on_all_cores(values, columns, |_, values| {
        let (mut codes, mut scales) = (Vec::with_capacity(values.len()), Vec::new());
        for row in values.chunks_exact(columns) {
            let scale = scale_of(row, greatest);
            codes.extend(row.iter().map(|weight| code(weight / scale)));
            scales.push(scale);
        }
        (codes, scales)
    });
    let (codes, scales): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    (codes.concat(), Scales::F32(scales.concat()))
}

fn nf4(values: &[f32], columns: usize) -> PackedRows {
    let between: [f32; 15] = std::array::from_fn(|code| (NF4[code] + NF4[code + 1]) / 2.0);
    let scales: Vec<f32> = values.chunks(NF4_BLOCK).map(|block| scale_of(block, 1.0)).collect();
    let codes = on_all_cores(values, columns, |first, values| {
        IntegerRows::pack((values.len() / columns, columns), CodeWidth::Four, |row, column| {
            let index = row * columns + column;
            let value = values[index] / scales[(first + index) / NF4_BLOCK];
            between.iter().map(|bound| u8::from(*bound < value)).sum()
        })
    });
    let table = Codebook::new(&NF4);
    PackedRows::Codebook(CodebookRows::in_stream(columns, codes.concat(), table, NF4_BLOCK, &scales))
}

fn blocks(values: &[f32], columns: usize, kind: GgmlType) -> Result<GgmlRows, String> {
    let parts = on_all_cores(values, columns, |_, values| ggml::quantize(values, columns, kind));
    GgmlRows::new(kind, columns, parts.into_iter().collect::<Result<Vec<_>, _>>()?.concat())
}

/// Calls `f(index of the first value, values)` for some whole rows on each core; what it gives, in order.
fn on_all_cores<T: Send>(values: &[f32], columns: usize, f: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cores.min(values.len() / MIN_PER_THREAD).max(1);
    let per_thread = (values.len() / columns).div_ceil(threads).max(1) * columns;
    let f = &f;
    std::thread::scope(|scope| {
        let parts = values.chunks(per_thread).enumerate();
        let started: Vec<_> =
            parts.map(|(index, values)| scope.spawn(move || f(index * per_thread, values))).collect();
        started.into_iter().map(|part| part.join().expect("quantising does not panic")).collect()
    })
}

/// What makes the greatest magnitude `greatest`; 1 where all are 0.
fn scale_of(weights: &[f32], greatest: f32) -> f32 {
    let magnitude = weights.iter().fold(0.0f32, |greatest, weight| greatest.max(weight.abs()));
    // A scale below the normal range would make quotients inexact, and nothing of such weights matters.
    if magnitude / greatest < f32::MIN_POSITIVE { 1.0 } else { magnitude / greatest }
}
