//! [`CpuWeight`]: a tensor of the model in memory, in its stored precision, packed if it is stored packed.

use std::borrow::Cow;

use half::{bf16, f16};
use quire_model::{Dtype, PackedMatrix, TensorView};

/// A matrix `[rows][columns]`, or a vector as one row.
pub struct CpuWeight {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) data: WeightData,
}

/// Elements, row after row.
pub(crate) enum WeightData {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    F16(Vec<f16>),
    Packed(PackedMatrix),
}

impl CpuWeight {
    /// Copies tensors, stacked along their first dimension. Vectors (norms, biases) are widened to f32, which
    /// loses nothing and costs nothing at their size. The error is in words for [`quire_model::BackendError`].
    pub(crate) fn from_parts(parts: &[TensorView<'_>]) -> Result<Self, String> {
        let first = parts.first().ok_or("a weight of no parts")?;
        let same = parts.iter().all(|p| p.dtype == first.dtype && p.shape.get(1..) == first.shape.get(1..));
        if !same || !(1..=2).contains(&first.shape.len()) {
            let shapes: Vec<_> = parts.iter().map(|part| (part.dtype, &part.shape)).collect();
            return Err(format!("tensors that do not stack: {shapes:?}"));
        }
        let bytes: Vec<Cow<'_, [u8]>> = parts.iter().map(|part| part.bytes()).collect();
        let rows: usize = parts.iter().map(|part| part.shape[0]).sum();
        let data = match first.dtype {
            Dtype::F32 => WeightData::F32(concat(&bytes, f32::from_le_bytes)),
            Dtype::Bf16 => WeightData::Bf16(concat(&bytes, bf16::from_le_bytes)),
            Dtype::F16 => WeightData::F16(concat(&bytes, f16::from_le_bytes)),
        };
        match first.shape.get(1) {
            Some(columns) => Ok(Self { rows, columns: *columns, data }),
            None => Ok(Self { rows: 1, columns: rows, data: WeightData::F32(data.into_f32()) }),
        }
    }

    /// A matrix that stays packed.
    pub(crate) fn packed(matrix: PackedMatrix) -> Self {
        Self { rows: matrix.rows(), columns: matrix.columns(), data: WeightData::Packed(matrix) }
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        match &self.data {
            WeightData::F32(values) => size_of_val(&values[..]),
            WeightData::Bf16(values) => size_of_val(&values[..]),
            WeightData::F16(values) => size_of_val(&values[..]),
            WeightData::Packed(matrix) => matrix.bytes(),
        }
    }

    /// Numbers that stay f32, in rows of `columns`.
    pub(crate) fn table(values: &[f32], columns: usize) -> Self {
        Self { rows: values.len() / columns, columns, data: WeightData::F32(values.to_vec()) }
    }

    /// The elements of a tensor that is f32 by nature: a vector, or the table of rotations.
    pub(crate) fn f32(&self) -> &[f32] {
        match &self.data {
            WeightData::F32(values) => values,
            _ => panic!("a matrix where a vector belongs"),
        }
    }
}

impl WeightData {
    fn into_f32(self) -> Vec<f32> {
        match self {
            Self::F32(values) => values,
            Self::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
            Self::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            Self::Packed(matrix) => matrix.dequantize(),
        }
    }
}

fn concat<T, const N: usize>(parts: &[Cow<'_, [u8]>], from_bytes: impl Fn([u8; N]) -> T) -> Vec<T> {
    let mut elements = Vec::with_capacity(parts.iter().map(|part| part.len() / N).sum());
    for part in parts {
        elements.extend(part.as_chunks::<N>().0.iter().map(|bytes| from_bytes(*bytes)));
    }
    elements
}
