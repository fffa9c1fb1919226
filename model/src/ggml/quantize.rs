//! From numbers to blocks, by candle's quantiser, which is ggml's.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::GgmlType;

/// Rows of `columns` numbers as blocks, row after row.
///
/// # Errors
/// If a row is not a whole number of blocks, or the values are not whole rows.
pub fn quantize(values: &[f32], columns: usize, kind: GgmlType) -> Result<Vec<u8>, String> {
    if kind.row_bytes(columns).is_none() || columns == 0 || !values.len().is_multiple_of(columns) {
        let (name, block) = (kind.name(), kind.block_len());
        return Err(format!("{name} needs rows of a multiple of {block} numbers, not {columns}"));
    }
    let rows = values.len() / columns;
    let quantized = || {
        let values = Tensor::from_slice(values, (rows, columns), &Device::Cpu)?;
        Ok(QTensor::quantize(&values, candle_type(kind))?.data()?.into_owned())
    };
    quantized().map_err(|error: candle_core::Error| error.to_string())
}

pub(super) fn candle_type(kind: GgmlType) -> GgmlDType {
    match kind {
        GgmlType::F32 => GgmlDType::F32,
        GgmlType::F16 => GgmlDType::F16,
        GgmlType::Bf16 => GgmlDType::BF16,
        GgmlType::Q8_0 => GgmlDType::Q8_0,
        GgmlType::Q4_0 => GgmlDType::Q4_0,
        GgmlType::Q4_1 => GgmlDType::Q4_1,
        GgmlType::Q5_0 => GgmlDType::Q5_0,
        GgmlType::Q5_1 => GgmlDType::Q5_1,
        GgmlType::Q2K => GgmlDType::Q2K,
        GgmlType::Q3K => GgmlDType::Q3K,
        GgmlType::Q4K => GgmlDType::Q4K,
        GgmlType::Q5K => GgmlDType::Q5K,
        GgmlType::Q6K => GgmlDType::Q6K,
    }
}
