//! [`Stored`]: a tensor of a checkpoint in whatever type it is stored, as the formats that pack weights look at it:
//! each question is answered, or is a complaint that names the tensor.

use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::quantization::scales::Scales;
use crate::quantization::small_float::{bf16, f16};
use crate::safetensors::StoredDtype;

/// A stored tensor: row-major, little-endian.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    /// For errors.
    name: &'a str,
    /// What an element is.
    pub(super) dtype: StoredDtype,
    /// Slowest dimension first.
    pub(super) shape: &'a [usize],
    /// The elements, of any alignment.
    pub(super) bytes: &'a [u8],
}

impl<'a> Stored<'a> {
    /// The tensor of that name; `None` if there is none, as in a dummy.
    pub(super) fn find(checkpoint: &'a Checkpoint, name: &'a str) -> Option<Self> {
        let raw = checkpoint.raw(name).ok()?;
        Some(Self { name, dtype: raw.dtype, shape: raw.shape, bytes: raw.bytes })
    }

    /// The tensor if it has that shape.
    pub(super) fn of_shape(self, shape: &[usize]) -> Result<Self, ModelError> {
        match self.shape == shape {
            true => Ok(self),
            false => Err(ModelError::Shape {
                name: self.name.into(),
                found: self.shape.to_vec(),
                expected: shape.to_vec(),
            }),
        }
    }

    /// The elements if they are bytes of the given types.
    pub(super) fn bytes_of(&self, dtypes: &[StoredDtype]) -> Result<&'a [u8], ModelError> {
        match dtypes.contains(&self.dtype) {
            true => Ok(self.bytes),
            false => Err(self.wrong(format!("is stored as {}; supported here: {dtypes:?}", self.dtype))),
        }
    }

    /// The elements if they are 32-bit integers.
    pub(super) fn words(&self) -> Result<Vec<u32>, ModelError> {
        let bytes = self.bytes_of(&[StoredDtype::I32, StoredDtype::U32])?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// The elements if they are integers of any width.
    pub(super) fn integers(&self) -> Result<Vec<i64>, ModelError> {
        let bytes = self.bytes;
        Ok(match self.dtype {
            StoredDtype::I8 => bytes.iter().map(|byte| i64::from(*byte as i8)).collect(),
            StoredDtype::U8 => bytes.iter().map(|byte| i64::from(*byte)).collect(),
            StoredDtype::I32 => {
                bytes.as_chunks().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect()
            }
            StoredDtype::I64 => bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
            other => {
                return Err(self.wrong(format!("is stored as {other}; supported here: I8, U8, I32, I64")));
            }
        })
    }

    /// The elements if they are floats of 16 or 32 bits.
    pub(super) fn floats(&self) -> Result<Vec<f32>, ModelError> {
        let bytes = self.bytes;
        Ok(match self.dtype {
            StoredDtype::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            StoredDtype::BF16 => {
                bytes.as_chunks().0.iter().map(|bytes| bf16(u16::from_le_bytes(*bytes))).collect()
            }
            StoredDtype::F16 => {
                bytes.as_chunks().0.iter().map(|bytes| f16(u16::from_le_bytes(*bytes))).collect()
            }
            other => return Err(self.wrong(format!("is stored as {other}; supported here: F32, BF16, F16"))),
        })
    }

    /// The elements as factors: floats, or powers of two (e8m0).
    pub(super) fn scales(&self) -> Result<Scales, ModelError> {
        let halves = || self.bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        Ok(match self.dtype {
            StoredDtype::F32 => Scales::F32(self.floats()?),
            StoredDtype::BF16 => Scales::Bf16(halves()),
            StoredDtype::F16 => Scales::F16(halves()),
            StoredDtype::F8_E8M0 => Scales::powers_of_two(self.bytes),
            other => {
                let reason = format!("is stored as {other}; scales are F32, BF16, F16 or F8_E8M0");
                return Err(self.wrong(reason));
            }
        })
    }

    /// The complaint that this tensor cannot be used, `reason` being the sentence's end.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> ModelError {
        ModelError::PackedTensor { name: self.name.into(), reason: reason.into() }
    }
}
