//! [`CpuWeight`]: a tensor of the model in memory, in its stored precision, packed if it is stored packed.

use std::borrow::Cow;

use half::{bf16, f16};
use quire_model::{Dtype, PackedMatrix, TensorView};

use crate::integer::IntegerMatrix;
use crate::lanes::Element;
use crate::pool::Pool;
use crate::shared::SharedSlice;
use crate::zeroed::zeroed;

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
    Integer(IntegerMatrix),
}

impl CpuWeight {
    /// Copies tensors, stacked along their first dimension. Vectors (norms, biases) are widened to f32, which
    /// loses nothing and costs nothing at their size. The error is in words for [`quire_model::BackendError`].
    pub(crate) fn from_parts(pool: &mut Pool, parts: &[TensorView<'_>]) -> Result<Self, String> {
        let first = parts.first().ok_or("a weight of no parts")?;
        let same = parts.iter().all(|p| p.dtype == first.dtype && p.shape.get(1..) == first.shape.get(1..));
        if !same || !(1..=2).contains(&first.shape.len()) {
            let shapes: Vec<_> = parts.iter().map(|part| (part.dtype, &part.shape)).collect();
            return Err(format!("tensors that do not stack: {shapes:?}"));
        }
        let bytes: Vec<Cow<'_, [u8]>> = parts.iter().map(|part| part.bytes()).collect();
        let rows: usize = parts.iter().map(|part| part.shape[0]).sum();
        let data = match first.dtype {
            Dtype::F32 => WeightData::F32(concat(pool, &bytes, f32::from_le_bytes)?),
            Dtype::Bf16 => WeightData::Bf16(concat(pool, &bytes, bf16::from_le_bytes)?),
            Dtype::F16 => WeightData::F16(concat(pool, &bytes, f16::from_le_bytes)?),
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

    /// A packed matrix in the form of the integer kernels, if it has one; else as it is.
    pub(crate) fn integer(pool: &mut Pool, matrix: PackedMatrix) -> Self {
        match IntegerMatrix::new(pool, &matrix) {
            Some(data) => {
                Self { rows: matrix.rows(), columns: matrix.columns(), data: WeightData::Integer(data) }
            }
            None => Self::packed(matrix),
        }
    }

    /// Whether products by it round activations.
    pub(crate) fn is_integer(&self) -> bool {
        matches!(self.data, WeightData::Integer(_))
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        match &self.data {
            WeightData::F32(values) => size_of_val(&values[..]),
            WeightData::Bf16(values) => size_of_val(&values[..]),
            WeightData::F16(values) => size_of_val(&values[..]),
            WeightData::Packed(matrix) => matrix.bytes(),
            WeightData::Integer(matrix) => matrix.bytes(),
        }
    }

    /// One row in f32: an embedding. `out` is as long as the row.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        fn widen<T: Element>(from: &[T], to: &mut [f32]) {
            from.iter().zip(to).for_each(|(value, out)| *out = value.to_f32());
        }
        let place = row * self.columns..(row + 1) * self.columns;
        match &self.data {
            WeightData::F32(values) => widen(&values[place], out),
            WeightData::Bf16(values) => widen(&values[place], out),
            WeightData::F16(values) => widen(&values[place], out),
            WeightData::Packed(matrix) => matrix.decode_row(row, 0..self.columns, out),
            WeightData::Integer(matrix) => matrix.decode_row(row, out),
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
            Self::Integer(_) => panic!("a matrix where a vector belongs"),
        }
    }
}

/// Bytes that a thread copies at a time.
const COPY_CHUNK_BYTES: usize = 1 << 20;

/// The elements of all parts, copied by all threads: they share the time it takes to fetch a file's pages.
fn concat<T: Element, const N: usize>(
    pool: &mut Pool,
    parts: &[Cow<'_, [u8]>],
    from_bytes: impl Fn([u8; N]) -> T + Sync,
) -> Result<Vec<T>, String> {
    let len = parts.iter().map(|part| part.len() / N).sum();
    let mut elements = zeroed(len).ok_or_else(|| format!("no memory for a tensor of {} bytes", len * N))?;
    let mut rest = &mut elements[..];
    for part in parts {
        let (own, after) = rest.split_at_mut(part.len() / N);
        rest = after;
        let per_chunk = COPY_CHUNK_BYTES / N;
        let (num_chunks, own_len, own) = (own.len().div_ceil(per_chunk), own.len(), SharedSlice::new(own));
        pool.run(num_chunks, &|_, chunk| {
            let first = chunk * per_chunk;
            let len = per_chunk.min(own_len - first);
            // SAFETY: each chunk is handed to one thread once, and chunks do not overlap.
            #[allow(unsafe_code)]
            let out = unsafe { own.part(first, len) };
            let bytes = part[first * N..][..len * N].as_chunks::<N>().0;
            out.iter_mut().zip(bytes).for_each(|(element, bytes)| *element = from_bytes(*bytes));
        });
    }
    Ok(elements)
}
