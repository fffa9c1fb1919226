//! [`RawTensor`]: a tensor of a checkpoint in whatever type it is stored, for the formats that pack weights.

use half::{bf16, f16};

use crate::error::ModelError;

/// A stored tensor: row-major, little-endian.
#[derive(Debug, Clone)]
pub struct RawTensor<'a> {
    /// For errors.
    pub name: &'a str,
    /// Element type, as safetensors names it: `I32`, `F8_E4M3`.
    pub dtype: String,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// The elements, of any alignment.
    pub bytes: &'a [u8],
}

impl<'a> RawTensor<'a> {
    /// The tensor if it has that shape.
    pub fn of_shape(self, shape: &[usize]) -> Result<Self, ModelError> {
        match self.shape == shape {
            true => Ok(self),
            false => {
                Err(ModelError::Shape { name: self.name.into(), found: self.shape, expected: shape.to_vec() })
            }
        }
    }

    /// The elements if they are bytes of the given types.
    pub fn bytes_of(&self, dtypes: &[&str]) -> Result<&'a [u8], ModelError> {
        match dtypes.contains(&self.dtype.as_str()) {
            true => Ok(self.bytes),
            false => {
                Err(self.wrong(format!("is stored as {}; supported here: {}", self.dtype, dtypes.join(", "))))
            }
        }
    }

    /// The elements if they are 32-bit integers.
    pub fn words(&self) -> Result<Vec<u32>, ModelError> {
        let bytes = self.bytes_of(&["I32", "U32"])?;
        Ok(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect())
    }

    /// The elements if they are integers of any width.
    pub fn integers(&self) -> Result<Vec<i64>, ModelError> {
        let bytes = self.bytes;
        Ok(match self.dtype.as_str() {
            "I8" => bytes.iter().map(|byte| i64::from(*byte as i8)).collect(),
            "U8" => bytes.iter().map(|byte| i64::from(*byte)).collect(),
            "I32" => bytes.as_chunks().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect(),
            "I64" => bytes.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
            other => {
                return Err(self.wrong(format!("is stored as {other}; supported here: I8, U8, I32, I64")));
            }
        })
    }

    /// The elements if they are floats of 16 or 32 bits.
    pub fn floats(&self) -> Result<Vec<f32>, ModelError> {
        let bytes = self.bytes;
        Ok(match self.dtype.as_str() {
            "F32" => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            "BF16" => bytes.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            "F16" => bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
            other => return Err(self.wrong(format!("is stored as {other}; supported here: F32, BF16, F16"))),
        })
    }

    /// The complaint that this tensor cannot be used, `reason` being the sentence's end.
    pub fn wrong(&self, reason: impl Into<String>) -> ModelError {
        ModelError::PackedTensor { name: self.name.into(), reason: reason.into() }
    }
}
