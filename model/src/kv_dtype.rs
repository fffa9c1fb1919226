//! [`KvDtype`]: what the KV cache keeps of a number.

use crate::spec::Dtype;

/// How keys and values are stored. They are computed with in `f32` on the CPU, whatever this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// FP8 E4M3, times the layer's scale.
    Fp8E4m3,
    /// FP8 E5M2, times the layer's scale.
    Fp8E5m2,
    /// Whole numbers from -127 to 127, times a scale of their own for each key and value of each token and head.
    Int8PerTokenHead,
    /// FP8 E4M3, with such scales.
    Fp8PerTokenHead,
}

impl KvDtype {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Fp8E4m3,
        Self::Fp8E5m2,
        Self::Int8PerTokenHead,
        Self::Fp8PerTokenHead,
    ];

    /// vLLM's name for it (and float32's, for which vLLM has none).
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            Self::Fp8E4m3 => "fp8_e4m3",
            Self::Fp8E5m2 => "fp8_e5m2",
            Self::Int8PerTokenHead => "int8_per_token_head",
            Self::Fp8PerTokenHead => "fp8_per_token_head",
        }
    }

    /// Bytes of a key or a value of that many numbers, its scale among them.
    pub fn vector_bytes(self, len: usize) -> usize {
        match self {
            Self::F32 => 4 * len,
            Self::F16 | Self::Bf16 => 2 * len,
            Self::Fp8E4m3 | Self::Fp8E5m2 => len,
            Self::Int8PerTokenHead | Self::Fp8PerTokenHead => len + size_of::<f32>(),
        }
    }
}

impl From<Dtype> for KvDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::Bf16 => Self::Bf16,
        }
    }
}

/// What the elements of a layer's cache are multiplied by when they are read, if they are FP8 and have no scales of
/// their own. A checkpoint that was made for it says so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvScales {
    /// Keys.
    pub key: f32,
    /// Values.
    pub value: f32,
}

impl Default for KvScales {
    fn default() -> Self {
        Self { key: 1.0, value: 1.0 }
    }
}
